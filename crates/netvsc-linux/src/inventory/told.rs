//! What the kernel says by netlink, live or recorded, beside what sysfs shows.

use std::path::Path;

use super::model::{Elsewhere, NetDevice, Snapshot};
use super::tree::Tree;
use crate::netlink::{Connection, DriverTable, Link, Reply, Table};

/// Longest recorded answer, in bytes.
const REPLY_LIMIT: usize = 64 << 20;
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

/// Adds to every link what the kernel says about it.
pub(super) fn links(tree: &mut Tree, teller: &mut Teller, links: &mut [NetDevice]) {
    let Some(reply) = teller.ask(tree, Table::Links) else { return };
    let mut told = good(tree, Table::Links, reply.links());
    told.sort_by_key(|link| link.index);
    for link in links {
        let Some(index) = link.index else { continue };
        let Ok(at) = told.binary_search_by_key(&index, |told| told.index) else { continue };
        let told = &told[at];
        link.permanent = told.permanent.or(link.permanent);
        link.told = Some(Box::new(told.clone()));
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
