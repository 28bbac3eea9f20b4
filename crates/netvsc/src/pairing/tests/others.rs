//! How others decide, in small models, and where that goes wrong. The README has the table; a test compares the two.
//!
//! The models follow the descriptions in HISTORY.md (sections 2 and 3). They know more than they use: all see the same machine.

extern crate std;

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::*;

/// A synthetic NIC, as it is and as the host spoke of it.
#[derive(Clone, Copy)]
struct Card {
    permanent: u32,
    current: u32,
    /// Whether a VF is allocated now, and the last serial that the host named.
    said: Option<(bool, u32)>,
}

/// What a network device hangs on.
#[derive(Clone, Copy, PartialEq)]
enum Home {
    /// A function that came over vPCI, with its slot and serial.
    Vpci {
        slot: u32,
        serial: u32,
    },
    Elsewhere(DeviceKind),
}

/// A network device that could be a VF.
#[derive(Clone, Copy)]
struct Device {
    home: Home,
    permanent: u32,
    current: u32,
}

struct Machine {
    cards: Vec<Card>,
    devices: Vec<Device>,
}

/// NIC and device, by their places in the machine.
type Pairs = Vec<(usize, usize)>;

impl Machine {
    fn allocated(&self, card: usize) -> bool {
        self.cards[card].said.is_some_and(|(allocated, _)| allocated)
    }

    /// Each NIC that has a VF looks for any other interface with its MAC and takes the first (DPDK; FreeBSD leaves out VLANs
    /// and aggregates).
    fn by_mac(&self) -> Pairs {
        let mut pairs = Pairs::new();
        for (card, nic) in self.cards.iter().enumerate().filter(|(card, _)| self.allocated(*card)) {
            let same = |device: &&Device| {
                let aggregate = matches!(
                    device.home,
                    Home::Elsewhere(DeviceKind::Vlan | DeviceKind::Bond | DeviceKind::Team)
                );
                device.current == nic.current && !aggregate
            };
            let found = self.devices.iter().position(|device| same(&device));
            pairs.extend(found.map(|device| (card, device)));
        }
        pairs
    }

    /// Each device looks for the first NIC whose serial is that of its function (the patch of 2016).
    fn by_serial(&self) -> Pairs {
        let mut pairs = Pairs::new();
        for (number, device) in self.devices.iter().enumerate() {
            let Home::Vpci { serial, .. } = device.home else { continue };
            let named = |card: &Card| card.said.is_some_and(|(_, said)| said == serial);
            let found = self.cards.iter().position(named);
            pairs.extend(found.map(|card| (card, number)));
        }
        Self::first_come(pairs)
    }

    /// `get_netvsc_byslot`: the number in the slot's name and the permanent MAC; else the MAC alone, permanent or current.
    fn as_linux(&self) -> Pairs {
        let mut pairs = Pairs::new();
        let mut names = Vec::new();
        for (number, device) in self.devices.iter().enumerate() {
            let Home::Vpci { slot, serial } = device.home else { continue };
            // Names are unique: the second slot of a serial is called "7-1", which is no number, and what is in it is dropped.
            if names.iter().any(|(other, name)| *name == serial && *other != slot) {
                continue;
            }
            names.push((slot, serial));
            let both = |card: &Card| {
                card.said == Some((true, serial)) && card.permanent == device.permanent
            };
            let mac = |card: &Card| {
                card.permanent == device.permanent || card.permanent == device.current
            };
            let found =
                self.cards.iter().position(both).or_else(|| self.cards.iter().rposition(mac));
            pairs.extend(found.map(|card| (card, number)));
        }
        Self::first_come(pairs)
    }

    /// A NIC that has a VF takes no second one.
    fn first_come(pairs: Pairs) -> Pairs {
        let mut taken = Pairs::new();
        for (card, device) in pairs {
            if taken.iter().all(|(other, _)| *other != card) {
                taken.push((card, device));
            }
        }
        taken
    }

    fn ours(&self) -> Pairs {
        let mut world = World::new();
        for (n, card) in (0u32..).zip(&self.cards) {
            let nic = world.nic(n, mac(card.permanent));
            if let Some((allocated, serial)) = card.said {
                world.associate(nic, serial);
                if !allocated {
                    world.disassociate(nic);
                }
            }
        }
        let mut ports = Vec::new();
        for device in &self.devices {
            match device.home {
                Home::Vpci { slot, serial } => {
                    let function = world.function(slot, serial);
                    let index = ports.len() as u32;
                    ports.push(Some(world.port(
                        function,
                        index,
                        PermanentMac::Known(mac(device.permanent)),
                    )));
                }
                Home::Elsewhere(kind) => {
                    world.pairing.ignored(kind, mac(device.current));
                    ports.push(None);
                }
            }
        }
        let place = |port: PortRef| ports.iter().position(|known| *known == Some(port.id));
        let card = |nic: NicRef| (nic.instance.as_u128() - instance(0).as_u128()) as usize;
        let pairs = world.pairing.pairs();
        let mut pairs: Pairs =
            pairs.filter_map(|(nic, port, _)| Some((card(nic), place(port)?))).collect();
        pairs.sort();
        pairs
    }
}

