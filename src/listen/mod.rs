//! The doors: datagrams, TCP. Each ends in the same gateway call.

mod options;

pub use options::{Admin, Options};
