//! What the benches take on their command lines.

use std::path::PathBuf;

/// What each of them takes, beside what is its own.
#[derive(clap::Args, Debug)]
pub(crate) struct Common {
    /// One short round of everything, no judgement: does it all run?
    #[arg(long)]
    pub(crate) quick: bool,
    /// The tunnelwarden to measure; the one just built where none is named
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = env!("CARGO_BIN_EXE_tunnelwarden"),
        hide_default_value = true
    )]
    pub(crate) binary: PathBuf,
    /// Cargo says so to every bench.
    #[arg(long = "bench", global = true, hide = true)]
    _bench: bool,
}