fn nic(mac: u32, said: Option<(bool, u32)>) -> Card {
    Card { permanent: mac, current: mac, said }
}

fn vf(slot: u32, serial: u32, mac: u32) -> Device {
    Device { home: Home::Vpci { slot, serial }, permanent: mac, current: mac }
}

/// A case: its words in the README, the machine, and the pairs that are right.
fn cases() -> Vec<(&'static str, Machine, Pairs)> {
    let yes = |serial| Some((true, serial));
    let emulated = Device { home: Home::Elsewhere(DeviceKind::Emulated), ..vf(0, 0, 1) };
    vec![
        (
            "an emulated card has the MAC, and was there first",
            Machine { cards: vec![nic(1, yes(7))], devices: vec![emulated, vf(0, 7, 1)] },
            vec![(0, 1)],
        ),
        (
            "somebody has changed the NIC's current MAC",
            Machine {
                cards: vec![Card { current: 9, ..nic(1, yes(7)) }],
                devices: vec![vf(0, 7, 1)],
            },
            vec![(0, 0)],
        ),
        (
            "two NICs have one MAC, and a VF each",
            Machine {
                cards: vec![nic(1, yes(7)), nic(1, yes(8))],
                devices: vec![vf(0, 8, 1), vf(1, 7, 1)],
            },
            vec![(0, 1), (1, 0)],
        ),
        (
            "one function, one serial, three ports (MANA)",
            Machine {
                cards: vec![nic(1, yes(7)), nic(2, yes(7)), nic(3, yes(7))],
                devices: vec![vf(0, 7, 3), vf(0, 7, 1), vf(0, 7, 2)],
            },
            vec![(0, 1), (1, 2), (2, 0)],
        ),
        (
            "the function's serial is not the association's (MANA)",
            Machine { cards: vec![nic(1, yes(7))], devices: vec![vf(0, 30, 1)] },
            vec![(0, 0)],
        ),
        (
            "a serial was withdrawn and given to another NIC",
            Machine {
                cards: vec![nic(1, Some((false, 7))), nic(2, yes(7))],
                devices: vec![vf(0, 7, 2)],
            },
            vec![(1, 0)],
        ),
        (
            "two functions on two buses carry one serial",
            Machine {
                cards: vec![nic(1, yes(7)), nic(2, yes(7))],
                devices: vec![vf(0, 7, 2), vf(1, 7, 1)],
            },
            vec![(0, 1), (1, 0)],
        ),
        (
            "the serial belongs to one NIC, the MAC to another",
            Machine { cards: vec![nic(1, yes(5)), nic(2, yes(7))], devices: vec![vf(0, 7, 1)] },
            vec![],
        ),
        (
            "a stranger's VF was given the current MAC of a NIC",
            Machine {
                cards: vec![nic(1, yes(7))],
                devices: vec![Device { current: 1, ..vf(0, 9, 4) }],
            },
            vec![],
        ),
    ]
}

/// How well pairs are made: each wrong one is worse than a missing one.
fn verdict(made: &[(usize, usize)], right: &[(usize, usize)]) -> &'static str {
    if made.iter().any(|pair| !right.contains(pair)) {
        "**wrong**"
    } else if made.len() < right.len() {
        "not at all"
    } else {
        "right"
    }
}

fn table() -> Vec<String> {
    let row = |(words, machine, right): (&str, Machine, Pairs)| {
        let made = [machine.by_mac(), machine.by_serial(), machine.as_linux(), machine.ours()];
        let [mac, serial, linux, ours] = made.map(|pairs| verdict(&pairs, &right));
        format!("| {words} | {mac} | {serial} | {linux} | {ours} |")
    };
    cases().into_iter().map(row).collect()
}

#[test]
fn where_others_pair_wrongly_or_not_at_all_this_is_right() {
    let table = table();
    for row in &table {
        assert!(row.ends_with("| right |"), "{row}");
        assert!(row.contains("**wrong**") || row.contains("not at all"), "teaches nothing: {row}");
    }
    for (column, whose) in [(2, "MAC alone"), (3, "serial alone"), (4, "Linux")] {
        let fails = |row: &&String| row.split(" | ").nth(column - 1) != Some("right");
        assert!(table.iter().filter(fails).count() >= 2, "{whose}:\n{}", table.join("\n"));
    }
}

#[test]
fn the_readme_has_this_table() {
    let readme = include_str!("../../../../../README.md");
    for row in table() {
        assert!(readme.contains(&row), "the README lacks\n{}", table().join("\n"));
    }
}
