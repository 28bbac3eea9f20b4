//! The channel, and what waits for room in it.

use alloc::collections::VecDeque;

use vmbus::channel::{Channel, Doorbell};
use vmbus::memory::SharedPages;
use vmbus::packet::Outgoing;
use vmbus::ring::SendError;

use super::types::NicError;
use crate::nvsp::{Encoded, Status, rndis_complete};

/// Completions that can wait at least. Nothing more is read while more do than can.
const LEAST_OWED: usize = 1024;
/// Completions beside those of transfer pages that can wait.
const OTHER_OWED: usize = 256;
/// Completions that can wait at most, whatever the host says about its pieces.
const MOST_OWED: usize = 65_536;

/// A completion for the host.
#[derive(Clone, Copy, Debug)]
struct Owed {
    transaction_id: u64,
    /// For transfer pages; other packets are completed empty.
    status: Option<Status>,
}

/// A message for the host.
#[derive(Clone, Copy, Debug)]
struct Queued {
    transaction_id: u64,
    completion: bool,
    message: Encoded,
}

/// What became of a packet for the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// In the ring, to be seen with the next commit.
    Yes,
    /// This many bytes are not free in the ring.
    NoRoom(usize),
}

#[derive(Debug)]
pub(super) struct Link<D> {
    pub(super) channel: Channel<SharedPages, D>,
    owed: VecDeque<Owed>,
    most_owed: usize,
    queue: VecDeque<Queued>,
    next_id: u64,
}

/// Transaction ids of protocol messages have this bit; those of send sections do not.
const PROTOCOL_ID: u64 = 1 << 63;

impl<D: Doorbell> Link<D> {
    pub(super) fn new(channel: Channel<SharedPages, D>) -> Self {
        Self {
            channel,
            owed: VecDeque::with_capacity(LEAST_OWED),
            most_owed: LEAST_OWED,
            queue: VecDeque::new(),
            next_id: PROTOCOL_ID,
        }
    }

    /// The host has so many pieces of receive buffer to fill. So many completions must be able to wait: a host that waits
    /// for a guest to read, while the guest waits for the host to read, would wait for ever.
    pub(super) fn expect_pieces(&mut self, pieces: usize) {
        let most = pieces.saturating_add(OTHER_OWED).clamp(LEAST_OWED, MOST_OWED);
        self.owed.reserve(most.saturating_sub(self.owed.len()));
        self.most_owed = most;
    }

    /// An id for a protocol message.
    pub(super) fn next_id(&mut self) -> u64 {
        self.next_id = PROTOCOL_ID | self.next_id.wrapping_add(1);
        self.next_id
    }

    /// Puts one packet into the ring.
    #[inline]
    pub(super) fn stage(&mut self, packet: &Outgoing<'_>) -> Result<Sent, NicError> {
        match self.channel.stage(packet) {
            Ok(()) => Ok(Sent::Yes),
            Err(SendError::Full { need }) => Ok(Sent::NoRoom(need)),
            Err(SendError::TooLarge { len, most }) => Err(NicError::RingTooSmall { len, most }),
            Err(SendError::Ring(error)) => Err(error.into()),
        }
    }

    /// Queues a message that wants a completion, and returns its id.
    pub(super) fn ask(&mut self, message: Encoded) -> u64 {
        let transaction_id = self.next_id();
        self.queue.push_back(Queued { transaction_id, completion: true, message });
        transaction_id
    }

    /// Queues a message that nobody answers.
    pub(super) fn tell(&mut self, message: Encoded) {
        let transaction_id = self.next_id();
        self.queue.push_back(Queued { transaction_id, completion: false, message });
    }

    /// Whether one more completion can be owed.
    #[inline]
    pub(super) fn can_owe(&self) -> bool {
        self.owed.len() < self.most_owed
    }

    /// Whether everything queued is in the ring.
    pub(super) fn is_empty(&self) -> bool {
        self.owed.is_empty() && self.queue.is_empty()
    }

    /// Completes a packet of the host: now, or when there is room. False if it has to wait.
    #[inline]
    pub(super) fn complete(
        &mut self,
        transaction_id: u64,
        status: Option<Status>,
    ) -> Result<bool, NicError> {
        let owed = Owed { transaction_id, status };
        if transaction_id % 8 == 7 && seeded!("never-complete") {
            return Ok(true);
        }
        if seeded!("complete-twice") {
            self.owed.push_back(owed);
        }
        if self.owed.is_empty() && self.stage_completion(owed)? == Sent::Yes {
            return Ok(true);
        }
        self.owed.push_back(owed);
        Ok(false)
    }

    #[inline]
    fn stage_completion(&mut self, owed: Owed) -> Result<Sent, NicError> {
        let Owed { transaction_id, status } = owed;
        let bytes = status.map(rndis_complete);
        let payload = bytes.as_ref().map_or(&[][..], |bytes| &bytes[..]);
        self.stage(&Outgoing::Completion { transaction_id, payload })
    }

    /// Puts what waits into the ring, completions first.
    pub(super) fn pump(&mut self) -> Result<Sent, NicError> {
        while let Some(owed) = self.owed.front().copied() {
            if let full @ Sent::NoRoom(_) = self.stage_completion(owed)? {
                return Ok(full);
            }
            self.owed.pop_front();
        }
        while let Some(Queued { transaction_id, completion, message }) = self.queue.front().copied()
        {
            let packet = Outgoing::InBand { transaction_id, completion, payload: &message };
            if let full @ Sent::NoRoom(_) = self.stage(&packet)? {
                return Ok(full);
            }
            self.queue.pop_front();
        }
        Ok(Sent::Yes)
    }
}
