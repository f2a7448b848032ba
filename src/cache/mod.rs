//! Answers kept in wire form, bounded in bytes.

mod options;

pub use options::Options;
