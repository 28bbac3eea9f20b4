//! A frame from the guest as its RNDIS header describes it, with the offloads that the guest asks for.

use std::ops::Range;

use netvsc::rndis::DecodeError;
use netvsc::rndis::packet::{Layout, Ppi, PpiError, PpiType, Ppis, TransmitChecksum, VlanTag};
use thiserror::Error;

use super::checksum::{ETHERTYPE_IPV4, ethertype};
use super::offers::OffloadPolicy;
use super::offload::{ChecksumRequest, LargeSend, OffloadError, options};

/// Where the offset of the layer 4 header stands in a checksum request, and how many bits it has.
const CHECKSUM_OFFSET_SHIFT: u32 = 16;
/// The same in a large send request.
const LARGE_SEND_OFFSET_SHIFT: u32 = 20;
const OFFSET_MASK: u32 = 0x3ff;
/// Segment size in a large send request.
const SEGMENT_MASK: u32 = 0xf_ffff;
/// The large send is over IPv6.
const LARGE_SEND_IPV6: u32 = 1 << 31;

/// A PACKET message that cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum PacketError {
    #[error(transparent)]
    Message(#[from] DecodeError),
    #[error(transparent)]
    Info(#[from] PpiError),
    /// The message says that it is longer than what came, or what it describes lies behind its end.
    #[error("PACKET of {length} bytes in {room}, with parts up to byte {end}")]
    Length { length: u32, end: usize, room: usize },
}

/// A PACKET message of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TransmitPacket {
    /// Bytes of the message; the next one starts there.
    pub length: usize,
    /// End of header and per-packet information.
    pub header: usize,
    /// Where the frame lies.
    pub data: Range<usize>,
    pub checksum: Option<ChecksumRequest>,
    pub large_send: Option<LargeSend>,
    pub vlan: Option<VlanTag>,
}

impl TransmitPacket {
    /// Reads the message at the start of `bytes`. Unlike a guest, the host accepts no message that claims more than came.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, PacketError> {
        let layout = Layout::decode(bytes, bytes.len())?;
        let end = layout.data.end.max(layout.ppi.end);
        let length = layout.length as usize;
        if length > bytes.len() || end > length {
            let room = bytes.len();
            return Err(PacketError::Length { length: layout.length, end, room });
        }
        let (header, data) = (layout.ppi.end, layout.data);
        let mut packet =
            Self { length, header, data, checksum: None, large_send: None, vlan: None };
        for info in Ppis::new(bytes.get(layout.ppi).unwrap_or_default()) {
            packet.note(info?);
        }
        Ok(packet)
    }

    /// Whether the NIC does what is asked for, to such a frame.
    pub(super) fn check_offered(
        &self,
        offers: &OffloadPolicy,
        frame: &[u8],
    ) -> Result<(), OffloadError> {
        if let Some(send) = self.large_send {
            // What large sends over IPv4 have in their headers nobody can offer, or not.
            let (ip, tcp) = options(frame, send.tcp_offset);
            let refused = send.ipv6 && (ip || tcp && !offers.tcp_options);
            return if refused { Err(OffloadError::Options { ip, tcp }) } else { Ok(()) };
        }
        let Some(wanted) = self.checksum else { return Ok(()) };
        let refused = (wanted.ipv4_header || wanted.tcp) && !offers.checksum
            || wanted.udp && !offers.udp_checksum;
        if refused {
            return Err(OffloadError::NotOffered);
        }
        if !wanted.ipv4_header && !wanted.tcp && !wanted.udp {
            return Ok(());
        }
        let (ip, tcp) = options(frame, wanted.layer4_offset);
        let ipv4 = ethertype(frame) == Some(&ETHERTYPE_IPV4);
        let (ip, tcp) = (ip && !(ipv4 && offers.ip_options), tcp && wanted.tcp);
        if ip || tcp && !offers.tcp_options {
            return Err(OffloadError::Options { ip, tcp });
        }
        Ok(())
    }

    /// What one entry asks for. Unknown entries, and those without data, ask for nothing.
    fn note(&mut self, info: Ppi<'_>) {
        let Some(word) = info.word() else { return };
        match info.kind {
            PpiType::CHECKSUM => {
                let wanted = TransmitChecksum::from_bits_retain(word);
                self.checksum = Some(ChecksumRequest {
                    ipv4_header: wanted.contains(TransmitChecksum::IP_HEADER),
                    tcp: wanted.contains(TransmitChecksum::TCP),
                    udp: wanted.contains(TransmitChecksum::UDP),
                    layer4_offset: (word >> CHECKSUM_OFFSET_SHIFT & OFFSET_MASK) as usize,
                });
            }
            PpiType::LARGE_SEND => {
                self.large_send = Some(LargeSend {
                    segment: (word & SEGMENT_MASK) as usize,
                    tcp_offset: (word >> LARGE_SEND_OFFSET_SHIFT & OFFSET_MASK) as usize,
                    ipv6: word & LARGE_SEND_IPV6 != 0,
                });
            }
            PpiType::VLAN => self.vlan = Some(VlanTag::from_ppi(word)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netvsc::rndis::packet::write_header;

    /// A PACKET message with these entries in front of its data.
    fn packet(info: &[(PpiType, u32)], data: &[u8]) -> Vec<u8> {
        let at = 44 + 16 * info.len();
        let mut message = vec![0; at];
        assert_eq!(write_header(&mut message, info, at, data.len()), Some(at));
        message.extend(data);
        message
    }

    #[test]
    fn a_packet_with_offloads_is_read() {
        let info = [(PpiType::CHECKSUM, 0x0022_0015), (PpiType::VLAN, 0x1235)];
        let read = TransmitPacket::read(&packet(&info, &[7; 60])).unwrap();
        assert_eq!((read.data, read.length), (76..136, 136));
        let sum = ChecksumRequest { ipv4_header: true, tcp: true, udp: false, layer4_offset: 34 };
        assert_eq!(read.checksum, Some(sum));
        assert_eq!(read.vlan, Some(VlanTag(0xa123)));
        assert_eq!(read.large_send, None);
        let info = [(PpiType::LARGE_SEND, 0xc220_05b4), (PpiType::HASH, 5)];
        let read = TransmitPacket::read(&packet(&info, &[7; 60])).unwrap();
        let send = LargeSend { segment: 1460, tcp_offset: 34, ipv6: true };
        assert_eq!(read.large_send, Some(send));
    }

    #[test]
    fn packets_that_lie_are_refused() {
        let good = packet(&[], &[7; 60]);
        let with = |at: usize, value: u32| {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            TransmitPacket::read(&bytes).unwrap_err()
        };
        assert!(matches!(with(0, 2), PacketError::Message(_)));
        assert_eq!(with(4, 105), PacketError::Length { length: 105, end: 104, room: 104 });
        assert_eq!(with(4, 103), PacketError::Length { length: 103, end: 104, room: 104 });
        assert!(matches!(with(12, 61), PacketError::Message(DecodeError::Outside { .. })));
        let mut bytes = packet(&[(PpiType::CHECKSUM, 0)], &[7]);
        bytes[44] = 17;
        assert!(matches!(TransmitPacket::read(&bytes), Err(PacketError::Info(_))));
    }
}
