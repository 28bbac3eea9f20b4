//! TAPs with several queues: the kernel puts each flow into one of them, the one through which a frame of that flow came last.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::request::{InterfaceRequest, Request, call};
use super::{
    NO_PACKET_INFORMATION, OFFLOADS, Offloaded, SEVERAL_QUEUES, TAP, Tap, TapError, TapName,
    VNET_HEADER, attach, failure, open_device,
};
use crate::netlink::Connection;

/// The most queues that the kernel gives a TAP.
const MOST_QUEUES: u16 = 256;

impl Tap {
    /// [`Tap::open_with_offloads`] with so many queues, each of which is read and written by itself. Frames of a flow are to be
    /// written through one queue, in order; the kernel sends what answers them out of the same.
    ///
    /// # Errors
    /// As for [`Tap::open`]; [`TapError::Queues`] for a number that no TAP has.
    pub fn open_with_queues(name: &TapName, queues: u16) -> Result<Self, TapError> {
        match queues {
            1 => return Self::open_with_offloads(name),
            2..=MOST_QUEUES => {}
            _ => return Err(TapError::Queues { name: name.clone(), queues }),
        }
        let first = open_device(name)?;
        let created = attach(&first, name, OFFLOADS | SEVERAL_QUEUES)?;
        let more = (1..queues).map(|_| another(name)).collect::<Result<_, _>>()?;
        // Of one that was there before, somebody else may hold queues, too: he would get a part of the frames.
        if !created && attached(name)? != Some(queues.into()) {
            return Err(TapError::Busy { name: name.clone() });
        }
        Self::around(name, first, more, created, true)
    }

    /// How many queues it has.
    #[must_use]
    pub fn queues(&self) -> usize {
        1 + self.more.len()
    }

    /// A queue by its number, from 0 on, for polling; the first for a number that there is none for.
    #[must_use]
    pub fn queue(&self, number: usize) -> BorrowedFd<'_> {
        let more = number.checked_sub(1).and_then(|at| self.more.get(at));
        more.unwrap_or(&self.queue).as_fd()
    }

    /// [`Tap::read_offloaded`] from one of several queues.
    ///
    /// # Errors
    /// As there.
    pub fn read_offloaded_from(
        &self,
        queue: usize,
        buffer: &mut [u8],
    ) -> Result<Option<(usize, Offloaded)>, TapError> {
        self.with_offloads()?;
        loop {
            let mut header = [0; VNET_HEADER];
            let room = buffer.len();
            let mut pieces = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut *buffer)];
            return match rustix::io::readv(self.queue(queue), &mut pieces) {
                Ok(len) if len < VNET_HEADER + room => {
                    let len = len.saturating_sub(VNET_HEADER);
                    let frame = buffer.get_mut(..len).unwrap_or_default();
                    let left = Offloaded::take(header, frame).map_err(|why| self.refused(why))?;
                    Ok(Some((len, left)))
                }
                Ok(_) => Err(TapError::FrameTooLong { name: self.name.clone(), buffer: room }),
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) => Ok(None),
                Err(cause) => Err(failure(&self.name, "read a frame", cause)),
            };
        }
    }

    /// [`Tap::write_offloaded`] through one of several queues.
    ///
    /// # Errors
    /// As there.
    pub fn write_offloaded_to(
        &self,
        queue: usize,
        frame: &[u8],
        left: &Offloaded,
    ) -> Result<bool, TapError> {
        self.with_offloads()?;
        let header = left.encode();
        loop {
            let pieces = [IoSlice::new(&header), IoSlice::new(frame)];
            return match rustix::io::writev(self.queue(queue), &pieces) {
                Ok(_) => Ok(true),
                Err(Errno::INTR) => continue,
                Err(cause) => self.not_written(frame.len(), cause),
            };
        }
    }
}

/// One more queue of a TAP that is open.
fn another(name: &TapName) -> Result<OwnedFd, TapError> {
    let queue = open_device(name)?;
    let flags = TAP | NO_PACKET_INFORMATION | OFFLOADS | SEVERAL_QUEUES;
    let mut request = InterfaceRequest::new(name.field()).with_flags(flags);
    call(&queue, Request::Attach, &mut request)
        .map_err(|cause| failure(name, "attach one more queue", cause))?;
    Ok(queue)
}

/// How many queues of a TAP are attached, whoever holds them.
fn attached(name: &TapName) -> Result<Option<u32>, TapError> {
    let links = Connection::open().and_then(|mut connection| connection.links());
    let links = links.map_err(|error| {
        tracing::debug!(%error, "links cannot be asked for");
        failure(name, "ask how many queues are in use", Errno::IO)
    })?;
    let own = links.into_iter().find(|link| link.name == name.as_str());
    Ok(own.and_then(|link| link.tap_queues))
}
