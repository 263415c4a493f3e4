//! Datasets: from the binary, from files, from the Hub.
