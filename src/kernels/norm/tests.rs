//! Batch normalisation against the f64 reference: both kinds of statistics, with and without residual and ReLU.

use super::*;
use crate::kernels::reference::{Norm, check, check_gradient, values, wide};

/// Relative to the largest value; sums of up to 1,500 rows in f32 chunks.
const TOLERANCE: f64 = 1e-5;

struct Case {
    rows: usize,
    n_channels: usize,
    has_residual: bool,
    activation: Activation,
    dependence: Dependence,
}

struct Inputs {
    x: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    residual: Vec<f32>,
    dy: Vec<f32>,
    mean: Vec<f32>,
    variance: Vec<f32>,
}

impl Case {
    fn inputs(&self) -> Inputs {
        let (n, c) = (self.rows * self.n_channels, self.n_channels);
        let plus = |offset: f32, values: Vec<f32>| values.into_iter().map(|v| v + offset).collect();
        Inputs {
            // A mean far from zero: the shifted sums must not cancel.
            x: plus(5.0, values(1, n)),
            gamma: plus(1.5, values(2, c)),
            beta: values(3, c),
            residual: if self.has_residual { values(4, n) } else { vec![0.0; n] },
            dy: values(5, n),
            mean: plus(5.0, values(6, c)),
            variance: plus(1.5, values(7, c)),
        }
    }

    fn reference(&self, inputs: &Inputs) -> Norm {
        let frozen = (self.dependence == Dependence::Frozen).then(|| (wide(&inputs.mean), wide(&inputs.variance)));
        Norm { n_channels: self.n_channels, frozen, relu: self.activation == Activation::Relu }
    }

    /// Output, running mean and variance, then gradients on input, residual, scale and shift; `before` is added to.
    fn run(&self, isa: Isa, inputs: &Inputs, before: Option<&[f32]>) -> [Vec<f32>; 7] {
        let n = inputs.x.len();
        let (mut mean, mut variance) = (inputs.mean.clone(), inputs.variance.clone());
        let (mut saved, mut scratch) = (Saved::new(self.n_channels), Scratch::default());
        let mut y = vec![f32::NAN; n];
        let layer = Forward {
            x: &inputs.x,
            residual: self.has_residual.then_some(&inputs.residual),
            gamma: &inputs.gamma,
            beta: &inputs.beta,
            activation: self.activation,
        };
        let statistics = match self.dependence {
            Dependence::Batch => Statistics::Batch { mean: &mut mean, variance: &mut variance },
            Dependence::Frozen => Statistics::Running { mean: &inputs.mean, variance: &inputs.variance },
        };
        forward(isa, &layer, statistics, &mut saved, &mut scratch, &mut y);
        let write = if before.is_some() { Write::Add } else { Write::Replace };
        let mut dx = before.map_or(vec![f32::NAN; n], <[f32]>::to_vec);
        let mut residual = dx.clone();
        let (mut gamma, mut beta) = (vec![f32::NAN; self.n_channels], vec![f32::NAN; self.n_channels]);
        let layer = Backward {
            x: &inputs.x,
            relu_output: (self.activation == Activation::Relu).then_some(&y),
            dy: &inputs.dy,
            gamma: &inputs.gamma,
            dependence: self.dependence,
        };
        let gradients = Gradients {
            dx: &mut dx,
            dx_write: write,
            residual: self.has_residual.then_some((&mut residual[..], write)),
            gamma: &mut gamma,
            beta: &mut beta,
        };
        backward(isa, &layer, &saved, &mut scratch, gradients);
        [y, mean, variance, dx, residual, gamma, beta]
    }

