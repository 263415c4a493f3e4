//! Attacks on a training set.

pub mod adaptive_blend;
pub mod badnet;
pub mod blend;
pub mod label_consistent;
pub mod overlay;
mod params;
pub mod pattern;
pub mod selection;
pub mod wanet;
pub mod warp;
