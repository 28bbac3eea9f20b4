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
        self.begin_for(step, self.patience, now);
    }

    /// The same, with a patience of its own.
    pub(super) fn begin_for(&mut self, step: Step, patience: Duration, now: Instant) {
        self.end(step);
        self.list.push(Wait { step, due: Some(now + patience) });
    }

    /// It came, or nobody waits for it any more.
    pub(super) fn end(&mut self, step: Step) {
        self.list.retain(|wait| wait.step != step);
    }

    /// Whether it is waited for.
    pub(super) fn has(&self, step: Step) -> bool {
        self.list.iter().any(|wait| wait.step == step)
    }

    /// Whether a step of this kind is waited for and not overdue yet.
    pub(super) fn is_running(&self, kind: impl Fn(Step) -> bool) -> bool {
        self.list.iter().any(|wait| kind(wait.step) && wait.due.is_some())
    }

    /// Nobody waits for anything any more but for steps of this kind.
    pub(super) fn keep(&mut self, kind: impl Fn(Step) -> bool) {
        self.list.retain(|wait| kind(wait.step));
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
