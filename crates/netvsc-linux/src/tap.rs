//! TAP devices: Ethernet frames to and from the kernel's own network stack.
//!
//! A [`Tap`] is one end of an interface: what the kernel sends out of the interface is read here, what is written
//! here arrives there. Nothing blocks. A TAP that this module created vanishes with the [`Tap`] (also when the
//! process is killed); one that was there before gets back the MAC, MTU and state that it had.
//!
//! The interface may be moved into another network namespace while it is open: frames keep flowing and the MAC
//! stays reachable, because both go through the queue. MTU and up/down are reached by name from the namespace in
//! which the TAP was opened, and are refused with [`TapError::Moved`] from then on.

mod error;
mod name;
mod offload;
#[expect(unsafe_code, reason = "ioctl takes pointers; this is the one room for it")]
mod request;
mod several;

use std::ffi::c_int;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netvsc::MacAddress;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

pub use error::TapError;
use error::failure;
pub use name::{NAME_MAX, TapName, TapNameError};
pub use offload::{OffloadError, Offloaded, VNET_HEADER};
use request::{InterfaceRequest, Request, call, set_offloads};

/// The device through which the kernel hands out TAPs.
const DEVICE: &str = "/dev/net/tun";

/// `IFF_TAP`: Ethernet frames, not IP packets.
const TAP: u16 = 0x0002;
/// `IFF_NO_PI`: no four bytes of packet information before each frame.
const NO_PACKET_INFORMATION: u16 = 0x1000;
/// `IFF_MULTI_QUEUE`: several queues may be attached.
const SEVERAL_QUEUES: u16 = 0x0100;
/// `IFF_TUN_EXCL`: create, never attach.
const CREATE_ONLY: u16 = 0x8000;
/// `IFF_VNET_HDR`: a header before each frame, which says what is left to be done to it.
const OFFLOADS: u16 = 0x4000;
/// `TUN_F_CSUM`, `TUN_F_TSO4`, `TUN_F_TSO6`: frames without checksums, and TCP segments of any length, may be read.
const ALL_OFFLOADS: u32 = 1 | 2 | 4;
/// `IFF_UP` among an interface's flags.
const UP: u16 = 0x0001;

/// What an interface that was there before looked like.
#[derive(Clone, Copy, Debug)]
struct Before {
    mac: MacAddress,
    mtu: u32,
    up: bool,
    /// Bytes of the header before each frame, if it was made to be [`VNET_HEADER`]: it stays with the interface.
    header: Option<c_int>,
}

/// An open TAP. See the [module](self).
#[derive(Debug)]
pub struct Tap {
    /// The first queue: frames, and the requests that follow the interface wherever it goes.
    queue: OwnedFd,
    /// The others.
    more: Vec<OwnedFd>,
    /// A socket of the namespace in which the TAP was opened, for requests by name.
    control: OwnedFd,
    name: TapName,
    /// `None` if this value created the interface, which then goes with the queue.
    before: Option<Before>,
    /// A header goes before each frame.
    offloads: bool,
}

impl Tap {
    /// Creates the TAP `name`, or attaches to it if it exists and nobody else holds it.
    ///
    /// # Errors
    /// [`TapError::NoDriver`], [`TapError::NotPermitted`], [`TapError::Busy`], [`TapError::NotATap`]; nothing is
    /// left behind then.
    pub fn open(name: &TapName) -> Result<Self, TapError> {
        Self::open_as(name, false)
    }

    /// The same for who can do with frames that leave work to him, and may leave work to the kernel: checksums, and TCP segments
    /// of up to 64 KiB that are cut later. Frames go with an [`Offloaded`] then ([`Tap::read_offloaded`], [`Tap::write_offloaded`]).
    ///
    /// # Errors
    /// As for [`Tap::open`].
    pub fn open_with_offloads(name: &TapName) -> Result<Self, TapError> {
        Self::open_as(name, true)
    }

