//! What a seed makes of a profile: a plan, and what the host does when.

use std::fmt;
use std::time::Duration;

use hyperv_host::host::Disassociation;
use hyperv_host::nic::SwitchAnswer;
use rand_core::Rng;
use rand_xoshiro::Xoshiro256PlusPlus;
use vmbus::Serial;

use super::args::Profile;
use crate::args::VfLayout;
use crate::run::Plan;

/// Something that the host does to a NIC or its VF. What is not possible at its moment is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// It asks for the VF back.
    Eject(Disassociation),
    /// It tears the VF away.
    TearAway(Disassociation),
    /// It gives a VF with this serial.
    Give(Serial),
    /// The VF's link goes up or down.
    Link(bool),
    /// It tells the guest, out of turn, that the path is the synthetic one.
    Notice,
    /// Nothing; frames flow.
    Rest,
}

/// What is done to whom, and how long after the deed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Act {
    pub(super) after: Duration,
    pub(super) nic: usize,
    pub(super) deed: Deed,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { after, nic, deed } = self;
        write!(f, "{after:>9.3?} later, nic{nic}: ")?;
        match deed {
            Deed::Eject(_) => f.write_str("the host asks for the VF back"),
            Deed::TearAway(_) => f.write_str("the host tears the VF away"),
            Deed::Give(serial) => write!(f, "the host gives a VF with serial {serial}"),
            Deed::Link(true) => f.write_str("the VF's link goes up"),
            Deed::Link(false) => f.write_str("the VF's link goes down"),
            Deed::Notice => f.write_str("the host says that it has left the VF"),
            Deed::Rest => f.write_str("nothing, frames flow"),
        }
    }
}

/// Everything that a seed decides.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) plan: Plan,
    pub(super) acts: Vec<Act>,
}

fn below(random: &mut Xoshiro256PlusPlus, end: u64) -> u64 {
    random.next_u64() % end.max(1)
}

fn micros(random: &mut Xoshiro256PlusPlus, low: u64, high: u64) -> Duration {
    Duration::from_micros(low + below(random, high - low + 1))
}

impl Script {
    pub(super) fn new(seed: u64, profile: Profile) -> Self {
        let mut random = Plan::new(seed, 0, false).random;
        let (low, high) = match profile {
            Profile::Smoke | Profile::Flapping | Profile::Hostile => (1, 4),
            Profile::AzureBoot => (1, 8),
            Profile::Servicing => (2, 8),
            Profile::Ports => (1, 3),
            Profile::Scale => (16, 32),
        };
        let nics = (low + below(&mut random, high - low + 1)) as usize;
        let layout = match (profile, below(&mut random, 2)) {
            (Profile::Ports, 0) => VfLayout::Shared,
            (Profile::Ports, _) => VfLayout::Mana,
            _ => VfLayout::Own,
        };
        let disks = below(&mut random, 3) as u8;
        let plan = Plan::new(seed, nics, false).with_devices(layout, disks);
        let mut script = Self { plan, acts: Vec::new() };
        match profile {
            Profile::Smoke | Profile::Ports | Profile::Scale => script.mix(&mut random, 24),
            Profile::AzureBoot => script.boot(&mut random),
            Profile::Servicing => script.servicing(&mut random),
            Profile::Flapping => script.flapping(&mut random),
            Profile::Hostile => script.hostile(&mut random),
        }
        script
    }

    fn add(&mut self, after: Duration, nic: usize, deed: Deed) {
        self.acts.push(Act { after, nic, deed });
    }

    fn disassociation(random: &mut Xoshiro256PlusPlus) -> Disassociation {
        match below(random, 3) {
            0 => Disassociation::First,
            _ => Disassociation::After(micros(random, 0, 100_000)),
        }
    }

    /// The serial that the VF had first, the next one, or one that another NIC's VF has.
    fn serial(&self, nic: usize, random: &mut Xoshiro256PlusPlus) -> Serial {
        let first = self.plan.nics[nic].vf.serial;
        match below(random, 4) {
            0 => Serial(first.0.wrapping_add(1000)),
            1 => self.plan.nics[below(random, self.plan.nics.len() as u64) as usize].vf.serial,
            2 => Serial(0),
            _ => first,
        }
    }

