//! Measurements.

pub mod backdoor;
