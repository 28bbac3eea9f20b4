//! A tiny HTTP server in a guest: smoltcp on a NIC, first on its synthetic path, then on its VF.
//!
//! `cargo run --example http` serves its page twice to a client behind the virtual switch and ends. Nothing leaves the process.

use std::error::Error;

use hyperv_host::host::VfSpec;
use netvsc::stack::Frames;
use netvsc::{MacAddress, Path};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Address};
use vmbus::time::earliest;
use vmbus::{Guid, Instant, Serial};

mod small_world;
use small_world::{GUEST, PEER, SmallWorld};

const SERVER: Ipv4Address = Ipv4Address::new(192, 0, 2, 1);
const CLIENT: Ipv4Address = Ipv4Address::new(192, 0, 2, 2);

/// A stack with one TCP socket.
struct Host {
    frames: Frames,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    /// What came over the connection so far.
    received: Vec<u8>,
}

fn stack_time(now: Instant) -> StackInstant {
    StackInstant::from_micros(i64::try_from(now.as_nanos() / 1000).unwrap_or(i64::MAX))
}

impl Host {
    fn new(mac: MacAddress, address: Ipv4Address, now: Instant) -> Self {
        let mut frames = SmallWorld::frames(mac);
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac.0)));
        let mut interface = Interface::new(config, &mut frames, stack_time(now));
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv4(address), 24)).expect("room for one");
        });
        let buffer = || SocketBuffer::new(vec![0; 4096]);
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(Socket::new(buffer(), buffer()));
        Self { frames, interface, sockets, socket, received: Vec::new() }
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    fn poll(&mut self, now: Instant) -> Result<(), Box<dyn Error>> {
        self.interface.poll(stack_time(now), &mut self.frames, &mut self.sockets);
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
    fn serve(&mut self, page: &str) -> Result<(), Box<dyn Error>> {
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

/// Asks for the page, and returns what came until the connection was closed.
fn get(
    small: &mut SmallWorld,
    [server, client]: [&mut Host; 2],
    port: u16,
) -> Result<String, Box<dyn Error>> {
    let context = client.interface.context();
    let socket = client.sockets.get_mut::<Socket<'_>>(client.socket);
    socket.connect(context, (IpAddress::Ipv4(SERVER), 80), port)?;
    let mut asked = false;
    loop {
        let view = small.world.guest.view(0);
        server.serve(&format!("NIC {} on its {} path\n", view.mac, view.path))?;
        server.poll(small.now)?;
        client.poll(small.now)?;
        if client.socket().can_send() && !asked {
            client.socket().send_slice(b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n")?;
            // The client closes first, so that the server can listen again at once.
            client.socket().close();
            asked = true;
            continue;
        }
        if asked && !client.socket().may_recv() && !server.socket().is_active() {
            client.socket().abort();
            return Ok(String::from_utf8(std::mem::take(&mut client.received))?);
        }
        if !small.carry(&mut server.frames, &mut client.frames) {
            let now = small.now;
            small.step(earliest(server.deadline(now), client.deadline(now)))?;
        }
    }
}

/// The host gives the NIC a VF.
fn give_vf(small: &mut SmallWorld) -> Result<(), Box<dyn Error>> {
    let instance = Guid::from_u128(2);
    let vf = VfSpec { instance, serial: Serial(7), associated: None, offer_first: false };
    small.world.host.add_vf(0, vf, small.now)?;
    small.world.map_vf(instance);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut small = SmallWorld::new()?;
    let mut server = Host::new(GUEST, SERVER, small.now);
    let mut client = Host::new(PEER, CLIENT, small.now);
    for (path, port) in [(Path::Synthetic, 49152), (Path::Vf, 49153)] {
        if path == Path::Vf {
            give_vf(&mut small)?;
        }
        while small.world.guest.view(0).mac.is_empty()
            || small.world.host.data_path(0) != Some(path)
        {
            if !small.carry(&mut server.frames, &mut client.frames) {
                small.step(None)?;
            }
        }
        let answer = get(&mut small, [&mut server, &mut client], port)?;
        println!("{} s:\n{answer}", small.now);
        let expected = format!("NIC {GUEST} on its {path} path\n");
        if !answer.starts_with("HTTP/1.1 200 OK\r\n") || !answer.ends_with(&expected) {
            return Err(format!("expected the page {expected:?}").into());
        }
    }
    Ok(())
}
