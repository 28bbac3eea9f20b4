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
    /// Per piece: the queue that has it, or had it last.
    owner: Vec<u16>,
    /// Data pieces on loan per queue.
    lent_to: Vec<usize>,
    /// Most data pieces that one queue may have on loan, so that a slow one does not starve the others.
    share: usize,
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
            owner: vec![0; count as usize],
            lent_to: vec![0],
            share: (count - CONTROL_PIECES) as usize,
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

    /// Divides the data pieces among this many queues.
    pub(super) fn divide(&mut self, queues: usize) {
        self.lent_to.resize(queues.max(self.lent_to.len()), 0);
        let data = self.next.len() - CONTROL_PIECES as usize;
        self.share = (data / queues.max(1)).max(1);
    }

    /// Data pieces that a queue may take.
    pub(super) fn available(&self, queue: u16) -> usize {
        let lent = self.lent_to.get(usize::from(queue)).copied().unwrap_or(usize::MAX);
        self.share.saturating_sub(lent).min(self.free_data.len())
    }

    /// Data pieces that a queue may have when none of them is on loan.
    pub(super) const fn share(&self) -> usize {
        self.share
    }

    /// Pieces that the guest holds.
    pub(super) fn lent(&self) -> usize {
        self.lent
    }

    /// Takes a free piece for a queue.
    pub(super) fn take(&mut self, purpose: Use, queue: u16) -> Option<Piece> {
        let index = match purpose {
            Use::Control => self.free_control.pop()?,
            Use::Data if self.available(queue) == 0 => return None,
            Use::Data => {
                let index = self.free_data.pop()?;
                self.lent_to[usize::from(queue)] += 1;
                index
            }
        };
        self.owner[index as usize] = queue;
        self.lent += 1;
        Some(Piece { index, offset: index as usize * self.piece_size })
    }

    /// Gives back a piece that was never sent.
    pub(super) fn put_back(&mut self, piece: Piece) {
        self.lent -= 1;
        if piece.index < CONTROL_PIECES {
            self.free_control.push(piece.index);
        } else {
            self.lent_to[usize::from(self.owner[piece.index as usize])] -= 1;
            self.free_data.push(piece.index);
        }
    }

    /// Notes that `pieces` of this queue went out in one packet; its transaction id. Never 0, which looks like "no id".
    pub(super) fn send(&mut self, pieces: &[Piece], queue: u16) -> u64 {
        let mut next = NONE;
        for piece in pieces.iter().rev() {
            self.next[piece.index as usize] = next;
            next = piece.index;
        }
        if let Some(first) = pieces.first() {
            self.head[first.index as usize] = true;
            debug_assert_eq!(self.owner[first.index as usize], queue);
        }
        Self::transaction(pieces)
    }

    /// The transaction id of a packet with these pieces.
    pub(super) fn transaction(pieces: &[Piece]) -> u64 {
        pieces.first().map_or(0, |first| u64::from(first.index) + 1)
    }

    /// The guest completed a packet of this queue: all its pieces are free again. Returns how many.
    pub(super) fn complete(&mut self, transaction: u64, queue: u16) -> Result<u32, NotOutstanding> {
        let index = transaction.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        let index = index.filter(|index| self.owner.get(*index) == Some(&queue));
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

    /// A queue is gone, and whatever it has on loan comes back without completion. Returns how many pieces.
    pub(super) fn reclaim(&mut self, queue: u16) -> u64 {
        let mut pieces = 0;
        for index in 0..self.head.len() {
            if self.head[index] && self.owner[index] == queue {
                let transaction = index as u64 + 1;
                pieces += u64::from(self.complete(transaction, queue).unwrap_or(0));
            }
        }
        pieces
    }

    /// Reads the start of a piece.
    pub(super) fn read(&self, piece: Piece, out: &mut [u8]) -> Result<(), OutOfRange> {
        self.pages.read(piece.offset, out)
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
        while let Some(piece) = buffer.take(Use::Data, 0) {
            assert!(piece.index >= CONTROL_PIECES);
        }
        assert_eq!(buffer.free_control.len(), CONTROL_PIECES as usize);
        assert_eq!(buffer.take(Use::Control, 0).map(|piece| piece.index), Some(0));
    }

    #[test]
    fn one_completion_frees_all_pieces_of_a_packet_once() {
        let mut buffer = buffer(64).unwrap();
        let free = buffer.free_data.len();
        let pieces: Vec<_> = (0..5).map(|_| buffer.take(Use::Data, 0).unwrap()).collect();
        let other = [buffer.take(Use::Data, 0).unwrap()];
        let id = buffer.send(&pieces, 0);
        let other = buffer.send(&other, 0);
        assert_eq!(buffer.lent(), 6);
        assert_eq!(buffer.complete(id, 0), Ok(5));
        assert_eq!(buffer.complete(id, 0), Err(NotOutstanding), "twice");
        assert_eq!(buffer.complete(id + 1, 0), Err(NotOutstanding), "not the first piece");
        for id in [0, 1, 1000, u64::MAX] {
            assert_eq!(buffer.complete(id, 0), Err(NotOutstanding));
        }
        assert_eq!(buffer.complete(other, 0), Ok(1));
        assert_eq!((buffer.free_data.len(), buffer.lent()), (free, 0));
    }
    #[test]
    fn queues_share_the_pieces_and_complete_their_own() {
        let mut buffer = buffer(64).unwrap();
        let all = buffer.free_data.len();
        buffer.divide(4);
        let mut first = Vec::new();
        while let Some(piece) = buffer.take(Use::Data, 1) {
            first.push(piece);
        }
        assert_eq!(first.len(), all / 4);
        assert_eq!([3, 1, 4].map(|queue| buffer.available(queue)), [all / 4, 0, 0]);
        let other = buffer.take(Use::Data, 2).unwrap();
        let (first, other) = (buffer.send(&first, 1), buffer.send(&[other], 2));
        assert_eq!(buffer.complete(first, 2), Err(NotOutstanding), "another channel's");
        assert_eq!(buffer.complete(other, 2), Ok(1));
        assert_eq!(buffer.reclaim(2), 0);
        assert_eq!(buffer.reclaim(1), (all / 4) as u64);
        assert_eq!((buffer.lent(), buffer.free_data.len()), (0, all));
    }
}
