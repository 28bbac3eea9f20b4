//! What two ends of a channel do, and a model of what has to come of it that knows nothing but the rules: what arrives, when the
//! ring is full, when a doorbell rings, and what is counted.

use std::collections::VecDeque;

use proptest::prelude::*;
use vmbus::channel::ChannelStats;
use vmbus::memory::{PAGE_SIZE, SharedMemory};
use vmbus::packet::{GpaRange, Outgoing, PacketKind, TransferRange};
use vmbus::ring::{READ_INDEX, SendError, ViewKind, WRITE_INDEX};
use vmbus::{Channel, Pfn, SignalFlag};

/// What a packet is, as sent and as it has to arrive.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    InBand {
        completion: bool,
    },
    Completion,
    /// Count and offset of each range.
    TransferPages(Vec<(u32, u32)>),
    /// The same, and the frames.
    GpaDirect(Vec<(u32, u32, Vec<Pfn>)>),
}

#[derive(Clone, Debug)]
pub enum Step {
    /// A packet with a message of so many bytes. With `Some(spare)` it is built in the ring, in pieces, with room for so
    /// many bytes more.
    Send {
        shape: Shape,
        len: usize,
        in_place: Option<usize>,
    },
    Commit,
    /// Reads a packet, by a copy or where it lies.
    Read {
        in_place: bool,
    },
    CommitRead,
    Mask,
    Arm,
    /// Asks for the room of a packet of so many bytes.
    RequestSpace(usize),
}

fn shapes() -> impl Strategy<Value = Shape> {
    let ranges = |most| prop::collection::vec((any::<u32>(), any::<u32>()), 1..most);
    let gpa = prop::collection::vec((0u32..9000, 0u32..4096, any::<u32>()), 1..4);
    prop_oneof![
        4 => any::<bool>().prop_map(|completion| Shape::InBand { completion }),
        2 => Just(Shape::Completion),
        1 => ranges(40).prop_map(Shape::TransferPages),
        1 => gpa.prop_map(|ranges| Shape::GpaDirect(
            ranges.into_iter().map(|(count, offset, first)| {
                let frames = u64::from(count + offset).div_ceil(PAGE_SIZE as u64);
                let frames = (0..frames).map(|frame| Pfn(u64::from(first) + frame)).collect();
                (count, offset, frames)
            }).collect()
        )),
    ]
}

/// What both ends do, in any order.
pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![4 => 0usize..80, 3 => 0usize..900, 1 => 900usize..6000];
    let send = (shapes(), len, prop::option::of(0usize..200))
        .prop_map(|(shape, len, in_place)| Step::Send { shape, len, in_place });
    prop::collection::vec(
        prop_oneof![
            8 => send,
            3 => Just(Step::Commit),
            9 => any::<bool>().prop_map(|in_place| Step::Read { in_place }),
            3 => Just(Step::CommitRead),
            1 => Just(Step::Mask),
            1 => Just(Step::Arm),
            1 => (24usize..6000).prop_map(Step::RequestSpace),
        ],
        1..250,
    )
}

/// The message of packet `id`.
fn message(id: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| (id as usize * 31 + at * 7) as u8).collect()
}

/// The two ends, each with the flag by which it is woken, and the model of what lies between them. Places are counted in
/// bytes since the start.
pub struct World<M, N> {
    near: Channel<M, SignalFlag>,
    far: Channel<N, SignalFlag>,
    to_far: SignalFlag,
    to_near: SignalFlag,
    /// Bytes of data in the ring.
    size: u64,
    in_flight: VecDeque<(u64, Shape, usize)>,
    written: u64,
    published: u64,
    read: u64,
    freed: u64,
    masked: bool,
    /// What the writer waits for; 0 if it does not.
    wish: u64,
    next_id: u64,
    expected_near: ChannelStats,
    expected_far: ChannelStats,
}

