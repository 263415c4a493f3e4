//! Figures.

pub mod curves;
pub mod information_plane;
pub mod samples;
