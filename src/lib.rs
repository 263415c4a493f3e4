//! `runner`: declarative, cached, reproducible pipelines for backdoor-learning research.

pub mod artifact;
pub mod config;
pub mod error;
pub mod events;
pub mod figure;
pub mod param;
pub mod plan;
pub mod report;
pub mod rng;
pub mod stage;
pub mod stages;
pub mod store;
