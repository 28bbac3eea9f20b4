//! Every message byte by byte: written from its structure, and taken apart again by the side it is for.

extern crate std;

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::slot::Slot;

const AT: u32 = 0xa2;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn host(bytes: &[u8]) -> String {
    format!("{:?}", HostMessage::parse(bytes).unwrap())
}

fn guest(bytes: &[u8]) -> String {
    format!("{:?}", GuestMessage::parse(bytes).unwrap())
}

#[test]
fn messages_with_a_type_alone() {
    for (kind, number) in [
        (MessageType::QUERY_BUS_RELATIONS, 0x4249_0001),
        (MessageType::INVALIDATE_BUS, 0x4249_0003),
        (MessageType::FDO_D0_EXIT, 0x4249_0008),
    ] {
        let message = Bare { kind: kind.0.into() };
        assert_eq!(message.as_bytes(), words(&[number]));
    }
    assert_eq!(guest(&words(&[0x4249_0001])), "QueryRelations");
    assert_eq!(host(&words(&[0x4249_0003])), "InvalidateBus");
    assert_eq!(guest(&words(&[0x4249_0008])), "D0Exit");
}

#[test]
fn messages_with_a_slot_alone() {
    let slotted =
        |kind: MessageType| Slotted { kind: kind.0.into(), slot: AT.into() }.as_bytes().to_vec();
    for (kind, number, read) in [
        (MessageType::INVALIDATE_DEVICE, 0x02, "InvalidateDevice(Slot(02.5))"),
        (MessageType::EJECT, 0x0b, "Eject(Slot(02.5))"),
        (MessageType::QUERY_STOP, 0x0c, "Stop(QUERY_STOP, Slot(02.5))"),
        (MessageType::RE_ENABLE, 0x0d, "Stop(RE_ENABLE, Slot(02.5))"),
        (MessageType::QUERY_STOP_FAILED, 0x0e, "Stop(QUERY_STOP_FAILED, Slot(02.5))"),
    ] {
        assert_eq!(slotted(kind), words(&[0x4249_0000 + number, AT]));
        assert_eq!(host(&slotted(kind)), read);
    }
    for (kind, number, read) in [
        (MessageType::QUERY_RESOURCE_REQUIREMENTS, 0x05, "QueryRequirements(Slot(02.5))"),
        (MessageType::RELEASE_RESOURCES, 0x11, "ReleaseResources(Slot(02.5))"),
        (MessageType::RESET_DEVICE, 0x1c, "Reset(Slot(02.5))"),
    ] {
        assert_eq!(slotted(kind), words(&[0x4249_0000 + number, AT]));
        assert_eq!(guest(&slotted(kind)), read);
    }
}

#[test]
fn messages_about_versions_power_and_entry() {
    let message = QueryVersion {
        kind: MessageType::QUERY_PROTOCOL_VERSION.0.into(),
        version: Version::V1_4.0.into(),
    };
    let bytes = words(&[0x4249_0013, 0x1_0004]);
    assert_eq!((message.as_bytes(), &guest(&bytes)[..]), (&bytes[..], "QueryVersion(V1_4)"));
    let reply = VersionReply { status: 0xc000_0059.into(), version: 0x1_0003.into() };
    assert_eq!(reply.as_bytes(), words(&[0xc000_0059, 0x1_0003]));

    let message = PowerStateChange {
        kind: MessageType::DEVICE_POWER_STATE_CHANGE.0.into(),
        slot: AT.into(),
        state: PowerState::D3.0.into(),
        reserved: 0.into(),
    };
    let bytes = words(&[0x4249_0004, AT, 4, 0]);
    assert_eq!(message.as_bytes(), bytes);
    assert_eq!(guest(&bytes), "PowerStateChange { slot: Slot(02.5), state: 4 }");

    let bytes = words(&[0x4249_0007, 0, 0xe000_0000, 0xf]);
    assert_eq!(D0Entry::read_from_bytes(&bytes).unwrap().window.get(), 0xf_e000_0000);
}

