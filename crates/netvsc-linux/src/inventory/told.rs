//! What the kernel says by netlink, live or recorded, beside what sysfs shows.

use std::collections::BTreeMap;
use std::path::Path;

use super::model::{Elsewhere, Function, NetDevice, Parent, Snapshot, SoftKind};
use super::tree::{ATTRIBUTE_LIMIT, Tree};
use crate::netlink::{Connection, DriverTable, Link, Reply, Table};

/// Longest recorded answer, in bytes.
const REPLY_LIMIT: usize = 64 << 20;
/// Hardware type of the loopback interface (`linux/if_arp.h`).
const LOOPBACK: u16 = 772;
/// How many other network namespaces are looked into.
const NAMESPACE_LIMIT: usize = 256;

/// Where answers come from.
pub(super) enum Teller {
    /// The kernel that runs here.
    Kernel(Box<Connection>),
    /// Files below a root.
    Recorded,
    /// Nobody: there is no netlink here.
    Silent,
}

impl Teller {
    pub(super) fn new(tree: &mut Tree, live: bool) -> Self {
        if !live {
            return Self::Recorded;
        }
        match Connection::open() {
            Ok(connection) => Self::Kernel(Box::new(connection)),
            Err(error) => {
                tree.note("netlink".into(), error.to_string());
                Self::Silent
            }
        }
    }

    /// A table, or none if it is not to be had.
    fn ask(&mut self, tree: &mut Tree, table: Table) -> Option<Reply> {
        match self {
            Self::Kernel(connection) => match connection.dump(table) {
                Ok(reply) => {
                    tree.keep(&format!("netlink/{}", table.file()), reply.as_bytes());
                    Some(reply)
                }
                Err(error) => {
                    tree.note(format!("netlink/{}", table.file()), error.to_string());
                    None
                }
            },
            Self::Recorded => recorded(tree, "netlink", table),
            Self::Silent => None,
        }
    }
}

fn recorded(tree: &mut Tree, folder: &str, table: Table) -> Option<Reply> {
    tree.bytes(&format!("{folder}/{}", table.file()), REPLY_LIMIT).map(Reply::from_bytes)
}

/// Notes messages that could not be read.
fn good<T>(tree: &mut Tree, table: Table, (values, bad): (Vec<T>, usize)) -> Vec<T> {
    if bad > 0 {
        let why = format!("{bad} messages could not be read");
        tree.note(format!("netlink/{}", table.file()), why);
    }
    values
}

/// Kinds of links that the kernel notes above the one that they are made from.
const MADE_ON_ANOTHER: [&str; 5] = ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"];

/// The links of a guest as netlink tells them, all of one moment.
#[derive(Default)]
pub(super) struct Links {
    /// In the order of their numbers.
    links: Vec<Link>,
    names: BTreeMap<String, usize>,
    /// Names of those above and below each, by its number.
    above: BTreeMap<u32, Vec<String>>,
    below: BTreeMap<u32, Vec<String>>,
}

impl Links {
    /// Asks; empty if nobody answers.
    pub(super) fn ask(tree: &mut Tree, teller: &mut Teller) -> Self {
        let Some(reply) = teller.ask(tree, Table::Links) else { return Self::default() };
        Self::new(good(tree, Table::Links, reply.links()))
    }

    fn new(mut links: Vec<Link>) -> Self {
        links.sort_by_key(|link| link.index);
        let mut told = Self { links, ..Self::default() };
        for (at, link) in told.links.iter().enumerate() {
            told.names.insert(link.name.clone(), at);
            let made_on = link.lower.filter(|_| {
                let made = link.made.as_deref();
                made.is_some_and(|made| MADE_ON_ANOTHER.contains(&made))
                    && link.peer_namespace.is_none()
            });
            let pairs =
                [link.master.map(|upper| (upper, link.index)), made_on.map(|l| (link.index, l))];
            for (upper, lower) in pairs.into_iter().flatten() {
                let name = |index| told.find(index).map(|link| link.name.clone());
                if let (Some(upper_name), Some(lower_name)) = (name(upper), name(lower)) {
                    told.above.entry(lower).or_default().push(upper_name);
                    told.below.entry(upper).or_default().push(lower_name);
                }
            }
        }
        told
    }

    fn find(&self, index: u32) -> Option<&Link> {
        let at = self.links.binary_search_by_key(&index, |link| link.index).ok()?;
        self.links.get(at)
    }

