//! Control messages and the GPADLs in them.

use vmbus::gpadl::{GpadlAssembler, GpadlMessages, Range};
use vmbus::message::{
    HEADER_SIZE, MAX_MESSAGE, Message, MessageError, MessageType, Payload, Side, TABLE, Version,
};
use vmbus::packet::GpaRange;
use vmbus::{ChannelId, GpadlId};

use crate::script::Script;

/// Messages, each behind a byte that says how long it is. Every one is parsed as coming from either side in every
/// version, and must give what the table of messages says; the GPADLs among them are put together.
pub fn vmbus_messages(input: &[u8]) {
    let mut script = Script::new(input);
    let mut gpadl = None;
    while !script.is_over() {
        let bytes = script.counted();
        for version in Version::ALL.into_iter().chain([Version::ANY, Version(u32::MAX)]) {
            for sender in [Side::Guest, Side::Host] {
                check(bytes, sender, version);
            }
        }
        match Message::parse(bytes, Side::Guest, Version::ANY) {
            Ok((Message::GpadlHeader(header), data)) => {
                gpadl = GpadlAssembler::new(header, data).ok();
            }
            Ok((Message::GpadlBody(_), data)) => gpadl = gpadl.and_then(|gpadl| add(gpadl, data)),
            _ => {}
        }
        if let Some(Ok(Some(ranges))) = gpadl.as_ref().map(GpadlAssembler::ranges) {
            describe_again(&ranges);
            gpadl = None;
        }
    }
}

/// The table of messages says what has to come out.
fn check(bytes: &[u8], sender: Side, version: Version) {
    let parsed = Message::parse(bytes, sender, version);
    let len = bytes.len();
    if len > MAX_MESSAGE {
        assert_eq!(parsed, Err(MessageError::TooLong { len }));
        return;
    }
    let Some(number) = bytes.first_chunk().filter(|_| len >= HEADER_SIZE) else {
        assert_eq!(parsed, Err(MessageError::NoHeader { len }));
        return;
    };
    let kind = MessageType(u32::from_le_bytes(*number));
    let Some(spec) = TABLE.iter().find(|spec| spec.kind == kind) else {
        assert_eq!(parsed, Err(MessageError::Unknown { kind }));
        return;
    };
    let need = spec.size;
    let expected = if spec.sender != sender {
        Some(MessageError::WrongSender { kind, sender })
    } else if spec.since > version {
        Some(MessageError::TooNew { kind, since: spec.since, version })
    } else if len < need {
        Some(MessageError::TooShort { kind, len, need })
    } else {
        None
    };
    match (parsed, expected) {
        (Ok((message, rest)), None) => {
            assert_eq!(message.kind(), kind);
            assert_eq!(rest, &bytes[need..]);
            let again = encode(&message).with(rest);
            // The padding of the header is the one thing that is not kept.
            assert_eq!((&again[..4], &again[8..]), (&bytes[..4], &bytes[8..]));
            let twice = Message::parse(&again, sender, version).expect("what was made is legal");
            assert_eq!(twice, (message, rest));
        }
        (Err(got), Some(expected)) => assert_eq!(got, expected),
        (got, expected) => panic!("{got:?} where the table says {expected:?}"),
    }
}

/// Makes the message anew from its fields.
fn encode(message: &Message<'_>) -> Payload {
    macro_rules! encode {
        ($($name:ident)*) => {
            match message {
                $(Message::$name(body) => Payload::new(*body),)*
            }
        };
    }
    encode! {
        OfferChannel RescindOffer RequestOffers AllOffersDelivered OpenChannel OpenResult CloseChannel GpadlHeader
        GpadlBody GpadlCreated GpadlTeardown GpadlTorndown ReleaseChannel InitiateContact VersionResponse Unload
        UnloadResponse OpenReserved CloseReserved CloseReservedResponse SocketConnect ModifyChannel SocketConnectResult
        ModifyChannelResponse ModifyConnection ModifyConnectionResponse Pause PauseResponse Resume
    }
}

/// One more message of a GPADL, if it belongs to it.
fn add(mut gpadl: GpadlAssembler, data: &[u8]) -> Option<GpadlAssembler> {
    let before = gpadl.missing();
    gpadl.add(data).ok()?;
    assert_eq!(gpadl.missing() + data.len(), before);
    Some(gpadl)
}

/// What was understood can be said, and is then understood as the same.
fn describe_again(ranges: &[Range]) {
    let parts: Vec<_> = ranges
        .iter()
        .map(|Range { byte_count, byte_offset, frames }| GpaRange {
            byte_count: *byte_count,
            byte_offset: *byte_offset,
            frames,
        })
        .collect();
    let messages = GpadlMessages::new(ChannelId(1), GpadlId(1), &parts).expect("legal ranges");
    let mut again: Option<GpadlAssembler> = None;
    for message in messages {
        match (Message::parse(&message, Side::Guest, Version::ANY), &mut again) {
            (Ok((Message::GpadlHeader(header), data)), None) => {
                again = Some(GpadlAssembler::new(header, data).expect("a legal header"));
            }
            (Ok((Message::GpadlBody(_), data)), Some(again)) => {
                again.add(data).expect("a legal body");
            }
            (other, _) => panic!("{other:?}"),
        }
    }
    let again = again.expect("a header at least");
    assert_eq!(again.ranges(), Ok(Some(ranges.to_vec())));
}
