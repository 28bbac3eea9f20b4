//! Frames for somebody else: whether they arrive at an interface at all.

use std::time::{Duration, Instant};

use netvsc::{MacAddress, VfPort as _};
use netvsc_linux::netlink::{Connection, Link};
use netvsc_linux::vf::{PacketConfig, PacketPort, Reception};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::namespace::ip;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Whom the frames are for that are not for the interface, and who sends all of them.
const OTHER: MacAddress = MacAddress([0x02, 0, 0, 0, 0, 0x99]);
const SENDER: MacAddress = MacAddress([0x02, 0, 0, 0, 0, 0x98]);
/// A type of Ethernet frames that is free for experiments.
const TYPE: [u8; 2] = [0x88, 0xb5];

/// An interface, as the kernel tells it.
pub fn link(name: &str) -> Link {
    let links = Connection::open().and_then(|mut kernel| kernel.links()).expect("links");
    links.into_iter().find(|link| link.name == name).expect("it is there")
}

/// A wire's two ends, which the kernel has.
pub struct Ends {
    far: PacketPort,
    near: PacketPort,
    /// The frames so far.
    sent: u32,
}

impl Ends {
    pub fn open(far: &str, near: &str) -> Self {
        let open = |name: &str| {
            let (mac, reception) = (link(name).mac, Reception::Queue);
            let config = PacketConfig { mac, reception, ..PacketConfig::default() };
            PacketPort::open(name, config).expect("a port")
        };
        Self { far: open(far), near: open(near), sent: 0 }
    }

    /// Sends a frame and returns its number.
    fn send(&mut self, to: MacAddress) -> u32 {
        self.sent += 1;
        let mut frame = [to.0.as_slice(), &SENDER.0, &TYPE, &self.sent.to_be_bytes()].concat();
        frame.resize(60, 0);
        self.far.transmit(&frame).expect("there is room");
        self.far.flush();
        self.sent
    }

    /// Whether a frame for somebody else arrives. One for the interface itself is sent after it: once that is there, the other one
    /// was, or never will be.
    fn hears_others(&mut self) -> bool {
        let (other, own) = (self.send(OTHER), link(self.near.name()).mac.expect("a MAC"));
        let own = self.send(own);
        let end = Instant::now() + PATIENCE;
        let (mut heard, mut done) = (false, false);
        while !done {
            self.near.receive(&mut |frame| {
                if frame.get(12..14) == Some(&TYPE) {
                    let number = frame[14..18].try_into().expect("four bytes");
                    let number = u32::from_be_bytes(number);
                    (heard, done) = (heard || number == other, done || number == own);
                }
            });
            assert!(done || Instant::now() < end, "the interface's own frames do not arrive");
            let ears = self.near.ears().descriptors();
            let mut fds: Vec<_> =
                ears.iter().map(|ear| PollFd::new(&**ear, PollFlags::IN)).collect();
            let limit = Timespec { tv_sec: 0, tv_nsec: if done { 0 } else { 100_000_000 } };
            poll(&mut fds, Some(&limit)).expect("poll");
        }
        heard
    }

    pub fn until_others(&mut self, heard: bool, why: &str) {
        let end = Instant::now() + PATIENCE;
        while self.hears_others() != heard {
            assert!(Instant::now() < end, "frames for others, {why}: expected {heard}");
        }
    }

    /// What is for others comes to the near end as long as somebody wants it, and no longer.
    pub fn follow_what_is_wanted(&mut self) {
        let near = self.near.name().to_owned();
        assert!(!self.hears_others(), "nobody has asked for them");
        ip("link add br0 type bridge");
        ip("link set br0 up");
        ip(&format!("link set {near} master br0"));
        // The flags do not say so.
        let ported = link(&near);
        assert_eq!((ported.flags & 0x100, ported.promiscuity), (0, Some(1)));
        self.until_others(true, "of a bridge's port");
        ip(&format!("link set {near} nomaster"));
        self.until_others(false, "of a port that was one");
        ip(&format!("link set {near} promisc on"));
        self.until_others(true, "by `ip link`");
        ip(&format!("link set {near} promisc off"));
        self.until_others(false, "after it was taken back");
    }
}
