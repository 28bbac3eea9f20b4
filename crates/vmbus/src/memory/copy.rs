//! Copies between private memory and memory that a peer may change meanwhile, and the barrier between an index and a flag.

use core::sync::atomic::{AtomicU64, Ordering};

/// Copies `data` into as many shared words as it takes, and fills what remains of the last one with zeros. Nothing is
/// copied if there are fewer words than that.
///
/// The peer may see the bytes in any order.
#[inline(always)]
pub fn copy_in(words: &[AtomicU64], data: &[u8]) {
    if words.len() < words_for(data.len()) {
        return;
    }
    if !data.len().is_multiple_of(8)
        && let Some(last) = words.get(data.len() / 8)
    {
        last.store(last_word(data).to_le(), Ordering::Relaxed);
    }
    // SAFETY: `data` is a slice, so it is valid for reads of its length. The words are at least as many bytes by the check
    // above, and atomics may be written through a shared reference. They do not overlap: nobody has a plain `&[u8]` of shared
    // words.
    unsafe { bulk::store(data.as_ptr(), words.as_ptr().cast_mut().cast(), data.len()) };
}

/// Fills `out` from shared words. Nothing is copied if there are not that many.
#[inline(always)]
pub fn copy_out(words: &[AtomicU64], out: &mut [u8]) {
    if words.len() < words_for(out.len()) {
        return;
    }
    // SAFETY: the words are valid for reads of `out.len()` bytes by the check above, and `out` for writes, since it is borrowed
    // mutably; for the same reason they do not overlap.
    unsafe { bulk::load(words.as_ptr().cast(), out.as_mut_ptr(), out.len()) };
}

/// Words that `len` bytes take; `len` is that of a slice. Shorter in instructions than `div_ceil`.
#[inline(always)]
pub(crate) const fn words_for(len: usize) -> usize {
    (len + 7) >> 3
}

/// The last one to seven bytes of `data`, those that fill no word, as a little-endian number.
#[inline(never)]
fn last_word(data: &[u8]) -> u64 {
    let tail = data.len() % 8;
    if tail == 0 {
        return 0;
    }
    match data.last_chunk::<8>() {
        Some(last) => u64::from_le_bytes(*last) >> (64 - 8 * tail),
        None => data.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    }
}

/// A full barrier: what was stored before is visible before anything behind is loaded.
///
/// `mfence`, which the compiler makes of a sequentially consistent fence, costs many times what a locked
/// operation on the stack does (20 ns against 2.3 ns on Zen 3), and orders memory that is written back to caches no better.
#[inline]
pub(crate) fn full_barrier() {
    #[cfg(all(target_arch = "x86_64", not(miri), not(loom)))]
    {
        // A place of its own: whatever else the locked operation hits is slow to be read afterwards.
        let mut spot = core::mem::MaybeUninit::<u32>::uninit();
        // SAFETY: the instruction reads and writes four bytes of `spot`, which is as long, is aligned, lives to the end of this
        // block and is never read by the program, so that it does not matter that it has no value yet. Flags are not
        // claimed to be preserved, and `nostack` holds: nothing is pushed. Without `nomem` the compiler may move no
        // access to memory across, which is what a barrier is for.
        unsafe {
            core::arch::asm!(
                "lock or dword ptr [{spot}], 0",
                spot = in(reg) spot.as_mut_ptr(),
                options(nostack),
            );
        }
    }
    #[cfg(all(loom, test))]
    loom::sync::atomic::fence(Ordering::SeqCst);
    #[cfg(not(any(all(target_arch = "x86_64", not(miri), not(loom)), all(loom, test))))]
    core::sync::atomic::fence(Ordering::SeqCst);
}

/// Copies of any length. Rust has no atomic access wider than a word, and the compiler may not join atomic accesses; the
/// moves below are invisible to it, so that memory which a peer changes meanwhile is no data race of the language.
#[cfg(all(target_arch = "x86_64", target_feature = "sse2", not(miri)))]
pub(super) mod bulk {
    use core::arch::asm;

    /// Copies `len` bytes out of shared memory.
    ///
    /// # Safety
    /// `shared` is valid for reads and `private` for writes of `len` bytes, and they do not overlap.
    #[inline(always)]
    pub(in super::super) unsafe fn load(shared: *const u8, private: *mut u8, len: usize) {
        // SAFETY: as the caller promises.
        unsafe { copy(shared, private, len) }
    }

    /// Copies `len` bytes into shared memory.
    ///
    /// # Safety
    /// `private` is valid for reads and `shared` for writes of `len` bytes, and they do not overlap.
    #[inline(always)]
    pub(in super::super) unsafe fn store(private: *const u8, shared: *mut u8, len: usize) {
        // SAFETY: as the caller promises.
        unsafe { copy(private, shared, len) }
    }

