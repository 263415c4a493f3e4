//! Datasets: from the binary, from files, from the Hub.
//!
//! A reader turns what lies on the disk (or in the binary) into [`images::Images`]; the stage cuts, describes and
//! hands over. A new dataset is a stage file, its readers beside it, and one registry line.

pub mod cifar;
pub mod cifar10;
pub mod cifar100;
pub mod clean_split;
pub mod fashion_mnist;
pub mod files;
pub mod folder;
pub mod gtsrb;
#[cfg(feature = "hub")]
pub mod hub;
pub mod idx;
pub mod images;
pub mod mat;
pub mod mnist;
#[cfg(feature = "hub")]
pub mod parquet;
pub mod published;
pub mod svhn;
pub mod tiny_imagenet;
