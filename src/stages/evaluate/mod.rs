//! Measurements.

pub mod backdoor;
pub mod information;
