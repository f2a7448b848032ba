//! What the reader takes, and what it says of the rest.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::name::DomainName;

fn file(text: &str) -> Arc<SourceFile> {
    Arc::new(SourceFile { path: "w.toml".into(), text: text.into() })
}

/// Each problem as `line:column message | hint`.
fn problems_of<T>(text: &str, reader: impl FnOnce(&mut Table<'_>) -> T) -> Vec<String> {
    let mut problems = Problems::default();
    read(&file(text), &mut problems, reader);
    problems.iter().map(shown).collect()
}

fn shown(problem: &Problem) -> String {
    let place = problem.place.as_ref().unwrap();
    let hint = problem.hint.as_ref().map(|hint| format!(" | {hint}")).unwrap_or_default();
    format!("{}:{} {}{hint}", place.line(), place.column(), problem.message)
}

/// Takes one of everything.
fn everything(root: &mut Table<'_>) {
    root.not_in_this_version(&["tls"]);
    root.take("text", Value::text);
    root.take("line", Value::line);
    root.take("word", Value::word);
    root.take("flag", Value::boolean);
    root.take("port", |value| value.integer(1..=65_535_u16));
    root.take("keep", |value| value.duration(Duration::from_secs(60)..=Duration::from_hours(240)));
    root.take("size", |value| value.size(1024));
    root.take("mode", |value| value.keyword(&[("enforce", 1), ("observe", 2)]));
    root.take("zone", Value::parsed::<DomainName>);
    root.list("networks", Value::network);
    root.take("until", Value::timestamp);
    root.take("read", Value::date);
    root.list("names", Value::located_text);
    root.table("one", |one| {
        one.take("text", Value::text);
    });
    root.tables("many", |many| many.require("name", "name = \"x\"", Value::word));
}

#[test]
fn what_is_right_is_taken_without_a_word() {
    let text = r#"
        text = ""
        line = "security, NET-4711"
        word = "build-hosts"
        flag = true
        port = 0x35
        keep = "1h30m"
        size = "1GiB"
        mode = "observe"
        zone = "Bücher.example."
        networks = ["10.20.0.0/16", "10.0.0.53", "2001:db8::/32", "::ffff:10.0.0.0/104"]
        until = 2026-12-24T18:00:00+01:00
        read = 2026-11-23
        names = []
        one = { text = "x" }
        [[many]]
        name = "a"
        [[many]]
        name = "b"
    "#;
    assert_eq!(problems_of(text, everything), [""; 0]);
    let networks = |root: &mut Table<'_>| root.list("networks", Value::network).unwrap();
    let networks = read(
        &file("networks = [\"::ffff:10.0.0.0/104\", \"::/0\", \"10.0.0.53\"]"),
        &mut Problems::default(),
        networks,
    );
    let networks: Vec<_> = networks.unwrap().iter().map(|network| network.value.to_string()).collect();
    assert_eq!(networks, ["10.0.0.0/8", "::/0", "10.0.0.53/32"]);
}

#[test]
fn what_is_wrong_is_told_with_place_and_hint() {
    #[rustfmt::skip]
    let cases: &[(&str, &str)] = &[
        ("text = 1",                 r#"1:8 "text" must be a string, not a whole number"#),
        ("line = \"a\\nb\"",         r#"1:8 "line" has a control character in it"#),
        ("line = \" \"",             r#"1:8 "line" is blank"#),
        ("word = \"a b\"",           r#"1:8 "word" is "a b", which cannot be a name here | use letters, digits, - _ and ., at most 63 of them"#),
        ("flag = \"yes\"",           r#"1:8 "flag" must be true or false, not a string"#),
        ("port = 65536",             r#"1:8 "port" is 65536; it must be from 1 to 65535"#),
        ("port = -1",                r#"1:8 "port" is -1; it must be from 1 to 65535"#),
        ("port = 1e3",               r#"1:8 "port" must be a whole number, not a number with a fraction"#),
        ("port = 99999999999999999999999999999999999999999999", r#"1:8 "port" is 99999999999999999999999999999999999999999999; it must be from 1 to 65535"#),
        ("keep = \"3 fortnights\"",  r#"1:8 "keep" is no duration | write a whole number and s, m, h, d or w, such as "90d""#),
        ("keep = \"90d\"",           r#"1:8 "keep" is 90d; it must be from 1m to 10d"#),
        ("keep = true",              r#"1:8 "keep" must be a duration such as "90d", not true"#),
        ("size = \"1 gig\"",         r#"1:8 "size" is no size | write a whole number and KiB, MiB or GiB, such as "1GiB""#),
        ("size = 7",                 r#"1:8 "size" is 7 bytes; it must be at least 1024"#),
        ("mode = \"enforced\"",      r#"1:8 "mode" cannot be "enforced" | did you mean "enforce"? It can be "enforce", "observe""#),
        ("mode = \"off\"",           r#"1:8 "mode" cannot be "off" | it can be "enforce", "observe""#),
        ("zone = \"a..b\"",          r#"1:8 "a..b": empty label"#),
        ("networks = [\"10.20.0.1/16\"]",  r#"1:13 "10.20.0.1/16" has bits set behind its prefix length | did you mean 10.20.0.0/16?"#),
        ("networks = [\"10.0.0.0/33\"]",   r#"1:13 "10.0.0.0/33": prefix length "33" | a length of IPv4 is a number from 0 to 32"#),
        ("networks = [\"2001:db8::/-1\"]", r#"1:13 "2001:db8::/-1": prefix length "-1" | a length of IPv6 is a number from 0 to 128"#),
        ("networks = [\"10.20/16\"]",      r#"1:13 "10.20/16" is no network | write all four numbers: 10.20.0.0/16"#),
        ("networks = [\"office\"]",        r#"1:13 "office" is no network | write an address and a prefix length, such as 10.20.0.0/16 or 2001:db8:20::/48"#),
        ("networks = [7]",                 r#"1:13 an entry of "networks" must be a string, not a whole number"#),
        ("networks = \"10.0.0.0/8\"",      r#"1:12 "networks" must be a list, not a string | write networks = ["10.0.0.0/8"]"#),
        ("until = 2026-12-24T18:00:00",    r#"1:9 "until" lacks an offset from UTC | add Z for UTC or the offset, such as 2026-12-24T18:00:00Z or 2026-12-24T18:00:00+01:00"#),
        ("until = 2026-12-24",             r#"1:9 "until" lacks a time and an offset | add Z for UTC or the offset, such as 2026-12-24T18:00:00Z or 2026-12-24T18:00:00+01:00"#),
        ("until = \"tomorrow\"",           r#"1:9 "until" must be a date and time, not a string | write it without quotes and with an offset, such as 2026-12-24T18:00:00Z"#),
        ("read = \"2026-11-23\"",          r#"1:8 "read" must be a day | write it without quotes, such as 2026-11-23"#),
        ("[[one]]",                        r#"1:1 [one] must be a table, not a list | write [one] once, and its keys below"#),
        ("[many]",                         r#"1:1 [[many]] must be an array of tables, not a table | begin each with a line [[many]]"#),
        ("many = [1]",                     r#"1:9 an entry of [[many]] must be a table, not a whole number | begin each with a line [[many]]"#),
        ("[[many]]",                       r#"1:1 [[many]] needs "name" | such as: name = "x""#),
        ("nanes = []",                     r#"1:1 unknown key "nanes" | did you mean "names"?"#),
        ("tls = []",                       r#"1:1 unknown key "tls" | this version cannot do that yet; take the key out"#),
        ("[one]\nzebra = 1",               r#"2:1 unknown key "zebra" in [one] | known here: text"#),
        ("flag = true\nflag = true",       "2:1 duplicate key"),
    ];
    for (text, expected) in cases {
        assert_eq!(problems_of(text, everything), [*expected], "{text}");
    }
}

#[test]
fn everything_that_is_wrong_is_told_at_once_from_top_to_bottom() {
    let text = "zebra = 1\nport = 0\nflag = 1\n[[many]]\n[one]\ntext = 2\nother = 3\n";
    let lines: Vec<_> = problems_of(text, everything).iter().map(|line| line[..3].to_owned()).collect();
    assert_eq!(lines, ["1:1", "2:8", "3:8", "4:1", "6:8", "7:1"]);
}

#[test]
fn a_syntax_error_is_told_once_and_hides_nothing_else() {
    let text = "mode = enforce\nport = 0\nkeep =\nsize = \"\\q\"\n[[many]]\n[one\n";
    let told = problems_of(text, everything);
    let lines: Vec<_> = told.iter().map(|problem| problem.split(':').next().unwrap()).collect();
    assert_eq!(lines, ["1", "2", "3", "4", "6"], "{told:#?}");
}

#[test]
fn garbage_gives_a_bounded_number_of_problems() {
    let small = "=\n".repeat(100_000);
    let told = problems_of(&small, everything);
    assert_eq!(told.len(), MAX_PROBLEMS + 1);
    assert!(told.last().unwrap().contains("more problems in this file are not shown"), "{:?}", told.last());
    let large = "=\n".repeat(1_000_000);
    assert_eq!(problems_of(&large, everything).len(), 1);
    let nested = "a = ".to_owned() + &"[".repeat(200_000);
    assert!(!problems_of(&nested, everything).is_empty());
}

const VALID: &str = "text = \"x\"\nport = 53\nuntil = 2026-12-24T18:00:00Z\nnetworks = [\"10.0.0.0/8\"]\none.text = \"y\"\n[[many]]\nname = \"a\"\n";

proptest! {
    #[test]
    fn no_text_panics_and_every_place_is_inside_it(text in ".{0,200}") {
        check_places(&text);
    }

    #[test]
    fn no_mutation_of_a_valid_text_panics(at in 0..VALID.len(), cut in 0..20_usize, insert in "[\\[\\]{}=\"'#.,\na0\\\\T:-]{0,6}") {
        let end = (at + cut).min(VALID.len());
        check_places(&format!("{}{insert}{}", &VALID[..at], &VALID[end..]));
    }
}

fn check_places(text: &str) {
    let mut problems = Problems::default();
    read(&file(text), &mut problems, everything);
    for problem in problems.iter() {
        let place = problem.place.as_ref().expect("everything in a file has a place");
        assert!(place.line() <= text.matches('\n').count() + 1);
        assert!(place.column() <= text.chars().count() + 1);
    }
}