    fn open_as(name: &TapName, offloads: bool) -> Result<Self, TapError> {
        let flags = if offloads { OFFLOADS } else { 0 };
        let queue = open_device(name)?;
        let created = attach(&queue, name, flags)?;
        Self::around(name, queue, Vec::new(), created, offloads)
    }

    /// The value for queues that are attached.
    fn around(
        name: &TapName,
        queue: OwnedFd,
        more: Vec<OwnedFd>,
        created: bool,
        offloads: bool,
    ) -> Result<Self, TapError> {
        let control = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|cause| failure(name, "open a control socket", cause))?;
        let mut tap = Self { queue, more, control, name: name.clone(), before: None, offloads };
        // Before anything is changed: whatever goes wrong from then on, it is given back as it was.
        if !created {
            let (mac, mtu, up) = (tap.mac()?, tap.mtu()?, tap.is_up()?);
            tap.before = Some(Before { mac, mtu, up, header: None });
        }
        if offloads {
            set_offloads(&tap.queue, ALL_OFFLOADS)
                .map_err(|cause| failure(name, "ask for offloads", cause))?;
            // Somebody may have had it longer, as QEMU with mergeable buffers has.
            let header = set_header_size(&tap.queue, VNET_HEADER as c_int)
                .map_err(|cause| failure(name, "set the size of its header", cause))?;
            if let Some(before) = &mut tap.before {
                before.header = header;
            }
        }
        tracing::debug!(%name, created, queues = tap.queues(), "TAP open");
        Ok(tap)
    }

    /// The name under which it was opened.
    #[must_use]
    pub fn name(&self) -> &TapName {
        &self.name
    }

    /// Whether this value created the interface (and so takes it away again).
    #[must_use]
    pub fn created(&self) -> bool {
        self.before.is_none()
    }

    /// Takes the next frame that the kernel sent out of the interface; `None` if there is none.
    ///
    /// `buffer` must be larger than the largest frame: MTU + 18 bytes (header and VLAN tag) and one more.
    ///
    /// # Errors
    /// [`TapError::FrameTooLong`] if the frame filled the buffer (it is then lost), [`TapError::Gone`].
    pub fn read_frame(&self, buffer: &mut [u8]) -> Result<Option<usize>, TapError> {
        loop {
            return match rustix::io::read(&self.queue, &mut *buffer) {
                Ok(len) if len < buffer.len() => Ok(Some(len)),
                Ok(_) => {
                    Err(TapError::FrameTooLong { name: self.name.clone(), buffer: buffer.len() })
                }
                Err(Errno::INTR) => continue,
                // A queue whose interface is down has nothing to say either.
                Err(Errno::WOULDBLOCK) => Ok(None),
                Err(cause) => Err(failure(&self.name, "read a frame", cause)),
            };
        }
    }

    /// [`Tap::read_frame`] for a TAP with offloads: the frame, and what is left to be done to it. Of the first queue.
    ///
    /// # Errors
    /// As for [`Tap::read_frame`]; [`TapError::Offloads`] if the header makes no sense, and that frame is lost, or the TAP has none.
    pub fn read_offloaded(
        &self,
        buffer: &mut [u8],
    ) -> Result<Option<(usize, Offloaded)>, TapError> {
        self.read_offloaded_from(0, buffer)
    }

    /// [`Tap::write_frame`] for a TAP with offloads: the frame, and what is left to be done to it. Through the first queue.
    ///
    /// # Errors
    /// As for [`Tap::write_frame`]; [`TapError::Offloads`] if the TAP has none.
    pub fn write_offloaded(&self, frame: &[u8], left: &Offloaded) -> Result<bool, TapError> {
        self.write_offloaded_to(0, frame, left)
    }

    fn with_offloads(&self) -> Result<(), TapError> {
        if self.offloads { Ok(()) } else { Err(self.refused(OffloadError::None)) }
    }

    fn refused(&self, why: OffloadError) -> TapError {
        TapError::Offloads { name: self.name.clone(), why }
    }

    /// What it means that a frame of `len` bytes was not written.
    fn not_written(&self, len: usize, cause: Errno) -> Result<bool, TapError> {
        let name = self.name.clone();
        match cause {
            Errno::WOULDBLOCK | Errno::NOBUFS | Errno::NOMEM => Ok(false),
            Errno::IO => Err(TapError::Down { name }),
            Errno::INVAL => Err(TapError::FrameLength { name, len }),
            cause => Err(failure(&name, "write a frame", cause)),
        }
    }

    /// Hands `frame` to the kernel as if it had arrived at the interface. `false`: the kernel has no room now, try
    /// again when the TAP polls writable.
    ///
    /// # Errors
    /// [`TapError::Down`] while the interface is down, [`TapError::FrameLength`], [`TapError::Gone`].
    pub fn write_frame(&self, frame: &[u8]) -> Result<bool, TapError> {
        loop {
            return match rustix::io::write(&self.queue, frame) {
                Ok(_) => Ok(true),
                Err(Errno::INTR) => continue,
                Err(cause) => self.not_written(frame.len(), cause),
            };
        }
    }

    /// The interface's current MAC address.
    ///
    /// # Errors
    /// [`TapError::Gone`].
    pub fn mac(&self) -> Result<MacAddress, TapError> {
        let mut request = InterfaceRequest::new(self.name.field());
        call(&self.queue, Request::Mac, &mut request)
            .map_err(|cause| failure(&self.name, "read the MAC address", cause))?;
        Ok(MacAddress(request.mac()))
    }

    /// Gives the interface a MAC address.
    ///
    /// # Errors
    /// [`TapError::Mac`] if the kernel refuses the address (multicast, zero), [`TapError::NotPermitted`].
    pub fn set_mac(&self, mac: MacAddress) -> Result<(), TapError> {
        let mut request = InterfaceRequest::new(self.name.field()).with_mac(mac.0);
        match call(&self.queue, Request::SetMac, &mut request) {
            Err(Errno::ADDRNOTAVAIL) => Err(TapError::Mac { name: self.name.clone(), mac }),
            other => other.map_err(|cause| failure(&self.name, "set the MAC address", cause)),
        }
    }

    /// The interface's MTU in bytes.
    ///
    /// # Errors
    /// [`TapError::Moved`] if the interface left the namespace.
    pub fn mtu(&self) -> Result<u32, TapError> {
        let request = self.by_name(Request::Mtu, "read the MTU", |r| r)?;
        Ok(u32::try_from(request.mtu()).unwrap_or(0))
    }

    /// Sets the interface's MTU in bytes.
    ///
    /// # Errors
    /// [`TapError::Mtu`] if the kernel refuses the number, [`TapError::Moved`], [`TapError::NotPermitted`].
    pub fn set_mtu(&self, mtu: u32) -> Result<(), TapError> {
        let refused = || TapError::Mtu { name: self.name.clone(), mtu };
        let value = c_int::try_from(mtu).map_err(|_| refused())?;
        match self.by_name(Request::SetMtu, "set the MTU", |r| r.with_mtu(value)) {
            Err(TapError::Other { cause: Errno::INVAL, .. }) => Err(refused()),
            other => other.map(drop),
        }
    }

    /// The interface's number, by which netlink knows it whatever its name is now.
    ///
    /// # Errors
    /// [`TapError::Moved`] if the interface left the namespace.
    pub fn index(&self) -> Result<u32, TapError> {
        let request = self.by_name(Request::Index, "ask for the number", |r| r)?;
        Ok(u32::try_from(request.index()).unwrap_or(0))
    }

    /// Whether the interface is up.
    ///
    /// # Errors
    /// [`TapError::Moved`] if the interface left the namespace.
    pub fn is_up(&self) -> Result<bool, TapError> {
        let request = self.by_name(Request::Flags, "read the state", |r| r)?;
        Ok(request.flags() & UP != 0)
    }

    /// Brings the interface up or takes it down.
    ///
    /// # Errors
    /// [`TapError::Moved`] if the interface left the namespace, [`TapError::NotPermitted`].
    pub fn set_up(&self, up: bool) -> Result<(), TapError> {
        let doing = if up { "bring it up" } else { "take it down" };
        let old = self.by_name(Request::Flags, doing, |r| r)?.flags();
        let new = if up { old | UP } else { old & !UP };
        if new != old {
            self.by_name(Request::SetFlags, doing, |r| r.with_flags(new))?;
        }
        Ok(())
    }

    /// A request by name, made only if the name still means this interface.
    fn by_name(
        &self,
        kind: Request,
        doing: &'static str,
        fill: impl FnOnce(InterfaceRequest) -> InterfaceRequest,
    ) -> Result<InterfaceRequest, TapError> {
        let name = &self.name;
        let moved = || TapError::Moved { name: name.clone(), doing };
        // The interface may have been renamed; the queue knows.
        let mut own = InterfaceRequest::new(name.field());
        call(&self.queue, Request::Attached, &mut own)
            .map_err(|cause| failure(name, doing, cause))?;
        // It may also have been moved away, and another may have taken the name: compare the addresses.
        let mut there = own;
        match call(&self.control, Request::Mac, &mut there) {
            Ok(()) if there.mac() == self.mac()?.0 => {}
            Ok(()) | Err(Errno::NODEV) => return Err(moved()),
            Err(cause) => return Err(failure(name, doing, cause)),
        }
        let mut field = [0; name::NAME_FIELD];
        for (to, from) in field.iter_mut().zip(own.name()) {
            *to = *from;
        }
        let mut request = fill(InterfaceRequest::new(field));
        match call(&self.control, kind, &mut request) {
            Ok(()) => Ok(request),
            Err(Errno::NODEV) => Err(moved()),
            Err(cause) => Err(failure(name, doing, cause)),
        }
    }

    /// Gives an interface that was there before its old looks, touching only what differs.
    fn restore(&self, before: Before) -> Result<(), TapError> {
        if self.is_up()? && !before.up {
            self.set_up(false)?;
        }
        if self.mtu()? != before.mtu {
            self.set_mtu(before.mtu)?;
        }
        if before.up {
            self.set_up(true)?;
        }
        Ok(())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let Some(before) = self.before else {
            return; // created here: closing the queue removes it
        };
        // The MAC first: it is reachable even where the rest no longer is.
        let mac = match self.mac() {
            Ok(now) if now != before.mac => self.set_mac(before.mac),
            other => other.map(drop),
        };
        if let Some(header) = before.header
            && let Err(cause) = set_header_size(&self.queue, header)
        {
            tracing::debug!(name = %self.name, %cause, "could not restore the size of the TAP's header");
        }
        if let Err(error) = mac.and_then(|()| self.restore(before)) {
            tracing::debug!(name = %self.name, %error, "could not restore the TAP");
        }
    }
}

