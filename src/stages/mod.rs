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
    Entry::of::<data::cifar10::Cifar10>(),
    Entry::of::<data::cifar100::Cifar100>(),
    Entry::of::<data::clean_split::Split>(),
    Entry::of::<data::fashion_mnist::FashionMnist>(),
    Entry::of::<data::folder::Folder>(),
    Entry::of::<data::gtsrb::Gtsrb>(),
    Entry::of::<data::mnist::Mnist>(),
    Entry::of::<data::svhn::Svhn>(),
    Entry::of::<data::tiny_imagenet::TinyImagenet>(),
    Entry::of::<evaluate::activation_clustering::ActivationClustering>(),
    Entry::of::<evaluate::backdoor::Backdoor>(),
    Entry::of::<evaluate::dynamics::Dynamics>(),
    Entry::of::<evaluate::embedding::Embedding>(),
    Entry::of::<evaluate::estimator_selection::EstimatorSelection>(),
    Entry::of::<evaluate::hessian::Hessian>(),
    Entry::of::<evaluate::information::Information>(),
    Entry::of::<evaluate::information_bounds::InformationBounds>(),
    Entry::of::<evaluate::loss_landscape::LossLandscape>(),
    Entry::of::<evaluate::over_seeds::OverSeeds>(),
    Entry::of::<evaluate::spectral_signatures::SpectralSignatures>(),
    Entry::of::<evaluate::strip::Strip>(),
    Entry::of::<pack::beton::Beton>(),
    Entry::of::<pack::cleanse::Cleanse>(),
    Entry::of::<plot::curves::Curves>(),
    Entry::of::<plot::defence_arrows::DefenceArrows>(),
    Entry::of::<plot::defence_map::DefenceMap>(),
    Entry::of::<plot::embedding::Embedding>(),
    Entry::of::<plot::information_plane::InformationPlane>(),
    Entry::of::<plot::landscape::Landscape>(),
    Entry::of::<plot::overview::Overview>(),
    Entry::of::<plot::samples::Samples>(),
    Entry::of::<plot::spectrum::Spectrum>(),
    Entry::of::<poison::adaptive_blend::AdaptiveBlend>(),
    Entry::of::<poison::badnet::BadNet>(),
    Entry::of::<poison::blend::Blend>(),
    Entry::of::<poison::bpp::Bpp>(),
    Entry::of::<poison::label_consistent::LabelConsistent>(),
    Entry::of::<poison::low_frequency::LowFrequency>(),
    Entry::of::<poison::replace::Replace>(),
    Entry::of::<poison::sig::Sig>(),
    Entry::of::<poison::trojan::Trojan>(),
    Entry::of::<poison::wanet::WaNet>(),
    Entry::of::<purify::anp::Anp>(),
    Entry::of::<purify::awm::Awm>(),
    Entry::of::<purify::clp::Clp>(),
    Entry::of::<purify::fast_fip::FastFip>(),
    Entry::of::<purify::fine_pruning::FinePruning>(),
    Entry::of::<purify::fine_tune::FineTune>(),
    Entry::of::<purify::fip::Fip>(),
    Entry::of::<purify::ft_sam::FtSam>(),
    Entry::of::<purify::i_bau::IBau>(),
    Entry::of::<purify::nad::Nad>(),
    Entry::of::<purify::neural_cleanse::NeuralCleanse>(),
    Entry::of::<purify::nft::Nft>(),
    Entry::of::<purify::rnp::Rnp>(),
    Entry::of::<test::echo::Echo>(),
    Entry::of::<test::sink::Sink>(),
    Entry::of::<train::abl::Abl>(),
    Entry::of::<train::classifier::Classifier>(),
];

/// The entry called `name`.
pub fn find(name: &str) -> Option<&'static Entry> {
    STAGES.iter().find(|entry| entry.name == name)
}
