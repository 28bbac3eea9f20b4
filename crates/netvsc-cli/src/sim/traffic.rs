//! Frames that know what they are: whoever gets one can tell whose it is, which of its flow, and whether it was changed.

use std::collections::BTreeSet;

use netvsc::MacAddress;
use rand_core::Rng;
use rand_xoshiro::Xoshiro256PlusPlus;

/// EtherType of local experiments.
const ETHER_TYPE: [u8; 2] = [0x88, 0xb5];
/// Bytes before the filling: addresses, type, NIC, direction, number.
const HEADER: usize = 14 + 2 + 1 + 8;
/// Shortest and longest frame.
const LENGTHS: (u64, u64) = (60, 1514);

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the guest to the peer behind the switch.
    Out,
    /// From the peer to the guest.
    In,
    /// From the peer to everybody, which hosts deliver on the synthetic path whatever the guest's path.
    Group,
}

/// The frames of one NIC in one direction.
#[derive(Debug)]
pub(super) struct Flow {
    nic: u16,
    way: Way,
    addresses: [MacAddress; 2],
    /// Frames that are to be sent and were not taken yet.
    wanted: u64,
    /// The next one, made already.
    held: Vec<u8>,
    sent: u64,
    /// The number after the highest that arrived.
    expected: u64,
    /// Numbers below that have not arrived.
    missing: BTreeSet<u64>,
    duplicates: u64,
    /// Numbers below may come in any order: the way has changed since they were sent.
    unordered: u64,
    /// Numbers that went down with what carried them, none of them by a fault of a path.
    forgiven: BTreeSet<u64>,
}

/// What the filling of a frame consists of, over and over; frames differ in it, and places within a frame by their number.
fn filling(nic: u16, number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(nic)
}

/// The eight bytes of a filling at their place.
fn word(filling: u64, place: usize) -> [u8; 8] {
    (filling ^ (place as u64).wrapping_mul(0x0101_0101_0101_0101)).to_le_bytes()
}

/// Fills a frame behind its header.
fn fill(rest: &mut [u8], filling: u64) {
    for (place, bytes) in rest.chunks_mut(8).enumerate() {
        bytes.copy_from_slice(&word(filling, place)[..bytes.len()]);
    }
}

/// Whether a frame is filled as it should be.
fn is_filled(rest: &[u8], filling: u64) -> bool {
    let (words, last) = rest.as_chunks::<8>();
    let right = words.iter().enumerate().all(|(place, bytes)| *bytes == word(filling, place));
    right && last == &word(filling, words.len())[..last.len()]
}

impl Flow {
    pub(super) fn new(nic: usize, way: Way, to: MacAddress, from: MacAddress) -> Self {
        Self {
            nic: u16::try_from(nic).unwrap_or(u16::MAX),
            way,
            addresses: [to, from],
            wanted: 0,
            held: Vec::new(),
            sent: 0,
            expected: 0,
            missing: BTreeSet::new(),
            duplicates: 0,
            unordered: 0,
            forgiven: BTreeSet::new(),
        }
    }

    /// The way of the frames has changed: those under way may overtake each other, those sent from here on may not.
    pub(super) fn way_changed(&mut self) {
        self.unordered = self.sent;
    }

    /// What carried the frames is gone: those under way may never arrive.
    pub(super) fn carrier_gone(&mut self) {
        self.forgiven.extend(&self.missing);
        self.forgiven.extend(self.expected..self.sent);
        self.way_changed();
    }

    /// Frames that are to be sent and were not taken yet.
    pub(super) fn waiting(&self) -> u64 {
        self.wanted
    }

    /// More frames are to be sent.
    pub(super) fn want(&mut self, frames: u64) {
        self.wanted += frames;
    }

    /// The frame that is to be sent next.
    pub(super) fn front(&mut self, random: &mut Xoshiro256PlusPlus) -> Option<&[u8]> {
        if self.wanted == 0 {
            return None;
        }
        if self.held.is_empty() {
            let (low, high) = LENGTHS;
            let len = match self.way {
                // They draw nothing, so that a system with them is the one without them.
                Way::Group => low,
                Way::Out | Way::In => low + random.next_u64() % (high - low + 1),
            };
            let len = len as usize;
            self.held.extend(self.addresses[0].0);
            self.held.extend(self.addresses[1].0);
            self.held.extend(ETHER_TYPE);
            self.held.extend(self.nic.to_be_bytes());
            self.held.push(self.way as u8);
            self.held.extend(self.sent.to_be_bytes());
            self.held.resize(len, 0);
            fill(&mut self.held[HEADER..], filling(self.nic, self.sent));
        }
        Some(&self.held)
    }

    /// That frame was taken.
    pub(super) fn taken(&mut self) {
        self.held.clear();
        self.wanted -= 1;
        self.sent += 1;
    }

