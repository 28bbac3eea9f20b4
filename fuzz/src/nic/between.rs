//! What lies between a NIC and its host: every packet passes through here.

use std::time::Duration;

use hyperv_host::memory::{GuestMemory, GuestRam};
use hyperv_host::nic::{GuestView, NicService, NicServiceConfig, NicServiceEvent};
use hyperv_host::switch::{PortConfig, SwitchPort, WireConfig};
use netvsc::nic::SharedBuffer;
use netvsc::{MacAddress, Path};
use vmbus::channel::{Channel, SignalFlag};
use vmbus::memory::{PageList, SharedMemory, SharedPages};
use vmbus::packet::TransferRange;
use vmbus::{GpadlId, Instant, Pfn, Serial};

use super::frames::{self, MAC, PEER};
use super::lane::{Kind, Lane, Parcel, Rings};
use crate::script::Script;

/// The longest that a NIC of this target puts on the wire.
const MOST_AT_PEER: usize = 9000 + 14 + 4;
/// Number of the receive buffer in packets.
const PAGESET: u16 = 0xcafe;

pub(super) struct Between {
    ram: GuestRam,
    service: NicService,
    port: SwitchPort,
    /// The primary channel and, behind it, sub-channels.
    lanes: Vec<Lane>,
    /// Which of them is meddled with next.
    turn: usize,
    receive: SharedBuffer,
    send: SharedBuffer,
    /// Where the stream that a peer sends has come to.
    sequence: u32,
    /// Whether anything was not as the service wanted it.
    pub(super) tampered: bool,
}

impl Between {
    pub(super) fn new(
        ram: &GuestRam,
        far: Rings,
        near: Rings,
        [receive, send]: [SharedBuffer; 2],
    ) -> Self {
        let mut port = SwitchPort::new(PortConfig {
            to_peer: WireConfig::instant(),
            from_peer: WireConfig::instant(),
            ..PortConfig::default()
        });
        let mut service = NicService::new(NicServiceConfig::new(MacAddress(MAC)));
        service.open(host_end(&far), &mut port);
        Self {
            ram: ram.clone(),
            service,
            port,
            lanes: vec![Lane::new(near, far)],
            turn: 0,
            receive,
            send,
            sequence: 0,
            tampered: false,
        }
    }

    /// A sub-channel is there.
    pub(super) fn open_queue(&mut self, number: u16, far: Rings, near: Rings) {
        self.service.open_queue(number, host_end(&far), &mut self.port);
        self.lanes.push(Lane::new(near, far));
    }

