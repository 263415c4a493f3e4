//! From the fits of several critic seeds to an estimate with an interval.

use super::fit::Fit;
use crate::rng::Stream;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 1000;

/// An estimate of mutual information, in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// On held-out pairs, mean over the critic seeds.
    pub estimate: f64,
    /// On training pairs, mean over the critic seeds.
    pub train: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end of the 95 % interval; never above the ceiling.
    pub high: f64,
    /// What the estimator cannot exceed.
    pub ceiling: Option<f64>,
    /// The size of an error that is known to be in the estimate, mean over the critic seeds.
    pub known_error: Option<f64>,
    /// Training pairs of a critic.
    pub n_train: usize,
    /// Held-out pairs of a critic.
    pub n_held_out: usize,
}

/// What [`Estimate::low`] and [`Estimate::high`] are, for readers of a table.
pub fn definition(n_seeds: usize) -> String {
    if n_seeds > 1 {
        format!(
            "95 % t-interval of the mean over {n_seeds} critic seeds, each with its own held-out pairs, initial weights \
             and order; cut at the ceiling, if the estimator has one"
        )
    } else {
        format!(
            "95 % percentile bootstrap over the held-out pairs of the one critic ({RESAMPLES} resamples); does not cover \
             the critic's training"
        )
    }
}

/// Joins the fits of one quantity's critic seeds; `None` without any. `stream` draws the bootstrap of a single fit.
pub fn join(fits: &[&Fit], stream: &Stream) -> Option<Estimate> {
    let first = fits.first()?;
    let mean = |of: fn(&Fit) -> f64| fits.iter().map(|fit| of(fit)).sum::<f64>() / fits.len() as f64;
    let estimate = mean(|fit| fit.held_out);
    let (low, high) = match fits {
        [one] => bootstrap(&one.contributions, stream.clone()),
        _ => {
            let squares = fits.iter().map(|fit| (fit.held_out - estimate).powi(2)).sum::<f64>();
            let n = fits.len();
            let margin = student(n - 1) * (squares / (n - 1) as f64 / n as f64).sqrt();
            (estimate - margin, estimate + margin)
        }
    };
    Some(Estimate {
        estimate,
        train: mean(|fit| fit.train),
        low,
        high: first.ceiling.map_or(high, |ceiling| high.min(ceiling)),
        ceiling: first.ceiling,
        known_error: first.known_error.map(|_| mean(|fit| fit.known_error.unwrap_or(f64::NAN))),
        n_train: first.n_train,
        n_held_out: first.n_held_out,
    })
}

/// The 2.5 % and 97.5 % points of the mean of `values` under resampling.
fn bootstrap(values: &[f64], mut stream: Stream) -> (f64, f64) {
    if values.is_empty() {
        return (f64::NAN, f64::NAN);
    }
    let n = values.len();
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| (0..n).map(|_| values[stream.below(n as u64) as usize]).sum::<f64>() / n as f64)
        .collect();
    means.sort_by(f64::total_cmp);
    (means[RESAMPLES / 40], means[RESAMPLES - 1 - RESAMPLES / 40])
}

/// The 97.5 % point of Student's t with `freedom` >= 1 degrees of freedom.
fn student(freedom: usize) -> f64 {
    const TABLE: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    // Beyond the table, the first two terms of the expansion about the normal's point (Abramowitz and Stegun 26.7.5).
    let (z, n) = (1.959_964f64, freedom as f64);
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    TABLE.get(freedom.saturating_sub(1)).copied().unwrap_or(z + first / n + second / (n * n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Streams;

    fn fit(held_out: f64, contributions: Vec<f64>) -> Fit {
        let (ceiling, known_error) = (Some(2.0), Some(held_out / 10.0));
        let readouts = Vec::new();
        Fit { held_out, train: 1.0, contributions, ceiling, known_error, n_train: 30, n_held_out: 10, readouts }
    }

    #[test]
    fn several_seeds_give_a_t_interval() {
        let fits = [fit(1.0, vec![]), fit(1.2, vec![]), fit(1.4, vec![])];
        let joined = join(&[&fits[0], &fits[1], &fits[2]], &Streams::new(0, "s").stream("n")).unwrap();
        // s = 0.2, so the margin is 4.303 * 0.2 / sqrt(3).
        assert!((joined.estimate - 1.2).abs() < 1e-12);
        assert!((joined.low - (1.2 - 0.496_868)).abs() < 1e-5 && (joined.high - 1.696_868).abs() < 1e-5, "{joined:?}");
        assert!((joined.known_error.unwrap() - 0.12).abs() < 1e-12);
        let high = [fit(1.9, vec![]), fit(1.7, vec![])];
        assert_eq!(join(&[&high[0], &high[1]], &Streams::new(0, "s").stream("n")).unwrap().high, 2.0);
    }

    #[test]
    fn one_seed_gives_a_bootstrap_interval() {
        let stream = Streams::new(0, "s").stream("n");
        let values: Vec<f64> = stream.at(1).normals(400, 1.0).into_iter().map(|v| 1.0 + f64::from(v) / 10.0).collect();
        let joined = join(&[&fit(1.0, values)], &stream).unwrap();
        // 1.96 * 0.1 / 20 = 0.0098 on either side.
        assert!((joined.high - joined.low - 0.0196).abs() < 0.003, "{joined:?}");
        assert!(join(&[], &stream).is_none());
    }

    #[test]
    fn student_points() {
        for (freedom, want) in [(1, 12.706), (2, 4.303), (11, 2.201), (30, 2.042), (1000, 1.962)] {
            assert!((student(freedom) - want).abs() < 3e-3, "{freedom}: {}", student(freedom));
        }
    }
}