    /// A move at the front and one at the back, which overlap where the length is not twice the width. Both are loaded before
    /// either is stored.
    ///
    /// To be used in an unsafe block: for a width `w` the caller has `w <= len <= 2 * w`, so that both moves lie within the
    /// `len` bytes and every byte is moved, and the pointers are valid as for [`load`].
    macro_rules! ends {
        ($from:ident, $to:ident, $len:ident, $class:ident, $move:literal, $width:literal) => {
            asm!(
                concat!($move, " {a}, [{from}]"),
                concat!($move, " {b}, [{from} + {len} - ", $width, "]"),
                concat!($move, " [{to}], {a}"),
                concat!($move, " [{to} + {len} - ", $width, "], {b}"),
                from = in(reg) $from,
                to = in(reg) $to,
                len = in(reg) $len,
                a = out($class) _,
                b = out($class) _,
                options(nostack, preserves_flags),
            )
        };
    }

    /// Copies `len` bytes, of which one side is shared.
    ///
    /// # Safety
    /// `from` is valid for reads and `to` for writes of `len` bytes, and they do not overlap. No alignment is asked for.
    #[inline(always)]
    unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: the pointers are valid for `len` bytes as the caller promises, and every branch stays within them: from 32 to
        // 64 bytes the first 32 and the last 32 are moved, from 16 to 31 the first 16 and the last 16, at 8 exactly those; the
        // functions called have the lengths that they ask for. All moves are unaligned ones. The assembly changes nothing
        // but the registers that it names as outputs and the bytes at `to`; no instruction in it touches flags or stack.
        unsafe {
            if len >= 32 {
                if len > 64 {
                    #[cfg(not(any(windows, target_os = "uefi")))]
                    if len > MEMCPY {
                        return library(from, to, len);
                    }
                    return long(from, to, len);
                }
                asm!(
                    "movups {a}, [{from}]",
                    "movups {b}, [{from} + 16]",
                    "movups {c}, [{from} + {len} - 32]",
                    "movups {d}, [{from} + {len} - 16]",
                    "movups [{to}], {a}",
                    "movups [{to} + 16], {b}",
                    "movups [{to} + {len} - 32], {c}",
                    "movups [{to} + {len} - 16], {d}",
                    from = in(reg) from,
                    to = in(reg) to,
                    len = in(reg) len,
                    a = out(xmm_reg) _,
                    b = out(xmm_reg) _,
                    c = out(xmm_reg) _,
                    d = out(xmm_reg) _,
                    options(nostack, preserves_flags),
                );
            } else if len >= 16 {
                ends!(from, to, len, xmm_reg, "movups", "16");
            } else if len == 8 {
                asm!(
                    "mov {a}, [{from}]",
                    "mov [{to}], {a}",
                    from = in(reg) from,
                    to = in(reg) to,
                    a = out(reg) _,
                    options(nostack, preserves_flags),
                );
            } else if len != 0 {
                short(from, to, len);
            }
        }
    }

    /// Copies 1 to 15 bytes.
    ///
    /// # Safety
    /// As for [`load`]; `len` is not 0.
    #[inline(never)]
    unsafe fn short(from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: from 8 to 15 bytes, the first 8 and the last 8 are moved. Below, byte `len - 1` is moved and `len` counted down
        // until it is 0, so that every index is below the length; it is not 0 at first, as the caller promises. The loop
        // changes `len`, `a` and flags, all of which it names or does not claim to preserve, and no stack.
        unsafe {
            if len >= 8 {
                ends!(from, to, len, reg, "mov", "8");
                return;
            }
            asm!(
                "2:",
                "mov {a}, byte ptr [{from} + {len} - 1]",
                "mov byte ptr [{to} + {len} - 1], {a}",
                "dec {len}",
                "jnz 2b",
                from = in(reg) from,
                to = in(reg) to,
                len = inout(reg) len => _,
                a = out(reg_byte) _,
                options(nostack),
            );
        }
    }

    /// Copies more than 64 bytes.
    ///
    /// # Safety
    /// As for [`load`]; `len` is more than 64.
    #[inline(never)]
    unsafe fn long(from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: the last 64 bytes are loaded first, which exist since `len` is more than 64. Then blocks of 64 are moved as long
        // as `to` is below `last`, the place 64 bytes before the end: a block that starts below `last` ends below the end, so
        // none leaves the `len` bytes; at least one is moved, and 0 < 64 < `len` makes that right. In the end the last 64 bytes
        // are stored at `last`, over what the blocks left or wrote there with the same values. Registers that change are
        // named as outputs; flags are not claimed to be preserved; nothing is pushed.
        unsafe {
            asm!(
                "movups {a}, [{from} + {len} - 64]",
                "movups {b}, [{from} + {len} - 48]",
                "movups {c}, [{from} + {len} - 32]",
                "movups {d}, [{from} + {len} - 16]",
                "lea {last}, [{to} + {len} - 64]",
                "2:",
                "movups {e}, [{from}]",
                "movups {f}, [{from} + 16]",
                "movups {g}, [{from} + 32]",
                "movups {h}, [{from} + 48]",
                "movups [{to}], {e}",
                "movups [{to} + 16], {f}",
                "movups [{to} + 32], {g}",
                "movups [{to} + 48], {h}",
                "add {from}, 64",
                "add {to}, 64",
                "cmp {to}, {last}",
                "jb 2b",
                "movups [{last}], {a}",
                "movups [{last} + 16], {b}",
                "movups [{last} + 32], {c}",
                "movups [{last} + 48], {d}",
                from = inout(reg) from => _,
                to = inout(reg) to => _,
                len = in(reg) len,
                last = out(reg) _,
                a = out(xmm_reg) _,
                b = out(xmm_reg) _,
                c = out(xmm_reg) _,
                d = out(xmm_reg) _,
                e = out(xmm_reg) _,
                f = out(xmm_reg) _,
                g = out(xmm_reg) _,
                h = out(xmm_reg) _,
                options(nostack),
            );
        }
    }

    /// From this many bytes on, the wider moves of the platform's `memcpy` are worth the call.
    #[cfg(not(any(windows, target_os = "uefi")))]
    const MEMCPY: usize = 128;

    /// Copies through the platform's `memcpy`, which every Rust program has and which knows the processor it runs on. The
    /// call stands in assembly so that the compiler cannot know what it does.
    ///
    /// # Safety
    /// As for [`load`].
    #[cfg(not(any(windows, target_os = "uefi")))]
    #[inline(always)]
    unsafe fn library(from: *const u8, to: *mut u8, len: usize) {
        unsafe extern "C" {
            fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8;
        }
        // SAFETY: `memcpy` has the contract of this function, and takes its arguments in these registers by the System V ABI,
        // which is what every x86-64 target but those excluded above uses. Without `nostack` the compiler leaves the stack
        // aligned and below the red zone for the call; `clobber_abi` names all that a callee may change, and the argument
        // registers are outputs. Memory may change, since `nomem` is not claimed.
        unsafe {
            asm!(
                "call {memcpy}",
                memcpy = sym memcpy,
                inout("rdi") to => _,
                inout("rsi") from => _,
                inout("rdx") len => _,
                clobber_abi("C"),
            );
        }
    }
}

