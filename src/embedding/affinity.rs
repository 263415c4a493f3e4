//! From distances to the joint probabilities of t-SNE (L. van der Maaten and G. Hinton, "Visualizing data using t-SNE",
//! JMLR 2008, section 2 and equation 1).
//!
//! Differs from the paper: only the 3 x perplexity nearest neighbours of a point have a probability, as in L. van der
//! Maaten, "Accelerating t-SNE using tree-based algorithms", JMLR 2014, section 4.1; the rest is below 1e-4 of theirs.

use super::neighbours::Neighbours;
use rayon::prelude::*;

/// Symmetric joint probabilities, a sparse row per point.
#[derive(Clone, Debug)]
pub struct Affinities {
    /// Where each point's row begins in the other two; one more than points.
    pub starts: Vec<usize>,
    /// Neighbours of each row, ascending.
    pub neighbours: Vec<u32>,
    /// p_ij of each neighbour; they sum to 1 over all rows.
    pub p: Vec<f32>,
}

impl Affinities {
    /// The row of point `i`: neighbours and probabilities.
    pub fn row(&self, i: usize) -> (&[u32], &[f32]) {
        let range = self.starts[i]..self.starts[i + 1];
        (&self.neighbours[range.clone()], &self.p[range])
    }
}

/// How many neighbours a perplexity looks at, among `n` points.
pub fn n_neighbours(perplexity: f64, n: usize) -> usize {
    ((3.0 * perplexity) as usize).clamp(1, n.saturating_sub(1).max(1))
}

/// The joint probabilities at `perplexity`.
pub fn joint(near: &Neighbours, perplexity: f64) -> Affinities {
    let k = near.k;
    let conditional: Vec<f64> =
        near.distances.par_chunks(k).flat_map_iter(|distances| conditional(distances, perplexity)).collect();
    let n = near.distances.len() / k;
    // Every pair twice: once as i's neighbour, once as the one whose neighbour i is.
    let mut rows: Vec<Vec<(u32, f64)>> = vec![Vec::with_capacity(2 * k); n];
    for i in 0..n {
        let row = i * k..(i + 1) * k;
        for (&j, &conditional) in near.indices[row.clone()].iter().zip(&conditional[row]) {
            let p = conditional / (2.0 * n as f64);
            rows[i].push((j, p));
            rows[j as usize].push((i as u32, p));
        }
    }
    let mut joint = Affinities { starts: vec![0], neighbours: Vec::new(), p: Vec::new() };
    for mut row in rows {
        row.sort_by_key(|&(j, _)| j);
        for pair in row.chunk_by(|a, b| a.0 == b.0) {
            joint.neighbours.push(pair[0].0);
            joint.p.push(pair.iter().map(|&(_, p)| p).sum::<f64>() as f32);
        }
        joint.starts.push(joint.p.len());
    }
    joint
}

/// How near the entropy must come to that of the perplexity, in nats, and after how many halvings that is given up:
/// equal distances have one entropy, whatever the bandwidth.
const TOLERANCE: f64 = 1e-6;
const MOST_HALVINGS: usize = 100;

/// p_{j|i} of one point: exp(-beta d_j^2), normalised, with the beta that gives the perplexity.
pub fn conditional(distances: &[f32], perplexity: f64) -> Vec<f64> {
    let nearest = distances.iter().copied().fold(f32::INFINITY, f32::min);
    // Beyond the nearest one: beta does not see it, and nothing underflows.
    let beyond: Vec<f64> = distances.iter().map(|&d| f64::from(d) - f64::from(nearest)).collect();
    let mean = beyond.iter().sum::<f64>() / beyond.len() as f64;
    let target = libm::log(perplexity);
    let mut weights = vec![0.0; beyond.len()];
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let mut beta = if mean > 0.0 { 1.0 / mean } else { 1.0 };
    let mut sum = 0.0;
    for _ in 0..MOST_HALVINGS {
        sum = 0.0;
        let mut weighted = 0.0;
        for (weight, &d) in weights.iter_mut().zip(&beyond) {
            *weight = libm::exp(-beta * d);
            sum += *weight;
            weighted += *weight * d;
        }
        let entropy = libm::log(sum) + beta * weighted / sum;
        if (entropy - target).abs() < TOLERANCE {
            break;
        }
        if entropy > target {
            low = beta;
            beta = if high.is_finite() { 0.5 * (low + high) } else { 2.0 * beta };
        } else {
            high = beta;
            beta = 0.5 * (low + high);
        }
    }
    weights.iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedding::neighbours::nearest;
    use crate::kernels::Isa;
    use crate::rng::Streams;

    fn perplexity(p: &[f64]) -> f64 {
        p.iter().filter(|&&p| p > 0.0).map(|p| -p * p.ln()).sum::<f64>().exp()
    }

    #[test]
    fn the_perplexity_is_reached() {
        let mut stream = Streams::new(3, "affinity").stream("values");
        for (n, wanted, scale) in [(90, 30.0, 1.0), (15, 5.0, 1e-6), (150, 50.0, 1e6), (90, 2.0, 1.0), (90, 89.0, 1.0)]
        {
            let distances: Vec<f32> = (0..n).map(|_| (stream.uniform() * scale) as f32).collect();
            let p = conditional(&distances, wanted);
            assert!((perplexity(&p) - wanted).abs() < 1e-3, "{n}, {wanted}: {}", perplexity(&p));
            assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            // Nearer is likelier.
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|&a, &b| distances[a].total_cmp(&distances[b]));
            assert!(order.windows(2).all(|pair| p[pair[0]] >= p[pair[1]]));
        }
    }

    #[test]
    fn equal_distances_are_equally_likely() {
        assert_eq!(conditional(&[0.0; 8], 3.0), [0.125; 8]);
        assert_eq!(conditional(&[7.5; 4], 2.0), [0.25; 4]);
    }

    #[test]
    fn joint_probabilities_are_symmetric_and_sum_to_one() {
        let points = Streams::new(4, "affinity").stream("values").normals(200 * 4, 1.0);
        let joint = joint(&nearest(Isa::best(), &points, 4, 30), 10.0);
        let sum: f64 = joint.p.iter().map(|&p| f64::from(p)).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        for i in 0..200 {
            let (neighbours, p) = joint.row(i);
            assert!(neighbours.windows(2).all(|pair| pair[0] < pair[1]) && !neighbours.contains(&(i as u32)));
            for (&j, p) in neighbours.iter().zip(p) {
                let (back, q) = joint.row(j as usize);
                let at = back.binary_search(&(i as u32)).unwrap();
                assert_eq!(q[at].to_bits(), p.to_bits());
            }
        }
    }
}
