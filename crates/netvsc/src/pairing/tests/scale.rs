//! 65,536 NICs.
extern crate std;

use std::vec::Vec;

use super::*;

const NICS: u32 = 65_536;

/// The most parties any one of the facts made us look at.
fn dearest(
    pairing: &mut Pairing,
    facts: impl Iterator<Item = u32>,
    mut tell: impl FnMut(&mut Pairing, u32),
) -> u64 {
    facts
        .map(|n| {
            let before = pairing.examined();
            tell(pairing, n);
            pairing.examined() - before
        })
        .max()
        .unwrap_or(0)
}

#[test]
fn with_65536_nics_a_fact_costs_only_those_it_concerns() {
    let mut pairing = Pairing::new(PairingConfig::default());
    let mut nics = Vec::new();
    let arrive = dearest(&mut pairing, 0..NICS, |pairing, n| {
        nics.push(pairing.nic_arrived(instance(n), mac(n), T0));
    });
    let associate = dearest(&mut pairing, 0..NICS, |pairing, n| {
        pairing.associated(nics[n as usize], Serial(n), T0).expect("it is here");
    });
    let mut functions = Vec::new();
    // In an order that has nothing to do with the NICs'.
    let scattered = |n: u32| n.wrapping_mul(40_503) % NICS;
    let ports = dearest(&mut pairing, 0..NICS, |pairing, n| {
        let n = scattered(n);
        let function = pairing.function_arrived(key(n, n), T0);
        let mac = PermanentMac::Known(mac(n));
        pairing.port_arrived(function, 0, mac, T0).expect("it is here");
        functions.push(function);
    });
    assert_eq!(pairing.pairs().count(), NICS as usize);
    assert!(pairing.pairs().all(|(_, _, reason)| reason == Reason::SerialAndMac));
    while pairing.poll_decision().is_some() {}
    let leave = dearest(&mut pairing, 0..NICS, |pairing, n| {
        pairing.function_left(functions[n as usize], T0).expect("it is here");
    });
    assert_eq!(pairing.pairs().count(), 0);
    // Judged and explained once each, and up to three conflicts that might have been.
    for (fact, cost) in
        [("arrive", arrive), ("associate", associate), ("port", ports), ("leave", leave)]
    {
        assert!(cost <= 4, "{fact}: {cost} parties looked at");
    }
}

#[test]
fn a_fact_costs_no_more_than_the_parties_that_share_its_serial_or_mac() {
    const SHARING: u32 = 1_000;
    let mut pairing = Pairing::new(PairingConfig::default());
    for n in 0..SHARING {
        let nic = pairing.nic_arrived(instance(n), mac(1), T0);
        pairing.associated(nic, Serial(7), T0).expect("it is here");
        let function = pairing.function_arrived(key(n, 7), T0);
        let mac = PermanentMac::Known(mac(1));
        pairing.port_arrived(function, 0, mac, T0).expect("it is here");
    }
    let before = pairing.examined();
    let nic = pairing.nic_arrived(instance(SHARING), mac(1), T0);
    pairing.associated(nic, Serial(7), T0).expect("it is here");
    let cost = pairing.examined() - before;
    assert!(cost <= u64::from(SHARING) * 10, "{cost} parties looked at");
}

#[test]
fn a_port_that_arrives_or_leaves_costs_its_function_s_other_ports_nothing() {
    const PORTS: u32 = 1_000;
    let mut pairing = Pairing::new(PairingConfig::default());
    let function = pairing.function_arrived(key(0, 7), T0);
    let mut ports = Vec::new();
    let arrive = dearest(&mut pairing, 0..PORTS, |pairing, n| {
        let mac = PermanentMac::Known(mac(n));
        ports.push(pairing.port_arrived(function, n, mac, T0).expect("the function is here"));
    });
    let leave = dearest(&mut pairing, 0..PORTS, |pairing, n| {
        pairing.port_left(ports[n as usize], T0).expect("it is here");
    });
    assert!(arrive <= 4 && leave <= 4, "{arrive} and {leave} parties looked at");
}
