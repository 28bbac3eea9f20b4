//! `netvsc run --host uio` over a device that no kernel made, with the host's NIC service on its other end: the program is the one
//! that would run on a guest, and the frames are the kernel's.

#[path = "../../../netvsc-linux/tests/guest/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;

#[path = "../../../netvsc-linux/tests/namespace/mod.rs"]
mod namespace;

#[path = "../fake_uio/mod.rs"]
mod fake_uio;
mod frames;
#[path = "../others/mod.rs"]
mod others;
mod refused;
mod setup;
mod vf;

use std::net::{Shutdown, TcpListener, UdpSocket};
use std::thread;

use setup::{ADDRESS, SERVER};

/// Not a test by itself: sends back what comes, one connection after the other.
#[test]
fn echo_server() {
    if std::env::var_os(SERVER).is_none() {
        return;
    }
    let listener = TcpListener::bind(ADDRESS).expect("the address is there");
    let datagrams = UdpSocket::bind(ADDRESS).expect("the address is there");
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = datagrams.recv_from(&mut buffer) {
            let _ = datagrams.send_to(&buffer[..len], from);
        }
    });
    println!("listening");
    for stream in listener.incoming() {
        let mut stream = stream.expect("someone calls");
        thread::spawn(move || {
            let mut reader = stream.try_clone().expect("a second handle");
            let _ = std::io::copy(&mut reader, &mut stream);
            let _ = stream.shutdown(Shutdown::Write);
        });
    }
}
