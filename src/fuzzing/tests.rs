//! For a moment what the fuzzers do for hours: any bytes, and seeds that were changed a little.

use std::{
    fs,
    path::{Path, PathBuf},
};

use proptest::{collection::vec, prelude::*, sample::Index, test_runner::TestRunner};

use super::*;

/// Of each kind, for each target.
const CASES: u32 = 192;

/// What a seed is changed by.
#[derive(Clone, Debug)]
enum Edit {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
    Cut(Index),
    /// Goes on as another seed does.
    Splice(Index, Index, Index),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let index = any::<Index>;
    let byte =
        prop_oneof![any::<u8>(), prop::sample::select(vec![0, 1, 12, 63, 64, 0x7f, 0x80, 0xc0, 0xff, b'.', b'\n'])];
    let edit = prop_oneof![
        4 => (index(), byte.clone()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        4 => (index(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, 1 << bit)),
        2 => (index(), vec(byte, 1..5)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        2 => (index(), 1..12_usize).prop_map(|(at, count)| Edit::Remove(at, count)),
        2 => (index(), 1..40_usize).prop_map(|(at, count)| Edit::Repeat(at, count)),
        1 => index().prop_map(Edit::Cut),
        1 => (index(), index(), index()).prop_map(|(at, seed, from)| Edit::Splice(at, seed, from)),
    ];
    vec(edit, 0..6)
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let place = |at: &Index, length: usize| at.index(length + 1);
        match self {
            Self::Set(at, byte) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Self::Flip(at, bits) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] ^= bits;
            }
            Self::Set(..) | Self::Flip(..) => {}
            Self::Insert(at, more) => {
                let at = place(at, bytes.len());
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Remove(at, count) => {
                let at = place(at, bytes.len());
                bytes.drain(at..(at + count).min(bytes.len()));
            }
            Self::Repeat(at, count) => {
                let at = place(at, bytes.len());
                let again = bytes[at..(at + count).min(bytes.len())].to_vec();
                bytes.splice(at..at, again);
            }
            Self::Cut(at) => bytes.truncate(place(at, bytes.len())),
            Self::Splice(at, seed, from) => {
                let other = seed.get(seeds);
                bytes.truncate(place(at, bytes.len()));
                bytes.extend_from_slice(&other[place(from, other.len())..]);
            }
        }
    }
}

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The seeds of a target. Who has the published package has none.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = fuzz_folder().join("seeds").join(target);
    let Ok(entries) = fs::read_dir(&folder) else {
        assert!(std::env::var_os("CI").is_none(), "there are no seeds in {}", folder.display());
        eprintln!("skipped: the seeds are not in this package");
        return vec![Vec::new()];
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

fn holds(target: &str) {
    let (_, body) = TARGETS.into_iter().find(|(name, _)| *name == target).unwrap();
    let seeds = seeds(target);
    seeds.iter().for_each(|seed| body(seed));
    let config = ProptestConfig { cases: CASES, source_file: Some(file!()), ..ProptestConfig::default() };
    let runner = || TestRunner::new(config.clone());
    let any_bytes = runner().run(&vec(any::<u8>(), 0..400), |bytes| {
        body(&bytes);
        Ok(())
    });
    any_bytes.unwrap_or_else(|error| panic!("{error}"));
    let changed = runner().run(&(any::<Index>(), edits()), |(seed, edits)| {
        let mut bytes = seed.get(&seeds).clone();
        edits.iter().for_each(|edit| edit.apply(&mut bytes, &seeds));
        body(&bytes);
        Ok(())
    });
    changed.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_vendors_addresses_are_in_its_file_whatever_its_shape() {
    holds("address_list");
}

#[test]
fn a_hello_has_one_verdict_however_it_is_cut_and_the_name_that_rustls_reads() {
    holds("client_hello");
}

#[test]
fn a_configuration_is_taken_or_each_problem_has_its_line_and_column() {
    holds("config");
}

#[test]
fn a_line_of_the_control_socket_is_written_as_it_was_read() {
    holds("control_message");
}

#[test]
fn a_question_has_one_answer_whichever_way_it_takes() {
    holds("fast_against_slow");
}

#[test]
fn a_packet_means_to_hickory_what_it_means_to_us() {
    holds("hickory_agrees");
}

#[test]
fn a_message_of_the_keepers_is_written_in_one_way_and_has_an_end() {
    holds("keeper_message");
}

#[test]
fn what_was_learned_is_written_as_it_was_read() {
    holds("learned_addresses");
}

#[test]
fn a_line_of_a_list_means_the_same_in_any_list() {
    holds("list_file");
}

#[test]
fn what_the_system_lists_is_equal_to_itself() {
    holds("listing");
}

#[test]
fn a_name_is_canonical_printable_and_read_again_as_the_same() {
    holds("name");
}

#[test]
fn a_datagram_of_the_kernels_is_not_left_whatever_lengths_stand_in_it() {
    holds("netlink_message");
}

#[test]
fn a_pack_is_compiled_or_each_problem_has_its_line_and_column() {
    holds("pack");
}

#[test]
fn the_compiled_policy_decides_as_the_literal_one() {
    holds("policy_against_naive");
}

#[test]
fn a_proxy_header_names_whom_its_bytes_name_and_ends_where_they_say() {
    holds("proxy_header");
}

#[test]
fn a_question_is_read_as_it_stands_and_refused_within_every_limit() {
    holds("question");
}

#[test]
fn a_line_of_resolv_conf_stands_for_itself() {
    holds("resolv_conf");
}

#[test]
fn a_stream_is_cut_into_questions_by_their_lengths_alone() {
    holds("stream");
}

#[test]
fn what_is_given_of_an_answer_is_whole_and_read_again_as_the_same() {
    holds("upstream_answer");
}

#[test]
fn every_target_is_tested_and_has_a_program_and_small_seeds() {
    let names = TARGETS.map(|(name, _)| name);
    let calls = include_str!("tests.rs");
    assert!(names.iter().all(|name| calls.contains(&format!("    holds(\"{name}\");"))));
    let Ok(manifest) = fs::read_to_string(fuzz_folder().join("Cargo.toml")) else {
        return eprintln!("skipped: the fuzzers are not in this package");
    };
    let programs: Vec<_> = manifest.lines().filter_map(|line| line.strip_prefix("path = \"targets/")).collect();
    assert_eq!(programs, names.map(|name| format!("{name}.rs\"")));
    for name in names {
        let program = fs::read_to_string(fuzz_folder().join("targets").join(format!("{name}.rs"))).unwrap();
        assert!(program.contains(&format!("tunnelwarden::fuzzing::{name}(bytes)")), "{program}");
        let seeds = seeds(name);
        assert!(!seeds.is_empty() && seeds.iter().all(|seed| seed.len() <= 1 << 15), "{name}");
    }
    let folders = fs::read_dir(fuzz_folder().join("seeds")).unwrap();
    assert_eq!(folders.count(), names.len(), "seeds of no target");
}
