//! What is put in place, and where.

use std::path::Path;

use netvsc_linux::inventory::Snapshot;
use netvsc_linux::relation::Relations;

use crate::error::Error;
use crate::manual::{Shell, pages};

/// Where the program goes.
pub const PROGRAM: &str = "/usr/bin/netvsc";

/// What is at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// A file with these bytes and this mode.
    File(Vec<u8>, u32),
    /// A link to this.
    Link(&'static str),
}

/// Something that is put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where, from the root.
    pub path: String,
    /// What.
    pub contents: Contents,
}

impl Piece {
    fn text(path: impl Into<String>, text: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), contents: Contents::File(text.into(), 0o644) }
    }

    fn script(path: &str, text: &str) -> Self {
        Self { path: path.into(), contents: Contents::File(text.into(), 0o755) }
    }
}

/// What fits every guest.
///
/// # Errors
/// If a man page cannot be put together.
pub fn general() -> Result<Vec<Piece>, Error> {
    let mut pieces = vec![
        Piece { path: "/usr/lib/udev/netvsc".into(), contents: Contents::Link("../../bin/netvsc") },
        Piece::text(
            "/usr/lib/udev/rules.d/60-netvsc.rules",
            include_str!("../../assets/udev/60-netvsc.rules"),
        ),
        Piece::text(
            "/usr/lib/systemd/network/01-netvsc-vf.network",
            include_str!("../../assets/network/01-netvsc-vf.network"),
        ),
        Piece::text(
            "/usr/lib/systemd/network/01-netvsc-pending.network",
            include_str!("../../assets/network/01-netvsc-pending.network"),
        ),
        Piece::text(
            "/usr/lib/systemd/system/netvsc-watch.service",
            include_str!("../../assets/systemd/netvsc-watch.service"),
        ),
        Piece::text(
            "/usr/lib/systemd/system/netvsc-run@.service",
            include_str!("../../assets/systemd/netvsc-run@.service"),
        ),
        Piece::text(
            "/usr/lib/systemd/system/netvsc-metrics.service",
            include_str!("../../assets/systemd/netvsc-metrics.service"),
        ),
        Piece::text(
            "/usr/lib/systemd/system/netvsc-metrics.timer",
            include_str!("../../assets/systemd/netvsc-metrics.timer"),
        ),
        Piece::text(
            "/usr/lib/sysusers.d/netvsc.conf",
            include_str!("../../assets/sysusers/netvsc.conf"),
        ),
        Piece::text(
            "/usr/share/netvsc/prometheus/netvsc.rules.yml",
            include_str!("../../assets/prometheus/netvsc.rules.yml"),
        ),
        Piece::text(
            "/usr/share/netvsc/node-problem-detector/netvsc.json",
            include_str!("../../assets/node-problem-detector/netvsc.json"),
        ),
        Piece::text(
            "/usr/share/netvsc/node-problem-detector/netvsc-kernel.json",
            include_str!("../../assets/node-problem-detector/netvsc-kernel.json"),
        ),
        Piece::script(
            "/usr/lib/dracut/modules.d/90netvsc/module-setup.sh",
            include_str!("../../assets/dracut/module-setup.sh"),
        ),
        Piece::script(
            "/usr/share/initramfs-tools/hooks/netvsc",
            include_str!("../../assets/initramfs-tools/netvsc"),
        ),
    ];
    for shell in Shell::ALL {
        let path = format!("{}/{}", shell.folder(), shell.file());
        pieces.push(Piece::text(path, shell.completions()));
    }
    for (name, page) in pages()? {
        pieces.push(Piece::text(format!("/usr/share/man/man1/{name}"), page));
    }
    Ok(pieces)
}

/// The program that is running.
///
/// # Errors
/// If it cannot be read.
pub fn program(running: &Path) -> Result<Piece, Error> {
    let bytes = std::fs::read(running)
        .map_err(|source| Error::System { doing: "read the program that is running", source })?;
    Ok(Piece { path: PROGRAM.into(), contents: Contents::File(bytes, 0o755) })
}

/// What fits one guest only: its VFs for NetworkManager, by MAC, and the names of its NICs, by GUID.
#[must_use]
pub fn of_guest(snapshot: &Snapshot) -> Vec<Piece> {
    let relations = Relations::of(snapshot);
    let mut pieces = Vec::new();
    let paired = relations.nics.iter().filter(|nic| relations.vf(nic).is_some());
    let mut macs: Vec<_> =
        paired.filter_map(|nic| nic.link?.permanent).map(|mac| format!("mac:{mac}")).collect();
    macs.sort();
    macs.dedup();
    if !macs.is_empty() {
        let text = format!(
            "# VFs have the MAC of the NIC above them; the NIC itself is excepted by its driver.\n\
             # For NetworkManager that does not heed what udev says.\n\
             [device-netvsc-vf]\nmatch-device={};except:driver:hv_netvsc\nmanaged=0\n",
            macs.join(";")
        );
        pieces.push(Piece::text("/etc/NetworkManager/conf.d/90-netvsc-vf.conf", text));
    }
    for nic in &relations.nics {
        let (Some(link), guid) = (nic.link, nic.device.guid) else { continue };
        let name = &link.name;
        // What stands in a path and in a configuration file has to be harmless in both.
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !name.bytes().all(plain) || name.is_empty() {
            continue;
        }
        let text = format!(
            "# This NIC keeps its name, whatever order NICs come in.\n[Match]\n\
             Property=NETVSC_ROLE=synthetic NETVSC_GUID={guid}\n\n[Link]\nName={name}\n"
        );
        pieces.push(Piece::text(format!("/etc/systemd/network/69-netvsc-{name}.link"), text));
    }
    pieces
}
