//! The bytes of the messages. Field names and offsets as in PROTOCOL §7.2; every message starts with its type.
#![expect(
    missing_debug_implementations,
    reason = "the derives of zerocopy make a marker type for every field; they seem ours when a macro names them"
)]

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

/// Defines a message: packed little-endian fields, and its size checked when this is compiled.
macro_rules! wire {
    ($(#[$doc:meta])* $name:ident [$size:literal] { $($(#[$fdoc:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, Unaligned,
        )]
        #[repr(C)]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $kind,)*
        }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

wire! {
    /// INIT.
    Init [12] {
        /// 0: message type.
        kind: U32,
        /// 4: oldest version that the guest takes. Guests send the same in both fields.
        min_version: U32,
        /// 8: newest version that the guest takes.
        max_version: U32,
    }
}

wire! {
    /// INIT_COMPLETE.
    InitComplete [16] {
        /// 0: message type.
        kind: U32,
        /// 4: 2 if version 1 was asked for, all ones otherwise. Says nothing.
        version: U32,
        /// 8: most memory descriptors in one chain, 34 by habit. Says nothing to a guest.
        max_mdl_chain: U32,
        /// 12: [`Status`](super::Status); everything but success means "ask for another version".
        status: U32,
    }
}

wire! {
    /// SEND_NDIS_VERSION.
    NdisVersion [12] {
        /// 0: message type.
        kind: U32,
        /// 4: 6.
        major: U32,
        /// 8: 1 up to version 4, 30 after.
        minor: U32,
    }
}

wire! {
    /// SEND_NDIS_CONFIG.
    NdisConfig [20] {
        /// 0: message type.
        kind: U32,
        /// 4: largest frame in bytes: the MTU and the 14 bytes of the Ethernet header.
        mtu: U32,
        /// 8: zero.
        reserved: U32,
        /// 12: [`Capabilities`](super::Capabilities).
        capabilities: U64,
    }
}

wire! {
    /// SEND_RECEIVE_BUFFER and SEND_SEND_BUFFER.
    Buffer [10] {
        /// 0: message type.
        kind: U32,
        /// 4: the list that describes the buffer.
        gpadl: U32,
        /// 8: number by which transfer pages and the revocation name the buffer.
        id: U16,
    }
}

wire! {
    /// REVOKE_RECEIVE_BUFFER and REVOKE_SEND_BUFFER.
    Revoke [6] {
        /// 0: message type.
        kind: U32,
        /// 4: number given when the buffer was sent.
        id: U16,
    }
}

wire! {
    /// Start of RECEIVE_BUFFER_COMPLETE; [`Section`]s follow.
    ReceiveBufferComplete [12] {
        /// 0: message type.
        kind: U32,
        /// 4: [`Status`](super::Status).
        status: U32,
        /// 8: number of sections, 1 on every known host.
        num_sections: U32,
    }
}

wire! {
    /// How the host divides a receive buffer.
    Section [16] {
        /// 0: byte offset in the buffer, 0.
        offset: U32,
        /// 4: bytes of a sub-allocation.
        sub_alloc_size: U32,
        /// 8: number of sub-allocations.
        num_sub_allocs: U32,
        /// 12: byte offset of the end.
        end_offset: U32,
    }
}

wire! {
    /// SEND_BUFFER_COMPLETE.
    SendBufferComplete [12] {
        /// 0: message type.
        kind: U32,
        /// 4: [`Status`](super::Status).
        status: U32,
        /// 8: bytes of a section, 6,144 on every known host.
        section_size: U32,
    }
}

wire! {
    /// SEND_RNDIS_PACKET.
    RndisPacket [16] {
        /// 0: message type.
        kind: U32,
        /// 4: [`ChannelType`](super::ChannelType).
        channel_type: U32,
        /// 8: send section that holds the message or its start; all ones for none.
        section_index: U32,
        /// 12: bytes used of that section.
        section_size: U32,
    }
}

wire! {
    /// SEND_RNDIS_PACKET_COMPLETE.
    RndisPacketComplete [8] {
        /// 0: message type.
        kind: U32,
        /// 4: [`Status`](super::Status).
        status: U32,
    }
}

wire! {
    /// SEND_VF_ASSOCIATION.
    VfAssociation [12] {
        /// 0: message type.
        kind: U32,
        /// 4: 1 while a virtual function belongs to the NIC, 0 otherwise.
        allocated: U32,
        /// 8: serial number of that function, or of the last one.
        serial: U32,
    }
}

wire! {
    /// OID_QUERY_EX.
    OidQueryEx [12] {
        /// 0: message type.
        kind: U32,
        /// 4: NDIS object header.
        header: U32,
        /// 8: the object.
        oid: U32,
    }
}

wire! {
    /// OID_QUERY_EX_COMPLETE.
    OidQueryExComplete [12] {
        /// 0: message type.
        kind: U32,
        /// 4: NDIS status.
        status: U32,
        /// 8: bytes of the value.
        bytes: U32,
    }
}

wire! {
    /// SWITCH_DATA_PATH.
    SwitchDataPath [8] {
        /// 0: message type.
        kind: U32,
        /// 4: [`DataPath`](super::DataPath).
        active: U32,
    }
}

wire! {
    /// SUB_CHANNEL, request and reply.
    SubChannel [12] {
        /// 0: message type.
        kind: U32,
        /// 4: in a request what to do (1 allocate), in a reply the [`Status`](super::Status).
        operation: U32,
        /// 8: how many are wanted, or granted.
        count: U32,
    }
}

wire! {
    /// Start of SEND_INDIRECTION_TABLE.
    IndirectionTable [12] {
        /// 0: message type.
        kind: U32,
        /// 4: number of entries, 16.
        count: U32,
        /// 8: byte offset of the entries from the start of the message.
        offset: U32,
    }
}
