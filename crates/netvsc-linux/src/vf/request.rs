//! The system calls of packet sockets, and one that any socket answers, that `rustix` has none for. Nothing else here is `unsafe`.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `SOL_PACKET`.
const PACKET: c_int = 263;
/// `PACKET_STATISTICS`.
const STATISTICS: c_int = 6;

/// Options of packet sockets, each with the type of its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// `PACKET_ADD_MEMBERSHIP`: a [`Membership`].
    Join,
    /// `PACKET_DROP_MEMBERSHIP`: likewise.
    Leave,
    /// `PACKET_AUXDATA`: an [`Along`] comes with each frame, as `c_int`.
    Along,
    /// `PACKET_RX_RING`: a [`RingRequest`].
    ReceiveRing,
    /// `PACKET_VERSION`: of the ring's layout, as `c_int`.
    Version,
    /// `PACKET_VNET_HDR`: a header before each frame, as `c_int`.
    Header,
    /// `PACKET_QDISC_BYPASS`: frames go straight to the driver, as `c_int`.
    Bypass,
    /// `PACKET_IGNORE_OUTGOING`: only what arrives is received, as `c_int`. From Linux 4.20 on.
    IgnoreOutgoing,
}

impl Setting {
    const fn number(self) -> c_int {
        match self {
            Self::Join => 1,
            Self::Leave => 2,
            Self::ReceiveRing => 5,
            Self::Along => 8,
            Self::Version => 10,
            Self::Header => 15,
            Self::Bypass => 20,
            Self::IgnoreOutgoing => 23,
        }
    }
}

/// `struct packet_mreq`.
#[repr(C)]
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
pub(super) struct Membership {
    pub(super) index: i32,
    pub(super) kind: u16,
    pub(super) address_length: u16,
    pub(super) address: [u8; 8],
}

/// `struct tpacket_req3`.
#[repr(C)]
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
pub(super) struct RingRequest {
    pub(super) block_size: u32,
    pub(super) blocks: u32,
    pub(super) frame_size: u32,
    pub(super) frames: u32,
    /// Milliseconds after which a block that is not full is handed over.
    pub(super) patience: u32,
    pub(super) private_size: u32,
    pub(super) features: u32,
}

/// `struct tpacket_stats_v3`, since it was read last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, IntoBytes, FromBytes, Immutable, KnownLayout)]
pub(super) struct Statistics {
    pub(super) packets: u32,
    pub(super) dropped: u32,
    pub(super) freezes: u32,
}

const _: () = assert!(size_of::<Membership>() == 16);
const _: () = assert!(size_of::<RingRequest>() == 28);
const _: () = assert!(size_of::<Statistics>() == 12);

/// Sets an option.
pub(super) fn set<T: IntoBytes + Immutable>(
    socket: impl AsFd,
    setting: Setting,
    value: &T,
) -> Result<(), Errno> {
    let bytes = value.as_bytes();
    let length = libc::socklen_t::try_from(bytes.len()).map_err(|_| Errno::INVAL)?;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `length` bytes, which are there, and keeps no pointer. A value that is too short for its option
    // is refused with EINVAL.
    let done = unsafe {
        libc::setsockopt(socket, PACKET, setting.number(), bytes.as_ptr().cast::<c_void>(), length)
    };
    result(done)
}

/// What a socket has received and dropped since this was asked last.
pub(super) fn statistics(socket: impl AsFd) -> Result<Statistics, Errno> {
    let mut counted = Statistics::default();
    let bytes = counted.as_mut_bytes();
    let mut length = libc::socklen_t::try_from(bytes.len()).map_err(|_| Errno::INVAL)?;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `length` bytes, all of which are there and any value of which is good.
    let done = unsafe {
        let to = bytes.as_mut_ptr().cast::<c_void>();
        libc::getsockopt(socket, PACKET, STATISTICS, to, &raw mut length)
    };
    result(done).map(|()| counted)
}

/// The cookie of the network namespace that a socket of any kind is in.
pub(super) fn namespace_cookie(socket: impl AsFd) -> Result<u64, Errno> {
    let mut cookie = 0_u64;
    let bytes = cookie.as_mut_bytes();
    let mut length = libc::socklen_t::try_from(bytes.len()).map_err(|_| Errno::INVAL)?;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `length` bytes, all of which are there and any value of which is good.
    let done = unsafe {
        let to = bytes.as_mut_ptr().cast::<c_void>();
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, to, &raw mut length)
    };
    result(done).map(|()| cookie)
}

/// Binds a packet socket to the interface with this number; it receives frames of this protocol, or of none (0).
pub(super) fn bind(socket: impl AsFd, index: i32, protocol: u16) -> Result<(), Errno> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `length` bytes of the address, which is as long, and keeps no pointer.
    let done = unsafe { libc::bind(socket, (&raw const address).cast(), length) };
    result(done)
}

/// Most frames that go with one call of [`send_many`].
pub(super) const MOST_SENT: usize = 64;

