//! Links the program at a fixed address.
//!
//! A position-independent program of this size starts with some hundred thousand relocations, which cost half of a run
//! that computes nothing, and the same again in every worker.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    if is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
}
