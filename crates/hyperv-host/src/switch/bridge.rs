//! The learning part of the switch: which of the parties that it joins get a frame, and with which tag.
//!
//! A pure machine: it is shown a frame with the party that it came from, and says who gets it. Queues are the business of
//! whoever carries the frames.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use vmbus::Instant;

use super::frame::ETHERNET_HEADER;

const TAG: usize = 4;
const ETHERTYPE: usize = 12;
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];
/// Bits of a tag that are the VLAN.
const VLAN_MASK: u16 = 0xfff;
/// Addresses that are looked at to make room for a new one.
const LOOKS: usize = 8;

/// Names a party of a [`Bridge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartyId(pub(super) usize);

/// Which VLANs a party is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VlanMode {
    /// One, and the party does not know: its frames have no tag. Tagged ones are dropped, but for the tag of priority.
    Access(u16),
    /// Several, by their tags. Frames without a tag belong to the native one and leave without.
    Trunk {
        /// The VLAN of frames without a tag.
        native: u16,
        /// The others.
        tagged: Vec<u16>,
    },
}

impl VlanMode {
    /// The VLAN of a frame with this tag; `None` if the party may not send it.
    fn enter(&self, tag: Option<u16>) -> Option<u16> {
        let vlan = tag.map(|tag| tag & VLAN_MASK).filter(|vlan| *vlan != 0);
        match (self, vlan) {
            (Self::Access(own), None) | (Self::Trunk { native: own, .. }, None) => Some(*own),
            (Self::Access(_), Some(_)) => None,
            (Self::Trunk { tagged, .. }, Some(vlan)) => tagged.contains(&vlan).then_some(vlan),
        }
    }

    /// Whether the party gets frames of a VLAN, and if so, whether with a tag.
    fn leave(&self, vlan: u16) -> Option<bool> {
        match self {
            Self::Access(own) => (*own == vlan).then_some(false),
            Self::Trunk { native, .. } if *native == vlan => Some(false),
            Self::Trunk { tagged, .. } => tagged.contains(&vlan).then_some(true),
        }
    }
}

/// How a bridge learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgeConfig {
    /// Most addresses that are known at a time. Frames for others go to everybody.
    pub most_addresses: usize,
    /// How long an address is known after a frame from it.
    pub aging: Duration,
}

impl Default for BridgeConfig {
    /// 4,096 addresses for five minutes.
    fn default() -> Self {
        Self { most_addresses: 4096, aging: Duration::from_secs(300) }
    }
}

/// What became of the frames that a bridge was shown. [`BridgeCounters::unaccounted`] is zero at any moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgeCounters {
    /// Frames that it was shown.
    pub frames: u64,
    /// Frames for one known party.
    pub forwarded: u64,
    /// Frames for everybody else in the VLAN: groups, and addresses that nobody knows.
    pub flooded: u64,
    /// Frames for an address behind the party that sent them, or flooded where nobody else is.
    pub dropped_local: u64,
    /// Frames of a VLAN that their sender is not in.
    pub dropped_vlan: u64,
    /// Frames that no bridge passes on: too short, from a group, or to the addresses that stay on one link.
    pub dropped_invalid: u64,
    /// Copies of frames, one for each party that gets one.
    pub copies: u64,
    /// Copies that were dropped since the way to their party was full.
    pub dropped_congested: u64,
    /// Addresses that were learned.
    pub learned: u64,
    /// Addresses that were found behind another party.
    pub moved: u64,
    /// Times an address was not learned since there was no room.
    pub not_learned: u64,
}

impl BridgeCounters {
    /// Frames shown minus frames passed on or dropped: zero, always.
    #[must_use]
    pub fn unaccounted(&self) -> i128 {
        let dropped = self.dropped_local + self.dropped_vlan + self.dropped_invalid;
        i128::from(self.frames) - i128::from(self.forwarded + self.flooded + dropped)
    }
}

#[derive(Clone, Copy, Debug)]
struct Known {
    party: PartyId,
    until: Instant,
}

/// A learning bridge between parties.
#[derive(Debug, Default)]
pub struct Bridge {
    config: BridgeConfig,
    /// `None` for one that left.
    parties: Vec<Option<VlanMode>>,
    known: BTreeMap<(u16, [u8; 6]), Known>,
    /// Where the search for addresses that can be forgotten goes on.
    cursor: (u16, [u8; 6]),
    counters: BridgeCounters,
}

/// A frame as it enters a VLAN.
struct Entered {
    vlan: u16,
    to: [u8; 6],
    from: [u8; 6],
    /// Priority and CFI bits of the tag it came with.
    priority: u16,
    tagged: bool,
}

