//! The command line: one file per command.

pub mod attempts;

use std::path::PathBuf;

/// What the process tells its caller. The numbers are a promise to scripts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed at run time.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// Configuration or policy is invalid.
    Invalid = 3,
    /// The question asked was answered "no".
    No = 4,
    /// Not permitted.
    NotPermitted = 5,
}

/// What every command takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Common {
    /// Configuration file [default: /etc/tunnelwarden/tunnelwarden.toml, or built-in defaults where there is none].
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// State folder [default: $STATE_DIRECTORY, else tunnelwarden in the XDG state home].
    #[arg(long, global = true, value_name = "FOLDER")]
    pub state_dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
}