    fn check(&self) {
        let inputs = self.inputs();
        let norm = self.reference(&inputs);
        let x = wide(&inputs.x);
        let y = norm.forward(&x, &wide(&inputs.gamma), &wide(&inputs.beta), &wide(&inputs.residual));
        let [dx, d_gamma, d_beta, d_residual] = norm.backward(&x, &y, &wide(&inputs.gamma), &wide(&inputs.dy));
        let before = values(8, x.len());
        let plus_before = |d: &[f64]| d.iter().zip(&before).map(|(d, &b)| d + f64::from(b)).collect::<Vec<f64>>();
        for isa in Isa::available() {
            let name = |what: &str| format!("{what}: {} {} x {}", isa.name(), self.rows, self.n_channels);
            let got = self.run(isa, &inputs, None);
            check(&name("output"), &got[0], &y, TOLERANCE);
            check(&name("input gradient"), &got[3], &dx, TOLERANCE);
            check(&name("scale gradient"), &got[5], &d_gamma, TOLERANCE);
            check(&name("shift gradient"), &got[6], &d_beta, TOLERANCE);
            let added = self.run(isa, &inputs, Some(&before));
            check(&name("added input gradient"), &added[3], &plus_before(&dx), TOLERANCE);
            if self.has_residual {
                check(&name("residual gradient"), &got[4], &d_residual, TOLERANCE);
                check(&name("added residual gradient"), &added[4], &plus_before(&d_residual), TOLERANCE);
            }
            if self.dependence == Dependence::Batch {
                let (mean, variance) = norm.moments(&x);
                let unbiased = self.rows as f64 / (self.rows as f64 - 1.0);
                let moved = |old: &[f32], new: &[f64], factor: f64| {
                    old.iter().zip(new).map(|(&o, n)| 0.9 * f64::from(o) + 0.1 * factor * n).collect::<Vec<f64>>()
                };
                check(&name("running mean"), &got[1], &moved(&inputs.mean, &mean, 1.0), 1e-6);
                check(&name("running variance"), &got[2], &moved(&inputs.variance, &variance, unbiased), 1e-5);
            }
        }
    }
}

fn cases(rows: usize, n_channels: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for has_residual in [false, true] {
        for activation in [Activation::None, Activation::Relu] {
            for dependence in [Dependence::Batch, Dependence::Frozen] {
                cases.push(Case { rows, n_channels, has_residual, activation, dependence });
            }
        }
    }
    cases
}

#[test]
fn agrees_with_the_reference() {
    for (rows, n_channels) in [(6, 3), (7, 5), (1500, 16), (99, 32), (700, 48), (33, 129)] {
        cases(rows, n_channels).iter().for_each(Case::check);
    }
}

#[test]
fn reference_gradients_agree_with_central_differences() {
    for case in cases(7, 5) {
        let inputs = case.inputs();
        let norm = case.reference(&inputs);
        let (x, gamma, beta) = (wide(&inputs.x), wide(&inputs.gamma), wide(&inputs.beta));
        let (residual, dy) = (wide(&inputs.residual), wide(&inputs.dy));
        let y = norm.forward(&x, &gamma, &beta, &residual);
        let [dx, d_gamma, d_beta, d_residual] = norm.backward(&x, &y, &gamma, &dy);
        check_gradient("input", &x, &dy, &dx, |x| norm.forward(x, &gamma, &beta, &residual));
        check_gradient("scale", &gamma, &dy, &d_gamma, |gamma| norm.forward(&x, gamma, &beta, &residual));
        check_gradient("shift", &beta, &dy, &d_beta, |beta| norm.forward(&x, &gamma, beta, &residual));
        check_gradient("residual", &residual, &dy, &d_residual, |residual| norm.forward(&x, &gamma, &beta, residual));
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for case in cases(5_000, 16) {
        let inputs = case.inputs();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| case.run(Isa::best(), &inputs, Some(&inputs.dy)))
        };
        assert!(run(1) == run(2) && run(1) == run(3));
    }
}

#[test]
fn bias_gradient_sums_over_rows() {
    let dy = values(1, 3_001 * 21);
    let mut expected = vec![0.0; 21];
    for (i, &d) in dy.iter().enumerate() {
        expected[i % 21] += f64::from(d);
    }
    for isa in Isa::available() {
        let mut bias = vec![f32::NAN; 21];
        bias_gradient(isa, &dy, &mut Scratch::default(), &mut bias);
        check(isa.name(), &bias, &expected, TOLERANCE);
    }
}
