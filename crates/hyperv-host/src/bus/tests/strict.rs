//! What the host says to guests that do not keep to the protocol.

use std::sync::Arc;

use vmbus::gpadl::{DecodeError, GpadlMessages};
use vmbus::memory::SharedPages;
use vmbus::message::*;
use vmbus::packet::GpaRange;
use vmbus::{ChannelId, ConnectionId, GpadlId, Instant, Pfn, Platform};
use zerocopy::little_endian::{U16, U32, U64};

use super::world::spec;
use crate::bus::{BusEvent, BusPolicy, BusServer, DeviceId, DeviceState, GuestError};
use crate::memory::{GuestRam, UnknownFrame};

const T0: Instant = Instant::ZERO;
const ONE: ChannelId = ChannelId(1);
const RING: GpadlId = GpadlId(0x10);

/// A host and whatever a test says as its guest.
struct Guest {
    ram: GuestRam,
    host: BusServer,
    device: DeviceId,
    connection: ConnectionId,
    memory: Vec<SharedPages>,
}

fn contact(version: Version) -> InitiateContact {
    InitiateContact {
        version: U32::new(version.0),
        target_vp: U32::new(0),
        target: U64::new(2),
        monitor_to_guest: U64::new(0),
        monitor_to_host: U64::new(0),
    }
}

impl Guest {
    fn new() -> Self {
        let ram = GuestRam::new(1, 256);
        let mut host = BusServer::new(BusPolicy::default(), Arc::new(ram.clone()));
        let device = host.offer(spec(1), T0);
        Self { ram, host, device, connection: CONTACT_CONNECTION, memory: Vec::new() }
    }

    /// With channel 1 offered.
    fn connected() -> Self {
        let mut guest = Self::new();
        guest.say(&contact(Version::V5_3)).unwrap();
        guest.connection = BusPolicy::default().connection;
        guest.say(&RequestOffers {}).unwrap();
        guest.answers();
        guest
    }

    fn say<B: Body>(&mut self, body: &B) -> Result<(), GuestError> {
        self.host.handle_message(self.connection, &Payload::new(body), T0)
    }

    fn share(&mut self, gpadl: GpadlId, pages: usize) -> Result<(), GuestError> {
        let memory = self.ram.allocate(pages).unwrap();
        let result = self.describe(gpadl, pages as u32 * 4096, 0, memory.frames());
        self.memory.push(memory);
        result
    }

    fn describe(
        &mut self,
        gpadl: GpadlId,
        byte_count: u32,
        byte_offset: u32,
        frames: &[Pfn],
    ) -> Result<(), GuestError> {
        let ranges = [GpaRange { byte_count, byte_offset, frames }];
        for message in GpadlMessages::new(ONE, gpadl, &ranges).unwrap() {
            self.host.handle_message(self.connection, &message, T0)?;
        }
        Ok(())
    }

    fn open(&mut self, gpadl: GpadlId, downstream: u32) -> Result<(), GuestError> {
        self.say(&OpenChannel {
            channel: U32::new(1),
            open_id: U32::new(9),
            ring_gpadl: U32::new(gpadl.0),
            target_vp: U32::new(0),
            downstream_page: U32::new(downstream),
            user_data: [0; 120],
        })
    }

    fn tear_down(&mut self, gpadl: GpadlId) -> Result<(), GuestError> {
        self.say(&GpadlTeardown { channel: U32::new(1), gpadl: U32::new(gpadl.0) })
    }

    /// Kinds and, where there is one, status of all answers.
    fn answers(&mut self) -> Vec<(MessageType, u32)> {
        let mut answers = Vec::new();
        while let Some(payload) = self.host.poll_message() {
            let (message, _) = Message::parse(&payload, Side::Host, Version::V6_0).unwrap();
            let status = match message {
                Message::GpadlCreated(body) => body.status.get(),
                Message::OpenResult(body) => body.status.get(),
                Message::ModifyChannelResponse(body) => body.status.get(),
                _ => 0,
            };
            answers.push((message.kind(), status));
        }
        answers
    }
}

const REFUSED: (MessageType, u32) = (MessageType::GPADL_CREATED, STATUS_REFUSED);
const NOT_OPENED: (MessageType, u32) = (MessageType::OPEN_CHANNEL_RESULT, STATUS_REFUSED);

#[test]
fn without_a_connection_only_contact_counts() {
    let mut guest = Guest::new();
    let error = |kind| Err(GuestError::NotConnected { kind });
    assert_eq!(guest.say(&RequestOffers {}), error(MessageType::REQUEST_OFFERS));
    assert_eq!(guest.say(&Unload {}), error(MessageType::UNLOAD));
    assert_eq!((guest.answers(), guest.host.counters().guest_errors), (vec![], 2));
}

