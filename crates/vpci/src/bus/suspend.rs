//! Turning a bus off for a while, and finding out afterwards what became of its functions.

use alloc::vec::Vec;

use vmbus::Instant;
use vmbus::channel::{Channel, Doorbell};
use vmbus::memory::SharedPages;

use super::{Event, Extras, Failure, MessageType, PciBus, Stage, Step};

/// A bus that is not on cannot be suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bus is not on, so it cannot be suspended")]
pub struct NotOn;

/// A bus that was not suspended cannot be resumed. The new channel comes back unused.
#[derive(Debug, thiserror::Error)]
#[error("the bus is not suspended, so it cannot be resumed")]
pub struct NotSuspended<C>(pub C);

impl<D: Doorbell> PciBus<D> {
    /// Turns the bus off for a while. [`Event::Suspended`] comes when the host has agreed; then the channel may be
    /// closed. The functions stay known, and none can be used until it has resumed. Requests that the host has not
    /// answered end at once, each with an [`Event::RequestFailed`] that says [`Failure::Suspended`]; an answer on its way is
    /// of no use.
    ///
    /// # Errors
    /// [`NotOn`].
    pub fn suspend(&mut self, now: Instant) -> Result<(), NotOn> {
        if self.stage != Stage::Running {
            return Err(NotOn);
        }
        // A snapshot that was read belongs to the channel that ends; the new one brings its own.
        self.apply_snapshot();
        self.fail_requests(Failure::Suspended);
        self.delete_interrupts(None);
        self.release_resources();
        self.children.suspend();
        self.forget_waits();
        self.stage = Stage::Suspending;
        self.request_bare(Step::D0Exit, MessageType::FDO_D0_EXIT, now);
        Ok(())
    }

    /// Goes on with a new channel of the same bus, and gives the old one back. The version is negotiated and the
    /// functions are listed again: [`Event::FunctionResumed`] comes for each that is the same as before, and one that
    /// differs in slot, vendor, device or serial number leaves and arrives.
    ///
    /// # Errors
    /// [`NotSuspended`] with the new channel.
    #[expect(clippy::result_large_err, reason = "the channel has to come back to its owner")]
    pub fn resume(
        &mut self,
        channel: Channel<SharedPages, D>,
        now: Instant,
    ) -> Result<Channel<SharedPages, D>, NotSuspended<Channel<SharedPages, D>>> {
        if self.stage != Stage::Suspended {
            return Err(NotSuspended(channel));
        }
        let old = core::mem::replace(&mut self.channel, channel);
        self.version = None;
        self.snapshot = Vec::new();
        self.snapshot_is_new = false;
        self.urgent = true;
        self.offer_version(0, now);
        Ok(old)
    }

    pub(super) fn suspended(&mut self) {
        self.stage = Stage::Suspended;
        self.relations = None;
        self.pending.clear();
        self.extras = Extras::default();
        self.outgoing.clear();
        self.events.push_back(Event::Suspended);
    }
}
