//! Attention maps: where a layer looks, and how far two networks differ in it.
//!
//! Zagoruyko & Komodakis 2017 (arXiv:1612.03928) as NAD (Li et al. 2021, arXiv:2101.05930, equations 2 to 4) uses it: the
//! map of features F [H, W, C] is `sum over c of |F_c|^p`, divided by its length over all positions, here with p = 2. The
//! distance of two batches of maps is their mean squared difference over images and positions.

/// Keeps the length of an empty map above 0; NAD's code has it too.
const EPSILON: f64 = 1e-6;

/// Maps of `features` [n, positions, channels]: [n, positions].
pub fn maps(features: &[f32], n: usize, channels: usize) -> Vec<f64> {
    let mut maps = sums(features, channels);
    let positions = maps.len() / n;
    for map in maps.chunks_exact_mut(positions) {
        let length = length(map);
        map.iter_mut().for_each(|value| *value /= length);
    }
    maps
}

/// Mean squared difference of the maps of `features` [n, positions, channels] from `teacher` [n, positions]; writes
/// `weight` times its gradient with respect to the features into `gradient`.
pub fn distance(
    features: &[f32],
    (n, channels): (usize, usize),
    teacher: &[f64],
    weight: f64,
    gradient: &mut [f32],
) -> f64 {
    let sums = sums(features, channels);
    let positions = sums.len() / n;
    let scale = 1.0 / sums.len() as f64;
    let mut distance = 0.0;
    let images = sums.chunks_exact(positions).zip(teacher.chunks_exact(positions));
    let targets = features.chunks_exact(positions * channels).zip(gradient.chunks_exact_mut(positions * channels));
    for ((sums, teacher), (features, gradient)) in images.zip(targets) {
        let length = length(sums);
        let bare = length - EPSILON;
        let differences: Vec<f64> = sums.iter().zip(teacher).map(|(s, t)| s / length - t).collect();
        distance += differences.iter().map(|d| d * d).sum::<f64>() * scale;
        let along: f64 = differences.iter().zip(sums).map(|(d, s)| d * s).sum();
        for ((difference, sum), (features, gradient)) in
            differences.iter().zip(sums).zip(features.chunks_exact(channels).zip(gradient.chunks_exact_mut(channels)))
        {
            // d (s_i / |s|) / d s_j = (1_ij - s_i s_j / (|s| bare)) / |s|.
            let through_length = if bare > 0.0 { sum * along / (length * bare) } else { 0.0 };
            let on_sum = 2.0 * scale * weight * (difference - through_length) / length;
            for (target, &feature) in gradient.iter_mut().zip(features) {
                *target = (on_sum * 2.0 * f64::from(feature)) as f32;
            }
        }
    }
    distance
}

/// Sums of squares over channels, [n, positions].
fn sums(features: &[f32], channels: usize) -> Vec<f64> {
    features.chunks_exact(channels).map(|c| c.iter().map(|&v| f64::from(v) * f64::from(v)).sum()).collect()
}

fn length(map: &[f64]) -> f64 {
    map.iter().map(|v| v * v).sum::<f64>().sqrt() + EPSILON
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{check, values};
    use crate::nn::golden;

    #[test]
    fn maps_and_their_distance_are_those_of_pytorch() {
        let golden = &golden::purify()["attention"];
        let (student, teacher) = (values(1, 360), values(2, 360));
        for (ours, theirs) in maps(&student, 3, 6).iter().zip(golden::floats(&golden["maps"])) {
            assert!((ours - theirs).abs() < 1e-6, "{ours} instead of {theirs}");
        }
        let mut gradient = vec![f32::NAN; 360];
        let found = distance(&student, (3, 6), &maps(&teacher, 3, 6), 1.0, &mut gradient);
        assert!((found - golden["loss"].as_f64().unwrap()).abs() < 1e-7, "{found}");
        check("gradient", &gradient, &golden::floats(&golden["gradient"]), 1e-5);
        let mut heavier = vec![f32::NAN; 360];
        distance(&student, (3, 6), &maps(&teacher, 3, 6), 500.0, &mut heavier);
        let expected: Vec<f64> = gradient.iter().map(|&g| 500.0 * f64::from(g)).collect();
        check("weighted", &heavier, &expected, 1e-6);
    }

    #[test]
    fn features_without_values_have_no_gradient() {
        let mut gradient = vec![f32::NAN; 12];
        let found = distance(&[0.0; 12], (1, 3), &[0.5; 4], 1.0, &mut gradient);
        assert!((found - 0.25).abs() < 1e-12 && gradient == [0.0; 12]);
    }
}
