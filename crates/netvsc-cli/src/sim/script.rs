//! What a seed makes of a profile: a plan, and what happens when.

use std::time::Duration;

use hyperv_host::bus::{Fault, IdPolicy, OfferOrder};
use hyperv_host::host::Disassociation;
use hyperv_host::nic::{NicFault, Notice, SwitchAnswer};
use hyperv_host::vf::VfPace;
use netvsc::nvsp::Version;
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use vmbus::Serial;

use super::args::Profile;
use super::deed::{Act, Deed, Stranger};
use crate::args::VfLayout;
use crate::run::Plan;

/// Everything that a seed decides.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) plan: Plan,
    pub(super) acts: Vec<Act>,
    /// Pages of each ring of the NICs, if they are smaller than usual.
    pub(super) rings: Option<usize>,
    /// The MTU that NICs of the guest start with, if it is not the usual one.
    pub(super) mtu: Option<u32>,
    /// Nothing is mended in the end, since what this leads to is right as it is.
    pub(super) final_as_is: bool,
}

fn below(random: &mut Xoshiro256PlusPlus, end: u64) -> u64 {
    random.next_u64() % end.max(1)
}

fn micros(random: &mut Xoshiro256PlusPlus, low: u64, high: u64) -> Duration {
    Duration::from_micros(low + below(random, high - low + 1))
}

/// Channels of each NIC. They have a generator of their own: what else a seed gives does not depend on them.
fn queues(seed: u64, profile: Profile) -> u16 {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed ^ u64::from_le_bytes(*b"channels"));
    match (profile, below(&mut random, 4)) {
        (Profile::Scale, _) | (_, 0 | 1) => 1,
        (_, 2) => 2,
        _ => 2 + below(&mut random, 7) as u16,
    }
}

/// An MTU: the smallest, the usual one, one that VFs take here, one that only the synthetic path takes, the largest. Hosts make one
/// that is larger than 9,202 smaller.
fn any_mtu(random: &mut Xoshiro256PlusPlus) -> u32 {
    match below(random, 8) {
        0 => 68,
        1 => 68 + below(random, 1433) as u32,
        2 | 3 => 1500,
        4 | 5 => 1500 + below(random, 531) as u32,
        6 => 9000 + below(random, 217) as u32,
        _ => 2031 + below(random, 6970) as u32,
    }
}

