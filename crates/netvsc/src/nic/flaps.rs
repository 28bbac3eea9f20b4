//! The link as it is told: not more often than once in two seconds (PROTOCOL §9.6).
//!
//! Whoever hears that a link went down begins to look for another way, so a link that flaps is told slowly. That it went
//! down and came back in between is told all the same: behind the same link there may be another network.

use core::time::Duration;

use vmbus::Instant;

/// Least time between two changes that are told.
pub(super) const SPACING: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Flaps {
    /// As it was told last.
    told: bool,
    /// As it is.
    up: bool,
    /// It was otherwise than told in between.
    bounced: bool,
    /// The next change is not told before.
    from: Instant,
}

impl Flaps {
    pub(super) fn new(up: bool) -> Self {
        Self { told: up, up, bounced: false, from: Instant::ZERO }
    }

    /// The link has changed.
    pub(super) fn changed(&mut self, up: bool) {
        self.bounced |= up != self.told;
        self.up = up;
    }

    /// What is to be told now.
    pub(super) fn poll(&mut self, now: Instant) -> Option<bool> {
        if !self.is_due() || now < self.from {
            return None;
        }
        self.told = !self.told;
        self.bounced = self.up != self.told;
        self.from = now + SPACING;
        Some(self.told)
    }

    fn is_due(&self) -> bool {
        self.up != self.told || self.bounced
    }

    /// When there is something to be told.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.is_due().then_some(self.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_change_is_told_at_once_and_the_next_two_seconds_later() {
        let mut flaps = Flaps::new(true);
        assert_eq!((flaps.poll(at(5)), flaps.deadline()), (None, None));
        flaps.changed(false);
        assert_eq!(flaps.poll(at(5)), Some(false));
        flaps.changed(true);
        assert_eq!((flaps.poll(at(6)), flaps.deadline()), (None, Some(at(7))));
        assert_eq!(flaps.poll(at(7)), Some(true));
        assert_eq!((flaps.poll(at(20)), flaps.deadline()), (None, None));
    }

    #[test]
    fn a_bounce_is_told_however_short_it_was() {
        let mut flaps = Flaps::new(true);
        flaps.changed(false);
        flaps.changed(true);
        assert_eq!(flaps.poll(at(1)), Some(false));
        assert_eq!(flaps.poll(at(1)), None);
        assert_eq!(flaps.poll(at(3)), Some(true));
        assert_eq!(flaps.deadline(), None);
    }

    #[test]
    fn many_bounces_are_told_as_one() {
        let mut flaps = Flaps::new(false);
        flaps.changed(true);
        assert_eq!(flaps.poll(at(1)), Some(true));
        for _ in 0..100 {
            flaps.changed(false);
            flaps.changed(true);
        }
        assert_eq!(flaps.poll(at(3)), Some(false));
        assert_eq!(flaps.poll(at(5)), Some(true));
        assert_eq!(flaps.deadline(), None);
    }
}