    /// A link as far as it matters to pairs, if netlink says enough for that: kernels before 5.14 do not say what it
    /// sits on.
    pub(super) fn device(
        &self,
        tree: &mut Tree,
        name: &str,
        functions: &[Function],
    ) -> Option<NetDevice> {
        let told = self.links.get(*self.names.get(name)?)?;
        let loopback = told.kind == LOOPBACK;
        let (parent, soft) = match (&told.parent, &told.made) {
            (Some(parent), _) => {
                let bus = || told.parent_bus.clone().unwrap_or_default();
                (Parent::named(parent, bus), SoftKind::Other)
            }
            (None, _) if loopback => (Parent::None, SoftKind::Loopback),
            (None, Some(made)) => (Parent::None, SoftKind::made(made)),
            (None, None) => return None,
        };
        let mut device = NetDevice::software(told.index, name.to_owned(), soft);
        device.take(told);
        device.kind = Some(told.kind.into());
        device.master =
            told.master.and_then(|index| self.find(index)).map(|link| link.name.clone());
        device.uppers = self.above.get(&told.index).cloned().unwrap_or_default();
        device.lowers = self.below.get(&told.index).cloned().unwrap_or_default();
        device.path = format!("/sys/class/net/{name}");
        device.parent = parent;
        if let Parent::Pci(address) = device.parent {
            // By way of the function: an interface that has another name by now is not there.
            let number = format!("sys/bus/pci/devices/{address}/net/{name}/dev_port");
            device.port = tree.contents(&number, ATTRIBUTE_LIMIT)?.parse().ok()?;
            let function = functions.binary_search_by_key(&address, |function| function.address);
            let function = function.ok().and_then(|at| functions.get(at));
            // Without a slot, the name that udev made of it has to do.
            if function.is_some_and(|function| function.bus.is_some() && function.slot.is_none())
                && let Some((properties, since)) = super::scan::udev(tree, told.index)
            {
                (device.udev, device.initialized) = (Some(properties), since);
            }
        }
        Some(device)
    }

    /// Adds to every link what the kernel says about it.
    pub(super) fn add(self, links: &mut [NetDevice]) {
        for link in links {
            let Some(told) = link.index.and_then(|index| self.find(index)) else { continue };
            link.permanent = told.permanent.or(link.permanent);
            link.told = Some(Box::new(told.clone()));
        }
    }
}

/// What drivers say; a kernel that has no such family is no cause for a note.
fn drivers(tree: &mut Tree, teller: &Teller, table: DriverTable) -> Option<Reply> {
    match teller {
        Teller::Kernel(_) => {
            let reply = Connection::drivers(table).ok()?;
            tree.keep(&format!("netlink/{}", table.file()), reply.as_bytes());
            Some(reply)
        }
        Teller::Recorded => {
            let path = format!("netlink/{}", table.file());
            tree.bytes(&path, REPLY_LIMIT).map(Reply::from_bytes)
        }
        Teller::Silent => None,
    }
}

/// Adds addresses, routes, neighbours, and the links of other network namespaces.
pub(super) fn rest(tree: &mut Tree, teller: &mut Teller, snapshot: &mut Snapshot) {
    if let Some(reply) = teller.ask(tree, Table::Addresses) {
        snapshot.addresses = Some(good(tree, Table::Addresses, reply.addresses()));
    }
    if let Some(reply) = teller.ask(tree, Table::Routes) {
        snapshot.routes = Some(good(tree, Table::Routes, reply.routes()));
    }
    if let Some(reply) = teller.ask(tree, Table::Neighbours) {
        snapshot.neighbours = Some(good(tree, Table::Neighbours, reply.neighbours()));
    }
    if let Some(reply) = drivers(tree, teller, DriverTable::Rings) {
        let rings = reply.rings();
        for link in &mut snapshot.links {
            link.ring = link.index.and_then(|index| rings.get(&index)).copied();
        }
    }
    if let Some(reply) = drivers(tree, teller, DriverTable::Features) {
        let lro = reply.lro();
        for link in &mut snapshot.links {
            link.lro = link.index.and_then(|index| lro.get(&index)).copied();
        }
    }
    for namespace in snapshot.namespaces.iter().take(NAMESPACE_LIMIT) {
        let links = elsewhere(tree, teller, namespace);
        snapshot.elsewhere.push(Elsewhere { namespace: namespace.clone(), links });
    }
}

fn elsewhere(tree: &mut Tree, teller: &Teller, namespace: &str) -> Option<Vec<Link>> {
    match teller {
        Teller::Kernel(_) => {
            let path = Path::new("/run/netns").join(namespace);
            let dump = |mut connection: Connection| connection.dump(Table::Links);
            match Connection::open_in(&path).and_then(dump) {
                Ok(reply) => {
                    let file = format!("netlink/netns/{namespace}/{}", Table::Links.file());
                    tree.keep(&file, reply.as_bytes());
                    Some(good(tree, Table::Links, reply.links()))
                }
                Err(error) => {
                    tree.note(path.display().to_string(), error.to_string());
                    None
                }
            }
        }
        Teller::Recorded => {
            let reply = recorded(tree, &format!("netlink/netns/{namespace}"), Table::Links)?;
            Some(good(tree, Table::Links, reply.links()))
        }
        Teller::Silent => None,
    }
}
