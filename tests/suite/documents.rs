//! What the documents say of files, commands and tests is so. Their TOML blocks are read beside the configuration's
//! code (`src/config/shipped.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::daemon::binary;

/// The project speaks of itself alone: not of who wrote it, where, or on what errand. In pieces, so that this file
/// does not speak of it either.
const FOREIGN: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/tmp/", "tw"),
    concat!("a se", "ssion of"),
    concat!("ano", "ther session"),
    concat!("this se", "ssion"),
    concat!("static.cra", "tes.io"),
    concat!("index.cra", "tes.io"),
    concat!("pypi", ".org"),
    concat!("python", "hosted"),
    concat!("npm", "js."),
    concat!("artif", "actory"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every text of the project below a folder; what is built and what an editor hides is not of it.
fn texts(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        if name == "target" || (name.starts_with('.') && name != ".ci") {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            found.extend(texts(&path));
        } else if let Ok(text) = fs::read_to_string(&path) {
            found.insert(path, text);
        }
    }
    found
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|extension| extension == wanted)
}

/// Every document of the project with its text.
fn documents() -> Vec<(PathBuf, String)> {
    texts(root()).into_iter().filter(|(path, _)| has_extension(path, "md")).collect()
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
fn every_link_between_documents_leads_to_a_file_and_a_heading_in_it() {
    let mut count = 0;
    for (path, text) in documents() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            count += 1;
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(file.exists(), "{}: {target}", path.display());
            if !heading.is_empty() {
                let text = fs::read_to_string(&file).unwrap();
                let headings = text.lines().filter(|line| line.starts_with('#'));
                assert!(headings.map(anchor).any(|known| known == heading), "{}: {target}", path.display());
            }
        }
    }
    assert!(count > 3, "only {count} links were found");
}

#[test]
fn every_alert_leads_to_a_heading_below_which_it_has_a_row_and_every_row_is_of_one() {
    let rules = fs::read_to_string(root().join("deploy/monitoring/alerts.yml")).unwrap();
    let values = |key: &str| rules.lines().filter_map(|line| line.trim().strip_prefix(key)).collect::<Vec<_>>();
    let (alerts, runbooks) = (values("- alert: "), values("runbook: "));
    assert!(alerts.len() > 10 && alerts.len() == runbooks.len(), "{alerts:?} {runbooks:?}");
    let document = fs::read_to_string(root().join("docs/operating.md")).unwrap();
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `Tunnelwarden")?.split('`').next());
    let rows: BTreeSet<_> = rows.map(|name| format!("Tunnelwarden{name}")).collect();
    assert_eq!(rows, alerts.iter().map(|&alert| alert.to_owned()).collect());
    for (alert, runbook) in alerts.iter().zip(runbooks) {
        let heading = runbook.strip_prefix("docs/operating.md#").unwrap();
        let mut sections = document.split("\n#").map(|section| section.split_once('\n').unwrap_or((section, "")));
        let section = sections.find(|(title, _)| anchor(title) == heading).map(|(_, text)| text);
        let row = format!("\n| `{alert}` |");
        assert!(section.is_some_and(|text| text.contains(&row)), "{alert}: {runbook}");
    }
}

/// The anchor that a heading is given where Markdown is shown.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    words.chars().filter(|&c| c == '-' || c == '_' || c.is_alphanumeric()).collect()
}

#[test]
fn every_row_of_promises_and_of_ways_round_names_tests_that_exist_or_says_that_there_is_none() {
    let mut count = 0;
    for document in ["docs/security.md", "docs/evasions.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for row in text.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---")) {
            let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
            let tests = *cells.last().unwrap();
            if tests == "test" {
                continue;
            }
            let named: Vec<_> = tests.split('`').skip(1).step_by(2).collect();
            // What is not held needs no proof; what is held anywhere does.
            let is_open = cells.iter().any(|cell| *cell == "no" || cell.starts_with("no:"));
            let is_held = cells.iter().any(|cell| *cell == "yes" || cell.starts_with("yes,"));
            let needs_none = is_open && !is_held;
            assert!(!named.is_empty() || needs_none || tests.contains("not tested"), "{document}: no test: {row}");
            for test in named.into_iter().filter(|name| name.contains([':', '.', '/'])) {
                count += 1;
                assert!(is_a_test(test), "{document}: there is no {test}");
            }
        }
    }
    assert!(count > 60, "only {count} tests were found");
}

/// `module::name` in `tests/suite` or in `src`, a way that is tried there, a scenario, or a program of `tests`.
fn is_a_test(name: &str) -> bool {
    if let Some(way) = name.strip_prefix("way: ") {
        let ways = fs::read_to_string(root().join("tests/suite/namespaces/ways.rs")).unwrap();
        return ways.contains(&format!("\"{way}\":"));
    }
    if name.ends_with(".scenario") {
        return root().join("tests/suite/scenarios").join(name).exists();
    }
    let Some((module, function)) = name.rsplit_once("::") else { return root().join(name).exists() };
    let path = module.trim_end_matches("::tests").replace("::", "/");
    let files = [
        format!("tests/suite/{path}.rs"),
        format!("tests/suite/{path}/mod.rs"),
        format!("src/{path}.rs"),
        format!("src/{path}/mod.rs"),
        format!("src/{path}/tests.rs"),
    ];
    let texts = files.iter().filter_map(|file| fs::read_to_string(root().join(file)).ok());
    let opening = format!("fn {function}(");
    texts
        .into_iter()
        .any(|text| text.contains(&opening) && (text.contains("#[test]") || text.contains("#[tokio::test")))
}