impl AsFd for Tap {
    /// For polling; readable means a frame waits, in the first queue if there are several ([`Tap::queue`]).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

/// Opens the kernel's TAP device.
fn open_device(name: &TapName) -> Result<OwnedFd, TapError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(|cause| match cause {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => TapError::NoDriver { cause },
        cause => failure(name, "open /dev/net/tun", cause),
    })
}

/// Makes `queue` the queue of the TAP `name`. `true`: the interface was created by this call.
///
/// Creating is tried first, so that it is known for certain whose interface it is; two programs that start at the
/// same time get one interface and one [`TapError::Busy`].
fn attach(queue: &OwnedFd, name: &TapName, more: u16) -> Result<bool, TapError> {
    const DOING: &str = "create or attach to the interface";
    let flags = TAP | NO_PACKET_INFORMATION | more;
    let base = InterfaceRequest::new(name.field());
    let mut request = base.with_flags(flags | CREATE_ONLY);
    match call(queue, Request::Attach, &mut request) {
        Ok(()) => return Ok(true),
        Err(Errno::BUSY) => {}
        Err(cause) => return Err(failure(name, DOING, cause)),
    }
    let mut request = base.with_flags(flags);
    match call(queue, Request::Attach, &mut request) {
        Ok(()) => Ok(false),
        Err(Errno::BUSY) => Err(TapError::Busy { name: name.clone() }),
        Err(Errno::INVAL) => {
            Err(TapError::NotATap { name: name.clone(), several: more & SEVERAL_QUEUES != 0 })
        }
        Err(cause) => Err(failure(name, DOING, cause)),
    }
}

