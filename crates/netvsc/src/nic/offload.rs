//! What a frame needs before the host can work on it, or instead of that: headers as NDIS wants them for large sends, and
//! checksums that the host does not offer (PROTOCOL §9.2).

use vmbus::memory::OutOfRange;

use super::frame::Split;
use super::types::{NicError, TransmitError, VLAN_TAG};
use crate::port::PathOffloads;
use crate::rndis::offload::{ChecksumSet, IpOffloads, LargeSendOptions, OffloadCapabilities};
use crate::rndis::packet::{LargeSend, TransmitChecksum};

/// Bytes of an Ethernet header without tag.
const ETHERNET: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Places of checksum fields in their headers.
const TCP_FIELD: usize = 16;
const UDP_FIELD: usize = 6;
const IPV4_FIELD: usize = 10;

/// Bytes to be written over those of a frame: at most three fields.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Patches {
    fields: [(usize, [u8; 2]); 3],
    count: usize,
}

impl Patches {
    fn add(&mut self, at: usize, value: u16) {
        if let Some(field) = self.fields.get_mut(self.count) {
            *field = (at, value.to_be_bytes());
            self.count += 1;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, [u8; 2])> {
        self.fields.into_iter().take(self.count)
    }
}

/// Adds the words of `bytes` to a sum; `odd`: the first byte is the lower half of a word.
pub(crate) fn add(mut sum: u32, bytes: &[u8], odd: bool) -> u32 {
    let (head, rest) = bytes.split_at(usize::from(odd && !bytes.is_empty()));
    for byte in head {
        sum += u32::from(*byte);
    }
    sum += u32::from(words(rest));
    (sum & 0xffff) + (sum >> 16)
}

/// The folded sum of the words of `bytes`, an odd one filled up with zero.
///
/// Sums with the carry around the end are the same in any order of bytes (RFC 1071), so that words are taken as they lie, two at
/// a time and without looking at the carry in between.
fn words(bytes: &[u8]) -> u16 {
    let (pairs, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    // 2^32 pairs would overflow.
    let sum: u64 = pairs.iter().map(|pair| u64::from(u32::from_ne_bytes(*pair))).sum();
    let mut sum = sum + u64::from(u32::from_ne_bytes(last));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::from_be(sum as u16)
}

pub(crate) fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// IP header and layer 4 as a request describes them, checked against the bytes.
#[derive(Clone, Copy, Debug)]
struct Headers<'a> {
    /// Source and destination address.
    addresses: &'a [u8],
    ipv6: bool,
    layer4: usize,
}

fn headers<'a>(
    frame: &Split<'a>,
    ipv6: bool,
    layer4: usize,
    protocol: u8,
) -> Result<Headers<'a>, TransmitError> {
    let wrong = TransmitError::Headers { layer4 };
    let least = if protocol == TCP { 20 } else { 8 };
    // All of the layer 4 header is in the first piece.
    frame.range(layer4, layer4 + least).ok_or(wrong)?;
    let addresses = if ipv6 {
        let version = frame.at::<1>(ETHERNET).is_some_and(|[first]| first >> 4 == 6);
        let fits = version && layer4 >= ETHERNET + 40;
        frame.range(ETHERNET + 8, ETHERNET + 40).filter(|_| fits)
    } else {
        let header = frame.at::<1>(ETHERNET).filter(|[first]| first >> 4 == 4);
        let fits = header.is_some_and(|[first]| usize::from(first & 15) * 4 + ETHERNET == layer4)
            && layer4 >= ETHERNET + 20
            && frame.at(ETHERNET + 9) == Some([protocol]);
        frame.range(ETHERNET + 12, ETHERNET + 20).filter(|_| fits)
    };
    Ok(Headers { addresses: addresses.ok_or(wrong)?, ipv6, layer4 })
}

/// Whether there are headers where a request says.
pub(super) fn check_headers(
    frame: &Split<'_>,
    ipv6: bool,
    layer4: usize,
    protocol: u8,
) -> Result<(), TransmitError> {
    headers(frame, ipv6, layer4, protocol).map(|_| ())
}

/// Whether the checksums that are asked for can be computed, by whomever.
pub(super) fn check(frame: &Split<'_>, request: TransmitChecksum) -> Result<(), TransmitError> {
    let layer4 = request.layer4();
    if request.contains(TransmitChecksum::IP_HEADER) {
        let len = frame.at::<1>(ETHERNET).map_or(0, |[first]| usize::from(first & 15) * 4);
        let header = frame.range(ETHERNET, ETHERNET + len).filter(|header| header.len() >= 20);
        header.ok_or(TransmitError::Headers { layer4 })?;
    }
    let ipv6 = request.contains(TransmitChecksum::IPV6);
    if request.contains(TransmitChecksum::TCP) {
        check_headers(frame, ipv6, layer4, TCP)
    } else if request.contains(TransmitChecksum::UDP) {
        check_headers(frame, ipv6, layer4, UDP)
    } else {
        Ok(())
    }
}

