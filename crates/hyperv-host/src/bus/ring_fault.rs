//! Misbehaviour on request, in the rings of an open channel.

use vmbus::channel::Doorbell;
use vmbus::memory::{OutOfRange, PAGE_SIZE, PageList, SharedMemory};
use vmbus::packet::{DESCRIPTOR_SIZE, Outgoing, PacketType, TRAILER_SIZE, TransferRange};
use vmbus::ring::{
    INTERRUPT_MASK, PENDING_SEND_SIZE, READ_INDEX, RingError, SendError, WRITE_INDEX,
};

use super::device::Device;
use super::guest::rings;
use super::{BusServer, DeviceId, HostChannel};

/// A way to misbehave in the memory that guest and host share. Each happens once per [`BusServer::spoil`], at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RingFault {
    /// The index up to which the guest may read lies outside the ring.
    WriteIndexOutside,
    /// The same is no place where a packet can end.
    WriteIndexUneven,
    /// The same goes back behind what it allowed before: it moves between two looks of the guest.
    WriteIndexBack,
    /// The index up to which the host has read lies outside the ring.
    ReadIndexOutside,
    /// The same is no place where a packet can end.
    ReadIndexUneven,
    /// The host has read what the guest has not written: the index moves between two looks of the guest.
    ReadIndexAhead,
    /// The host wants no signals and never takes that back.
    MasksForEver,
    /// The host waits for more space than there is in any ring.
    WantsTooMuch,
    /// A signal with nothing behind it.
    SignalsForNothing,
    /// The host's signal for what it sent last is lost.
    LosesSignal,
    /// A packet without length.
    LengthZero,
    /// A packet that is longer than what is in the ring.
    LengthBeyond,
    /// A packet whose header is shorter than any.
    HeaderShort,
    /// A packet whose header is longer than the packet.
    HeaderLong,
    /// A packet with flags that stand for nothing.
    FlagsUnknown,
    /// A packet of a type that no channel uses.
    TypeUnknown,
    /// A packet whose trailer names another place. No known guest looks.
    TrailerWrong,
    /// Transfer pages without ranges.
    RangesNone,
    /// More transfer pages than the header holds.
    RangesTooMany,
    /// More guest memory than the header describes.
    GpaRangesTooMany,
    /// A completion that nobody waits for.
    CompletesUnasked,
    /// The packet sent last comes a second time: a completion twice, if it was one.
    SendsTwice,
    /// The packet sent last, if the guest has not read it, gets another transaction id: what it completes is never
    /// completed.
    NeverCompletes,
}

/// What the bytes of a packet are that the host sends to spoil it.
const PAYLOAD: [u8; 32] = [0x5a; 32];
/// A transaction id that nobody uses.
const NOBODYS: u64 = 0xdead_0000_0000_0001;

