//! GPADLs: descriptions of guest memory that travel as one header message and as many body messages as it takes.
//!
//! [`GpadlMessages`] writes them, one message at a time; [`GpadlAssembler`] puts them together again on the host's side
//! and believes nothing. The data is a stream of 64-bit words: per range its byte count and offset, then its page frame
//! numbers. It is cut at any word, also inside a range.

use alloc::vec::Vec;

use zerocopy::little_endian::{U16, U32};

use crate::memory::PAGE_SIZE;
use crate::message::{GpadlBody, GpadlHeader, Payload};
use crate::packet::GpaRange;
use crate::{ChannelId, GpadlId, Pfn};

/// Words of range data in the header message: a range's lengths and 26 frames.
const HEADER_WORDS: usize = 27;
/// Words of range data in a body message.
const BODY_WORDS: usize = 28;
/// The most bytes of range data in one GPADL that are whole words; the length is a 16-bit number.
pub const MAX_RANGE_BYTES: usize = 65_528;
/// The most pages in a GPADL of one range: just under 32 MiB.
pub const MAX_PAGES: usize = MAX_RANGE_BYTES / 8 - 1;

/// Why memory cannot be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The id is 0, which is no id.
    #[error("a GPADL's id is not 0")]
    ZeroId,
    /// Nothing to describe.
    #[error("a GPADL has at least one range")]
    NoRanges,
    /// A range without bytes, or one that starts behind its first page.
    #[error("range {range} has {byte_count} bytes from offset {byte_offset} of its first page")]
    BadRange {
        /// Number of the range.
        range: usize,
        /// Its bytes.
        byte_count: u32,
        /// Its offset.
        byte_offset: u32,
    },
    /// The frames of a range are not as many as it touches.
    #[error("range {range} touches {need} pages and has {got} page frames")]
    FrameCount {
        /// Number of the range.
        range: usize,
        /// Pages touched.
        need: usize,
        /// Frames given.
        got: usize,
    },
    /// More than one GPADL can describe.
    #[error("a GPADL has at most 65528 bytes of range data, these ranges need {bytes}")]
    TooLarge {
        /// Bytes of range data.
        bytes: usize,
    },
}

/// Number of pages that bytes from an offset touch.
fn pages_touched(byte_offset: u32, byte_count: u32) -> usize {
    let bytes = u64::from(byte_offset) + u64::from(byte_count);
    // At most 2^21 pages.
    bytes.div_ceil(PAGE_SIZE as u64) as usize
}

/// The messages that make a GPADL, in order: an iterator, so that nobody has to hold all of them.
#[derive(Clone, Debug)]
pub struct GpadlMessages<'a> {
    channel: ChannelId,
    gpadl: GpadlId,
    ranges: &'a [GpaRange<'a>],
    bytes: u16,
    /// Next word: its range, and its place in there.
    range: usize,
    word: usize,
    header_sent: bool,
}