#[test]
fn messages_come_over_their_connection() {
    let mut guest = Guest::new();
    let wrong = |kind, expected, got| {
        let (expected, got) = (ConnectionId(expected), ConnectionId(got));
        Err(GuestError::WrongConnection { kind, expected, got })
    };
    let kind = MessageType::INITIATE_CONTACT;
    assert_eq!(guest.say(&contact(Version::V4_1)), wrong(kind, 1, 4));
    guest.connection = LEGACY_CONNECTION;
    assert_eq!(guest.say(&contact(Version::V5_0)), wrong(kind, 4, 1));
    guest.connection = CONTACT_CONNECTION;
    guest.say(&contact(Version::V5_0)).unwrap();
    assert_eq!(guest.say(&RequestOffers {}), wrong(MessageType::REQUEST_OFFERS, 0x40, 4));
}

#[test]
fn unsound_contacts_are_accepted_and_not_connected() {
    let half = InitiateContact { monitor_to_host: U64::new(0x1000), ..contact(Version::V5_3) };
    let sint = InitiateContact { target: U64::new(3), ..contact(Version::V5_3) };
    for contact in [half, sint] {
        let mut guest = Guest::new();
        guest.say(&contact).unwrap();
        let answer = guest.host.poll_message().unwrap();
        assert_eq!(answer[8..10], [1, 2]);
        assert_eq!(guest.host.version(), None);
    }
}

#[test]
fn an_unknown_version_ends_the_connection_there_was() {
    let mut guest = Guest::connected();
    guest.connection = CONTACT_CONNECTION;
    guest.say(&contact(Version(0x0009_0000))).unwrap();
    let answer = guest.host.poll_message().unwrap();
    assert_eq!((answer.len(), answer[8]), (16, 0));
    assert_eq!(guest.host.version(), None);
    assert_eq!(guest.host.state(guest.device), Some(DeviceState::Waiting));
}

#[test]
fn malformed_and_unserved_messages_are_refused() {
    let mut guest = Guest::connected();
    let post =
        |guest: &mut Guest, bytes: &[u8]| guest.host.handle_message(guest.connection, bytes, T0);
    let error = post(&mut guest, &[0; 3]);
    assert_eq!(error, Err(GuestError::Message(MessageError::NoHeader { len: 3 })));
    let kind = MessageType::OPEN_RESERVED_CHANNEL;
    let mut bytes = [0; 28];
    bytes[0] = 18;
    assert_eq!(post(&mut guest, &bytes), Err(GuestError::NotServed { kind }));
    assert_eq!(guest.say(&RequestOffers {}), Err(GuestError::OffersRequestedAgain));
    assert_eq!(guest.answers(), []);
}

#[test]
fn messages_about_channels_that_do_not_exist_are_errors() {
    let mut guest = Guest::connected();
    let channel = U32::new(7);
    let unknown = |kind| Err(GuestError::UnknownChannel { kind, channel: ChannelId(7) });
    let close = guest.say(&CloseChannel { channel });
    assert_eq!(close, unknown(MessageType::CLOSE_CHANNEL));
    let release = guest.say(&ReleaseChannel { channel });
    assert_eq!(release, unknown(MessageType::RELID_RELEASED));
    let gpadl = U32::new(1);
    let teardown = guest.say(&GpadlTeardown { channel, gpadl });
    assert_eq!(teardown, unknown(MessageType::GPADL_TEARDOWN));
    assert_eq!(guest.answers(), []);
    let (range_bytes, range_count) = (U16::new(16), U16::new(1));
    let header = guest.say(&GpadlHeader { channel, gpadl, range_bytes, range_count });
    assert_eq!(header, unknown(MessageType::GPADL_HEADER));
    let modify = guest.say(&ModifyChannel { channel, target_vp: U32::new(0) });
    assert_eq!(modify, unknown(MessageType::MODIFY_CHANNEL));
    let refused = (MessageType::MODIFY_CHANNEL_RESPONSE, STATUS_REFUSED);
    assert_eq!(guest.answers(), [REFUSED, refused], "these have answers");
}

