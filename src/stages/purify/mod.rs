//! Defences that repair a model.
//!
//! All take a model and the same kind of clean split, and none sees test data or roles (invariant 9). They differ in what
//! they change: weights ([`fine_tune`], [`ft_sam`], [`nad`], [`fip`], [`i_bau`]), singular values ([`fast_fip`]), masks
//! on weights or neurons ([`awm`], [`nft`]), or which neurons there are ([`fine_pruning`], [`anp`], [`rnp`], [`clp`]);
//! [`neural_cleanse`] first looks for the trigger. What they share is [`repair`].
//!
//! The work of each stands in its model, as images in forward and backward passes, and from there in the table of
//! scores. Seconds and peak memory differ from run to run; they stand in the record.

pub mod anp;
pub mod awm;
pub mod clp;
pub mod fast_fip;
pub mod fine_pruning;
pub mod fine_tune;
pub mod fip;
pub mod ft_sam;
pub mod i_bau;
pub mod nad;
pub mod neural_cleanse;
pub mod nft;
pub mod repair;
pub mod rnp;
