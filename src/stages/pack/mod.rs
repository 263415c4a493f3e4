//! Packed formats.

pub mod beton;
