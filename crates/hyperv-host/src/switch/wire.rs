//! One direction of a link: frames travel at a rate, arrive after a latency, and wait in a bounded queue.

use std::collections::VecDeque;
use std::time::Duration;

use vmbus::Instant;

use super::Uncut;

/// How one direction of a link behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireConfig {
    /// Bits per second; `None` for a wire that takes no time to send on.
    pub rate: Option<u64>,
    /// Time from the last bit sent until the frame arrives.
    pub latency: Duration,
    /// Bytes that may be on the wire or wait at its end. One frame always fits an empty wire.
    pub capacity: usize,
    /// Arrivals are rounded up to a multiple of this, so that whoever waits for them wakes once for many frames.
    /// Zero for exact arrivals.
    pub tick: Duration,
}

impl Default for WireConfig {
    /// 10 Gbit/s, 20 µs, 1 MiB, arrivals every 50 µs.
    fn default() -> Self {
        Self {
            rate: Some(10_000_000_000),
            latency: Duration::from_micros(20),
            capacity: 1 << 20,
            tick: Duration::from_micros(50),
        }
    }
}

impl WireConfig {
    /// A wire on which a frame arrives in the moment it is sent.
    #[must_use]
    pub const fn instant() -> Self {
        Self { rate: None, latency: Duration::ZERO, capacity: 1 << 20, tick: Duration::ZERO }
    }
}

#[derive(Clone, Debug)]
struct Travelling {
    arrival: Instant,
    frame: Vec<u8>,
    uncut: Option<Uncut>,
}

/// Frames on their way, in order.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    config: WireConfig,
    queue: VecDeque<Travelling>,
    bytes: usize,
    /// When the last bit accepted so far has been sent.
    busy_until: Instant,
}

impl Wire {
    pub(super) fn new(config: WireConfig) -> Self {
        Self { config, queue: VecDeque::new(), bytes: 0, busy_until: Instant::ZERO }
    }

    /// Whether a frame of `len` bytes would be accepted now.
    pub(super) fn has_room(&self, len: usize) -> bool {
        self.queue.is_empty() || self.bytes.saturating_add(len) <= self.config.capacity
    }

    /// Sends `frame`. The caller has asked [`Self::has_room`].
    pub(super) fn push(&mut self, frame: Vec<u8>, uncut: Option<Uncut>, now: Instant) {
        let start = self.busy_until.max(now);
        self.busy_until = start + self.sending_time(frame.len());
        let mut arrival = round_up(self.busy_until + self.config.latency, self.config.tick);
        // A configuration changed under way never reorders.
        if let Some(last) = self.queue.back() {
            arrival = arrival.max(last.arrival);
        }
        self.bytes += frame.len();
        self.queue.push_back(Travelling { arrival, frame, uncut });
    }

    fn sending_time(&self, bytes: usize) -> Duration {
        let Some(rate) = self.config.rate else {
            return Duration::ZERO;
        };
        let nanos = (bytes as u128 * 8 * 1_000_000_000).div_ceil(u128::from(rate.max(1)));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The frame at the end of the wire, if one has arrived, and what is left to be done to it.
    pub(super) fn arrived(&self, now: Instant) -> Option<(&[u8], Option<Uncut>)> {
        let head = self.queue.front()?;
        (head.arrival <= now).then_some((head.frame.as_slice(), head.uncut))
    }

    /// Takes the frame at the end of the wire, if one has arrived.
    pub(super) fn take(&mut self, now: Instant) -> Option<(Vec<u8>, Option<Uncut>)> {
        if self.queue.front()?.arrival > now {
            return None;
        }
        let Travelling { frame, uncut, .. } = self.queue.pop_front()?;
        self.bytes -= frame.len();
        Some((frame, uncut))
    }

    /// When the next frame arrives that had not arrived at `seen`. A frame that waits at the end of the wire
    /// causes no deadline: it is up to the receiver to take it.
    pub(super) fn next_arrival(&self, seen: Instant) -> Option<Instant> {
        let head = self.queue.front()?.arrival;
        (head > seen).then_some(head)
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn configure(&mut self, config: WireConfig) {
        self.config = config;
    }
}

fn round_up(moment: Instant, tick: Duration) -> Instant {
    let tick = u64::try_from(tick.as_nanos()).unwrap_or(u64::MAX);
    if tick == 0 {
        return moment;
    }
    let ticks = moment.as_nanos().div_ceil(tick);
    Instant::from_nanos(ticks.saturating_mul(tick))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    #[test]
    fn a_frame_arrives_after_sending_time_and_latency() {
        let mut wire = Wire::new(WireConfig {
            rate: Some(1_000_000_000),
            latency: Duration::from_nanos(500),
            capacity: 10_000,
            tick: Duration::ZERO,
        });
        wire.push(vec![0; 125], None, at(0)); // 1 000 bits take 1 µs
        wire.push(vec![1; 125], None, at(0));
        assert!(wire.arrived(at(1_499)).is_none());
        assert_eq!(wire.next_arrival(at(0)), Some(at(1_500)));
        assert_eq!(wire.take(at(1_500)), Some((vec![0; 125], None)));
        assert_eq!(wire.next_arrival(at(1_500)), Some(at(2_500)), "one after the other");
        assert_eq!(wire.take(at(1_500)), None);
    }

    #[test]
    fn arrivals_are_rounded_up_to_the_tick() {
        let mut wire =
            Wire::new(WireConfig { tick: Duration::from_micros(50), ..WireConfig::default() });
        for _ in 0..10 {
            wire.push(vec![0; 1514], None, at(1));
        }
        assert_eq!(wire.next_arrival(at(1)), Some(at(50_000)));
        for _ in 0..10 {
            assert!(wire.take(at(50_000)).is_some());
        }
    }

    #[test]
    fn a_full_wire_has_no_room_and_an_empty_one_takes_any_frame() {
        let mut wire = Wire::new(WireConfig { capacity: 100, ..WireConfig::instant() });
        assert!(wire.has_room(5_000));
        wire.push(vec![0; 60], None, at(0));
        assert!(wire.has_room(40) && !wire.has_room(41));
        wire.take(at(0));
        assert!(wire.has_room(41));
        assert_eq!(wire.len(), 0);
    }

    #[test]
    fn a_waiting_frame_causes_no_deadline() {
        let mut wire = Wire::new(WireConfig::instant());
        wire.push(vec![0; 60], None, at(5));
        assert_eq!(wire.next_arrival(at(5)), None);
    }
}
