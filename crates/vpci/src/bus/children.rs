//! The functions of a bus: what the host listed, and how far each of them is.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::event::{Function, FunctionId};
use crate::message::{BARS, Description, MAX_FUNCTIONS};
use crate::slot::Slot;

/// How far a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Listed; nothing was done with it yet.
    Listed,
    /// Its requirements or the assignment of its resources are under way.
    Starting,
    /// The owner knows it.
    Arrived,
    /// The owner knows it and was asked to give it up.
    Ejecting,
    /// Given up. The host still lists it, but it is not to be used again.
    Ejected,
    /// The host did not let it be used.
    Failed,
    /// The owner knows it, but the bus is off or was just turned on again.
    Suspended,
    /// The owner knows it; after a resume, its requirements or the assignment of its resources are under way.
    Resuming,
}

impl State {
    /// Whether the owner has been told that it arrived, and not yet that it left.
    pub(super) const fn is_visible(self) -> bool {
        matches!(self, Self::Arrived | Self::Ejecting | Self::Suspended | Self::Resuming)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Child {
    pub(super) function: Function,
    pub(super) state: State,
}

/// What a request to give a function up means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eject {
    /// There is no such function, or it was asked back already.
    Ignore,
    /// The owner has to give it up.
    Ask(FunctionId),
    /// Nobody uses it: it can be answered at once.
    Answer,
}

#[derive(Debug, Default)]
pub(super) struct Children {
    map: BTreeMap<Slot, Child>,
    /// Number of functions seen so far.
    generation: u64,
    /// There may be functions that were listed and not begun with, so that it is worth looking for them.
    pub(super) unstarted: bool,
}

impl Children {
    pub(super) fn get(&self, slot: Slot) -> Option<&Child> {
        self.map.get(&slot)
    }

    /// The child that `id` names, if it is still there.
    pub(super) fn by_id(&mut self, id: FunctionId) -> Option<&mut Child> {
        self.map.get_mut(&id.slot).filter(|child| child.function.id == id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Child> {
        self.map.values()
    }

    /// Makes the functions those of a snapshot, and calls `left` for each that the owner knows and that is not listed.
    pub(super) fn apply(&mut self, snapshot: &[Description], mut left: impl FnMut(Function)) {
        let listed = Index::new(snapshot);
        let mut missing = Vec::new();
        for child in self.map.values() {
            if !listed.has(&child.function) {
                missing.push(child.function.id.slot);
            }
        }
        for child in missing.iter().filter_map(|slot| self.map.remove(slot)) {
            if child.state.is_visible() {
                left(child.function);
            }
        }
        for description in snapshot {
            let slot = description.slot;
            if self.map.contains_key(&slot) {
                continue;
            }
            self.generation += 1;
            let id = FunctionId { slot, generation: self.generation };
            let function = Function { id, description: *description, bar_masks: [0; BARS] };
            self.map.insert(slot, Child { function, state: State::Listed });
            self.unstarted = true;
        }
    }

    /// Takes from a snapshot that is about to be overtaken the one thing that still matters: a function that was given
    /// up and that the snapshot no longer lists is gone, so that the same one may come again.
    pub(super) fn pass_over(&mut self, snapshot: &[Description]) {
        if self.map.values().any(|child| child.state == State::Ejected) {
            let listed = Index::new(snapshot);
            self.map
                .retain(|_, child| child.state != State::Ejected || listed.has(&child.function));
        }
    }

    /// The host asks for a function.
    pub(super) fn eject(&mut self, slot: Slot) -> Eject {
        let Some(child) = self.map.get_mut(&slot) else { return Eject::Ignore };
        match child.state {
            State::Arrived | State::Suspended | State::Resuming => {
                child.state = State::Ejecting;
                Eject::Ask(child.function.id)
            }
            State::Listed | State::Starting | State::Failed => {
                child.state = State::Ejected;
                Eject::Answer
            }
            State::Ejecting | State::Ejected => Eject::Ignore,
        }
    }

    /// Whether the function that `id` names is still there.
    pub(super) fn has(&self, id: FunctionId) -> bool {
        self.get(id.slot).is_some_and(|child| child.function.id == id)
    }

    /// The bus is turned off for a while. What the owner knows is kept, what it gave up is forgotten: a host that still
    /// lists it on a new channel means that it may be used.
    pub(super) fn suspend(&mut self) {
        self.map.retain(|_, child| child.state != State::Ejected);
        self.unstarted = true;
        for child in self.map.values_mut() {
            child.state = if child.state.is_visible() { State::Suspended } else { State::Listed };
        }
    }

    /// Takes all functions away, and calls `left` for each that the owner knows.
    pub(super) fn clear(&mut self, left: impl FnMut(Function)) {
        self.apply(&[], left);
    }
}

/// A snapshot by slot, so that looking for a function does not go through all of it.
struct Index<'a> {
    snapshot: &'a [Description],
    /// By slot: place in the snapshot, counted from 1; 0 where the slot is empty.
    places: [u16; MAX_FUNCTIONS],
}

impl<'a> Index<'a> {
    fn new(snapshot: &'a [Description]) -> Self {
        let mut places = [0; MAX_FUNCTIONS];
        for (place, description) in (1..).zip(snapshot) {
            if let Some(at) = places.get_mut(description.slot.to_wire() as usize) {
                *at = place;
            }
        }
        Self { snapshot, places }
    }

    /// Whether the snapshot lists this function.
    fn has(&self, function: &Function) -> bool {
        let place = self.places.get(function.slot().to_wire() as usize).copied().unwrap_or(0);
        let listed = usize::from(place).checked_sub(1).and_then(|at| self.snapshot.get(at));
        listed.is_some_and(|listed| listed.same_function(&function.description))
    }
}
