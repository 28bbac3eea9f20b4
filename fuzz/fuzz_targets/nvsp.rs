//! See [`netvsc_fuzz::nvsp`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| netvsc_fuzz::nvsp(input));
