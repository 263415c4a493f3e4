//! The commands, one file each.

pub mod describe;
pub mod graph;
pub mod init;
pub mod list;
pub mod schema;
