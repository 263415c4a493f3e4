//! Output: tables, terminal, JSON, logs. Nothing else prints (invariant 12).

pub mod table;
