//! Messages to the guest that wait for room in the ring.

use std::collections::VecDeque;

use vmbus::packet::Outgoing;
use vmbus::ring::{RingError, SendError};

use crate::bus::HostChannel;

#[derive(Debug)]
enum Waiting {
    InBand { transaction_id: u64, completion: bool, payload: Vec<u8> },
    Completion { transaction_id: u64, payload: Vec<u8> },
}

impl Waiting {
    fn outgoing(&self) -> Outgoing<'_> {
        match self {
            Self::InBand { transaction_id, completion, payload } => Outgoing::InBand {
                transaction_id: *transaction_id,
                completion: *completion,
                payload,
            },
            Self::Completion { transaction_id, payload } => {
                Outgoing::Completion { transaction_id: *transaction_id, payload }
            }
        }
    }
}

/// Messages in the order in which the guest is to see them. While one waits, the service reads no further requests, so
/// the queue stays short: the answers to one request and what the host says of itself.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Waiting>,
    /// Times a message had to wait.
    pub full: u64,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Stages a completion, or queues it.
    pub(super) fn complete(
        &mut self,
        channel: &mut HostChannel,
        transaction_id: u64,
        payload: &[u8],
    ) -> Result<(), SendError> {
        if self.try_stage(channel, &Outgoing::Completion { transaction_id, payload })? {
            return Ok(());
        }
        self.waiting.push_back(Waiting::Completion { transaction_id, payload: payload.into() });
        Ok(())
    }

    /// Stages a message, or queues it.
    pub(super) fn send(
        &mut self,
        channel: &mut HostChannel,
        transaction_id: u64,
        completion: bool,
        payload: &[u8],
    ) -> Result<(), SendError> {
        if self.try_stage(channel, &Outgoing::InBand { transaction_id, completion, payload })? {
            return Ok(());
        }
        let payload = payload.into();
        self.waiting.push_back(Waiting::InBand { transaction_id, completion, payload });
        Ok(())
    }

    fn try_stage(
        &mut self,
        channel: &mut HostChannel,
        out: &Outgoing<'_>,
    ) -> Result<bool, SendError> {
        if !self.waiting.is_empty() {
            return Ok(false);
        }
        match channel.stage(out) {
            Ok(()) => Ok(true),
            Err(SendError::Full { .. }) => {
                self.full += 1;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Stages what fits. True if nothing waits any more; otherwise the guest was asked to ring when there is room.
    pub(super) fn flush(&mut self, channel: &mut HostChannel) -> Result<bool, SendError> {
        while let Some(first) = self.waiting.front() {
            match channel.stage(&first.outgoing()) {
                Ok(()) => {
                    self.waiting.pop_front();
                }
                Err(SendError::Full { need }) => {
                    if !channel.request_space(need).map_err(SendError::Ring)? {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Whether a packet of `len` bytes fits, asking the guest to ring if not.
    pub(super) fn room(channel: &mut HostChannel, len: usize) -> Result<bool, RingError> {
        if channel.writable(len)? {
            return Ok(true);
        }
        channel.request_space(len)
    }
}