/// Has the header before each frame be so many bytes. How many it had, if they were others.
fn set_header_size(queue: &OwnedFd, bytes: c_int) -> Result<Option<c_int>, Errno> {
    let mut request = InterfaceRequest::of_number(0);
    call(queue, Request::HeaderSize, &mut request)?;
    let before = request.number();
    if before == bytes {
        return Ok(None);
    }
    call(queue, Request::SetHeaderSize, &mut InterfaceRequest::of_number(bytes))?;
    Ok(Some(before))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{in_namespace, ip};

    fn header_of(name: &TapName) -> c_int {
        let queue = open_device(name).unwrap();
        assert!(!attach(&queue, name, OFFLOADS).unwrap(), "it was there");
        let mut request = InterfaceRequest::of_number(0);
        call(&queue, Request::HeaderSize, &mut request).unwrap();
        request.number()
    }

    #[test]
    fn a_longer_header_of_a_tap_that_was_there_is_shortened_meanwhile() {
        in_namespace(
            "tap::tests::a_longer_header_of_a_tap_that_was_there_is_shortened_meanwhile",
            || {
                ip("tuntap add mode tap name nvt0 vnet_hdr");
                let name: TapName = "nvt0".parse().unwrap();
                {
                    let queue = open_device(&name).unwrap();
                    attach(&queue, &name, OFFLOADS).unwrap();
                    assert_eq!(set_header_size(&queue, 12), Ok(Some(10)));
                }
                assert_eq!(header_of(&name), 12, "it stays with the interface");
                let tap = Tap::open_with_offloads(&name).unwrap();
                let mut request = InterfaceRequest::of_number(0);
                call(&tap.queue, Request::HeaderSize, &mut request).unwrap();
                assert_eq!(request.number(), VNET_HEADER as c_int);
                drop(tap);
                assert_eq!(header_of(&name), 12, "and is what it was");
            },
        );
    }
    #[test]
    fn a_tap_that_cannot_be_had_after_all_keeps_its_header() {
        in_namespace("tap::tests::a_tap_that_cannot_be_had_after_all_keeps_its_header", || {
            use rustix::process::{Resource, getrlimit, setrlimit};
            use std::os::fd::AsRawFd;

            ip("tuntap add mode tap name nvt0 vnet_hdr");
            let name: TapName = "nvt0".parse().unwrap();
            let free = {
                let queue = open_device(&name).unwrap();
                attach(&queue, &name, OFFLOADS).unwrap();
                assert_eq!(set_header_size(&queue, 12), Ok(Some(10)));
                queue.as_raw_fd()
            };
            // There is a descriptor for the queue and none for the socket that is needed as well.
            let before = getrlimit(Resource::Nofile);
            let current = Some(u64::try_from(free).unwrap() + 1);
            setrlimit(Resource::Nofile, rustix::process::Rlimit { current, ..before }).unwrap();
            let refused = Tap::open_with_offloads(&name).expect_err("no descriptors");
            setrlimit(Resource::Nofile, before).unwrap();
            assert!(matches!(refused, TapError::Other { cause: Errno::MFILE, .. }), "{refused}");
            assert_eq!(header_of(&name), 12);
        });
    }
}
