//! Runs a plan: keys, look-ups, a ready queue with slots, and worker processes: one for a stage, or for light
//! stages in turn.
//!
//! ```text
//! Waiting --inputs known, key stored--> Cached
//! Waiting --inputs known, key missing--> Running --> Stored | Failed
//! Waiting --something above failed-----> Skipped
//! ```
//!
//! The scheduler computes nothing and reads no artifact. What happens it tells to an [`Observer`]; it never prints.

pub mod device;
pub mod job;
pub mod memory;
mod process;
pub mod resolve;
mod scheduler;
pub mod worker;

pub use scheduler::{Observer, Outcome, RunEvent, Summary, check, run};

/// How a run may use the machine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Stages that may run side by side.
    pub jobs: usize,
    /// Threads that running stages share; several at once may be given up to twice as many.
    pub threads: usize,
    /// Where stages compute.
    pub device: device::Choice,
    /// Stages to compute even if their results are stored: names in the pipeline.
    pub force: Vec<String>,
    /// Stages to bring up to date with what they need; all if empty.
    pub targets: Vec<String>,
}

impl Options {
    /// As many jobs and threads as the machine has cores, on whatever device it has.
    pub fn for_this_machine() -> Options {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Options { jobs: cores, threads: cores, device: device::Choice::Auto, force: Vec::new(), targets: Vec::new() }
    }
}