impl Bridge {
    /// A bridge that joins nobody yet.
    #[must_use]
    pub fn new(config: BridgeConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// Another party joins.
    pub fn join(&mut self, vlans: VlanMode) -> PartyId {
        self.parties.push(Some(vlans));
        PartyId(self.parties.len() - 1)
    }

    /// A party leaves; what was behind it is forgotten.
    pub fn leave(&mut self, party: PartyId) {
        if let Some(place) = self.parties.get_mut(party.0) {
            *place = None;
        }
        self.known.retain(|_, known| known.party != party);
    }

    /// Changes the VLANs of a party.
    pub fn set_vlans(&mut self, party: PartyId, vlans: VlanMode) {
        if let Some(Some(place)) = self.parties.get_mut(party.0) {
            *place = vlans;
        }
        self.known.retain(|_, known| known.party != party);
    }

    /// What happened so far.
    #[must_use]
    pub const fn counters(&self) -> BridgeCounters {
        self.counters
    }

    /// The party behind which an address is known to be.
    #[must_use]
    pub fn lookup(&self, vlan: u16, address: [u8; 6], now: Instant) -> Option<PartyId> {
        let known = self.known.get(&(vlan, address))?;
        (known.until > now).then_some(known.party)
    }

    /// A frame from a party. `pass` gets each copy with the party it is for, and says whether there was room for it.
    pub fn forward(
        &mut self,
        from: PartyId,
        frame: &[u8],
        now: Instant,
        mut pass: impl FnMut(PartyId, &[u8]) -> bool,
    ) {
        self.counters.frames += 1;
        let Some(entered) = self.enter(from, frame) else { return };
        self.learn(from, &entered, now);
        let group = entered.to[0] & 1 != 0;
        let one = self.lookup(entered.vlan, entered.to, now).filter(|_| !group);
        let mut other = Vec::new();
        let mut copies = 0;
        let goes_to = |party: PartyId| party != from && one.is_none_or(|one| one == party);
        for (at, vlans) in self.parties.iter().enumerate().filter(|(at, _)| goes_to(PartyId(*at))) {
            let Some(tagged) = vlans.as_ref().and_then(|vlans| vlans.leave(entered.vlan)) else {
                continue;
            };
            let bytes = if tagged == entered.tagged {
                frame
            } else {
                retag(frame, &entered, tagged, &mut other);
                &other
            };
            copies += 1;
            self.counters.dropped_congested += u64::from(!pass(PartyId(at), bytes));
        }
        self.counters.copies += copies;
        match (copies, one) {
            (0, _) => self.counters.dropped_local += 1,
            (_, Some(_)) => self.counters.forwarded += 1,
            (_, None) => self.counters.flooded += 1,
        }
    }

    /// The VLAN and addresses of a frame; `None` if it is dropped, which is counted.
    fn enter(&mut self, from: PartyId, frame: &[u8]) -> Option<Entered> {
        let (to, source) =
            (frame.first_chunk().copied(), frame.get(6..).and_then(<[u8]>::first_chunk));
        let (Some(to), Some(source)) = (to, source.copied()) else {
            self.counters.dropped_invalid += 1;
            return None;
        };
        let stays_on_link = to[..5] == [0x01, 0x80, 0xc2, 0, 0] && to[5] < 0x10;
        if frame.len() < ETHERNET_HEADER || source[0] & 1 != 0 || stays_on_link {
            self.counters.dropped_invalid += 1;
            return None;
        }
        let tag = match frame.get(ETHERTYPE..ETHERTYPE + TAG) {
            Some([0x81, 0x00, high, low]) => Some(u16::from_be_bytes([*high, *low])),
            _ => None,
        };
        let vlans = self.parties.get(from.0).and_then(Option::as_ref);
        let Some(vlan) = vlans.and_then(|vlans| vlans.enter(tag)) else {
            self.counters.dropped_vlan += 1;
            return None;
        };
        let priority = tag.unwrap_or(0) & !VLAN_MASK;
        // A tag without a VLAN says priority only, and goes on as it is.
        let tagged = tag.is_some_and(|tag| tag & VLAN_MASK != 0);
        Some(Entered { vlan, to, from: source, priority, tagged })
    }

    fn learn(&mut self, party: PartyId, entered: &Entered, now: Instant) {
        let key = (entered.vlan, entered.from);
        let until = now + self.config.aging;
        if let Some(known) = self.known.get_mut(&key) {
            self.counters.moved += u64::from(known.party != party);
            *known = Known { party, until };
            return;
        }
        if self.known.len() >= self.config.most_addresses && !self.forget_one(now) {
            self.counters.not_learned += 1;
            return;
        }
        self.counters.learned += 1;
        self.known.insert(key, Known { party, until });
    }

    /// Forgets an address that is old, if one of the next few is.
    fn forget_one(&mut self, now: Instant) -> bool {
        for _ in 0..LOOKS {
            let behind = (Bound::Excluded(self.cursor), Bound::Unbounded);
            let next = self.known.range(behind).next().or_else(|| self.known.first_key_value());
            let Some((key, known)) = next.map(|(key, known)| (*key, *known)) else { return false };
            self.cursor = key;
            if known.until <= now {
                self.known.remove(&key);
                return true;
            }
        }
        false
    }
}

/// The frame with a tag where it had none, or without the one that it had.
fn retag(frame: &[u8], entered: &Entered, tagged: bool, out: &mut Vec<u8>) {
    let (addresses, rest) = frame.split_at(frame.len().min(ETHERTYPE));
    out.clear();
    out.extend_from_slice(addresses);
    if tagged {
        out.extend_from_slice(&ETHERTYPE_VLAN);
        out.extend_from_slice(&(entered.priority | entered.vlan).to_be_bytes());
        // A tag of priority only gives way.
        let has_tag = rest.starts_with(&ETHERTYPE_VLAN);
        out.extend_from_slice(rest.get(if has_tag { TAG } else { 0 }..).unwrap_or_default());
    } else {
        out.extend_from_slice(rest.get(TAG..).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    fn frame(to: u8, from: u8, tag: Option<u16>) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from];
        if to == 0xff {
            frame[..6].fill(0xff);
        }
        if let Some(tag) = tag {
            frame.extend(ETHERTYPE_VLAN);
            frame.extend(tag.to_be_bytes());
        }
        frame.extend([8, 0, 0xaa, 0xbb]);
        frame
    }

    /// Who gets a frame, and what.
    fn send(
        bridge: &mut Bridge,
        from: PartyId,
        frame: &[u8],
        now: Instant,
    ) -> Vec<(usize, Vec<u8>)> {
        let mut copies = Vec::new();
        bridge.forward(from, frame, now, |party, copy| {
            copies.push((party.0, copy.to_vec()));
            true
        });
        assert_eq!(bridge.counters().unaccounted(), 0);
        copies
    }

    fn parties(bridge: &mut Bridge, from: PartyId, frame: &[u8], now: Instant) -> Vec<usize> {
        send(bridge, from, frame, now).into_iter().map(|(party, _)| party).collect()
    }

    fn four(config: BridgeConfig) -> (Bridge, [PartyId; 4]) {
        let mut bridge = Bridge::new(config);
        let parties = [1, 1, 1, 2].map(|vlan| bridge.join(VlanMode::Access(vlan)));
        (bridge, parties)
    }

    #[test]
    fn strangers_are_looked_for_everywhere_and_found_once() {
        let (mut bridge, [a, b, ..]) = four(BridgeConfig::default());
        assert_eq!(parties(&mut bridge, a, &frame(2, 1, None), at(0)), [1, 2], "the VLAN's others");
        assert_eq!(parties(&mut bridge, b, &frame(1, 2, None), at(0)), [0]);
        assert_eq!(parties(&mut bridge, a, &frame(2, 1, None), at(0)), [1]);
        assert_eq!(parties(&mut bridge, a, &frame(0xff, 1, None), at(0)), [1, 2]);
        let counters = bridge.counters();
        assert_eq!((counters.flooded, counters.forwarded, counters.learned), (2, 2, 2));
        assert_eq!(counters.copies, 6);
    }

    #[test]
    fn an_address_that_moves_is_followed_and_one_that_is_silent_forgotten() {
        let (mut bridge, [a, b, c, _]) = four(BridgeConfig::default());
        let _ = send(&mut bridge, a, &frame(9, 1, None), at(0));
        let _ = send(&mut bridge, c, &frame(9, 1, None), at(1));
        assert_eq!(parties(&mut bridge, b, &frame(1, 2, None), at(2)), [2]);
        assert_eq!(bridge.counters().moved, 1);
        assert_eq!(parties(&mut bridge, b, &frame(1, 2, None), at(301)), [0, 2], "too long ago");
        let _ = send(&mut bridge, c, &frame(9, 1, None), at(302));
        bridge.leave(c);
        assert_eq!(parties(&mut bridge, b, &frame(1, 2, None), at(303)), [0], "it has left");
    }

    #[test]
    fn nothing_goes_back_to_where_it_came_from() {
        let (mut bridge, [a, ..]) = four(BridgeConfig::default());
        let _ = send(&mut bridge, a, &frame(9, 1, None), at(0));
        let _ = send(&mut bridge, a, &frame(9, 2, None), at(0));
        assert_eq!(parties(&mut bridge, a, &frame(1, 2, None), at(0)), [0usize; 0]);
        assert_eq!(bridge.counters().dropped_local, 1);
    }

    #[test]
    fn vlans_are_kept_apart_and_tags_come_and_go_with_them() {
        let mut bridge = Bridge::default();
        let five = bridge.join(VlanMode::Access(5));
        let trunk = bridge.join(VlanMode::Trunk { native: 1, tagged: vec![5, 6] });
        let _one = bridge.join(VlanMode::Access(1));
        // From the VLAN onto the trunk: a tag. Back: none.
        assert_eq!(send(&mut bridge, five, &frame(9, 1, None), at(0)), [(1, frame(9, 1, Some(5)))]);
        let tagged = frame(1, 9, Some(0x6005));
        assert_eq!(send(&mut bridge, trunk, &tagged, at(0)), [(0, frame(1, 9, None))]);
        // The native VLAN has no tag on either side.
        let bare = frame(7, 9, None);
        assert_eq!(send(&mut bridge, trunk, &bare, at(0)), [(2, bare.clone())]);
        // One address in two VLANs is two addresses.
        assert_eq!(bridge.lookup(5, [2, 0, 0, 0, 0, 9], at(0)), Some(trunk));
        assert_eq!(bridge.lookup(6, [2, 0, 0, 0, 0, 9], at(0)), None);
        // Whoever is not in a VLAN does not get in by writing it on a frame.
        assert_eq!(parties(&mut bridge, five, &frame(9, 1, Some(6)), at(0)), [0usize; 0]);
        assert_eq!(parties(&mut bridge, trunk, &frame(9, 1, Some(7)), at(0)), [0usize; 0]);
        assert_eq!(bridge.counters().dropped_vlan, 2);
        assert_eq!(parties(&mut bridge, trunk, &frame(9, 1, Some(6)), at(0)), [0usize; 0]);
        assert_eq!(bridge.counters().dropped_local, 1, "nobody else is in VLAN 6");
        // A tag of priority only becomes one of the VLAN.
        let urgent = frame(9, 1, Some(0xe000));
        assert_eq!(send(&mut bridge, five, &urgent, at(0)), [(1, frame(9, 1, Some(0xe005)))]);
    }

    #[test]
    fn what_is_no_frame_for_a_bridge_goes_nowhere() {
        let (mut bridge, [a, ..]) = four(BridgeConfig::default());
        let mut from_group = frame(2, 1, None);
        from_group[6] |= 1;
        let mut pause = frame(2, 1, None);
        pause[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, 1]);
        let short = frame(2, 1, None);
        for bytes in [&from_group[..], &pause, &short[..13], &short[..5], &[]] {
            assert_eq!(parties(&mut bridge, a, bytes, at(0)), [0usize; 0]);
        }
        assert_eq!(bridge.counters().dropped_invalid, 5);
        assert_eq!(bridge.counters().learned, 0);
    }

