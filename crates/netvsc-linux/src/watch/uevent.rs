//! Events of the kernel's device model.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recvfrom, socket_with};

/// Longest event that is read, in bytes; the kernel's are up to 2 KiB and the path.
const LIMIT: usize = 8192;
/// How many events are read before others get their turn.
const BURST: usize = 256;
/// The group of the kernel itself; udev repeats events in another one.
const KERNEL: u32 = 1;

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uevent {
    /// `add`, `remove`, `bind` and others.
    pub action: String,
    /// The device, from `/sys`.
    pub path: String,
    /// Its subsystem.
    pub subsystem: String,
}

impl Uevent {
    /// Reads an event: `add@/devices/..` and pairs `KEY=VALUE`, each with a zero behind. None for anything else.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes.get(..LIMIT.min(bytes.len()))?).ok()?;
        let mut parts = text.split('\0');
        let (action, path) = parts.next()?.split_once('@')?;
        let subsystem = parts.find_map(|part| part.strip_prefix("SUBSYSTEM="))?;
        let event = Self {
            action: action.to_owned(),
            path: path.to_owned(),
            subsystem: subsystem.to_owned(),
        };
        (path.starts_with('/') && !action.is_empty() && !subsystem.is_empty()).then_some(event)
    }

    /// Whether it may change what NICs and functions there are.
    #[must_use]
    pub fn matters(&self) -> bool {
        matches!(self.subsystem.as_str(), "vmbus" | "pci") && self.action != "change"
    }
}

/// An ear for them.
#[derive(Debug)]
pub(super) struct Ear {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Ear {
    pub(super) fn open() -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::DGRAM;
        let fd = socket_with(AddressFamily::NETLINK, kind, flags, Some(KOBJECT_UEVENT))?;
        bind(&fd, &SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Self { fd, buffer: vec![0; LIMIT] })
    }

    /// Reads what has come. Says whether something came that matters, and whether something was lost.
    pub(super) fn poll(&mut self) -> Result<(bool, bool), Errno> {
        let (mut matters, mut lost) = (false, false);
        for _ in 0..BURST {
            match recvfrom(&self.fd, &mut *self.buffer, RecvFlags::DONTWAIT) {
                Ok((_, length, from)) => {
                    let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
                    if from.is_some_and(|from| from.pid() == 0) {
                        let event = self.buffer.get(..length).and_then(Uevent::parse);
                        matters |= event.is_some_and(|event| event.matters());
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::NOBUFS) => lost = true,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((matters, lost))
    }
}

impl AsFd for Ear {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VPCI: &str = "/devices/LNXSYSTM:00/VMBUS:01/d3cbd5f3-927a-45ec-985d-2ddb43e90b83";

    #[test]
    fn the_events_of_an_arriving_vf_are_told_apart() {
        for (action, subsystem, matters) in [
            ("add", "vmbus", true),
            ("add", "pci", true),
            ("bind", "pci", true),
            ("remove", "vmbus", true),
            ("change", "vmbus", false),
            ("add", "net", false),
            ("add", "block", false),
        ] {
            let text = format!(
                "{action}@{VPCI}\0ACTION={action}\0DEVPATH={VPCI}\0SUBSYSTEM={subsystem}\0SEQNUM=7\0"
            );
            let event = Uevent::parse(text.as_bytes()).unwrap();
            assert_eq!((event.action.as_str(), event.path.as_str()), (action, VPCI));
            assert_eq!(event.matters(), matters, "{action} {subsystem}");
        }
    }

    #[test]
    fn what_is_no_event_is_skipped() {
        let long = format!("add@/{}\0SUBSYSTEM=pci\0", "x".repeat(LIMIT));
        for bytes in [
            &b""[..],
            b"\0\0\0",
            b"libudev\0\xfe\xed\xca\xfe",
            b"add@devices\0SUBSYSTEM=pci\0",
            b"add@/devices\0ACTION=add\0",
            b"add@/devices\0SUBSYSTEM=\0",
            b"@/devices\0SUBSYSTEM=pci\0",
            b"add@/\xff\0SUBSYSTEM=pci\0",
            long.as_bytes(),
        ] {
            assert_eq!(Uevent::parse(bytes), None, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_fail(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = Uevent::parse(&bytes);
        }
    }
}
