//! An interface, as the kernel tells it.

use netlink_packet_core::{Nla, NlasIterator, ParseableParametrized};
use netlink_packet_route::link::{
    InfoData, InfoTun, LinkAttribute, LinkHeader, LinkInfo, LinkXdp, Prop, XdpAttached,
};
use netvsc::mac::MacAddress;

/// Length of the fixed part of a link's message, in bytes.
const HEADER: usize = 16;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number, which outlives names.
    pub index: u32,
    /// Its name now.
    pub name: String,
    /// Its other names, up to 127 characters each.
    pub altnames: Vec<String>,
    /// Hardware type; 1 is Ethernet.
    pub kind: u16,
    /// Interface flags, among them RUNNING (0x40) and LOWER_UP (0x10000), which sysfs does not tell.
    pub flags: u32,
    /// How many want every frame of it (`IFLA_PROMISCUITY`). A bridge's wish is not among the flags.
    pub promiscuity: Option<u32>,
    /// Its MAC now; none if its address is no MAC, as InfiniBand's.
    pub mac: Option<MacAddress>,
    /// Its permanent MAC (`IFLA_PERM_ADDRESS`); none if the driver tells none.
    pub permanent: Option<MacAddress>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Least MTU that the driver takes, in bytes.
    pub min_mtu: Option<u32>,
    /// Greatest MTU that the driver takes, in bytes; none if it names none.
    pub max_mtu: Option<u32>,
    /// Number of the link that it belongs to.
    pub master: Option<u32>,
    /// Number of the link that it is made from or joined to (VLAN, veth). In the namespace [`Link::peer_namespace`] if
    /// there is one.
    pub lower: Option<u32>,
    /// Number, in this namespace, of the namespace in which [`Link::lower`] is.
    pub peer_namespace: Option<i32>,
    /// Name of the device that it sits on: a GUID on VMBus, an address on PCI. Kernels from 5.14 tell it.
    pub parent: Option<String>,
    /// Name of that device's bus: `vmbus`, `pci`.
    pub parent_bus: Option<String>,
    /// `UP`, `DOWN` and others, as `ip` prints it.
    pub operstate: Option<String>,
    /// Carrier.
    pub carrier: Option<bool>,
    /// What made it, if software did: `veth`, `bridge`, `vlan`, `tun`.
    pub made: Option<String>,
    /// Queues of a TAP that are attached, if it may have several.
    pub tap_queues: Option<u32>,
    /// Name of its queueing discipline.
    pub qdisc: Option<String>,
    /// Most transmit and receive queues that it may have.
    pub most_queues: (Option<u32>, Option<u32>),
    /// Whether an XDP program is attached, and how: `driver`, `generic`, `hardware`, `several`.
    pub xdp: Option<&'static str>,
}

impl Link {
    /// Whether it is administratively up.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.flags & 1 != 0
    }

    /// The flags that are the interface's own, as sysfs shows them: without what follows from its state (`RUNNING` and all
    /// above 16 bits).
    #[must_use]
    pub const fn stored_flags(&self) -> u32 {
        self.flags & 0xffff & !0x40
    }

    /// Whether the kernel has marked it as somebody's slave (IFF_SLAVE).
    #[must_use]
    pub const fn is_slave(&self) -> bool {
        self.flags & 0x800 != 0
    }

    /// Reads the payload of a link's message. An attribute that cannot be read is left out.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let header = LinkHeader::parse(payload).ok()?;
        let family = header.interface_family;
        // A message about a bridge's port has another family, and is no link.
        if u8::from(family) != 0 {
            return None;
        }
        let mut link = Self {
            index: header.index,
            kind: u16::from(header.link_layer_type),
            flags: header.flags.bits(),
            ..Self::default()
        };
        for attribute in NlasIterator::new(payload.get(HEADER..)?).flatten() {
            if let Ok(attribute) = LinkAttribute::parse_with_param(&attribute, family) {
                link.take(attribute);
            }
        }
        (link.index != 0).then_some(link)
    }

    fn take(&mut self, attribute: LinkAttribute) {
        match attribute {
            LinkAttribute::IfName(name) => self.name = name,
            LinkAttribute::Address(bytes) => self.mac = mac(&bytes),
            LinkAttribute::PermAddress(bytes) => {
                self.permanent = mac(&bytes).filter(|mac| mac.is_unicast());
            }
            LinkAttribute::Mtu(mtu) => self.mtu = Some(mtu),
            LinkAttribute::MinMtu(mtu) => self.min_mtu = Some(mtu),
            // 0 means that the driver names no limit.
            LinkAttribute::MaxMtu(mtu) => self.max_mtu = Some(mtu).filter(|mtu| *mtu != 0),
            LinkAttribute::Controller(index) => self.master = Some(index).filter(|i| *i != 0),
            LinkAttribute::Link(index) => self.lower = Some(index).filter(|i| *i != 0),
            LinkAttribute::LinkNetNsId(id) => self.peer_namespace = Some(id),
            LinkAttribute::ParentDevName(name) => self.parent = Some(name),
            LinkAttribute::ParentDevBusName(name) => self.parent_bus = Some(name),
            LinkAttribute::OperState(state) => self.operstate = Some(state.to_string()),
            LinkAttribute::Promiscuity(number) => self.promiscuity = Some(number),
            LinkAttribute::Carrier(carrier) => self.carrier = Some(carrier != 0),
            LinkAttribute::Qdisc(name) => self.qdisc = Some(name),
            LinkAttribute::NumTxQueues(number) => self.most_queues.0 = Some(number),
            LinkAttribute::NumRxQueues(number) => self.most_queues.1 = Some(number),
            LinkAttribute::PropList(properties) => {
                self.altnames.extend(properties.into_iter().filter_map(
                    |property| match property {
                        Prop::AltIfName(name) => Some(name),
                        _ => None,
                    },
                ));
            }
            LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| match info {
                LinkInfo::Kind(kind) => self.made = Some(kind.to_string()),
                LinkInfo::Data(InfoData::Tun(data)) => self.tap_queues = tap_queues(&data),
                _ => {}
            }),
            LinkAttribute::Xdp(attributes) => {
                self.xdp = attributes.into_iter().find_map(|attribute| match attribute {
                    LinkXdp::Attached(how) => attached(&how),
                    _ => None,
                });
            }
            _ => {}
        }
    }
}

fn mac(bytes: &[u8]) -> Option<MacAddress> {
    bytes.try_into().ok().map(MacAddress)
}

/// `IFLA_TUN_NUM_QUEUES`.
fn tap_queues(data: &[InfoTun]) -> Option<u32> {
    let InfoTun::Other(queues) = data.iter().find(|it| it.kind() == 8)? else { return None };
    let mut number = [0; 4];
    if queues.value_len() == number.len() {
        queues.emit_value(&mut number);
        return Some(u32::from_ne_bytes(number));
    }
    None
}

fn attached(how: &XdpAttached) -> Option<&'static str> {
    match how {
        XdpAttached::None => None,
        XdpAttached::Driver => Some("driver"),
        XdpAttached::SocketBuffer => Some("generic"),
        XdpAttached::Hardware => Some("hardware"),
        _ => Some("several"),
    }
}
