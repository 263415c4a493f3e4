//! Defences that repair a model.

pub mod fine_tune;
