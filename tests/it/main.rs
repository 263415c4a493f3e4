//! The integration tests: one binary, a module a subject.

mod harness;

mod bad_pipelines;
mod commands;
mod conformance;
mod faults;
mod hub;
mod pipelines;
mod runs;
mod store_faults;
