//! The integration tests: one binary, a module a subject.

// A test that cannot go on says so by panicking.
#![allow(clippy::unwrap_used)]

mod harness;

mod bad_pipelines;
mod commands;
mod compare;
mod conformance;
mod doctor;
mod faults;
mod gradients;
#[cfg(feature = "hub")]
mod hub;
mod nn;
mod pipelines;
mod runs;
mod store_faults;
mod tracking;
mod train;
