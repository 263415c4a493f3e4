//! What is drawn, how often, and from where; [`pixels`] tests what becomes of it.

use super::*;
use crate::rng::Streams;

const ALL: Augment = Augment { crop: 2, flip: true, cutout: 3 };

fn stream() -> Stream {
    Streams::new(0, "s").stream("augment")
}

fn split(n: usize, size: (usize, usize)) -> Split {
    let pixels = (0..n * size.0 * size.1 * 3).map(|i| (i * 37 % 251) as u8).collect();
    Split::clean(size, pixels, vec![0; n]).unwrap()
}

fn batch(split: &Split, rows: &[usize], augment: Augment, epoch: usize) -> Vec<f32> {
    let normalise = Normalise::new([0.49, 0.48, 0.45], [0.25, 0.24, 0.26]).unwrap();
    let mut batch = vec![f32::NAN; rows.len() * split.image_bytes()];
    augmented(split, rows, &normalise, (augment, &stream(), epoch), &mut batch).unwrap();
    batch
}

#[test]
fn normalisation_is_that_of_pytorch() {
    let (mean, std) = ([0.49, 0.48, 0.45], [0.25, 0.24, 0.26]);
    let bytes: Vec<u8> = (0..=254).collect();
    let split = Split::clean((5, 17), bytes.clone(), vec![0]).unwrap();
    for (i, ours) in batch(&split, &[0], Augment::NONE, 0).iter().enumerate() {
        let expected = (f64::from(bytes[i]) / 255.0 - mean[i % 3]) / std[i % 3];
        assert!((f64::from(*ours) - expected).abs() < 1e-6, "{ours} instead of {expected}");
    }
    let mut plainly = vec![f32::NAN; 255];
    plain(&split, &[0], &Normalise::none(), &mut plainly).unwrap();
    assert_eq!(plainly[..2], [0.0, 1.0 / 255.0]);
}

/// All possible views are drawn, each equally often: `n` of them, 200 times each on average.
fn check_uniform(augment: Augment, size: (usize, usize), n: usize, what: impl Fn(View) -> String) {
    let mut counts = std::collections::BTreeMap::new();
    for i in 0..200 * n {
        *counts.entry(what(augment.view(size, stream().at(i as u64)))).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), n, "{augment:?}: {counts:?}");
    // The spread is 14; five of them.
    assert!(counts.values().all(|&count| (130..270).contains(&count)), "{augment:?}: {counts:?}");
}

#[test]
fn every_view_is_drawn_equally_often() {
    let offsets = |view: View| format!("{} {} {}", view.down, view.right, view.mirrored);
    let holes = |view: View| format!("{:?}", view.hole);
    check_uniform(Augment { crop: 1, ..Augment::NONE }, (8, 8), 9, offsets);
    check_uniform(Augment { crop: 1, flip: true, ..Augment::NONE }, (8, 8), 18, offsets);
    check_uniform(Augment { crop: 4, flip: true, ..ALL }, (32, 32), 162, offsets);
    check_uniform(Augment { cutout: 1, ..Augment::NONE }, (4, 6), 24, holes);
    check_uniform(Augment { cutout: 2, ..Augment::NONE }, (4, 6), 24, holes);
    check_uniform(Augment { cutout: 3, ..ALL }, (5, 4), 20, holes);
}

/// Of `length` places of the centre in one direction, how often which stretch is cut.
fn check_stretches(cutout: usize, length: usize, expected: &[(usize, usize)]) {
    let augment = Augment { cutout, ..Augment::NONE };
    let mut found: Vec<(usize, usize)> = (0..100 * length as u64)
        .map(|i| augment.view((length, 1), stream().at(i)).hole.0)
        .map(|stretch| (stretch.start, stretch.end))
        .collect();
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, expected, "{cutout} of {length}");
}

#[test]
fn holes_are_clipped_at_the_borders() {
    check_stretches(1, 3, &[(0, 1), (1, 2), (2, 3)]);
    check_stretches(2, 4, &[(0, 1), (0, 2), (1, 3), (2, 4)]);
    check_stretches(3, 4, &[(0, 2), (0, 3), (1, 4), (2, 4)]);
    check_stretches(4, 6, &[(0, 2), (0, 3), (0, 4), (1, 5), (2, 6), (3, 6)]);
    check_stretches(9, 3, &[(0, 3)]);
}

