//! The silhouette (P. Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster
//! analysis", 1987): how much nearer a point lies to its own group than to the nearest other one, between -1 and 1.

use crate::kernels::{Isa, pairwise};
use rayon::prelude::*;

/// The silhouette of every point of `points`, [n, width], for each way to group them in `groupings`, whose groups, [n],
/// are numbered from 0: (b - a) / max(a, b), a the mean distance to the others of its group, b the least mean distance
/// to another group. 0 for a point that is alone in its group, as in the paper; `None` if there are not two groups.
pub fn silhouettes(points: &[f32], width: usize, groupings: &[&[usize]]) -> Vec<Option<Vec<f64>>> {
    let isa = Isa::best();
    let n = points.len() / width.max(1);
    let tiled = pairwise::tiles(points, width);
    let sizes: Vec<Vec<usize>> = groupings.iter().map(|groups| sizes(groups)).collect();
    let rows: Vec<Vec<f64>> = (0..n)
        .into_par_iter()
        .map_init(
            || vec![0.0; n],
            |distances, i| {
                pairwise::squared_distances(isa, &tiled, &points[i * width..(i + 1) * width], distances);
                distances.iter_mut().for_each(|distance| *distance = distance.sqrt());
                groupings.iter().zip(&sizes).map(|(groups, sizes)| one(distances, i, groups, sizes)).collect()
            },
        )
        .collect();
    let is_grouped = |sizes: &Vec<usize>| sizes.iter().filter(|&&size| size > 0).count() > 1;
    let of = |(at, sizes): (usize, &Vec<usize>)| is_grouped(sizes).then(|| rows.iter().map(|row| row[at]).collect());
    sizes.iter().enumerate().map(of).collect()
}

fn sizes(groups: &[usize]) -> Vec<usize> {
    let mut sizes = vec![0; groups.iter().max().map_or(0, |most| most + 1)];
    groups.iter().for_each(|&group| sizes[group] += 1);
    sizes
}

/// The silhouette of point `i` from its distances to all.
fn one(distances: &[f32], i: usize, groups: &[usize], sizes: &[usize]) -> f64 {
    let own = groups[i];
    if sizes[own] == 1 {
        return 0.0;
    }
    let mut sums = vec![0.0; sizes.len()];
    distances.iter().zip(groups).for_each(|(&distance, &group)| sums[group] += f64::from(distance));
    let within = sums[own] / (sizes[own] - 1) as f64;
    let others = (0..sizes.len()).filter(|&group| group != own && sizes[group] > 0);
    let beside = others.map(|group| sums[group] / sizes[group] as f64).fold(f64::INFINITY, f64::min);
    let most = within.max(beside);
    if most > 0.0 && most.is_finite() { (beside - within) / most } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    /// What `tests/peers/sklearn_silhouette.py` wrote.
    #[derive(Deserialize)]
    struct Case {
        width: usize,
        points: Vec<f32>,
        groups: Vec<usize>,
        silhouettes: Vec<f64>,
    }

    #[test]
    fn the_numbers_of_scikit_learn() {
        let text = include_str!("../../tests/golden/embedding/silhouette.json");
        let cases: Vec<Case> = serde_json::from_str(text).unwrap();
        assert_eq!(cases.len(), 4);
        for case in cases {
            let found = silhouettes(&case.points, case.width, &[&case.groups]).remove(0).unwrap();
            assert_eq!(found.len(), case.silhouettes.len());
            for (found, expected) in found.iter().zip(&case.silhouettes) {
                assert!((found - expected).abs() < 1e-6, "{found}, scikit-learn {expected}");
            }
        }
    }

    #[test]
    fn by_hand() {
        // Two pairs on a line: a = 1, b = 10.5 and 9.5.
        let of = |points: &[f32], groups: &[usize]| silhouettes(points, 1, &[groups]).remove(0);
        let found = of(&[0.0, 1.0, 10.0, 11.0], &[0, 0, 3, 3]).unwrap();
        let expected = [9.5 / 10.5, 8.5 / 9.5, 8.5 / 9.5, 9.5 / 10.5];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
        assert_eq!(of(&[0.0, 1.0], &[4, 4]), None);
        assert_eq!(of(&[], &[]), None);
        assert_eq!(of(&[2.0; 4], &[0, 0, 1, 1]), Some(vec![0.0; 4]));
    }
}