/// What a large send has to look like: no lengths, and a pseudo-header without one. An error if the host does not cut it.
pub(super) fn prepare_large_send(
    frame: &Split<'_>,
    send: LargeSend,
    offloads: &OffloadCapabilities,
) -> Result<Patches, TransmitError> {
    let headers = headers(frame, send.ipv6, usize::from(send.layer4), TCP)?;
    let least = if send.ipv6 { &offloads.ipv6 } else { &offloads.ipv4 }.large_send_segments;
    check_cut(frame, send, frame.len(), least, offloads.large_send_ipv6)?;
    let sum = add(add(0, headers.addresses, false), &[0, TCP], false);
    let mut patches = Patches::default();
    if headers.ipv6 {
        patches.add(ETHERNET + 4, 0);
    } else {
        patches.add(ETHERNET + 2, 0);
        patches.add(ETHERNET + IPV4_FIELD, 0);
    }
    patches.add(headers.layer4 + TCP_FIELD, fold(sum));
    Ok(patches)
}

/// Whether what cuts segments into `least` pieces or more, over IPv6 with these options at most, cuts this one of `len` bytes. Over IPv4 it
/// cuts all: there is no bit for options (NDIS_TCP_LARGE_SEND_OFFLOAD_V2).
fn check_cut(
    frame: &Split<'_>,
    send: LargeSend,
    len: usize,
    least: u32,
    ipv6: LargeSendOptions,
) -> Result<(), TransmitError> {
    let layer4 = usize::from(send.layer4);
    let options = options(frame, send.ipv6, layer4, true);
    let extended = options.contains(ChecksumSet::IP_OPTIONS);
    let longer = options.contains(ChecksumSet::TCP_OPTIONS);
    let lacks = extended && !ipv6.contains(LargeSendOptions::EXTENSION_HEADERS)
        || longer && !ipv6.contains(LargeSendOptions::TCP_OPTIONS);
    if send.ipv6 && lacks {
        return Err(TransmitError::Options { layer4 });
    }
    let header = frame.at::<1>(layer4 + 12).map_or(0, |[byte]| usize::from(byte >> 4) * 4);
    let payload = len.saturating_sub(layer4 + header);
    let count = payload.div_ceil((send.segment as usize).max(1)).max(1);
    if count < least as usize {
        return Err(TransmitError::Segments { count, least });
    }
    Ok(())
}

/// Whether a path that does this cuts a frame of `len` bytes that begins with `head`.
pub(crate) fn cuts(path: &PathOffloads, head: &[u8], send: LargeSend, len: usize) -> bool {
    let offered = if send.ipv6 { &path.ipv6 } else { &path.ipv4 };
    let (most, least) = (offered.large_send as usize, offered.large_send_segments);
    let Some(frame) = Split::new(head, &[], &[], None).filter(|_| len <= most) else {
        return false;
    };
    let (send, cut) = (moved_send(send, frame.cut), if frame.cut { VLAN_TAG } else { 0 });
    check_cut(&frame, send, len - cut.min(len), least, path.large_send_ipv6).is_ok()
}

/// What a request meets in the headers beside the least that there can be, as bits of what is offered.
fn options(frame: &Split<'_>, ipv6: bool, layer4: usize, tcp: bool) -> ChecksumSet {
    let ip = match ipv6 {
        true => layer4 > ETHERNET + 40,
        false => frame.at::<1>(ETHERNET).is_some_and(|[first]| first & 15 > 5),
    };
    let tcp = tcp && frame.at::<1>(layer4 + 12).is_some_and(|[byte]| byte >> 4 > 5);
    let mut options = ChecksumSet::empty();
    options.set(ChecksumSet::IP_OPTIONS, ip);
    options.set(ChecksumSet::TCP_OPTIONS, tcp);
    options
}

/// Whether the host computes all that is asked for, in a frame with these headers.
pub(super) fn offers(
    offloads: &OffloadCapabilities,
    frame: &Split<'_>,
    request: TransmitChecksum,
) -> bool {
    let ipv6 = request.contains(TransmitChecksum::IPV6);
    offered(if ipv6 { &offloads.ipv6 } else { &offloads.ipv4 }, frame, request)
}

/// Whether a path that does this computes all that is asked for, in a frame that begins with `head`.
pub(crate) fn computes(path: &PathOffloads, head: &[u8], request: TransmitChecksum) -> bool {
    let ipv6 = request.contains(TransmitChecksum::IPV6);
    let offloads = if ipv6 { &path.ipv6 } else { &path.ipv4 };
    Split::new(head, &[], &[], None)
        .is_some_and(|frame| offered(offloads, &frame, moved_checksum(request, frame.cut)))
}