impl Script {
    pub(super) fn new(seed: u64, profile: Profile) -> Self {
        let mut random = Plan::new(seed, 0, false).random;
        let (low, high) = match profile {
            Profile::Smoke
            | Profile::Flapping
            | Profile::Hostile
            | Profile::Hotplug
            | Profile::Clocks
            | Profile::Famine
            | Profile::Reset
            | Profile::Storm
            | Profile::Lossy
            | Profile::Operators
            | Profile::OldHosts => (1, 4),
            Profile::Kexec => (1, 3),
            Profile::AzureBoot => (1, 8),
            Profile::Servicing => (2, 8),
            Profile::Ports => (1, 3),
            Profile::Scale => (16, 64),
        };
        let nics = (low + below(&mut random, high - low + 1)) as usize;
        let layout = match (profile, below(&mut random, 2)) {
            (Profile::Ports, 0) => VfLayout::Shared,
            (Profile::Ports, _) => VfLayout::Mana,
            _ => VfLayout::Own,
        };
        let disks = below(&mut random, 3) as u8;
        let plan = Plan::new(seed, nics, false).with_devices(layout, disks);
        let plan = plan.with_queues(queues(seed, profile));
        let mut script =
            Self { plan, acts: Vec::new(), rings: None, mtu: None, final_as_is: false };
        match profile {
            Profile::Smoke | Profile::Ports | Profile::Scale => script.mix(&mut random, 24),
            Profile::AzureBoot => script.boot(&mut random),
            Profile::Servicing => script.servicing(&mut random),
            Profile::Flapping => script.flapping(&mut random),
            Profile::Hostile => script.hostile(&mut random),
            Profile::Hotplug => script.hotplug(&mut random),
            Profile::Clocks => script.clocks(&mut random),
            Profile::Kexec => script.kexec(&mut random),
            Profile::Famine => script.famine(&mut random),
            Profile::Reset => script.reset(&mut random),
            Profile::Storm => script.storm(&mut random),
            Profile::Lossy => script.lossy(&mut random),
            Profile::Operators => script.operators(&mut random),
            Profile::OldHosts => script.old_hosts(&mut random),
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

    /// Puts deeds between the acts that there are.
    fn strew(
        &mut self,
        random: &mut Xoshiro256PlusPlus,
        count: u64,
        deed: impl Fn(&Self, usize, &mut Xoshiro256PlusPlus) -> Deed,
    ) {
        for _ in 0..count {
            let at = 1 + below(random, self.acts.len() as u64) as usize;
            let nic = below(random, self.plan.nics.len() as u64) as usize;
            let after = micros(random, 0, 60_000);
            let deed = deed(self, nic, random);
            self.acts.insert(at.min(self.acts.len()), Act { after, nic, deed });
        }
    }

    /// NICs and functions come and go, some with what belongs to others, and the host's messages come late, twice, or as nonsense.
    fn hotplug(&mut self, random: &mut Xoshiro256PlusPlus) {
        self.plan.bus.order = OfferOrder::Shuffled(random.next_u64());
        if below(random, 2) == 0 {
            self.plan.bus.ids = IdPolicy::Lowest;
        }
        self.mix(random, 12);
        let count = 2 + below(random, 8);
        self.strew(random, count, |script, nic, random| match below(random, 14) {
            0 | 1 => Deed::Unplug,
            2 | 3 => Deed::Plug,
            4 => Deed::GiveOther(script.serial(nic, random)),
            5 => Deed::Stranger(Stranger::Twin, script.serial(nic, random)),
            6 => Deed::Stranger(Stranger::Other, script.serial(nic, random)),
            7 => Deed::Stranger(Stranger::Disk, script.serial(nic, random)),
            8 => Deed::StrangerGoes { asked: below(random, 2) == 0 },
            9 => Deed::Slow(micros(random, 0, 20_000)),
            10 => Deed::Repeat,
            11 | 12 => Deed::Promise(script.serial(nic, random)),
            _ => {
                const BENIGN: [Fault; 8] = [
                    Fault::TrailingGarbage,
                    Fault::UnknownType,
                    Fault::AnswersTwice,
                    Fault::Unsolicited,
                    Fault::OfferedTwice,
                    Fault::UnaskedSubChannel,
                    Fault::RescindedRepeatedly,
                    Fault::RescindedUnknown,
                ];
                Deed::Bus(BENIGN[below(random, BENIGN.len() as u64) as usize])
            }
        });
    }

    /// The clocks jump: that of the guest alone, or both because the machine stood still.
    fn clocks(&mut self, random: &mut Xoshiro256PlusPlus) {
        self.mix(random, 16);
        let count = 1 + below(random, 5);
        self.strew(random, count, |_, _, random| {
            let span = match below(random, 3) {
                0 => micros(random, 1, 900_000),
                1 => micros(random, 900_000, 8_000_000),
                _ => Duration::from_secs(60 + below(random, 7200)),
            };
            if below(random, 2) == 0 { Deed::Sleep(span) } else { Deed::Jump(span) }
        });
    }

    /// Another kernel takes over, with or without a farewell, and finds its VFs in place.
    fn kexec(&mut self, random: &mut Xoshiro256PlusPlus) {
        for nic in &mut self.plan.nics {
            nic.nic.policy.keep_path_over_close = below(random, 4) == 0;
        }
        self.mix(random, 10);
        let count = 1 + below(random, 3);
        self.strew(random, count, |_, _, random| Deed::Restart { farewell: below(random, 2) == 0 });
    }

    /// The guest gets no memory for a while.
    fn famine(&mut self, random: &mut Xoshiro256PlusPlus) {
        self.mix(random, 12);
        let count = 1 + below(random, 4);
        self.strew(random, count, |_, _, random| Deed::Starve(1 + below(random, 4) as usize));
        let count = 1 + below(random, 4);
        self.strew(random, count, |_, _, random| match below(random, 2) {
            0 => Deed::Unplug,
            _ => Deed::Plug,
        });
    }

    /// The guest resets its NICs, alone or all of them around a pause of the machine.
    fn reset(&mut self, random: &mut Xoshiro256PlusPlus) {
        self.mix(random, 14);
        let count = 1 + below(random, 6);
        self.strew(random, count, |_, _, random| match below(random, 6) {
            0 => Deed::Suspend(micros(random, 1, 20_000_000)),
            1 | 2 => Deed::Hibernate(micros(random, 1, 20_000_000)),
            _ => Deed::Renew,
        });
    }

    /// What the host says by itself gets lost; VFs stall, or send and do not confirm.
    fn lossy(&mut self, random: &mut Xoshiro256PlusPlus) {
        self.mix(random, 16);
        let count = 1 + below(random, 4);
        self.strew(random, count, |_, _, random| {
            const NOTICES: [Notice; 3] =
                [Notice::Association, Notice::Disassociation, Notice::Path];
            Deed::Lose(NOTICES[below(random, 3) as usize])
        });
        let count = 1 + below(random, 6);
        self.strew(random, count, |_, _, random| match below(random, 3) {
            0 => Deed::Pace(VfPace::Stalled),
            1 => Deed::Pace(VfPace::Unconfirmed),
            _ => Deed::Pace(VfPace::Prompt),
        });
        for _ in 0..below(random, 3) {
            let after = micros(random, 0, 3_000_000);
            self.add(after, 0, Deed::Rest);
            self.mix(random, 4);
        }
    }

    /// People in the guest change what they can, while the host does as it likes.
    fn operators(&mut self, random: &mut Xoshiro256PlusPlus) {
        self.mix(random, 16);
        let count = 2 + below(random, 8);
        self.strew(random, count, |_, _, random| match below(random, 14) {
            0..=4 => Deed::ChangeMtu(any_mtu(random)),
            5 | 6 => Deed::ChangeMac,
            7 | 8 => Deed::MovePort,
            9 => Deed::Renew,
            10 => Deed::Suspend(micros(random, 1, 20_000_000)),
            11 => Deed::Hibernate(micros(random, 1, 20_000_000)),
            12 => Deed::Link(false),
            _ => Deed::Link(true),
        });
    }

    /// Hosts of all ages, and MTUs of all sizes.
    fn old_hosts(&mut self, random: &mut Xoshiro256PlusPlus) {
        for nic in &mut self.plan.nics {
            let newest = Version::ALL[below(random, Version::ALL.len() as u64) as usize];
            let spoken = Version::ALL.into_iter().filter(|version| *version <= newest);
            nic.nic.policy.versions = spoken.collect();
        }
        self.mtu = Some(any_mtu(random));
        self.mix(random, 24);
    }

    /// Small rings, a slow host, and one that does not complete what was sent as it should.
    fn storm(&mut self, random: &mut Xoshiro256PlusPlus) {
        self.rings = Some(2 + below(random, 2) as usize);
        for nic in &mut self.plan.nics {
            let policy = &mut nic.nic.policy;
            policy.packets_per_poll = 1 + below(random, 16) as usize;
            policy.frames_per_packet = 1 + below(random, 8) as usize;
            policy.send_delay = micros(random, 0, 3_000);
        }
        self.mix(random, 16);
        let count = below(random, 6);
        self.strew(random, count, |_, _, random| match below(random, 4) {
            0 => Deed::Nic(NicFault::SendCompletedTwice),
            1 => Deed::Nic(NicFault::SendCompletedUnsent),
            2 => Deed::Nic(NicFault::SendReportedFailed),
            _ => Deed::Nic(NicFault::SendNeverCompleted),
        });
    }
}
