//! The inventory against the kinds of guests that there are, and against trees that no kernel would make.

#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;

use std::os::unix::fs::{PermissionsExt, symlink};

use guest::{Guest, MLX5, kinds};
use netvsc_linux::inventory::{
    Depth, NetDevice, Parent, PciAddress, RootError, Snapshot, SoftKind, take, take_counting,
};
use vmbus::{Guid, Serial};

fn read(guest: &Guest) -> Snapshot {
    take(Some(guest.root()), Depth::Full).expect("the root is a directory")
}

const EXAMPLE_NIC: &str = "7c1e5225-55d2-7c1e-5225-55d27c1e5225";
const EXAMPLE_DEVICE: &str = "sys/bus/vmbus/devices/7c1e5225-55d2-7c1e-5225-55d27c1e5225";

#[test]
fn the_worked_example_is_read_in_full() {
    let snapshot = read(&kinds::worked_example());
    assert_eq!(snapshot.unreadable, []);
    assert!(snapshot.hyperv && !snapshot.live && snapshot.log.complete);
    assert_eq!(snapshot.nics().count(), 2);
    let nic: Guid = EXAMPLE_NIC.parse().unwrap();
    let device = snapshot.device(nic).unwrap();
    assert_eq!(device.driver.as_deref(), Some("hv_netvsc"));
    assert_eq!((device.id, device.mapping.len(), device.channels.len()), (Some(14), 8, 8));
    assert_eq!(device.channels[3].cpu, Some(3));
    assert_eq!(device.channels[0].counters["intr_out_empty"], 99);
    assert_eq!(device.driver_override, None, "(null) means none");
    assert_eq!(device.mac_hint().map(|mac| mac.to_string()), Some("7c:1e:52:25:55:d2".into()));
    let link = snapshot.link_of(nic).unwrap();
    assert_eq!((link.name.as_str(), link.index, link.mtu), ("eth0", Some(2), Some(1500)));
    assert_eq!(link.lowers, ["enP37498s1"]);
    assert_eq!(link.queues, Some((8, 8)));
    assert_eq!(link.counters["tx_packets"], 1000);
    let address = PciAddress::parse("927a:00:02.0").unwrap();
    let function = snapshot.function(address).unwrap();
    assert_eq!(
        function.bus.map(|bus| bus.to_string()),
        Some("d3cbd5f3-927a-45ec-985d-2ddb43e90b83".into())
    );
    assert_eq!((function.vendor, function.device), (Some(0x15b3), Some(0x1018)));
    assert_eq!(function.serial(), Some(Serial(1)));
    assert!(function.is_ethernet());
    let port = snapshot.ports_of(address).next().unwrap();
    assert_eq!(port.master.as_deref(), Some("eth0"));
    assert_eq!(port.property("NM_UNMANAGED"), Some("1"));
    assert_eq!(snapshot.log.association(nic).map(|(serial, _)| serial), Some(Some(Serial(1))));
}

#[test]
fn what_did_not_come_over_a_virtual_bus_has_none() {
    let snapshot = read(&kinds::worked_example());
    let link = snapshot.link("eth2").unwrap();
    let Parent::Pci(address) = link.parent else { panic!("{:?}", link.parent) };
    let function = snapshot.function(address).unwrap();
    assert_eq!((function.bus, function.slot.as_deref()), (None, None));
    assert_eq!(snapshot.link("lo").unwrap().soft, SoftKind::Loopback);
}

#[test]
fn ports_of_one_function_are_told_apart() {
    let snapshot = read(&kinds::azure_mana());
    let address = PciAddress::parse("7870:00:00.0").unwrap();
    let ports: Vec<_> = snapshot.ports_of(address).map(|port| (port.port, &port.master)).collect();
    let expected: Vec<_> = (0..4).map(|n| (n, Some(format!("eth{n}")))).collect();
    assert_eq!(ports.len(), 4);
    assert!(ports.iter().zip(&expected).all(|(a, b)| a.0 == b.0 && *a.1 == b.1), "{ports:?}");
}

#[test]
fn a_mac_that_somebody_set_is_not_the_permanent_one() {
    let guest = kinds::bonded();
    let snapshot = read(&guest);
    let bond = snapshot.link("bond0").unwrap();
    assert_eq!((bond.soft, bond.permanent), (SoftKind::Bond, None));
    assert!(bond.mac.is_some());
}

#[test]
fn channels_and_counters_are_left_alone_unless_asked_for() {
    let guest = kinds::worked_example();
    let snapshot = take(Some(guest.root()), Depth::Pairs).unwrap();
    assert!(snapshot.devices.iter().all(|device| device.channels.is_empty()));
    assert!(snapshot.links.iter().all(|link| link.counters.is_empty()));
}

#[test]
fn a_machine_without_vmbus_is_no_error() {
    let snapshot = read(&Guest::without_hyperv());
    assert!(!snapshot.hyperv && snapshot.devices.is_empty() && snapshot.unreadable.is_empty());
    assert_eq!(snapshot.links.len(), 1);
}

