//! t-SNE: points in the plane whose neighbours are those of many dimensions (L. van der Maaten and G. Hinton,
//! "Visualizing data using t-SNE", JMLR 2008).
//!
//! The cost is C = sum p_ij ln(p_ij / q_ij), q_ij = w_ij / Z, w_ij = 1 / (1 + |y_i - y_j|^2); its gradient is
//! 4 sum_j (p_ij - q_ij) w_ij (y_i - y_j). The repulsion is summed over all pairs, without a tree or a grid: at the few
//! thousand points of a figure that is fast on a CPU with wide registers (`benches/tsne.rs`), and exact. O(n^2) a step.
//!
//! The step size is n / early exaggeration (A. Belkina et al., "Automated optimized parameters for t-distributed
//! stochastic neighbor embedding ...", Nature Communications 2019). Gains per coordinate and momentum are the paper's.

use super::affinity::{self, Affinities};
use super::neighbours;
use super::pca::Pca;
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::kernels::pairwise::{self, Repulsion};
use crate::rng::Stream;
use rayon::prelude::*;

/// How to lay points out.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The effective number of neighbours of a point, above 1.
    pub perplexity: f64,
    /// Steps, those of the early exaggeration included.
    pub iterations: usize,
    /// The factor on the attraction in the first steps; at least 1.
    pub early_exaggeration: f64,
    /// How many steps that is.
    pub early_iterations: usize,
    /// The step size; `None` for n / early exaggeration.
    pub learning_rate: Option<f64>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            perplexity: 30.0,
            iterations: 1000,
            early_exaggeration: 12.0,
            early_iterations: 250,
            learning_rate: None,
        }
    }
}

/// Points in the plane.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// One per point, centred.
    pub positions: Vec<[f32; 2]>,
    /// The cost that remains, in nats.
    pub divergence: f64,
}

/// The standard deviation of the start's first coordinate, as small as in the paper.
const START: f64 = 1e-4;
/// That of the noise on a start from principal components, beside it: it parts points that are equal.
const JITTER: f64 = 1e-2;

/// A start along the first two principal components, [n, 2].
///
/// # Errors
/// A value that is not finite.
pub fn start_from_components(points: &[f32], width: usize, mut stream: Stream) -> Result<Vec<[f32; 2]>> {
    let pca = Pca::fit(points, width, 2)?;
    let scale = pca.variances.first().map_or(0.0, |variance| START / variance.sqrt());
    let scores = pca.scores(points, 2);
    let mut place = |score: f32| (f64::from(score) * scale + START * JITTER * stream.normal()) as f32;
    Ok(scores.chunks_exact(2).map(|score| [place(score[0]), place(score[1])]).collect())
}

/// A random start, [n, 2].
pub fn random_start(n: usize, mut stream: Stream) -> Vec<[f32; 2]> {
    (0..n).map(|_| [(stream.normal() * START) as f32, (stream.normal() * START) as f32]).collect()
}

/// Lays `points`, [n, width], out from `start`, [n, 2]. `step` is called before every step with its number, and ends the
/// work with its error.
///
/// # Errors
/// Too few points for the perplexity, values that are not finite, and what `step` returns.
pub fn lay_out(
    points: &[f32],
    width: usize,
    start: &[[f32; 2]],
    settings: &Settings,
    step: &dyn Fn(usize) -> Result<()>,
) -> Result<Layout> {
    let n = start.len();
    if points.len() != n * width {
        return Err(Error::stage(format!("{} values are no {n} points of {width} coordinates", points.len())));
    }
    if points.iter().any(|value| !value.is_finite()) {
        return Err(Error::stage("the representations are not all finite numbers"));
    }
    if (n as f64) < settings.perplexity + 2.0 {
        return Err(Error::user(format!("perplexity {} is too large for {n} points", settings.perplexity)).hint(
            "a point cannot have more neighbours than there are others; lower `perplexity` or take more points",
        ));
    }
    let isa = Isa::best();
    let near = neighbours::nearest(isa, points, width, affinity::n_neighbours(settings.perplexity, n));
    let affinities = affinity::joint(&near, settings.perplexity);
    let mut points = Moving::new(start);
    let rate = settings.learning_rate.unwrap_or(n as f64 / settings.early_exaggeration) as f32;
    for i in 0..settings.iterations {
        step(i)?;
        let early = i < settings.early_iterations;
        let exaggeration = if early { settings.early_exaggeration as f32 } else { 1.0 };
        let forces = forces(isa, &affinities, &points.x, &points.y);
        points.go(&gradient(&forces, exaggeration), rate, if early { 0.5 } else { 0.8 });
    }
    let divergence = divergence(isa, &affinities, &points.x, &points.y);
    if !divergence.is_finite() {
        return Err(Error::stage("the layout has diverged").hint("lower `learning_rate`"));
    }
    Ok(Layout { positions: points.x.iter().zip(&points.y).map(|(&x, &y)| [x, y]).collect(), divergence })
}

