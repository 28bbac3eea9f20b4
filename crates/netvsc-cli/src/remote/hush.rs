//! An interface whose frames are a VF's: the kernel's own IP has no business there.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use netvsc_linux::vf::PacketPort;
use rustix::net::netdevice::{index_to_name, name_to_index};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// What is set, below `/proc/sys/net`, and to what.
///
/// Linux takes packets for any of its addresses on every interface, and a stack that has the NIC's beside the VF would take everything twice
/// where a packet socket gets copies only. From Linux 6.6 on nothing gets that far ([`PacketConfig::alone`]); before, this keeps most of it
/// off: IPv6, and IPv4 on an interface that answers only where it would send (RFC 3704) and has no addresses, but for datagrams of sockets
/// that are connected, for which no route is looked up. The looser form of that (2, which outweighs 1 if `all` has it) is as good only as
/// long as there are no addresses: then there is no route by which the interface would answer.
///
/// [`PacketConfig::alone`]: netvsc_linux::vf::PacketConfig::alone
const SETTINGS: [(&str, &str, &str); 2] =
    [("ipv6", "disable_ipv6", "1"), ("ipv4", "rp_filter", "1")];

/// Keeps the kernel's IP off an interface, for as long as it lives: also while the host has the VF, since a kernel that may speak again
/// greets its neighbours at once, on the VF that is leaving.
#[derive(Debug, Default)]
pub(crate) struct Hush {
    /// The interface's number, which outlives its names; 0 is none.
    index: u32,
    /// What each setting was.
    before: [Option<String>; SETTINGS.len()],
}

impl Hush {
    /// Hushes the interface of this name, before it is set up, and gives up the one before if that was another. One that is hushed
    /// already is hushed again: it has the settings of a new one if it was in another network namespace meanwhile. What cannot be set
    /// is told in the log: the VF works all the same.
    pub(crate) fn over(&mut self, name: &str) {
        let told = |error: &io::Error, what: &str| {
            tracing::debug!(%error, what, "the kernel's IP may speak on a VF's interface");
        };
        let index = match socket().and_then(|socket| Ok(name_to_index(socket, name)?)) {
            Ok(index) => index,
            Err(error) => return told(&error, name),
        };
        if index != self.index {
            self.lift();
            self.index = index;
        }
        // It may be known by an alternative name, which /proc does not know.
        let Some(name) = name_of(index) else { return };
        for ((family, setting, wanted), before) in SETTINGS.iter().zip(&mut self.before) {
            let path = place(family, &name, setting);
            match read(&path).and_then(|old| fs::write(&path, wanted).map(|()| old)) {
                Ok(old) => {
                    before.get_or_insert(old);
                }
                Err(error) => told(&error, setting),
            }
        }
    }

    /// Has the interface as it was, if it is still there; what somebody has set otherwise meanwhile is his.
    fn lift(&mut self) {
        let before = std::mem::take(&mut self.before);
        let Some(name) = name_of(std::mem::take(&mut self.index)) else { return };
        for ((family, setting, wanted), before) in SETTINGS.iter().zip(before) {
            let path = place(family, &name, setting);
            let Some(before) = before.filter(|before| before != wanted) else { continue };
            if read(&path).is_ok_and(|now| now == *wanted)
                && let Err(error) = fs::write(&path, &before)
            {
                let path = path.display();
                tracing::debug!(%error, %path, before, "a VF's interface stays hushed");
            }
        }
    }
}

impl Drop for Hush {
    fn drop(&mut self) {
        self.lift();
    }
}

/// What whoever runs this should know of a port: whether the kernel's stack gets what is received there, too, and what that means.
pub(super) fn note(port: &PacketPort) -> Option<String> {
    let why = port.alone().err()?;
    let name = port.name();
    let loose = read(&place("ipv4", "all", "rp_filter")).is_ok_and(|all| all == "2");
    let outweighed = if loose {
        format!(
            "; net.ipv4.conf.all.rp_filter is 2 and outweighs what {name} has: whatever the stack may answer is \
             taken twice once {name} has an IPv4 address, so give it none"
        )
    } else {
        String::new()
    };
    Some(format!(
        "{name}: the kernel's stack gets what is received there, too: {why}; a stack that has the same \
         addresses may take UDP datagrams twice: give {name} a network namespace of its own{outweighed}"
    ))
}

fn place(family: &str, name: &str, setting: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/{family}/conf/{name}/{setting}"))
}

fn read(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

/// What the interface with this number is called now, if it is there.
fn name_of(index: u32) -> Option<String> {
    if index == 0 { None } else { index_to_name(socket().ok()?, index).ok() }
}

/// Whatever it is for, a socket can be asked about interfaces.
fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}
