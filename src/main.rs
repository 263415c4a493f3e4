//! argv -> command -> exit code.

use std::process::ExitCode;

/// Planning a thousand stages is a hundred thousand small allocations, and training reuses large ones: both are faster
/// here than in the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ExitCode::from(runner::cli::main())
}
