//! See [`netvsc_fuzz::socket`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| netvsc_fuzz::socket(input));
