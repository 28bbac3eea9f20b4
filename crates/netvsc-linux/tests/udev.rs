//! What udev is told, on every kind of guest and in every order in which the parts of a pair can come.

#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;

use guest::{Guest, kinds};
use netvsc_linux::udev::{Identity, Role, identify, retrigger};

/// The device's path as udev would give it.
fn device(guest: &Guest, name: &str) -> String {
    let path = guest.path(&format!("sys/class/net/{name}")).canonicalize().expect("an interface");
    let root = guest.root().canonicalize().expect("a root").join("sys");
    format!("/{}", path.strip_prefix(root).expect("below the root").display())
}

fn look(guest: &Guest, name: &str) -> Option<Identity> {
    identify(Some(guest.root()), &device(guest, name), &mut |_| None).expect("a root").identity
}

fn role(guest: &Guest, name: &str) -> Option<Role> {
    look(guest, name).map(|identity| identity.role)
}

fn printed(guest: &Guest, name: &str) -> Vec<String> {
    let properties = look(guest, name).map(|identity| identity.properties()).unwrap_or_default();
    properties.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

#[test]
fn both_halves_of_the_worked_example_name_each_other() {
    let guest = kinds::worked_example();
    assert_eq!(
        printed(&guest, "enP37498s1"),
        [
            "NETVSC_ROLE=vf",
            "NETVSC_GUID=d3cbd5f3-927a-45ec-985d-2ddb43e90b83",
            "NETVSC_SLOT=1",
            "NETVSC_SERIAL=1",
            "NETVSC_SERIAL_SOURCE=slot",
            "NETVSC_PEER_GUID=7c1e5225-55d2-7c1e-5225-55d27c1e5225",
            "NETVSC_PEER_MAC=7c:1e:52:25:55:d2",
            "AZURE_UNMANAGED_SRIOV=1",
            "ID_NET_MANAGED_BY=unmanaged",
            "NM_UNMANAGED=1",
        ]
    );
    assert_eq!(
        printed(&guest, "eth0"),
        [
            "NETVSC_ROLE=synthetic",
            "NETVSC_GUID=7c1e5225-55d2-7c1e-5225-55d27c1e5225",
            "NETVSC_SERIAL=1",
            "NETVSC_SERIAL_SOURCE=inferred-link",
            "NETVSC_PEER_GUID=d3cbd5f3-927a-45ec-985d-2ddb43e90b83",
            "NETVSC_PEER_MAC=7c:1e:52:25:55:d2",
        ]
    );
    for stranger in ["eth2", "lo"] {
        assert_eq!(printed(&guest, stranger), [""; 0], "{stranger}");
    }
}

#[test]
fn every_interface_of_every_kind_of_guest_has_its_role() {
    use Role::{Standalone, Synthetic, Vf};
    type Expected = &'static [(&'static str, Option<Role>)];
    let cases: [(Guest, Expected); 15] = [
        (kinds::azure_mlx4(), &[("eth1", Some(Synthetic)), ("enP6757s2", Some(Vf))]),
        (kinds::azure_mlx5(), &[("eth0", Some(Synthetic)), ("enP37498s1np0", Some(Vf))]),
        (kinds::azure_mana(), &[("enP30832s1", Some(Vf)), ("enP30832s1d3", Some(Vf))]),
        // HISTORY 61: a port without NIC is all there is, and must be managed.
        (kinds::mana_only(), &[("enP30832s1", Some(Standalone))]),
        (kinds::on_prem(), &[("eth0", Some(Synthetic)), ("enP24173s3", Some(Vf))]),
        (kinds::emulated_beside(), &[("eth1", None), ("enP37498s1", Some(Vf))]),
        (kinds::synthetic_only(), &[("eth0", Some(Synthetic))]),
        (kinds::mid_servicing(), &[("eth0", Some(Synthetic))]),
        (kinds::after_hibernation(), &[("enP6757s2", Some(Vf))]),
        (kinds::driver_missing(), &[("eth0", Some(Synthetic))]),
        (kinds::renamed_vf(), &[("fast0", Some(Vf))]),
        (kinds::bonded(), &[("enP37498s1", Some(Vf)), ("bond0", None)]),
        (kinds::duplicate_slot(), &[("enP37498p0s2", Some(Vf))]),
        (kinds::uio_bound(), &[("enP37498s1", Some(Vf))]),
        (Guest::without_hyperv(), &[("lo", None)]),
    ];
    for (guest, expected) in cases {
        for (name, expected) in expected {
            assert_eq!(role(&guest, name), *expected, "{name} of {}", guest.root().display());
        }
    }
}

