//! One channel of a NIC, cut in two: what comes out of one half is put into the other.

use std::collections::VecDeque;

use netvsc::nvsp;
use vmbus::Pfn;
use vmbus::channel::{Channel, SignalFlag};
use vmbus::memory::SharedPages;
use vmbus::packet::{GpaRange, GpaRanges, Outgoing, PacketKind, TransferRange};

/// A packet on its way to the guest.
#[derive(Clone, Debug)]
pub(super) struct Parcel {
    pub(super) kind: Kind,
    pub(super) id: u64,
    pub(super) completion: bool,
    pub(super) payload: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Message,
    Completion,
    Transfer { pageset: u16, ranges: Vec<TransferRange> },
}

pub(super) struct Lane {
    /// The end that the service's guest would have.
    inner: Channel,
    /// The end that the guest's host would have.
    outer: Channel,
    /// The ring in which the guest reads.
    pub(super) down: SharedPages,
    /// For the guest, not delivered yet.
    pub(super) parcels: VecDeque<Parcel>,
    /// Kept back, to come late.
    pub(super) late: Vec<Parcel>,
    /// Packets delivered that ask for a completion, and completions that came.
    asked: (u64, u64),
    /// Packets of the guest that named its memory by page.
    pub(super) gpa_direct: u64,
}

/// The two rings of a channel: guest to host and back.
pub(super) type Rings = (SharedPages, SharedPages);

impl Lane {
    /// `near` are the rings of the guest, `far` those that the service's guest would have.
    pub(super) fn new(near: Rings, far: Rings) -> Self {
        let channel = |(tx, rx)| Channel::from_parts(tx, rx, SignalFlag::new());
        let (up, down) = near;
        Self {
            inner: channel(far).expect("empty rings"),
            down: down.clone(),
            outer: channel((down, up)).expect("empty rings"),
            parcels: VecDeque::new(),
            late: Vec::new(),
            asked: (0, 0),
            gpa_direct: 0,
        }
    }

    /// Hands on what the guest sent; all of it must be legal. `false` if there was nothing.
    pub(super) fn hand_up(&mut self, tampered: bool) -> bool {
        let mut buffer = vec![0; 8192];
        let mut any = false;
        // The guest writes what it likes, but a ring that was tampered with may be of no use.
        while let Ok(Some(packet)) = self.outer.receive(&mut buffer) {
            any = true;
            let message = nvsp::GuestMessage::decode(packet.payload);
            let (transaction_id, payload) = (packet.transaction_id, packet.payload);
            let outgoing = match packet.kind {
                PacketKind::InBand => {
                    message.expect("a message of a guest");
                    let completion = packet.completion_requested;
                    Outgoing::InBand { transaction_id, completion, payload }
                }
                PacketKind::Completion => {
                    let complete =
                        nvsp::GuestMessage::RndisPacketComplete { status: nvsp::Status::SUCCESS };
                    assert!(payload.is_empty() || message.is_ok(), "{message:?}");
                    assert!(message.is_err() || tampered || message == Ok(complete));
                    self.asked.1 += 1;
                    assert!(self.asked.1 <= self.asked.0, "more completions than packets");
                    Outgoing::Completion { transaction_id, payload }
                }
                PacketKind::GpaDirect(ranges) => {
                    message.expect("a message of a guest");
                    self.gpa_direct += 1;
                    forward(&mut self.inner, transaction_id, &ranges, payload);
                    continue;
                }
                other @ PacketKind::TransferPages { .. } => panic!("{other:?}"),
            };
            // The service may have given up, and then reads no more.
            let _ = self.inner.try_send(&outgoing);
        }
        let _ = self.outer.commit_read();
        any
    }

    /// Takes what the service sends.
    pub(super) fn collect(&mut self) {
        let mut buffer = vec![0; 8192];
        while let Ok(Some(packet)) = self.inner.receive(&mut buffer) {
            let kind = match packet.kind {
                PacketKind::InBand => Kind::Message,
                PacketKind::Completion => Kind::Completion,
                PacketKind::TransferPages { pageset, ranges } => {
                    Kind::Transfer { pageset, ranges: ranges.iter().collect() }
                }
                PacketKind::GpaDirect(_) => panic!("hosts send no GPA-direct packets"),
            };
            self.parcels.push_back(Parcel {
                kind,
                id: packet.transaction_id,
                completion: packet.completion_requested,
                payload: packet.payload.to_vec(),
            });
        }
        let _ = self.inner.arm();
    }

    /// Delivers everything as it is. `false` if there was nothing.
    pub(super) fn hand_down(&mut self) -> bool {
        let mut any = false;
        while let Some(parcel) = self.parcels.pop_front() {
            if !self.deliver(&parcel) {
                self.parcels.push_front(parcel);
                break;
            }
            any = true;
        }
        any
    }

    /// `false` if there is no room.
    pub(super) fn deliver(&mut self, parcel: &Parcel) -> bool {
        let (transaction_id, payload) = (parcel.id, &parcel.payload[..]);
        let asks = match &parcel.kind {
            Kind::Completion => false,
            Kind::Message => parcel.completion,
            Kind::Transfer { .. } => true,
        };
        let outgoing = match &parcel.kind {
            Kind::Message => {
                Outgoing::InBand { transaction_id, completion: parcel.completion, payload }
            }
            Kind::Completion => Outgoing::Completion { transaction_id, payload },
            Kind::Transfer { pageset, ranges } => {
                Outgoing::TransferPages { transaction_id, pageset: *pageset, ranges, payload }
            }
        };
        let sent = self.outer.try_send(&outgoing).is_ok();
        self.asked.0 += u64::from(sent && asks);
        sent
    }

    /// Delivers the next packet with something changed.
    pub(super) fn with_next(&mut self, change: impl FnOnce(&mut Parcel)) {
        if let Some(mut parcel) = self.parcels.pop_front() {
            change(&mut parcel);
            self.deliver(&parcel);
        }
    }
}

/// The same ranges in another ring.
fn forward(to: &mut Channel, transaction_id: u64, ranges: &GpaRanges<'_>, payload: &[u8]) {
    let pages: Vec<Vec<Pfn>> = ranges.iter().map(|range| range.frames().collect()).collect();
    let ranges: Vec<_> = ranges
        .iter()
        .zip(&pages)
        .map(|(range, frames)| GpaRange {
            byte_count: range.byte_count,
            byte_offset: range.byte_offset,
            frames,
        })
        .collect();
    let _ = to.try_send(&Outgoing::GpaDirect { transaction_id, ranges: &ranges, payload });
}