/// What pulls and pushes one point.
#[derive(Clone, Copy, Debug, Default)]
struct Force {
    attraction: [f32; 2],
    repulsion: Repulsion,
}

/// Points of one unit of parallel work.
const ROWS: usize = 32;

fn forces(isa: Isa, affinities: &Affinities, x: &[f32], y: &[f32]) -> Vec<Force> {
    let mut forces = vec![Force::default(); x.len()];
    forces.par_chunks_mut(ROWS).enumerate().for_each(|(chunk, forces)| {
        let first = chunk * ROWS;
        let mut pushes = [Repulsion::default(); ROWS];
        pairwise::repulsion(isa, x, y, first, &mut pushes[..forces.len()]);
        for ((i, force), push) in (first..).zip(forces).zip(pushes) {
            let (neighbours, p) = affinities.row(i);
            pairwise::attraction(isa, x, y, [x[i], y[i]], neighbours, p, &mut force.attraction);
            force.repulsion = push;
        }
    });
    forces
}

/// Z, each point's pair with itself left out.
fn normaliser(forces: &[Force]) -> f64 {
    forces.iter().map(|force| f64::from(force.repulsion.normaliser) - 1.0).sum()
}

/// dC/dy with all p multiplied by `exaggeration`.
fn gradient(forces: &[Force], exaggeration: f32) -> Vec<[f32; 2]> {
    // At two points and above Z is positive, unless all lie infinitely far apart.
    let share = (1.0 / normaliser(forces).max(f64::MIN_POSITIVE)) as f32;
    let along = |force: &Force, axis: usize| {
        4.0 * (exaggeration * force.attraction[axis] - share * force.repulsion.force[axis])
    };
    forces.iter().map(|force| [along(force, 0), along(force, 1)]).collect()
}

/// C, over the pairs that have a probability.
fn divergence(isa: Isa, affinities: &Affinities, x: &[f32], y: &[f32]) -> f64 {
    let log_z = libm::log(normaliser(&forces(isa, affinities, x, y)));
    let mut sum = 0.0;
    for i in 0..x.len() {
        let (neighbours, p) = affinities.row(i);
        for (&j, &p) in neighbours.iter().zip(p).filter(|(_, p)| **p > 0.0) {
            let (dx, dy) = (x[i] - x[j as usize], y[i] - y[j as usize]);
            let square = f64::from(dx) * f64::from(dx) + f64::from(dy) * f64::from(dy);
            let p = f64::from(p);
            sum += p * (libm::log(p) + libm::log1p(square) + log_z);
        }
    }
    sum
}

/// Points on their way.
struct Moving {
    x: Vec<f32>,
    y: Vec<f32>,
    velocity: Vec<[f32; 2]>,
    gains: Vec<[f32; 2]>,
}

/// No gain falls below this.
const LEAST_GAIN: f32 = 0.01;

impl Moving {
    fn new(start: &[[f32; 2]]) -> Moving {
        Moving {
            x: start.iter().map(|at| at[0]).collect(),
            y: start.iter().map(|at| at[1]).collect(),
            velocity: vec![[0.0; 2]; start.len()],
            gains: vec![[1.0; 2]; start.len()],
        }
    }

