//! Defences that repair a model.
//!
//! All take a model and the same kind of clean split. What is trained differs: weights ([`fine_tune`], [`fip`]), or
//! singular values ([`fast_fip`]). What they share is [`repair`]; the work that each took stands in its model.

pub mod fast_fip;
pub mod fine_tune;
pub mod fip;
pub mod repair;
