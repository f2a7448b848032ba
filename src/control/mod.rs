//! The control socket: everything that shows clients or changes state, for whoever the file's permissions admit.
//!
//! One request a connection, one JSON object a line each way. The socket is 0660; the peer's user and groups are
//! checked again with what the kernel says of it, since a file mode alone is lost when somebody widens it.

mod client;
mod protocol;
mod server;

pub use client::{ClientError, follow, send};
pub use protocol::{Change, Firewall, Outcome, ReloadReport, Reply, Request};
pub use server::{Asked, Command, ServerError, serve};
