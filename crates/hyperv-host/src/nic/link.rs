//! What the guest is told of the link: one indication at a time, never two too close together.

use std::time::Duration;

use vmbus::Instant;

/// The link as it is, and as the guest was told.
#[derive(Debug)]
pub(super) struct LinkState {
    up: bool,
    told: bool,
    /// The link is as the guest was told, and has been otherwise in between: the guest is to notice.
    bounce: bool,
    /// Moment from which on the next indication may go out.
    free_at: Instant,
}

impl LinkState {
    /// For a guest that asks for itself first.
    pub(super) const fn new(up: bool) -> Self {
        Self { up, told: up, bounce: false, free_at: Instant::ZERO }
    }

    pub(super) fn set(&mut self, up: bool) {
        // The same state again is a bounce, too: whoever sets it says that something happened.
        self.bounce |= up == self.told;
        self.up = up;
    }

    /// The guest asks for itself at start-up: nothing is news to it if it is told this then.
    pub(super) fn assume(&mut self, told: bool) {
        self.told = told;
        self.bounce = false;
    }

    fn has_news(&self) -> bool {
        self.up != self.told || self.bounce
    }

    /// The state to indicate now, if one is due. `spacing`: least time until the next.
    pub(super) fn poll(&mut self, now: Instant, spacing: Duration) -> Option<bool> {
        if !self.has_news() || self.free_at > now {
            return None;
        }
        if self.up == self.told {
            self.told = !self.up;
        } else {
            self.told = self.up;
        }
        self.bounce = false;
        self.free_at = now + spacing;
        Some(self.told)
    }

    pub(super) fn poll_deadline(&self) -> Option<Instant> {
        self.has_news().then_some(self.free_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACING: Duration = Duration::from_secs(5);

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(100 + seconds)
    }

    #[test]
    fn a_change_is_told_once() {
        let mut link = LinkState::new(true);
        assert_eq!((link.poll(at(0), SPACING), link.poll_deadline()), (None, None));
        link.set(false);
        assert_eq!(link.poll(at(0), SPACING), Some(false));
        assert_eq!((link.poll(at(100), SPACING), link.poll_deadline()), (None, None));
    }

    // HISTORY 66: fast toggles are spaced by five seconds.
    #[test]
    fn toggles_are_spaced_and_end_in_the_last_state() {
        let mut link = LinkState::new(true);
        link.set(false);
        assert_eq!(link.poll(at(0), SPACING), Some(false));
        link.set(true);
        assert_eq!((link.poll(at(1), SPACING), link.poll_deadline()), (None, Some(at(5))));
        assert_eq!(link.poll(at(5), SPACING), Some(true));
        assert_eq!(link.poll_deadline(), None);
    }

    #[test]
    fn a_toggle_that_nobody_saw_is_a_bounce() {
        let mut link = LinkState::new(true);
        link.set(false);
        link.set(true);
        assert_eq!(link.poll(at(0), SPACING), Some(false));
        assert_eq!(link.poll(at(4), SPACING), None);
        assert_eq!(link.poll(at(5), SPACING), Some(true));
        link.set(true);
        assert_eq!(link.poll(at(10), SPACING), Some(false), "the same state again");
        assert_eq!(link.poll(at(15), SPACING), Some(true));
        assert_eq!(link.poll_deadline(), None);
    }
}
