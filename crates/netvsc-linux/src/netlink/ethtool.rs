//! What drivers say about their rings and features: ethtool's own family of generic netlink.

use std::collections::BTreeMap;

use netlink_packet_core::{NlaBuffer, NlasIterator};

use super::NetlinkError;
use super::socket::{Connection, Reply};

/// Number of the family that tells the numbers of families.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_NAME: u16 = 2;
const FAMILY_ID: u16 = 1;
/// Asks how many channels there are, by what they do (`ETHTOOL_MSG_CHANNELS_GET`).
const CHANNELS: u8 = 17;
/// Channels that send, and those that send and receive, as they are now.
const SENDING: u16 = 7;
const COMBINED: u16 = 9;
/// An attribute that holds others.
const NESTED: u16 = 0x8000;
/// Length of the header that generic netlink puts before attributes, in bytes.
const HEADER: usize = 4;

/// Sizes of a receive ring, in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// How many it holds.
    pub receive: u32,
    /// How many it may hold.
    pub most: u32,
}

/// What can be asked of drivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverTable {
    /// Sizes of rings.
    Rings,
    /// Features, as `ethtool -k` prints them.
    Features,
}

impl DriverTable {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Rings, Self::Features];

    /// The name of the file that holds a recorded answer, beside those of [`Table`](super::Table).
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Rings => "rings",
            Self::Features => "features",
        }
    }

    const fn command(self) -> u8 {
        match self {
            Self::Rings => 15,
            Self::Features => 11,
        }
    }
}

impl Connection {
    /// Everything that drivers say of one kind. No privilege is needed.
    ///
    /// # Errors
    /// As [`Connection::dump`]; [`NetlinkError::Refused`] also where the kernel (before 5.6) has no such family.
    pub fn drivers(table: DriverTable) -> Result<Reply, NetlinkError> {
        let mut connection = Self::generic()?;
        let family = connection.ethtool()?;
        let mut question = vec![table.command(), 1, 0, 0];
        // An empty header asks about all interfaces.
        attribute(&mut question, 1 | NESTED, &[]);
        connection.ask(family, &question, true)
    }

    /// On how many queues the driver of the interface with this number sends now; `None` if it does not tell.
    ///
    /// # Errors
    /// As for [`Connection::drivers`]; [`NetlinkError::Refused`] also for a driver that is not asked such things.
    pub fn transmit_queues(index: u32) -> Result<Option<u32>, NetlinkError> {
        let mut connection = Self::generic()?;
        let family = connection.ethtool()?;
        let mut header = Vec::new();
        attribute(&mut header, 1, &index.to_ne_bytes());
        let mut question = vec![CHANNELS, 1, 0, 0];
        attribute(&mut question, 1 | NESTED, &header);
        Ok(connection.ask(family, &question, false)?.transmit_queues())
    }

    /// The number of ethtool's family.
    fn ethtool(&mut self) -> Result<u16, NetlinkError> {
        let mut question = vec![GET_FAMILY, 1, 0, 0];
        attribute(&mut question, FAMILY_NAME, b"ethtool\0");
        let reply = self.ask(CONTROL, &question, false)?;
        attributes(reply.payloads().next().map_or(&[], |(_, payload)| payload))
            .find(|found| found.kind() == FAMILY_ID)
            .and_then(|found| found.value().first_chunk::<2>().copied())
            .map(u16::from_ne_bytes)
            .ok_or(NetlinkError::Refused {
                doing: "tell the number of the family ethtool",
                source: std::io::ErrorKind::NotFound.into(),
            })
    }
}

fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The attributes after the header of a message.
fn attributes(payload: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    nested(payload.get(HEADER..).unwrap_or_default())
}

fn nested(bytes: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(bytes).flatten()
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// The interface that a message is about, by its number.
fn index(payload: &[u8]) -> Option<u32> {
    let header = attributes(payload).find(|found| found.kind() == 1)?;
    nested(header.value()).find(|found| found.kind() == 1).and_then(|found| number(found.value()))
}

impl Reply {
    /// Receive rings, by the numbers of interfaces.
    #[must_use]
    pub fn rings(&self) -> BTreeMap<u32, Ring> {
        let ring = |payload: &[u8]| {
            let of = |kind| {
                attributes(payload)
                    .find(|found| found.kind() == kind)
                    .and_then(|f| number(f.value()))
            };
            Some((index(payload)?, Ring { most: of(2)?, receive: of(6)? }))
        };
        self.payloads().filter_map(|(_, payload)| ring(payload)).collect()
    }

    /// Queues that are sent on, of the first interface that is told of.
    fn transmit_queues(&self) -> Option<u32> {
        let (_, payload) = self.payloads().next()?;
        let channels = attributes(payload).filter(|it| [SENDING, COMBINED].contains(&it.kind()));
        let counts = channels.filter_map(|channel| number(channel.value()));
        Some(counts.fold(0, u32::saturating_add)).filter(|count| *count > 0)
    }

    /// Whether large frames are made of received ones (LRO), by the numbers of interfaces.
    #[must_use]
    pub fn lro(&self) -> BTreeMap<u32, bool> {
        let lro = |payload: &[u8]| {
            let active = attributes(payload).find(|found| found.kind() == 4)?;
            let bits = nested(active.value()).find(|found| found.kind() == 3);
            let on = bits.is_some_and(|bits| {
                nested(bits.value()).any(|bit| {
                    nested(bit.value()).any(|part| part.kind() == 2 && part.value() == b"rx-lro\0")
                })
            });
            Some((index(payload)?, on))
        };
        self.payloads().filter_map(|(_, payload)| lro(payload)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_has_neither_rings_nor_features() {
        for bytes in [
            vec![],
            vec![7; 40],
            vec![24, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 1, 0, 0, 9, 9, 9, 9],
        ] {
            let reply = Reply::from_bytes(bytes);
            assert!(reply.rings().is_empty() && reply.lro().is_empty());
            assert_eq!(reply.transmit_queues(), None);
        }
    }
}
