//! Measurements.

pub mod backdoor;
pub mod embedding;
pub mod information;
