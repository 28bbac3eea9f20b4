//! What a capture has of each TCP connection, each byte once however often it was sent.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};

use crate::processes::Line;
use crate::setup::told;

/// ETH_P_ALL: frames of every protocol.
const EVERYTHING: u16 = 3;
/// All that comes within two seconds of a paced transfer, so that no frame is dropped however late a capture gets to run.
const QUEUE: usize = 64 << 20;

/// A direction of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// The sequence number of the first byte, if its beginning was seen.
    pub first: Option<u32>,
    /// Sequence number and length of what was seen, in its order; what follows at once is one piece.
    pieces: Vec<(u32, u32)>,
}

impl Stream {
    fn add(&mut self, sequence: u32, len: u32) {
        match self.pieces.last_mut() {
            Some((start, so_far)) if start.wrapping_add(*so_far) == sequence => *so_far += len,
            _ => self.pieces.push((sequence, len)),
        }
    }

    /// The same bytes and those of another capture.
    pub fn and(&self, other: &Self) -> Self {
        let pieces = self.pieces.iter().chain(&other.pieces).copied().collect();
        Self { first: self.first.or(other.first), pieces }
    }

    /// From where to where there are bytes, counted from the first of the connection, without those that came before.
    pub fn spans(&self, first: u32) -> Vec<(u64, u64)> {
        let span = |(start, len): &(u32, u32)| {
            let start = u64::from(start.wrapping_sub(first));
            (start, start + u64::from(*len))
        };
        let mut all: Vec<_> = self.pieces.iter().map(span).collect();
        all.sort_unstable();
        let mut spans: Vec<(u64, u64)> = Vec::new();
        for (start, end) in all {
            match spans.last_mut() {
                Some((_, before)) if start <= *before => *before = end.max(*before),
                _ => spans.push((start, end)),
            }
        }
        spans
    }
}

/// The connections to the receiver of a transfer, by the port from which they come.
#[derive(Debug, Default)]
pub struct Streams(pub BTreeMap<u16, Stream>);

impl Streams {
    fn add(&mut self, frame: &[u8]) {
        let word =
            |at: usize| frame.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
        if word(12) != Some(0x0800) || frame.get(23) != Some(&6) || word(36) != Some(5001) {
            return;
        }
        let stream = self.0.entry(word(34).expect("it is before")).or_default();
        let sequence = u32::from_be_bytes(*frame[38..].first_chunk().expect("a TCP header"));
        let headers = 20 + usize::from(frame[46] >> 4) * 4;
        let len = u32::from(word(16).expect("it is before")) - headers as u32;
        if frame[47] & 2 != 0 {
            stream.first = Some(sequence.wrapping_add(1));
        } else if len > 0 {
            stream.add(sequence, len);
        }
    }

    /// What a process that captured has told.
    pub fn told_by(said: &[Line]) -> Self {
        let mut streams = Self::default();
        for line in told(said, "stream: ") {
            let mut words = line.split(' ').map(|word| word.parse::<u32>().expect("a number"));
            let mut word = || words.next().expect("five words");
            let (port, seen, first) = (word() as u16, word() == 1, word());
            let stream = streams.0.entry(port).or_default();
            stream.first = seen.then_some(first);
            stream.add(word(), word());
        }
        streams
    }

    /// Those of a capture of the run, by its interfaces, each of which is a NIC, a path and a direction.
    pub fn of_run(file: &Path) -> BTreeMap<String, Self> {
        let mut reader = PcapNgReader::new(File::open(file).expect("a file")).expect("pcapng");
        let (mut names, mut streams) = (Vec::new(), BTreeMap::<_, Self>::new());
        while let Some(block) = reader.next_block() {
            match block.expect("a sound block") {
                Block::InterfaceDescription(interface) => {
                    let name = interface.options.iter().find_map(|option| match option {
                        InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                        _ => None,
                    });
                    names.push(name.expect("every interface has a name"));
                }
                Block::EnhancedPacket(packet) => {
                    let name = names[packet.interface_id as usize].clone();
                    streams.entry(name).or_default().add(&packet.data);
                }
                other => panic!("{other:?}"),
            }
        }
        streams
    }
}

/// Captures on all interfaces of this network namespace, in both directions, until somebody creates the file.
pub fn capture(until: &Path) {
    let protocol = NonZeroU32::new(EVERYTHING.to_be().into()).map(Protocol::from_raw);
    let (family, kind) = (AddressFamily::PACKET, SocketType::RAW);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, protocol).expect("root may");
    set_socket_recv_buffer_size_force(&socket, QUEUE).expect("root may");
    let look = Some(Duration::from_millis(20));
    set_socket_timeout(&socket, Timeout::Recv, look).expect("a limit");
    println!("listening");
    let (mut streams, mut buffer) = (Streams::default(), vec![0; 128 << 10]);
    loop {
        // What came before the file did is in the queue by now.
        let last = until.exists();
        let flags = if last { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
        while let Ok((len, _)) = recv(&socket, &mut buffer[..], flags) {
            streams.add(&buffer[..len]);
        }
        if last {
            break;
        }
    }
    for (port, stream) in streams.0 {
        let (seen, first) = (u8::from(stream.first.is_some()), stream.first.unwrap_or(0));
        for (start, len) in &stream.pieces {
            println!("stream: {port} {seen} {first} {start} {len}");
        }
    }
}

#[test]
fn each_byte_counts_once() {
    let mut stream = Stream::default();
    for (sequence, len) in [(u32::MAX - 9, 10), (0, 20), (40, 10), (10, 10), (50, 5)] {
        stream.add(sequence, len);
    }
    assert_eq!(stream.spans(u32::MAX - 9), [(0, 30), (50, 65)]);
    let rest = Stream { first: None, pieces: vec![(15, 30)] };
    assert_eq!(stream.and(&rest).spans(u32::MAX - 9), [(0, 65)]);
}
