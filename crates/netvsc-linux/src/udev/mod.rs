//! What udev is told about a network device: which half of a pair it is, and of which.
//!
//! [`identify`] answers while the device's `add` event is being handled, when names, the slave flag and the link between
//! the halves may still be missing. So it asks for none of them: a VF is a device whose function came over a virtual PCI
//! bus and whose permanent MAC is that of a NIC on VMBus. (The rule that looks for the slave flag and a list of drivers
//! comes too early on kernels that set the flag after the event.) The kernel log is not read, no link is listed, and the
//! number of files touched grows with the number of VMBus devices only.
//!
//! [`Identity::properties`] are made of words, numbers, GUIDs and MACs. No name that somebody chose gets into them.

mod place;
mod read;

use std::path::Path;

use netvsc::mac::MacAddress;
use vmbus::{Guid, Serial};

use crate::inventory::{RootError, Source};
use crate::relation::Sourced;

use self::read::Reader;

/// Which part a network device plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A synthetic NIC: what addresses belong on.
    Synthetic,
    /// A VF that has, or will have, a NIC above it. Nobody else may manage it.
    Vf,
    /// A VF without any NIC: all there is, to be managed like any card.
    Standalone,
    /// A VF while some NIC does not show its MAC yet. Nobody may manage it before that is decided.
    Pending,
}

impl Role {
    /// The word for machines.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Synthetic => "synthetic",
            Self::Vf => "vf",
            Self::Standalone => "standalone",
            Self::Pending => "pending",
        }
    }

    /// Whether network managers are to keep away from the device.
    #[must_use]
    pub const fn unmanaged(self) -> bool {
        matches!(self, Self::Vf | Self::Pending)
    }
}

/// What udev is told about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its part.
    pub role: Role,
    /// Instance of its offer: a NIC's own, a VF's that of its virtual PCI bus.
    pub guid: Guid,
    /// The NIC's index, where its GUID holds one.
    pub nic_index: Option<u16>,
    /// Name of the function's slot.
    pub slot: Option<String>,
    /// The serial number and from where it is known.
    pub serial: Option<Sourced<Serial>>,
    /// Instance of the other half's offer.
    pub peer: Option<Guid>,
    /// Permanent MAC of the other half.
    pub peer_mac: Option<MacAddress>,
}

/// The properties that keep network managers away, by the names that they, and the tools of Azure's images, look for.
pub const UNMANAGED: [(&str, &str); 3] =
    [("AZURE_UNMANAGED_SRIOV", "1"), ("ID_NET_MANAGED_BY", "unmanaged"), ("NM_UNMANAGED", "1")];

impl Identity {
    /// What to print for udev, in this order.
    #[must_use]
    pub fn properties(&self) -> Vec<(&'static str, String)> {
        let mut all = vec![
            ("NETVSC_ROLE", self.role.word().to_owned()),
            ("NETVSC_GUID", self.guid.to_string()),
        ];
        let mut some = |key, value: Option<String>| all.extend(value.map(|value| (key, value)));
        some("NETVSC_NIC_INDEX", self.nic_index.map(|index| index.to_string()));
        some("NETVSC_SLOT", self.slot.clone().filter(|slot| plain(slot)));
        some("NETVSC_SERIAL", self.serial.map(|serial| serial.value.0.to_string()));
        some("NETVSC_SERIAL_SOURCE", self.serial.map(|serial| serial.source.word().to_owned()));
        some("NETVSC_PEER_GUID", self.peer.map(|guid| guid.to_string()));
        some("NETVSC_PEER_MAC", self.peer_mac.map(|mac| mac.to_string()));
        if self.role.unmanaged() {
            all.extend(UNMANAGED.map(|(key, value)| (key, value.to_owned())));
        }
        all
    }
}

/// Whether a slot's name may be printed: what it is made of means nothing to udev or to a shell.
fn plain(name: &str) -> bool {
    let fits = (1..=32).contains(&name.len());
    fits && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// Asks for the permanent MAC of the interface with this number, where sysfs does not tell it.
pub type AskMac<'a> = dyn FnMut(u32) -> Option<MacAddress> + 'a;

/// What [`identify`] found, and at what price.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The device; none if it is neither a synthetic NIC nor a VF.
    pub identity: Option<Identity>,
    /// How many files, directories and links were touched.
    pub touched: u32,
}

/// Says what a network device is: by its path in sysfs as udev gives it (`/devices/../net/eth0`), or by its name.
///
/// # Errors
/// [`RootError`] if the root cannot be used. Everything else that cannot be read is only not known.
pub fn identify(
    root: Option<&Path>,
    device: &str,
    ask: &mut AskMac<'_>,
) -> Result<Found, RootError> {
    let mut reader = Reader::new(root, ask)?;
    let identity = reader.identify(device);
    Ok(Found { identity, touched: reader.touched() })
}

/// Has udev look again at the VFs with a NIC's MAC, for which the NIC came too late. Gives the number of VFs told.
///
/// # Errors
/// [`RootError`] if the root cannot be used.
pub fn retrigger(
    root: Option<&Path>,
    device: &str,
    ask: &mut AskMac<'_>,
) -> Result<usize, RootError> {
    Ok(Reader::new(root, ask)?.retrigger(device))
}

/// The source of a serial for a NIC: the slot of the VF that the kernel linked with it.
const LINKED: Source = Source::InferredLink;

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(role: Role) -> Identity {
        Identity {
            role,
            guid: Guid::from_u128(1),
            nic_index: None,
            slot: None,
            serial: None,
            peer: None,
            peer_mac: None,
        }
    }

    #[test]
    fn only_what_has_or_may_get_a_nic_is_kept_from_managers() {
        for (role, unmanaged) in [
            (Role::Synthetic, false),
            (Role::Vf, true),
            (Role::Standalone, false),
            (Role::Pending, true),
        ] {
            let properties = identity(role).properties();
            assert_eq!(properties[0], ("NETVSC_ROLE", role.word().to_owned()));
            for (key, value) in UNMANAGED {
                assert_eq!(properties.contains(&(key, value.to_owned())), unmanaged, "{role:?}");
            }
        }
    }

    #[test]
    fn a_slot_with_a_strange_name_is_not_printed() {
        for (name, printed) in [
            ("1", true),
            ("1-1", true),
            ("1296119428", true),
            ("", false),
            ("1\nNM_UNMANAGED=0", false),
            ("$(reboot)", false),
            ("a b", false),
            ("\u{e9}", false),
        ] {
            let slot = Some(name.to_owned());
            let properties = Identity { slot, ..identity(Role::Vf) }.properties();
            assert_eq!(
                properties.iter().any(|(key, _)| *key == "NETVSC_SLOT"),
                printed,
                "{name:?}"
            );
        }
    }
}
