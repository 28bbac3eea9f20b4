//! What pairing is told, and the names it gives to what it was told about.

use core::fmt;
use core::time::Duration;

use vmbus::{Guid, Serial};

use super::arena::Handle;
use crate::mac::MacAddress;

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident, $word:literal) => {
        $(#[$doc])*
        ///
        /// Carries a generation: once what it names has left, it is stale for ever, and using it is an error value.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub(super) Handle);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($word, "#{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

handle! {
    /// A synthetic NIC that is here.
    NicId, "nic"
}
handle! {
    /// A function that is here.
    FunctionId, "function"
}
handle! {
    /// A port that is here.
    PortId, "port"
}

/// What makes a function this function and no other. A function that differs in any of it is another one (P13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionKey {
    /// Instance of the virtual PCI bus.
    pub bus: Guid,
    /// Slot number on that bus, as the wire has it.
    pub slot: u32,
    /// PCI vendor.
    pub vendor: u16,
    /// PCI device.
    pub device: u16,
    /// The serial number the host gave it. Other functions may carry the same one.
    pub serial: Serial,
}

impl fmt::Display for FunctionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bus, slot, vendor, device, serial } = self;
        write!(
            f,
            "function {vendor:04x}:{device:04x} in slot {slot:#x} of bus {bus}, serial {serial}"
        )
    }
}

/// What makes a port this port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// Its function.
    pub function: FunctionKey,
    /// Which of the function's ports, by the driver's count.
    pub index: u32,
}

impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {} of {}", self.index, self.function)
    }
}

/// What is known of a port's permanent MAC address.
///
/// The current address is not asked for anywhere: it never matters (P10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermanentMac {
    /// This one. An address that no single station can have (zero, multicast) counts as not known yet.
    Known(MacAddress),
    /// Not known yet; the port waits (P4).
    NotYet,
    /// This platform can never know it (P4).
    Never,
}

impl PermanentMac {
    /// The address, if one is known that a station can have.
    #[must_use]
    pub fn known(self) -> Option<MacAddress> {
        match self {
            Self::Known(mac) if mac.is_unicast() => Some(mac),
            _ => None,
        }
    }
}

/// Kinds of network devices that are never candidates, whatever their MAC (P1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceKind {
    /// An emulated card, such as Hyper-V's "legacy" one.
    Emulated,
    /// A PCI card that did not come over vPCI.
    Pci,
    /// A USB card.
    Usb,
    /// A TAP interface.
    Tap,
    /// A VLAN on top of another device, which has that device's MAC.
    Vlan,
    /// A bond, which has the MAC of one of its members.
    Bond,
    /// A bridge.
    Bridge,
    /// A team.
    Team,
    /// Anything else.
    Other,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Emulated => "an emulated network card",
            Self::Pci => "a PCI network card that did not come over vPCI",
            Self::Usb => "a USB network card",
            Self::Tap => "a TAP interface",
            Self::Vlan => "a VLAN interface",
            Self::Bond => "a bond",
            Self::Bridge => "a bridge",
            Self::Team => "a team",
            Self::Other => "a network device of another kind",
        })
    }
}

/// Whether a MAC address alone may make a pair, where no NIC is associated with the port's serial (P6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MacPolicy {
    /// It may, as Linux does it. MANA needs this: its slot number is not the association's serial.
    #[default]
    Allow,
    /// It may not: serials only.
    Deny,
}

/// How to pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairingConfig {
    /// Whether a MAC address alone may make a pair.
    pub mac_policy: MacPolicy,
    /// The guest is isolated from its host (confidential VM): associations are ignored and nothing is paired (P14).
    pub isolated: bool,
    /// How long an association without a VF, or a port without a NIC, goes unmentioned (P12).
    pub patience: Duration,
}

impl Default for PairingConfig {
    fn default() -> Self {
        Self { mac_policy: MacPolicy::Allow, isolated: false, patience: Duration::from_secs(60) }
    }
}

/// A fact about something that pairing does not know, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FactError {
    /// The NIC has left.
    #[error("stale handle {0}: expected a NIC that is here, but it has left")]
    NicLeft(NicId),
    /// The function has left.
    #[error("stale handle {0}: expected a function that is here, but it has left")]
    FunctionLeft(FunctionId),
    /// The port has left.
    #[error("stale handle {0}: expected a port that is here, but it has left")]
    PortLeft(PortId),
    /// Nobody asked to unbind these two.
    #[error("{nic} and {port} reported as unbound: expected a pair that is being unbound")]
    NotUnbinding {
        /// The NIC named.
        nic: NicId,
        /// The port named.
        port: PortId,
    },
}
