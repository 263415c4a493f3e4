//! argv -> command -> exit code.

use std::io::Write;

/// Planning a thousand stages is a hundred thousand small allocations, and training reuses large ones: both are faster
/// here than in the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let code = runner::cli::main();
    let _ = std::io::stdout().flush();
    // Nothing is left to do; the allocator would give its pages back one by one, the system takes them at once.
    signal_hook::low_level::exit(code.into())
}