/// Copies of any length, word by word.
#[cfg(not(all(target_arch = "x86_64", target_feature = "sse2", not(miri))))]
pub(super) mod bulk {
    use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

    /// Bytes before the first whole word of `len` bytes at `shared`, and bytes in whole words.
    fn parts(shared: *const u8, len: usize) -> (usize, usize) {
        let head = (shared.addr().wrapping_neg() % 8).min(len);
        (head, (len - head) & !7)
    }

    /// Copies `len` bytes out of shared memory.
    ///
    /// # Safety
    /// `shared` is valid for reads and `private` for writes of `len` bytes, and they do not overlap.
    #[inline(always)]
    pub(in super::super) unsafe fn load(shared: *const u8, private: *mut u8, len: usize) {
        let (head, body) = parts(shared, len);
        // SAFETY: `head + body <= len` by `parts`, so every offset is below `len`, for which the caller promises both sides.
        // From `head` on the shared side is aligned to 8 bytes, as an atomic word must be; the private side is accessed
        // without alignment. Shared bytes are reached by atomics only, and no word is wider than what is left.
        unsafe {
            let byte = |at: usize| {
                private.add(at).write((*shared.add(at).cast::<AtomicU8>()).load(Ordering::Relaxed));
            };
            (0..head).for_each(byte);
            for at in (head..head + body).step_by(8) {
                let word = (*shared.add(at).cast::<AtomicU64>()).load(Ordering::Relaxed);
                private.add(at).cast::<u64>().write_unaligned(word);
            }
            (head + body..len).for_each(byte);
        }
    }

    /// Copies `len` bytes into shared memory.
    ///
    /// # Safety
    /// `private` is valid for reads and `shared` for writes of `len` bytes, and they do not overlap.
    #[inline(always)]
    pub(in super::super) unsafe fn store(private: *const u8, shared: *mut u8, len: usize) {
        let (head, body) = parts(shared, len);
        // SAFETY: `head + body <= len` by `parts`, so every offset is below `len`, for which the caller promises both sides.
        // From `head` on the shared side is aligned to 8 bytes, as an atomic word must be; the private side is accessed
        // without alignment. Shared bytes are reached by atomics only, and no word is wider than what is left.
        unsafe {
            let byte = |at: usize| {
                (*shared.add(at).cast::<AtomicU8>())
                    .store(private.add(at).read(), Ordering::Relaxed);
            };
            (0..head).for_each(byte);
            for at in (head..head + body).step_by(8) {
                let word = private.add(at).cast::<u64>().read_unaligned();
                (*shared.add(at).cast::<AtomicU64>()).store(word, Ordering::Relaxed);
            }
            (head + body..len).for_each(byte);
        }
    }
}
