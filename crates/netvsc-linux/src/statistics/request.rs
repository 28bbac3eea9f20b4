//! The one request of ethtool's old interface. The `unsafe` of driver statistics is here.

use std::ffi::c_void;

use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};

use crate::tap::TapName;

/// `SIOCETHTOOL` (linux/sockios.h).
const ETHTOOL: Opcode = 0x8946;
/// Bytes of an interface's name in a request, zeros behind it included.
const NAME_FIELD: usize = 16;

/// What a request points to: words, since every structure of ethtool begins with them and is as aligned.
#[derive(Debug)]
pub(super) struct Buffer(Box<[u64]>);

impl Buffer {
    /// Zeros, so many words of 32 bits.
    pub(super) fn new(words: usize) -> Self {
        Self(vec![0; words.div_ceil(2)].into())
    }

    /// Writes a word of 32 bits. There has to be one at that place.
    pub(super) fn put(&mut self, at: usize, word: u32) {
        let mut bytes = self.0[at / 2].to_ne_bytes();
        bytes[at % 2 * 4..][..4].copy_from_slice(&word.to_ne_bytes());
        self.0[at / 2] = u64::from_ne_bytes(bytes);
    }

    /// The word of 32 bits at a place; 0 behind the end.
    pub(super) fn get(&self, at: usize) -> u32 {
        let bytes = self.0.get(at / 2).copied().unwrap_or_default().to_ne_bytes();
        let half = bytes[at % 2 * 4..].first_chunk().copied();
        u32::from_ne_bytes(half.unwrap_or_default())
    }

    /// The text in so many bytes from a place on, up to its zero.
    pub(super) fn text(&self, from: usize, length: usize) -> String {
        let byte = |at: usize| self.get(at / 4).to_ne_bytes()[at % 4];
        let bytes: Vec<u8> =
            (from..from + length).map(byte).take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// What the kernel calls `struct ifreq`, with a pointer as its value.
#[repr(C)]
struct Request<'a> {
    name: [u8; NAME_FIELD],
    data: *mut c_void,
    /// The value is larger than a pointer.
    rest: [u64; 2],
    buffer: std::marker::PhantomData<&'a mut Buffer>,
}

// SAFETY: `SIOCETHTOOL` reads and writes one `struct ifreq`, which `Request` is at least as large as and laid out like, and what its
// pointer leads to. That is an exclusively borrowed buffer, alive for the call, of integers, so that whatever the kernel writes is a
// valid value. How much it writes follows from the command in the buffer, for which `ask`'s caller has made room. Nothing is read
// from the output pointer. `IS_MUTATING` is true because the kernel writes.
unsafe impl Ioctl for Request<'_> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        ETHTOOL
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self).cast()
    }

    // SAFETY: the pointer is not looked at.
    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
}

/// Asks the driver of an interface for what the command at the buffer's beginning says; the answer is in the buffer afterwards. There
/// has to be room in it for all that the kernel may write.
pub(super) fn ask(fd: BorrowedFd<'_>, name: &TapName, buffer: &mut Buffer) -> Result<(), Errno> {
    let mut field = [0; NAME_FIELD];
    for (to, from) in field.iter_mut().zip(name.as_str().bytes()) {
        *to = from;
    }
    let request = Request {
        name: field,
        data: buffer.0.as_mut_ptr().cast(),
        rest: [0; 2],
        buffer: std::marker::PhantomData,
    };
    // SAFETY: see the implementation of `Ioctl` above.
    unsafe { ioctl(fd, request) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_text_are_where_they_were_put() {
        let mut buffer = Buffer::new(5);
        for (at, word) in [(0, 1), (1, 0xffff_ffff), (4, 7)] {
            buffer.put(at, word);
        }
        assert_eq!([0, 1, 2, 3, 4, 99].map(|at| buffer.get(at)), [1, 0xffff_ffff, 0, 0, 7, 0]);
        buffer.put(2, u32::from_ne_bytes(*b"rx_p"));
        buffer.put(3, u32::from_ne_bytes([b'k', b't', 0, b'x']));
        assert_eq!(buffer.text(8, 8), "rx_pkt");
        assert_eq!(buffer.text(8, 3), "rx_");
    }
}
