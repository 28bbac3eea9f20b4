//! Where news comes from.

use std::os::fd::{AsFd, BorrowedFd};

use super::News;
use super::uevent::Ear;
use crate::inventory::{LogStream, LogUnreadable};
use crate::netlink::{Event, Monitor, NetlinkError, Topics};

/// What was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// News, in order.
    News(News),
    /// Events of this source were lost: everything may be other than it seems.
    Lost(&'static str),
}

/// All ears that this machine has.
#[derive(Debug)]
pub struct Ears {
    links: Monitor,
    devices: Option<Ear>,
    log: Option<LogStream>,
    /// Why there is no log, in words.
    deaf: Vec<String>,
}

impl Ears {
    /// Opens them. Without links nothing can be watched; without uevents or kernel log less is known, and
    /// [`deaf`](Self::deaf) says so.
    ///
    /// # Errors
    /// [`NetlinkError`] if links cannot be listened to.
    pub fn open() -> Result<Self, NetlinkError> {
        let links = Monitor::open(Topics::LINKS)?;
        let mut deaf = Vec::new();
        let devices = Ear::open()
            .inspect_err(|error| deaf.push(format!("no uevents: {}", std::io::Error::from(*error))))
            .ok();
        let log = match LogStream::open() {
            Ok(log) => Some(log),
            Err(LogUnreadable(why)) => {
                deaf.push(format!("no kernel log: {why}"));
                None
            }
        };
        Ok(Self { links, devices, log, deaf })
    }

    /// What cannot be heard, and why.
    #[must_use]
    pub fn deaf(&self) -> &[String] {
        &self.deaf
    }

    /// The kernel log so far. To be called before anything is heard.
    pub fn log_so_far(&mut self) -> crate::inventory::KernelLog {
        self.log.as_mut().map(LogStream::so_far).unwrap_or_default()
    }

    /// What to wait for: when one of these is readable, there is something to hear.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let devices = self.devices.iter().map(AsFd::as_fd);
        let log = self.log.iter().map(AsFd::as_fd);
        std::iter::once(self.links.as_fd()).chain(devices).chain(log)
    }

    /// Everything that has happened since the last call; does not wait.
    ///
    /// # Errors
    /// [`NetlinkError`] if links can no longer be listened to.
    pub fn listen(&mut self) -> Result<Vec<Heard>, NetlinkError> {
        let mut heard = Vec::new();
        for event in self.links.poll()? {
            match event {
                Event::Link(link) => heard.push(Heard::News(News::Link(Box::new(link)))),
                Event::LinkGone(link) => heard.push(Heard::News(News::LinkGone(link.index))),
                Event::Lost => heard.push(Heard::Lost("links")),
                _ => {}
            }
        }
        if let Some(ear) = &mut self.devices {
            match ear.poll() {
                Ok((matters, lost)) => {
                    heard.extend(matters.then_some(Heard::News(News::Devices)));
                    heard.extend(lost.then_some(Heard::Lost("devices")));
                }
                // It is no use any more, and would be ready for ever.
                Err(error) => {
                    self.deaf.push(format!("no uevents: {}", std::io::Error::from(error)));
                    self.devices = None;
                }
            }
        }
        if let Some(log) = &mut self.log {
            match log.poll() {
                Ok((lines, lost)) => {
                    heard.extend((lost > 0).then_some(Heard::News(News::LogLost(lost))));
                    heard.extend((lost > 0).then_some(Heard::Lost("the kernel log")));
                    heard.extend(lines.into_iter().map(|line| Heard::News(News::Said(line))));
                }
                Err(LogUnreadable(why)) => {
                    self.deaf.push(format!("no kernel log: {why}"));
                    self.log = None;
                }
            }
        }
        Ok(heard)
    }
}