impl<'a> GpadlMessages<'a> {
    /// Describes `ranges` as memory of `channel`.
    ///
    /// # Errors
    /// [`EncodeError`] if that is no legal GPADL.
    pub fn new(
        channel: ChannelId,
        gpadl: GpadlId,
        ranges: &'a [GpaRange<'a>],
    ) -> Result<Self, EncodeError> {
        if gpadl.0 == 0 {
            return Err(EncodeError::ZeroId);
        }
        if ranges.is_empty() {
            return Err(EncodeError::NoRanges);
        }
        let mut bytes = 0_usize;
        for (index, range) in ranges.iter().enumerate() {
            let GpaRange { byte_count, byte_offset, frames } = *range;
            if byte_count == 0 || byte_offset >= PAGE_SIZE as u32 {
                return Err(EncodeError::BadRange { range: index, byte_count, byte_offset });
            }
            let need = pages_touched(byte_offset, byte_count);
            if frames.len() != need {
                let got = frames.len();
                return Err(EncodeError::FrameCount { range: index, need, got });
            }
            bytes = bytes.saturating_add(8 + 8 * need);
        }
        match u16::try_from(bytes) {
            Ok(bytes) => {
                Ok(Self { channel, gpadl, ranges, bytes, range: 0, word: 0, header_sent: false })
            }
            Err(_) => Err(EncodeError::TooLarge { bytes }),
        }
    }

    fn next_word(&mut self) -> Option<u64> {
        let range = self.ranges.get(self.range)?;
        let value = match self.word.checked_sub(1) {
            None => u64::from(range.byte_count) | u64::from(range.byte_offset) << 32,
            Some(frame) => range.frames.get(frame)?.0,
        };
        self.word += 1;
        if self.word > range.frames.len() {
            self.range += 1;
            self.word = 0;
        }
        Some(value)
    }

    fn fill(&mut self, mut payload: Payload, words: usize) -> Payload {
        for _ in 0..words {
            let Some(word) = self.next_word() else { break };
            payload = payload.with(&word.to_le_bytes());
        }
        payload
    }
}

impl Iterator for GpadlMessages<'_> {
    type Item = Payload;

    fn next(&mut self) -> Option<Payload> {
        if self.range >= self.ranges.len() {
            return None;
        }
        if self.header_sent {
            let body = GpadlBody { number: U32::new(0), gpadl: U32::new(self.gpadl.0) };
            return Some(self.fill(Payload::new(&body), BODY_WORDS));
        }
        self.header_sent = true;
        let header = GpadlHeader {
            channel: U32::new(self.channel.0),
            gpadl: U32::new(self.gpadl.0),
            range_bytes: U16::new(self.bytes),
            // Each range has 16 bytes at least, so their number fits where their bytes do.
            range_count: U16::new(self.ranges.len() as u16),
        };
        Some(self.fill(Payload::new(&header), HEADER_WORDS))
    }
}

/// Why messages do not describe memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The id is 0, which is no id.
    #[error("a GPADL's id is not 0")]
    ZeroId,
    /// No ranges.
    #[error("a GPADL has at least one range")]
    NoRanges,
    /// The announced length is not a number of words.
    #[error("range data comes in words of 8 bytes, {bytes} bytes are announced")]
    Ragged {
        /// Bytes announced.
        bytes: usize,
    },
    /// The announced length cannot hold the announced ranges.
    #[error("{ranges} ranges need {} bytes at least, {bytes} are announced", 16 * usize::from(*.ranges))]
    TooShort {
        /// Ranges announced.
        ranges: u16,
        /// Bytes announced.
        bytes: usize,
    },
    /// A message carries a part of a word.
    #[error("a message carries {len} bytes of range data, which are not whole words")]
    SplitWord {
        /// Bytes carried.
        len: usize,
    },
    /// A message carries no range data though some is missing.
    #[error("a message carries no range data and {missing} bytes are missing")]
    Empty {
        /// Bytes missing.
        missing: usize,
    },
    /// More data than announced.
    #[error("a message carries {len} bytes of range data where {missing} are missing")]
    Overflow {
        /// Bytes carried.
        len: usize,
        /// Bytes missing.
        missing: usize,
    },
    /// A range without bytes, or one that starts behind its first page.
    #[error("range {range} has {byte_count} bytes from offset {byte_offset} of its first page")]
    BadRange {
        /// Number of the range.
        range: u16,
        /// Its bytes.
        byte_count: u32,
        /// Its offset.
        byte_offset: u32,
    },
    /// A range has more pages than there are frames.
    #[error("range {range} touches {need} pages and {got} page frames are left")]
    FrameCount {
        /// Number of the range.
        range: u16,
        /// Pages touched.
        need: usize,
        /// Frames left.
        got: usize,
    },
    /// Data behind the last range.
    #[error("{words} words lie behind the last range")]
    LeftOver {
        /// Words left.
        words: usize,
    },
}

