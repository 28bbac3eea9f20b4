//! What the driver of a synthetic NIC counts of its VF.

use std::fmt::Write as _;

use super::model::{NetDevice, Parent, Snapshot};
use super::tree::{FILE_LIMIT, Tree};
use crate::statistics;

/// Where a tree has it: lines `IFINDEX NAME VALUE`.
pub(super) const FILE: &str = "netvsc/statistics";

/// What is read of all that a driver counts (netvsc_drv.c).
const NAMES: [&str; 5] =
    ["vf_rx_bytes", "vf_rx_packets", "vf_tx_bytes", "vf_tx_dropped", "vf_tx_packets"];

/// Reads it for every NIC: from its driver, or from the tree's file.
pub(super) fn read(tree: &mut Tree, live: bool, links: &mut [NetDevice]) {
    if !live {
        return replay(tree, links);
    }
    for link in links.iter_mut().filter(|link| matches!(link.parent, Parent::Vmbus(_))) {
        match statistics::of(&link.name, |name| NAMES.contains(&name)) {
            Ok(found) => link.shares = found,
            Err(error) => tree.note(format!("ethtool -S {}", link.name), error.to_string()),
        }
    }
}

/// How many packets a synthetic NIC of the running system has sent through its VF; none if its driver does not tell.
pub(super) fn sent_by_vf(name: &str) -> Option<u64> {
    statistics::of(name, |name| name == "vf_tx_packets").ok()?.into_values().next()
}

fn replay(tree: &mut Tree, links: &mut [NetDevice]) {
    let text = tree.contents(FILE, FILE_LIMIT).unwrap_or_default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(index), Some(name), Some(value)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let link =
            links.iter_mut().find(|link| link.index.is_some() && link.index == index.parse().ok());
        if let (Some(link), Ok(value), true) = (link, value.parse(), NAMES.contains(&name)) {
            link.shares.insert(name.to_owned(), value);
        }
    }
}

/// The file of a snapshot.
pub(super) fn recorded(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    for link in &snapshot.links {
        let Some(index) = link.index else { continue };
        for (name, value) in &link.shares {
            _ = writeln!(text, "{index} {name} {value}");
        }
    }
    text
}
