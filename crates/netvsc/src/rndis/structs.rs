//! The bytes of the messages. Names and offsets as in PROTOCOL §9; offsets count from the start of the message here,
//! while offsets *in* messages count from byte 8.
#![expect(
    missing_debug_implementations,
    reason = "the derives of zerocopy make a marker type for every field; they seem ours when a macro names them"
)]

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

/// Defines a message: packed little-endian words, and its size checked when this is compiled.
macro_rules! wire {
    ($(#[$doc:meta])* $name:ident [$size:literal] { $($(#[$fdoc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, Unaligned,
        )]
        #[repr(C)]
        pub struct $name {
            $($(#[$fdoc])* pub $field: U32,)*
        }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

wire! {
    /// Start of every message.
    Header [8] {
        /// 0: [`MessageType`](super::MessageType).
        kind,
        /// 4: bytes of the message, these 8 included.
        length,
    }
}

wire! {
    /// PACKET.
    Packet [44] {
        /// 0: message type.
        kind,
        /// 4: message length; where several stand in one buffer, the next starts here.
        length,
        /// 8: where the frame starts.
        data_offset,
        /// 12: its bytes.
        data_len,
        /// 16: out-of-band data, unused.
        oob_offset,
        /// 20: unused.
        oob_len,
        /// 24: unused.
        oob_count,
        /// 28: where the per-packet information starts.
        ppi_offset,
        /// 32: its bytes.
        ppi_len,
        /// 36: virtual circuit, unused.
        vc_handle,
        /// 40: zero.
        reserved,
    }
}

wire! {
    /// One entry of per-packet information; its data follow.
    Ppi [12] {
        /// 0: bytes of the entry, these 12 included.
        size,
        /// 4: [`PpiType`](super::packet::PpiType).
        kind,
        /// 8: where its data start, from the start of the entry.
        data_offset,
    }
}

wire! {
    /// INITIALIZE.
    Initialize [24] {
        /// 0: message type.
        kind,
        /// 4: message length.
        length,
        /// 8: chosen by the guest, repeated in the reply.
        request_id,
        /// 12: 1.
        major,
        /// 16: 0.
        minor,
        /// 20: most bytes that the guest takes in one message.
        max_transfer,
    }
}

wire! {
    /// INITIALIZE_CMPLT.
    InitializeComplete [52] {
        /// 0: message type.
        kind,
        /// 4: message length.
        length,
        /// 8: id of the request.
        request_id,
        /// 12: [`Status`](super::Status).
        status,
        /// 16: 1.
        major,
        /// 20: 0.
        minor,
        /// 24: 1, connectionless.
        device_flags,
        /// 28: 0, 802.3.
        medium,
        /// 32: most PACKET messages in one buffer.
        max_packets,
        /// 36: most bytes in one buffer.
        max_transfer,
        /// 40: each PACKET of a buffer starts at a multiple of 2 to this power.
        alignment_factor,
        /// 44: unused.
        af_list_offset,
        /// 48: unused.
        af_list_size,
    }
}

wire! {
    /// QUERY and SET; the value follows.
    Request [28] {
        /// 0: message type.
        kind,
        /// 4: message length.
        length,
        /// 8: chosen by the guest, repeated in the reply.
        request_id,
        /// 12: [`Oid`](super::Oid).
        oid,
        /// 16: bytes of the value.
        info_len,
        /// 20: where it starts, 20.
        info_offset,
        /// 24: virtual circuit, unused.
        vc_handle,
    }
}

wire! {
    /// QUERY_CMPLT; the value follows.
    QueryComplete [24] {
        /// 0: message type.
        kind,
        /// 4: message length.
        length,
        /// 8: id of the request.
        request_id,
        /// 12: [`Status`](super::Status).
        status,
        /// 16: bytes of the value.
        info_len,
        /// 20: where it starts, 16.
        info_offset,
    }
}

wire! {
    /// SET_CMPLT and KEEPALIVE_CMPLT.
    Complete [16] {
        /// 0: message type.
        kind,
        /// 4: message length.
        length,
        /// 8: id of the request.
        request_id,
        /// 12: [`Status`](super::Status).
        status,
    }
}

wire! {
    /// HALT, KEEPALIVE; also RESET, where the id is nothing.
    Bare [12] {
        /// 0: message type.
        kind,
        /// 4: message length.
        length,
        /// 8: chosen by the guest.
        request_id,
    }
}

wire! {
    /// RESET_CMPLT.
    ResetComplete [16] {
        /// 0: message type.
        kind,
        /// 4: message length.
        length,
        /// 8: [`Status`](super::Status).
        status,
        /// 12: whether addresses and filters have to be set again.
        addressing_reset,
    }
}

wire! {
    /// INDICATE_STATUS; a buffer may follow.
    Indicate [20] {
        /// 0: message type.
        kind,
        /// 4: message length; some hosts do not count the buffer.
        length,
        /// 8: [`Status`](super::Status).
        status,
        /// 12: bytes of the buffer.
        buffer_len,
        /// 16: where it starts, 12, or 0 if there is none.
        buffer_offset,
    }
}
