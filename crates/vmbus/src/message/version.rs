//! Versions of the bus protocol and the features of the newest one.

use core::fmt;

/// A version of the bus protocol: major in the upper 16 bits, minor in the lower.
///
/// There are no ranges: guest and host agree on exactly one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32);

impl Version {
    /// Before any agreement, and for messages that every version knows.
    pub const ANY: Self = Self(0);
    /// 1.1: obsolete; the first with an answer to `UNLOAD`.
    pub const V1_1: Self = Self(0x0001_0001);
    /// 2.4: sub-channels, a target processor at open, no interrupt page.
    pub const V2_4: Self = Self(0x0002_0004);
    /// 3.0: guests send `UNLOAD`.
    pub const V3_0: Self = Self(0x0003_0000);
    /// 4.0: sockets, reserved channels; extra GPADLs are torn down after `CLOSE`.
    pub const V4_0: Self = Self(0x0004_0000);
    /// 4.1: `MODIFY_CHANNEL`, unanswered.
    pub const V4_1: Self = Self(0x0004_0001);
    /// 5.0: the host names the connection for messages.
    pub const V5_0: Self = Self(0x0005_0000);
    /// 5.1: a target trust level.
    pub const V5_1: Self = Self(0x0005_0001);
    /// 5.2: the minimum for guests isolated from their host.
    pub const V5_2: Self = Self(0x0005_0002);
    /// 5.3: `MODIFY_CHANNEL` is answered. The newest that Linux asks for.
    pub const V5_3: Self = Self(0x0005_0003);
    /// 6.0: feature flags.
    pub const V6_0: Self = Self(0x0006_0000);

    /// All that a guest can ask for, newest first.
    pub const ALL: [Self; 9] = [
        Self::V6_0,
        Self::V5_3,
        Self::V5_2,
        Self::V5_1,
        Self::V5_0,
        Self::V4_1,
        Self::V4_0,
        Self::V3_0,
        Self::V2_4,
    ];

    /// What a guest should ask for, newest first.
    pub const RECOMMENDED: [Self; 8] = [
        Self::V5_3,
        Self::V5_2,
        Self::V5_1,
        Self::V5_0,
        Self::V4_1,
        Self::V4_0,
        Self::V3_0,
        Self::V2_4,
    ];
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 16, self.0 & 0xffff)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({self})")
    }
}

bitflags::bitflags! {
    /// Features of version 6.0: asked for by the guest, answered with a subset.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Features: u32 {
        /// The guest chooses flag number and connection id of a channel's signals.
        const GUEST_SIGNAL_PARAMETERS = 0x1;
        /// Interrupts of a channel may be redirected.
        const INTERRUPT_REDIRECTION = 0x2;
        /// `MODIFY_CONNECTION` is known.
        const MODIFY_CONNECTION = 0x4;
        /// `INITIATE_CONTACT` carries a client id.
        const CLIENT_ID = 0x8;
        /// Offers say whether their rings are confidential.
        const CONFIDENTIAL_CHANNELS = 0x10;
        /// The guest may pause the host's messages.
        const PAUSE_RESUME = 0x20;
        /// The host provides the monitor pages.
        const SERVER_MONITOR_PAGES = 0x40;
        /// Offers say whether their memory must be pinned.
        const GPADL_PINNING = 0x80;
    }
}

impl Features {
    /// Those with which `OPEN_CHANNEL` has its longer form of 156 bytes; one of them is enough.
    pub const LONG_OPEN: Self = Self::GUEST_SIGNAL_PARAMETERS.union(Self::INTERRUPT_REDIRECTION);
}

bitflags::bitflags! {
    /// Flags of an offer.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct OfferFlags: u16 {
        /// The interface is shown to the guest's user.
        const ENUMERATE_INTERFACE = 0x1;
        /// The ring may be encrypted memory (version 6.0 with the feature).
        const CONFIDENTIAL_RING = 0x2;
        /// Other memory of the channel may be encrypted (version 6.0 with the feature).
        const CONFIDENTIAL_EXTERNAL_MEMORY = 0x4;
        /// Memory of the channel must be pinned (version 6.0 with the feature).
        const REQUIRE_PINNED_MEMORY = 0x8;
        /// A pipe: the user-defined bytes say which kind.
        const NAMED_PIPE = 0x10;
        /// Both ends lie in one partition.
        const LOOPBACK = 0x100;
        /// Offered by the parent partition.
        const PARENT_OFFER = 0x200;
        /// Signals may go over the monitor pages.
        const MONITORED_NOTIFICATION = 0x400;
        /// A socket between guest and host.
        const SOCKET = 0x2000;
    }
}

impl OfferFlags {
    /// The flags that mean something on a connection with these features. Older hosts used the same bits otherwise.
    #[must_use]
    pub fn meaningful(features: Features) -> Self {
        let mut flags = Self::all();
        let confidential = Self::CONFIDENTIAL_RING | Self::CONFIDENTIAL_EXTERNAL_MEMORY;
        flags.set(confidential, features.contains(Features::CONFIDENTIAL_CHANNELS));
        flags.set(Self::REQUIRE_PINNED_MEMORY, features.contains(Features::GPADL_PINNING));
        flags
    }
}
