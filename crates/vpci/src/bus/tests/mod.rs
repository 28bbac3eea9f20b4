//! A bus against a host that says exactly what a test tells it to.

extern crate std;

mod faults;
mod functions;
mod requests;
mod resources;
mod start;

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;
use vmbus::Pfn;
use vmbus::packet::{GpaRange, Outgoing, PacketKind};

use super::*;
use crate::message::{MessageError, Status, encode_relations};

const WINDOW: u64 = 0xf_e000_0000;
const START: Instant = Instant::ZERO;
const BAR0: u32 = 0xffff_000c;

/// The other end of the channel: it says what a test tells it to say.
struct Host {
    channel: Channel,
    to_host: SignalFlag,
    to_guest: SignalFlag,
}

/// A packet as the host got it.
#[derive(Debug, PartialEq)]
struct Got {
    kind: MessageType,
    id: u64,
    completion: bool,
    /// What stands behind the type.
    rest: Vec<u8>,
}

fn setup() -> (PciBus, Host) {
    let ring = |first: u64| SharedPages::from_heap(&[0, 1, 2, 3].map(|page| Pfn(first + page)));
    let (up, down) = (ring(0), ring(4));
    let (to_host, to_guest) = (SignalFlag::new(), SignalFlag::new());
    let guest = Channel::from_parts(up.clone(), down.clone(), to_host.clone()).unwrap();
    let host = Channel::from_parts(down, up, to_guest.clone()).unwrap();
    let bus = PciBus::new(guest, PciBusConfig::new(WINDOW), START);
    (bus, Host { channel: host, to_host, to_guest })
}

impl Host {
    fn receive(&mut self) -> Option<Got> {
        let mut buffer = vec![0; 8192];
        let packet = self.channel.receive(&mut buffer).unwrap()?;
        assert!(matches!(packet.kind, PacketKind::InBand));
        self.channel.commit_read().unwrap();
        let (kind, rest) = packet.payload.split_first_chunk().unwrap();
        Some(Got {
            kind: MessageType(u32::from_le_bytes(*kind)),
            id: packet.transaction_id,
            completion: packet.completion_requested,
            rest: rest.to_vec(),
        })
    }

    /// The next packet must be of this type; its id.
    #[track_caller]
    fn expect(&mut self, kind: MessageType) -> u64 {
        let got = self.receive().unwrap_or_else(|| panic!("{kind:?} was not sent"));
        assert_eq!(got.kind, kind);
        got.id
    }

    fn send(&mut self, payload: &[u8]) {
        self.channel
            .try_send(&Outgoing::InBand { transaction_id: 0, completion: false, payload })
            .unwrap();
    }

    fn say(&mut self, kind: MessageType, words: &[u32]) {
        let words = core::iter::once(&kind.0).chain(words);
        self.send(&words.flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
    }

    fn complete(&mut self, transaction_id: u64, words: &[u32]) {
        let payload: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.channel.try_send(&Outgoing::Completion { transaction_id, payload: &payload }).unwrap();
    }

    fn list(&mut self, functions: &[Description]) {
        self.send(&encode_relations(Version::V1_3, functions));
    }

    /// Answers requests for requirements and resources until there are no more.
    fn serve(&mut self, bus: &mut PciBus) {
        loop {
            bus.poll(START).unwrap();
            let Some(got) = self.receive() else { return };
            match got.kind {
                MessageType::QUERY_RESOURCE_REQUIREMENTS => {
                    self.complete(got.id, &[0, BAR0, 0, 0, 0, 0, 0]);
                }
                MessageType::ASSIGNED_RESOURCES2 => self.complete(got.id, &[0]),
                other => panic!("{other:?}"),
            }
        }
    }
}

fn function(slot: u32, serial: u32) -> Description {
    Description {
        slot: Slot::from_wire(slot).unwrap(),
        vendor: 0x15b3,
        device: 0x1018,
        revision: 0,
        class: 2,
        subclass: 0,
        prog_if: 0,
        subsystem_vendor: 0,
        subsystem: 0,
        serial: Serial(serial),
        numa_node: None,
    }
}

fn events(bus: &mut PciBus) -> Vec<Event> {
    core::iter::from_fn(|| bus.poll_event()).collect()
}

/// Only what happened to functions, in short.
fn moves(bus: &mut PciBus) -> Vec<(char, u32, u32)> {
    events(bus)
        .into_iter()
        .filter_map(|event| match event {
            Event::FunctionArrived(function) => Some(('+', function)),
            Event::FunctionLeft(function) => Some(('-', function)),
            _ => None,
        })
        .map(|(sign, function)| (sign, function.slot().to_wire(), function.serial().0))
        .collect()
}

fn arrived(bus: &mut PciBus) -> Vec<FunctionId> {
    events(bus)
        .into_iter()
        .filter_map(|event| match event {
            Event::FunctionArrived(function) => Some(function.id),
            _ => None,
        })
        .collect()
}

/// A bus that is on, with these functions; their arrival is still to be read.
fn running(functions: &[Description]) -> (PciBus, Host) {
    let (mut bus, mut host) = setup();
    bus.poll(START).unwrap();
    let id = host.expect(MessageType::QUERY_PROTOCOL_VERSION);
    host.complete(id, &[0, 0x1_0003]);
    bus.poll(START).unwrap();
    host.expect(MessageType::QUERY_BUS_RELATIONS);
    host.list(functions);
    bus.poll(START).unwrap();
    let id = host.expect(MessageType::FDO_D0_ENTRY);
    host.complete(id, &[0]);
    host.serve(&mut bus);
    (bus, host)
}
