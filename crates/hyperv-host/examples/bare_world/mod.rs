//! A NIC and its host with nothing in between but rings, and a server behind the virtual switch.

use std::error::Error;

use hyperv_host::memory::{GuestMemory, GuestRam};
use hyperv_host::nic::{GuestView, NicService, NicServiceConfig, NicServiceEvent};
use hyperv_host::switch::{Offered, PortConfig, SwitchPort};
use netvsc::stack::{Frames, FramesConfig};
use netvsc::{MacAddress, Nic, NicConfig, Path, SharedBuffer};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv4Address};
use vmbus::channel::{Channel, SignalFlag};
use vmbus::memory::{PageList, SharedPages};
use vmbus::{GpadlId, Instant, Pfn, Platform};

/// What the server's page has a thousand of.
pub const PAGE: &str = "a line of the page\n";

const CARD: MacAddress = MacAddress([0x00, 0x15, 0x5d, 0, 0, 1]);
const PEER: MacAddress = MacAddress([0x02, 0, 0, 0, 0, 2]);
const RING_PAGES: usize = 33;
const RECEIVE: GpadlId = GpadlId(1);
const SEND: GpadlId = GpadlId(2);

/// The host, the switch, and who is behind it.
pub struct BareWorld {
    ram: GuestRam,
    service: NicService,
    port: SwitchPort,
    to_host: SignalFlag,
    /// The host's doorbell.
    pub to_guest: SignalFlag,
    buffers: [(GpadlId, PageList); 2],
    server: Server,
}

impl BareWorld {
    /// A NIC on a channel that has just been opened, and the world that it is in.
    pub fn new(server: Ipv4Address) -> Result<(Self, Nic), Box<dyn Error>> {
        let ram = GuestRam::new(1, 1024);
        let map = |pages: &SharedPages| ram.map(pages.frames());
        let (up, down) = (ram.allocate(RING_PAGES)?, ram.allocate(RING_PAGES)?);
        let (receive, send) = (ram.allocate(256)?, ram.allocate(64)?);
        let (to_host, to_guest) = (SignalFlag::new(), SignalFlag::new());
        let mut service = NicService::new(NicServiceConfig::new(CARD));
        let mut port = SwitchPort::new(PortConfig::default());
        service.open(Channel::from_parts(map(&down)?, map(&up)?, to_guest.clone())?, &mut port);
        let buffers = [(RECEIVE, map(&receive)?), (SEND, map(&send)?)];

        let channel = Channel::from_parts(up, down, to_host.clone())?;
        let receive = SharedBuffer { gpadl: RECEIVE, pages: receive };
        let send = SharedBuffer { gpadl: SEND, pages: send };
        let nic = Nic::new(channel, receive, Some(send), NicConfig::default(), Instant::ZERO)?;
        let server = Server::new(server)?;
        Ok((Self { ram, service, port, to_host, to_guest, buffers, server }, nic))
    }

    /// Lets host and server do what they can do now. True if any did something.
    pub fn poll(&mut self, now: Instant) -> Result<bool, Box<dyn Error>> {
        let woken = self.port.take_wake(Path::Synthetic, now);
        let due = self.service.poll_deadline().is_some_and(|at| at <= now);
        let host = self.to_host.take() || woken || due;
        if host {
            let Self { ram, service, port, buffers, .. } = self;
            let gpadl =
                |id| buffers.iter().find(|(known, _)| *known == id).map(|(_, pages)| pages.clone());
            let pages = |frames: &[Pfn]| ram.map(frames).ok();
            service.poll(now, GuestView { gpadl: &gpadl, pages: &pages }, port);
        }
        while let Some(event) = self.service.poll_event() {
            if let NicServiceEvent::Failed(why) = event {
                return Err(why.into());
            }
        }
        Ok(self.server.poll(&mut self.port, now) || host)
    }
}

/// Somebody with a page.
struct Server {
    frames: Frames,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    /// Bytes of the page that are on their way.
    told: usize,
}

impl Server {
    fn new(address: Ipv4Address) -> Result<Self, Box<dyn Error>> {
        let mut frames = Frames::new(FramesConfig { mac: PEER, ..FramesConfig::default() });
        let config = Config::new(EthernetAddress(PEER.0).into());
        let mut interface = Interface::new(config, &mut frames, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv4(address), 24)).expect("room for one");
        });
        let buffer = || SocketBuffer::new(vec![0; 8192]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.listen(80)?;
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(socket);
        Ok(Self { frames, interface, sockets, socket, told: 0 })
    }

    fn poll(&mut self, port: &mut SwitchPort, now: Instant) -> bool {
        let Self { frames, interface, sockets, socket, told } = self;
        let mut moved = false;
        while let Some(frame) = port.peer_receive(now) {
            frames.push(|buffer| buffer.extend_from_slice(&frame));
            port.recycle(frame);
            moved = true;
        }
        let micros = i64::try_from(now.as_nanos() / 1000).unwrap_or(i64::MAX);
        interface.poll(StackInstant::from_micros(micros), frames, sockets);
        let socket = sockets.get_mut::<Socket<'_>>(*socket);
        if socket.may_send() {
            let page = PAGE.repeat(1000);
            let rest = page.as_bytes().get(*told..).unwrap_or_default();
            match rest {
                [] => socket.close(),
                rest => *told += socket.send_slice(rest).unwrap_or(0),
            }
        }
        while let Some(frame) = frames.front() {
            if matches!(port.peer_transmit(frame, now), Offered::Busy) {
                break;
            }
            frames.pop();
            moved = true;
        }
        moved
    }
}