impl<M: SharedMemory, N: SharedMemory> World<M, N> {
    /// Both ends of the two rings, `up` and `down`, as each end sees their memory.
    pub fn new([near_up, near_down]: [M; 2], [far_up, far_down]: [N; 2]) -> Self {
        let size = (far_up.size() - PAGE_SIZE) as u64;
        let (to_far, to_near) = (SignalFlag::new(), SignalFlag::new());
        let near = Channel::from_parts(near_up, near_down, to_far.clone()).unwrap();
        let mut far = Channel::from_parts(far_down, far_up, to_near.clone()).unwrap();
        far.check_trailers(true);
        Self {
            near,
            far,
            to_far,
            to_near,
            size,
            in_flight: VecDeque::new(),
            written: 0,
            published: 0,
            read: 0,
            freed: 0,
            masked: false,
            wish: 0,
            next_id: 1,
            expected_near: ChannelStats::default(),
            expected_far: ChannelStats::default(),
        }
    }

    /// Most bytes that the empty ring takes.
    fn most(&self) -> u64 {
        (self.size - 8).min(u64::from(u16::MAX) * 8 + 8)
    }

    /// Bytes that the writer may use.
    fn room(&self) -> u64 {
        (self.size - 8 - (self.written - self.freed)).min(self.most())
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Send { shape, len, in_place } => self.send(shape, *len, *in_place),
            Step::Commit => self.commit(),
            Step::Read { in_place } => {
                let due = self.published > self.read;
                assert_eq!(self.read_one(*in_place), due);
            }
            Step::CommitRead => self.commit_read(),
            Step::Mask => {
                self.far.mask().unwrap();
                self.masked = true;
            }
            Step::Arm => {
                // Everything is read first by an owner that wants to rest; arming early has to work all the same.
                let more = self.published > self.read;
                let rings = self.crossed();
                assert_eq!(self.far.arm().unwrap(), more);
                self.note_freed(rings);
                self.masked = more;
            }
            Step::RequestSpace(need) => self.request_space(*need as u64),
        }
        assert_eq!(self.near.stats(), self.expected_near);
        assert_eq!(self.far.stats(), self.expected_far);
    }

    fn send(&mut self, shape: &Shape, len: usize, in_place: Option<usize>) {
        let body = message(self.next_id, len);
        let (transfer, gpa): (Vec<_>, Vec<_>) = ranges(shape);
        let (head, tail) =
            if in_place.is_some() { body.split_at(len / 3) } else { (&body[..], &[][..]) };
        let packet = outgoing(shape, self.next_id, head, &transfer, &gpa);
        // What is reserved has to be free, not only what is written.
        let spare = in_place.unwrap_or_default();
        let header = packet.ring_len() - head.len().next_multiple_of(8);
        let need = (header + (len + spare).next_multiple_of(8)) as u64;
        let sent = match in_place {
            None => self.near.stage(&packet),
            Some(spare) => self.near.reserve(&packet, tail.len() + spare).map(|mut slot| {
                for piece in tail.chunks(37) {
                    slot.append(piece).unwrap();
                }
                assert_eq!(slot.room(), spare);
                slot.finish().unwrap();
            }),
        };
        if need > self.most() {
            let most = self.most() as usize;
            assert_eq!(sent, Err(SendError::TooLarge { len: need as usize, most }));
        } else if need > self.room() {
            assert_eq!(sent, Err(SendError::Full { need: need as usize }));
            self.expected_near.full += 1;
        } else {
            assert_eq!(sent, Ok(()));
            let bytes = (header + len.next_multiple_of(8)) as u64;
            self.written += bytes;
            self.wish = 0;
            self.expected_near.sent_packets += 1;
            self.expected_near.sent_bytes += bytes;
            self.in_flight.push_back((self.next_id, shape.clone(), len));
            self.next_id += 1;
        }
    }

    fn commit(&mut self) {
        self.near.commit().unwrap();
        if self.written > self.published {
            let rings = !self.masked && self.freed == self.published;
            assert_eq!(self.to_far.take(), rings, "an empty ring and an open mask, no other case");
            match rings {
                true => self.expected_near.signals += 1,
                false => self.expected_near.signals_suppressed += 1,
            }
        }
        assert!(!self.to_far.take());
        self.published = self.written;
    }

    /// Whether the reads so far make more free than the writer waits for, and what was free before did not.
    fn crossed(&self) -> bool {
        let free = |read| self.size - (self.published - read);
        let wish = self.wish;
        wish != 0 && self.read > self.freed && free(self.freed) <= wish && free(self.read) > wish
    }

    fn note_freed(&mut self, rings: bool) {
        assert_eq!(self.to_near.take(), rings, "only when the wish is crossed");
        self.expected_far.space_signals += u64::from(rings);
        self.freed = self.read;
    }

    fn commit_read(&mut self) {
        let rings = self.crossed();
        self.far.commit_read().unwrap();
        self.note_freed(rings);
    }

    fn request_space(&mut self, need: u64) {
        // What is staged is committed first.
        self.commit();
        let fits = need <= self.room();
        assert_eq!(self.near.request_space(need as usize).unwrap(), fits);
        self.wish = if fits { 0 } else { need.max(self.size / 4).min(self.size - 8) };
    }

    /// Reads a packet and compares it with what was sent. False if there is none.
    fn read_one(&mut self, in_place: bool) -> bool {
        let mut buffer = vec![0xee; 16384];
        let read = if in_place { self.peek(&mut buffer) } else { self.receive(&mut buffer) };
        let Some((id, shape, padded)) = read else { return false };
        let (expected_id, expected_shape, len) = self.in_flight.pop_front().unwrap();
        assert_eq!((id, shape), (expected_id, expected_shape));
        assert_eq!(&padded[..len], &message(id, len)[..]);
        assert_eq!(&padded[len..], &[0; 8][..len.wrapping_neg() % 8]);
        true
    }

    fn note_read(&mut self, header: usize, payload: usize) {
        let bytes = (header + payload + 8) as u64;
        self.read += bytes;
        self.expected_far.received_packets += 1;
        self.expected_far.received_bytes += bytes;
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Option<(u64, Shape, Vec<u8>)> {
        let packet = self.far.receive(buffer).unwrap()?;
        let (shape, header) = match packet.kind {
            PacketKind::InBand => (Shape::InBand { completion: packet.completion_requested }, 16),
            PacketKind::Completion => (Shape::Completion, 16),
            PacketKind::TransferPages { pageset, ranges } => {
                assert_eq!(pageset, 0xcafe);
                let ranges: Vec<_> =
                    ranges.iter().map(|range| (range.byte_count, range.byte_offset)).collect();
                let header = 24 + 8 * ranges.len();
                (Shape::TransferPages(ranges), header)
            }
            PacketKind::GpaDirect(ranges) => {
                let ranges: Vec<_> = ranges
                    .iter()
                    .map(|range| (range.byte_count, range.byte_offset, range.frames().collect()))
                    .collect();
                let header = gpa_header(&ranges);
                (Shape::GpaDirect(ranges), header)
            }
        };
        let (id, payload) = (packet.transaction_id, packet.payload.to_vec());
        self.note_read(header, payload.len());
        Some((id, shape, payload))
    }

    fn peek(&mut self, buffer: &mut [u8]) -> Option<(u64, Shape, Vec<u8>)> {
        let mut view = self.far.peek().unwrap()?;
        let id = view.transaction_id();
        let (shape, header) = match view.kind() {
            ViewKind::InBand => (Shape::InBand { completion: view.completion_requested() }, 16),
            ViewKind::Completion => (Shape::Completion, 16),
            ViewKind::TransferPages { pageset } => {
                assert_eq!(pageset, 0xcafe);
                let mut ranges = Vec::new();
                while let Some(range) = view.next_range().unwrap() {
                    ranges.push((range.byte_count, range.byte_offset));
                }
                let header = 24 + 8 * ranges.len();
                (Shape::TransferPages(ranges), header)
            }
            ViewKind::GpaDirect => {
                let mut ranges = Vec::new();
                while let Some(head) = view.next_gpa_range().unwrap() {
                    let mut frames = Vec::new();
                    while let Some(frame) = view.next_frame().unwrap() {
                        frames.push(frame);
                    }
                    assert_eq!(frames.len(), head.frames);
                    ranges.push((head.byte_count, head.byte_offset, frames));
                }
                let header = gpa_header(&ranges);
                (Shape::GpaDirect(ranges), header)
            }
        };
        let len = view.payload_len();
        let mut taken = 0;
        while taken < len {
            let end = (taken + 53).min(buffer.len());
            taken += view.take(&mut buffer[taken..end]).unwrap();
        }
        view.advance();
        self.note_read(header, len);
        Some((id, shape, buffer[..len].to_vec()))
    }

    /// Reads what is left, and compares the last counters.
    fn finish(&mut self) {
        self.step(&Step::Commit);
        while self.published > self.read {
            self.step(&Step::Read { in_place: self.read.is_multiple_of(16) });
        }
        self.step(&Step::Arm);
        assert!(self.in_flight.is_empty());
        let (near, far) = (self.near.stats(), self.far.stats());
        assert_eq!(near.sent_packets, far.received_packets);
        assert_eq!(near.sent_bytes, far.received_bytes);
    }
}

