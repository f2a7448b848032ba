//! tunnelwarden lets an organization's own ngrok out and keeps everyone else's in.
//!
//! **listen** hands a question to the **gateway**, which asks **policy**, **cache** and **upstream**,
//! tells **audit** if a rule was broken, and answers. Who does not ask is turned here by the **firewall**: DNS to
//! **listen**, TLS to the **gate**; the **keeper** alone changes it. Everything else starts, configures or shows that.
//!
//! The modules below stand in layers, lowest first; a module imports only from layers before its own
//! (`tests/suite/house.rs` holds it to that).

// 0: words
pub mod address;
pub mod hashing;
pub mod name;
pub mod problem;
pub mod sys;
// 1: knows only words
pub mod document;
// 2: pure; no clock, no socket, no file, no log, no async
pub mod metrics;
pub mod policy;
pub mod wire;
// 3: what goes on after a panic
pub mod lasting;
// 4: mechanisms
pub mod audit;
pub mod cache;
pub mod export;
pub mod firewall;
pub mod upstream;
// 5: where ingresses are found; what alone may change the packet filter
pub mod ingress;
pub mod keeper;
// 6: the order of events
pub mod gateway;
// 7: doors
pub mod admin;
pub mod control;
pub mod gate;
pub mod listen;
// 8: assembly
pub mod cli;
pub mod config;
pub mod daemon;
// 9: what must hold of every parser, whatever the bytes; in no build but those of tests and fuzzers
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
