//! House rules that a compiler does not know.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The layers, bottom first. A module may name only modules of the layers before its own.
const LAYERS: &[&[&str]] = &[
    &["address", "hashing", "name", "problem", "sys"],
    &["document"],
    &["metrics", "policy", "wire"],
    &["lasting"],
    &["audit", "cache", "export", "firewall", "upstream"],
    &["ingress", "keeper"],
    &["gateway"],
    &["admin", "control", "gate", "listen"],
    &["config"],
    &["daemon"],
    &["cli"],
    &["fuzzing"],
];

/// Layers up to this one are pure: no tokio, no socket, no clock, no file, no log.
const PURE: &[&str] = &["address", "name", "problem", "document", "metrics", "policy", "wire", "export"];

#[test]
fn imports_run_one_way() {
    let mut offences = Vec::new();
    for (file, module) in source_files() {
        let own_layer = layer_of(&module).unwrap_or_else(|| panic!("{module}: give it a layer"));
        for (line, target) in crate_modules(&code_lines(&file)) {
            let below = layer_of(&target).is_some_and(|layer| layer < own_layer);
            if target != module && !below {
                offences.push(format!("{}:{line}: {module} may not use {target}", file.display()));
            }
        }
    }
    assert!(offences.is_empty(), "\n{}\n", offences.join("\n"));
}

#[test]
fn what_decides_and_reads_packets_knows_no_clock_socket_file_or_log() {
    let forbidden = [
        "tokio",
        "std::net::UdpSocket",
        "std::net::Tcp",
        "std::fs",
        "Instant::now",
        "Timestamp::now",
        "SystemTime",
        "tracing::",
    ];
    let mut offences = Vec::new();
    for (file, module) in source_files() {
        if !PURE.contains(&module.as_str()) {
            continue;
        }
        for (line, text) in code_lines(&file) {
            for word in forbidden.iter().filter(|word| text.contains(*word)) {
                offences.push(format!("{}:{line}: {module} may not use {word}", file.display()));
            }
        }
    }
    assert!(offences.is_empty(), "\n{}\n", offences.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<_> = source_files()
        .into_iter()
        .filter(|(file, _)| !fs::read_to_string(file).unwrap().starts_with("//!"))
        .map(|(file, _)| file)
        .collect();
    assert!(silent.is_empty(), "{silent:?}");
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let sections = ["dependencies", "dev-dependencies"];
    let mut within = false;
    let mut silent = Vec::new();
    for line in manifest.lines() {
        if let Some(section) = line.strip_prefix('[') {
            within = sections.contains(&section.trim_end_matches(']'));
        } else if within && line.contains(" = ") && !line.contains(" # ") {
            silent.push(line);
        }
    }
    assert!(silent.is_empty(), "{silent:#?}");
}

#[test]
fn unsafe_code_stays_in_sys() {
    let offences: Vec<_> = source_files()
        .into_iter()
        .filter(|(_, module)| module != "sys")
        .filter(|(file, _)| code_lines(file).iter().any(|(_, text)| text.contains("unsafe ") && !text.contains('"')))
        .collect();
    assert!(offences.is_empty(), "{offences:?}");
}

#[test]
fn the_import_reader_sees_grouped_and_single_imports() {
    let text = "use crate::name::X;\nuse crate::{\n    audit::{A, B},\n    cache::{self, C}, wire::{d::{E, F}, G},\n};\nlet x: crate::policy::Y = cache::z();";
    let lines: Vec<_> = text.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned())).collect();
    let expected = [(1, "name"), (3, "audit"), (4, "cache"), (4, "wire"), (6, "policy")];
    assert_eq!(crate_modules(&lines), expected.map(|(line, module)| (line, module.to_owned())));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file with its top-level module; `lib.rs` and `main.rs` are the map and the door.
fn source_files() -> Vec<(PathBuf, String)> {
    let source = root().join("src");
    let mut files = Vec::new();
    let mut folders = vec![source.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let within = path.strip_prefix(&source).unwrap();
                let first = within.components().next().unwrap().as_os_str().to_string_lossy();
                let module = first.trim_end_matches(".rs").to_owned();
                if !["lib", "main"].contains(&module.as_str()) {
                    files.push((path, module));
                }
            }
        }
    }
    assert!(files.len() > 20, "the sources are not where they were");
    files
}

/// The lines of a file that are neither comments nor its tests, numbered from 1.
fn code_lines(file: &Path) -> Vec<(usize, String)> {
    // A file of tests is named after what it is.
    if file.file_name().is_some_and(|name| name == "tests.rs") {
        return Vec::new();
    }
    let text = fs::read_to_string(file).unwrap();
    let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned()));
    numbered
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .collect()
}

/// The modules named after `crate::`, alone or in the braces of a grouped import, with their lines.
fn crate_modules(lines: &[(usize, String)]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    // How many braces are open within `use crate::{ .. };`; 0 outside of one.
    let mut depth = 0_usize;
    for (line, text) in lines {
        let mut rest = text.as_str();
        while !rest.is_empty() {
            if depth == 0 {
                let Some(at) = rest.find("crate::") else { break };
                rest = &rest[at + "crate::".len()..];
                depth = usize::from(rest.starts_with('{'));
            }
            rest = rest.trim_start_matches([' ', ',', '{']);
            let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !word.is_empty() && depth <= 1 {
                found.push((*line, word.clone()));
            }
            rest = &rest[word.len()..];
            if depth > 0 {
                // On to the next name of the group: past whatever path or braces belong to this one.
                let end = rest.find([',', '{', '}']).unwrap_or(rest.len());
                match rest[end..].chars().next() {
                    Some('{') => depth += 1,
                    Some('}') => depth -= 1,
                    _ => {}
                }
                rest = rest.get(end + 1..).unwrap_or_default();
            }
        }
    }
    found
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}
