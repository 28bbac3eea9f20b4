//! Capabilities, parameters and encapsulation as bytes.

extern crate std;
use super::*;
use proptest::prelude::*;

fn capabilities(size: u8, words: &[(usize, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; usize::from(size)];
    bytes[..4].copy_from_slice(&[0xa7, 3, size, 0]);
    for (at, word) in words {
        bytes[*at..*at + 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[test]
fn capabilities_stand_where_the_protocol_says() {
    let bytes = capabilities(
        156,
        &[
            (4, 2),
            (8, 0x155),
            (12, 2),
            (16, 0x110),
            (20, 2),
            (24, 0x54),
            (28, 2),
            (32, 0x10),
            (80, 2),
            (84, 0xf53c),
            (88, 2),
            (92, 2),
            (96, 0xf000),
            (100, 3),
            (104, 4),
            (144, 1),
        ],
    );
    let read = OffloadCapabilities::decode(&bytes).unwrap();
    let all = ChecksumSet::from_bits_retain(0x155);
    assert_eq!(
        read.ipv4,
        IpOffloads {
            transmit: all,
            receive: ChecksumSet::IP_HEADER | ChecksumSet::TCP,
            large_send: 0xf53c,
            large_send_segments: 2,
            coalescing: true,
        }
    );
    assert_eq!((read.ipv6.transmit.bits(), read.ipv6.receive.bits()), (0x54, 0x10));
    assert_eq!((read.ipv6.large_send, read.ipv6.coalescing), (0xf000, false));
    assert_eq!(read.large_send_ipv6, LargeSendOptions::TCP_OPTIONS);
    assert_eq!(read.encode(Version::V6_1), bytes);
    // Older forms are the same bytes, cut, under another header.
    for (version, revision, size) in [(Version::V4, 2, 144), (Version::V1, 1, 112)] {
        let short = read.encode(version);
        assert_eq!(short[..4], [0xa7, revision, size, 0]);
        assert_eq!(short[4..], bytes[4..usize::from(size)]);
    }
}

#[test]
fn what_is_not_for_ethernet_is_nothing() {
    let bytes = capabilities(112, &[(4, 1), (8, 0x155), (80, 0), (84, 0xf53c)]);
    assert_eq!(OffloadCapabilities::decode(&bytes).unwrap().ipv4, IpOffloads::default());
}

#[test]
fn short_and_foreign_objects_are_refused() {
    let good = capabilities(112, &[]);
    for len in 0..112 {
        assert!(OffloadCapabilities::decode(&good[..len]).is_err(), "{len} bytes");
    }
    let wrong = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        OffloadCapabilities::decode(&bytes)
    };
    assert_eq!(wrong(0, 0x80), Err(OffloadDecodeError::Kind(0x80)));
    assert_eq!(wrong(2, 113), Err(OffloadDecodeError::Length { said: 113, found: 112 }));
    assert_eq!(wrong(2, 111), Err(OffloadDecodeError::Length { said: 111, found: 112 }));
}

#[test]
fn the_form_follows_the_version() {
    for (version, revision, size) in
        [(Version::V6_1, 3, 156), (Version::V4, 2, 144), (Version::V2, 1, 112)]
    {
        let question = OffloadCapabilities::question(version);
        assert_eq!(question[..4], [0xa7, revision, size, 0]);
        assert_eq!(question[4..], vec![0; usize::from(size) - 4], "a value that is not there yet");
        assert!(OffloadCapabilities::is_question(&question));
        assert!(!OffloadCapabilities::is_question(&question[..question.len() - 1]), "cut off");
        assert!(!OffloadCapabilities::is_question(&question[..3]), "no header");
    }
    assert!(!OffloadCapabilities::is_question(&[0x88, 2, 4, 0]), "another object");
    assert!(!OffloadCapabilities::is_question(&[0xa7, 2, 3, 0]), "shorter than its header");
}

#[test]
fn parameters_stand_where_the_protocol_says() {
    let parameters = OffloadParameters {
        ipv4_header: Direction::Both,
        tcp_ipv4: Direction::Transmit,
        udp_ipv4: Direction::Receive,
        tcp_ipv6: Direction::Off,
        udp_ipv6: Direction::Unchanged,
        large_send_ipv4: Switch::On,
        large_send_ipv6: Switch::Off,
        coalescing_ipv4: Switch::On,
        coalescing_ipv6: Switch::Off,
    };
    let (bytes, len) = parameters.encode(Version::V6_1);
    let mut expected = [0; 28];
    expected[..13].copy_from_slice(&[0x80, 3, 28, 0, 4, 2, 3, 1, 0, 0, 0, 2, 1]);
    expected[22..24].copy_from_slice(&[2, 1]);
    assert_eq!((bytes, len), (expected, 28));
    assert_eq!(OffloadParameters::decode(&expected), Ok(parameters));
    let (bytes, len) = parameters.encode(Version::V4);
    assert_eq!((bytes[2], len), (22, 22));
    let old = OffloadParameters {
        coalescing_ipv4: Switch::Unchanged,
        coalescing_ipv6: Switch::Unchanged,
        ..parameters
    };
    assert_eq!(OffloadParameters::decode(&bytes[..22]), Ok(old));
}

#[test]
fn parameters_that_lie_are_refused() {
    let (good, _) = OffloadParameters::default().encode(Version::V6_1);
    let wrong = |at: usize, value: u8| {
        let mut bytes = good;
        bytes[at] = value;
        OffloadParameters::decode(&bytes)
    };
    type E = OffloadDecodeError;
    assert_eq!(wrong(0, 0x81), Err(E::ParametersKind(0x81)));
    for said in [19, 29] {
        let error = E::ParametersLength { said: said.into(), found: 28 };
        assert_eq!(wrong(2, said), Err(error));
    }
    for at in [4, 5, 6, 7, 8] {
        assert_eq!(wrong(at, 5), Err(E::Value { at, value: 5, most: 4 }));
    }
    for at in [11, 12, 22, 23] {
        assert_eq!(wrong(at, 3), Err(E::Value { at, value: 3, most: 2 }));
    }
    for len in 0..28 {
        assert!(OffloadParameters::decode(&good[..len]).is_err(), "{len} bytes");
    }
    assert!(wrong(1, 1).is_ok(), "revision 1");
}

#[test]
fn an_encapsulation_has_the_bytes_of_the_protocol() {
    let both = Encapsulation { ipv4: true, ipv6: true };
    let bytes =
        [0xa8, 1, 28, 0, 1, 0, 0, 0, 2, 0, 0, 0, 14, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 14, 0, 0, 0];
    assert_eq!((both.encode(), Encapsulation::decode(&bytes)), (bytes, Ok(both)));
    let wrong = |at: usize, value: u8| {
        let mut wrong = bytes;
        wrong[at] = value;
        Encapsulation::decode(&wrong)
    };
    let error = |kind, said| Err(OffloadDecodeError::Encapsulation { kind, said, found: 28 });
    assert_eq!(wrong(0, 0xa7), error(0xa7, 28));
    assert_eq!((wrong(2, 27), wrong(2, 29)), (error(0xa8, 27), error(0xa8, 29)));
    for len in 0..28 {
        assert!(Encapsulation::decode(&bytes[..len]).is_err(), "{len} bytes");
    }
    assert_eq!(wrong(8, 1), Err(OffloadDecodeError::Foreign { kind: 1, header: 14 }));
    assert_eq!(wrong(24, 18), Err(OffloadDecodeError::Foreign { kind: 2, header: 18 }));
    assert_eq!(wrong(4, 0), Ok(Encapsulation { ipv4: false, ipv6: true }));
}

#[test]
fn what_is_unchanged_stays() {
    for old in [(false, true), (true, false)] {
        assert_eq!(Direction::Unchanged.after(old), old);
        let ways = [Direction::Off, Direction::Transmit, Direction::Receive, Direction::Both];
        for way in ways {
            let (transmit, receive) = way.after(old);
            assert_eq!(Direction::of(transmit, receive), way);
        }
        assert_eq!(Switch::Unchanged.after(old.0), old.0);
        assert!(Switch::On.after(old.0) && !Switch::Off.after(old.0));
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoders_panic(
        kind in prop_oneof![Just(0x80u8), Just(0xa7), Just(0xa8), any::<u8>()],
        size in prop_oneof![Just(22u8), Just(28), Just(112), Just(156), any::<u8>()],
        rest in proptest::collection::vec(prop_oneof![0..6u8, any::<u8>()], 0..200),
    ) {
        let bytes = [&[kind, 1, size, 0], &rest[..]].concat();
        for bytes in [&bytes[..], &rest] {
            let _ = OffloadCapabilities::decode(bytes);
            let _ = OffloadParameters::decode(bytes);
            let _ = Encapsulation::decode(bytes);
        }
    }

    #[test]
    fn parameters_come_back(ways: [u8; 5], switches: [u8; 4]) {
        let [ipv4_header, tcp_ipv4, udp_ipv4, tcp_ipv6, udp_ipv6] = ways.map(|at| Direction::ALL[usize::from(at) % 5]);
        let [large_send_ipv4, large_send_ipv6, coalescing_ipv4, coalescing_ipv6] =
            switches.map(|at| Switch::ALL[usize::from(at) % 3]);
        let parameters = OffloadParameters {
            ipv4_header, tcp_ipv4, udp_ipv4, tcp_ipv6, udp_ipv6,
            large_send_ipv4, large_send_ipv6, coalescing_ipv4, coalescing_ipv6,
        };
        let (bytes, len) = parameters.encode(Version::V6);
        prop_assert_eq!(OffloadParameters::decode(&bytes[..len]), Ok(parameters));
    }
}
