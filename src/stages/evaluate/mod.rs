//! Measurements.

pub mod information;
