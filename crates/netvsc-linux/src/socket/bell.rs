//! Doorbells between processes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// A doorbell that another process hears: an eventfd.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// A bell that has not rung.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// A bell that another process made. It is made non-blocking, and refused if it is none.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if it is something else than an eventfd, or what the kernel says.
    pub fn adopt(descriptor: OwnedFd) -> io::Result<Self> {
        let name = rustix::fs::readlink(
            format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&descriptor)),
            Vec::new(),
        )?;
        if name.to_bytes() != b"anon_inode:[eventfd]" {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a doorbell is an eventfd"));
        }
        let flags = rustix::fs::fcntl_getfl(&descriptor)?;
        rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
        Ok(Self(descriptor))
    }

    /// Another handle of the same bell, to be handed to the peer.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn handle(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Rings. A bell that is full rings already.
    pub fn ring(&self) {
        loop {
            match rustix::io::write(&self.0, &1_u64.to_ne_bytes()) {
                Err(Errno::INTR) => {}
                Err(error) if error != Errno::AGAIN => {
                    tracing::debug!(%error, "a doorbell is mute");
                    return;
                }
                _ => return,
            }
        }
    }

    /// Whether it rang since the last call.
    #[must_use]
    pub fn take(&self) -> bool {
        loop {
            match rustix::io::read(&self.0, &mut [0_u8; 8]) {
                Err(Errno::INTR) => {}
                other => return other.is_ok(),
            }
        }
    }
}

impl AsFd for Bell {
    /// For polling; readable means that it rang.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_is_heard_once_by_whoever_has_it() {
        let bell = Bell::new().unwrap();
        let other = Bell::adopt(bell.handle().unwrap()).unwrap();
        assert!(!other.take());
        bell.ring();
        bell.ring();
        assert!(other.take());
        assert!(!bell.take());
    }

    #[test]
    fn what_is_no_bell_is_refused() {
        let (read, _write) = std::io::pipe().unwrap();
        let error = Bell::adopt(read.into()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_bell_that_is_full_does_not_block() {
        let bell = Bell::new().unwrap();
        rustix::io::write(&bell.0, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        bell.ring();
        assert!(bell.take());
        assert!(!bell.take());
    }
}