#[test]
fn each_port_of_a_shared_function_has_the_nic_with_its_mac() {
    let guest = kinds::azure_mana();
    for number in 0..4u16 {
        let suffix = if number == 0 { String::new() } else { format!("d{number}") };
        let vf = look(&guest, &format!("enP30832s1{suffix}")).unwrap();
        let guid = format!("f8615163-000{number}-1000-2000-000d3a0001{number:02x}");
        assert_eq!(vf.peer, Some(guid.parse().unwrap()));
        assert_eq!((vf.nic_index, vf.slot.as_deref()), (Some(number), Some("1296119428")));
        let nic = look(&guest, &format!("eth{number}")).unwrap();
        assert_eq!((nic.nic_index, nic.peer), (Some(number), Some(vf.guid)));
    }
}

#[test]
fn a_slot_that_is_no_number_gives_no_serial() {
    let text = printed(&kinds::duplicate_slot(), "enP37498p0s2");
    assert!(text.contains(&"NETVSC_SLOT=1-1".into()));
    assert!(!text.iter().any(|line| line.starts_with("NETVSC_SERIAL")), "{text:?}");
}

#[test]
fn a_changed_mac_changes_nothing() {
    // HISTORY 1
    let mut guest = Guest::new();
    let pair = kinds::one(&mut guest);
    for net in [&pair.nic.net, &pair.port.net] {
        guest.write(&format!("{net}/address"), "02:00:00:00:00:07");
        guest.write(&format!("{net}/addr_assign_type"), "3");
    }
    // Without netlink the link alone says whose VF it is.
    assert_eq!(role(&guest, &pair.port.name), Some(Role::Vf));
    let mac = pair.nic.mac.parse().unwrap();
    let path = device(&guest, &pair.port.name);
    let mut asked = Vec::new();
    let mut ask = |index| {
        asked.push(index);
        Some(mac)
    };
    let found = identify(Some(guest.root()), &path, &mut ask).unwrap().identity.unwrap();
    assert_eq!((found.role, found.peer_mac), (Role::Vf, Some(mac)));
    assert_eq!(asked, [pair.nic.index, pair.port.index]);
}

#[test]
fn a_vf_waits_while_a_nic_does_not_show_its_mac() {
    let mut guest = Guest::new();
    let function = guest.function("4f1c9b02-5e6d-4a7b-9c8d-1e2f3a4b5c6d", "3", &kinds::IXGBEVF);
    guest.port(&function, "eth0", "00:15:5d:01:02:03", 0);
    assert_eq!(role(&guest, "eth0"), Some(Role::Standalone));
    // A GUID that holds another NIC's MAC says that this NIC is not meant; a random one says nothing.
    guest.unbound_nic("7c1e5225-55d2-7c1e-5225-55d27c1e5225");
    assert_eq!(role(&guest, "eth0"), Some(Role::Standalone));
    guest.unbound_nic("2d0e6c1a-93f4-4b5e-8a77-0c1d2e3f4a5b");
    assert_eq!(role(&guest, "eth0"), Some(Role::Pending));
    assert_eq!(printed(&guest, "eth0").last().unwrap(), "NM_UNMANAGED=1");
}

#[test]
fn infiniband_with_the_mac_of_a_nic_is_not_touched() {
    let mut guest = Guest::new();
    let pair = kinds::one(&mut guest);
    guest.write(&format!("{}/type", pair.port.net), "32");
    assert_eq!(role(&guest, &pair.port.name), None);
}

#[test]
fn what_is_on_a_virtual_bus_by_name_only_is_nothing() {
    let mut guest = Guest::new();
    let pair = kinds::one(&mut guest);
    let bus = &pair.function.bus;
    let class = "{f912ad6d-2b17-48ea-bd65-f927a61c7684}";
    let path = guest.path(&format!("sys/bus/vmbus/devices/{bus}")).canonicalize().unwrap();
    std::fs::write(path.join("class_id"), class).unwrap();
    assert_eq!(role(&guest, &pair.port.name), None);
}

