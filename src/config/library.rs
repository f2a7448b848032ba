//! Finds packs and their list files, reads each once, and numbers them for the plan.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    MAX_FILE,
    builtin::{PACKS, built_in},
    files::{ReadError, read_bytes, read_text},
};
use crate::{
    document::{nearest, quoted},
    policy::{
        address_list,
        list::{self, List, Skipped},
        pack::{self, Origin, parse},
        plan::{AddressList, Pack},
    },
    problem::{Located, Place, Problem, Problems, SourceFile},
};

/// Largest list file, in bytes: some ten million names.
const MAX_LIST: u64 = 256 << 20;

/// Every pack that was asked for, and what was read or looked for on the way.
pub(super) struct Library {
    /// What paths in the configuration are relative to.
    base: PathBuf,
    /// Where names are looked for, in order, before the built-in packs.
    folders: Vec<PathBuf>,
    /// Packs that can be used; a plan's selections are indices into it.
    pub packs: Vec<Pack>,
    /// Every pack that was looked at, and its number if it can be used.
    seen: Vec<(Identity, Option<usize>)>,
    /// Every file that was read or looked for.
    pub files: Vec<PathBuf>,
    /// The text of each that was read.
    pub sources: Vec<Arc<SourceFile>>,
    /// What is wrong with packs and with the words that select them.
    pub problems: Problems,
}

/// One pack may be reached by several paths.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Identity {
    BuiltIn(&'static str),
    File(PathBuf),
}

/// Where a pack was found.
enum Found {
    BuiltIn(&'static str, &'static str),
    File(PathBuf),
}

impl Library {
    pub(super) fn new(base: &Path, system: &Path) -> Self {
        let mut folders = vec![base.join("policies"), system.join("policies")];
        folders.dedup();
        Self {
            base: base.to_owned(),
            folders,
            packs: Vec::new(),
            seen: Vec::new(),
            files: Vec::new(),
            sources: Vec::new(),
            problems: Problems::default(),
        }
    }

    /// The packs that plain `entries` name, as numbers.
    pub(super) fn select(&mut self, entries: &[Located<String>]) -> Vec<usize> {
        let mut numbers = Vec::new();
        for entry in entries {
            if is_signed(entry) {
                let message = format!("{} amends a list, and there is none here", quoted(&entry.value));
                let hint = "name the packs without + and -; signs are for [[clients]]";
                self.problems.push(Problem::error(&entry.place, message).hint(hint));
            } else if let Some(number) = self.number(&entry.value, &entry.place) {
                add(&mut numbers, number);
            }
        }
        numbers
    }

    /// The packs of a client group: `entries` replace `defaults`, or amend them where they are signed.
    pub(super) fn select_for_group(&mut self, entries: &[Located<String>], defaults: &[usize]) -> Vec<usize> {
        let Some(first) = entries.first() else { return Vec::new() };
        if let Some(odd) = entries.iter().find(|entry| is_signed(entry) != is_signed(first)) {
            let hint = "give every entry a sign to amend the list of [policy], or none to replace it";
            let message = format!("{}: plain and signed packs do not mix", quoted(&odd.value));
            self.problems.push(Problem::error(&odd.place, message).hint(hint));
            return Vec::new();
        }
        if !is_signed(first) {
            return self.select(entries);
        }
        let mut numbers = defaults.to_vec();
        for entry in entries {
            if let Some(added) = entry.value.strip_prefix('+') {
                let number = self.number(added, &entry.place);
                number.into_iter().for_each(|number| add(&mut numbers, number));
            } else if let Some(removed) = entry.value.strip_prefix('-') {
                self.remove(removed, &entry.place, &mut numbers);
            }
        }
        numbers
    }

    fn remove(&mut self, name: &str, place: &Place, numbers: &mut Vec<usize>) {
        let name_of = |number: &usize| self.packs.get(*number).map(|pack| pack.name.value.as_str());
        if let Some(index) = numbers.iter().position(|number| name_of(number) == Some(name)) {
            numbers.remove(index);
            return;
        }
        let active: Vec<&str> = numbers.iter().filter_map(name_of).collect();
        let hint = match nearest(name, active.iter().copied()) {
            Some(meant) => format!("did you mean \"-{meant}\"?"),
            None => format!("active are: {}", active.join(", ")),
        };
        let message = format!("{} takes away a pack that is not active", quoted(&format!("-{name}")));
        self.problems.push(Problem::error(place, message).hint(hint));
    }

    /// Finds, reads and numbers one pack; the second time it is known.
    fn number(&mut self, text: &str, place: &Place) -> Option<usize> {
        let found = self.find(text, place)?;
        let identity = match &found {
            Found::BuiltIn(name, _) => Identity::BuiltIn(name),
            Found::File(path) => Identity::File(fs::canonicalize(path).unwrap_or_else(|_| path.clone())),
        };
        if let Some((_, number)) = self.seen.iter().find(|(seen, _)| *seen == identity) {
            return *number;
        }
        let pack = match found {
            Found::BuiltIn(name, text) => {
                let path = PathBuf::from(format!("built-in/{name}.toml"));
                self.read_pack(path, text.to_owned(), Origin::BuiltIn)
            }
            Found::File(path) => match read_text(&path, MAX_FILE) {
                Ok(text) => self.read_pack(path, text, Origin::File),
                Err(error) => {
                    let message = format!("cannot read pack {}: {error}", path.display());
                    let problem = Problem::error(place, message);
                    self.problems.push(match error {
                        ReadError::TooLarge(_) => {
                            problem.hint("put names into files of their own, and name those under lists")
                        }
                        ReadError::Missing | ReadError::Io(_) | ReadError::NotAFile(_) | ReadError::NotText { .. } => {
                            problem
                        }
                    });
                    None
                }
            },
        };
        let number = pack.and_then(|pack| self.shelve(pack));
        self.seen.push((identity, number));
        number
    }

