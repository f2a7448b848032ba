//! What is made of the same definition as `--help`: manual pages, and completions for shells.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;
use jiff::civil::Date;

use super::{CommandLine, Common, EXIT_CODES, Exit};

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
    /// What day they are of
    #[arg(long)]
    date: Date,
}

/// Pages of files.
const FORMATS: [&str; 2] = ["tunnelwarden.toml", "tunnelwarden-policy"];

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
    let written = fs::create_dir_all(folder).and_then(|()| write_pages(&command, arguments.date, folder));
    written.with_context(|| format!("cannot write manual pages into {}", folder.display()))?;
    Ok(Exit::Done)
}

/// The command line without what only this program itself calls.
fn shown() -> Command {
    let whole = CommandLine::command();
    let commands = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    <Common as clap::Args>::augment_args(Command::new(env!("CARGO_PKG_NAME")))
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .after_help(EXIT_CODES)
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .subcommand_value_name("COMMAND")
        .subcommands(commands)
}

fn write_pages(command: &Command, date: Date, folder: &Path) -> io::Result<()> {
    let page = Man::new(command.clone()).date(date.to_string()).manual("tunnelwarden");
    let page = page.source(concat!("tunnelwarden ", env!("CARGO_PKG_VERSION")));
    fs::write(folder.join(page.get_filename()), page_of(&page, command)?)?;
    command.get_subcommands().try_for_each(|command| write_pages(command, date, folder))
}

fn page_of(page: &Man, command: &Command) -> io::Result<String> {
    let mut text = Vec::new();
    page.render(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    // Breaks round an empty line mean nothing, and readers of manual pages warn of them.
    let text = text.replace(".br\n\n.br\n", ".sp\n").replace(".SH EXTRA\n", ".SH \"EXIT STATUS\"\n");
    Ok(format!("{text}.SH \"SEE ALSO\"\n{}\n", related(command)))
}

/// The command above, those below, and the formats of files.
fn related(command: &Command) -> String {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let above = name.rsplit_once('-').map(|(above, _)| above);
    let below = command.get_subcommands().filter_map(|command| command.get_display_name());
    let commands = above.into_iter().chain(below).map(|name| (name, 1));
    let formats = FORMATS.map(|name| (name, 5));
    let reference = |(name, section): (&str, u8)| format!("\\fB{}\\fR({section})", name.replace('-', "\\-"));
    commands.chain(formats).map(reference).collect::<Vec<_>>().join(",\n")
}
