//! The stages, one file each, a folder per family. The name in the TOML is the path in the source.

pub mod data;
pub mod evaluate;
pub mod pack;
pub mod plot;
pub mod poison;
pub mod purify;
pub mod test;
pub mod train;

use crate::stage::Entry;

/// Every stage, one line each, in alphabetical order.
pub const STAGES: &[Entry] = &[
    Entry::of::<plot::curves::Curves>(),
    Entry::of::<plot::information_plane::InformationPlane>(),
    Entry::of::<plot::samples::Samples>(),
    Entry::of::<test::echo::Echo>(),
];

/// The entry called `name`.
pub fn find(name: &str) -> Option<&'static Entry> {
    STAGES.iter().find(|entry| entry.name == name)
}
