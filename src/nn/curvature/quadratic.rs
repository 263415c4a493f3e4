//! A matrix whose spectrum is known, for tests.

use crate::error::Result;
use crate::kernels::reference::values;

/// `V diag(eigenvalues) V'` with V = (1 - 2 a a')(1 - 2 b b') for unit vectors a and b: no eigenvector has a coordinate
/// to itself.
pub(super) struct Quadratic {
    pub(super) eigenvalues: Vec<f64>,
    mirrors: [Vec<f64>; 2],
    /// Products taken.
    pub(super) n_products: usize,
}

impl Quadratic {
    pub(super) fn new(eigenvalues: Vec<f64>) -> Quadratic {
        let mirror = |seed| {
            let of: Vec<f64> = values(seed, eigenvalues.len()).iter().map(|&v| f64::from(v)).collect();
            let length = of.iter().map(|v| v * v).sum::<f64>().sqrt();
            of.iter().map(|v| v / length).collect()
        };
        Quadratic { mirrors: [mirror(1), mirror(2)], eigenvalues, n_products: 0 }
    }

    fn reflect(&self, i: usize, x: &mut [f64]) {
        let along: f64 = self.mirrors[i].iter().zip(&*x).map(|(m, x)| m * x).sum();
        x.iter_mut().zip(&self.mirrors[i]).for_each(|(x, m)| *x -= 2.0 * along * m);
    }

    pub(super) fn multiply(&mut self, vector: &[f32], product: &mut [f32]) -> Result<()> {
        self.n_products += 1;
        let mut x: Vec<f64> = vector.iter().map(|&v| f64::from(v)).collect();
        self.reflect(0, &mut x);
        self.reflect(1, &mut x);
        x.iter_mut().zip(&self.eigenvalues).for_each(|(x, value)| *x *= value);
        self.reflect(1, &mut x);
        self.reflect(0, &mut x);
        product.iter_mut().zip(&x).for_each(|(target, &x)| *target = x as f32);
        Ok(())
    }

    /// Eigenvector i.
    pub(super) fn vector(&self, i: usize) -> Vec<f64> {
        let mut x = vec![0.0; self.eigenvalues.len()];
        x[i] = 1.0;
        self.reflect(1, &mut x);
        self.reflect(0, &mut x);
        x
    }
}

/// As spectra of networks are: a few large values, a bulk about zero, a few below.
pub(super) fn like_a_network(n: usize) -> Vec<f64> {
    let mut eigenvalues: Vec<f64> = (0..n).map(|i| 0.3 * libm::sin(i as f64 * 1.7)).collect();
    eigenvalues[..5].copy_from_slice(&[100.0, 40.0, 20.0, 19.0, -8.0]);
    eigenvalues
}
