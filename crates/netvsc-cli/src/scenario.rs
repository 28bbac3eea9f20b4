//! What the host does to the VFs during a run, and when. Everything follows from the seed.

use std::time::Duration;

use hyperv_host::host::VfPlace;
use rand_core::Rng;
use rand_xoshiro::Xoshiro256PlusPlus;
use vmbus::time::earliest;
use vmbus::{Instant, Serial};

/// How a VF is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The guest is asked to let it go first.
    Eject,
    /// It vanishes.
    TearAway,
}

/// One step: the VF is taken away and comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When it begins.
    pub when: When,
    /// How the VF goes.
    pub removal: Removal,
    /// How long it is away.
    pub away: Duration,
    /// Whether it comes back with another serial.
    pub new_serial: bool,
    /// Whether the step waits until the guest uses the VF, or may meet it while it is still joining.
    pub settled: bool,
}

/// When a step begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Once this many thousandths of the NIC's transfer are done.
    Progress(u32),
    /// This long after the step before.
    After(Duration),
}

/// What the host is to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Take the VF away.
    Remove(Removal),
    /// Give it back with this serial.
    Add(Serial),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The next step has not begun; it may not before the given moment.
    Waiting { since: Instant },
    /// Ordered away.
    Leaving { new_serial: bool, away: Duration },
    /// Away until the given moment.
    Away { new_serial: bool, until: Instant },
}

/// What happens to the VF of one NIC.
#[derive(Clone, Debug)]
pub struct Script {
    steps: Vec<Step>,
    /// Whether the steps begin anew after the last.
    repeat: bool,
    next: usize,
    serial: Serial,
    phase: Phase,
}

fn between(random: &mut Xoshiro256PlusPlus, low: u64, high: u64) -> u64 {
    low + random.next_u64() % (high - low + 1)
}

fn millis(random: &mut Xoshiro256PlusPlus, low: u64, high: u64) -> Duration {
    Duration::from_micros(between(random, low * 1000, high * 1000))
}

impl Script {
    /// Nothing ever happens to the VF, whose serial is `serial`.
    #[must_use]
    pub fn quiet(serial: Serial) -> Self {
        Self {
            steps: Vec::new(),
            repeat: false,
            next: 0,
            serial,
            phase: Phase::Waiting { since: Instant::ZERO },
        }
    }

    /// The default run: the VF of every NIC is ejected and comes back; that of every even NIC is then torn away, that of
    /// every odd one comes back from a second eject with a new serial.
    #[must_use]
    pub fn default_run(nic: usize, serial: Serial, random: &mut Xoshiro256PlusPlus) -> Self {
        let mut step = |low, high, removal, new_serial| Step {
            when: When::Progress(between(random, low, high) as u32),
            removal,
            away: millis(random, 20, 250),
            new_serial,
            settled: between(random, 0, 3) != 0,
        };
        let steps = if nic.is_multiple_of(2) {
            vec![step(80, 200, Removal::Eject, false), step(400, 520, Removal::TearAway, false)]
        } else {
            vec![step(80, 200, Removal::Eject, false), step(400, 520, Removal::Eject, true)]
        };
        Self { steps, ..Self::quiet(serial) }
    }

    /// The VF comes and goes for ever: every `every` it leaves or returns, every third time torn away, every fourth
    /// time with a new serial.
    #[must_use]
    pub fn churn(every: Duration, serial: Serial) -> Self {
        let steps = (0..12)
            .map(|number| Step {
                when: When::After(every),
                removal: if number % 3 == 2 { Removal::TearAway } else { Removal::Eject },
                away: every,
                new_serial: number % 4 == 3,
                settled: true,
            })
            .collect();
        Self { steps, repeat: true, ..Self::quiet(serial) }
    }

    /// The same, with nothing that happens before `now`.
    #[must_use]
    pub fn starting(mut self, now: Instant) -> Self {
        self.phase = Phase::Waiting { since: now };
        self
    }

    /// The serial that the VF has, or had last.
    #[must_use]
    pub fn serial(&self) -> Serial {
        self.serial
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.next >= self.steps.len() && matches!(self.phase, Phase::Waiting { .. })
    }

