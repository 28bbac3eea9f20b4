//! Virtual functions: which one belongs to the NIC, and which way frames go (PROTOCOL §8).

use alloc::vec::Vec;

use vmbus::channel::Doorbell;
use vmbus::{Instant, Serial};

use super::link::Sent;
use super::{Nic, NicError, NicEvent, Stage, Step};
use crate::nvsp::{DataPath, GuestMessage};
use crate::port::Path;

/// Switches that are remembered while they are under way, all but the last overdue.
const MOST_UNDER_WAY: usize = 4;

/// A switch that the host has not completed.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    id: u64,
    path: Path,
    /// The host has let it wait for too long: others may be sent behind it.
    overdue: bool,
}

#[derive(Debug)]
pub(super) struct Switching {
    /// The newest wish that was not sent yet.
    wish: Option<Path>,
    under_way: Vec<UnderWay>,
    /// What the host last said of its virtual function.
    association: Option<(bool, Serial)>,
}

impl Switching {
    pub(super) fn new() -> Self {
        Self { wish: None, under_way: Vec::with_capacity(MOST_UNDER_WAY), association: None }
    }

    /// Whether nothing is wished for or under way.
    pub(super) fn is_idle(&self) -> bool {
        self.wish.is_none() && self.under_way.is_empty()
    }
}

impl<D: Doorbell> Nic<D> {
    /// Asks the host to send frames this way. The newest wish wins; it waits for room in the ring, for the end of start-up
    /// and for the switch before it. [`NicEvent::SwitchCompleted`] follows.
    pub fn switch_data_path(&mut self, path: Path, now: Instant) {
        self.now = now.max(self.now);
        if matches!(self.stage, Stage::Failed(_) | Stage::Stopped | Stage::Stopping(_)) {
            return;
        }
        self.wish_for(path);
        if let Err(error) = self.pump() {
            self.fail(error);
        }
    }

    pub(super) fn wish_for(&mut self, path: Path) {
        let last = self.switching.under_way.last().map(|last| last.path);
        self.switching.wish = (last != Some(path)).then_some(path);
    }

    /// Wishes for the synthetic path if the host is on the other, or will be when it has done what it was asked last.
    pub(super) fn wish_for_way_back(&mut self) {
        let last = self.switching.under_way.last().map_or(self.info.path, |last| last.path);
        self.switching.wish = (last == Path::Vf).then_some(Path::Synthetic);
    }

    /// The host has let what was sent of it wait for too long.
    pub(super) fn switch_overdue(&mut self, path: Path) {
        let same = self.switching.under_way.iter_mut().filter(|switch| switch.path == path);
        same.for_each(|switch| switch.overdue = true);
    }

    pub(super) fn wait_for_switch(&mut self, path: Path) {
        self.waits.begin_for(Step::Switch(path), self.config.switch_deadline, self.now);
    }

    /// Sends the wish, if there is one and its time has come.
    pub(super) fn send_switch(&mut self) -> Result<Sent, NicError> {
        let Some(path) = self.switching.wish else { return Ok(Sent::Yes) };
        if !matches!(self.stage, Stage::Ready | Stage::Stopping(_)) {
            return Ok(Sent::Yes);
        }
        // One at a time, unless the host has let the one before wait for too long.
        if !self.switching.under_way.iter().all(|switch| switch.overdue) {
            return Ok(Sent::Yes);
        }
        let message = GuestMessage::SwitchDataPath(DataPath::from(path)).encode(self.version());
        let id = self.link.next_id();
        let packet = vmbus::packet::Outgoing::InBand {
            transaction_id: id,
            completion: true,
            payload: &message,
        };
        let sent = self.link.stage(&packet)?;
        if sent != Sent::Yes && seeded!("drop-switch-when-full") {
            self.switching.wish = None;
            return Ok(Sent::Yes);
        }
        if sent == Sent::Yes {
            self.switching.wish = None;
            if self.switching.under_way.len() >= MOST_UNDER_WAY {
                // All are overdue. Should the host complete it after all, nobody misses it: ids are not used again.
                self.switching.under_way.remove(0);
            }
            self.switching.under_way.push(UnderWay { id, path, overdue: false });
            self.wait_for_switch(path);
            self.stats.switches += 1;
        }
        Ok(sent)
    }

    /// A completion. True if it is that of a switch, which only its id tells: it says nothing at all.
    pub(super) fn handle_switch_completion(&mut self, id: u64) -> bool {
        let under_way = &mut self.switching.under_way;
        let Some(place) = under_way.iter().position(|switch| switch.id == id) else {
            return false;
        };
        let UnderWay { path, .. } = under_way.remove(place);
        // A host answers in order: what it was asked before this and has not answered is lost, and may be asked again.
        under_way.drain(..place);
        for path in [Path::Synthetic, Path::Vf] {
            if !under_way.iter().any(|switch| switch.path == path) {
                self.stats.late += u64::from(self.waits.is_overdue(Step::Switch(path)));
                self.waits.end(Step::Switch(path));
            }
        }
        // The same was asked for again, with the other path in between: only the newest answer tells where the host is.
        if !under_way.iter().any(|switch| switch.path == path) {
            self.info.path = path;
            self.events.push_back(NicEvent::SwitchCompleted { path });
        }
        true
    }

    /// The host says which way frames go. Nothing is sent in answer.
    pub(super) fn handle_switch_notice(&mut self, path: DataPath) {
        let Some(path) = path.path() else {
            self.stats.bad.path += 1;
            return;
        };
        self.stats.host_switches += 1;
        self.info.path = path;
        self.events.push_back(NicEvent::HostSwitched { path });
    }

    /// The host says which virtual function belongs to the NIC. The same again is told, too: the function may have gone in between,
    /// and that word been lost. That there is none is told once.
    pub(super) fn handle_association(&mut self, allocated: bool, serial: Serial) {
        if !self.config.wants_vf() {
            self.stats.associations_ignored += 1;
            return;
        }
        self.stats.associations += 1;
        let last = self.switching.association.replace((allocated, serial));
        self.info.association = allocated.then_some(serial);
        match (allocated, last) {
            (true, _) => self.events.push_back(NicEvent::Associated { serial }),
            // Whatever number it names: the one that belonged to the NIC does no longer.
            (false, Some((true, serial))) => {
                self.events.push_back(NicEvent::Disassociated { serial });
            }
            (false, _) => {}
        }
    }
}
