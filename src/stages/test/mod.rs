//! Stages for tests and benches of the runner itself; `runner list` hides them.

pub mod echo;
pub mod sink;
