//! See [`netvsc_fuzz::vmbus_guest`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| netvsc_fuzz::vmbus_guest(input));
