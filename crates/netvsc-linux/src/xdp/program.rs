//! The program that hands frames to sockets: "the socket of this queue, if there is one; otherwise the kernel".

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;

use super::request::{self, Place};

/// `XDP_PASS`: what becomes of a frame whose queue has no socket.
const PASS: u8 = 2;
/// `bpf_redirect_map`.
const REDIRECT: u8 = 51;
/// Where `struct xdp_md` has the number of the queue.
const QUEUE: u8 = 16;

/// `BPF_F_XDP_HAS_FRAGS`: the program does not mind frames in several pieces.
const PIECES: u32 = 1 << 5;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// In the driver, before the kernel has made anything of the frame.
    Native,
    /// In the kernel's stack, on any interface.
    Generic,
}

impl std::fmt::Display for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// The program on an interface. It goes with this value, also when the process is killed.
#[derive(Debug)]
pub(super) struct Redirection {
    map: OwnedFd,
    /// Keeps the program attached.
    _link: OwnedFd,
    pub(super) attachment: Attachment,
    /// Frames that lie in several pieces reach it, too.
    pub(super) takes_pieces: bool,
}

impl Redirection {
    /// Attaches to the interface with this number, for so many queues: in the driver if that can be, otherwise in the stack.
    pub(super) fn attach(index: u32, queues: u32) -> Result<Self, Errno> {
        let map = request::socket_map(queues)?;
        let instructions = instructions(&map);
        let (program, takes_pieces) = match request::load(Place::Xdp, &instructions, PIECES) {
            Ok(program) => (program, true),
            Err(error) => {
                tracing::debug!(%error, "no frames in several pieces");
                (request::load(Place::Xdp, &instructions, 0)?, false)
            }
        };
        let native = request::attach(Place::Xdp, &program, index, 1 << 2);
        let (link, attachment) = match native {
            Ok(link) => (link, Attachment::Native),
            // Somebody else's program is there; it is his.
            Err(error @ (Errno::BUSY | Errno::EXIST)) => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "the driver takes no program");
                (request::attach(Place::Xdp, &program, index, 1 << 1)?, Attachment::Generic)
            }
        };
        Ok(Self { map, _link: link, attachment, takes_pieces })
    }

    /// Hands the frames of a queue to a socket from now on.
    pub(super) fn put(&self, queue: u32, socket: impl AsFd) -> Result<(), Errno> {
        request::put(&self.map, queue, socket)
    }
}

/// `TCX_DROP`: the frame goes no further.
const DROP: u8 = 2;

/// Keeps an interface's frames from the kernel's stack, behind whoever has a packet socket and gets copies. It goes with this value,
/// also when the process is killed.
#[derive(Debug)]
pub(crate) struct Discard {
    _link: OwnedFd,
}

impl Discard {
    /// Attaches to the interface with this number, beside whatever else is attached there.
    pub(crate) fn attach(index: u32) -> Result<Self, Errno> {
        // r0 = DROP; return r0
        let [a, b, c, d] = i32::from(DROP).to_ne_bytes();
        let instructions = [[0xb7, 0, 0, 0, a, b, c, d], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        let program = request::load(Place::Ingress, &instructions, 0)?;
        request::attach(Place::Ingress, &program, index, 0).map(|link| Self { _link: link })
    }
}

/// `return redirect(map, context->queue, PASS)`.
fn instructions(map: &OwnedFd) -> [[u8; 8]; 6] {
    let [a, b, c, d] = map.as_raw_fd().to_ne_bytes();
    // Two registers share a byte; which is in the lower half is the machine's order.
    let registers = |to: u8, from: u8| {
        if cfg!(target_endian = "little") { to | from << 4 } else { to << 4 | from }
    };
    let [high, low] = u16::from(QUEUE).to_ne_bytes();
    let number = |value: u8| i32::from(value).to_ne_bytes();
    let with = |code: u8, registers: u8, value: [u8; 4]| {
        let [a, b, c, d] = value;
        [code, registers, 0, 0, a, b, c, d]
    };
    [
        // r2 = the number of the queue
        [0x61, registers(2, 1), high, low, 0, 0, 0, 0],
        // r1 = the map, in two halves; "1" says that this is a descriptor
        [0x18, registers(1, 1), 0, 0, a, b, c, d],
        [0; 8],
        // r3 = what to do without a socket
        with(0xb7, registers(3, 0), number(PASS)),
        with(0x85, 0, number(REDIRECT)),
        [0x95, 0, 0, 0, 0, 0, 0, 0],
    ]
}
