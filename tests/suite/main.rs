//! Tests of the whole: the daemon on loopback, its commands, scenarios, documents and house rules.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test that fails should say where"
)]

mod commands;
mod documents;
mod house;
mod questions;
mod real_client;
mod scenarios;
mod support;