    fn find(&mut self, text: &str, place: &Place) -> Option<Found> {
        if text.contains('/') || text.ends_with(".toml") {
            let path = self.base.join(text);
            self.note_file(&path);
            return Some(Found::File(path));
        }
        for folder in self.folders.clone() {
            let path = folder.join(format!("{text}.toml"));
            self.note_file(&path);
            // What is there but cannot be looked at must not give way to a pack further on.
            match fs::metadata(&path) {
                Err(error) if is_absent(&error) => {}
                Ok(_) | Err(_) => return Some(Found::File(path)),
            }
        }
        if let Some((name, text)) = built_in(text) {
            return Some(Found::BuiltIn(name, text));
        }
        let folders: Vec<_> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
        let message = format!("no pack {} in {} or built in", quoted(text), folders.join(", "));
        let names = self.names();
        let hint = match nearest(text, names.iter().map(String::as_str)) {
            Some(meant) => format!("did you mean {}?", quoted(meant)),
            None => format!("there are: {}", names.join(", ")),
        };
        self.problems.push(Problem::error(place, message).hint(hint));
        None
    }

    /// Every pack that a name can reach.
    fn names(&self) -> Vec<String> {
        let entries = self.folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        let packs = paths.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
        let mut names: Vec<String> =
            packs.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).take(1000).collect();
        names.extend(PACKS.map(|(name, _)| name.to_owned()));
        names.sort();
        names.dedup();
        names
    }

    fn read_pack(&mut self, path: PathBuf, text: String, origin: Origin) -> Option<Pack> {
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        let file = Arc::new(SourceFile { path, text });
        self.sources.push(Arc::clone(&file));
        let mut problems = Problems::default();
        let pack = parse(&file, origin, &mut problems, &mut FilesOf { library: self, folder });
        let usable = !problems.has_errors();
        self.problems.append(problems);
        pack.filter(|_| usable)
    }

    /// Gives a pack its number, unless another has its name.
    fn shelve(&mut self, pack: Pack) -> Option<usize> {
        if let Some(other) = self.packs.iter().find(|other| other.name.value == pack.name.value) {
            let message = format!("another pack is named {} too: {}", quoted(&pack.name.value), other.name.place);
            self.problems.push(Problem::error(&pack.name.place, message).hint("give one of them another name"));
            return None;
        }
        self.packs.push(pack);
        Some(self.packs.len() - 1)
    }

    /// A file that a pack in `folder` names, of at most so many bytes, and its path.
    fn read_list(&mut self, folder: &Path, entry: &Located<String>, limit: u64) -> Option<(String, Vec<u8>)> {
        let path = folder.join(&entry.value);
        self.note_file(&path);
        let read = is_below(&path, folder).and_then(|below| match below {
            true => read_bytes(&path, limit).map(Some),
            false => Ok(None),
        });
        let problem = match read {
            Ok(Some(bytes)) => return Some((path.display().to_string(), bytes)),
            Ok(None) => Problem::error(&entry.place, format!("list {} is outside its pack's folder", path.display()))
                .hint(format!("put it below {}", folder.display())),
            Err(error) => Problem::error(&entry.place, format!("cannot read list {}: {error}", path.display())),
        };
        self.problems.push(problem);
        None
    }

    fn tell_skipped(&mut self, entry: &Located<String>, skipped: &Skipped) {
        for (line, text) in &skipped.first {
            let message = format!("{}:{line}: {} is no name and was left out", entry.value, quoted(text));
            self.problems.push(Problem::warning(&entry.place, message));
        }
        let more = skipped.count - skipped.first.len();
        if more > 0 {
            let message = format!("{}: {more} more lines were left out", entry.value);
            self.problems.push(Problem::warning(&entry.place, message));
        }
    }

    /// Notes a file that is read or looked for.
    pub(super) fn note_file(&mut self, path: &Path) {
        if !self.files.iter().any(|known| known == path) {
            self.files.push(path.to_owned());
        }
    }
}

/// The files beside a pack.
struct FilesOf<'l> {
    library: &'l mut Library,
    /// The pack's own; nothing outside it is read.
    folder: PathBuf,
}

impl pack::Files for FilesOf<'_> {
    fn names(&mut self, entry: &Located<String>) -> Option<List> {
        let (path, bytes) = self.library.read_list(&self.folder, entry, MAX_LIST)?;
        let (list, skipped) = list::parse(&path, &bytes);
        self.library.tell_skipped(entry, &skipped);
        Some(list)
    }

    fn addresses(&mut self, entry: &Located<String>) -> Option<AddressList> {
        let (path, bytes) = self.library.read_list(&self.folder, entry, MAX_FILE)?;
        match address_list::parse(&bytes) {
            Ok(addresses) => Some(AddressList { path, addresses }),
            Err(error) => {
                let problem = Problem::error(&entry.place, format!("{path} is no list of addresses: {error}"));
                self.library
                    .problems
                    .push(problem.hint("it is JSON that holds addresses as texts, as a vendor publishes it"));
                None
            }
        }
    }
}

fn is_signed(entry: &Located<String>) -> bool {
    entry.value.starts_with(['+', '-'])
}

fn add(numbers: &mut Vec<usize>, number: usize) {
    if !numbers.contains(&number) {
        numbers.push(number);
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Does `path`, all links followed, lie below `folder`?
fn is_below(path: &Path, folder: &Path) -> Result<bool, ReadError> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let real = |path: &Path| {
        fs::canonicalize(path)
            .map_err(|error| if is_absent(&error) { ReadError::Missing } else { ReadError::Io(error) })
    };
    Ok(real(path)?.starts_with(real(folder)?))
}
