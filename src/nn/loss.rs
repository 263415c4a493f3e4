//! Softmax cross-entropy with label smoothing, its gradient, and the loss of every sample.

use crate::error::{Error, Result};

/// Cross-entropy of `logits` [n, n_classes] against `labels` [n]: the loss of every sample, in nats.
///
/// Writes the gradient of the *mean* loss into `grad` [n, n_classes]. With smoothing e the target is (1 - e) on the
/// label plus e / n_classes on every class (Szegedy et al. 2016, PyTorch's `label_smoothing`). Computed in f64, with
/// the largest logit subtracted; a NaN among the logits gives a NaN loss.
///
/// # Errors
/// Lengths that do not fit, or a label that is no class.
pub fn cross_entropy(
    logits: &[f32],
    labels: &[i64],
    n_classes: usize,
    smoothing: f64,
    grad: &mut [f32],
) -> Result<Vec<f32>> {
    let mut losses = vec![0.0; labels.len()];
    cross_entropy_into(logits, labels, n_classes, smoothing, (&mut losses, grad))?;
    Ok(losses)
}

/// The same into room that the caller owns: `losses` [n] and `grad` [n, n_classes].
///
/// # Errors
/// As [`cross_entropy`].
pub fn cross_entropy_into(
    logits: &[f32],
    labels: &[i64],
    n_classes: usize,
    smoothing: f64,
    (losses, grad): (&mut [f32], &mut [f32]),
) -> Result<()> {
    check_shapes(logits, labels, n_classes)?;
    if grad.len() != logits.len() || losses.len() != labels.len() {
        return Err(Error::stage(format!(
            "{} losses and a gradient of {} values for {} labels and {} logits",
            losses.len(),
            grad.len(),
            labels.len(),
            logits.len()
        )));
    }
    let scale = 1.0 / labels.len() as f64;
    let spread = smoothing / n_classes as f64;
    let rows = logits.chunks_exact(n_classes).zip(grad.chunks_exact_mut(n_classes));
    for (((logits, grad), &label), of_sample) in rows.zip(labels).zip(losses) {
        let normaliser = log_sum_exp(logits);
        let mut loss = 0.0;
        for (class, (&logit, grad)) in logits.iter().zip(grad).enumerate() {
            let log_probability = f64::from(logit) - normaliser;
            let target = spread + if class as i64 == label { 1.0 - smoothing } else { 0.0 };
            // A target of zero must not meet a log-probability of minus infinity.
            if target > 0.0 {
                loss -= target * log_probability;
            }
            *grad = ((libm::exp(log_probability) - target) * scale) as f32;
        }
        *of_sample = loss as f32;
    }
    Ok(())
}

/// Cross-entropy without a gradient and without smoothing: the loss of every sample, in nats.
///
/// # Errors
/// Lengths that do not fit, or a label that is no class.
pub fn losses(logits: &[f32], labels: &[i64], n_classes: usize) -> Result<Vec<f32>> {
    check_shapes(logits, labels, n_classes)?;
    let rows = logits.chunks_exact(n_classes).zip(labels);
    Ok(rows.map(|(row, &label)| (log_sum_exp(row) - f64::from(row[label as usize])) as f32).collect())
}

fn check_shapes(logits: &[f32], labels: &[i64], n_classes: usize) -> Result<()> {
    if n_classes == 0 || logits.len() != labels.len() * n_classes {
        return Err(Error::stage(format!(
            "{} labels of {n_classes} classes do not fit {} logits",
            labels.len(),
            logits.len()
        )));
    }
    match labels.iter().find(|&&label| label < 0 || label >= n_classes as i64) {
        Some(label) => Err(Error::stage(format!("label {label} is none of {n_classes} classes"))),
        None => Ok(()),
    }
}

/// ln of the sum of exponentials, stable.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| libm::exp(f64::from(l) - f64::from(largest))).sum();
    f64::from(largest) + libm::log(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::golden;

    fn check_golden(name: &str, smoothing: f64) {
        let golden = &golden::torch()[name];
        let logits: Vec<f32> = golden::floats(&golden["logits"]).iter().map(|&v| v as f32).collect();
        let labels: Vec<i64> = golden::floats(&golden["labels"]).iter().map(|&v| v as i64).collect();
        let mut grad = vec![0.0; logits.len()];
        let each = cross_entropy(&logits, &labels, 3, smoothing, &mut grad).unwrap();
        for (ours, theirs) in each.iter().zip(golden::floats(&golden["losses"])) {
            assert!((f64::from(*ours) - theirs).abs() <= 1e-6 * theirs.max(1.0), "{name}: {ours} instead of {theirs}");
        }
        for (ours, theirs) in grad.iter().zip(golden::floats(&golden["grad"])) {
            assert!((f64::from(*ours) - theirs).abs() <= 1e-7, "{name}: gradient {ours} instead of {theirs}");
        }
        if smoothing == 0.0 {
            assert_eq!(losses(&logits, &labels, 3).unwrap(), each);
        }
    }

    #[test]
    fn losses_and_gradients_equal_those_of_pytorch() {
        check_golden("loss", 0.0);
        check_golden("loss_smooth", 0.1);
    }

    /// Invariant 11.
    #[test]
    fn gradient_is_the_slope_of_the_mean_loss() {
        let logits: Vec<f32> = (0..5 * 4).map(|i| ((i * 7 % 13) as f32 - 6.0) * 0.3).collect();
        let labels = [0, 3, 1, 1, 2];
        for smoothing in [0.0, 0.2] {
            let mean = |logits: &[f32]| -> f64 {
                let mut unused = vec![0.0; logits.len()];
                let each = cross_entropy(logits, &labels, 4, smoothing, &mut unused).unwrap();
                each.iter().map(|&l| f64::from(l)).sum::<f64>() / labels.len() as f64
            };
            let mut grad = vec![0.0; logits.len()];
            cross_entropy(&logits, &labels, 4, smoothing, &mut grad).unwrap();
            for i in 0..logits.len() {
                let shifted = |by: f32| {
                    let mut shifted = logits.clone();
                    shifted[i] += by;
                    mean(&shifted)
                };
                let slope = (shifted(1.0 / 64.0) - shifted(-1.0 / 64.0)) * 32.0;
                assert!((slope - f64::from(grad[i])).abs() < 2e-5, "{i}: slope {slope}, gradient {}", grad[i]);
            }
        }
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(cross_entropy(&[0.0; 6], &[0, 3], 3, 0.0, &mut [0.0; 6]).is_err());
        assert!(cross_entropy(&[0.0; 6], &[0, -1], 3, 0.0, &mut [0.0; 6]).is_err());
        assert!(cross_entropy(&[0.0; 5], &[0, 1], 3, 0.0, &mut [0.0; 5]).is_err());
        assert!(cross_entropy(&[f32::NAN, 0.0], &[0], 2, 0.0, &mut [0.0; 2]).unwrap()[0].is_nan());
    }
}
