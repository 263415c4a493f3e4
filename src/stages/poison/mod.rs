//! Attacks on a training set.

pub mod adaptive_blend;
pub mod badnet;
pub mod blend;
pub mod bpp;
pub mod dynamic;
pub mod label_consistent;
pub mod low_frequency;
pub mod lowpass;
pub mod npy;
pub mod offsets;
pub mod overlay;
mod params;
pub mod pattern;
pub mod replace;
pub mod selection;
pub mod sig;
pub mod surrogate;
pub mod trojan;
pub mod wanet;
pub mod warp;
