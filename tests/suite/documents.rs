//! What the documents say of files and commands is so. Their TOML blocks are read beside the configuration's code.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::daemon::binary;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every document of the project with its text.
fn documents() -> Vec<(PathBuf, String)> {
    let folders = [".", "docs", "policies", "tests/suite/scenarios"];
    let files = folders.iter().flat_map(|folder| fs::read_dir(root().join(folder)).unwrap());
    let paths = files.map(|file| file.unwrap().path());
    let documents = paths.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    documents.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn every_shipped_configuration_passes_a_strict_check() {
    let files: Vec<_> = fs::read_dir(root().join("deploy/config")).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(!files.is_empty());
    for file in files {
        let output = Command::new(binary()).args(["check", "--strict", "--config"]).arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_link_between_documents_leads_to_a_file() {
    let mut count = 0;
    for (path, text) in documents() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap();
            if target.contains("://") || file.is_empty() {
                continue;
            }
            count += 1;
            assert!(path.parent().unwrap().join(file).exists(), "{}: {target}", path.display());
        }
    }
    assert!(count > 3, "only {count} links were found");
}

#[test]
fn every_command_in_the_documents_takes_the_options_written_there() {
    let help = |command: &str| {
        let output = Command::new(binary()).args([command, "--help"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let is_name = |c: char| c == '-' || c.is_ascii_lowercase();
        text.split(|c: char| !is_name(c)).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    for (path, text) in documents() {
        for line in text.lines().map(|line| line.trim().trim_start_matches("$ ")) {
            let rest = line.strip_prefix("tunnelwarden ").or_else(|| line.strip_prefix("cargo run --release -- "));
            let words: Vec<_> = rest.unwrap_or_default().split_whitespace().collect();
            // Only in blocks of a shell; prose begins with the name, too.
            let Some((command, options)) = words.split_first() else { continue };
            if !["serve", "check", "explain", "attempts", "reload"].contains(command) {
                continue;
            }
            let known = help(command);
            for option in options.iter().filter(|option| option.starts_with("--")) {
                let name =
                    option.split('=').next().unwrap().trim_matches(|c: char| c != '-' && !c.is_ascii_lowercase());
                assert!(known.contains(name), "{}: {line}: {name}", path.display());
            }
        }
    }
}