/// The command lines of a document that call this program: in blocks of a shell, and as words in running text.
fn calls(text: &str) -> Vec<String> {
    let mut calls = Vec::new();
    let mut fence = None;
    for line in text.lines() {
        let line = line.trim();
        if let Some(language) = line.strip_prefix("```") {
            fence = if fence.is_none() { Some(language) } else { None };
        } else if let Some(language) = fence {
            let line = if language == "console" { line.strip_prefix("$ ").unwrap_or_default() } else { line };
            if matches!(language, "sh" | "console") {
                calls.extend(line.split(" | ").filter_map(call).map(str::to_owned));
            }
        } else {
            calls.extend(line.split('`').skip(1).step_by(2).filter_map(call).map(str::to_owned));
        }
    }
    calls
}

/// What follows the program's name.
fn call(line: &str) -> Option<&str> {
    let names = ["tunnelwarden ", "./target/debug/tunnelwarden ", "cargo run --release -- "];
    let line = line.strip_prefix("sudo ").unwrap_or(line);
    names.iter().find_map(|name| line.strip_prefix(name))
}

#[test]
fn every_command_and_option_in_the_documents_is_one_of_the_programs() {
    let help = |words: &[&str]| {
        let output = Command::new(binary()).args(words).arg("--help").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let is_name = |c: char| c == '-' || c.is_ascii_lowercase();
        let options = text.split(|c: char| !is_name(c)).filter(|word| word.starts_with("--"));
        output.status.success().then(|| options.map(str::to_owned).collect::<BTreeSet<_>>())
    };
    let mut known: BTreeMap<String, Option<BTreeSet<String>>> = BTreeMap::new();
    let mut count = 0;
    let shipped = texts(&root().join("deploy")).into_iter().filter(|(path, _)| has_extension(path, "toml"));
    let in_comments = shipped.map(|(path, text)| {
        let lines = text.lines().filter_map(|line| line.strip_prefix("#   "));
        (path, lines.filter_map(call).map(str::to_owned).collect())
    });
    let in_documents = documents().into_iter().map(|(path, text)| (path, calls(&text)));
    let all: Vec<(PathBuf, Vec<String>)> = in_documents.chain(in_comments).collect();
    for (path, calls) in all {
        for line in calls {
            count += 1;
            let words: Vec<_> = line.split('#').next().unwrap().split_whitespace().collect();
            let (command, options) = words.split_first().unwrap();
            let named: &[&str] = if command.starts_with('-') { &[] } else { &[command] };
            let options = if named.is_empty() { &words[..] } else { options };
            let known = known.entry(named.concat()).or_insert_with(|| help(named));
            let known = known.as_ref().unwrap_or_else(|| panic!("{}: no such command: {line}", path.display()));
            for option in options.iter().filter(|option| option.starts_with('-')) {
                let name = option.split('=').next().unwrap().trim_end_matches(|c: char| !c.is_ascii_lowercase());
                assert!(known.contains(name), "{}: {line}: {name}", path.display());
            }
        }
    }
    assert!(count > 15, "only {count} calls were found");
}

#[test]
fn the_project_speaks_of_itself_alone() {
    let mut offences = Vec::new();
    for (path, text) in texts(root()) {
        // Sources of facts are others' pages and trackers; what is locked is cargo's.
        if path.ends_with("Cargo.lock") {
            continue;
        }
        let is_pack = path.starts_with(root().join("policies"));
        for (number, line) in text.lines().enumerate() {
            let lower = line.to_lowercase();
            let foreign = FOREIGN.iter().any(|word| lower.contains(word));
            let numbered =
                !is_pack && (numbers_an_issue(&lower) || lower.split("issue ").skip(1).any(begins_with_digit));
            if foreign || numbered {
                offences.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

fn begins_with_digit(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

/// A number behind `#`, as a word of its own; not `{:#04x}`, a colour or the name behind a server's address.
fn numbers_an_issue(line: &str) -> bool {
    let mut before = "";
    line.split_whitespace().any(|word| {
        let is_value = before.ends_with(':');
        before = word;
        let Some(rest) = word.trim_start_matches(['(', '[', '`', '"']).strip_prefix('#') else { return false };
        let number = rest.trim_end_matches(['.', ',', ':', ';', ')', ']', '`', '"']);
        let is_colour = is_value && matches!(number.len(), 3 | 6);
        !is_colour && !number.is_empty() && number.chars().all(|c| c.is_ascii_digit())
    })
}

#[test]
fn a_number_of_an_issue_is_told_from_other_numbers() {
    for (line, expected) in [
        (concat!("see #", "12"), true),
        (concat!("(closes #", "3)."), true),
        ("{0:#04x}", false),
        ("fill: #333 }", false),
        ("https://[2620:fe::fe]#2620", false),
        ("# 12 rules", false),
    ] {
        assert_eq!(numbers_an_issue(line), expected, "{line}");
    }
}
