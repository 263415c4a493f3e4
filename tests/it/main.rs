//! The integration tests: one binary, a module a subject.

#[cfg(feature = "hub")]
mod hub;
