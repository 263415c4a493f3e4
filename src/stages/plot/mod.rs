//! Figures.

pub mod curves;
pub mod defence_arrows;
pub mod defence_map;
pub mod embedding;
pub mod information_plane;
pub mod landscape;
mod models;
pub mod overview;
pub mod samples;
pub mod spectrum;
