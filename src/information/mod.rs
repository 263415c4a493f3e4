//! Neural estimators of mutual information: critics, bounds on held-out pairs, intervals, subsets of samples.
//!
//! An estimate is made in four steps, one file each: [`subset`] picks the samples; [`pairs`] hands out batches of
//! both variables; [`fit`] trains one [`critic`] and reads an [`estimator`] on pairs that the critic has not seen;
//! [`interval`] joins the fits of several critic seeds into an estimate with an interval. What needs no estimate is
//! computed: [`discrete`] has the closed forms of columns, [`gaussian`] distributions whose information is known.
//!
//! # All critics of an epoch
//!
//! The critics of an epoch (subset x layer x quantity x seed) are one stack, [`fit::stack`]: a leading dimension of
//! independent products that are computed side by side, each on one thread. On a CPU this order, critic by critic and
//! not step by step over all critics, keeps a critic's weights and moments in the cache, and makes the result the same
//! bytes for any number of threads.
//!
//! # Adding an estimator
//!
//! One file and a line in [`estimator::ESTIMATORS`]; critics know no estimator.

pub mod critic;
pub mod discrete;
pub mod estimator;
pub mod fit;
pub mod gaussian;
pub mod infonce;
pub mod interval;
pub mod mine;
pub mod nwj;
pub mod optimizer;
pub mod pairs;
pub mod smile;
pub mod subset;
