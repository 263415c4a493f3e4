//! The kernels by themselves, for ThreadSanitizer; see `run`.

pub mod kernels;
pub mod rng;

#[cfg(test)]
mod tests {
    use rayon::prelude::*;
    use std::sync::Barrier;

    struct Shared(*mut f32);
    // SAFETY: not at all: two threads write to one place, which is the point.
    unsafe impl Send for Shared {}
    unsafe impl Sync for Shared {}

    /// What a kernel would do if its tasks shared a row. Ignored, because it must fail under the sanitizer.
    #[test]
    #[ignore = "a race on purpose"]
    fn a_race_on_purpose() {
        let mut value = 0.0f32;
        let (shared, together) = (Shared(&mut value), Barrier::new(2));
        (0..2).into_par_iter().with_max_len(1).for_each(|task| {
            let shared = &shared;
            together.wait();
            unsafe { *shared.0 += task as f32 };
        });
        assert!(value <= 1.0);
    }
}
