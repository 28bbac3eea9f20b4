//! Every message of the table against bytes that were written down from the protocol, in both directions.

extern crate std;
use std::vec;
use std::vec::Vec;

use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::*;

/// Bytes as they are written down: two digits each; `*n` repeats the byte before up to a length of `n`.
fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in text.split_whitespace() {
        match word.strip_prefix('*') {
            Some(len) => bytes.resize(len.parse().unwrap(), *bytes.last().unwrap()),
            None => bytes.push(u8::from_str_radix(word, 16).unwrap()),
        }
    }
    bytes
}

const GUID: Guid = Guid::from_u128(0x0c0d_0e0f_0a0b_0809_0706_0504_0302_0100);
const GUID_TEXT: &str = "0f 0e 0d 0c 0b 0a 09 08 07 06 05 04 03 02 01 00";

/// Checks that a message is written as these bytes, and that these bytes are read as that message, from the side that the
/// table names. Notes its number.
macro_rules! check {
    ($seen:ident, $name:ident { $($fields:tt)* }, $($text:expr),*) => {{
        let body = $name { $($fields)* };
        let written = bytes(&[$($text),*].join(" "));
        let payload = Payload::new(&body);
        assert_eq!(payload.to_vec(), written, "{} as written", payload.kind());
        let spec = $name::KIND.spec().unwrap();
        assert_eq!(written.len(), spec.size, "{}", payload.kind());
        let (message, rest) = Message::parse(&written, spec.sender, spec.since).unwrap();
        assert_eq!((message, rest), (Message::$name(&body), &[][..]), "{} as read", payload.kind());
        $seen.push(payload.kind().0);
    }};
}

fn u32s<const N: usize>(first: u32) -> [U32; N] {
    core::array::from_fn(|at| U32::new(first + at as u32 * 0x0101_0101))
}

fn offers(seen: &mut Vec<u32>) {
    check!(
        seen,
        OfferChannel {
            class: NIC_CLASS.into(),
            instance: GUID.into(),
            reserved: [0x11; 16],
            flags: U16::new(0x0201),
            mmio_megabytes: U16::new(0x0304),
            user_defined: [0x22; 120],
            sub_channel: U16::new(0x0506),
            mmio_megabytes_optional: U16::new(0x0708),
            channel: U32::new(0x07ff),
            monitor: 0x7f,
            monitor_allocated: 1,
            dedicated_interrupt: U16::new(1),
            connection: U32::new(0x0001_2345),
        },
        "01 00 *8  63 51 61 f8 3e df c5 46 91 3f f2 d2 f9 65 ed 0e",
        GUID_TEXT,
        "11 *56  01 02  04 03  22 *180  06 05  08 07  ff 07 00 00  7f  01  01 00  45 23 01 00"
    );
    let [channel] = u32s(0x0403_0201);
    check!(seen, RescindOffer { channel }, "02 00 *8  01 02 03 04");
    check!(seen, RequestOffers {}, "03 00 *8");
    check!(seen, AllOffersDelivered {}, "04 00 *8");
}

fn channels(seen: &mut Vec<u32>) {
    let [channel, open_id, ring_gpadl, target_vp, downstream_page] = u32s(0x0403_0201);
    let user_data = [0x33; 120];
    check!(
        seen,
        OpenChannel { channel, open_id, ring_gpadl, target_vp, downstream_page, user_data },
        "05 00 *8  01 02 03 04  02 03 04 05  03 04 05 06  04 05 06 07  05 06 07 08  33 *148"
    );
    let status = ring_gpadl;
    check!(
        seen,
        OpenResult { channel, open_id, status },
        "06 00 *8  01 02 03 04  02 03 04 05  03 04 05 06"
    );
    check!(seen, CloseChannel { channel }, "07 00 *8  01 02 03 04");
}

