//! Loops over pairs of points: squared distances, and the forces of t-SNE in the plane.
//!
//! Every sum runs in [`LANES`] partial sums that are added up in order, so all instruction sets give the same bits.

use super::isa::multiversion;
use super::lanes;

/// Points of a tile of [`tiles`].
pub const TILE: usize = 32;
/// Partial sums.
const LANES: usize = 16;

/// Points [n, width] in tiles of [`TILE`]: [n / TILE, width, TILE], the last tile filled up with zeros.
pub fn tiles(points: &[f32], width: usize) -> Vec<f32> {
    let n = points.len() / width.max(1);
    let mut tiled = vec![0.0; n.div_ceil(TILE) * TILE * width];
    for (i, point) in points.chunks_exact(width.max(1)).enumerate() {
        for (k, &value) in point.iter().enumerate() {
            tiled[(i / TILE * width + k) * TILE + i % TILE] = value;
        }
    }
    tiled
}

multiversion! {
    /// Squared distances of `point`, [width], to all points of `tiled`; as many as `out` holds.
    pub fn squared_distances(tiled: &[f32], point: &[f32], out: &mut [f32]) {
        for (tile, out) in tiled.chunks_exact(TILE * point.len()).zip(out.chunks_mut(TILE)) {
            let mut sums = [0.0f32; TILE];
            for (values, &at) in tile.chunks_exact(TILE).zip(point) {
                for (sum, &value) in sums.iter_mut().zip(values) {
                    let difference = value - at;
                    *sum += difference * difference;
                }
            }
            out.copy_from_slice(&sums[..out.len()]);
        }
    }
}

/// The sums of t-SNE's repulsion on one point, w = 1 / (1 + |y_i - y_j|^2), the point itself included.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Repulsion {
    /// Sum of w^2 (y_i - y_j).
    pub force: [f32; 2],
    /// Sum of w: the point's share of the normaliser, plus 1 for itself.
    pub normaliser: f32,
}

multiversion! {
    /// The repulsion on the points from `first` on, as many as `out` holds, by all points (`x`, `y`).
    pub fn repulsion(x: &[f32], y: &[f32], first: usize, out: &mut [Repulsion]) {
        let whole = x.len() / LANES * LANES;
        for (i, out) in (first..).zip(out) {
            let (at_x, at_y) = (x[i], y[i]);
            let mut force_x = [0.0f32; LANES];
            let mut force_y = [0.0f32; LANES];
            let mut normaliser = [0.0f32; LANES];
            for at in (0..whole).step_by(LANES) {
                let (xs, ys) = (lanes::<LANES>(x, at), lanes::<LANES>(y, at));
                for l in 0..LANES {
                    let (dx, dy) = (at_x - xs[l], at_y - ys[l]);
                    let w = 1.0 / (1.0 + dx * dx + dy * dy);
                    let square = w * w;
                    normaliser[l] += w;
                    force_x[l] += square * dx;
                    force_y[l] += square * dy;
                }
            }
            for (l, (&xs, &ys)) in x[whole..].iter().zip(&y[whole..]).enumerate() {
                let (dx, dy) = (at_x - xs, at_y - ys);
                let w = 1.0 / (1.0 + dx * dx + dy * dy);
                normaliser[l] += w;
                force_x[l] += w * w * dx;
                force_y[l] += w * w * dy;
            }
            *out = Repulsion { force: [sum(&force_x), sum(&force_y)], normaliser: sum(&normaliser) };
        }
    }
}

