//! Which network namespace one is in.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::request;

/// A network namespace, as something that is written down knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkNamespace {
    /// Its inode, as `ls -i /proc/self/ns/net` shows it. Another may have it once this one is gone.
    pub inode: u64,
    /// Its cookie, which no other has before the next boot; none before Linux 5.14.
    pub cookie: Option<u64>,
}

impl NetworkNamespace {
    /// The one of this thread.
    ///
    /// # Errors
    /// What stood in the way of looking.
    pub fn own() -> io::Result<Self> {
        let inode = fs::metadata("/proc/thread-self/ns/net")?.ino();
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        Ok(Self { inode, cookie: request::namespace_cookie(&socket).ok() })
    }
}

#[cfg(test)]
mod tests {
    use super::NetworkNamespace;
    use crate::namespace::{Neighbour, in_namespace, skipped};

    #[test]
    fn a_namespace_is_known_by_numbers_that_no_other_has() {
        const NAME: &str =
            "vf::namespace::tests::a_namespace_is_known_by_numbers_that_no_other_has";
        in_namespace(NAME, || {
            use std::os::unix::fs::MetadataExt;
            let own = NetworkNamespace::own().unwrap();
            assert_eq!(own, NetworkNamespace::own().unwrap());
            let other = Neighbour::new();
            let path = format!("/proc/{}/ns/net", other.pid());
            assert_ne!(own.inode, std::fs::metadata(path).unwrap().ino());
            if own.cookie.is_none() {
                skipped(NAME, "namespaces have no cookies before Linux 5.14");
            }
            assert_ne!(own.cookie, Some(0));
        });
    }
}
