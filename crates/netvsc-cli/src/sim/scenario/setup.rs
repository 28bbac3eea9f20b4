//! How the system of a scenario is set up.

use std::time::Duration;

use hyperv_host::host::Disassociation;
use hyperv_host::nic::SwitchAnswer;
use netvsc::nvsp::Version;
use vmbus::Serial;

use crate::args::VfLayout;
use crate::run::Plan;

/// The seed of all scenarios: what a scenario is about does not depend on it.
const SEED: u64 = 2016;

/// A change of the system. Times are in milliseconds. Without any there is one NIC with a VF of serial 1, at a host that answers
/// soon; an emulated card with the MAC of the first NIC is always there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Set {
    /// So many NICs, with serials 1, 2, 3 ... Comes first.
    Nics(usize),
    /// How they get their VFs. Comes second.
    Layout(VfLayout),
    /// So many disks with the serials of the VFs.
    Disks(u8),
    /// The serial of a NIC's VF.
    Serial(usize, u32),
    /// The first NIC has the MAC of the second.
    SameMac(usize, usize),
    /// How long after its start a NIC hears of its VF.
    Association(usize, u64),
    /// How long after that the VF is offered.
    Offer(usize, u64),
    /// All VFs are offered at once, before they are heard of.
    OfferFirst,
    /// How long the switches of all NICs take.
    Switch(u64),
    /// How the first switches of the first NIC are answered.
    Answers(&'static [SwitchAnswer]),
    /// How long answers of a NIC's start take.
    Rndis(usize, u64),
    /// How long every message of the host's bus takes.
    Bus(u64),
    /// How long every answer of a PCI bus takes.
    Pci(u64),
    /// The host refuses to turn a PCI bus on, so many times.
    RefuseD0(u32),
    /// The guest's rings have so many pages each, header page included.
    Rings(usize),
    /// NICs use so many channels each.
    Queues(u16),
    /// What the host speaks.
    Versions(&'static [Version]),
}

/// The plan of a scenario.
pub(super) fn plan(sets: &[Set]) -> Plan {
    let count =
        sets.iter().find_map(|set| if let Set::Nics(nics) = set { Some(*nics) } else { None });
    let layout =
        sets.iter().find_map(|set| if let Set::Layout(vfs) = set { Some(*vfs) } else { None });
    let disks =
        sets.iter().find_map(|set| if let Set::Disks(disks) = set { Some(*disks) } else { None });
    let queues = sets
        .iter()
        .find_map(|set| if let Set::Queues(queues) = set { Some(*queues) } else { None });
    let mut plan = Plan::new(SEED, count.unwrap_or(1), false).with_queues(queues.unwrap_or(1));
    let soon = Duration::from_micros(100);
    (plan.bus.reply_delay, plan.pci.reply_delay) = (soon, soon);
    for nic in &mut plan.nics {
        let policy = &mut nic.nic.policy;
        policy.versions = vec![Version::V6_1, Version::V5];
        policy.rndis_delay = soon;
        policy.association_delay = Duration::from_millis(1);
        policy.offer_delay = Duration::from_millis(10);
        policy.switch_answer = SwitchAnswer::Complete(Duration::from_millis(1));
        nic.vf.offer_first = false;
        nic.disassociation = Disassociation::First;
    }
    for set in sets {
        change(&mut plan, *set);
    }
    plan.with_devices(layout.unwrap_or(VfLayout::Own), disks.unwrap_or(0))
}

/// How large the guest's rings are, if a scenario says so.
pub(super) fn rings(sets: &[Set]) -> Option<usize> {
    sets.iter().find_map(|set| if let Set::Rings(pages) = set { Some(*pages) } else { None })
}

fn change(plan: &mut Plan, set: Set) {
    let millis = Duration::from_millis;
    let nics = &mut plan.nics;
    match set {
        Set::Nics(_) | Set::Layout(_) | Set::Disks(_) | Set::Rings(_) | Set::Queues(_) => {}
        Set::Serial(nic, serial) => nics[nic].vf.serial = Serial(serial),
        Set::SameMac(nic, other) => nics[nic].nic.mac = nics[other].nic.mac,
        Set::Association(nic, span) => nics[nic].nic.policy.association_delay = millis(span),
        Set::Offer(nic, span) => nics[nic].nic.policy.offer_delay = millis(span),
        Set::OfferFirst => nics.iter_mut().for_each(|nic| nic.vf.offer_first = true),
        Set::Switch(span) => {
            let answer = SwitchAnswer::Complete(millis(span));
            nics.iter_mut().for_each(|nic| nic.nic.policy.switch_answer = answer);
        }
        Set::Answers(answers) => nics[0].nic.policy.switch_script.extend(answers),
        Set::Rndis(nic, span) => nics[nic].nic.policy.rndis_delay = millis(span),
        Set::Bus(span) => plan.bus.reply_delay = millis(span),
        Set::Pci(span) => plan.pci.reply_delay = millis(span),
        Set::RefuseD0(times) => plan.pci.refuse_d0_entries = times,
        Set::Versions(versions) => {
            nics.iter_mut().for_each(|nic| nic.nic.policy.versions = versions.to_vec());
        }
    }
}