#[test]
fn files_that_lie_or_are_missing_end_in_silence_and_not_in_a_crash() {
    for (file, contents) in [
        ("address", "\u{1b}[31mred"),
        ("address", "00:00:00:00:00:00"),
        ("addr_assign_type", "many"),
        ("type", "x"),
        ("ifindex", "-7"),
    ] {
        let mut guest = Guest::new();
        let pair = kinds::one(&mut guest);
        guest.write(&format!("{}/{file}", pair.port.net), contents);
        for line in printed(&guest, &pair.port.name) {
            assert!(line.bytes().all(|b| b.is_ascii_graphic()), "{line:?}");
        }
    }
    let guest = kinds::worked_example();
    for path in ["", "/", "/devices", "eth9", "../../etc", "/devices/../net/eth0", "a\nb"] {
        let found = identify(Some(guest.root()), path, &mut |_| None).unwrap();
        assert_eq!(found.identity, None, "{path:?}");
    }
}

#[test]
fn a_name_that_somebody_chose_is_never_printed() {
    let mut guest = Guest::new();
    let nic =
        guest.nic("7c1e5225-55d2-7c1e-5225-55d27c1e5225", "e\nNM_UNMANAGED=0", "7c:1e:52:25:55:d2");
    let function = guest.function("d3cbd5f3-927a-45ec-985d-2ddb43e90b83", "1", &guest::MLX5);
    let port = guest.port(&function, "'$(x)\"", "7c:1e:52:25:55:d2", 0);
    guest.join(&nic, &port);
    for name in [&nic.name, &port.name] {
        let lines = printed(&guest, name);
        assert!(lines.len() > 5);
        for line in lines {
            let (key, value) = line.split_once('=').unwrap();
            assert!(key.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{key}");
            let good = |b: u8| b.is_ascii_alphanumeric() || b == b':' || b == b'-';
            assert!(value.bytes().all(good), "{value}");
        }
    }
}

#[test]
fn the_number_of_files_touched_is_bounded() {
    for nics in [1u32, 8, 64] {
        let mut guest = Guest::new();
        let mut last = None;
        for number in 0..nics {
            let (a, b) = (number / 256, number % 256);
            let guid = format!("2d0e6c1a-93f4-4b5e-8a77-0c1d2e3f{number:04x}");
            let bus = format!("4f1c9b02-{:04x}-4a7b-9c8d-1e2f3a4b{number:04x}", number + 0x1000);
            let mac = format!("00:15:5d:01:{a:02x}:{b:02x}");
            let name = format!("eth{number}");
            let serial = number.to_string();
            let vf = format!("vf{number}");
            let nic = (guid.as_str(), name.as_str(), mac.as_str());
            last = Some(kinds::pair(&mut guest, nic, &bus, &serial, &vf, &kinds::IXGBEVF));
        }
        let last = last.unwrap();
        let touched = |name: &str| {
            identify(Some(guest.root()), &device(&guest, name), &mut |_| None).unwrap().touched
        };
        // Per NIC: its offer, class, and four for its MAC; per bus its offer and class; per slot two.
        let vf = touched(&last.port.name);
        assert!(vf <= 12 + 10 * nics, "{vf} for {nics}");
        let nic = touched(&last.nic.name);
        assert!(nic <= 16 + 2 * nics, "{nic} for {nics}");
    }
}

/// What can happen to a pair while it comes, in any order that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The host offers the NIC.
    Offer,
    /// Its driver binds and makes the interface.
    Bind,
    /// The VF's interface appears.
    Vf,
    /// The kernel joins the two and sets the slave flag.
    Join,
    /// udev renames the VF.
    Rename,
}

const STEPS: [Step; 5] = [Step::Offer, Step::Bind, Step::Vf, Step::Join, Step::Rename];

fn orders() -> Vec<Vec<Step>> {
    fn extend(done: &[Step], all: &mut Vec<Vec<Step>>) {
        if done.len() == STEPS.len() {
            all.push(done.to_vec());
        }
        for step in STEPS {
            let needs: &[Step] = match step {
                Step::Offer | Step::Vf => &[],
                Step::Bind => &[Step::Offer],
                Step::Join => &[Step::Bind, Step::Vf],
                Step::Rename => &[Step::Vf],
            };
            if !done.contains(&step) && needs.iter().all(|step| done.contains(step)) {
                let mut next = done.to_vec();
                next.push(step);
                extend(&next, all);
            }
        }
    }
    let mut all = Vec::new();
    extend(&[], &mut all);
    all
}