#[test]
fn messages_about_resources() {
    let resource = Resource {
        kind: 3,
        share: 1,
        flags: 0x0200.into(),
        address: 0x1_f000_0000.into(),
        length: 0x1000.into(),
        reserved: 0.into(),
    };
    let one = [0x0200_0103, 0xf000_0000, 1, 0x1000, 0];
    assert_eq!(resource.as_bytes(), words(&one));
    for (kind, number, stride) in [
        (MessageType::ASSIGNED_RESOURCES, 0x10, 16),
        (MessageType::ASSIGNED_RESOURCES2, 0x16, 72),
        (MessageType::ASSIGNED_RESOURCES3, 0x1a, 80),
    ] {
        let message = AssignedResources {
            kind: kind.0.into(),
            slot: AT.into(),
            resources: [resource; BARS],
            msi_count: 2.into(),
            reserved: 0.into(),
        };
        let mut bytes = words(&[&[0x4249_0000 + number, AT][..], &one.repeat(6), &[2, 0]].concat());
        assert_eq!(message.as_bytes(), bytes);
        bytes.extend(vec![0x11; stride]);
        bytes.extend(vec![0x22; stride]);
        let Ok(GuestMessage::AssignedResources { slot, resources, interrupts }) =
            GuestMessage::parse(&bytes)
        else {
            panic!("{kind}");
        };
        assert_eq!((slot.to_wire(), resources), (AT, [resource; BARS]));
        assert!(interrupts.len() == 2 && !interrupts.is_empty());
        let list: Vec<_> = interrupts.iter().collect();
        assert_eq!(list, [&vec![0x11; stride][..], &vec![0x22; stride]]);
        bytes.pop();
        let (len, expected) = (bytes.len(), 136 + 2 * stride);
        assert_eq!(
            GuestMessage::parse(&bytes).unwrap_err(),
            MessageError::TooShort { kind, len, expected }
        );
        bytes[128..132].copy_from_slice(&495_u32.to_le_bytes());
        assert_eq!(
            GuestMessage::parse(&bytes).unwrap_err(),
            MessageError::TooManyInterrupts { kind, count: 495 }
        );
    }
    let message = GetResources {
        kind: MessageType::GET_RESOURCES.0.into(),
        slot: AT.into(),
        reserved: [0; 24],
    };
    let bytes = words(&[0x4249_0006, AT, 0, 0, 0, 0, 0, 0]);
    assert_eq!((message.as_bytes(), &guest(&bytes)[..]), (&bytes[..], "GetResources(Slot(02.5))"));
    let reply = ResourcesReply {
        version: 1.into(),
        revision: 1.into(),
        count: 6.into(),
        resources: [resource; BARS],
    };
    assert_eq!(reply.as_bytes(), words(&[&[0x1_0001, 6][..], &one.repeat(6)].concat()));
    assert_eq!(resources_of(reply.as_bytes()), Ok(Ok([resource; BARS])));
    assert_eq!(resources_of(&words(&[0xc000_090b])), Ok(Err(Status::BAD_DATA)));
    assert_eq!(
        resources_of(&reply.as_bytes()[..127]).unwrap_err(),
        MessageError::ReplyTooShort {
            request: MessageType::GET_RESOURCES,
            len: 127,
            expected: 128
        }
    );
    let reply =
        ResourceRequirementsReply { status: 0.into(), bars: [1, 2, 3, 4, 5, 6].map(Into::into) };
    assert_eq!(reply.as_bytes(), words(&[0, 1, 2, 3, 4, 5, 6]));
    assert_eq!(requirements_of(reply.as_bytes()), Ok(Ok([1, 2, 3, 4, 5, 6])));
}

#[test]
fn messages_about_interrupts() {
    let msi = RemappedMsi {
        reserved: 0.into(),
        count: 4.into(),
        data: 0x4041.into(),
        address: 0x1_fee0_0000.into(),
    };
    let remapped = [0x4_0000, 0x4041, 0xfee0_0000, 1];
    for (kind, number) in
        [(MessageType::DELETE_INTERRUPT, 0x15), (MessageType::DELETE_INTERRUPT2, 0x18)]
    {
        let message = DeleteInterrupt { kind: kind.0.into(), slot: AT.into(), interrupt: msi };
        let bytes = words(&[&[0x4249_0000 + number, AT][..], &remapped].concat());
        assert_eq!(message.as_bytes(), bytes);
        assert!(matches!(
            GuestMessage::parse(&bytes),
            Ok(GuestMessage::DeleteInterrupt { slot, interrupt })
                if slot == Slot::from_wire(AT).unwrap() && interrupt == msi
        ));
    }
    let reply = CreateInterruptReply { status: 0.into(), reserved: 0.into(), interrupt: msi };
    assert_eq!(reply.as_bytes(), words(&[&[0, 0][..], &remapped].concat()));
    for (kind, number, shortest) in [
        (MessageType::CREATE_INTERRUPT, 0x14, 16),
        (MessageType::CREATE_INTERRUPT2, 0x17, 70),
        (MessageType::CREATE_INTERRUPT3, 0x1b, 74),
    ] {
        let mut bytes = words(&[0x4249_0000 + number, AT]);
        bytes.resize(8 + shortest, 0x5a);
        let Ok(GuestMessage::CreateInterrupt { kind: read, slot, descriptor }) =
            GuestMessage::parse(&bytes)
        else {
            panic!("{kind}");
        };
        assert_eq!((read, slot.to_wire(), descriptor.len()), (kind, AT, shortest));
        bytes.pop();
        assert!(GuestMessage::parse(&bytes).is_err());
    }
}

