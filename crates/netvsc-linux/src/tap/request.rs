//! The interface requests of `ioctl`. The only `unsafe` of this crate.

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Ioctl, IoctlOutput, Opcode, ioctl, opcode};

use super::name::NAME_FIELD;

/// What the kernel calls `struct ifreq`: a name and a value whose type depends on the request.
///
/// The value is 24 bytes on 64-bit machines and 16 on others; the larger size serves both, since the kernel
/// copies only as much as it knows.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct InterfaceRequest {
    /// Offset 0: the interface's name, zero-terminated.
    name: [u8; NAME_FIELD],
    /// Offset 16: the value; how it is laid out is the request's business.
    value: [u8; 24],
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);

/// Address family of an Ethernet address (`ARPHRD_ETHER`), for `SetMac`.
const ETHERNET: u16 = 1;

/// The requests this module makes. Each takes a pointer to an [`InterfaceRequest`] and nothing else, which is what
/// makes [`call`] safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// `TUNSETIFF`: create or attach; value: flags (u16).
    Attach,
    /// `TUNGETIFF`: the current name and flags of an attached queue.
    Attached,
    /// `SIOCGIFFLAGS`: the interface's flags (u16).
    Flags,
    /// `SIOCGIFINDEX`: the interface's number (`c_int`).
    Index,
    /// `SIOCSIFFLAGS`.
    SetFlags,
    /// `SIOCGIFMTU`: the MTU (`c_int`).
    Mtu,
    /// `SIOCSIFMTU`.
    SetMtu,
    /// `SIOCGIFHWADDR`: address family (u16) and address.
    Mac,
    /// `SIOCSIFHWADDR`.
    SetMac,
    /// `TUNGETVNETHDRSZ`: bytes of the header before each frame (`c_int`). Of an attached queue, so that the number stands where the
    /// others have a name.
    HeaderSize,
    /// `TUNSETVNETHDRSZ`.
    SetHeaderSize,
}

impl Request {
    const fn opcode(self) -> Opcode {
        match self {
            // The sizes in these two are the kernel's history: the argument is a `struct ifreq` all the same.
            Self::Attach => opcode::write::<c_int>(b'T', 202),
            Self::Attached => opcode::read::<c_uint>(b'T', 210),
            Self::Flags => 0x8913,
            Self::Index => 0x8933,
            Self::SetFlags => 0x8914,
            Self::Mtu => 0x8921,
            Self::SetMtu => 0x8922,
            Self::SetMac => 0x8924,
            Self::Mac => 0x8927,
            Self::HeaderSize => opcode::read::<c_int>(b'T', 215),
            Self::SetHeaderSize => opcode::write::<c_int>(b'T', 216),
        }
    }
}

impl InterfaceRequest {
    pub(super) const fn new(name: [u8; NAME_FIELD]) -> Self {
        Self { name, value: [0; 24] }
    }

    pub(super) fn with_flags(mut self, flags: u16) -> Self {
        self.put(0, &flags.to_ne_bytes());
        self
    }

    pub(super) fn with_mtu(mut self, mtu: c_int) -> Self {
        self.put(0, &mtu.to_ne_bytes());
        self
    }

    pub(super) fn with_mac(mut self, mac: [u8; 6]) -> Self {
        self.put(0, &ETHERNET.to_ne_bytes());
        self.put(2, &mac);
        self
    }

    /// For a request about a number only.
    pub(super) fn of_number(number: c_int) -> Self {
        let mut name = [0; NAME_FIELD];
        for (to, from) in name.iter_mut().zip(number.to_ne_bytes()) {
            *to = from;
        }
        Self::new(name)
    }

    pub(super) fn number(&self) -> c_int {
        self.name.first_chunk().map_or(0, |bytes| c_int::from_ne_bytes(*bytes))
    }

    /// The name up to its zero.
    pub(super) fn name(&self) -> &[u8] {
        self.name.split(|byte| *byte == 0).next().unwrap_or(&[])
    }

    pub(super) fn flags(&self) -> u16 {
        u16::from_ne_bytes(self.get(0))
    }

    pub(super) fn index(&self) -> c_int {
        c_int::from_ne_bytes(self.get(0))
    }

    pub(super) fn mtu(&self) -> c_int {
        c_int::from_ne_bytes(self.get(0))
    }

    pub(super) fn mac(&self) -> [u8; 6] {
        self.get(2)
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        for (to, from) in self.value.iter_mut().skip(offset).zip(bytes) {
            *to = *from;
        }
    }

    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut out = [0; N];
        for (to, from) in out.iter_mut().zip(self.value.iter().skip(offset)) {
            *to = *from;
        }
        out
    }
}

/// One call: an opcode out of [`Request`] and the structure it wants.
struct Call<'a> {
    request: Request,
    argument: &'a mut InterfaceRequest,
}

// SAFETY: every opcode of `Request` reads and writes at most one `struct ifreq`, or one number, behind its pointer. The pointer comes
// from an exclusive borrow of an `InterfaceRequest`, which is at least as large and as aligned, lives as long as the
// call, and consists of bytes only, so that whatever the kernel writes is a valid value. Nothing is read from the
// output pointer. `IS_MUTATING` is true because the kernel may write.
unsafe impl Ioctl for Call<'_> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.request.opcode()
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.argument).cast()
    }

    // SAFETY: the pointer is not looked at.
    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
}

/// Makes `request` on `fd`; the answer, if there is one, is in `argument` afterwards.
pub(super) fn call(
    fd: impl AsFd,
    request: Request,
    argument: &mut InterfaceRequest,
) -> Result<(), Errno> {
    let call = Call { request, argument };
    // SAFETY: opcode and operand fit each other (see `Call`). On a descriptor that is neither a TUN queue nor a socket
    // the kernel answers ENOTTY or EINVAL, or, were it another device that gives the number a meaning, would still
    // get a valid pointer to 40 bytes; this crate calls it on descriptors that it has opened itself.
    unsafe { ioctl(fd, call) }
}

/// `TUNSETOFFLOAD`: says what whoever holds the queue takes on, as bits.
pub(super) fn set_offloads(queue: impl AsFd, bits: c_uint) -> Result<(), Errno> {
    const OPCODE: Opcode = opcode::write::<c_uint>(b'T', 208);
    // SAFETY: the operand of this opcode is the number itself; nothing is read or written through it.
    unsafe { ioctl(queue, IntegerSetter::<OPCODE>::new_usize(bits as usize)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_are_the_kernels() {
        // Values of the kernel's interface on machines with the common encoding of direction and size.
        if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
            assert_eq!(Request::Attach.opcode(), 0x4004_54ca);
            assert_eq!(Request::Attached.opcode(), 0x8004_54d2);
            assert_eq!(Request::HeaderSize.opcode(), 0x8004_54d7);
            assert_eq!(Request::SetHeaderSize.opcode(), 0x4004_54d8);
        }
    }

    #[test]
    fn values_lie_where_the_kernel_expects_them() {
        let base = InterfaceRequest::new(*b"tap0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(base.name(), b"tap0");
        assert_eq!(base.with_flags(0x1002).flags(), 0x1002);
        assert_eq!(base.with_mtu(9000).mtu(), 9000);
        assert_eq!(InterfaceRequest::of_number(12).number(), 12);
        let mac = base.with_mac([2, 3, 4, 5, 6, 7]);
        assert_eq!(mac.flags(), ETHERNET);
        assert_eq!(mac.mac(), [2, 3, 4, 5, 6, 7]);
    }
}
