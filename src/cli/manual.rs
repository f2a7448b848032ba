//! What is made of the same definition as `--help`: manual pages, and completions for shells.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use super::{CommandLine, Common, Exit};

/// What `completions` takes.
#[derive(clap::Args, Debug)]
pub(super) struct Completions {
    /// For which shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// What `manual` takes.
#[derive(clap::Args, Debug)]
pub(super) struct Pages {
    /// The folder
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
}

/// Pages that are no command's.
const BESIDE: [&str; 2] = ["tunnelwarden.toml", "tunnelwarden-policy"];

pub(super) fn complete(arguments: &Completions) -> anyhow::Result<Exit> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut shown(), env!("CARGO_PKG_NAME"), &mut text);
    anstream::stdout().lock().write_all(&text)?;
    Ok(Exit::Done)
}

pub(super) fn write(arguments: &Pages) -> anyhow::Result<Exit> {
    let folder = &arguments.to;
    let mut command = shown();
    // Gives every command its full name, and the options that all have.
    command.build();
    fs::create_dir_all(folder)
        .and_then(|()| write_pages(&command, folder))
        .with_context(|| format!("cannot write manual pages into {}", folder.display()))?;
    Ok(Exit::Done)
}

/// The command line without what only this program itself calls.
fn shown() -> Command {
    let whole = CommandLine::command();
    let bare = Command::new(env!("CARGO_PKG_NAME")).disable_help_subcommand(true).subcommand_required(true);
    let (about, after) = (whole.get_about().cloned(), whole.get_after_help().cloned());
    let bare =
        bare.version(env!("CARGO_PKG_VERSION")).about(about.unwrap_or_default()).after_help(after.unwrap_or_default());
    let bare = <Common as clap::Args>::augment_args(bare);
    bare.subcommands(whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned())
}

fn write_pages(command: &Command, folder: &Path) -> io::Result<()> {
    let page =
        Man::new(command.clone()).source(concat!("tunnelwarden ", env!("CARGO_PKG_VERSION"))).manual("tunnelwarden");
    fs::write(folder.join(page.get_filename()), page_of(&page, command)?)?;
    command.get_subcommands().try_for_each(|command| write_pages(command, folder))
}

fn page_of(page: &Man, command: &Command) -> io::Result<String> {
    let mut text = Vec::new();
    page.render(&mut text)?;
    let text = String::from_utf8_lossy(&text).replace(".SH EXTRA\n", ".SH \"EXIT STATUS\"\n");
    Ok(format!("{text}.SH \"SEE ALSO\"\n{}\n", related(command)))
}

/// The command above, those below, and the files' formats.
fn related(command: &Command) -> String {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let above = name.rsplit_once('-').map(|(above, _)| above.to_owned());
    let below = command.get_subcommands().filter_map(|command| command.get_display_name().map(str::to_owned));
    let commands = above.into_iter().chain(below).map(|name| (name, 1));
    let beside = BESIDE.map(|name| (name.to_owned(), 5));
    let references =
        commands.chain(beside).map(|(name, section)| format!("\\fB{}\\fR({section})", name.replace('-', "\\-")));
    references.collect::<Vec<_>>().join(",\n")
}