    fn any_deed(&self, nic: usize, random: &mut Xoshiro256PlusPlus) -> Deed {
        match below(random, 10) {
            0 | 1 => Deed::Eject(Self::disassociation(random)),
            2 => Deed::TearAway(Self::disassociation(random)),
            3..=5 => Deed::Give(self.serial(nic, random)),
            6 => Deed::Link(false),
            7 | 8 => Deed::Link(true),
            _ => Deed::Rest,
        }
    }

    fn mix(&mut self, random: &mut Xoshiro256PlusPlus, most: u64) {
        self.add(micros(random, 0, 1_500_000), 0, Deed::Rest);
        for _ in 0..below(random, most) + 1 {
            let nic = below(random, self.plan.nics.len() as u64) as usize;
            let after = match below(random, 4) {
                0 => micros(random, 0, 300),
                1 => micros(random, 0, 10_000),
                _ => micros(random, 1_000, 200_000),
            };
            let deed = self.any_deed(nic, random);
            self.add(after, nic, deed);
        }
    }

    /// Everything is slow and comes in any order.
    fn boot(&mut self, random: &mut Xoshiro256PlusPlus) {
        for nic in &mut self.plan.nics {
            let policy = &mut nic.nic.policy;
            policy.association_delay = micros(random, 0, 5_000_000);
            policy.offer_delay = micros(random, 0, 5_000_000);
            policy.rndis_delay = micros(random, 0, 300_000);
            policy.switch_answer = SwitchAnswer::Complete(micros(random, 0, 2_000_000));
        }
        self.add(micros(random, 0, 6_000_000), 0, Deed::Rest);
    }

    /// All VFs go within a short time, and come back with the serials of the others.
    fn servicing(&mut self, random: &mut Xoshiro256PlusPlus) {
        let nics = self.plan.nics.len();
        self.add(micros(random, 200_000, 1_500_000), 0, Deed::Rest);
        for round in 1..=below(random, 3) as usize + 1 {
            let polite = below(random, 2) == 0;
            for nic in 0..nics {
                let then = Self::disassociation(random);
                let deed = if polite { Deed::Eject(then) } else { Deed::TearAway(then) };
                self.add(micros(random, 0, 3_000), nic, deed);
            }
            self.add(micros(random, 150_000, 900_000), 0, Deed::Rest);
            for nic in 0..nics {
                let serial = self.plan.nics[(nic + round) % nics].vf.serial;
                self.add(micros(random, 0, 3_000), nic, Deed::Give(serial));
            }
            self.add(micros(random, 0, 600_000), 0, Deed::Rest);
        }
    }

    /// Links and VFs come and go all the time.
    fn flapping(&mut self, random: &mut Xoshiro256PlusPlus) {
        self.add(micros(random, 0, 500_000), 0, Deed::Rest);
        for _ in 0..30 + below(random, 60) {
            let nic = below(random, self.plan.nics.len() as u64) as usize;
            let after = micros(random, 0, 12_000);
            let deed = match below(random, 6) {
                0 | 1 => Deed::Link(false),
                2 | 3 => Deed::Link(true),
                _ => self.any_deed(nic, random),
            };
            self.add(after, nic, deed);
        }
    }

    /// Switches are answered in every way but the right one, and the host speaks out of turn.
    fn hostile(&mut self, random: &mut Xoshiro256PlusPlus) {
        for nic in &mut self.plan.nics {
            for _ in 0..below(random, 5) {
                let span = micros(random, 0, 50_000);
                nic.nic.policy.switch_script.push_back(match below(random, 6) {
                    0 => SwitchAnswer::Fail(span),
                    1 => SwitchAnswer::Silent(span),
                    2 => SwitchAnswer::Lose,
                    3 => SwitchAnswer::CompleteTwice(span),
                    4 => SwitchAnswer::Complete(micros(random, 0, 8_000_000)),
                    _ => SwitchAnswer::Complete(span),
                });
            }
        }
        self.mix(random, 16);
        for _ in 0..below(random, 4) {
            let at = below(random, self.acts.len() as u64) as usize;
            let nic = below(random, self.plan.nics.len() as u64) as usize;
            let after = micros(random, 0, 1_000_000);
            self.acts.insert(at, Act { after, nic, deed: Deed::Notice });
        }
    }
}
