//! What lies between a NIC and its host: every packet passes through here.

use std::collections::VecDeque;
use std::time::Duration;

use hyperv_host::nic::{GuestView, NicService, NicServiceConfig, NicServiceEvent};
use hyperv_host::switch::{PortConfig, SwitchPort, WireConfig};
use netvsc::nic::SharedBuffer;
use netvsc::{MacAddress, Path, nvsp};
use vmbus::channel::{Channel, SignalFlag};
use vmbus::memory::{PageList, SharedMemory, SharedPages};
use vmbus::packet::{Outgoing, PacketKind, TransferRange};
use vmbus::{GpadlId, Instant, Pfn, Serial};

use crate::script::Script;

/// Number of the receive buffer in packets.
const PAGESET: u16 = 0xcafe;

/// A packet on its way to the guest.
#[derive(Clone, Debug)]
struct Parcel {
    kind: Kind,
    id: u64,
    completion: bool,
    payload: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Kind {
    Message,
    Completion,
    Transfer { pageset: u16, ranges: Vec<TransferRange> },
}

pub(super) struct Between {
    service: NicService,
    port: SwitchPort,
    /// The end that the service's guest would have.
    inner: Channel,
    /// The end that the guest's host would have.
    outer: Channel,
    /// The ring in which the guest reads.
    down: SharedPages,
    receive: SharedBuffer,
    send: SharedBuffer,
    /// Whether anything was not as the service wanted it.
    pub(super) tampered: bool,
    /// For the guest, not delivered yet.
    parcels: VecDeque<Parcel>,
    /// Kept back, to come late.
    late: Vec<Parcel>,
    /// Packets delivered that ask for a completion, and completions that came.
    asked: (u64, u64),
}

impl Between {
    pub(super) fn new(
        (up, down): (SharedPages, SharedPages),
        (outer_tx, outer_rx): (SharedPages, SharedPages),
        [receive, send]: [SharedBuffer; 2],
    ) -> Self {
        let mut port = SwitchPort::new(PortConfig {
            to_peer: WireConfig::instant(),
            from_peer: WireConfig::instant(),
            ..PortConfig::default()
        });
        let mut service = NicService::new(NicServiceConfig::new(MacAddress([0, 21, 93, 0, 0, 1])));
        let inner = Channel::from_parts(up.clone(), down.clone(), SignalFlag::new());
        let list = |pages| PageList::new([pages]);
        let host = Channel::from_parts(list(down), list(up), SignalFlag::new());
        service.open(host.expect("empty rings"), &mut port);
        Self {
            service,
            port,
            inner: inner.expect("empty rings"),
            down: outer_tx.clone(),
            outer: Channel::from_parts(outer_tx, outer_rx, SignalFlag::new()).expect("empty rings"),
            receive,
            send,
            tampered: false,
            parcels: VecDeque::new(),
            late: Vec::new(),
            asked: (0, 0),
        }
    }

    /// Bytes of the receive buffer.
    pub(super) fn receive_bytes(&self) -> usize {
        self.receive.pages.size()
    }

