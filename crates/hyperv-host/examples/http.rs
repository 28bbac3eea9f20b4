//! A tiny HTTP server in a guest: smoltcp on a NIC, first on its synthetic path, then on its VF, and on the first again when the
//! host has taken the VF back.
//!
//!     cargo run -p hyperv-host --example http
//!
//! It serves its page to a client behind the virtual switch, once on each path, and ends. Nothing leaves the process.

use std::time::Duration;

use hyperv_host::Host;
use hyperv_host::host::Disassociation;
use hyperv_host::switch::Offered;
use netvsc::stack::{Frames, FramesConfig};
use netvsc::{MacAddress, Path};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv4Address};
use vmbus::Instant;
use vmbus::time::earliest;

mod whole_guest;
use whole_guest::{Guest, MAC, Outcome, VF, settle, start, until};

const PEER: MacAddress = MacAddress([0x02, 0, 0, 0, 0, 2]);
const SERVER: Ipv4Address = Ipv4Address::new(192, 0, 2, 1);
const CLIENT: Ipv4Address = Ipv4Address::new(192, 0, 2, 2);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn stack_time(now: Instant) -> StackInstant {
    StackInstant::from_micros(i64::try_from(now.as_nanos() / 1000).unwrap_or(i64::MAX))
}

/// A stack with one TCP socket.
struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    /// What came over the connection so far.
    received: Vec<u8>,
}

impl Stack {
    fn new(frames: &mut Frames, mac: MacAddress, address: Ipv4Address, now: Instant) -> Self {
        let config = Config::new(EthernetAddress(mac.0).into());
        let mut interface = Interface::new(config, frames, stack_time(now));
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv4(address), 24)).expect("room for one");
        });
        let buffer = || SocketBuffer::new(vec![0; 4096]);
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(Socket::new(buffer(), buffer()));
        Self { interface, sockets, socket, received: Vec::new() }
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    fn poll(&mut self, frames: &mut Frames, now: Instant) -> Outcome<()> {
        self.interface.poll(stack_time(now), frames, &mut self.sockets);
        let socket = self.sockets.get_mut::<Socket<'_>>(self.socket);
        while socket.can_recv() {
            let received = &mut self.received;
            socket.recv(|bytes| {
                received.extend_from_slice(bytes);
                (bytes.len(), ())
            })?;
        }
        Ok(())
    }

    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(stack_time(now), &self.sockets)?;
        Some(Instant::from_nanos(u64::try_from(at.total_micros()).unwrap_or(0) * 1000))
    }

    /// Answers a request that is complete.
    fn serve(&mut self, page: &str) -> Outcome<()> {
        let whole = self.received.ends_with(b"\r\n\r\n");
        if !self.socket().is_open() {
            self.socket().listen(80)?;
        } else if whole {
            let found = self.received.starts_with(b"GET / ");
            self.received.clear();
            let (status, body) = if found { ("200 OK", page) } else { ("404 Not Found", "") };
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            self.socket().send_slice(answer.as_bytes())?;
            self.socket().close();
        }
        Ok(())
    }
}

/// Host, guest with the server, and the client behind the switch.
struct World {
    host: Host,
    guest: Guest,
    server: Stack,
    client: Stack,
    /// The client's queues; the server's are the guest's.
    frames: Frames,
    now: Instant,
}

impl World {
    fn new() -> Outcome<Self> {
        let mut now = Instant::ZERO;
        let (mut host, mut guest) = start(now)?;
        // Stacks ask what the card does for them once, when they begin: the card is known by then.
        until(&mut host, &mut guest, &mut now, |_, guest| guest.is_ready())?;
        let server = Stack::new(&mut guest.frames, MAC, SERVER, now);
        let mut frames = Frames::new(FramesConfig { mac: PEER, ..FramesConfig::default() });
        let client = Stack::new(&mut frames, PEER, CLIENT, now);
        Ok(Self { host, guest, server, client, frames, now })
    }

    /// Carries frames between the client and the switch. True if any went.
    fn carry(&mut self) -> bool {
        let mut moved = false;
        while let Some(frame) = self.frames.front() {
            if matches!(self.host.peer_transmit(0, frame, self.now), Offered::Busy) {
                break;
            }
            self.frames.pop();
            moved = true;
        }
        while let Some(frame) = self.host.peer_receive(0, self.now) {
            self.frames.push(|buffer| buffer.extend_from_slice(&frame));
            self.host.recycle(0, frame);
            moved = true;
        }
        moved
    }

    /// Everybody does what there is to do now, until something is so; if nothing is left to do before, time goes on.
    fn until(&mut self, mut so: impl FnMut(&mut Self) -> Outcome<bool>) -> Outcome<()> {
        let end = self.now + PATIENCE;
        while self.now < end {
            let path = self.host.data_path(0).ok_or("no NIC")?;
            self.server.serve(&format!("NIC {MAC} on its {path} path\n"))?;
            self.server.poll(&mut self.guest.frames, self.now)?;
            self.client.poll(&mut self.frames, self.now)?;
            settle(&mut self.host, &mut self.guest, self.now)?;
            if so(self)? {
                return Ok(());
            }
            if !self.carry() && self.guest.frames.to_receive() == 0 {
                self.wait()?;
            }
        }
        Err("it did not come to that within a minute".into())
    }

    fn wait(&mut self) -> Outcome<()> {
        let stacks = earliest(self.server.deadline(self.now), self.client.deadline(self.now));
        let machines = earliest(self.host.poll_deadline(), self.guest.deadline());
        let next = earliest(stacks, machines).ok_or("nobody waits for anything")?;
        self.now = next.max(self.now + Duration::from_micros(1));
        Ok(())
    }

    /// Asks for the page, and returns what came until the connection was closed.
    fn get(&mut self, port: u16) -> Outcome<String> {
        let context = self.client.interface.context();
        let socket = self.client.sockets.get_mut::<Socket<'_>>(self.client.socket);
        socket.connect(context, (IpAddress::Ipv4(SERVER), 80), port)?;
        let mut asked = false;
        self.until(|world| {
            let client = world.client.socket();
            if client.can_send() && !asked {
                client.send_slice(b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n")?;
                // The client closes first, so that the server can listen again at once.
                client.close();
                asked = true;
            }
            Ok(asked && !client.may_recv() && !world.server.socket().is_active())
        })?;
        self.client.socket().abort();
        Ok(String::from_utf8(std::mem::take(&mut self.client.received))?)
    }
}

fn main() -> Outcome<()> {
    let mut world = World::new()?;
    for (path, port) in [(Path::Synthetic, 49152), (Path::Vf, 49153), (Path::Synthetic, 49154)] {
        match (path, world.guest.has_vf()) {
            (Path::Vf, _) => world.host.add_vf(0, VF, world.now)?,
            (Path::Synthetic, true) => {
                world.host.eject_vf(0, Disassociation::First, world.now)?;
            }
            (Path::Synthetic, false) => {}
        }
        world.until(|world| Ok(world.host.data_path(0) == Some(path)))?;
        let answer = world.get(port)?;
        println!("{}:\n{answer}", world.now);
        let expected = format!("NIC {MAC} on its {path} path\n");
        if !answer.starts_with("HTTP/1.1 200 OK\r\n") || !answer.ends_with(&expected) {
            return Err(format!("expected the page {expected:?}").into());
        }
    }
    Ok(())
}