impl RingFault {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::WriteIndexOutside,
        Self::WriteIndexUneven,
        Self::WriteIndexBack,
        Self::ReadIndexOutside,
        Self::ReadIndexUneven,
        Self::ReadIndexAhead,
        Self::MasksForEver,
        Self::WantsTooMuch,
        Self::SignalsForNothing,
        Self::LosesSignal,
        Self::LengthZero,
        Self::LengthBeyond,
        Self::HeaderShort,
        Self::HeaderLong,
        Self::FlagsUnknown,
        Self::TypeUnknown,
        Self::TrailerWrong,
        Self::RangesNone,
        Self::RangesTooMany,
        Self::GpaRangesTooMany,
        Self::CompletesUnasked,
        Self::SendsTwice,
        Self::NeverCompletes,
    ];

    /// A packet that is right, and the bytes by which it becomes wrong: at an offset from its start.
    fn spoiled(self) -> Option<(Outgoing<'static>, usize, &'static [u8])> {
        let in_band =
            Outgoing::InBand { transaction_id: NOBODYS, completion: false, payload: &PAYLOAD };
        let ranges = Outgoing::TransferPages {
            transaction_id: NOBODYS,
            pageset: 0xcafe,
            ranges: &[TransferRange { byte_count: 64, byte_offset: 0 }],
            payload: &[],
        };
        Some(match self {
            Self::LengthZero => (in_band, 4, &[0, 0]),
            Self::LengthBeyond => (in_band, 4, &[0xff, 0xff]),
            Self::HeaderShort => (in_band, 2, &[1, 0]),
            Self::HeaderLong => (in_band, 2, &[7, 0]),
            Self::FlagsUnknown => (in_band, 6, &[0xfe, 0x7f]),
            Self::TypeUnknown => (in_band, 0, &[8, 0]),
            Self::TrailerWrong => (in_band, DESCRIPTOR_SIZE + PAYLOAD.len(), &[0xff; TRAILER_SIZE]),
            Self::RangesNone => (ranges, 20, &[0; 4]),
            Self::RangesTooMany => (ranges, 20, &[0xff; 4]),
            Self::GpaRangesTooMany => (ranges, 0, &GPA_DIRECT),
            Self::CompletesUnasked => (in_band, 0, &COMPLETION),
            _ => return None,
        })
    }
}

/// The types of packets, as they lie in a descriptor.
const GPA_DIRECT: [u8; 2] = PacketType::GPA_DIRECT.0.to_le_bytes();
const COMPLETION: [u8; 2] = PacketType::COMPLETION.0.to_le_bytes();

impl BusServer {
    /// Misbehaves once in the rings of an open device, whose service hands in its channel; whatever that has staged is
    /// shown before. The guest is signalled.
    ///
    /// # Errors
    /// If there is no room for a packet that it takes. Nothing happens then, nor if the device is not open.
    pub fn spoil(
        &mut self,
        device: DeviceId,
        channel: &mut HostChannel,
        fault: RingFault,
    ) -> Result<(), SendError> {
        let Some(device) = self.devices.get(&device) else { return Ok(()) };
        let Some((down, up)) = rings_of(device) else { return Ok(()) };
        channel.commit()?;
        match fault.spoiled() {
            Some((packet, at, bytes)) => {
                let start = down.load_u32(WRITE_INDEX).map_err(RingError::from)?;
                channel.stage(&packet)?;
                patch(&down, start as usize + at, bytes).map_err(RingError::from)?;
                channel.commit()?;
            }
            None if fault == RingFault::SendsTwice => {
                let last = last_packet(&down).map_err(RingError::from)?;
                channel.try_send(&last.as_outgoing())?;
            }
            None => spoil_memory(&down, &up, fault).map_err(RingError::from)?,
        }
        match fault {
            RingFault::LosesSignal => {
                let _ = device.bell.take();
            }
            _ => device.bell.ring(),
        }
        *self.ring_faults.entry(fault).or_default() += 1;
        Ok(())
    }

    /// How often a ring was spoiled like this.
    #[must_use]
    pub fn ring_faults(&self, fault: RingFault) -> u64 {
        self.ring_faults.get(&fault).copied().unwrap_or(0)
    }
}

/// The rings of an open device: that which the host writes, and that which it reads.
fn rings_of(device: &Device) -> Option<(PageList, PageList)> {
    rings(device.gpadls.get(&device.ring?)?, device.downstream_page)
}