#[test]
fn what_is_off_draws_nothing() {
    let view = |augment: Augment| augment.view((32, 32), stream().at(5));
    assert_eq!(view(Augment::NONE), View::WHOLE);
    let with_hole = view(Augment { cutout: 8, ..ALL });
    assert_eq!(View { hole: (0..0, 0..0), ..with_hole }, view(Augment { cutout: 0, ..ALL }));
    let split = split(9, (6, 5));
    assert_eq!(batch(&split, &[3, 8], Augment::NONE, 1), batch(&split, &[3, 8], Augment::NONE, 2));
}

/// A change here changes every recorded training.
#[test]
fn draws_come_in_their_order() {
    for i in 0..50 {
        let mut draws = stream().at(i);
        let (down, right) = (draws.below(9) as isize - 4, draws.below(9) as isize - 4);
        let mirrored = draws.chance(0.5);
        let (y, x) = (draws.below(20) as usize, draws.below(30) as usize);
        let hole = (y.saturating_sub(3)..(y + 3).min(20), x.saturating_sub(3)..(x + 3).min(30));
        let augment = Augment { crop: 4, flip: true, cutout: 6 };
        assert_eq!(augment.view((20, 30), stream().at(i)), View { down, right, mirrored, hole });
    }
}

#[test]
fn a_sample_does_not_depend_on_its_batch() {
    let split = split(40, (6, 6));
    let rows: Vec<usize> = (0..40).collect();
    let all = batch(&split, &rows, ALL, 3);
    assert_eq!(batch(&split, &[17], ALL, 3), all[17 * split.image_bytes()..][..split.image_bytes()]);
    assert_ne!(batch(&split, &rows, ALL, 4), all);
    assert!(plain(&split, &[40], &Normalise::none(), &mut [0.0; 108]).is_err());
    assert!(plain(&split, &[1], &Normalise::none(), &mut [0.0; 107]).is_err());
}

#[test]
fn images_made_for_a_batch_draw_what_their_rows_would() {
    let split = split(40, (6, 6));
    let rows = [17, 3, 39, 3];
    let normalise = Normalise::none();
    for augment in [ALL, Augment::NONE] {
        let (mut anew, mut plainly) = (vec![f32::NAN; 4 * 108], vec![f32::NAN; 4 * 108]);
        augmented_anew(&split.select(&rows), (&rows, 40), &normalise, (augment, &stream(), 5), &mut anew).unwrap();
        augmented(&split, &rows, &normalise, (augment, &stream(), 5), &mut plainly).unwrap();
        assert_eq!(anew, plainly);
    }
    let none = (Augment::NONE, &stream(), 0);
    assert!(augmented_anew(&split, (&rows, 40), &normalise, none, &mut [0.0; 4 * 108]).is_err());
}

#[test]
fn one_thread_and_two_give_the_same_bytes() {
    let split = split(70, (9, 11));
    let rows: Vec<usize> = (0..70).map(|i| i * 27 % 70).collect();
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| batch(&split, &rows, ALL, 1))
    };
    assert_eq!(on(1), on(2));
}

#[test]
fn a_constant_channel_is_refused() {
    assert!(Normalise::new([0.5; 3], [0.2, 0.0, 0.2]).is_err());
}

#[test]
fn whole_floats_are_normalised_like_bytes() {
    let split = split(1, (5, 7));
    let normalise = Normalise::new([0.49, 0.48, 0.45], [0.25, 0.24, 0.26]).unwrap();
    let (mut bytes, mut floats) = (vec![0.0; 105], vec![0.0; 105]);
    plain(&split, &[0], &normalise, &mut bytes).unwrap();
    let pixels: Vec<f32> = split.image(0).iter().copied().map(f32::from).collect();
    normalise.floats(&pixels, &mut floats);
    assert_eq!(bytes, floats);
    assert!(normalise.scale().iter().zip([0.25, 0.24, 0.26]).all(|(s, std)| (s * 255.0 * std - 1.0).abs() < 1e-6));
}
