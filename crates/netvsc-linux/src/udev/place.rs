//! What the path of a device in sysfs says by itself.

use vmbus::Guid;

use crate::inventory::{PciAddress, bus_of, vmbus_instance};

/// Longest path that is looked at, in bytes.
const PATH_LIMIT: usize = 1024;

/// Where a network device sits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its directory from the root, without a slash in front.
    pub(super) path: String,
    /// What it is a child of.
    pub(super) parent: Parent,
}

/// What a network device is a child of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parent {
    /// A VMBus device.
    Vmbus(Guid),
    /// A function below the PCI bus of a VMBus device.
    Vpci(Guid, PciAddress),
}

impl Place {
    /// Reads `/devices/../<guid>/net/eth0` and `/devices/../<guid>/pci927a:00/../927a:00:02.0/net/eth1`. None for
    /// everything else, such as paths that climb.
    pub(super) fn parse(device: &str) -> Option<Self> {
        let path = device.strip_prefix("/sys").unwrap_or(device).strip_prefix('/')?;
        if path.len() > PATH_LIMIT {
            return None;
        }
        let parts: Vec<&str> = path.split('/').collect();
        let climbs = |part: &&str| part.is_empty() || *part == "." || *part == "..";
        if parts.first() != Some(&"devices") || parts.iter().any(climbs) {
            return None;
        }
        let [ancestors @ .., parent, "net", _name] = parts.as_slice() else { return None };
        let parent = match PciAddress::parse(parent) {
            Some(address) => Parent::Vpci(bus_of(ancestors, address)?, address),
            None => Parent::Vmbus(vmbus_instance(parent)?),
        };
        Some(Self { path: format!("sys/{path}"), parent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NIC: &str = "7c1e5225-55d2-7c1e-5225-55d27c1e5225";
    const BUS: &str = "d3cbd5f3-927a-45ec-985d-2ddb43e90b83";

    #[test]
    fn ancestry_is_read_from_the_path() {
        let root = "/devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0004:00/VMBUS:00";
        let place = Place::parse(&format!("{root}/{NIC}/net/eth0")).unwrap();
        assert_eq!(place.parent, Parent::Vmbus(NIC.parse().unwrap()));
        assert!(place.path.starts_with("sys/devices/") && place.path.ends_with("/net/eth0"));
        let bus = BUS.parse().unwrap();
        let address = PciAddress::parse("927a:00:02.0").unwrap();
        let vf = format!("/sys{root}/{BUS}/pci927a:00/927a:00:02.0/net/eth1");
        assert_eq!(Place::parse(&vf).unwrap().parent, Parent::Vpci(bus, address));
        let bridged = format!("{root}/{BUS}/pci927a:00/927a:00:01.0/927a:01:00.0/net/eth1");
        let address = PciAddress::parse("927a:01:00.0").unwrap();
        assert_eq!(Place::parse(&bridged).unwrap().parent, Parent::Vpci(bus, address));
    }

    #[test]
    fn other_paths_mean_nothing() {
        for path in [
            "",
            "/",
            "eth0",
            "/devices/virtual/net/lo",
            "/devices/pci0000:00/0000:00:0a.0/net/eth2",
            "/devices/pci0000:00/927a:00:02.0/net/eth2",
            &format!("/devices/{BUS}/pci0001:00/927a:00:02.0/net/eth2"),
            &format!("/devices/{NIC}/../{NIC}/net/eth0"),
            &format!("/devices/{NIC}/net/"),
            &format!("/devices/{NIC}/net/eth0/queues"),
            &format!("/devices//{NIC}/net/eth0"),
            &format!("devices/{NIC}/net/eth0"),
            &format!("/devices/{}/{NIC}/net/eth0", "x".repeat(PATH_LIMIT)),
        ] {
            assert_eq!(Place::parse(path), None, "{path}");
        }
    }
}
