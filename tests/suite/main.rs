//! Tests of the whole: the daemon on loopback, its commands, scenarios, documents and house rules.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "a test that fails should say where"
)]

mod admin;
mod commands;
mod documents;
mod doors_agree;
mod encrypted_upstreams;
mod export;
mod faults;
mod firewall;
mod floods;
mod gate;
mod house;
mod ingress;
mod limits;
mod namespaces;
mod questions;
mod real_client;
mod reload;
mod robust;
mod scenarios;
mod support;
mod systemd;
mod upstreams;
