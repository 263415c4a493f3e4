//! The integration tests: one binary, a module a subject.

mod harness;

mod bad_pipelines;
mod commands;
mod conformance;
mod faults;
#[cfg(feature = "hub")]
mod hub;
mod nn;
mod pipelines;
mod runs;
mod store_faults;
mod train;