    /// Hands on what the guest sent; all of it must be legal. `false` if there was nothing.
    pub(super) fn hand_up(&mut self) -> bool {
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
                    assert!(message.is_err() || self.tampered || message == Ok(complete));
                    self.asked.1 += 1;
                    assert!(self.asked.1 <= self.asked.0, "more completions than packets");
                    Outgoing::Completion { transaction_id, payload }
                }
                other => panic!("{other:?}"),
            };
            // The service may have given up, and then reads no more.
            let _ = self.inner.try_send(&outgoing);
        }
        let _ = self.outer.commit_read();
        any
    }

    /// Lets the service work, and takes what it sends.
    pub(super) fn serve(&mut self, now: Instant) {
        let (receive, send) = (self.receive.clone(), self.send.clone());
        let gpadl = |id: GpadlId| {
            let buffer = [&receive, &send].into_iter().find(|buffer| buffer.gpadl == id)?;
            Some(PageList::new([buffer.pages.clone()]))
        };
        let view = GuestView { gpadl: &gpadl, pages: &|_: &[Pfn]| None };
        self.service.poll(now, view, &mut self.port);
        while let Some(event) = self.service.poll_event() {
            let failed = matches!(event, NicServiceEvent::Failed(_));
            assert!(self.tampered || !failed, "{event:?}");
        }
        while self.port.peer_receive(now).is_some() {}
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
    fn deliver(&mut self, parcel: &Parcel) -> bool {
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

    /// Something that an honest host does, or that no host should.
    pub(super) fn step(&mut self, what: u8, script: &mut Script<'_>, now: Instant) {
        match what {
            9 => {
                let len = 14 + usize::from(script.byte()) * 6;
                let mut frame = vec![script.byte(); len.min(1514)];
                frame[..6].copy_from_slice(&[0, 21, 93, 0, 0, 1]);
                // A busy switch takes no more.
                let _ = self.port.peer_transmit(&frame, now);
            }
            10 => match script.byte() & 7 {
                0 => self.service.vf_added(Serial(script.byte().into()), now),
                1 => self.service.vf_lost(),
                2 => self.service.set_link(false),
                3 => self.service.set_link(true),
                4 => self.service.set_speed(u64::from(script.byte()) << 24, now),
                5 => self.service.change_network(now),
                6 => self.service.send_notice(Path::Vf),
                _ => self.service.send_notice(Path::Synthetic),
            },
            11 => drop(self.hand_up()),
            12 => self.serve(now),
            13 => {
                self.hand_down();
            }
            14 => self.serve(now + Duration::from_secs(3)),
            _ => {
                self.tampered = true;
                self.tamper(what, script);
            }
        }
    }

    fn tamper(&mut self, what: u8, script: &mut Script<'_>) {
        match what {
            15 => drop(self.parcels.pop_front()),
            16 => self.late.extend(self.parcels.pop_front()),
            17 => {
                if let Some(parcel) = self.late.pop() {
                    self.deliver(&parcel);
                }
            }
            18 => {
                if let Some(parcel) = self.parcels.pop_front() {
                    self.deliver(&parcel);
                    self.deliver(&parcel);
                }
            }
            19..22 => self.with_next(|parcel| {
                let (at, flip) = (usize::from(script.byte()), script.byte());
                if let Some(at) = at.checked_rem(parcel.payload.len()) {
                    parcel.payload[at] ^= flip;
                }
            }),
            22 => self.with_next(|parcel| {
                parcel.payload.resize(script.byte().into(), 0x5a);
            }),
            23 => self.with_next(|parcel| match script.byte() & 3 {
                0 => parcel.id ^= 1 << (script.byte() & 63),
                1 => parcel.kind = Kind::Message,
                2 => parcel.kind = Kind::Completion,
                _ => parcel.completion = !parcel.completion,
            }),
            24 | 25 => self.lie(script),
            // What the service wrote into the receive buffer is not what the guest finds there.
            26 | 27 => {
                let at = usize::from(script.u16()) % self.receive_bytes();
                let bytes = script.take(1 + at % 4);
                let at = at.min(self.receive_bytes() - bytes.len());
                self.receive.pages.write(at, bytes).expect("inside");
            }
            28 => self.made_up(script),
            29 => {
                let at = (usize::from(script.u16()) % self.down.size()) & !3;
                self.down.store_u32(at, script.u32()).expect("inside");
            }
            _ => {
                let id = u64::from(script.byte());
                let payload = script.counted().to_vec();
                let completion = id & 1 == 0;
                self.deliver(&Parcel { kind: Kind::Message, id, completion, payload });
            }
        }
    }

    /// Delivers the next packet with something changed.
    fn with_next(&mut self, change: impl FnOnce(&mut Parcel)) {
        if let Some(mut parcel) = self.parcels.pop_front() {
            change(&mut parcel);
            self.deliver(&parcel);
        }
    }

    /// Ranges that are not what the service meant.
    fn lie(&mut self, script: &mut Script<'_>) {
        let at =
            self.parcels.iter().position(|parcel| matches!(parcel.kind, Kind::Transfer { .. }));
        let Some(parcel) = at.and_then(|at| self.parcels.get_mut(at)) else { return };
        let Kind::Transfer { pageset, ranges } = &mut parcel.kind else { return };
        let which = usize::from(script.byte()) % ranges.len();
        match script.below(6) {
            0 => ranges[which].byte_offset = script.u32(),
            1 => ranges[which].byte_count = script.u32(),
            2 => ranges[which].byte_count = script.byte().into(),
            3 => ranges[which].byte_offset = u32::from(script.byte()) * 256,
            4 => ranges.extend_from_within(..),
            _ => *pageset = script.u16(),
        }
        ranges.truncate(64);
    }

    /// A frame or a control message that the service never sent: ranges of the receive buffer as it is.
    fn made_up(&mut self, script: &mut Script<'_>) {
        let flags = script.byte();
        let bytes = script.counted();
        let offset = u32::from(flags >> 4) * 2048;
        let at = (offset as usize).min(self.receive_bytes() - 256);
        self.receive.pages.write(at, bytes).expect("inside");
        let byte_count = if flags & 4 == 0 { bytes.len() as u32 } else { 2000 };
        let ranges =
            vec![TransferRange { byte_count, byte_offset: offset }; 1 + usize::from(flags & 3)];
        let mut payload: Vec<u8> = [107, u32::from(flags >> 3 & 1), u32::MAX, 0]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        payload.resize(40, 0);
        let kind = Kind::Transfer { pageset: PAGESET, ranges };
        self.deliver(&Parcel { kind, id: u64::from(flags), completion: true, payload });
    }
}
