//! Asks other resolvers: a pool of servers with health, order, retry, and one query per question in flight.

mod options;

pub use options::{Options, Server, Zone};