/// Whether all that is asked for is among what is offered for its IP version.
fn offered(offloads: &IpOffloads, frame: &Split<'_>, request: TransmitChecksum) -> bool {
    let has = |kind| request.contains(kind);
    let mut wanted =
        options(frame, has(TransmitChecksum::IPV6), request.layer4(), has(TransmitChecksum::TCP));
    wanted.set(ChecksumSet::TCP, has(TransmitChecksum::TCP));
    wanted.set(ChecksumSet::UDP, has(TransmitChecksum::UDP));
    wanted.set(ChecksumSet::IP_HEADER, has(TransmitChecksum::IP_HEADER));
    offloads.transmit.contains(wanted)
}

/// Whether anything is asked for at all.
pub(crate) fn asks(request: TransmitChecksum) -> bool {
    let kinds = TransmitChecksum::TCP | TransmitChecksum::UDP | TransmitChecksum::IP_HEADER;
    request.intersects(kinds)
}

/// Computes what is asked for.
pub(super) fn compute(
    frame: &Split<'_>,
    request: TransmitChecksum,
) -> Result<Patches, TransmitError> {
    let mut patches = Patches::default();
    let layer4 = request.layer4();
    if request.contains(TransmitChecksum::IP_HEADER) {
        let len = frame.at::<1>(ETHERNET).map_or(0, |[first]| usize::from(first & 15) * 4);
        let header = frame.range(ETHERNET, ETHERNET + len).filter(|header| header.len() >= 20);
        let header = header.ok_or(TransmitError::Headers { layer4 })?;
        let (before, behind) = header.split_at(IPV4_FIELD);
        let sum = add(add(0, before, false), behind.get(2..).unwrap_or_default(), false);
        patches.add(ETHERNET + IPV4_FIELD, !fold(sum));
    }
    let (protocol, field) = if request.contains(TransmitChecksum::TCP) {
        (TCP, TCP_FIELD)
    } else if request.contains(TransmitChecksum::UDP) {
        (UDP, UDP_FIELD)
    } else {
        return Ok(patches);
    };
    headers(frame, request.contains(TransmitChecksum::IPV6), layer4, protocol)?;
    // The field holds the sum of the pseudo-header, so that it is simply part of what is added up. Padding is not.
    let end = packet_end(frame, request.contains(TransmitChecksum::IPV6));
    let (mut sum, mut at, mut odd) = (0, 0, false);
    for piece in frame.pieces() {
        let from = layer4.saturating_sub(at).min(piece.len());
        let to = end.saturating_sub(at).min(piece.len()).max(from);
        let bytes = piece.get(from..to).unwrap_or_default();
        sum = add(sum, bytes, odd);
        odd ^= bytes.len() % 2 == 1;
        at += piece.len();
    }
    for slice in frame.body() {
        slice
            .read(|part| {
                let bytes = part.get(..end.saturating_sub(at).min(part.len())).unwrap_or_default();
                sum = add(sum, bytes, odd);
                odd ^= bytes.len() % 2 == 1;
                at += part.len();
                Ok::<_, OutOfRange>(())
            })
            .map_err(|error| NicError::Ring(error.into()))?;
    }
    let sum = !fold(sum);
    // A UDP checksum of zero would say that there is none.
    let sum = if protocol == UDP && sum == 0 { 0xffff } else { sum };
    patches.add(layer4 + field, sum);
    Ok(patches)
}

/// Where the IP packet ends; what follows is padding.
fn packet_end(frame: &Split<'_>, ipv6: bool) -> usize {
    let len = if ipv6 {
        frame.at(ETHERNET + 4).map(|len| usize::from(u16::from_be_bytes(len)) + 40)
    } else {
        frame.at(ETHERNET + 2).map(|len| usize::from(u16::from_be_bytes(len)))
    };
    len.map_or(usize::MAX, |len| ETHERNET + len)
}

/// Where things are once a tag has been taken out of the bytes.
fn moved(layer4: usize, cut: bool) -> u16 {
    layer4.saturating_sub(if cut { VLAN_TAG } else { 0 }) as u16
}

pub(super) fn moved_checksum(request: TransmitChecksum, cut: bool) -> TransmitChecksum {
    request.at(moved(request.layer4(), cut))
}

pub(super) fn moved_send(send: LargeSend, cut: bool) -> LargeSend {
    LargeSend { layer4: moved(usize::from(send.layer4), cut), ..send }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_do_not_depend_on_where_the_bytes_are_cut() {
        let bytes: [u8; 61] = core::array::from_fn(|at| (at * 37 + 11) as u8);
        let whole = fold(add(0, &bytes, false));
        for cut in 0..bytes.len() {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(fold(add(add(0, a, false), b, cut % 2 == 1)), whole, "cut at {cut}");
        }
    }

    #[test]
    fn carries_are_kept() {
        assert_eq!(fold(add(0, &[0xff; 40_000], false)), 0xffff);
        assert_eq!(fold(add(0, &[0xff, 0xff, 0, 1], false)), 1);
    }
}
