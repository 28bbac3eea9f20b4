//! What the processes at the kernel's ends do: send and receive over TCP, by echoes, and by datagrams.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto};
use sha2::{Digest, Sha256};

use crate::SILENCE;
use crate::processes::clock;

const PORT: &str = "192.0.2.2:5001";
/// Shorter silences are no silences, in microseconds.
pub const LEAST: u64 = 5000;

/// Sends until the file is there, with a pause after each 32 KiB.
pub fn send(until: &Path, pause: Duration) {
    let address = PORT.parse().expect("an address");
    let mut stream = TcpStream::connect_timeout(&address, SILENCE).expect("someone answers");
    stream.set_write_timeout(Some(SILENCE)).expect("a limit");
    let (mut state, mut digest, mut sent) = (0x5eed_u64, Sha256::new(), 0_usize);
    let mut buffer = vec![0; 32 << 10];
    while !until.exists() {
        for chunk in buffer.chunks_mut(8) {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            chunk.copy_from_slice(&state.to_le_bytes());
        }
        digest.update(&buffer);
        stream.write_all(&buffer).expect("the other side takes it");
        sent += buffer.len();
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    stream.shutdown(Shutdown::Write).expect("the connection is alive");
    let mut end = [0; 1];
    assert_eq!(stream.read(&mut end).expect("the other side ends"), 0);
    println!("result: {:x?} {sent}", digest.finalize().as_slice());
}

/// Receives all there is, and tells of each silence when it began and ended.
pub fn receive() {
    let listener = TcpListener::bind(PORT).expect("the address is there");
    println!("listening");
    let (mut stream, _) = listener.accept().expect("someone calls");
    stream.set_read_timeout(Some(SILENCE)).expect("a limit");
    let (mut digest, mut total, mut silences) = (Sha256::new(), 0, Vec::new());
    let mut buffer = vec![0; 256 << 10];
    let (mut first, mut last) = (0, 0);
    loop {
        let len = stream.read(&mut buffer).expect("data within the time limit");
        let now = clock();
        if total == 0 {
            println!("it comes");
            first = now;
        } else if now - last >= LEAST {
            silences.push((last, now));
        }
        last = now;
        if len == 0 {
            break;
        }
        digest.update(&buffer[..len]);
        total += len;
    }
    println!("result: {:x?} {total}", digest.finalize().as_slice());
    println!("span: {first} {last}");
    for (start, end) in silences {
        println!("silence: {start} {end}");
    }
}

/// Echo requests as fast as they are answered, as `ping -f` sends them: no more than a window of them is under way.
pub fn flood(count: u16) {
    const WINDOW: u16 = 32;
    let to: SocketAddr = "192.0.2.2:0".parse().expect("an address");
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))
        .expect("root may open a raw socket");
    let limit = Some(Duration::from_secs(1));
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, limit).expect("a limit");
    let id = std::process::id().to_be_bytes();
    let (mut sent, mut answered, mut buffer) = (0, 0, [0; 2048]);
    let mut seen = vec![false; usize::from(count)];
    let end = Instant::now() + SILENCE;
    while answered < count {
        assert!(Instant::now() < end, "{answered} of {sent} echoes answered in time");
        while sent < count && sent - answered < WINDOW {
            let [high, low] = sent.to_be_bytes();
            let mut request = vec![8, 0, 0, 0, id[2], id[3], high, low];
            request.extend([sent as u8; 1000]);
            let words = request.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
            let sum: u32 = words.sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = !(sum + (sum >> 16)) as u16;
            request[2..4].copy_from_slice(&sum.to_be_bytes());
            let done = rustix::net::sendto(&socket, &request, SendFlags::empty(), &to);
            assert_eq!(done, Ok(request.len()));
            sent += 1;
        }
        let Ok((len, _)) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty()) else {
            panic!("{} of {sent} echoes are not answered within a second", sent - answered);
        };
        let reply = &buffer[20..len];
        if reply[0] == 0 && reply[4..6] == id[2..4] {
            let number = u16::from_be_bytes([reply[6], reply[7]]);
            // The kernel may let one overtake another when whoever sends over a veth changes its processor.
            let seen = &mut seen[usize::from(number)];
            assert!(!std::mem::replace(seen, true), "echo {number} is answered twice");
            assert!(reply.len() == 1008 && reply[8..].iter().all(|byte| *byte == number as u8));
            answered += 1;
        }
    }
    println!("result: {answered}");
}

/// How many datagrams are counted.
pub const DATAGRAMS: u32 = 200;

/// Sends datagrams with numbers, each when the one before was answered.
pub fn datagrams(to: SocketAddr) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
    socket.set_broadcast(true).expect("root may");
    socket.set_read_timeout(Some(SILENCE)).expect("a limit");
    let mut answer = [0; 4];
    for number in 0..=DATAGRAMS {
        socket.send_to(&number.to_be_bytes(), to).expect("sent");
        loop {
            assert_eq!(socket.recv(&mut answer).expect("it is answered"), 4);
            if answer == number.to_be_bytes() {
                break;
            }
        }
    }
}

/// Answers datagrams, and counts them up to the last one.
pub fn count() {
    let socket = UdpSocket::bind("0.0.0.0:5002").expect("the port is free");
    socket.set_read_timeout(Some(SILENCE)).expect("a limit");
    println!("listening");
    let (mut number, mut count) = ([0; 4], 0);
    while number != DATAGRAMS.to_be_bytes() {
        let (_, from) = socket.recv_from(&mut number).expect("it comes");
        socket.send_to(&number, from).expect("answered");
        count += 1;
    }
    println!("result: {count}");
}
