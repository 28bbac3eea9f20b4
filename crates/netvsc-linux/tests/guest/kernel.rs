//! What the kernel would answer by netlink, byte by byte, as files of a recorded guest.

use std::fs;
use std::net::IpAddr;

use super::Guest;

const IFNAME: u16 = 3;
const MASTER: u16 = 10;
/// Attributes of links that tests tell: see `linux/if_link.h`.
pub const ADDRESS: u16 = 1;
pub const MTU: u16 = 4;
pub const QDISC: u16 = 6;
const OPERSTATE: u16 = 16;
const LINK_INFO: u16 = 18;
pub const RX_QUEUES: u16 = 32;
pub const XDP: u16 = 43;
pub const MAX_MTU: u16 = 51;
pub const PERM_ADDRESS: u16 = 54;
const CARRIER: u16 = 33;
pub const PARENT: u16 = 56;
const PARENT_BUS: u16 = 57;
/// A nest with `IFLA_XDP_ATTACHED` = 1, in the driver.
pub const XDP_DRIVER: [u8; 8] = [5, 0, 2, 0, 1, 0, 0, 0];

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(value.len() + 4).expect("short").to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn message(kind: u16, header: &[u8], attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = header.to_vec();
    for (kind, value) in attributes {
        body.extend(attribute(*kind, value));
    }
    let length = u32::try_from(body.len() + 16).expect("short");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&[2, 0]);
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend(body);
    bytes
}

/// A link's other name: `IFLA_PROP_LIST`, a nest, with one `IFLA_ALT_IFNAME`.
pub fn altname(name: &str) -> (u16, Vec<u8>) {
    (0x8000 | 52, attribute(53, format!("{name}\0").as_bytes()))
}

/// A MAC as bytes.
pub fn mac(text: &str) -> Vec<u8> {
    text.split(':').map(|part| u8::from_str_radix(part, 16).expect("a MAC")).collect()
}

fn bytes(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (2, address.octets().to_vec()),
        IpAddr::V6(address) => (10, address.octets().to_vec()),
    }
}

impl Guest {
    fn append(&self, table: &str, message: &[u8]) {
        let path = self.path(&format!("netlink/{table}"));
        fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
        let mut all = fs::read(&path).unwrap_or_default();
        all.extend_from_slice(message);
        fs::write(path, all).expect("a file");
    }

    /// What a kernel says that nobody has given any address to.
    pub fn silent(&self) {
        for table in ["addresses", "routes", "neighbours"] {
            self.append(table, &[]);
        }
    }

    /// A link, in the namespace of the guest or (`netns/NAME/`) another one.
    pub fn tell(&self, namespace: &str, index: u32, name: &str, attributes: &[(u16, Vec<u8>)]) {
        self.tell_with(namespace, (index, 1, 0x1003), name, attributes);
    }

    /// A link by its number, hardware type and flags.
    fn tell_with(
        &self,
        namespace: &str,
        (index, kind, flags): (u32, u16, u32),
        name: &str,
        attributes: &[(u16, Vec<u8>)],
    ) {
        let mut header = vec![0, 0];
        header.extend_from_slice(&kind.to_ne_bytes());
        header.extend_from_slice(&index.to_ne_bytes());
        header.extend_from_slice(&flags.to_ne_bytes());
        header.extend_from_slice(&[0; 4]);
        let mut all = vec![(IFNAME, format!("{name}\0").into_bytes())];
        all.extend(attributes.iter().cloned());
        self.append(&format!("{namespace}links"), &message(16, &header, &all));
    }

