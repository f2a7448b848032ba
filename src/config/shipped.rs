//! What is shipped to be copied is valid: the configurations under `deploy/config`, and every TOML block of the
//! documents. A block's first line says what it is: `# configuration`, or `# pack: NAME`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::load_in;
use crate::config::Loaded;

const NOW: &str = "2026-11-25T00:00:00Z";

/// Files of a folder of the project with an extension, sorted.
fn files_in(folder: &str, extension: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let paths = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    files
}

/// Every document below a folder; what is built and what an editor hides is none.
fn documents(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            let is_ours = name != "target" && !name.to_string_lossy().starts_with('.');
            found.extend(is_ours.then(|| documents(&path)).into_iter().flatten());
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found
}

fn load(path: &Path) -> Loaded {
    load_in(Path::new("/nonexistent"), Some(path), NOW.parse().unwrap())
}

#[test]
fn every_shipped_configuration_is_valid() {
    let files = files_in("deploy/config", "toml");
    assert!(!files.is_empty());
    for path in files {
        let loaded = load(&path);
        assert!(loaded.problems.is_empty(), "{}", loaded.problems);
    }
}

#[test]
fn every_toml_block_of_the_documents_is_valid() {
    let mut count = 0;
    for file in documents(Path::new(env!("CARGO_MANIFEST_DIR"))) {
        for block in toml_blocks(&fs::read_to_string(&file).unwrap()) {
            let loaded = load_block(&block).unwrap_or_else(|| panic!("{}: no kind of block:\n{block}", file.display()));
            assert!(loaded.problems.is_empty(), "{}: {}\n{block}", file.display(), loaded.problems);
            count += 1;
        }
    }
    assert!(count > 3, "only {count} blocks were found");
}

#[test]
fn the_defaults_in_the_documents_are_the_built_in_ones() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let blocks = toml_blocks(&fs::read_to_string(document).unwrap());
    let written = load_block(blocks.first().unwrap()).unwrap().outcome.unwrap();
    let built_in = load_in(Path::new("/nonexistent"), None, NOW.parse().unwrap()).outcome.unwrap();
    assert_eq!(written.changes_since(&built_in), Vec::<String>::new());
    assert_eq!(written.cache, built_in.cache);
    assert_eq!(written.listen.dns, built_in.listen.dns);
    assert_eq!(written.listen.admin.address(), built_in.listen.admin.address());
}

/// A block as a file in a folder of its own; `None` where its first line does not say what it is.
fn load_block(block: &str) -> Option<Loaded> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tunnelwarden.toml");
    let first = block.lines().next()?;
    if first == "# configuration" {
        fs::write(&path, block).unwrap();
    } else {
        let name = first.strip_prefix("# pack: ")?;
        fs::write(folder.path().join(format!("{name}.toml")), block).unwrap();
        fs::write(&path, format!("[policy]\npacks = ['{name}.toml']\n")).unwrap();
    }
    Some(load(&path))
}

/// The text of each fenced block that is marked as TOML, indented ones too.
fn toml_blocks(document: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "```toml" {
            let block: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != "```").collect();
            blocks.push(block.join("\n") + "\n");
        }
    }
    blocks
}
