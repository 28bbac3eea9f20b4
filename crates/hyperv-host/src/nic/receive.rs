//! The guest's receive buffer, cut into pieces that are lent to the guest and come back by completion.

use vmbus::memory::{OutOfRange, PageList, SharedMemory};

/// Pieces at the start of the buffer that carry control messages, so that data cannot starve them.
pub const CONTROL_PIECES: u32 = 16;

/// Bytes in front of the frame in each piece: the RNDIS header and what may follow it.
pub(super) const FRAME_OFFSET: usize = 256;

/// Bytes at the end of each piece that are never used. Old Windows guests write behind a full frame.
const PIECE_TAIL: usize = 36;

/// What a piece carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Control,
    Data,
}

/// A piece of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub index: u32,
    pub offset: usize,
}

/// A completion for a packet that is not outstanding: never sent, or completed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotOutstanding;

const NONE: u32 = u32::MAX;

/// The buffer with its free pieces and those on loan. The packet that lends pieces is named by the first of them.
#[derive(Debug)]
pub(super) struct ReceiveBuffer {
    pages: PageList,
    pub id: u16,
    pub piece_size: usize,
    free_control: Vec<u32>,
    free_data: Vec<u32>,
    /// Per piece: the next piece of the same packet, or `NONE`.
    next: Vec<u32>,
    /// Per piece: it is the first of an outstanding packet.
    head: Vec<bool>,
    lent: usize,
}

impl ReceiveBuffer {
    /// Cuts a buffer for frames of `frame` bytes. `None` if it is too small for one data piece behind the control pieces.
    pub(super) fn new(pages: PageList, id: u16, frame: usize) -> Option<Self> {
        let piece_size = Self::piece_size_for(frame);
        let count = u32::try_from(pages.size() / piece_size).ok()?;
        if count <= CONTROL_PIECES {
            return None;
        }
        Some(Self {
            pages,
            id,
            piece_size,
            // Taken from the end: low pieces first.
            free_control: (0..CONTROL_PIECES).rev().collect(),
            free_data: (CONTROL_PIECES..count).rev().collect(),
            next: vec![NONE; count as usize],
            head: vec![false; count as usize],
            lent: 0,
        })
    }

    /// Bytes of a piece for frames of `frame` bytes.
    pub(super) const fn piece_size_for(frame: usize) -> usize {
        FRAME_OFFSET + frame + PIECE_TAIL
    }

    pub(super) fn pieces(&self) -> u32 {
        self.next.len() as u32
    }

    /// Longest frame that fits a piece.
    pub(super) fn frame_room(&self) -> usize {
        self.piece_size - FRAME_OFFSET - PIECE_TAIL
    }

    pub(super) fn free(&self, purpose: Use) -> usize {
        match purpose {
            Use::Control => self.free_control.len(),
            Use::Data => self.free_data.len(),
        }
    }

    /// Pieces that the guest holds.
    pub(super) fn lent(&self) -> usize {
        self.lent
    }

    /// Takes a free piece.
    pub(super) fn take(&mut self, purpose: Use) -> Option<Piece> {
        let list = match purpose {
            Use::Control => &mut self.free_control,
            Use::Data => &mut self.free_data,
        };
        let index = list.pop()?;
        self.lent += 1;
        Some(Piece { index, offset: index as usize * self.piece_size })
    }

    /// Gives back a piece that was never sent.
    pub(super) fn put_back(&mut self, piece: Piece) {
        self.lent -= 1;
        if piece.index < CONTROL_PIECES {
            self.free_control.push(piece.index);
        } else {
            self.free_data.push(piece.index);
        }
    }

    /// Notes that `pieces` went out in one packet; its transaction id. Never 0, which looks like "no id".
    pub(super) fn send(&mut self, pieces: &[Piece]) -> u64 {
        let mut next = NONE;
        for piece in pieces.iter().rev() {
            self.next[piece.index as usize] = next;
            next = piece.index;
        }
        if let Some(first) = pieces.first() {
            self.head[first.index as usize] = true;
        }
        Self::transaction(pieces)
    }

    /// The transaction id of a packet with these pieces.
    pub(super) fn transaction(pieces: &[Piece]) -> u64 {
        pieces.first().map_or(0, |first| u64::from(first.index) + 1)
    }

    /// The guest completed a packet: all its pieces are free again. Returns how many.
    pub(super) fn complete(&mut self, transaction: u64) -> Result<u32, NotOutstanding> {
        let index = transaction.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        let head = index.and_then(|index| self.head.get_mut(index));
        let (Some(head), Some(mut index)) = (head, index) else { return Err(NotOutstanding) };
        if !std::mem::take(head) {
            return Err(NotOutstanding);
        }
        let mut freed = 0;
        loop {
            let next = std::mem::replace(&mut self.next[index], NONE);
            self.put_back(Piece { index: index as u32, offset: 0 });
            freed += 1;
            if next == NONE {
                return Ok(freed);
            }
            index = next as usize;
        }
    }

    /// Writes into a piece.
    pub(super) fn write(&self, piece: Piece, at: usize, data: &[u8]) -> Result<(), OutOfRange> {
        self.pages.write(piece.offset + at, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbus::Pfn;
    use vmbus::memory::SharedPages;

    fn buffer(pages: u64) -> Option<ReceiveBuffer> {
        let frames: Vec<_> = (0..pages).map(Pfn).collect();
        ReceiveBuffer::new(PageList::new([SharedPages::from_heap(&frames)]), 0xcafe, 1514)
    }

    #[test]
    fn pieces_are_as_large_as_on_a_real_host() {
        let buffer = buffer(64).unwrap();
        assert_eq!(buffer.piece_size, 1806);
        assert_eq!(buffer.frame_room(), 1514);
        assert_eq!(buffer.pieces() as usize, 64 * 4096 / 1806);
    }

    #[test]
    fn a_buffer_without_room_for_data_is_refused() {
        assert!(buffer(7).is_none());
        assert!(buffer(8).is_some());
    }

    #[test]
    fn data_never_takes_control_pieces() {
        let mut buffer = buffer(8).unwrap();
        while let Some(piece) = buffer.take(Use::Data) {
            assert!(piece.index >= CONTROL_PIECES);
        }
        assert_eq!(buffer.free(Use::Control), CONTROL_PIECES as usize);
        assert_eq!(buffer.take(Use::Control).map(|piece| piece.index), Some(0));
    }

    #[test]
    fn one_completion_frees_all_pieces_of_a_packet_once() {
        let mut buffer = buffer(64).unwrap();
        let free = buffer.free(Use::Data);
        let pieces: Vec<_> = (0..5).map(|_| buffer.take(Use::Data).unwrap()).collect();
        let other = [buffer.take(Use::Data).unwrap()];
        let id = buffer.send(&pieces);
        let other = buffer.send(&other);
        assert_eq!(buffer.lent(), 6);
        assert_eq!(buffer.complete(id), Ok(5));
        assert_eq!(buffer.complete(id), Err(NotOutstanding), "twice");
        assert_eq!(buffer.complete(id + 1), Err(NotOutstanding), "not the first piece");
        for id in [0, 1, 1000, u64::MAX] {
            assert_eq!(buffer.complete(id), Err(NotOutstanding));
        }
        assert_eq!(buffer.complete(other), Ok(1));
        assert_eq!((buffer.free(Use::Data), buffer.lent()), (free, 0));
    }
}
