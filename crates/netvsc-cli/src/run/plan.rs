//! What a run starts from: everything that the seed decides.

use std::time::Duration;

use hyperv_host::bus::BusPolicy;
use hyperv_host::host::{DeviceSpec, Disassociation, NicSpec, VfSpec};
use hyperv_host::nic::{NicPolicy, SwitchAnswer};
use hyperv_host::pci::{FunctionSpec, PciPolicy};
use hyperv_host::switch::{PortConfig, WireConfig};
use netvsc::MacAddress;
use netvsc::nvsp::Version;
use netvsc::rndis::scaling::KEY_SIZE;
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use vmbus::{Guid, Serial};
use vpci::slot::DevFn;

use crate::args::VfLayout;

/// Rate of the wires in virtual time: slow enough for VFs to come and go while a transfer lasts.
const RATE: u64 = 250_000_000;
/// Latency of the wires.
const LATENCY: Duration = Duration::from_micros(100);
/// Arrivals lie on multiples of this.
const TICK: Duration = Duration::from_micros(250);
/// Bytes that a wire holds: less than a TCP window, so that frames queue up in the NIC and the VF, where a removal meets them.
const CAPACITY: usize = 32 * 1024;

/// One NIC of the plan.
#[derive(Clone, Debug)]
pub struct NicPlan {
    /// The NIC.
    pub nic: NicSpec,
    /// Its first VF.
    pub vf: VfSpec,
    /// When the NIC hears that its VF is gone.
    pub disassociation: Disassociation,
    /// Seed of the data that is sent over it.
    pub data_seed: u64,
}

/// Everything that the seed decides.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The bus.
    pub bus: BusPolicy,
    /// The PCI buses.
    pub pci: PciPolicy,
    /// The NICs.
    pub nics: Vec<NicPlan>,
    /// Whether one function serves all NICs. It is the first NIC's VF then, and the others' are not used.
    pub shared: bool,
    /// PCI devices that belong to no NIC.
    pub devices: Vec<DeviceSpec>,
    /// MAC of the emulated NIC: that of the first NIC.
    pub emulated: MacAddress,
    /// Channels that the guest's NICs use, and flows that the run has over each.
    pub queues: u16,
    /// The key by which the host spreads frames over them.
    pub key: [u8; KEY_SIZE],
    /// For what is decided later.
    pub random: Xoshiro256PlusPlus,
}

fn below(random: &mut Xoshiro256PlusPlus, end: u64) -> u64 {
    random.next_u64() % end
}

fn up_to_micros(random: &mut Xoshiro256PlusPlus, most: u64) -> Duration {
    Duration::from_micros(below(random, most + 1))
}

/// The key by which hosts spread frames. It has a generator of its own: nothing else depends on whether it is needed.
pub(crate) fn spread_key(seed: u64) -> [u8; KEY_SIZE] {
    let mut key = [0; KEY_SIZE];
    Xoshiro256PlusPlus::seed_from_u64(seed ^ u64::from_le_bytes(*b"queues..")).fill_bytes(&mut key);
    key
}

fn guid(random: &mut Xoshiro256PlusPlus) -> Guid {
    let mut bytes = [0; 16];
    random.fill_bytes(&mut bytes);
    Guid::from_bytes(bytes)
}

fn wires() -> PortConfig {
    let wire = WireConfig { rate: Some(RATE), latency: LATENCY, capacity: CAPACITY, tick: TICK };
    PortConfig { to_peer: wire, from_peer: wire, ..PortConfig::default() }
}

/// Wires that take no time: the kernel at both ends has a clock of its own.
fn open_wires() -> PortConfig {
    let wire = WireConfig::instant();
    PortConfig { to_peer: wire, from_peer: wire, ..PortConfig::default() }
}

impl Plan {
    /// The plan of a run with `nics` NICs. `real_time` is for traffic that keeps its own time.
    #[must_use]
    pub fn new(seed: u64, nics: usize, real_time: bool) -> Self {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let reply_delay = if real_time { Duration::ZERO } else { up_to_micros(&mut random, 500) };
        let bus = BusPolicy { reply_delay, ..BusPolicy::default() };
        let pci = PciPolicy { reply_delay: up_to_micros(&mut random, 500), ..PciPolicy::default() };
        let nics: Vec<_> = (0..nics).map(|nic| Self::nic(nic, real_time, &mut random)).collect();
        let emulated = nics.first().map_or(MacAddress([0; 6]), |nic| nic.nic.mac);
        let (shared, devices, queues) = (false, Vec::new(), 1);
        Self { bus, pci, nics, shared, devices, emulated, queues, key: spread_key(seed), random }
    }

    /// The same with other devices: how the NICs get their VFs, and disks that have the VFs' serial numbers.
    #[must_use]
    pub fn with_devices(mut self, vfs: VfLayout, disks: u8) -> Self {
        self.shared = vfs != VfLayout::Own;
        if vfs == VfLayout::Mana
            && let Some(first) = self.nics.first_mut()
        {
            first.vf.associated = Some(Serial(first.vf.serial.0.wrapping_add(1_000_000)));
        }
        for disk in 0..usize::from(disks) {
            let vf = self.nics.get(disk % self.nics.len().max(1));
            let serial = vf.map_or(Serial(0), |nic| nic.vf.serial);
            let instance = guid(&mut self.random);
            let functions = vec![FunctionSpec::nvme(DevFn(0).slot(), serial)];
            self.devices.push(DeviceSpec { instance, functions });
        }
        self
    }

    /// The same with NICs of so many queues.
    #[must_use]
    pub fn with_queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    fn nic(number: usize, real_time: bool, random: &mut Xoshiro256PlusPlus) -> NicPlan {
        let tail = random.next_u64().to_le_bytes();
        // Microsoft's prefix for virtual machines; the last byte keeps the MACs of a run apart.
        let mac = MacAddress([0x00, 0x15, 0x5d, tail[0], tail[1], number as u8]);
        let versions = if below(random, 4) == 0 {
            vec![Version::V5]
        } else {
            vec![Version::V6_1, Version::V5]
        };
        let policy = NicPolicy {
            versions,
            rndis_delay: up_to_micros(random, 2_000),
            association_delay: up_to_micros(random, 20_000),
            offer_delay: up_to_micros(random, 100_000),
            switch_answer: SwitchAnswer::Complete(up_to_micros(random, 3_000)),
            ..NicPolicy::default()
        };
        let disassociation = match below(random, 3) {
            0 => Disassociation::First,
            _ => Disassociation::After(up_to_micros(random, 50_000)),
        };
        NicPlan {
            nic: NicSpec {
                instance: guid(random),
                mac,
                policy,
                port: if real_time { open_wires() } else { wires() },
            },
            vf: VfSpec {
                instance: guid(random),
                serial: Serial(u32::try_from(number).unwrap_or(u32::MAX).saturating_add(1)),
                associated: None,
                offer_first: below(random, 2) == 0,
            },
            disassociation,
            data_seed: random.next_u64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_plan_again_and_another_seed_another() {
        let text = |seed| format!("{:?}", Plan::new(seed, 2, false));
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
    }

    #[test]
    fn macs_and_serials_of_a_run_differ() {
        for seed in 0..50 {
            let plan = Plan::new(seed, 2, false);
            assert_ne!(plan.nics[0].nic.mac, plan.nics[1].nic.mac);
            assert_ne!(plan.nics[0].vf.serial, plan.nics[1].vf.serial);
            assert_eq!(plan.emulated, plan.nics[0].nic.mac);
        }
    }
}
