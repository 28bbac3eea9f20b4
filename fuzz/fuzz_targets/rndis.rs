//! See [`netvsc_fuzz::rndis`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| netvsc_fuzz::rndis(input));
