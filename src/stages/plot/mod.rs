//! Figures.

pub mod curves;
pub mod embedding;
pub mod information_plane;
pub mod overview;
pub mod samples;