/// Hands frames, each a header and its bytes, to a packet socket; says how many the kernel took, from the first on. Those beyond
/// [`MOST_SENT`] are left. An error is the first one's, of which nothing was taken.
pub(super) fn send_many<'a>(
    socket: impl AsFd,
    frames: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<usize, Errno> {
    let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut pieces = [[nothing; 2]; MOST_SENT];
    let mut count = 0;
    for (place, (header, bytes)) in pieces.iter_mut().zip(frames) {
        *place = [header, bytes].map(|piece| libc::iovec {
            iov_base: piece.as_ptr().cast_mut().cast::<c_void>(),
            iov_len: piece.len(),
        });
        count += 1;
    }
    let mut messages = [const { MaybeUninit::<libc::mmsghdr>::zeroed() }; MOST_SENT];
    for (message, pieces) in messages.iter_mut().zip(&mut pieces).take(count) {
        // SAFETY: a structure of numbers and pointers, for all of which zero is a value: no address, no control data.
        let message = unsafe { message.assume_init_mut() };
        message.msg_hdr.msg_iov = pieces.as_mut_ptr();
        message.msg_hdr.msg_iovlen = pieces.len() as _;
    }
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: `count` messages are there, each with two pieces that point into slices borrowed for `'a`, which the kernel only
    // reads. It writes the lengths that were sent into the messages, and keeps no pointer.
    let sent = unsafe {
        let messages = messages.as_mut_ptr().cast::<libc::mmsghdr>();
        libc::sendmmsg(socket, messages, count as _, libc::MSG_DONTWAIT as _)
    };
    match usize::try_from(sent) {
        Ok(sent) => Ok(sent),
        Err(_) => result(sent).map(|()| 0),
    }
}

/// Bytes for the data that come along with a frame: one `struct cmsghdr` with one [`Along`], and some to spare.
const CONTROL: usize = 64;
/// `PACKET_AUXDATA` as the kind of such data.
const ALONG: c_int = 8;

/// `struct tpacket_auxdata`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout,
)]
pub(super) struct Along {
    pub(super) status: u32,
    pub(super) whole: u32,
    pub(super) kept: u32,
    pub(super) mac: u16,
    pub(super) network: u16,
    pub(super) tag: u16,
    pub(super) tag_kind: u16,
}

const _: () = assert!(size_of::<Along>() == 20);

/// Room for one frame of a packet socket.
#[derive(Debug)]
pub(super) struct Slot {
    /// What is before the frame.
    pub(super) header: [u8; 10],
    /// The frame.
    pub(super) bytes: Box<[u8]>,
    control: Control,
    /// Bytes of header and frame that came.
    pub(super) len: usize,
    /// What came along with them.
    pub(super) along: Along,
}

/// Aligned as what comes along with frames.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
struct Control([u8; CONTROL]);

impl Slot {
    pub(super) fn new(room: usize) -> Self {
        let (control, along) = (Control([0; CONTROL]), Along::default());
        Self { header: [0; 10], bytes: vec![0; room].into(), control, len: 0, along }
    }
}

/// Takes frames from a packet socket, as many as there are and as have room; how many. None is no error.
pub(super) fn receive_many(socket: impl AsFd, slots: &mut [Slot]) -> Result<usize, Errno> {
    let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut pieces = [[nothing; 2]; MOST_SENT];
    let mut messages = [const { MaybeUninit::<libc::mmsghdr>::zeroed() }; MOST_SENT];
    let mut count = 0;
    for ((slot, pieces), message) in slots.iter_mut().zip(&mut pieces).zip(&mut messages) {
        slot.control = Control([0; CONTROL]);
        *pieces = [&mut slot.header[..], &mut slot.bytes[..]].map(|piece| libc::iovec {
            iov_base: piece.as_mut_ptr().cast::<c_void>(),
            iov_len: piece.len(),
        });
        // SAFETY: a structure of numbers and pointers, for all of which zero is a value: no address.
        let message = unsafe { message.assume_init_mut() };
        message.msg_hdr.msg_iov = pieces.as_mut_ptr();
        message.msg_hdr.msg_iovlen = pieces.len() as _;
        message.msg_hdr.msg_control = slot.control.0.as_mut_ptr().cast::<c_void>();
        message.msg_hdr.msg_controllen = CONTROL as _;
        count += 1;
    }
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: `count` messages are there; what they point at is borrowed exclusively, as long as said, and any bytes are good
    // in it. The kernel keeps no pointer.
    let received = unsafe {
        let messages = messages.as_mut_ptr().cast::<libc::mmsghdr>();
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        libc::recvmmsg(socket, messages, count as _, flags as _, std::ptr::null_mut())
    };
    let Ok(received) = usize::try_from(received) else {
        return match result(received) {
            Err(Errno::AGAIN) => Ok(0),
            other => other.map(|()| 0),
        };
    };
    for (slot, message) in slots.iter_mut().zip(&messages).take(received) {
        // SAFETY: initialised above.
        let message = unsafe { message.assume_init_ref() };
        slot.len = message.msg_len as usize;
        slot.along = along(&slot.control);
    }
    Ok(received)
}

/// What came along with a frame: the first of its control data, if it is that.
fn along(control: &Control) -> Along {
    const HEAD: usize = size_of::<libc::cmsghdr>();
    let bytes = &control.0;
    let number = |at: usize| {
        let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
        bytes.map(|bytes| c_int::from_ne_bytes(*bytes))
    };
    let (level, kind) = (HEAD - 2 * size_of::<c_int>(), HEAD - size_of::<c_int>());
    if (number(level), number(kind)) != (Some(PACKET), Some(ALONG)) {
        return Along::default();
    }
    let data = bytes.get(HEAD..).unwrap_or_default();
    Along::read_from_prefix(data).map_or_else(|_| Along::default(), |(along, _)| along)
}

fn result(returned: c_int) -> Result<(), Errno> {
    if returned == 0 {
        return Ok(());
    }
    let code = std::io::Error::last_os_error().raw_os_error();
    Err(code.map_or(Errno::IO, Errno::from_raw_os_error))
}
