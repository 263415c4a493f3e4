//! Measurements.

pub mod activation_clustering;
pub mod backdoor;
pub mod detection;
pub mod dynamics;
pub mod embedding;
pub mod estimator_selection;
pub mod hessian;
pub mod information;
pub mod information_bounds;
pub mod loss_landscape;
pub mod over_seeds;
pub mod spectral_signatures;
pub mod strip;
pub mod subset;
