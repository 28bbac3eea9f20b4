//! The system call `bpf`, as far as programs for what an interface receives and a map of sockets need it. Nothing else here is `unsafe`.

use std::ffi::{c_int, c_long};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Commands of `bpf`.
const MAP_CREATE: c_int = 0;
const MAP_UPDATE: c_int = 2;
const PROGRAM_LOAD: c_int = 5;
const LINK_CREATE: c_int = 28;
/// `BPF_MAP_TYPE_XSKMAP`.
const MAP_OF_SOCKETS: u32 = 17;

/// Where a program is run: its kind and the place of its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Before the kernel's stack, or in the driver (`BPF_PROG_TYPE_XDP`, `BPF_XDP`).
    Xdp,
    /// In the stack behind packet sockets (`BPF_PROG_TYPE_SCHED_CLS`, `BPF_TCX_INGRESS`), from Linux 6.6 on.
    Ingress,
}

impl Place {
    const fn numbers(self) -> (u32, u32) {
        match self {
            Self::Xdp => (6, 37),
            Self::Ingress => (3, 46),
        }
    }
}

/// The program is simple enough for any.
const LICENSE: &std::ffi::CStr = c"Dual MIT/GPL";

/// `union bpf_attr`, as far as it is used here: bytes that are zero where nothing is asked for.
#[repr(C, align(8))]
struct Attributes([u8; 128]);

impl Attributes {
    const fn new() -> Self {
        Self([0; 128])
    }

    fn word(mut self, at: usize, value: u32) -> Self {
        if let Some(place) = self.0.get_mut(at..at + 4) {
            place.copy_from_slice(&value.to_ne_bytes());
        }
        self
    }

    fn pointer<T: ?Sized>(mut self, at: usize, to: *const T) -> Self {
        let value = to.cast::<u8>() as usize as u64;
        if let Some(place) = self.0.get_mut(at..at + 8) {
            place.copy_from_slice(&value.to_ne_bytes());
        }
        self
    }
}

fn number(descriptor: impl AsFd) -> u32 {
    u32::try_from(descriptor.as_fd().as_raw_fd()).unwrap_or(u32::MAX)
}

/// A map from queues to sockets, with so many places.
pub(super) fn socket_map(places: u32) -> Result<OwnedFd, Errno> {
    let attributes =
        Attributes::new().word(0, MAP_OF_SOCKETS).word(4, 4).word(8, 4).word(12, places);
    // SAFETY: no pointers.
    let made = unsafe { bpf(MAP_CREATE, attributes)? };
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// Puts a socket into a map, for a queue.
pub(super) fn put(map: impl AsFd, queue: u32, socket: impl AsFd) -> Result<(), Errno> {
    let value = number(socket);
    let attributes = Attributes::new()
        .word(0, number(map))
        .pointer(8, &raw const queue)
        .pointer(16, &raw const value);
    // SAFETY: key and value are four bytes each, as the map was made, and live as long as the call; they are only read.
    unsafe { bpf(MAP_UPDATE, attributes) }.map(drop)
}

/// Loads a program of instructions of 8 bytes each, with these flags.
pub(super) fn load(place: Place, instructions: &[[u8; 8]], flags: u32) -> Result<OwnedFd, Errno> {
    let count = u32::try_from(instructions.len()).map_err(|_| Errno::INVAL)?;
    let attributes = Attributes::new()
        .word(0, place.numbers().0)
        .word(4, count)
        .pointer(8, instructions.as_ptr())
        .pointer(16, LICENSE.as_ptr())
        .word(44, flags);
    // SAFETY: `count` instructions and a string with its zero are there, live as long as the call, and are only read.
    let made = unsafe { bpf(PROGRAM_LOAD, attributes)? };
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// Attaches a program to an interface, as long as the descriptor that this gives is open.
pub(super) fn attach(
    place: Place,
    program: impl AsFd,
    index: u32,
    mode: u32,
) -> Result<OwnedFd, Errno> {
    let attributes = Attributes::new()
        .word(0, number(program))
        .word(4, index)
        .word(8, place.numbers().1)
        .word(12, mode);
    // SAFETY: no pointers.
    let made = unsafe { bpf(LINK_CREATE, attributes)? };
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// Makes the call.
///
/// # Safety
/// Pointers among the attributes are good for what the command does with them.
unsafe fn bpf(command: c_int, mut attributes: Attributes) -> Result<c_int, Errno> {
    let size = size_of::<Attributes>() as c_long;
    // SAFETY: the attributes are as long as said; the rest is the caller's word.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, c_long::from(command), attributes.0.as_mut_ptr(), size)
    };
    if done < 0 {
        let code = std::io::Error::last_os_error().raw_os_error();
        return Err(code.map_or(Errno::IO, Errno::from_raw_os_error));
    }
    c_int::try_from(done).map_err(|_| Errno::OVERFLOW)
}