    #[test]
    fn a_full_table_learns_nobody_until_somebody_is_old() {
        let config = BridgeConfig { most_addresses: 3, ..BridgeConfig::default() };
        let (mut bridge, [a, b, ..]) = four(config);
        for from in 1..=4 {
            let _ = send(&mut bridge, a, &frame(0xff, from, None), at(u64::from(from)));
        }
        assert_eq!((bridge.counters().learned, bridge.counters().not_learned), (3, 1));
        assert_eq!(parties(&mut bridge, b, &frame(4, 9, None), at(5)), [0, 2], "to everybody");
        let _ = send(&mut bridge, a, &frame(0xff, 4, None), at(301));
        assert_eq!(parties(&mut bridge, b, &frame(4, 9, None), at(302)), [0]);
    }

    #[test]
    fn copies_for_which_there_is_no_room_are_counted() {
        let (mut bridge, [a, ..]) = four(BridgeConfig::default());
        bridge.forward(a, &frame(0xff, 1, None), at(0), |party, _| party == PartyId(2));
        assert_eq!((bridge.counters().copies, bridge.counters().dropped_congested), (2, 1));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_accounted_for(
            frames in proptest::collection::vec(
                (0..4usize, proptest::collection::vec(proptest::num::u8::ANY, 0..24), 0..4u8), 0..60,
            ),
        ) {
            let mut bridge = Bridge::new(BridgeConfig { most_addresses: 4, ..BridgeConfig::default() });
            for _ in 0..2 {
                bridge.join(VlanMode::Access(1));
                bridge.join(VlanMode::Trunk { native: 1, tagged: vec![2] });
            }
            for (number, (from, mut bytes, kind)) in frames.into_iter().enumerate() {
                if let Some(start) = bytes.get_mut(..16) {
                    start[..12].copy_from_slice(&[2, 0, 0, 0, 0, kind, 2, 0, 0, 0, 0, kind ^ 1]);
                    start[12..].copy_from_slice(&[0x81, 0, 0, kind]);
                }
                bridge.forward(PartyId(from), &bytes, at(number as u64), |party, _| {
                    assert_ne!(party.0, from);
                    true
                });
                proptest::prop_assert_eq!(bridge.counters().unaccounted(), 0);
            }
        }
    }
}