    /// What the host is to do now. `progress` is in thousandths of the transfer.
    pub fn poll(&mut self, now: Instant, progress: u32, place: VfPlace) -> Option<Order> {
        match self.phase {
            Phase::Waiting { since } => {
                let step = *self.steps.get(self.next)?;
                let due = match step.when {
                    When::Progress(thousandths) => progress >= thousandths,
                    When::After(span) => now >= since + span,
                };
                let there = match place {
                    VfPlace::InUse => true,
                    VfPlace::Offered => !step.settled,
                    VfPlace::Absent | VfPlace::Moving => false,
                };
                if !(due && there) {
                    return None;
                }
                self.next += 1;
                if self.repeat {
                    self.next %= self.steps.len();
                }
                self.phase = Phase::Leaving { new_serial: step.new_serial, away: step.away };
                Some(Order::Remove(step.removal))
            }
            Phase::Leaving { new_serial, away } => {
                if place == VfPlace::Absent {
                    self.phase = Phase::Away { new_serial, until: now + away };
                }
                None
            }
            Phase::Away { new_serial, until } => {
                if now < until {
                    return None;
                }
                if new_serial {
                    // Far from the small ordinals, so that no other VF has it.
                    self.serial = Serial(self.serial.0.wrapping_add(1000));
                }
                self.phase = Phase::Waiting { since: now };
                Some(Order::Add(self.serial))
            }
        }
    }

    /// When the script wants to be polled again although nothing happened.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let at = match self.phase {
            Phase::Waiting { since } => match self.steps.get(self.next)?.when {
                When::After(span) => since + span,
                When::Progress(_) => return None,
            },
            Phase::Leaving { .. } => return None,
            Phase::Away { until, .. } => until,
        };
        (at > now).then_some(at)
    }
}

/// The earliest deadline of several scripts.
#[must_use]
pub fn deadline(scripts: &[Script], now: Instant) -> Option<Instant> {
    scripts.iter().fold(None, |at, script| earliest(at, script.deadline(now)))
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng;

    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_step_waits_for_progress_and_for_the_vf() {
        let step = Step {
            when: When::Progress(500),
            removal: Removal::Eject,
            away: Duration::from_millis(10),
            new_serial: true,
            settled: true,
        };
        let mut script = Script { steps: vec![step], ..Script::quiet(Serial(2)) };
        assert_eq!(script.poll(at(0), 499, VfPlace::InUse), None);
        assert_eq!(script.poll(at(1), 500, VfPlace::Offered), None);
        assert_eq!(script.poll(at(2), 500, VfPlace::InUse), Some(Order::Remove(Removal::Eject)));
        assert_eq!(script.poll(at(3), 500, VfPlace::Moving), None);
        assert_eq!(script.poll(at(4), 500, VfPlace::Absent), None);
        assert_eq!(script.deadline(at(4)), Some(at(14)));
        assert!(!script.finished());
        assert_eq!(script.poll(at(14), 500, VfPlace::Absent), Some(Order::Add(Serial(1002))));
        assert!(script.finished());
    }

    #[test]
    fn churn_never_ends_and_mixes_removals() {
        let mut script = Script::churn(Duration::from_millis(5), Serial(1));
        let (mut now, mut seen) = (at(0), Vec::new());
        for _ in 0..24 {
            now = now + Duration::from_millis(5);
            let Some(Order::Remove(removal)) = script.poll(now, 0, VfPlace::InUse) else {
                panic!()
            };
            seen.push(removal);
            script.poll(now, 0, VfPlace::Absent);
            now = now + Duration::from_millis(5);
            assert!(matches!(script.poll(now, 0, VfPlace::Absent), Some(Order::Add(_))));
        }
        assert_eq!(seen.iter().filter(|removal| **removal == Removal::TearAway).count(), 8);
        assert!(!script.finished());
    }

    #[test]
    fn the_default_run_has_all_three_kinds_of_return() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
        let first = Script::default_run(0, Serial(1), &mut random);
        let second = Script::default_run(1, Serial(2), &mut random);
        assert!(first.steps.iter().any(|step| step.removal == Removal::TearAway));
        assert!(second.steps.iter().any(|step| step.removal == Removal::Eject && step.new_serial));
        assert!(first.steps.iter().chain(&second.steps).any(|step| !step.new_serial));
    }
}
