//! Packed formats.

pub mod beton;
pub mod cleanse;