    /// A frame has arrived at the other end. None may be overtaken, unless the way has changed since it was sent.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn arrived(&mut self, frame: &[u8]) -> Result<(), String> {
        let whose = self.whose();
        let number = self.read(frame).map_err(|why| format!("{whose}: {why}"))?;
        if number >= self.sent {
            return Err(format!("{whose}: frame {number} arrived, {} were sent", self.sent));
        }
        if number < self.expected {
            if self.missing.remove(&number) {
                self.forgiven.remove(&number);
                if number >= self.unordered {
                    return Err(format!("{whose}: frame {number} was overtaken"));
                }
            } else {
                self.duplicates += 1;
            }
            return Ok(());
        }
        self.forgiven.remove(&number);
        self.missing.extend(self.expected..number);
        self.expected = number + 1;
        Ok(())
    }

    /// Whether a frame is one of those to everybody.
    pub(super) fn is_to_all(frame: &[u8]) -> bool {
        frame.get(16).is_some_and(|way| *way == Way::Group as u8)
    }

    fn whose(&self) -> String {
        let way = match self.way {
            Way::Out => "to the peer",
            Way::In => "to the guest",
            Way::Group => "to everybody",
        };
        format!("nic{} {way}", self.nic)
    }

    fn read(&self, frame: &[u8]) -> Result<u64, String> {
        let Some((header, rest)) = frame.split_at_checked(HEADER) else {
            return Err(format!(
                "a frame of {} bytes arrived, none that short was sent",
                frame.len()
            ));
        };
        let nic = u16::from_be_bytes([header[14], header[15]]);
        if nic != self.nic || header[16] != self.way as u8 {
            return Err(format!("a frame of nic{nic} arrived, direction {}", header[16]));
        }
        let number = header[17..].iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
        let addressed = header[..6] == self.addresses[0].0 && header[6..12] == self.addresses[1].0;
        if !addressed || header[12..14] != ETHER_TYPE || !is_filled(rest, filling(nic, number)) {
            return Err(format!("frame {number} arrived changed"));
        }
        Ok(number)
    }

    /// Whether there is nothing more to send.
    pub(super) fn is_idle(&self) -> bool {
        self.wanted == 0
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Frames that were sent and have not arrived, but for those whose carrier is gone.
    pub(super) fn lacking(&self) -> u64 {
        self.sent - self.expected + self.missing.len() as u64 - self.forgiven.len() as u64
    }

    pub(super) fn duplicates(&self) -> u64 {
        self.duplicates
    }
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng;

    use super::*;

    fn flow() -> (Flow, Vec<Vec<u8>>) {
        let macs = [MacAddress([2; 6]), MacAddress([4; 6])];
        let mut flow = Flow::new(3, Way::Out, macs[0], macs[1]);
        let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut frames = Vec::new();
        flow.want(4);
        while let Some(frame) = flow.front(&mut random) {
            frames.push(frame.to_vec());
            flow.taken();
        }
        (flow, frames)
    }

    #[test]
    fn frames_in_order_are_all_right_and_a_repeated_one_is_counted() {
        let (mut flow, frames) = flow();
        for frame in &frames {
            assert_eq!(flow.arrived(frame), Ok(()));
        }
        assert_eq!(flow.arrived(&frames[1]), Ok(()));
        assert_eq!((flow.lacking(), flow.duplicates()), (0, 1));
    }

    #[test]
    fn a_frame_may_be_overtaken_only_if_its_way_has_changed_since_it_was_sent() {
        let (mut changed, frames) = flow();
        changed.way_changed();
        changed.arrived(&frames[1]).unwrap();
        assert_eq!(changed.arrived(&frames[0]), Ok(()));
        changed.want(2);
        let mut random = Xoshiro256PlusPlus::seed_from_u64(2);
        let later: Vec<_> = std::iter::from_fn(|| {
            let frame = changed.front(&mut random)?.to_vec();
            changed.taken();
            Some(frame)
        })
        .collect();
        changed.arrived(&later[1]).unwrap();
        assert_eq!(changed.arrived(&frames[3]), Ok(()), "sent before the change");
        assert!(changed.arrived(&later[0]).unwrap_err().contains("overtaken"));
    }

    #[test]
    fn frames_whose_carrier_is_gone_are_not_missing_and_later_ones_are() {
        let (mut gone, frames) = flow();
        gone.arrived(&frames[1]).unwrap();
        gone.carrier_gone();
        assert_eq!(gone.lacking(), 0);
        gone.arrived(&frames[3]).unwrap();
        assert_eq!(gone.lacking(), 0, "those that do arrive count once");
        gone.want(2);
        let mut random = Xoshiro256PlusPlus::seed_from_u64(2);
        while gone.front(&mut random).is_some() {
            gone.taken();
        }
        assert_eq!(gone.lacking(), 2);
    }

    #[test]
    fn a_frame_that_is_lost_overtaken_changed_or_a_stranger_is_noticed() {
        let (mut flow, frames) = flow();
        flow.arrived(&frames[1]).unwrap();
        assert_eq!(flow.lacking(), 3);
        assert!(flow.arrived(&frames[0]).unwrap_err().contains("overtaken"));
        for at in [0, 6, 12, 20, 40, frames[2].len() - 1] {
            let mut frame = frames[2].clone();
            frame[at] ^= 1;
            assert!(flow.arrived(&frame).is_err(), "{at}");
        }
        let mut other = Flow::new(4, Way::Out, MacAddress([2; 6]), MacAddress([4; 6]));
        other.want(1);
        assert!(other.arrived(&frames[0]).unwrap_err().contains("nic3"));
        assert!(flow.arrived(&frames[0][..20]).unwrap_err().contains("20 bytes"));
    }
}
