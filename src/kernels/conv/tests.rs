//! Every instruction set against the f64 reference, over sizes, strides, windows and channels.

use super::*;
use crate::kernels::reference::{self, check, check_gradient, values, wide};

fn geometry(size: (usize, usize), channels: (usize, usize), kernel: usize, stride: usize) -> Geometry {
    Geometry {
        height: size.0,
        width: size.1,
        in_channels: channels.0,
        out_channels: channels.1,
        kernel,
        stride,
        padding: kernel / 2,
    }
}

/// Sums have at most 49 * 48 terms forwards and 4 * 80 pixels for the weights; f32 keeps 1e-5 of the largest value.
const TOLERANCE: f64 = 1e-5;

/// Those that can run a shape, whether or not they would be chosen.
fn algorithms(g: &Geometry) -> Vec<Algorithm> {
    let mut algorithms = vec![Algorithm::Direct];
    if winograd::covers(g) {
        algorithms.push(Algorithm::Winograd);
    }
    algorithms
}

fn check_all(g: Geometry) {
    const N: usize = 3;
    let n_out = N * g.out_pixels() * g.out_channels;
    let (x, w) = (values(1, N * g.in_pixels() * g.in_channels), values(2, g.n_weights()));
    let (bias, dy) = (values(3, g.out_channels), values(4, n_out));
    let before = values(5, x.len());
    let y_expected = reference::conv(&g, N, &wide(&x), &wide(&w), &wide(&bias));
    let (dx_expected, dw_expected) = reference::conv_gradients(&g, N, &wide(&x), &wide(&w), &wide(&dy));
    let dx_added: Vec<f64> = dx_expected.iter().zip(&before).map(|(d, &b)| d + f64::from(b)).collect();
    let algorithms = Isa::available().into_iter().flat_map(|isa| algorithms(&g).into_iter().map(move |a| (isa, a)));
    for (isa, algorithm) in algorithms {
        let what = |pass: &str| format!("{pass} {} {algorithm:?} {g:?}", isa.name());
        let plan = Plan::with_algorithm(isa, g, N, algorithm);
        let (mut forwards, mut backwards) = (Vec::new(), Vec::new());
        pack_forward(&plan, &w, Some(&bias), &mut forwards);
        pack_backward(&plan, &w, &mut backwards);
        let forwards = Filter { weights: &w, bias: Some(&bias), packed: &forwards };
        let backwards = Filter { weights: &w, bias: None, packed: &backwards };
        let mut y = vec![f32::NAN; n_out];
        forward(&plan, N, &x, &forwards, &mut y);
        check(&what("forward"), &y, &y_expected, TOLERANCE);
        let mut dx = vec![f32::NAN; x.len()];
        backward_input(&plan, N, &dy, &backwards, Write::Replace, &mut dx);
        check(&what("input gradient"), &dx, &dx_expected, TOLERANCE);
        let mut dx = before.clone();
        backward_input(&plan, N, &dy, &backwards, Write::Add, &mut dx);
        check(&what("added input gradient"), &dx, &dx_added, TOLERANCE);
        let mut dw = vec![f32::NAN; w.len()];
        backward_weights(&plan, N, &x, &dy, &mut dw);
        check(&what("weight gradient"), &dw, &dw_expected, TOLERANCE);
        // A smaller batch in the same plan leaves what lies behind it alone.
        let mut part = vec![7.0; n_out];
        forward(&plan, N - 1, &x, &forwards, &mut part);
        let end = n_out / N * (N - 1);
        assert_eq!(part[..end], y[..end], "{}", what("smaller batch"));
        assert!(part[end..].iter().all(|&v| v == 7.0), "{}", what("behind the smaller batch"));
        let (_, dw_part) =
            reference::conv_gradients(&g, N - 1, &wide(&x[..x.len() / N * (N - 1)]), &wide(&w), &wide(&dy[..end]));
        backward_weights(&plan, N - 1, &x, &dy, &mut dw);
        check(&what("weight gradient of a smaller batch"), &dw, &dw_part, TOLERANCE);
        let mut part = vec![7.0; x.len()];
        backward_input(&plan, N - 1, &dy, &backwards, Write::Replace, &mut part);
        let end = x.len() / N * (N - 1);
        check(&what("input gradient of a smaller batch"), &part[..end], &dx_expected[..end], TOLERANCE);
        assert!(part[end..].iter().all(|&v| v == 7.0), "{}", what("behind the smaller gradient"));
    }
}

#[test]
fn agrees_with_the_reference() {
    for size in [(8, 8), (7, 5)] {
        for channels in [(3, 16), (16, 16), (16, 32), (5, 3), (48, 5), (32, 48)] {
            for (kernel, stride) in [(1, 1), (1, 2), (3, 1), (3, 2)] {
                check_all(geometry(size, channels, kernel, stride));
            }
        }
    }
}

