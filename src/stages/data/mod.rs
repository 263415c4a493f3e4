//! Datasets: from the binary, from files, from the Hub.

pub mod clean_split;
