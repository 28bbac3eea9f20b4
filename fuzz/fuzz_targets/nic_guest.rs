//! See [`netvsc_fuzz::nic_guest`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| netvsc_fuzz::nic_guest(input));
