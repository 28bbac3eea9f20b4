//! The fields of each control message, behind the common header.
//!
//! Offsets count from the start of the message, as the protocol's tables do; the header takes the first 8 bytes. All
//! numbers are little-endian, GUIDs in mixed-endian wire form.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Guid;

macro_rules! wire {
    ($($(#[$doc:meta])* pub struct $name:ident $body:tt)*) => {$(
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
        )]
        #[repr(C)]
        pub struct $name $body
    )*};
}

/// A GUID as it lies on the wire: first three fields little-endian.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct WireGuid(pub [u8; 16]);

impl From<Guid> for WireGuid {
    fn from(guid: Guid) -> Self {
        Self(guid.to_bytes_le())
    }
}

impl From<WireGuid> for Guid {
    fn from(guid: WireGuid) -> Self {
        Self::from_bytes_le(guid.0)
    }
}

wire! {
    /// Message 1: the host offers a channel.
    pub struct OfferChannel {
        /// 8: what kind of device.
        pub class: WireGuid,
        /// 24: which device; stable when it is offered again.
        pub instance: WireGuid,
        /// 40: ignored.
        pub reserved: [u8; 16],
        /// 56: [`OfferFlags`](super::OfferFlags); unknown bits are ignored.
        pub flags: U16,
        /// 58: megabytes of memory-mapped I/O space that the device needs.
        pub mmio_megabytes: U16,
        /// 60: depends on the class; for pipes the first word is their type.
        pub user_defined: [u8; 120],
        /// 180: 0 for a primary channel, else the number of the sub-channel.
        pub sub_channel: U16,
        /// 182: megabytes of memory-mapped I/O space that the device could use.
        pub mmio_megabytes_optional: U16,
        /// 184: the channel's id on this connection, 1..=2047.
        pub channel: U32,
        /// 188: number in the monitor pages, if allocated.
        pub monitor: u8,
        /// 189: bit 0: `monitor` means something.
        pub monitor_allocated: u8,
        /// 190: bit 0: the channel has an interrupt of its own; 1 on any modern host.
        pub dedicated_interrupt: U16,
        /// 192: where the guest signals the host.
        pub connection: U32,
    }

    /// Message 2: the host takes an offer back.
    pub struct RescindOffer {
        /// 8: the channel.
        pub channel: U32,
    }

    /// Message 3: the guest wants to hear of the devices.
    pub struct RequestOffers {}

    /// Message 4: all offers that existed at the request were sent.
    pub struct AllOffersDelivered {}

    /// Message 5: the guest opens a channel. Version 6.0 may add 8 bytes.
    pub struct OpenChannel {
        /// 8: the channel.
        pub channel: U32,
        /// 12: chosen by the guest, echoed in the result.
        pub open_id: U32,
        /// 16: the GPADL that holds both rings.
        pub ring_gpadl: U32,
        /// 20: virtual processor that gets the host's signals; 0xffff_ffff for none.
        pub target_vp: U32,
        /// 24: number of pages before the ring from host to guest.
        pub downstream_page: U32,
        /// 28: depends on the class; 0 for NIC and PCI.
        pub user_data: [u8; 120],
    }

    /// Message 6: the result of an open.
    pub struct OpenResult {
        /// 8: the channel.
        pub channel: U32,
        /// 12: the id of the request.
        pub open_id: U32,
        /// 16: 0, or an NTSTATUS.
        pub status: U32,
    }

    /// Message 7: the guest closes a channel; unanswered.
    pub struct CloseChannel {
        /// 8: the channel.
        pub channel: U32,
    }

    /// Message 8: the start of a GPADL; range data follows at 20.
    pub struct GpadlHeader {
        /// 8: the channel that the memory belongs to.
        pub channel: U32,
        /// 12: chosen by the guest, non-zero.
        pub gpadl: U32,
        /// 16: bytes of range data in this message and all bodies together.
        pub range_bytes: U16,
        /// 18: number of ranges.
        pub range_count: U16,
    }

    /// Message 9: more range data of a GPADL, at 16.
    pub struct GpadlBody {
        /// 8: a message number; 0 by habit, ignored.
        pub number: U32,
        /// 12: the GPADL.
        pub gpadl: U32,
    }

    /// Message 10: the result of making a GPADL.
    pub struct GpadlCreated {
        /// 8: the channel.
        pub channel: U32,
        /// 12: the GPADL.
        pub gpadl: U32,
        /// 16: 0, or an NTSTATUS.
        pub status: U32,
    }

    /// Message 11: the guest wants its memory back.
    pub struct GpadlTeardown {
        /// 8: the channel.
        pub channel: U32,
        /// 12: the GPADL.
        pub gpadl: U32,
    }

    /// Message 12: the host uses that memory no longer.
    pub struct GpadlTorndown {
        /// 8: the GPADL.
        pub gpadl: U32,
    }

    /// Message 13: the guest has let go of a channel; its id is free. Unanswered.
    pub struct ReleaseChannel {
        /// 8: the channel.
        pub channel: U32,
    }

    /// Message 14: the guest asks for a version. With [`Features::CLIENT_ID`](super::Features::CLIENT_ID) 16 more bytes.
    pub struct InitiateContact {
        /// 8: the version asked for.
        pub version: U32,
        /// 12: virtual processor that gets the host's messages.
        pub target_vp: U32,
        /// 16: from 5.0: interrupt source (2), virtual trust level (from 5.1), 16 bits of padding, 32 bits of features.
        /// Before: address of the interrupt page, 0 for none.
        pub target: U64,
        /// 24: address of the monitor page from host to guest, or 0.
        pub monitor_to_guest: U64,
        /// 32: address of the monitor page from guest to host, or 0.
        pub monitor_to_host: U64,
    }

    /// Message 15: yes or no to a version. A yes to 6.0 carries the features at 16.
    pub struct VersionResponse {
        /// 8: 1 if the version is accepted.
        pub supported: u8,
        /// 9: 0 if contact succeeded, 1 low resources, 2 unknown failure.
        pub state: u8,
        /// 10: padding.
        pub reserved: U16,
        /// 12: from 5.0 the connection id for all further messages, before the version.
        pub connection: U32,
    }

    /// What follows a yes to version 6.0.
    pub struct VersionFeatures {
        /// 16: the accepted [`Features`](super::Features), a subset of those asked for.
        pub features: U32,
    }

    /// What follows [`VersionFeatures`] where the host provides the monitor pages.
    pub struct VersionMonitorPages {
        /// 20: padding.
        pub reserved: U32,
        /// 24: address of the monitor page from host to guest.
        pub monitor_to_guest: U64,
        /// 32: address of the monitor page from guest to host.
        pub monitor_to_host: U64,
    }

    /// What follows [`OpenChannel`] in version 6.0 where the guest chooses how a channel is signalled.
    pub struct OpenSignal {
        /// 148: where the guest signals the host.
        pub connection: U32,
        /// 152: event flag by which the host signals the guest.
        pub event_flag: U16,
        /// 154: bit 0 ([`OpenSignal::REDIRECT_INTERRUPT`]): the interrupt is redirected.
        pub flags: U16,
    }

    /// Message 16: the guest says good-bye.
    pub struct Unload {}

    /// Message 17: the host has forgotten everything.
    pub struct UnloadResponse {}

    /// Message 18: opens a reserved channel; not used by NIC and PCI.
    pub struct OpenReserved {
        /// 8: the channel.
        pub channel: U32,
        /// 12: target virtual processor.
        pub target_vp: U32,
        /// 16: target interrupt source.
        pub target_sint: U32,
        /// 20: the GPADL that holds both rings.
        pub ring_gpadl: U32,
        /// 24: number of pages before the ring from host to guest.
        pub downstream_page: U32,
    }

    /// Message 19: closes a reserved channel.
    pub struct CloseReserved {
        /// 8: the channel.
        pub channel: U32,
        /// 12: target virtual processor.
        pub target_vp: U32,
        /// 16: target interrupt source.
        pub target_sint: U32,
    }

    /// Message 20: a reserved channel is closed.
    pub struct CloseReservedResponse {
        /// 8: the channel.
        pub channel: U32,
    }

    /// Message 21: a socket wants to connect. From 5.2 a silo GUID follows at 40.
    pub struct SocketConnect {
        /// 8: the endpoint.
        pub endpoint: WireGuid,
        /// 24: the service.
        pub service: WireGuid,
    }

    /// Message 22: another virtual processor for a channel's signals.
    pub struct ModifyChannel {
        /// 8: the channel.
        pub channel: U32,
        /// 12: target virtual processor.
        pub target_vp: U32,
    }

    /// Message 23: the result of a socket's connect.
    pub struct SocketConnectResult {
        /// 8: the endpoint.
        pub endpoint: WireGuid,
        /// 24: the service.
        pub service: WireGuid,
        /// 40: 0, or an NTSTATUS.
        pub status: U32,
    }

    /// Message 24: the result of `MODIFY_CHANNEL`.
    pub struct ModifyChannelResponse {
        /// 8: the channel.
        pub channel: U32,
        /// 12: 0, or an NTSTATUS.
        pub status: U32,
    }

    /// Message 25: other monitor pages.
    pub struct ModifyConnection {
        /// 8: address of the monitor page from host to guest.
        pub monitor_to_guest: U64,
        /// 16: address of the monitor page from guest to host.
        pub monitor_to_host: U64,
    }

    /// Message 26: the result of `MODIFY_CONNECTION`.
    pub struct ModifyConnectionResponse {
        /// 8: as in [`VersionResponse::state`].
        pub state: u8,
    }

    /// Message 27: the guest wants no messages for now.
    pub struct Pause {}

    /// Message 28: the last message before a pause.
    pub struct PauseResponse {}

    /// Message 29: the guest wants messages again.
    pub struct Resume {}
}

impl OpenSignal {
    /// The bit of [`OpenSignal::flags`] that redirects the interrupt.
    pub const REDIRECT_INTERRUPT: u16 = 1;
}
