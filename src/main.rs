//! Arguments in, exit code out; and whose memory it all is. Nothing else.

use std::process::ExitCode;

use mimalloc::MiMalloc;

#[global_allocator]
static MEMORY: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    tunnelwarden::cli::run(std::env::args_os()).into()
}
