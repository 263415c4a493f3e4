//! Training.

pub mod abl;
pub mod classifier;
pub mod fit;
pub mod history;
pub mod recipe;
pub mod sharpness;
pub mod state;