multiversion! {
    /// Attraction on one point at `at`: `out` = sum of p_j w (y_i - y_j) over its neighbours.
    pub fn attraction(x: &[f32], y: &[f32], at: [f32; 2], neighbours: &[u32], p: &[f32], out: &mut [f32; 2]) {
        let mut force_x = [0.0f32; LANES];
        let mut force_y = [0.0f32; LANES];
        for (neighbours, p) in neighbours.chunks(LANES).zip(p.chunks(LANES)) {
            // A lane without a neighbour has p = 0.
            let (mut xs, mut ys, mut ps) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
            for (l, (&j, &p)) in neighbours.iter().zip(p).enumerate() {
                (xs[l], ys[l], ps[l]) = (x[j as usize], y[j as usize], p);
            }
            for l in 0..LANES {
                let (dx, dy) = (at[0] - xs[l], at[1] - ys[l]);
                let pull = ps[l] / (1.0 + dx * dx + dy * dy);
                force_x[l] += pull * dx;
                force_y[l] += pull * dy;
            }
        }
        *out = [sum(&force_x), sum(&force_y)];
    }
}

/// By halves, so that few roundings lie behind a value.
#[inline(always)]
fn sum(values: &[f32; LANES]) -> f32 {
    let mut values = *values;
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            values[l] += values[l + half];
        }
        half /= 2;
    }
    values[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;
    use crate::rng::Streams;

    fn draws(n: usize, std: f64) -> Vec<f32> {
        Streams::new(5, "pairwise").stream("values").normals(n, std)
    }

    fn close(found: f32, expected: f64, scale: f64, what: &str) {
        assert!((f64::from(found) - expected).abs() <= 2e-6 * scale, "{what}: {found} and {expected}");
    }

    #[test]
    fn distances_are_those_of_the_definition() {
        for (n, width) in [(1, 1), (31, 3), (32, 8), (70, 17)] {
            let points = draws(n * width, 2.0);
            let tiled = tiles(&points, width);
            let mut first = Vec::new();
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; n];
                squared_distances(isa, &tiled, &points[..width], &mut out);
                for (point, &found) in points.chunks_exact(width).zip(&out) {
                    let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
                    let expected: f64 = point.iter().zip(&points[..width]).map(square).sum();
                    close(found, expected, expected, "distance");
                }
                first = if first.is_empty() { out.clone() } else { first };
                assert_eq!(first, out, "{} gives other bits", isa.name());
            }
        }
    }

    #[test]
    fn forces_are_those_of_the_definition() {
        for n in [1, 15, 16, 50] {
            let (x, y) = (draws(n, 3.0), draws(2 * n, 3.0)[n..].to_vec());
            let difference =
                |i: usize, j: usize| [f64::from(x[i]) - f64::from(x[j]), f64::from(y[i]) - f64::from(y[j])];
            let w = |d: [f64; 2]| 1.0 / (1.0 + d[0] * d[0] + d[1] * d[1]);
            let neighbours: Vec<u32> = (0..n as u32).filter(|j| j % 3 != 1).collect();
            let p: Vec<f32> = neighbours.iter().map(|&j| 0.01 * (j + 1) as f32).collect();
            let mut first = Vec::new();
            for isa in Isa::available() {
                let mut out = vec![Repulsion::default(); n];
                repulsion(isa, &x, &y, 0, &mut out[..n / 2]);
                repulsion(isa, &x, &y, n / 2, &mut out[n / 2..]);
                for (i, out) in out.iter().enumerate() {
                    let mut pulled = [0.0; 2];
                    attraction(isa, &x, &y, [x[i], y[i]], &neighbours, &p, &mut pulled);
                    close(out.normaliser, (0..n).map(|j| w(difference(i, j))).sum(), n as f64, "normaliser");
                    for axis in 0..2 {
                        let push = (0..n).map(|j| w(difference(i, j)).powi(2) * difference(i, j)[axis]).sum();
                        close(out.force[axis], push, n as f64, "repulsion");
                        let pull = |(&j, &p): (&u32, &f32)| {
                            let d = difference(i, j as usize);
                            f64::from(p) * w(d) * d[axis]
                        };
                        close(pulled[axis], neighbours.iter().zip(&p).map(pull).sum(), n as f64, "attraction");
                    }
                }
                first = if first.is_empty() { out.clone() } else { first };
                assert_eq!(first, out, "{} gives other bits", isa.name());
            }
        }
    }
}
