//! Transfer pages and frames that lie.

use netvsc::nvsp::MessageType;
use netvsc::rndis::packet::{PACKET_HEADER, PpiType, WORD_PPI};
use vmbus::memory::OutOfRange;
use vmbus::packet::TransferRange;

use super::{Faults, Moment, NicFault, put};
use crate::nic::batch::Batch;
use crate::nic::receive::{FRAME_OFFSET, Piece, ReceiveBuffer, Use};

/// Number of a buffer that no guest has.
const NO_BUFFER: u16 = 0x7777;

/// What carries the frames, as far as it lies.
#[derive(Debug)]
pub(in crate::nic) struct Carrier {
    pub pageset: u16,
    pub message: Vec<u8>,
}

impl Faults {
    /// Spoils a batch that is about to be sent from a queue, and what carries it; `None` to send it as it is.
    pub(in crate::nic) fn data(
        &mut self,
        batch: &mut Batch,
        buffer: &mut ReceiveBuffer,
        queue: u16,
        message: &[u8],
    ) -> Result<Option<Carrier>, OutOfRange> {
        let Some(fault) = self.take(Moment::Data) else { return Ok(None) };
        let mut carrier = Carrier { pageset: buffer.id, message: message.to_vec() };
        let (Some(piece), Some(range)) = (batch.pieces.first().copied(), batch.ranges.first_mut())
        else {
            return Ok(Some(carrier));
        };
        let all = buffer.pieces() * buffer.piece_size as u32;
        match fault {
            NicFault::RangeOutside => range.byte_offset = all,
            NicFault::RangeTooLong => range.byte_count = buffer.piece_size as u32 + 1,
            NicFault::RangeEmpty => range.byte_count = 0,
            NicFault::RangeTwice => {
                let twice = *range;
                batch.ranges.push(twice);
            }
            NicFault::RangesOverlap => {
                let TransferRange { byte_count, byte_offset } = *range;
                batch.ranges.push(TransferRange { byte_count, byte_offset: byte_offset + 8 });
            }
            NicFault::BufferUnknown => carrier.pageset = NO_BUFFER,
            NicFault::CarrierWrong => {
                put(&mut carrier.message, 0, &[MessageType::SEND_RNDIS_PACKET_COMPLETE.0]);
            }
            NicFault::CarrierEmpty => carrier.message.clear(),
            NicFault::ChannelTypeUnknown => put(&mut carrier.message, 4, &[9]),
            NicFault::FrameRunt => range.byte_count = (FRAME_OFFSET + 13) as u32,
            NicFault::PartsEndless => endless(batch, buffer, queue)?,
            _ => {}
        }
        let len = batch.ranges.first().map_or(0, |range| range.byte_count);
        for (at, word) in header_lies(fault, len) {
            buffer.write(piece, at, &word.to_le_bytes())?;
        }
        Ok(Some(carrier))
    }
}

/// Words of the header of a message of `len` bytes that lie, each with its place.
fn header_lies(fault: NicFault, len: u32) -> Vec<(usize, u32)> {
    /// Where the first entry of per-packet information is.
    const ENTRY: usize = PACKET_HEADER;
    const LIST: [(usize, u32); 2] = [(28, PACKET_HEADER as u32 - 8), (32, WORD_PPI as u32)];
    let entry = |words: [u32; 4]| {
        let words = words.into_iter().enumerate().map(|(at, word)| (ENTRY + 4 * at, word));
        LIST.into_iter().chain(words).collect()
    };
    let part = |flags: u32| entry([16, PpiType::PACKET_ID.0, 12, 1 | flags << 8]);
    match fault {
        NicFault::FrameLengthLies => vec![(4, 43)],
        NicFault::FrameOffsetLies => vec![(8, len)],
        NicFault::FrameInHeader => vec![(8, 8)],
        NicFault::FrameEndLies => vec![(12, len)],
        NicFault::FrameEmpty => vec![(12, 0)],
        NicFault::FrameRunt => vec![(12, 13)],
        NicFault::FrameOutOfBand => vec![(16, 36), (20, 4), (24, 1)],
        NicFault::FrameTypeUnknown => vec![(0, 0x7777)],
        NicFault::InfoOutside => vec![(28, len), (32, 16)],
        NicFault::InfoTooLong => vec![(28, 36), (32, u32::MAX)],
        NicFault::InfoEndless => entry([0, 0, 12, 0]),
        NicFault::InfoEntryTooLong => entry([17, 0, 12, 0]),
        NicFault::InfoDataOutside => entry([16, 0, 16, 0]),
        NicFault::PartWithoutFirst => part(1 | 4),
        NicFault::PartWithoutLast => part(1 | 2),
        NicFault::PartsEndless => part(1),
        _ => Vec::new(),
    }
}

/// Repeats the first frame in every piece that the queue may take, each time as a part from the middle of a segment.
fn endless(batch: &mut Batch, buffer: &mut ReceiveBuffer, queue: u16) -> Result<(), OutOfRange> {
    /// As many as there is room for in any ring.
    const MOST: usize = 100;
    let Some(range) = batch.ranges.first().copied() else { return Ok(()) };
    let first = Piece { index: 0, offset: range.byte_offset as usize };
    let mut bytes = vec![0; range.byte_count as usize];
    buffer.read(first, &mut bytes)?;
    for (at, word) in header_lies(NicFault::PartsEndless, range.byte_count) {
        put(&mut bytes, at, &[word]);
    }
    while batch.ranges.len() < MOST
        && let Some(piece) = buffer.take(Use::Data, queue)
    {
        buffer.write(piece, 0, &bytes)?;
        batch.pieces.push(piece);
        batch.ranges.push(TransferRange { byte_offset: piece.offset as u32, ..range });
    }
    Ok(())
}