#[test]
fn messages_about_blocks_ejects_and_security() {
    let block = |kind: MessageType| Block {
        kind: kind.0.into(),
        block: 5.into(),
        slot: AT.into(),
        bytes: 3.into(),
    };
    let bytes = words(&[0x4249_0009, 5, AT, 3]);
    assert_eq!(block(MessageType::READ_BLOCK).as_bytes(), bytes);
    assert_eq!(guest(&bytes), "ReadBlock { slot: Slot(02.5), block: 5, bytes: 3 }");
    let bytes = words(&[0x4249_000a, 5, AT, 3, 0x0003_0201]);
    assert_eq!(block(MessageType::WRITE_BLOCK).as_bytes(), &bytes[..16]);
    assert_eq!(guest(&bytes), "WriteBlock { slot: Slot(02.5), block: 5, data: [1, 2, 3] }");
    let message = InvalidateBlock {
        kind: MessageType::INVALIDATE_BLOCK.0.into(),
        slot: AT.into(),
        mask: 0x1_0000_0002.into(),
    };
    let bytes = words(&[0x4249_0012, AT, 2, 1]);
    assert_eq!(message.as_bytes(), bytes);
    assert_eq!(host(&bytes), "InvalidateBlock { slot: Slot(02.5), mask: 4294967298 }");

    let message = EjectComplete {
        kind: MessageType::EJECT_COMPLETE.0.into(),
        slot: AT.into(),
        status: 0.into(),
    };
    let bytes = words(&[0x4249_000f, AT, 0]);
    assert_eq!(message.as_bytes(), bytes);
    // Linux's guest sends twelve bytes, OpenVMM's eight.
    assert_eq!(guest(&bytes), "EjectComplete(Slot(02.5))");
    assert_eq!(guest(&bytes[..8]), "EjectComplete(Slot(02.5))");

    let message = Tdisp { kind: MessageType::TDISP.0.into(), slot: AT.into(), length: 3.into() };
    let bytes = words(&[0x4249_001d, AT, 3, 0, 0x0003_0201]);
    assert_eq!(message.as_bytes(), &bytes[..16]);
    assert_eq!(guest(&bytes), "Tdisp { slot: Slot(02.5), command: [1, 2, 3] }");
    let kind = MessageType::TDISP;
    assert_eq!(
        GuestMessage::parse(&bytes[..18]).unwrap_err(),
        MessageError::TooShort { kind, len: 18, expected: 19 }
    );
    assert_eq!(StatusReply { status: 0xc000_00bb.into() }.as_bytes(), words(&[0xc000_00bb]));
}

// A completion has the form of its request, with remapped interrupts; OpenVMM answers form 3 in the shape of form 2.
#[test]
fn completions_of_resources_have_their_interrupts_in_the_shape_that_their_length_tells() {
    let reply = |count: u32, stride: usize, room: usize| {
        let mut bytes = words(&[&[0, AT][..], &[0; 30], &[count, 0]].concat());
        for number in 0..room {
            let start = bytes.len();
            bytes.extend(words(&[0x1_0000, 0x40 + number as u32, 0xfee0_0000, 0]));
            bytes.resize(start + stride, 0);
        }
        bytes
    };
    use MessageType as T;
    for (request, count, stride, room) in [
        (T::ASSIGNED_RESOURCES, 3, 16, 3),
        (T::ASSIGNED_RESOURCES2, 3, 72, 4),
        (T::ASSIGNED_RESOURCES3, 3, 80, 3),
        (T::ASSIGNED_RESOURCES3, 3, 80, 4),
        (T::ASSIGNED_RESOURCES3, 3, 72, 3),
        (T::ASSIGNED_RESOURCES3, 3, 72, 4),
        (T::ASSIGNED_RESOURCES3, 0, 72, 0),
    ] {
        let bytes = reply(count, stride, room);
        let list = assigned_of(request, &bytes).unwrap();
        let data: Vec<_> = list.iter().map(|one| one[4]).collect();
        assert_eq!(
            data,
            (0..count).map(|n| 0x40 + n as u8).collect::<Vec<_>>(),
            "{request} {room}"
        );
    }
    let request = T::ASSIGNED_RESOURCES2;
    assert_eq!(
        assigned_of(request, &reply(3, 72, 2)),
        Err(MessageError::ReplyTooShort { request, len: 136 + 144, expected: 136 + 216 })
    );
    assert_eq!(
        assigned_of(request, &[0; 135]),
        Err(MessageError::ReplyTooShort { request, len: 135, expected: 136 })
    );
    assert_eq!(
        assigned_of(request, &reply(u32::MAX, 72, 2)),
        Err(MessageError::TooManyInterrupts { kind: request, count: u32::MAX })
    );
}
