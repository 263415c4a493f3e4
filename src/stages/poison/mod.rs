//! Attacks on a training set.

pub mod badnet;
pub mod blend;
pub mod overlay;
pub mod selection;