    /// Every link that the tree shows, as a kernel from 5.14 on tells it.
    pub fn tell_links(&self) {
        let links = fs::read_dir(self.path("sys/class/net")).expect("a folder");
        let mut names: Vec<String> = links
            .map(|link| link.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        for name in names {
            let read = |attribute: &str| {
                let text =
                    fs::read_to_string(self.path(&format!("sys/class/net/{name}/{attribute}")));
                text.ok().map(|text| text.trim().to_owned())
            };
            // `bonding_masters` is no link.
            let Some(index) = read("ifindex").and_then(|index| index.parse().ok()) else {
                continue;
            };
            let flags =
                read("flags").and_then(|flags| u32::from_str_radix(flags.get(2..)?, 16).ok());
            let flags = flags.unwrap_or_default();
            let kind = read("type").and_then(|kind| kind.parse().ok()).unwrap_or(1);
            let attributes = self.attributes_of(&name, &read);
            self.tell_with("", (index, kind, flags), &name, &attributes);
        }
    }

    fn attributes_of(
        &self,
        name: &str,
        read: &impl Fn(&str) -> Option<String>,
    ) -> Vec<(u16, Vec<u8>)> {
        let text = |text: &str| format!("{text}\0").into_bytes();
        let mut all = Vec::new();
        let own = read("addr_assign_type").as_deref() == Some("0");
        if let Some(address) = read("address") {
            all.push((ADDRESS, mac(&address)));
            all.extend(own.then(|| (PERM_ADDRESS, mac(&address))));
        }
        let mtu = read("mtu").and_then(|mtu| mtu.parse::<u32>().ok());
        all.extend(mtu.map(|mtu| (MTU, mtu.to_ne_bytes().to_vec())));
        all.push((OPERSTATE, vec![if read("operstate").as_deref() == Some("up") { 6 } else { 2 }]));
        all.push((CARRIER, vec![u8::from(read("carrier").as_deref() == Some("1"))]));
        let link = |link: &str| fs::read_link(self.path(&format!("sys/class/net/{name}/{link}")));
        let last = |path: &std::path::Path| {
            path.file_name().and_then(|name| name.to_str()).map(str::to_owned)
        };
        if let Some(master) = link("master").ok().and_then(|path| last(&path)) {
            let index = fs::read_to_string(self.path(&format!("sys/class/net/{master}/ifindex")));
            let index = index.ok().and_then(|index| index.trim().parse().ok());
            all.extend(index.map(Self::master_of));
        }
        match link("device").ok().and_then(|path| last(&path)) {
            Some(parent) => {
                all.push((PARENT, text(&parent)));
                let bus = link("device/subsystem").ok().and_then(|path| last(&path));
                all.extend(bus.map(|bus| (PARENT_BUS, text(&bus))));
            }
            None => all.push((LINK_INFO, attribute(1, &text(self.made(name, read))))),
        }
        all
    }

    /// What asked for it, as far as the tree shows it.
    fn made(&self, name: &str, read: &impl Fn(&str) -> Option<String>) -> &'static str {
        let has = |entry: &str| self.path(&format!("sys/class/net/{name}/{entry}")).exists();
        let event = read("uevent").unwrap_or_default();
        match () {
            () if has("bonding") => "bond",
            () if has("bridge") => "bridge",
            () if has("tun_flags") => "tun",
            () if event.contains("DEVTYPE=vlan") => "vlan",
            () => "dummy",
        }
    }

    /// An address of an interface, `10.0.0.4/24`.
    pub fn address(&self, index: u32, address: &str) {
        let (address, prefix) = address.split_once('/').expect("a prefix");
        let (family, value) = bytes(address.parse().expect("an address"));
        let prefix: u8 = prefix.parse().expect("a length");
        let mut header = vec![family, prefix, 0x80, 0];
        header.extend_from_slice(&index.to_ne_bytes());
        let message = message(20, &header, &[(1, value.clone()), (2, value)]);
        self.append("addresses", &message);
    }

    /// A route out of an interface; `default`, or a network.
    pub fn route(&self, index: u32, network: &str) {
        let mut attributes = vec![(4, index.to_ne_bytes().to_vec())];
        let (mut family, mut prefix) = (2, 0);
        if let Some((address, length)) = network.split_once('/') {
            let (of, value) = bytes(address.parse().expect("an address"));
            (family, prefix) = (of, length.parse().expect("a length"));
            attributes.push((1, value));
        }
        let header = [family, prefix, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
        self.append("routes", &message(24, &header, &attributes));
    }

    /// A neighbour that the kernel asked for.
    pub fn neighbour(&self, index: u32, address: &str) {
        let (family, value) = bytes(address.parse().expect("an address"));
        let mut header = vec![family, 0, 0, 0];
        header.extend_from_slice(&index.to_ne_bytes());
        header.extend_from_slice(&[2, 0, 0, 1]);
        self.append("neighbours", &message(28, &header, &[(1, value)]));
    }

    /// A receive ring: how many frames it holds, and how many it may.
    pub fn ring(&self, index: u32, holds: u32, most: u32) {
        let header = attribute(1, &index.to_ne_bytes());
        let attributes = [
            (1 | 0x8000, header),
            (2, most.to_ne_bytes().to_vec()),
            (6, holds.to_ne_bytes().to_vec()),
        ];
        self.append("rings", &message(21, &[16, 1, 0, 0], &attributes));
    }

    /// Features that are on.
    pub fn features(&self, index: u32, on: &[&str]) {
        let header = attribute(1, &index.to_ne_bytes());
        let bits: Vec<u8> = on
            .iter()
            .flat_map(|name| attribute(1 | 0x8000, &attribute(2, format!("{name}\0").as_bytes())))
            .collect();
        let active = attribute(3 | 0x8000, &bits);
        let attributes = [(1 | 0x8000, header), (4 | 0x8000, active)];
        self.append("features", &message(21, &[11, 1, 0, 0], &attributes));
    }

    /// Which master a link has, as an attribute.
    pub fn master_of(index: u32) -> (u16, Vec<u8>) {
        (MASTER, index.to_ne_bytes().to_vec())
    }
}
