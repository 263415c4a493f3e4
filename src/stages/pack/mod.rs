//! Packed formats.
