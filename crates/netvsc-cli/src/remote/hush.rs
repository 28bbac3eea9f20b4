//! An interface whose frames are a VF's: the kernel's own IP has no business there.

mod record;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use netvsc_linux::vf::PacketPort;
use rustix::net::netdevice::{index_to_name, name_to_index};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::error::Error;
use record::{Entry, Journal, Record};

/// Family of the protocol, name, and value.
type Setting = (&'static str, &'static str, &'static str);

/// What is set, below `/proc/sys/net`, and to what.
///
/// Linux takes packets for any of its addresses on every interface, and a stack that has the NIC's beside the VF would take everything twice
/// where a packet socket gets copies only. From Linux 6.6 on nothing gets that far ([`PacketConfig::alone`]); before, this keeps most of it
/// off: IPv6, and IPv4 on an interface that answers only where it would send (RFC 3704) and has no addresses, but for datagrams of sockets
/// that are connected, for which no route is looked up. The looser form of that (2, which outweighs 1 if `all` has it) is as good only as
/// long as there are no addresses: then there is no route by which the interface would answer.
///
/// [`PacketConfig::alone`]: netvsc_linux::vf::PacketConfig::alone
const SETTINGS: [Setting; 2] = [("ipv6", "disable_ipv6", "1"), ("ipv4", "rp_filter", "1")];

/// Keeps the kernel's IP off an interface, for as long as it lives: also while the host has the VF, since a kernel that may speak again
/// greets its neighbours at once, on the VF that is leaving. How the settings were is written down first, for after a run that is killed.
#[derive(Debug)]
pub(crate) struct Hush {
    journal: Journal,
    /// The interface's number, which outlives its names; 0 is none.
    index: u32,
    /// What each setting was.
    before: [Option<String>; SETTINGS.len()],
    /// The record of that.
    entry: Option<Entry>,
}

impl Hush {
    /// Over no interface. Records are below this root.
    pub(crate) fn new(root: &Path) -> Self {
        let (journal, before) = (Journal::new(root), Default::default());
        Self { journal, index: 0, before, entry: None }
    }

    /// Hushes the interface of this name, before it is set up, and gives up the one before if that was another. One that is hushed
    /// already is hushed again: it has the settings of a new one if it was in another network namespace meanwhile. What cannot be set
    /// is told in the log: the VF works all the same.
    pub(crate) fn over(&mut self, name: &str) {
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
        self.remember(&name);
        for (family, setting, wanted) in SETTINGS {
            if let Err(error) = fs::write(place(family, &name, setting), wanted) {
                told(&error, setting);
            }
        }
    }

    /// Takes note of how the settings are, and writes it down if there is something to undo later.
    fn remember(&mut self, name: &str) {
        let Self { journal, index, before, entry } = self;
        let left = match entry {
            Some(_) => None,
            None => journal.find(*index).unwrap_or_else(|error| {
                told(&error, name);
                None
            }),
        };
        let mut earlier = left.as_ref().map(|left| left.record.before.clone()).unwrap_or_default();
        for (((family, setting, wanted), before), earlier) in
            SETTINGS.iter().zip(&mut *before).zip(&mut earlier)
        {
            match read(&place(family, name, setting)) {
                Ok(now) => {
                    // What a run that was killed has set is not what was before it.
                    let earlier = earlier.take().filter(|_| now == *wanted);
                    before.get_or_insert(earlier.unwrap_or(now));
                }
                Err(error) => told(&error, setting),
            }
        }
        let is_other = |((_, _, wanted), before): (&Setting, &Option<String>)| {
            before.as_ref().is_some_and(|before| before != wanted)
        };
        if SETTINGS.iter().zip(&*before).any(is_other) {
            if entry.is_none() {
                let record = Record::new(*index, before.clone());
                match record.and_then(|record| journal.write(record)) {
                    Ok(written) => *entry = Some(written),
                    Err(error) => told(&error, name),
                }
            }
        } else if let Some(left) = left {
            left.strike();
        }
    }

    /// Has the interface as it was, if it is still there; what somebody has set otherwise meanwhile is his. The first setting that
    /// could not be written, which then stays on record.
    fn lift(&mut self) -> Option<(PathBuf, io::Error)> {
        let (before, entry) = (std::mem::take(&mut self.before), self.entry.take());
        let mut failed = None;
        if let Some(name) = name_of(std::mem::take(&mut self.index)) {
            for (path, before) in changes_back(&name, &before) {
                if let Err(error) = fs::write(&path, before) {
                    tracing::debug!(%error, path = %path.display(), before, "a VF's interface stays hushed");
                    failed.get_or_insert((path, error));
                }
            }
        }
        if let Some(entry) = entry.filter(|_| failed.is_none()) {
            entry.strike();
        }
        failed
    }
}

impl Drop for Hush {
    fn drop(&mut self) {
        self.lift();
    }
}

/// Gives interfaces of this network namespace the settings back that they had before runs that were killed, or says what it would write.
/// Those that a run has now stay as they are.
///
/// # Errors
/// What could not be read or written; the other interfaces have had their turn.
pub(crate) fn unhush(root: &Path, dry_run: bool) -> Result<(), Error> {
    let journal = Journal::new(root);
    let wrong = |error: &dyn std::fmt::Display| Error::Run(error.to_string());
    let mut failed = None;
    for entry in journal.left_behind().map_err(|error| wrong(&error))? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                crate::remark(&error);
                failed = Some(wrong(&error));
                continue;
            }
        };
        let (index, before) = (entry.record.index, entry.record.before.clone());
        let name = name_of(index);
        if dry_run {
            for (path, before) in name.iter().flat_map(|name| changes_back(name, &before)) {
                crate::remark(format_args!("echo '{before}' > {}", path.display()));
            }
            continue;
        }
        let mut hush = Hush { journal: journal.clone(), index, before, entry: Some(entry) };
        match (hush.lift(), name) {
            (Some((path, error)), _) => {
                let why = Error::Run(format!("{}: {error}", path.display()));
                crate::remark(&why);
                failed = Some(why);
            }
            (None, Some(name)) => crate::remark(format_args!(
                "{name}: the kernel's IP is as it was before a run that was killed"
            )),
            (None, None) => {}
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Settings that are still as they were hushed, and what they were before.
fn changes_back<'a>(
    name: &str,
    before: &'a [Option<String>; SETTINGS.len()],
) -> Vec<(PathBuf, &'a str)> {
    let settings = SETTINGS.iter().zip(before);
    let changed = settings.filter_map(|((family, setting, wanted), before)| {
        let before = before.as_deref().filter(|before| before != wanted)?;
        let path = place(family, name, setting);
        read(&path).is_ok_and(|now| now == *wanted).then_some((path, before))
    });
    changed.collect()
}

fn told(error: &dyn std::fmt::Display, what: &str) {
    tracing::debug!(%error, what, "the kernel's IP may speak on a VF's interface");
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

#[cfg(test)]
mod tests;
