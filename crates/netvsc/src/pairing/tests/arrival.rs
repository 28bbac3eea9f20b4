//! What may be undone by facts that only arrive (P11).
extern crate std;

use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// Each NIC with a MAC and a serial of its own; each port with the MAC of one NIC and the serial of any, or of none.
fn any_world() -> impl Strategy<Value = (Vec<u32>, Vec<u64>)> {
    (prop::collection::vec(0u32..8, 4), prop::collection::vec(any::<u64>(), 12))
}

proptest! {
    // P11, and P6 against it: where every MAC and serial names one NIC, an arrival undoes nothing but pairs that a MAC alone has made.
    #[test]
    fn p11_what_arrives_undoes_no_pair_but_one_by_mac_alone((serials, order) in any_world()) {
        let mut facts: Vec<(u64, usize)> = order.into_iter().zip(0..12).collect();
        facts.sort_unstable();
        let mut pairing = Pairing::new(PairingConfig::default());
        let mut reasons: Vec<(PortId, Reason)> = Vec::new();
        let mut undone = 0;
        for (_, fact) in facts {
            let n = (fact / 3) as u32;
            let nic = pairing.nic_arrived(instance(n), mac(n), T0);
            match fact % 3 {
                0 => {}
                1 => pairing.associated(nic, Serial(n), T0).expect("it is here"),
                _ => {
                    let function = pairing.function_arrived(key(n, serials[n as usize]), T0);
                    let mac = PermanentMac::Known(mac(n));
                    pairing.port_arrived(function, 0, mac, T0).expect("it is here");
                }
            }
            while let Some(decision) = pairing.poll_decision() {
                match decision {
                    Decision::Bind { port, reason, .. }
                    | Decision::Reexamined { port, reason, .. } => reasons.push((port.id, reason)),
                    Decision::Unbind { nic, port, .. } => {
                        let last = reasons.iter().rev().find(|(id, _)| *id == port.id);
                        prop_assert_eq!(last.map(|(_, reason)| *reason), Some(Reason::Mac));
                        pairing.unbound(nic.id, port.id, T0).expect("it was being unbound");
                        undone += 1;
                    }
                    _ => {}
                }
            }
        }
        // Nothing is undone that stays in the end: each was contradicted by an association.
        let contradicted = (0..4).filter(|n| {
            let serial = serials[*n as usize];
            serial < 4 && serial != *n
        });
        prop_assert!(undone <= contradicted.count());
    }
}
