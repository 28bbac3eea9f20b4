//! Bugs put in on purpose, so that one can see whether a simulation finds them. Only with the feature `seeded-bugs`.
//!
//! Where a bug sits, the code asks `seeded!("its-name")`, which without the feature is the constant `false`. With it, one bug
//! at a time is in the whole process, the one that the program has [chosen](choose).

use core::sync::atomic::{AtomicU32, Ordering};

/// The number of the bug that is in; 0 for none.
static CHOSEN: AtomicU32 = AtomicU32::new(0);

/// The number of a name (FNV-1a), so that asking costs one comparison.
#[must_use]
pub const fn number(name: &str) -> u32 {
    let bytes = name.as_bytes();
    let (mut number, mut at) = (0x811c_9dc5_u32, 0);
    while at < bytes.len() {
        number = (number ^ bytes[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    number
}

/// Puts the bug with this name in, or takes the one that is in out. No bug may be looked for by another thread meanwhile.
pub fn choose(name: Option<&str>) {
    CHOSEN.store(name.map_or(0, number), Ordering::SeqCst);
}

/// Whether the bug with this number is in.
#[must_use]
#[inline]
pub fn is(number: u32) -> bool {
    CHOSEN.load(Ordering::Relaxed) == number
}
