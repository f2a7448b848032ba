//! The policy in other systems' words, with what those words cannot say. Pure: what is learned and the time are
//! arguments, and what comes out is text.

mod networks;
mod rendered;
pub mod squid;

pub use rendered::Fragment;