    /// One step down the gradient, then back to the middle.
    fn go(&mut self, gradient: &[[f32; 2]], rate: f32, momentum: f32) {
        let axes = [&mut self.x, &mut self.y];
        for (axis, places) in axes.into_iter().enumerate() {
            for (i, place) in places.iter_mut().enumerate() {
                let (slope, velocity, gain) =
                    (gradient[i][axis], &mut self.velocity[i][axis], &mut self.gains[i][axis]);
                // A gradient against the last step goes on in its direction.
                let goes_on = (slope > 0.0) != (*velocity > 0.0);
                *gain = if goes_on { *gain + 0.2 } else { *gain * 0.8 }.max(LEAST_GAIN);
                *velocity = momentum * *velocity - rate * *gain * slope;
                *place += *velocity;
            }
            let mean = (places.iter().map(|&v| f64::from(v)).sum::<f64>() / places.len().max(1) as f64) as f32;
            places.iter_mut().for_each(|place| *place -= mean);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Streams;

    fn stream(name: &str) -> Stream {
        Streams::new(11, "tsne").stream(name)
    }

    /// `groups` groups of `each` points in `width` dimensions, `apart` standard deviations from the middle.
    fn groups(groups: usize, each: usize, width: usize, apart: f64) -> Vec<f32> {
        let (mut centres, mut draws) = (stream("centres"), stream("points"));
        let mut points = Vec::new();
        for _ in 0..groups {
            let centre = centres.normals(width, apart);
            for _ in 0..each {
                points.extend(centre.iter().map(|c| c + draws.normal() as f32));
            }
        }
        points
    }

    fn embed(points: &[f32], width: usize, settings: &Settings) -> Layout {
        let start = start_from_components(points, width, stream("start")).unwrap();
        lay_out(points, width, &start, settings, &|_| Ok(())).unwrap()
    }

    #[test]
    fn the_gradient_is_that_of_the_cost() {
        let (n, width) = (40, 5);
        let points = stream("points").normals(n * width, 1.0);
        let joint = affinity::joint(&neighbours::nearest(Isa::best(), &points, width, 15), 5.0);
        let mut places: Vec<Vec<f64>> = ["x", "y"]
            .map(|axis| (0..n).map(|_| 0.0).zip(stream(axis).normals(n, 1.5)).map(|(_, v)| f64::from(v)).collect())
            .to_vec();
        let single = |places: &[f64]| places.iter().map(|&v| v as f32).collect::<Vec<f32>>();
        // In f64 and from the definition, all p times `exaggeration`.
        let cost = |places: &[Vec<f64>], exaggeration: f64| {
            let w = |i: usize, j: usize| {
                1.0 / (1.0 + (places[0][i] - places[0][j]).powi(2) + (places[1][i] - places[1][j]).powi(2))
            };
            let pairs = (0..n).flat_map(|i| (0..n).filter(move |&j| j != i).map(move |j| (i, j)));
            let z: f64 = pairs.map(|(i, j)| w(i, j)).sum();
            let mut cost = libm::log(z);
            for i in 0..n {
                let (neighbours, p) = joint.row(i);
                for (&j, &p) in neighbours.iter().zip(p) {
                    cost -= exaggeration * f64::from(p) * w(i, j as usize).ln();
                }
            }
            cost
        };
        for isa in Isa::available() {
            for exaggeration in [1.0, 12.0] {
                let found =
                    gradient(&forces(isa, &joint, &single(&places[0]), &single(&places[1])), exaggeration as f32);
                for (i, axis) in (0..n).flat_map(|i| [(i, 0), (i, 1)]) {
                    let at = places[axis][i];
                    let mut beside = |h: f64| {
                        places[axis][i] = at + h;
                        cost(&places, exaggeration)
                    };
                    let slope = (beside(1e-5) - beside(-1e-5)) / 2e-5;
                    places[axis][i] = at;
                    assert!(
                        (slope - f64::from(found[i][axis])).abs() < 2e-6 * exaggeration,
                        "{i}: {slope}, {:?}",
                        found[i]
                    );
                }
            }
        }
        // The cost itself: with the entropy of p, which has no gradient.
        let entropy: f64 = joint.p.iter().map(|&p| f64::from(p)).map(|p| p * p.ln()).sum();
        let found = divergence(Isa::best(), &joint, &single(&places[0]), &single(&places[1]));
        assert!((found - entropy - cost(&places, 1.0)).abs() < 1e-5);
    }

    #[test]
    fn groups_come_apart_and_keep_their_neighbours() {
        let points = groups(4, 60, 10, 6.0);
        let settings = Settings { perplexity: 20.0, iterations: 500, ..Settings::default() };
        let layout = embed(&points, 10, &settings);
        let near = neighbours::nearest(Isa::best(), layout.positions.as_flattened(), 2, 1);
        let same = near.indices.iter().enumerate().filter(|&(i, &j)| i / 60 == j as usize / 60).count();
        assert_eq!(same, 240, "a nearest neighbour of another group");
        let kept = neighbours::preserved(&points, 10, &layout.positions, 10);
        assert!(kept > 0.35 && layout.divergence < 1.0, "kept {kept}, divergence {}", layout.divergence);
        for axis in 0..2 {
            let mean = layout.positions.iter().map(|at| f64::from(at[axis])).sum::<f64>() / 240.0;
            assert!(mean.abs() < 1e-4, "not centred: {mean}");
        }
    }

    #[test]
    fn threads_change_nothing() {
        let points = groups(3, 50, 8, 3.0);
        let settings = Settings { perplexity: 10.0, iterations: 120, early_iterations: 60, ..Settings::default() };
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| embed(&points, 8, &settings))
        };
        assert_eq!(on(1), on(2));
    }

    #[test]
    fn equal_points_and_bad_ones() {
        // Three places, 20 points each.
        let points: Vec<f32> = (0..60).flat_map(|i| [(i / 20) as f32, 0.0]).collect();
        let settings = Settings { perplexity: 5.0, iterations: 100, early_iterations: 50, ..Settings::default() };
        let layout = embed(&points, 2, &settings);
        assert!(layout.positions.iter().flatten().all(|v| v.is_finite()));
        let refuse = |points: &[f32], perplexity: f64, expected: &str| {
            let start = random_start(points.len(), stream("start"));
            let settings = Settings { perplexity, ..Settings::default() };
            let error = lay_out(points, 1, &start, &settings, &|_| Ok(())).unwrap_err();
            assert!(error.to_string().contains(expected), "{error:?}");
        };
        refuse(&[0.0; 31], 30.0, "perplexity 30 is too large for 31 points");
        refuse(&[f32::NAN; 50], 30.0, "not all finite");
    }
}