/// What takes no packet.
fn spoil_memory(down: &PageList, up: &PageList, fault: RingFault) -> Result<(), OutOfRange> {
    let (down_bytes, up_bytes) = (data_bytes(down), data_bytes(up));
    match fault {
        RingFault::WriteIndexOutside => down.store_u32(WRITE_INDEX, down_bytes),
        RingFault::WriteIndexUneven => down.store_u32(WRITE_INDEX, down.load_u32(WRITE_INDEX)? | 4),
        RingFault::WriteIndexBack => {
            let read = down.load_u32(READ_INDEX)?;
            let back = if is_empty(down)? { (read + down_bytes - 8) % down_bytes } else { read };
            down.store_u32(WRITE_INDEX, back)
        }
        RingFault::ReadIndexOutside => up.store_u32(READ_INDEX, up_bytes),
        RingFault::ReadIndexUneven => up.store_u32(READ_INDEX, up.load_u32(READ_INDEX)? | 4),
        RingFault::ReadIndexAhead => {
            up.store_u32(READ_INDEX, (up.load_u32(WRITE_INDEX)? + 8) % up_bytes)
        }
        RingFault::MasksForEver => up.store_u32(INTERRUPT_MASK, 1),
        RingFault::WantsTooMuch => down.store_u32(PENDING_SEND_SIZE, u32::MAX),
        RingFault::NeverCompletes if !is_empty(down)? => {
            let start = last_start(down)?;
            patch(down, start + 8, &NOBODYS.to_le_bytes())
        }
        _ => Ok(()),
    }
}

fn data_bytes(ring: &PageList) -> u32 {
    // Rings that were attached are not larger than 1 GiB.
    (ring.size() - PAGE_SIZE) as u32
}

fn is_empty(ring: &PageList) -> Result<bool, OutOfRange> {
    Ok(ring.load_u32(WRITE_INDEX)? == ring.load_u32(READ_INDEX)?)
}

/// Writes into the data of a ring, around its end if need be.
fn patch(ring: &PageList, at: usize, bytes: &[u8]) -> Result<(), OutOfRange> {
    for (step, byte) in bytes.iter().enumerate() {
        ring.write(PAGE_SIZE + (at + step) % data_bytes(ring) as usize, &[*byte])?;
    }
    Ok(())
}

/// Reads from the data of a ring, around its end if need be.
fn peek(ring: &PageList, at: usize, len: usize) -> Result<Vec<u8>, OutOfRange> {
    let mut bytes = vec![0; len];
    for (step, byte) in bytes.iter_mut().enumerate() {
        let at = PAGE_SIZE + (at + step) % data_bytes(ring) as usize;
        ring.read(at, std::slice::from_mut(byte))?;
    }
    Ok(bytes)
}

/// Where the packet written last starts, as its trailer says.
fn last_start(ring: &PageList) -> Result<usize, OutOfRange> {
    let (end, size) = (ring.load_u32(WRITE_INDEX)? as usize, data_bytes(ring) as usize);
    let trailer = peek(ring, (end + size - 4) % size, 4)?;
    let word = trailer.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    Ok(word as usize % size)
}

/// A packet without ranges, as it was sent.
struct Sent {
    completion: bool,
    transaction_id: u64,
    asks: bool,
    payload: Vec<u8>,
}

impl Sent {
    fn as_outgoing(&self) -> Outgoing<'_> {
        let Self { transaction_id, asks: completion, ref payload, .. } = *self;
        if self.completion {
            Outgoing::Completion { transaction_id, payload }
        } else {
            Outgoing::InBand { transaction_id, completion, payload }
        }
    }
}

/// The packet written last. One with ranges comes back as a message without them.
fn last_packet(ring: &PageList) -> Result<Sent, OutOfRange> {
    let start = last_start(ring)?;
    let head = peek(ring, start, DESCRIPTOR_SIZE)?;
    let field = |at: usize| {
        head.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |two| u16::from_le_bytes(*two))
    };
    let id =
        head.get(8..).and_then(|rest| rest.first_chunk()).map_or(0, |id| u64::from_le_bytes(*id));
    let (header, len) = (8 * usize::from(field(2)), 8 * usize::from(field(4)));
    Ok(Sent {
        completion: PacketType(field(0)) == PacketType::COMPLETION,
        transaction_id: id,
        asks: field(6) & 1 != 0,
        payload: peek(ring, start + header, len.saturating_sub(header))?,
    })
}