#[test]
fn a_root_that_is_not_there_is_named() {
    let error = take(Some("/no/such/root".as_ref()), Depth::Pairs).unwrap_err();
    assert!(matches!(error, RootError::Open { .. }) && error.to_string().contains("/no/such/root"));
}

#[test]
fn an_empty_root_is_a_machine_without_anything() {
    let root = tempfile::tempdir().unwrap();
    let snapshot = take(Some(root.path()), Depth::Full).unwrap();
    assert!(!snapshot.hyperv && snapshot.links.is_empty() && snapshot.unreadable.is_empty());
}

/// What the notes say about the path that ends like this.
fn note(snapshot: &Snapshot, end: &str) -> String {
    let mut notes = snapshot.unreadable.iter().filter(|note| note.path.ends_with(end));
    notes
        .next()
        .unwrap_or_else(|| panic!("no note on {end}: {:?}", snapshot.unreadable))
        .why
        .clone()
}

#[test]
fn contents_that_are_not_what_they_should_be_are_noted_and_the_rest_is_read() {
    let guest = kinds::worked_example();
    guest.write(&format!("{EXAMPLE_DEVICE}/id"), "fourteen");
    guest.write(&format!("{EXAMPLE_DEVICE}/class_id"), &"x".repeat(100_000));
    std::fs::write(guest.path(&format!("{EXAMPLE_DEVICE}/channel_vp_mapping")), [0xff, 0]).unwrap();
    guest.write("sys/bus/pci/slots/1/address", "everywhere");
    guest.write("sys/class/net/eth1/mtu", "-5");
    let snapshot = read(&guest);
    assert!(note(&snapshot, "/id").contains("found `fourteen`"));
    assert!(note(&snapshot, "/class_id").contains("at most 4096 bytes"));
    assert!(note(&snapshot, "/channel_vp_mapping").contains("binary"));
    assert!(note(&snapshot, "/slots/1/address").contains("927a:00:02"));
    assert!(note(&snapshot, "/eth1/mtu").contains("-5"));
    assert_eq!(snapshot.unreadable.len(), 5);
    assert_eq!(snapshot.nics().count(), 1, "a device without a class is none of them");
    assert_eq!(snapshot.links.len(), 6);
}

#[test]
fn things_of_the_wrong_kind_are_noted() {
    let guest = kinds::worked_example();
    let device = guest.path(EXAMPLE_DEVICE);
    std::fs::remove_file(device.join("id")).unwrap();
    std::fs::create_dir(device.join("id")).unwrap();
    std::fs::remove_file(device.join("driver")).unwrap();
    std::fs::write(device.join("driver"), "hv_netvsc").unwrap();
    guest.write("sys/bus/vmbus/devices/not-a-guid", "");
    guest.write("sys/class/net/file", "");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        guest.path("sys/class/net/eth0/speed2"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    std::fs::rename(
        guest.path("sys/class/net/eth0/speed2"),
        guest.path("sys/class/net/eth0/speed"),
    )
    .unwrap();
    let snapshot = read(&guest);
    assert!(note(&snapshot, "/id").contains("directory"));
    assert!(note(&snapshot, "/driver").contains("link"));
    assert!(note(&snapshot, "/not-a-guid").contains("GUID"));
    assert!(note(&snapshot, "/net/file").contains("directory"));
    assert_eq!(snapshot.link("eth0").unwrap().speed, None, "a pipe nobody writes to is empty");
}

#[test]
fn links_that_loop_or_lead_nowhere_are_no_trap() {
    let guest = kinds::worked_example();
    let net = guest.path("sys/class/net");
    symlink("loop", net.join("loop")).unwrap();
    symlink("../../../nowhere", net.join("gone")).unwrap();
    guest.remove("sys/class/net/eth0/address");
    symlink("address", guest.path("sys/class/net/eth0/address")).unwrap();
    let snapshot = read(&guest);
    assert!(note(&snapshot, "/net/loop").contains("links"));
    assert!(note(&snapshot, "/eth0/address").contains("link"));
    assert!(snapshot.link("gone").is_none());
    assert_eq!(snapshot.link("eth0").unwrap().mac, None);
}

#[test]
fn no_link_leads_out_of_the_root() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("ifindex"), "77\n").unwrap();
    let guest = kinds::worked_example();
    let net = guest.path("sys/class/net");
    symlink(outside.path(), net.join("absolute")).unwrap();
    let ups = "../".repeat(40);
    symlink(format!("{ups}{}", outside.path().display()), net.join("upwards")).unwrap();
    let secret = outside.path().join("ifindex");
    guest.remove("proc/sys/kernel/osrelease");
    symlink(&secret, guest.path("proc/sys/kernel/osrelease")).unwrap();
    let snapshot = read(&guest);
    assert!(snapshot.link("absolute").is_none() && snapshot.link("upwards").is_none());
    assert_eq!(snapshot.release, None);
}

