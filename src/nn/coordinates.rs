//! What is trained instead of a network's parameters: values from which the parameters follow.
//!
//! Masks on channels, singular values of layers, or the parameters themselves. A loss on a network becomes a loss on the
//! values by the chain rule; whoever trains, estimates or regularises needs only that.

/// Values from which a network's parameters follow.
pub trait Coordinates {
    /// The values.
    fn values(&self) -> &[f32];

    /// The same, to be changed; [`Coordinates::write`] is what makes a network follow.
    fn values_mut(&mut self) -> &mut [f32];

    /// Sets those of `params`, laid out as [`Network::params`](super::Network::params), that follow from the values.
    fn write(&self, params: &mut [f32]);

    /// Writes the gradient with respect to the values into `target`, from the gradient `grads` with respect to the
    /// parameters at the present values.
    fn pull_back(&self, grads: &[f32], target: &mut [f32]);
}

/// The parameters themselves.
#[derive(Clone, Debug)]
pub struct Plain {
    values: Vec<f32>,
}

impl Plain {
    /// At `params`.
    pub fn new(params: &[f32]) -> Plain {
        Plain { values: params.to_vec() }
    }
}

impl Coordinates for Plain {
    fn values(&self) -> &[f32] {
        &self.values
    }

    fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    fn write(&self, params: &mut [f32]) {
        params.copy_from_slice(&self.values);
    }

    fn pull_back(&self, grads: &[f32], target: &mut [f32]) {
        target.copy_from_slice(grads);
    }
}
