//! An interface whose frames are a VF's: the kernel's own IP has no business there.

use std::fs;
use std::path::PathBuf;

/// What is set, below `/proc/sys/net`, and to what.
///
/// Linux takes packets for any of its addresses on every interface, and a stack that has the NIC's beside the VF would take everything twice
/// where a packet socket gets copies only. From Linux 6.6 on nothing gets that far ([`PacketConfig::alone`]); before, this keeps most of it
/// off: IPv6, and IPv4 on an interface that answers only where it would send (RFC 3704) and has no addresses, but for datagrams of sockets
/// that are connected, for which no route is looked up.
///
/// [`PacketConfig::alone`]: netvsc_linux::vf::PacketConfig::alone
const SETTINGS: [(&str, &str, &str); 2] =
    [("ipv6", "disable_ipv6", "1"), ("ipv4", "rp_filter", "1")];

/// Keeps the kernel's IP off an interface, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Hush {
    /// What was changed, and what it was.
    before: Vec<(PathBuf, String)>,
}

impl Hush {
    /// Hushes an interface, before it is set up. What cannot be set is told in the log: the VF works all the same.
    pub(crate) fn new(name: &str) -> Self {
        let mut before = Vec::new();
        for (family, setting, wanted) in SETTINGS {
            let path = PathBuf::from(format!("/proc/sys/net/{family}/conf/{name}/{setting}"));
            let old = fs::read_to_string(&path).map(|old| old.trim().to_owned());
            match old.and_then(|old| fs::write(&path, wanted).map(|()| old)) {
                Ok(old) if old == wanted => {}
                Ok(old) => before.push((path, old)),
                Err(error) => {
                    let path = path.display();
                    tracing::debug!(%error, %path, "the kernel's IP may speak on a VF's interface");
                }
            }
        }
        Self { before }
    }
}

impl Drop for Hush {
    fn drop(&mut self) {
        for (path, old) in &self.before {
            // One that is gone, or has another name, has nothing to be restored.
            let _ = fs::write(path, old);
        }
    }
}