type Ranges<'a> = (Vec<TransferRange>, Vec<GpaRange<'a>>);

fn ranges(shape: &Shape) -> Ranges<'_> {
    match shape {
        Shape::TransferPages(ranges) => (
            ranges
                .iter()
                .map(|&(byte_count, byte_offset)| TransferRange { byte_count, byte_offset })
                .collect(),
            Vec::new(),
        ),
        Shape::GpaDirect(ranges) => (
            Vec::new(),
            ranges
                .iter()
                .map(|(byte_count, byte_offset, frames)| GpaRange {
                    byte_count: *byte_count,
                    byte_offset: *byte_offset,
                    frames,
                })
                .collect(),
        ),
        Shape::InBand { .. } | Shape::Completion => (Vec::new(), Vec::new()),
    }
}

fn outgoing<'a>(
    shape: &Shape,
    transaction_id: u64,
    payload: &'a [u8],
    transfer: &'a [TransferRange],
    gpa: &'a [GpaRange<'a>],
) -> Outgoing<'a> {
    match shape {
        Shape::InBand { completion } => {
            Outgoing::InBand { transaction_id, completion: *completion, payload }
        }
        Shape::Completion => Outgoing::Completion { transaction_id, payload },
        Shape::TransferPages(_) => {
            Outgoing::TransferPages { transaction_id, pageset: 0xcafe, ranges: transfer, payload }
        }
        Shape::GpaDirect(_) => Outgoing::GpaDirect { transaction_id, ranges: gpa, payload },
    }
}

fn gpa_header(ranges: &[(u32, u32, Vec<Pfn>)]) -> usize {
    24 + ranges.iter().map(|(_, _, frames)| 8 + 8 * frames.len()).sum::<usize>()
}

/// Puts reader and writer of an unused ring at the word `start`, over data that an earlier lap left behind.
pub fn begin_at(memory: &impl SharedMemory, start: u32) {
    let pages = memory.size() / PAGE_SIZE - 1;
    let at = start % (pages as u32 * 512) * 8;
    memory.store_u32(WRITE_INDEX, at).unwrap();
    memory.store_u32(READ_INDEX, at).unwrap();
    (1..=pages).for_each(|page| memory.write(page * PAGE_SIZE, &[0xa5; PAGE_SIZE]).unwrap());
}

/// Does all of it, and reads what is left.
pub fn drive<M: SharedMemory, N: SharedMemory>(mut world: World<M, N>, steps: &[Step]) {
    steps.iter().for_each(|step| world.step(step));
    world.finish();
}