#[test]
fn what_is_forbidden_is_said() {
    if rustix::process::geteuid().is_root() {
        // Root may read everything; without the right kind of user there is nothing to see.
        eprintln!("skipped: what_is_forbidden_is_said: root may read everything");
        return;
    }
    let guest = kinds::worked_example();
    let closed = std::fs::Permissions::from_mode(0o000);
    std::fs::set_permissions(guest.path("dev/kmsg"), closed.clone()).unwrap();
    std::fs::set_permissions(guest.path(&format!("{EXAMPLE_DEVICE}/id")), closed).unwrap();
    let snapshot = read(&guest);
    assert!(note(&snapshot, "/dev/kmsg").contains("CAP_SYSLOG"));
    assert!(note(&snapshot, "/id").contains("permission denied"));
    assert!(!snapshot.log.read);
}

#[test]
fn notes_do_not_grow_without_bound() {
    let guest = Guest::new();
    for number in 0..400 {
        guest.write(&format!("sys/bus/vmbus/devices/wrong{number}"), "");
    }
    let snapshot = read(&guest);
    assert_eq!(snapshot.unreadable.len(), 257);
    assert!(snapshot.unreadable[256].why.contains("144 more"));
}

#[test]
fn files_that_vanish_while_they_are_read_are_no_failure() {
    let guest = kinds::worked_example();
    let paths: Vec<_> = ["eth0", "eth1", "eth2", "enP37498s1"]
        .map(|name| guest.path(&format!("sys/class/net/{name}")))
        .into();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for path in &paths {
                    let away = path.with_extension("away");
                    let _ =
                        std::fs::rename(path, &away).and_then(|()| std::fs::rename(&away, path));
                }
            }
        });
        for _ in 0..50 {
            assert_eq!(read(&guest).nics().count(), 2);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// What decides about pairs, of every link, however it was learnt.
fn links(snapshot: &Snapshot) -> Vec<String> {
    let line = |link: &NetDevice| {
        let mut around = [link.uppers.clone(), link.lowers.clone()];
        around.iter_mut().for_each(|names| names.sort());
        let is = (&link.name, link.index, link.kind, link.mac, link.permanent, &link.parent);
        let has = (link.soft, &link.master, around, link.port, link.flags, link.mtu);
        format!("{is:?} {has:?} {:?} {:?}", link.operstate, link.carrier)
    };
    snapshot.links.iter().map(line).collect()
}

#[test]
fn what_netlink_tells_is_what_sysfs_shows() {
    type Make = fn() -> Guest;
    let kinds: [Make; 12] = [
        kinds::azure_mlx4,
        kinds::azure_mlx5,
        kinds::azure_mana,
        kinds::mana_only,
        kinds::on_prem,
        kinds::emulated_beside,
        kinds::mid_servicing,
        kinds::after_hibernation,
        kinds::driver_missing,
        kinds::bonded,
        kinds::duplicate_slot,
        kinds::uio_bound,
    ];
    for (at, make) in kinds.into_iter().enumerate() {
        let guest = make();
        let shown = take(Some(guest.root()), Depth::Pairs).unwrap();
        assert!(shown.links.iter().all(|link| link.told.is_none()));
        guest.tell_links();
        let told = take(Some(guest.root()), Depth::Pairs).unwrap();
        assert!(told.links.iter().all(|link| link.told.is_some()));
        assert_eq!(links(&told), links(&shown), "guest {at}");
        assert_eq!(told.functions, shown.functions, "guest {at}");
    }
}

// HISTORY 65
#[test]
fn an_interface_that_is_renamed_while_it_is_read_is_looked_at_again() {
    let mut guest = Guest::new();
    let function = guest.function(kinds::BUS_A, "1", &MLX5);
    let port = guest.port(&function, "enP37498s1", kinds::NIC_A.1, 3);
    guest.tell_links();
    // What netlink said is older than the tree: another interface has that name now.
    guest.remove("sys/class/net/enP37498s1");
    guest.software("enP37498s1", "02:00:00:00:00:07");
    std::fs::rename(guest.path(&port.net), guest.path(&port.net.replace("enP37498s1", "fast0")))
        .unwrap();
    let snapshot = take(Some(guest.root()), Depth::Pairs).unwrap();
    let link = snapshot.link("enP37498s1").unwrap();
    assert_eq!((&link.parent, link.permanent), (&Parent::None, None));
}

#[test]
fn sixty_four_pairs_take_few_reads() {
    let guest = kinds::many(64);
    let touched = |depth| take_counting(Some(guest.root()), depth).unwrap().1;
    // Per pair 7 for two VMBus devices, 1 for a slot, 4 for a function, 1 for its port.
    assert!(touched(Depth::Pairs) < 13 * 64 + 32, "{}", touched(Depth::Pairs));
    assert!(touched(Depth::Full) > 64 * 64, "{}", touched(Depth::Full));
}

#[test]
fn the_running_system_can_be_read_wherever_this_runs() {
    let snapshot = take(None, Depth::Full).expect("the root of the file system");
    assert!(snapshot.live && snapshot.links.iter().any(|link| link.name == "lo"));
}
