//! The owner of a bus: uses its functions, and remembers what it was told.

use std::collections::{BTreeMap, BTreeSet};

use vmbus::Instant;
use vpci::bus::{RequestId, Step};
use vpci::interrupt::{Delivery, Interrupt};
use vpci::message::PowerState;
use vpci::{Event, FunctionId, InterruptWish, PciBus};

use crate::script::Script;

#[derive(Debug, Default)]
pub(super) struct Owner {
    /// Functions that have arrived and not left, and whether they were asked back.
    held: BTreeMap<FunctionId, bool>,
    /// Functions that arrived once, and those that left.
    gone: BTreeSet<FunctionId>,
    /// Requests that are not answered, and whether the owner heard that they are overdue.
    requests: BTreeMap<RequestId, FunctionId>,
    /// Those of them that are answered by interrupts first.
    assigning: BTreeSet<RequestId>,
    interrupts: Vec<(FunctionId, Interrupt)>,
    overdue: Vec<Step>,
    over: bool,
    ready: bool,
}

impl Owner {
    /// Takes all events; each must fit what was said before.
    pub(super) fn listen(&mut self, bus: &mut PciBus) {
        while let Some(event) = bus.poll_event() {
            self.event(event);
        }
        self.check(bus);
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Ready { .. } => self.ready = true,
            Event::FunctionArrived(function) => {
                let slot = function.slot();
                assert!(self.held.keys().all(|id| id.slot() != slot), "{slot:?} is taken");
                assert!(!self.gone.contains(&function.id), "a function comes twice");
                self.held.insert(function.id, false);
            }
            Event::FunctionLeft(function) => {
                assert!(self.held.remove(&function.id).is_some(), "{:?} leaves", function.id);
                self.gone.insert(function.id);
                self.requests.retain(|_, of| *of != function.id);
                self.interrupts.retain(|(of, _)| *of != function.id);
            }
            Event::FunctionFailed { function, .. } => {
                assert!(!self.held.contains_key(&function.id));
            }
            Event::FunctionResumed(function) => {
                assert!(self.held.contains_key(&function.id));
            }
            Event::EjectRequested { function } => {
                let asked = self.held.get_mut(&function).expect("a function that is there");
                assert!(!std::mem::replace(asked, true), "asked back twice");
            }
            Event::BlocksInvalidated { function, .. } | Event::StopNotice { function, .. } => {
                assert!(self.held.contains_key(&function));
            }
            Event::InterruptCreated { function, request, interrupt } => {
                if self.assigning.contains(&request) {
                    assert_eq!(self.requests.get(&request), Some(&function));
                } else {
                    self.answered(function, request);
                }
                self.interrupts.push((function, interrupt));
            }
            Event::BlockRead { function, request, .. }
            | Event::BlockWritten { function, request, .. }
            | Event::PowerChanged { function, request, .. }
            | Event::ResourcesAssigned { function, request }
            | Event::Resources { function, request, .. }
            | Event::FunctionReset { function, request }
            | Event::TdispAnswered { function, request }
            | Event::RequestFailed { function, request, .. } => self.answered(function, request),
            Event::Overdue { step, .. } => self.overdue.push(step),
            Event::Failed(_) | Event::Stopped => {
                assert!(self.held.is_empty(), "{event:?} before its functions have left");
                self.requests.clear();
                self.over = true;
            }
            Event::Suspended => assert!(self.requests.is_empty(), "{:?}", self.requests),
        }
    }

    fn answered(&mut self, function: FunctionId, request: RequestId) {
        assert_eq!(self.requests.remove(&request), Some(function), "{request:?}");
        assert!(self.held.contains_key(&function));
    }

    pub(super) fn resumed(&mut self) {
        self.requests.clear();
        self.interrupts.clear();
    }

    /// The bus says the same as its events did.
    pub(super) fn check(&self, bus: &PciBus) {
        let there: BTreeSet<_> = bus.functions().map(|function| function.id).collect();
        assert!(there.iter().eq(self.held.keys()), "{there:?} and {:?}", self.held);
        for function in bus.functions() {
            assert_eq!(bus.serial(function.slot()), Some(function.serial()));
            // Masks that make no sense are an error and nothing worse.
            if let Ok(bars) = function.bars() {
                assert!(bars.count() <= 6);
            }
        }
    }

    /// Every request without an answer was reported.
    pub(super) fn check_waits(&self) {
        for (request, function) in &self.requests {
            let of = |step: &Step| step.function() == Some(*function);
            assert!(self.overdue.iter().any(of), "{request:?} waits for ever");
        }
        assert!(self.ready || self.over || !self.overdue.is_empty(), "start-up waits for ever");
    }

    /// The end of it: everything has left.
    pub(super) fn check_over(&self, bus: &PciBus) {
        assert!(self.over && self.held.is_empty());
        assert_eq!((bus.functions().count(), bus.poll_deadline()), (0, None));
    }

    /// The function that the script means.
    fn pick(&self, script: &mut Script<'_>) -> Option<FunctionId> {
        let which = script.byte();
        let list =
            if which < 0xf0 { self.held.keys().collect() } else { Vec::from_iter(&self.gone) };
        let at = usize::from(which).checked_rem(list.len())?;
        list.get(at).map(|id| **id)
    }

    /// Asks the bus for something.
    pub(super) fn request(
        &mut self,
        what: u8,
        script: &mut Script<'_>,
        bus: &mut PciBus,
        now: Instant,
    ) {
        if what == 17 {
            if bus.suspend(now).is_ok() {
                // A host that still wants a function asks for it again after the resume.
                self.held.values_mut().for_each(|asked_back| *asked_back = false);
                self.interrupts.clear();
            }
            return;
        }
        let Some(function) = self.pick(script) else { return };
        let asked = match what {
            11 => {
                let wish = InterruptWish {
                    vector: 1,
                    vectors: 1 + u16::from(script.byte() & 3),
                    delivery: Delivery::Fixed,
                    processors: &[0],
                };
                bus.create_interrupt(function, &wish, now)
            }
            12 => bus.read_block(function, script.byte().into(), script.byte().into(), now),
            13 => bus.write_block(function, script.byte().into(), script.counted(), now),
            14 => match script.byte() {
                state @ 0..0x80 => bus.set_power(function, PowerState(state.into()), now),
                0x80..0xa0 => bus.query_resources(function, now),
                0xa0..0xc0 => bus.reset(function, now),
                0xc0..0xe0 => bus.tdisp(function, script.counted(), now),
                _ => {
                    let wish = InterruptWish {
                        vector: 1,
                        vectors: 1,
                        delivery: Delivery::Fixed,
                        processors: &[0],
                    };
                    let wishes = [wish, InterruptWish { vector: 2, ..wish }];
                    let asked = bus.assign_with_interrupts(function, &wishes, now);
                    self.assigning.extend(asked.as_ref().ok());
                    asked
                }
            },
            15 => {
                if let Some((of, interrupt)) = self.interrupts.pop() {
                    // A function that is asked back or suspended has none any more.
                    let _ = bus.delete_interrupt(of, interrupt);
                }
                return;
            }
            _ => {
                let asked_back = self.held.get(&function) == Some(&true);
                assert_eq!(bus.eject_complete(function).is_ok(), asked_back, "{function}");
                return;
            }
        };
        if let Ok(request) = asked {
            assert!(self.held.contains_key(&function), "a request for {function}, which left");
            assert!(self.requests.insert(request, function).is_none(), "an id twice");
        }
    }
}