#[test]
fn descriptions_that_are_wrong_are_refused_once() {
    let mut guest = Guest::connected();
    let header = GpadlHeader {
        channel: U32::new(1),
        gpadl: U32::new(5),
        range_bytes: U16::new(64),
        range_count: U16::new(1),
    };
    let post = |guest: &mut Guest, payload: &Payload| {
        guest.host.handle_message(guest.connection, payload, T0)
    };
    let body = Payload::new(&GpadlBody { number: U32::new(0), gpadl: U32::new(5) });
    let gpadl = GpadlId(5);
    let bad = |error| Err(GuestError::BadGpadl { gpadl, error });
    let start = Payload::new(&header).with(&[0; 8]);
    let error = DecodeError::Empty { missing: 64 };
    assert_eq!(post(&mut guest, &Payload::new(&header)), bad(error));
    assert_eq!(post(&mut guest, &body.with(&[0; 8])), Ok(()), "was on its way");
    assert_eq!(guest.answers(), [REFUSED]);
    post(&mut guest, &start).unwrap();
    assert_eq!(post(&mut guest, &start), Err(GuestError::GpadlExists { gpadl }));
    assert_eq!(guest.answers(), [REFUSED]);
    assert_eq!(guest.tear_down(gpadl), Err(GuestError::TornDownEarly { gpadl }));
    let error = DecodeError::Overflow { len: 64, missing: 56 };
    assert_eq!(post(&mut guest, &body.with(&[0; 64])), bad(error));
    post(&mut guest, &start).unwrap();
    let error = DecodeError::BadRange { range: 0, byte_count: 0, byte_offset: 0 };
    assert_eq!(post(&mut guest, &body.with(&[0; 56])), bad(error));
    assert_eq!(guest.answers(), [REFUSED, REFUSED]);
    let stranger = Payload::new(&GpadlBody { number: U32::new(0), gpadl: U32::new(6) });
    let kind = MessageType::GPADL_BODY;
    let unknown = GuestError::UnknownGpadl { kind, gpadl: GpadlId(6) };
    assert_eq!(post(&mut guest, &stranger.with(&[0; 8])), Err(unknown));
}

#[test]
fn frames_that_are_no_memory_are_refused() {
    let mut guest = Guest::connected();
    let error = UnknownFrame { frame: Pfn(3) };
    let gpadl = RING;
    assert_eq!(
        guest.describe(gpadl, 4096, 0, &[Pfn(3)]),
        Err(GuestError::NotMemory { gpadl, error })
    );
    assert_eq!((guest.answers(), guest.host.gpadls()), (vec![REFUSED], 0));
}

#[test]
fn rings_must_be_whole_pages_of_the_channels_own_memory() {
    let mut guest = Guest::connected();
    let kind = MessageType::OPEN_CHANNEL;
    assert_eq!(guest.open(RING, 4), Err(GuestError::UnknownGpadl { kind, gpadl: RING }));
    guest.share(RING, 8).unwrap();
    for downstream_page in [0, 1, 7, 8, u32::MAX] {
        let bad = GuestError::BadRings { gpadl: RING, downstream_page };
        assert_eq!(guest.open(RING, downstream_page), Err(bad));
    }
    let odd = GpadlId(0x11);
    let memory = guest.ram.allocate(8).unwrap();
    guest.describe(odd, 8 * 4096 - 8, 8, memory.frames()).unwrap();
    let bad = GuestError::BadRings { gpadl: odd, downstream_page: 4 };
    assert_eq!(guest.open(odd, 4), Err(bad));
    assert!(guest.host.gpadl(guest.device, odd).is_none(), "not whole pages");
    let refusals = guest.answers().into_iter().filter(|answer| *answer == NOT_OPENED).count();
    assert_eq!(refusals, 7);
}

#[test]
fn rings_with_impossible_indices_are_not_opened() {
    use vmbus::memory::SharedMemory;
    let mut guest = Guest::connected();
    guest.share(RING, 8).unwrap();
    guest.memory[0].write(0, &3_u32.to_le_bytes()).unwrap();
    let error = guest.open(RING, 4).unwrap_err();
    assert!(matches!(error, GuestError::Ring { channel: ONE, .. }), "{error}");
    assert_eq!(guest.answers().last(), Some(&NOT_OPENED));
}

#[test]
fn channels_open_and_close_in_turn() {
    let mut guest = Guest::connected();
    let wrong = |kind, state| Err(GuestError::WrongState { kind, channel: ONE, state });
    let close = CloseChannel { channel: U32::new(1) };
    let release = ReleaseChannel { channel: U32::new(1) };
    let modify = ModifyChannel { channel: U32::new(1), target_vp: U32::new(1) };
    assert_eq!(guest.say(&close), wrong(MessageType::CLOSE_CHANNEL, DeviceState::Offered));
    assert_eq!(guest.say(&modify), wrong(MessageType::MODIFY_CHANNEL, DeviceState::Offered));
    guest.share(RING, 8).unwrap();
    guest.open(RING, 4).unwrap();
    guest.say(&modify).unwrap();
    assert_eq!(guest.open(RING, 4), wrong(MessageType::OPEN_CHANNEL, DeviceState::Open));
    assert_eq!(guest.say(&release), wrong(MessageType::RELID_RELEASED, DeviceState::Open));
    let torn = GuestError::RingTornDown { channel: ONE, gpadl: RING };
    assert_eq!(guest.tear_down(RING), Err(torn));
    guest.say(&close).unwrap();
    guest.tear_down(RING).unwrap();
    assert_eq!(guest.tear_down(RING), Err(GuestError::TornDownTwice { gpadl: RING }));
    assert_eq!(guest.say(&close), wrong(MessageType::CLOSE_CHANNEL, DeviceState::Closing));
    let answered = guest.answers();
    assert!(!answered.iter().any(|(kind, _)| *kind == MessageType::GPADL_TORNDOWN));
    guest.host.closed(guest.device, T0);
    assert_eq!(guest.answers(), [(MessageType::GPADL_TORNDOWN, 0)]);
    let kind = MessageType::GPADL_TEARDOWN;
    assert_eq!(guest.tear_down(RING), Err(GuestError::UnknownGpadl { kind, gpadl: RING }));
}