    /// Packets of the guest that named its memory by page.
    pub(super) fn gpa_direct(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.gpa_direct).sum()
    }

    /// Bytes of the receive buffer.
    pub(super) fn receive_bytes(&self) -> usize {
        self.receive.pages.size()
    }

    /// Hands on what the guest sent. `false` if there was nothing.
    pub(super) fn hand_up(&mut self) -> bool {
        let tampered = self.tampered;
        self.lanes.iter_mut().fold(false, |any, lane| lane.hand_up(tampered) | any)
    }

    /// Lets the service work, and takes what it sends.
    pub(super) fn serve(&mut self, now: Instant) {
        let (receive, send) = (self.receive.clone(), self.send.clone());
        let gpadl = |id: GpadlId| {
            let buffer = [&receive, &send].into_iter().find(|buffer| buffer.gpadl == id)?;
            Some(PageList::new([buffer.pages.clone()]))
        };
        let pages = |frames: &[Pfn]| self.ram.map(frames).ok();
        let view = GuestView { gpadl: &gpadl, pages: &pages };
        self.service.poll(now, view, &mut self.port);
        while let Some(event) = self.service.poll_event() {
            let failed = matches!(event, NicServiceEvent::Failed(_));
            assert!(self.tampered || !failed, "{event:?}");
        }
        while let Some(frame) = self.port.peer_receive(now) {
            assert!((14..=MOST_AT_PEER).contains(&frame.len()), "{} bytes", frame.len());
        }
        self.lanes.iter_mut().for_each(Lane::collect);
    }

    /// Delivers everything as it is. `false` if there was nothing.
    pub(super) fn hand_down(&mut self) -> bool {
        self.lanes.iter_mut().fold(false, |any, lane| lane.hand_down() | any)
    }

    /// The peer sends one frame or several.
    fn peer_sends(&mut self, script: &mut Script<'_>, now: Instant) {
        let (len, fill) = (14 + usize::from(script.byte()) * 6, script.byte());
        // A busy switch takes no more.
        match fill {
            // Segments of one stream, which a host may put together.
            0xe0..0xf0 => {
                for _ in 0..=fill & 3 {
                    let frame = frames::tcp(&PEER, &MAC, u16::from(fill >> 2), self.sequence, len);
                    self.sequence = self.sequence.wrapping_add((frame.len() - 54) as u32);
                    let _ = self.port.peer_transmit(&frame, now);
                }
            }
            0xf0.. => {
                let mut frame = frames::raw(&PEER, &MAC, len.min(1514), fill);
                frame.splice(12..12, [0x81, 0, fill & 15, 1]);
                let _ = self.port.peer_transmit(&frame, now);
            }
            _ => {
                let mut frame = vec![fill; len.min(1514)];
                frame[..6].copy_from_slice(&MAC);
                let _ = self.port.peer_transmit(&frame, now);
            }
        }
    }

    /// Something that an honest host does, or that no host should.
    pub(super) fn step(&mut self, what: u8, script: &mut Script<'_>, now: Instant) {
        match what {
            9 => self.peer_sends(script, now),
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
        self.turn = (self.turn + 1) % self.lanes.len();
        let lane = &mut self.lanes[self.turn];
        match what {
            15 => drop(lane.parcels.pop_front()),
            16 => lane.late.extend(lane.parcels.pop_front()),
            17 => {
                if let Some(parcel) = lane.late.pop() {
                    lane.deliver(&parcel);
                }
            }
            18 => {
                if let Some(parcel) = lane.parcels.pop_front() {
                    lane.deliver(&parcel);
                    lane.deliver(&parcel);
                }
            }
            19..22 => lane.with_next(|parcel| {
                let (at, flip) = (usize::from(script.byte()), script.byte());
                if let Some(at) = at.checked_rem(parcel.payload.len()) {
                    parcel.payload[at] ^= flip;
                }
            }),
            22 => lane.with_next(|parcel| {
                parcel.payload.resize(script.byte().into(), 0x5a);
            }),
            23 => lane.with_next(|parcel| match script.byte() & 3 {
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
                let at = (usize::from(script.u16()) % lane.down.size()) & !3;
                lane.down.store_u32(at, script.u32()).expect("inside");
            }
            _ => {
                let id = u64::from(script.byte());
                let payload = script.counted().to_vec();
                let completion = id & 1 == 0;
                lane.deliver(&Parcel { kind: Kind::Message, id, completion, payload });
            }
        }
    }

    /// Ranges that are not what the service meant.
    fn lie(&mut self, script: &mut Script<'_>) {
        let lane = &mut self.lanes[self.turn];
        let at =
            lane.parcels.iter().position(|parcel| matches!(parcel.kind, Kind::Transfer { .. }));
        let Some(parcel) = at.and_then(|at| lane.parcels.get_mut(at)) else { return };
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
        self.lanes[self.turn].deliver(&Parcel {
            kind,
            id: u64::from(flags),
            completion: true,
            payload,
        });
    }
}

/// The host's end of a channel whose guest has these rings.
fn host_end((up, down): &Rings) -> Channel<PageList, SignalFlag> {
    let list = |pages: &SharedPages| PageList::new([pages.clone()]);
    Channel::from_parts(list(down), list(up), SignalFlag::new()).expect("empty rings")
}
