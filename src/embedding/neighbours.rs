//! Nearest neighbours, exact: every point against every other.

use crate::kernels::{Isa, pairwise};
use rayon::prelude::*;

/// The `k` nearest neighbours of every point.
#[derive(Clone, Debug)]
pub struct Neighbours {
    /// Neighbours of each point.
    pub k: usize,
    /// [n, k], nearest first, equal distances by position.
    pub indices: Vec<u32>,
    /// Squared Euclidean distances, [n, k].
    pub distances: Vec<f32>,
}

/// The `k` nearest neighbours among `points`, [n, width], the point itself left out.
///
/// # Panics
/// If there are not more than `k` points, or more than 2^32.
pub fn nearest(isa: Isa, points: &[f32], width: usize, k: usize) -> Neighbours {
    let n = points.len() / width;
    assert!(k < n && u32::try_from(n).is_ok(), "{k} neighbours among {n} points");
    let tiled = pairwise::tiles(points, width);
    let rows: Vec<Vec<(f32, u32)>> = (0..n)
        .into_par_iter()
        .map_init(
            || vec![0.0; n],
            |distances, i| {
                pairwise::squared_distances(isa, &tiled, &points[i * width..(i + 1) * width], distances);
                let others = distances.iter().zip(0..).filter(|&(_, j)| j as usize != i);
                let mut row: Vec<(f32, u32)> = others.map(|(&distance, j)| (distance, j)).collect();
                let order = |a: &(f32, u32), b: &(f32, u32)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
                if k < row.len() {
                    row.select_nth_unstable_by(k, order);
                    row.truncate(k);
                }
                row.sort_unstable_by(order);
                row
            },
        )
        .collect();
    Neighbours {
        k,
        indices: rows.iter().flatten().map(|&(_, j)| j).collect(),
        distances: rows.iter().flatten().map(|&(distance, _)| distance).collect(),
    }
}

/// Which share of the `k` nearest neighbours in `points`, [n, width], are among the `k` nearest in `positions`, [n, 2]:
/// 1 for a perfect map, k / (n - 1) for a random one.
pub fn preserved(points: &[f32], width: usize, positions: &[[f32; 2]], k: usize) -> f64 {
    let isa = Isa::best();
    let (before, after) = (nearest(isa, points, width, k), nearest(isa, positions.as_flattened(), 2, k));
    let kept = |(a, b): (&[u32], &[u32])| a.iter().filter(|j| b.contains(j)).count();
    let n_kept: usize = before.indices.chunks_exact(k).zip(after.indices.chunks_exact(k)).map(kept).sum();
    n_kept as f64 / before.indices.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Streams;

    #[test]
    fn the_nearest_by_definition() {
        let (n, width, k) = (50, 3, 7);
        let points = Streams::new(1, "neighbours").stream("values").normals(n * width, 1.0);
        let found = nearest(Isa::best(), &points, width, k);
        let distance = |i: usize, j: usize| -> f64 {
            (0..width).map(|c| f64::from(points[i * width + c] - points[j * width + c]).powi(2)).sum()
        };
        for i in 0..n {
            let mut others: Vec<usize> = (0..n).filter(|&j| j != i).collect();
            others.sort_by(|&a, &b| distance(i, a).total_cmp(&distance(i, b)));
            let row = &found.indices[i * k..(i + 1) * k];
            assert_eq!(row.iter().map(|&j| j as usize).collect::<Vec<_>>(), others[..k]);
        }
    }

    #[test]
    fn ties_go_by_position() {
        assert_eq!(nearest(Isa::best(), &[0.0, 1.0, -1.0, 0.0, 9.0], 1, 3).indices[..3], [3, 1, 2]);
    }

    #[test]
    fn a_turned_copy_preserves_all_and_a_shuffled_one_little() {
        let points = Streams::new(2, "neighbours").stream("values").normals(2 * 300, 1.0);
        let turned: Vec<[f32; 2]> = points.chunks_exact(2).map(|p| [2.0 * p[1], -2.0 * p[0]]).collect();
        assert_eq!(preserved(&points, 2, &turned, 10), 1.0);
        let mut shuffled = turned;
        shuffled.rotate_left(100);
        assert!(preserved(&points, 2, &shuffled, 10) < 0.1);
    }
}
