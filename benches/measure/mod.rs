//! What the benches share: cases that run in processes of their own, rounds that alternate between two sides, the
//! machine's roof, and the lines that are printed.

// Every bench uses its part.
#![allow(dead_code)]

pub mod contest;
pub mod peak;
pub mod process;
pub mod side;

use runner::error::Error;
use std::process::ExitCode;

/// The exit code of a bench, after telling what went wrong.
pub fn conclude(result: runner::error::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(hint) = error.hint_text() {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(error.class().exit_code())
        }
    }
}

/// The middle one; the mean of both for an even number.
///
/// # Errors
/// There is none.
pub fn median(mut values: Vec<f64>) -> runner::error::Result<f64> {
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => Err(Error::machine("no round was measured")),
        (n, half) if n % 2 == 1 => Ok(values[half]),
        (_, half) => Ok((values[half - 1] + values[half]) / 2.0),
    }
}