#[test]
fn an_open_while_the_device_stops_is_done_afterwards() {
    let mut guest = Guest::connected();
    guest.share(RING, 8).unwrap();
    guest.open(RING, 4).unwrap();
    guest.say(&CloseChannel { channel: U32::new(1) }).unwrap();
    let other = GpadlId(0x20);
    guest.share(other, 8).unwrap();
    guest.open(other, 4).unwrap();
    guest.answers();
    guest.host.closed(guest.device, T0);
    assert_eq!(guest.answers(), [(MessageType::OPEN_CHANNEL_RESULT, 0)]);
    assert_eq!(guest.host.state(guest.device), Some(DeviceState::Open));
}

#[test]
fn a_rescinded_channel_still_returns_memory_and_ignores_the_rest() {
    let mut guest = Guest::connected();
    guest.share(RING, 8).unwrap();
    guest.host.rescind(guest.device, T0);
    guest.answers();
    guest.open(RING, 4).unwrap();
    guest.say(&CloseChannel { channel: U32::new(1) }).unwrap();
    assert_eq!((guest.answers(), guest.host.counters().ignored), (vec![], 2));
    guest.share(GpadlId(2), 1).unwrap();
    guest.tear_down(RING).unwrap();
    let expected = [(MessageType::GPADL_CREATED, 0), (MessageType::GPADL_TORNDOWN, 0)];
    assert_eq!(guest.answers(), expected);
    guest.say(&ReleaseChannel { channel: U32::new(1) }).unwrap();
    assert_eq!(guest.host.counters().gpadls_dropped, 1, "one piece was never asked back");
    let kind = MessageType::RELID_RELEASED;
    let again = guest.say(&ReleaseChannel { channel: U32::new(1) });
    assert_eq!(again, Err(GuestError::UnknownChannel { kind, channel: ONE }));
    assert!(
        core::iter::from_fn(|| guest.host.poll_event())
            .any(|event| matches!(event, BusEvent::Released { .. }))
    );
}

#[test]
fn answers_under_way_come_before_the_rescind() {
    let mut guest = Guest::connected();
    guest.share(RING, 8).unwrap();
    guest.open(RING, 4).unwrap();
    guest.say(&CloseChannel { channel: U32::new(1) }).unwrap();
    guest.tear_down(RING).unwrap();
    let frames = [Pfn(1); 30];
    let range = GpaRange { byte_count: 30 * 4096, byte_offset: 0, frames: &frames };
    let ranges = [range];
    let header = GpadlMessages::new(ONE, GpadlId(3), &ranges).unwrap().next().unwrap();
    guest.host.handle_message(guest.connection, &header, T0).unwrap();
    guest.answers();
    guest.host.rescind(guest.device, T0);
    assert_eq!(guest.answers(), [], "the device has not stopped");
    guest.host.closed(guest.device, T0);
    let rescind = (MessageType::RESCIND_CHANNEL_OFFER, 0);
    assert_eq!(guest.answers(), [(MessageType::GPADL_TORNDOWN, 0), REFUSED, rescind]);
}

#[test]
fn a_device_that_stops_keeps_its_id_until_it_has() {
    let mut guest = Guest::connected();
    guest.share(RING, 8).unwrap();
    guest.open(RING, 4).unwrap();
    guest.host.rescind(guest.device, T0);
    guest.answers();
    guest.tear_down(RING).unwrap();
    let release = ReleaseChannel { channel: U32::new(1) };
    guest.say(&release).unwrap();
    let state = DeviceState::Revoked;
    let kind = MessageType::RELID_RELEASED;
    assert_eq!(guest.say(&release), Err(GuestError::WrongState { kind, channel: ONE, state }));
    assert_eq!((guest.answers(), guest.host.channel_of(guest.device)), (vec![], Some(ONE)));
    guest.host.closed(guest.device, T0);
    assert_eq!(guest.answers(), [(MessageType::GPADL_TORNDOWN, 0)]);
    assert_eq!(guest.host.state(guest.device), None);
}
