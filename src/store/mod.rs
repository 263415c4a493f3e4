//! The content-addressed store.

pub mod checkpoint;
pub mod digest;
