//! Neural estimators of mutual information: critics, bounds on held-out pairs, intervals, subsets of samples.
//!
//! An estimate is made in four steps, one file each: [`subset`] picks the samples; [`pairs`] hands out batches of
//! both variables; [`fit`] trains one [`critic`] and reads the bound ([`infonce`]) on pairs that the critic has not
//! seen; [`interval`] joins the fits of several critic seeds into an estimate with an interval.
//!
//! # All critics of an epoch
//!
//! The critics of an epoch (subset x layer x quantity x seed) are one stack, [`fit::stack`]: a leading dimension of
//! independent products that are computed side by side, each on one thread. On a CPU this order, critic by critic and
//! not step by step over all critics, keeps a critic's weights and moments in the cache, and makes the result the same
//! bytes for any number of threads.
//!
//! # Adding a bound
//!
//! A bound (NWJ, MINE, SMILE) is a file beside [`infonce`]: a function from the scores of a batch, [B, B], joint pairs
//! on the diagonal, to its value and its gradient by score. Critics know no bound: [`critic::Critic::gradient`] asks a
//! rule for the gradient of one row of scores at a time, and a bound that needs the whole matrix first calls
//! [`critic::Critic::scores`].

pub mod critic;
pub mod fit;
pub mod infonce;
pub mod interval;
pub mod optimizer;
pub mod pairs;
pub mod subset;
