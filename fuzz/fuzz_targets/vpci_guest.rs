//! See [`netvsc_fuzz::vpci_guest`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| netvsc_fuzz::vpci_guest(input));
