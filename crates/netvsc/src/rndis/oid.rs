//! Objects that can be asked for and set.

use vmbus::open_enum;

open_enum! {
    /// Name of an object.
    pub struct Oid(u32) {
        /// u32: largest frame without its Ethernet header.
        MAXIMUM_FRAME_SIZE = 0x0001_0106,
        /// u32 in units of 100 bit/s.
        LINK_SPEED = 0x0001_0107,
        /// u32: [`PacketFilter`].
        CURRENT_PACKET_FILTER = 0x0001_010e,
        /// u32: 0 connected, 1 not.
        MEDIA_CONNECT_STATUS = 0x0001_0114,
        /// What the host can do of receive side scaling.
        RSS_CAPABILITIES = 0x0001_0203,
        /// How receive side scaling is done.
        RSS_PARAMETERS = 0x0001_0204,
        /// Link state with speeds.
        LINK_STATE = 0x0001_0207,
        /// A named parameter.
        CONFIG_PARAMETER = 0x0001_021b,
        /// The name that the administrator gave the card, UTF-16.
        FRIENDLY_NAME = 0x0002_0216,
        /// 6 bytes: the MAC address that the card was made with.
        PERMANENT_ADDRESS = 0x0101_0101,
        /// 6 bytes: the MAC address in use.
        CURRENT_ADDRESS = 0x0101_0102,
        /// The encapsulation that offloads deal with.
        OFFLOAD_ENCAPSULATION = 0x0101_010a,
        /// Offloads in use.
        OFFLOAD_CURRENT_CONFIG = 0xfc01_020b,
        /// Offloads wanted.
        OFFLOAD_PARAMETERS = 0xfc01_020c,
        /// Offloads that there are.
        OFFLOAD_HARDWARE_CAPABILITIES = 0xfc01_020d,
    }
}

bitflags::bitflags! {
    /// Which frames the guest wants. Nothing set: none at all.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct PacketFilter: u32 {
        /// To its own address.
        const DIRECTED = 1;
        /// To groups it is in.
        const MULTICAST = 2;
        /// To every group.
        const ALL_MULTICAST = 4;
        /// To everybody.
        const BROADCAST = 8;
        /// Every frame.
        const PROMISCUOUS = 0x20;
        /// Bits that are not known here.
        const _ = !0;
    }
}
