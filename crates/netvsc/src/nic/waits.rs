//! What the host owes, and until when.

use alloc::vec::Vec;
use core::time::Duration;

use vmbus::Instant;

use super::types::Step;

#[derive(Debug)]
struct Wait {
    step: Step,
    /// `None` once it was reported.
    due: Option<Instant>,
}

/// Everything that is waited for. A handful at most.
#[derive(Debug)]
pub(super) struct Waits {
    list: Vec<Wait>,
    patience: Duration,
}

impl Waits {
    pub(super) fn new(patience: Duration) -> Self {
        Self { list: Vec::new(), patience }
    }

    /// Begins to wait, or anew.
    pub(super) fn begin(&mut self, step: Step, now: Instant) {
        self.end(step);
        self.list.push(Wait { step, due: Some(now + self.patience) });
    }

    /// It came, or nobody waits for it any more.
    pub(super) fn end(&mut self, step: Step) {
        self.list.retain(|wait| wait.step != step);
    }

    /// Whether it is waited for.
    pub(super) fn has(&self, step: Step) -> bool {
        self.list.iter().any(|wait| wait.step == step)
    }

    /// Nobody waits for anything any more.
    pub(super) fn clear(&mut self) {
        self.list.clear();
    }

    /// Whether it did not come in time.
    pub(super) fn is_overdue(&self, step: Step) -> bool {
        self.list.iter().any(|wait| wait.step == step && wait.due.is_none())
    }

    /// The next that is due by `now`. Each is reported once.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Step> {
        let late = |wait: &&mut Wait| wait.due.is_some_and(|due| due <= now);
        let wait = self.list.iter_mut().find(late)?;
        wait.due = None;
        Some(wait.step)
    }

    /// When the next is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.list.iter().filter_map(|wait| wait.due).min()
    }
}
