//! Tests of the pairing rules.

extern crate std;

mod arrival;
mod confluence;
mod edges;
mod exhaustive;
mod others;
mod paths;
mod reference;
mod rules;
mod scale;
mod seeds;

use std::vec::Vec;

use super::*;

pub(super) const T0: Instant = Instant::ZERO;

/// A stepped world around one [`Pairing`]: carries out decisions and checks that each may be carried out.
#[derive(Clone)]
pub(super) struct World {
    pub(super) pairing: Pairing,
    pub(super) log: Vec<Decision>,
    bound: BTreeMap<NicId, PortId>,
    parting: Vec<(NicId, PortId)>,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(PairingConfig::default())
    }

    pub(super) fn with(config: PairingConfig) -> Self {
        Self {
            pairing: Pairing::new(config),
            log: Vec::new(),
            bound: BTreeMap::new(),
            parting: Vec::new(),
        }
    }

    /// Takes all decisions, unbinding nothing yet.
    pub(super) fn take(&mut self) {
        while let Some(decision) = self.pairing.poll_decision() {
            match &decision {
                Decision::Bind { nic, port, .. } => {
                    assert!(!self.bound.contains_key(&nic.id), "{decision}: the NIC has a port");
                    assert!(
                        !self.bound.values().any(|bound| *bound == port.id),
                        "{decision}: the port has a NIC"
                    );
                    self.bound.insert(nic.id, port.id);
                }
                Decision::Unbind { nic, port, .. } => {
                    assert_eq!(self.bound.get(&nic.id), Some(&port.id), "{decision}");
                    self.parting.push((nic.id, port.id));
                }
                _ => {}
            }
            self.log.push(decision);
        }
    }

    /// Confirms the `choice`-th unbinding under way, if there is one.
    pub(super) fn confirm(&mut self, choice: usize) -> bool {
        self.take();
        if self.parting.is_empty() {
            return false;
        }
        let (nic, port) = self.parting.swap_remove(choice % self.parting.len());
        self.bound.remove(&nic);
        self.pairing.unbound(nic, port, T0).expect("it was being unbound");
        self.take();
        true
    }

    /// Carries out everything.
    pub(super) fn run(&mut self) {
        while self.confirm(0) {}
        assert_eq!(self.pairing.pairs().count(), self.bound.len());
    }

    pub(super) fn pairs(&self) -> Vec<(Guid, PortKey, Reason)> {
        let mut pairs: Vec<_> =
            self.pairing.pairs().map(|(nic, port, why)| (nic.instance, port.key, why)).collect();
        pairs.sort();
        pairs
    }

    pub(super) fn nic(&mut self, n: u32, mac: MacAddress) -> NicId {
        let nic = self.pairing.nic_arrived(instance(n), mac, T0);
        self.run();
        nic
    }

    pub(super) fn associate(&mut self, nic: NicId, serial: u32) {
        self.pairing.associated(nic, Serial(serial), T0).expect("the NIC is here");
        self.run();
    }

    pub(super) fn disassociate(&mut self, nic: NicId) {
        self.pairing.disassociated(nic, T0).expect("the NIC is here");
        self.run();
    }

    pub(super) fn function(&mut self, slot: u32, serial: u32) -> FunctionId {
        let function = self.pairing.function_arrived(key(slot, serial), T0);
        self.run();
        function
    }

    pub(super) fn port(&mut self, function: FunctionId, index: u32, mac: PermanentMac) -> PortId {
        let port = self.pairing.port_arrived(function, index, mac, T0).expect("it is here");
        self.run();
        port
    }

    /// A function in this slot with one port.
    pub(super) fn vf(&mut self, slot: u32, serial: u32, mac: MacAddress) -> (FunctionId, PortId) {
        let function = self.function(slot, serial);
        (function, self.port(function, 0, PermanentMac::Known(mac)))
    }

    pub(super) fn state(&self, nic: NicId) -> &'static str {
        self.pairing.state(nic).expect("the NIC is here").word()
    }

    pub(super) fn words(&mut self) -> Vec<&'static str> {
        self.log.drain(..).map(|decision| decision.word()).collect()
    }
}

pub(super) fn instance(n: u32) -> Guid {
    Guid::from_u128(0x1234_0000 + u128::from(n))
}

pub(super) fn bus() -> Guid {
    Guid::from_u128(0xb005)
}

pub(super) fn key(slot: u32, serial: u32) -> FunctionKey {
    FunctionKey { bus: bus(), slot, vendor: 0x15b3, device: 0x1016, serial: Serial(serial) }
}

pub(super) fn mac(n: u32) -> MacAddress {
    let [a, b, c, d] = n.to_be_bytes();
    MacAddress([0x00, 0x15, a, b, c, d])
}