/// A rule that asks for the slave flag and for a driver of a list.
fn classic(guest: &Guest, net: &str, driver: &str) -> bool {
    let text = std::fs::read_to_string(guest.path(&format!("{net}/flags"))).unwrap();
    let flags = u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap();
    flags & 0x800 != 0 && ["mlx4_core", "mlx5_core", "mana"].contains(&driver)
}

/// What the VF was called by each of the two at its first event, and by ours in the end.
fn play(order: &[Step], guid: &str, made: &guest::Made) -> (bool, Role, Role) {
    let mac = "7c:1e:52:25:55:d2";
    let mut guest = Guest::new();
    let function = guest.function("d3cbd5f3-927a-45ec-985d-2ddb43e90b83", "1", made);
    let offered = "sys/devices/LNXSYSTM:00/LNXSYBUS:00/PNP0A03:00/device:07/VMBUS:01";
    let (mut nic, mut port, mut first) = (None, None, None);
    let mut role = None;
    for step in order {
        match step {
            Step::Offer => drop(guest.unbound_nic(guid)),
            Step::Bind => {
                guest.remove(&format!("{offered}/{guid}"));
                guest.remove(&format!("sys/bus/vmbus/devices/{guid}"));
                nic = Some(guest.nic(guid, "eth0", mac));
                // The event of the NIC itself.
                let told = retrigger(Some(guest.root()), &device(&guest, "eth0"), &mut |_| None);
                assert_eq!(told.unwrap(), usize::from(port.is_some()));
                if let Some(guest::Port { net, name, .. }) = &port {
                    let event = std::fs::read_to_string(guest.path(&format!("{net}/uevent")));
                    assert!(event.unwrap().starts_with("change"));
                    role = self::role(&guest, name);
                }
            }
            Step::Vf => {
                let vf = guest.port(&function, "eth1", mac, 0);
                role = self::role(&guest, "eth1");
                first = Some((classic(&guest, &vf.net, made.driver.unwrap()), role.unwrap()));
                port = Some(vf);
            }
            Step::Join => guest.enslave(&nic.as_ref().unwrap().net, "eth0", port.as_ref().unwrap()),
            Step::Rename => {
                let vf = port.as_mut().unwrap();
                let new = vf.net.replace("/net/eth1", "/net/enP37498s1");
                std::fs::rename(guest.path(&vf.net), guest.path(&new)).unwrap();
                guest.remove("sys/class/net/eth1");
                guest.symlink("sys/class/net/enP37498s1", &new);
                (vf.net, vf.name) = (new, "enP37498s1".into());
                // The event of the renaming.
                role = self::role(&guest, "enP37498s1");
            }
        }
    }
    let (classic, ours) = first.unwrap();
    (classic, ours, role.unwrap())
}

#[test]
fn no_order_of_arrival_lets_a_manager_have_the_vf() {
    // HISTORY 46 and 62: a rule that waits for the slave flag, or knows drivers by name, comes too late or not at all.
    let (azure, random) =
        ("7c1e5225-55d2-7c1e-5225-55d27c1e5225", "2d0e6c1a-93f4-4b5e-8a77-0c1d2e3f4a5b");
    let orders = orders();
    assert_eq!(orders.len(), 9);
    for order in &orders {
        let at = |step| order.iter().position(|other| *other == step).unwrap();
        for (guid, made) in [(azure, guest::MLX5), (azure, kinds::IXGBEVF), (random, kinds::MANA)] {
            let (classic, first, last) = play(order, guid, &made);
            assert!(!classic, "{order:?}: the flag comes after the event, so it cannot be seen");
            if at(Step::Offer) < at(Step::Vf) {
                assert!(first.unmanaged(), "{order:?} of {guid}: {first:?}");
            } else {
                // Nothing shows that there is a NIC; its own event corrects that.
                assert_eq!(first, Role::Standalone, "{order:?}");
            }
            assert_eq!(last, Role::Vf, "{order:?} of {guid}");
        }
    }
}