fn memory(seen: &mut Vec<u32>) {
    let [channel, gpadl, status] = u32s(0x0403_0201);
    let (range_bytes, range_count) = (U16::new(0x1234), U16::new(0x5678));
    check!(
        seen,
        GpadlHeader { channel, gpadl, range_bytes, range_count },
        "08 00 *8  01 02 03 04  02 03 04 05  34 12  78 56"
    );
    check!(seen, GpadlBody { number: channel, gpadl }, "09 00 *8  01 02 03 04  02 03 04 05");
    check!(
        seen,
        GpadlCreated { channel, gpadl, status },
        "0a 00 *8  01 02 03 04  02 03 04 05  03 04 05 06"
    );
    check!(seen, GpadlTeardown { channel, gpadl }, "0b 00 *8  01 02 03 04  02 03 04 05");
    check!(seen, GpadlTorndown { gpadl }, "0c 00 *8  02 03 04 05");
    check!(seen, ReleaseChannel { channel }, "0d 00 *8  01 02 03 04");
}

fn contact(seen: &mut Vec<u32>) {
    check!(
        seen,
        InitiateContact {
            version: U32::new(Version::V5_3.0),
            target_vp: U32::new(0x0403_0201),
            target: U64::new(0x0000_00ff_0000_0102),
            monitor_to_guest: U64::new(0x1_2345_6000),
            monitor_to_host: U64::new(0x2_3456_7000),
        },
        "0e 00 *8  03 00 05 00  01 02 03 04  02  01  00 00  ff 00 00 00",
        "00 60 45 23 01 00 00 00  00 70 56 34 02 00 00 00"
    );
    check!(
        seen,
        VersionResponse {
            supported: 1,
            state: 2,
            reserved: U16::new(0),
            connection: U32::new(0x0403_0201),
        },
        "0f 00 *8  01  02  00 00  01 02 03 04"
    );
    check!(seen, Unload {}, "10 00 *8");
    check!(seen, UnloadResponse {}, "11 00 *8");
}

fn unused_by_nic_and_pci(seen: &mut Vec<u32>) {
    let [channel, target_vp, target_sint, ring_gpadl, downstream_page] = u32s(0x0403_0201);
    check!(
        seen,
        OpenReserved { channel, target_vp, target_sint, ring_gpadl, downstream_page },
        "12 00 *8  01 02 03 04  02 03 04 05  03 04 05 06  04 05 06 07  05 06 07 08"
    );
    check!(
        seen,
        CloseReserved { channel, target_vp, target_sint },
        "13 00 *8  01 02 03 04  02 03 04 05  03 04 05 06"
    );
    check!(seen, CloseReservedResponse { channel }, "14 00 *8  01 02 03 04");
    let (endpoint, service) = (GUID.into(), NIC_CLASS.into());
    let service_text = "63 51 61 f8 3e df c5 46 91 3f f2 d2 f9 65 ed 0e";
    check!(seen, SocketConnect { endpoint, service }, "15 00 *8", GUID_TEXT, service_text);
    check!(seen, ModifyChannel { channel, target_vp }, "16 00 *8  01 02 03 04  02 03 04 05");
    check!(
        seen,
        SocketConnectResult { endpoint, service, status: target_sint },
        "17 00 *8",
        GUID_TEXT,
        service_text,
        "03 04 05 06"
    );
    check!(
        seen,
        ModifyChannelResponse { channel, status: target_vp },
        "18 00 *8  01 02 03 04  02 03 04 05"
    );
}

fn newest(seen: &mut Vec<u32>) {
    check!(
        seen,
        ModifyConnection {
            monitor_to_guest: U64::new(0x1_2345_6000),
            monitor_to_host: U64::new(0x2_3456_7000),
        },
        "19 00 *8  00 60 45 23 01 00 00 00  00 70 56 34 02 00 00 00"
    );
    check!(seen, ModifyConnectionResponse { state: 2 }, "1a 00 *8  02");
    check!(seen, Pause {}, "1b 00 *8");
    check!(seen, PauseResponse {}, "1c 00 *8");
    check!(seen, Resume {}, "1d 00 *8");
}

#[test]
fn every_message_is_written_and_read_as_the_protocol_has_it() {
    let mut seen = vec![];
    let all = &mut seen;
    offers(all);
    channels(all);
    memory(all);
    contact(all);
    unused_by_nic_and_pci(all);
    newest(all);
    assert_eq!(seen, (1..=29).collect::<Vec<u32>>());
}

