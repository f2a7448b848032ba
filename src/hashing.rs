//! The hash of tables whose keys are strangers' choice: names, addresses. Who knew its seed could choose names that all
//! meet in one place, so the seed is the operating system's, another one for each table.
//!
//! It is foldhash with other seeds than its own, which come of addresses and the time and are not meant to keep anybody
//! out.

use std::{hash::BuildHasher, sync::LazyLock};

use foldhash::{
    SharedSeed,
    quality::{FoldHasher, SeedableRandomState},
};

/// One table's.
#[derive(Clone, Debug)]
pub struct Seeded(SeedableRandomState);

/// What the seeds of all tables have in common: too large to be in each.
static COMMON: LazyLock<SharedSeed> = LazyLock::new(|| SharedSeed::from_u64(rand::random()));

impl Default for Seeded {
    fn default() -> Self {
        Self(SeedableRandomState::with_seed(rand::random(), &COMMON))
    }
}

impl BuildHasher for Seeded {
    type Hasher = FoldHasher<'static>;

    #[inline]
    fn build_hasher(&self) -> Self::Hasher {
        self.0.build_hasher()
    }
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command};

    use super::*;

    const SHOW: &str = "TUNNELWARDEN_TEST_SHOWS_HASHES";

    #[test]
    fn no_two_tables_and_no_two_processes_hash_alike() {
        let [one, other] = [(); 2].map(|()| Seeded::default());
        assert_eq!(one.hash_one("a.example"), one.clone().hash_one("a.example"));
        assert_ne!(one.hash_one("a.example"), other.hash_one("a.example"));
        // With a table's own part as it is in every process, what they have in common has to tell them apart.
        let common = SeedableRandomState::with_seed(7, &COMMON).hash_one("a.example");
        let shown = format!("hashes: {} {common}", one.hash_one("a.example"));
        if env::var_os(SHOW).is_some() {
            println!("\n{shown}");
            return;
        }
        let again = || {
            let test = ["hashing::tests::no_two_tables_and_no_two_processes_hash_alike", "--exact", "--nocapture"];
            let output = Command::new(env::current_exe().unwrap()).args(test).env(SHOW, "1").output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().find(|line| line.starts_with("hashes: ")).expect(&text).to_owned()
        };
        let all = [shown, again(), again()];
        for column in 1..3 {
            let [first, second, third] = all.each_ref().map(|line| line.split(' ').nth(column).unwrap());
            assert!(first != second && second != third && third != first, "{all:?}");
        }
    }
}
