#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tunnelwarden::fuzzing::policy_against_naive(bytes));