#[test]
fn the_longer_forms_are_written_and_read_as_the_protocol_has_them() {
    let client = WireGuid::from(GUID);
    let features = VersionFeatures { features: U32::new(0xff) };
    let pages = VersionMonitorPages {
        reserved: U32::new(0),
        monitor_to_guest: U64::new(0x1_2345_6000),
        monitor_to_host: U64::new(0x2_3456_7000),
    };
    let signal = OpenSignal {
        connection: U32::new(0x0403_0201),
        event_flag: U16::new(0x07fe),
        flags: U16::new(OpenSignal::REDIRECT_INTERRUPT),
    };
    let start = |kind: MessageType| kind.spec().unwrap().size;
    for (kind, behind, end, text) in [
        (MessageType::INITIATE_CONTACT, client.as_bytes(), 56, GUID_TEXT),
        (MessageType::VERSION_RESPONSE, features.as_bytes(), 20, "ff 00 00 00"),
        (MessageType::OPEN_CHANNEL, signal.as_bytes(), 156, "01 02 03 04  fe 07  01 00"),
    ] {
        assert_eq!(behind, bytes(text));
        assert_eq!(start(kind) + behind.len(), end, "{kind}");
    }
    let text = "00 *4  00 60 45 23 01 00 00 00  00 70 56 34 02 00 00 00";
    assert_eq!(pages.as_bytes(), bytes(text));
    assert_eq!(start(MessageType::VERSION_RESPONSE) + features.as_bytes().len() + 20, 40);
    assert_eq!(VersionMonitorPages::read_from_bytes(&bytes(text)), Ok(pages));
    assert_eq!(OpenSignal::read_from_bytes(&bytes("01 02 03 04  fe 07  01 00")), Ok(signal));
    assert_eq!(WireGuid::read_from_bytes(&bytes(GUID_TEXT)), Ok(client));
}

#[test]
fn the_bits_are_those_of_the_protocol() {
    let features = [
        Features::GUEST_SIGNAL_PARAMETERS,
        Features::INTERRUPT_REDIRECTION,
        Features::MODIFY_CONNECTION,
        Features::CLIENT_ID,
        Features::CONFIDENTIAL_CHANNELS,
        Features::PAUSE_RESUME,
        Features::SERVER_MONITOR_PAGES,
        Features::GPADL_PINNING,
    ];
    assert_eq!(features.map(|feature| feature.bits()), [1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80]);
    let flags = [
        OfferFlags::ENUMERATE_INTERFACE,
        OfferFlags::CONFIDENTIAL_RING,
        OfferFlags::CONFIDENTIAL_EXTERNAL_MEMORY,
        OfferFlags::REQUIRE_PINNED_MEMORY,
        OfferFlags::NAMED_PIPE,
        OfferFlags::LOOPBACK,
        OfferFlags::PARENT_OFFER,
        OfferFlags::MONITORED_NOTIFICATION,
        OfferFlags::SOCKET,
    ];
    let bits = [1, 2, 4, 8, 0x10, 0x100, 0x200, 0x400, 0x2000];
    assert_eq!(flags.map(|flag| flag.bits()), bits);
    let versions =
        [0x6_0000, 0x5_0003, 0x5_0002, 0x5_0001, 0x5_0000, 0x4_0001, 0x4_0000, 0x3_0000, 0x2_0004];
    assert_eq!(Version::ALL.map(|version| version.0), versions);
    assert_eq!(Version::RECOMMENDED[..], Version::ALL[1..]);
    assert_eq!((LEGACY_CONNECTION.0, CONTACT_CONNECTION.0, VMBUS_SINT), (1, 4, 2));
    assert_eq!((REDIRECTED_CONNECTION.0, PARAVISOR_VTL), (0x80_0074, 2));
    assert_eq!((MAX_MESSAGE, MAX_CHANNEL_ID, STATUS_REFUSED), (240, 2047, 0x8000_ffff));
    let table = |kind: MessageType| kind.spec().unwrap().since;
    assert_eq!(table(MessageType::UNLOAD), Version::V1_1);
    for (kinds, since) in [
        (18..=21, Version::V4_0),
        (22..=23, Version::V4_1),
        (24..=24, Version::V5_3),
        (25..=29, Version::V6_0),
    ] {
        assert!(kinds.map(MessageType).all(|kind| table(kind) == since), "{since}");
    }
}