/// A range of guest memory as described by a GPADL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Bytes of the range.
    pub byte_count: u32,
    /// Offset of its first byte in the first page; less than a page.
    pub byte_offset: u32,
    /// Its pages: as many as offset and count together touch.
    pub frames: Vec<Pfn>,
}

impl Range {
    /// Whether the range is whole pages.
    #[must_use]
    pub fn is_whole_pages(&self) -> bool {
        self.byte_offset == 0 && self.byte_count.is_multiple_of(PAGE_SIZE as u32)
    }
}

/// Puts the messages of one GPADL together.
#[derive(Clone, Debug)]
pub struct GpadlAssembler {
    ranges: u16,
    bytes: usize,
    words: Vec<u64>,
}

impl GpadlAssembler {
    /// Starts with a header message and the range data behind it.
    ///
    /// # Errors
    /// [`DecodeError`]
    pub fn new(header: &GpadlHeader, data: &[u8]) -> Result<Self, DecodeError> {
        let bytes = usize::from(header.range_bytes.get());
        let ranges = header.range_count.get();
        if header.gpadl.get() == 0 {
            return Err(DecodeError::ZeroId);
        }
        if ranges == 0 {
            return Err(DecodeError::NoRanges);
        }
        if !bytes.is_multiple_of(8) {
            return Err(DecodeError::Ragged { bytes });
        }
        if bytes < 16 * usize::from(ranges) {
            return Err(DecodeError::TooShort { ranges, bytes });
        }
        let mut assembler = Self { ranges, bytes, words: Vec::new() };
        assembler.add(data)?;
        Ok(assembler)
    }

    /// Takes the range data of a message.
    ///
    /// # Errors
    /// [`DecodeError`]; the GPADL cannot be completed then.
    pub fn add(&mut self, data: &[u8]) -> Result<(), DecodeError> {
        let (len, missing) = (data.len(), self.missing());
        if len > missing {
            return Err(DecodeError::Overflow { len, missing });
        }
        if !len.is_multiple_of(8) {
            return Err(DecodeError::SplitWord { len });
        }
        if len == 0 {
            return Err(DecodeError::Empty { missing });
        }
        let (words, _) = data.as_chunks::<8>();
        self.words.extend(words.iter().map(|word| u64::from_le_bytes(*word)));
        Ok(())
    }

    /// Bytes of range data that have not come yet.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.bytes.saturating_sub(8 * self.words.len())
    }

    /// The ranges, once nothing is missing; `None` before.
    ///
    /// # Errors
    /// [`DecodeError`] if the data is not exactly the announced ranges.
    pub fn ranges(&self) -> Result<Option<Vec<Range>>, DecodeError> {
        if self.missing() > 0 {
            return Ok(None);
        }
        let mut rest = self.words.as_slice();
        let mut ranges = Vec::new();
        for range in 0..self.ranges {
            let Some((lengths, frames)) = rest.split_first() else {
                return Err(DecodeError::FrameCount { range, need: 1, got: 0 });
            };
            let (byte_count, byte_offset) = (*lengths as u32, (*lengths >> 32) as u32);
            if byte_count == 0 || byte_offset >= PAGE_SIZE as u32 {
                return Err(DecodeError::BadRange { range, byte_count, byte_offset });
            }
            let need = pages_touched(byte_offset, byte_count);
            let Some((frames, after)) = frames.split_at_checked(need) else {
                return Err(DecodeError::FrameCount { range, need, got: frames.len() });
            };
            let frames = frames.iter().map(|frame| Pfn(*frame)).collect();
            ranges.push(Range { byte_count, byte_offset, frames });
            rest = after;
        }
        if rest.is_empty() {
            Ok(Some(ranges))
        } else {
            Err(DecodeError::LeftOver { words: rest.len() })
        }
    }
}

#[cfg(test)]
#[path = "gpadl_tests.rs"]
mod tests;
