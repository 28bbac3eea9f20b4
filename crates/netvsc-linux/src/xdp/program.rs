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
/// `BPF_F_BEFORE`, without saying what: before all that is attached already.
const FIRST: u32 = 1 << 3;

/// Keeps an interface's frames from the kernel's stack, behind whoever has a packet socket and gets copies. It goes with this value,
/// also when the process is killed.
#[derive(Debug)]
pub(crate) struct Discard {
    _link: OwnedFd,
}

impl Discard {
    /// Attaches to the interface with this number, before whatever is attached there: any other program could let a frame pass
    /// (`TCX_PASS`), and none behind it would see that one.
    pub(crate) fn attach(index: u32) -> Result<Self, Errno> {
        let program = request::load(Place::Ingress, &always(DROP), 0)?;
        request::attach(Place::Ingress, &program, index, FIRST).map(|link| Self { _link: link })
    }
}

/// `return verdict`.
fn always(verdict: u8) -> [[u8; 8]; 2] {
    let [a, b, c, d] = i32::from(verdict).to_ne_bytes();
    [[0xb7, 0, 0, 0, a, b, c, d], [0x95, 0, 0, 0, 0, 0, 0, 0]]
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

#[cfg(test)]
mod kernel_tests {
    use std::time::{Duration, Instant};

    use netvsc::{PortLink, VfPort};

    use super::*;
    use crate::namespace::{in_namespace, ip, skipped};
    use crate::vf::{PacketConfig, PacketPort};

    /// `TCX_PASS`: the frame goes to the stack, whatever else is attached.
    const LET_PASS: u8 = 0;

    /// Packets that IPv4 has had in this namespace.
    fn received() -> u64 {
        let text = std::fs::read_to_string("/proc/net/snmp").unwrap();
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Ip: "));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let at = names.split(' ').position(|name| name == "InReceives").unwrap();
        values.split(' ').nth(at).unwrap().parse().unwrap()
    }

    fn until(what: &str, mut so: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !so() {
            assert!(Instant::now() < end, "not within 10 s: {what}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    #[test]
    fn a_program_that_lets_frames_pass_does_not_get_them_first() {
        const NAME: &str =
            "xdp::program::kernel_tests::a_program_that_lets_frames_pass_does_not_get_them_first";
        in_namespace(NAME, || {
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
            ip("link add va type veth peer name vb");
            ip("link set va up");
            let config = PacketConfig { alone: false, ..PacketConfig::default() };
            let mut from = PacketPort::open("vb", config).unwrap();
            until("it is up", || from.link() == PortLink::Up);
            let index = PacketPort::open("va", config).unwrap().index();
            let other = request::load(Place::Ingress, &always(LET_PASS), 0)
                .and_then(|program| request::attach(Place::Ingress, &program, index, 0));
            let _other = match other {
                Ok(link) => link,
                Err(error) => {
                    return skipped(NAME, &format!("no program at the entrance: {error}"));
                }
            };
            // A datagram to all, which the stack counts before it looks further.
            let mut frame = vec![0xff; 6];
            frame.extend([2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0x7a, 0xd1]);
            frame.extend([0, 0, 0, 0, 255, 255, 255, 255, 0, 9, 0, 9, 0, 8, 0, 0]);
            frame.resize(60, 0);
            let mut send = || {
                from.transmit(&frame).unwrap();
                from.flush();
            };
            let before = received();
            send();
            until("the stack has it", || received() == before + 1);
            let discard = Discard::attach(index).unwrap();
            (0..20).for_each(|_| send());
            drop(discard);
            // What comes last comes after all others.
            send();
            until("the stack has the last one", || received() > before + 1);
            assert_eq!(received(), before + 2, "more than those two");
        });
    }
}