#[test]
fn large_windows_and_tiny_images() {
    check_all(geometry((9, 8), (3, 16), 7, 2));
    check_all(geometry((6, 7), (5, 32), 5, 1));
    check_all(geometry((1, 1), (16, 16), 3, 1));
    check_all(geometry((1, 2), (32, 64), 3, 2));
    check_all(geometry((2, 2), (32, 16), 3, 1));
    check_all(geometry((3, 3), (16, 48), 3, 1));
    check_all(geometry((5, 9), (64, 32), 3, 1));
    // Beyond what jobs share.
    check_all(geometry((4, 5), (128, 144), 3, 1));
    check_all(geometry((3, 2), (160, 128), 3, 1));
    check_all(Geometry { padding: 0, ..geometry((8, 9), (16, 16), 3, 1) });
    check_all(geometry((9, 9), (3, 5), 3, 3));
}

/// Enough pixels for the weight gradient to be summed in parts.
#[test]
fn small_gradients_of_many_pixels() {
    check_all(geometry((37, 41), (3, 16), 3, 1));
    check_all(geometry((37, 41), (5, 3), 1, 1));
    check_all(geometry((74, 81), (16, 32), 3, 2));
}

/// Winograd's transforms cost accuracy; this is what is left, as the module says.
#[test]
fn winograd_errs_by_less_than_1e_5_of_the_outputs_rms() {
    let g = geometry((12, 12), (64, 64), 3, 1);
    let (x, w) = (values(1, g.in_pixels() * 64), values(2, g.n_weights()));
    let expected = reference::conv(&g, 1, &wide(&x), &wide(&w), &[0.0; 64]);
    let rms = (expected.iter().map(|v| v * v).sum::<f64>() / expected.len() as f64).sqrt();
    for isa in Isa::available() {
        let plan = Plan::with_algorithm(isa, g, 1, Algorithm::Winograd);
        let mut packed = Vec::new();
        pack_forward(&plan, &w, None, &mut packed);
        let mut y = vec![f32::NAN; expected.len()];
        forward(&plan, 1, &x, &Filter { weights: &w, bias: None, packed: &packed }, &mut y);
        let largest = y.iter().zip(&expected).fold(0.0, |e: f64, (&y, &x)| e.max((f64::from(y) - x).abs()));
        assert!(largest < 1e-5 * rms, "{}: {:.1e} of the RMS", isa.name(), largest / rms);
    }
}

#[test]
fn reference_gradients_agree_with_central_differences() {
    const N: usize = 2;
    for (size, kernel, stride) in [((4, 4), 3, 1), ((5, 4), 3, 2), ((5, 3), 1, 2)] {
        let g = geometry(size, (3, 5), kernel, stride);
        let (x, w) = (wide(&values(1, N * g.in_pixels() * 3)), wide(&values(2, g.n_weights())));
        let (bias, dy) = (vec![0.0; 5], wide(&values(4, N * g.out_pixels() * 5)));
        let (dx, dw) = reference::conv_gradients(&g, N, &x, &w, &dy);
        check_gradient("input", &x, &dy, &dx, |x| reference::conv(&g, N, x, &w, &bias));
        check_gradient("weights", &w, &dy, &dw, |w| reference::conv(&g, N, &x, w, &bias));
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    const N: usize = 5;
    for g in [
        geometry((9, 8), (16, 32), 3, 2),
        geometry((8, 8), (3, 16), 3, 1),
        geometry((8, 7), (48, 48), 3, 1),
        geometry((30, 31), (16, 16), 3, 1),
        geometry((4, 4), (128, 144), 3, 1),
    ] {
        for (isa, algorithm) in
            Isa::available().into_iter().flat_map(|isa| algorithms(&g).into_iter().map(move |a| (isa, a)))
        {
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let (x, w) = (values(1, N * g.in_pixels() * g.in_channels), values(2, g.n_weights()));
                    let dy = values(4, N * g.out_pixels() * g.out_channels);
                    let plan = Plan::with_algorithm(isa, g, N, algorithm);
                    let (mut forwards, mut backwards) = (Vec::new(), Vec::new());
                    pack_forward(&plan, &w, None, &mut forwards);
                    pack_backward(&plan, &w, &mut backwards);
                    let forwards = Filter { weights: &w, bias: None, packed: &forwards };
                    let backwards = Filter { weights: &w, bias: None, packed: &backwards };
                    let (mut y, mut dx, mut dw) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; w.len()]);
                    forward(&plan, N, &x, &forwards, &mut y);
                    backward_input(&plan, N, &dy, &backwards, Write::Replace, &mut dx);
                    backward_weights(&plan, N, &x, &dy, &mut dw);
                    (y, dx, dw)
                })
            };
            let expected = run(1);
            for threads in [2, 3] {
                assert!(run(threads) == expected, "{} {threads} threads {g:?}", isa.name());
            }
        }
    }
}
