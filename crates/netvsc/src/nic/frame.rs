//! A frame to be sent, with what the host shall do to it.

use super::pages::PageSlice;
use super::transmit::{ADDRESSES, VLAN_TYPE};
use super::types::{ETHERNET_HEADER, TransmitError, VLAN_TAG};
use crate::rndis::packet::{LargeSend, TransmitChecksum, VlanTag};

/// What is asked for beside the bytes of a frame: the fields of a [`TxFrame`] that are not its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TxWork {
    /// A tag to be put in.
    pub vlan: Option<VlanTag>,
    /// Checksums to be computed.
    pub checksum: TransmitChecksum,
    /// A TCP segment to be cut.
    pub large_send: Option<LargeSend>,
    /// The hash of the flow.
    pub hash: Option<u32>,
}

impl TxWork {
    /// Nothing.
    pub const NONE: Self =
        Self { vlan: None, checksum: TransmitChecksum::empty(), large_send: None, hash: None };

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// The frame that these bytes and this make.
    #[must_use]
    pub const fn of<'a>(&self, pieces: &'a [&'a [u8]]) -> TxFrame<'a> {
        let Self { vlan, checksum, large_send, hash } = *self;
        TxFrame { pieces, vlan, checksum, large_send, hash }
    }
}

/// A frame to be sent: its bytes in one piece or several, and what the host shall do to it.
///
/// [`Nic::transmit`](super::Nic::transmit) sends plain bytes; this is for those who leave work to the host.
#[derive(Clone, Copy, Debug)]
pub struct TxFrame<'a> {
    /// The bytes, in order. The first piece holds all headers, up to the data of TCP or UDP, if anything below asks the
    /// host for work on them.
    pub pieces: &'a [&'a [u8]],
    /// A tag to be put in. The bytes then hold none.
    pub vlan: Option<VlanTag>,
    /// Checksums to be computed: which, over which IP version, and [where the TCP or UDP header
    /// starts](TransmitChecksum::at). The field of a TCP or UDP checksum holds the sum of the pseudo-header. What the host
    /// does not offer is computed here.
    pub checksum: TransmitChecksum,
    /// A TCP segment longer than the MTU that the host shall cut. The host computes all its checksums. Only up to
    /// [`NicInfo::large_send`](super::NicInfo::large_send) bytes.
    pub large_send: Option<LargeSend>,
    /// The hash of the flow, for the host.
    pub hash: Option<u32>,
}

impl<'a> TxFrame<'a> {
    /// A frame that goes as it is.
    #[must_use]
    pub const fn plain(pieces: &'a [&'a [u8]]) -> Self {
        Self {
            pieces,
            vlan: None,
            checksum: TransmitChecksum::empty(),
            large_send: None,
            hash: None,
        }
    }

    /// What is asked for beside the bytes.
    #[must_use]
    pub const fn work(&self) -> TxWork {
        let Self { vlan, checksum, large_send, hash, .. } = *self;
        TxWork { vlan, checksum, large_send, hash }
    }

    /// Bytes of all pieces.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "what is empty is no frame")]
    pub fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len()).sum()
    }

    /// The pieces without the tag, if there is one among the bytes: addresses, the rest of the first piece, the other pieces.
    pub(super) fn split(&self) -> Result<Split<'a>, TransmitError> {
        let (first, rest): (&[u8], &[&[u8]]) = match self.pieces.split_first() {
            Some((first, rest)) => (first, rest),
            None => (&[], &[]),
        };
        let split = Split::new(first, rest, &[], self.vlan);
        split.ok_or_else(|| TransmitError::TooShort(self.len()))
    }
}

/// A frame as it goes into the send buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Split<'a> {
    addresses: &'a [u8],
    first: &'a [u8],
    rest: &'a [&'a [u8]],
    /// What follows these pieces and lies in pages.
    body: &'a [PageSlice],
    pub(super) tag: Option<VlanTag>,
    /// A tag was taken out of the bytes, so that everything behind it has moved.
    pub(super) cut: bool,
}

impl<'a> Split<'a> {
    /// `None` if `first` ends before the Ethernet header does.
    pub(super) fn new(
        first: &'a [u8],
        rest: &'a [&'a [u8]],
        body: &'a [PageSlice],
        vlan: Option<VlanTag>,
    ) -> Option<Self> {
        let (addresses, behind) = first.split_at_checked(ADDRESSES)?;
        if behind.len() < ETHERNET_HEADER - ADDRESSES {
            return None;
        }
        let (tag, first) = match (vlan, inner_tag(first)) {
            (None, Some(tag)) => (Some(tag), behind.get(VLAN_TAG..).unwrap_or_default()),
            (tag, _) => (tag, behind),
        };
        Some(Self { addresses, first, rest, body, tag, cut: vlan.is_none() && tag.is_some() })
    }

    pub(super) fn len(&self) -> usize {
        let head = self.head_len();
        if self.body.is_empty() { head } else { head + self.body_len() }
    }

    #[cold]
    fn body_len(&self) -> usize {
        self.body.iter().map(PageSlice::len).sum()
    }

    /// Bytes that do not lie in pages.
    pub(super) fn head_len(&self) -> usize {
        self.pieces().map(<[u8]>::len).sum()
    }

    /// The part that lies in pages.
    pub(super) fn body(&self) -> &'a [PageSlice] {
        self.body
    }

    pub(super) fn pieces(&self) -> impl Iterator<Item = &'a [u8]> + Clone {
        let rest = self.rest.iter().copied();
        [self.addresses, self.first].into_iter().chain(rest)
    }

    /// `N` bytes at an offset, if they are in the first piece.
    pub(super) fn at<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.first.get(offset.checked_sub(ADDRESSES)?..)?.first_chunk().copied()
    }

    /// The bytes from `from` to `to`, if they are in the first piece.
    pub(super) fn range(&self, from: usize, to: usize) -> Option<&'a [u8]> {
        self.first.get(from.checked_sub(ADDRESSES)?..to.checked_sub(ADDRESSES)?)
    }
}

/// The tag of a frame that has one and something behind it: it goes beside the frame.
#[inline]
pub(super) fn inner_tag(frame: &[u8]) -> Option<VlanTag> {
    let [a, b, c, d] = *frame.get(ADDRESSES..)?.first_chunk::<VLAN_TAG>()?;
    let whole = frame.len() >= ETHERNET_HEADER + VLAN_TAG;
    (whole && [a, b] == VLAN_TYPE).then(|| VlanTag(u16::from_be_bytes([c, d])))
}
