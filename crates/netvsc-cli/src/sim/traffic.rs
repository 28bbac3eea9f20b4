//! Frames that know what they are: whoever gets one can tell whose it is, which of its flow, and whether it was changed.

mod flow;
mod frame;

use netvsc::MacAddress;
use rand_core::Rng;
use rand_xoshiro::Xoshiro256PlusPlus;

use flow::Flow;
use frame::{Headers, Kind, Label};

/// The shortest frame, if the NIC takes it.
const SHORTEST: u64 = 60;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// The flows of a NIC in each direction. What is not IP takes the first queue; the others are spread over all of them.
const KINDS: [Kind; 7] =
    [Kind::Raw, Kind::Udp4, Kind::Tcp4, Kind::Udp6, Kind::Tcp6, Kind::Udp4, Kind::Tcp6];
/// Those to everybody.
const GROUP_KINDS: [Kind; 2] = [Kind::Raw, Kind::Udp4];

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

/// The frames of one NIC in one direction: several flows, each of which keeps its order.
#[derive(Debug)]
pub(super) struct Flows {
    nic: u16,
    way: Way,
    flows: Vec<Flow>,
    /// The longest frame that the NIC takes.
    longest: usize,
    /// The flow of the next frame, or of the last.
    at: usize,
    /// Frames that are to be sent and were not taken yet.
    wanted: u64,
    /// The next one, made already.
    held: Vec<u8>,
}

impl Flows {
    /// None has been sent yet. The ports are `ports` and some after it.
    pub(super) fn new(nic: usize, way: Way, [to, from]: [MacAddress; 2], ports: u16) -> Self {
        let nic = u16::try_from(nic).unwrap_or(u16::MAX);
        let [high, low] = nic.to_be_bytes();
        let (guest, peer) = ([high, low], [high | 0x80, low]);
        let (hosts, kinds) = match way {
            Way::Out => ([peer, guest], &KINDS[..]),
            Way::In => ([guest, peer], &KINDS[..]),
            Way::Group => ([[0xff, 0xff], peer], &GROUP_KINDS[..]),
        };
        let flows = kinds.iter().zip(0..).map(|(kind, at)| {
            let ports = [4791, 1024 | ports.wrapping_add(at)];
            Flow::new(Headers::new(*kind, [to, from], hosts, ports))
        });
        let (flows, longest) = (flows.collect(), ETHERNET + 1500);
        Self { nic, way, flows, longest, at: 0, wanted: 0, held: Vec::new() }
    }

    /// The NIC has this MTU: frames from here on are no longer.
    pub(super) fn set_mtu(&mut self, mtu: u32) {
        self.longest = ETHERNET + mtu as usize;
        if self.held.len() > self.longest {
            self.held.clear();
        }
    }

    /// The way of the frames has changed: those under way may overtake each other, those sent from here on may not.
    pub(super) fn way_changed(&mut self) {
        self.flows.iter_mut().for_each(Flow::way_changed);
    }

    /// What carried the frames is gone: those under way may never arrive.
    pub(super) fn carrier_gone(&mut self) {
        self.flows.iter_mut().for_each(Flow::carrier_gone);
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
            let (low, high) = (SHORTEST, (self.longest as u64).max(SHORTEST));
            let count = self.flows.len() as u64;
            let (at, len) = match self.way {
                // They draw nothing, so that a system with them is the one without them.
                Way::Group => (self.sent() % count, low),
                Way::Out | Way::In => {
                    let draw = random.next_u64();
                    // Every other frame is of the same flow as the last one, so that there is something to overtake.
                    let another = draw >> 63 != 0;
                    let at = if another { (draw >> 32) % count } else { self.at as u64 };
                    (at, low + draw % (high - low + 1))
                }
            };
            // An MTU as small as can be leaves no room for the label behind the headers of TCP over IPv6.
            let fits = |flow: &Flow| flow.headers.shortest() <= self.longest;
            let at = if self.flows.get(at as usize).is_some_and(fits) { at } else { 0 };
            self.at = at as usize;
            let flow = self.flows.get(self.at)?;
            let (nic, way) = (self.nic, self.way as u8);
            let label = Label { nic, way, flow: at as u8, number: flow.sent };
            label.write(&flow.headers, len as usize, &mut self.held);
        }
        Some(&self.held)
    }

    /// That frame was taken.
    pub(super) fn taken(&mut self) {
        self.held.clear();
        self.wanted -= 1;
        if let Some(flow) = self.flows.get_mut(self.at) {
            flow.sent += 1;
        }
    }

    /// A frame has arrived at the other end. None may be overtaken by another of its flow, unless the way has changed since it was
    /// sent.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn arrived(&mut self, frame: &[u8]) -> Result<(), String> {
        let (nic, way) = (self.nic, self.way);
        let way = match way {
            Way::Out => "to the peer",
            Way::In => "to the guest",
            Way::Group => "to everybody",
        };
        self.read(frame).map_err(|why| format!("nic{nic} {way}: {why}"))
    }

    fn read(&mut self, frame: &[u8]) -> Result<(), String> {
        let Some(label) = Label::of(frame) else {
            let len = frame.len();
            return Err(format!("a frame of {len} bytes arrived that is none of those sent"));
        };
        let Label { nic, way, flow: at, number } = label;
        if nic != self.nic || way != self.way as u8 {
            return Err(format!("a frame of nic{nic} arrived, direction {way}"));
        }
        let Some(flow) = self.flows.get_mut(usize::from(at)) else {
            return Err(format!("a frame of flow {at} arrived, which there is not"));
        };
        if !label.is_on(&flow.headers, frame) {
            return Err(format!("frame {number} of flow {at} arrived changed"));
        }
        flow.arrived(number).map_err(|why| format!("flow {at}: {why}"))
    }

    /// Whether a frame is one of those to everybody.
    pub(super) fn is_to_all(frame: &[u8]) -> bool {
        frame.starts_with(&MacAddress::BROADCAST.0)
    }

    /// Whether there is nothing more to send.
    pub(super) fn is_idle(&self) -> bool {
        self.wanted == 0
    }

    pub(super) fn sent(&self) -> u64 {
        self.flows.iter().map(|flow| flow.sent).sum()
    }

    /// Frames that were sent and have not arrived, but for those whose carrier is gone.
    pub(super) fn lacking(&self) -> u64 {
        self.flows.iter().map(Flow::lacking).sum()
    }

    pub(super) fn duplicates(&self) -> u64 {
        self.flows.iter().map(|flow| flow.duplicates).sum()
    }
}

#[cfg(test)]
mod tests;
