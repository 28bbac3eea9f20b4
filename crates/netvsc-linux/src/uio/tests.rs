//! Binding against a small imitation of the kernel; what is mapped is tried on a real VMBus (testbed/).

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proptest::prelude::*;
use tempfile::TempDir;
use vmbus::Doorbell as _;
use vmbus::{GpadlId, Guid};

use super::bind::{Sysfs, restore_all_by};
use super::*;

const NIC: &str = "f8615163-0000-1000-2000-6045bd000001";

/// A VMBus with one device, as a kernel would keep it.
struct Bus {
    dir: TempDir,
    /// Drivers that refuse every device.
    refusing: Vec<&'static str>,
    /// The write, counted from 0, that is not permitted.
    forbidden: Option<usize>,
    written: Vec<Change>,
}

impl Bus {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let folder = root.join("sys/bus/vmbus/devices").join(NIC);
        fs::create_dir_all(&folder).unwrap();
        for driver in [KERNEL_NIC_DRIVER, UIO_DRIVER] {
            fs::create_dir_all(root.join("sys/bus/vmbus/drivers").join(driver)).unwrap();
        }
        fs::write(folder.join("driver_override"), "(null)\n").unwrap();
        let bus = Self { dir, refusing: Vec::new(), forbidden: None, written: Vec::new() };
        bus.attach(KERNEL_NIC_DRIVER);
        bus
    }

    fn root(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("sys/bus/vmbus/devices").join(NIC)
    }

    fn journal(&self) -> Journal {
        Journal::new(self.dir.path().join("run/netvsc/bind"))
    }

    fn attach(&self, driver: &str) {
        let drivers = self.dir.path().join("sys/bus/vmbus/drivers");
        symlink(drivers.join(driver), self.folder().join("driver")).unwrap();
    }

    fn driver(&self) -> Option<String> {
        Record::of(self.dir.path(), NIC).unwrap().driver
    }

    fn bind(&mut self) -> Result<Binding, BindError> {
        let (root, journal) = (self.root(), self.journal());
        Binding::to_by(self, &root, NIC, UIO_DRIVER, journal)
    }
}

impl Sysfs for Bus {
    fn write(&mut self, change: &Change) -> io::Result<()> {
        let at = self.written.len();
        self.written.push(change.clone());
        if self.forbidden == Some(at) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let link = self.folder().join("driver");
        match change.path.file_name().and_then(|name| name.to_str()) {
            Some("driver_override") => {
                let text = if change.value.is_empty() { "(null)" } else { &change.value };
                fs::write(&change.path, format!("{text}\n"))
            }
            Some("unbind") => {
                assert_eq!(change.value, NIC);
                fs::remove_file(link)
            }
            Some("drivers_probe") => {
                assert_eq!(change.value, NIC);
                let chosen = fs::read_to_string(self.folder().join("driver_override"))?;
                let driver = match chosen.trim_end() {
                    "(null)" => KERNEL_NIC_DRIVER,
                    chosen => chosen,
                };
                if !self.refusing.contains(&driver) && !link.exists() {
                    self.attach(driver);
                }
                Ok(())
            }
            _ => panic!("{change}"),
        }
    }
}

/// The writes that were made, without the folders.
fn written(bus: &Bus) -> Vec<(String, String)> {
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    bus.written.iter().map(|change| (name(&change.path), change.value.clone())).collect()
}

#[test]
fn a_nic_goes_to_user_space_and_back_in_three_writes_each() {
    let mut bus = Bus::new();
    let mut binding = bus.bind().unwrap();
    assert_eq!(bus.driver().as_deref(), Some(UIO_DRIVER));
    let own = |steps: [(&str, &str); 3]| steps.map(|(path, value)| (path.into(), value.into()));
    let there = own([("driver_override", UIO_DRIVER), ("unbind", NIC), ("drivers_probe", NIC)]);
    assert_eq!(written(&bus), there);
    assert_eq!(bus.journal().records().unwrap().len(), 1);

    bus.written.clear();
    binding.restore_by(&mut bus).unwrap();
    let back = own([("driver_override", ""), ("unbind", NIC), ("drivers_probe", NIC)]);
    assert_eq!(written(&bus), back);
    assert_eq!(bus.driver().as_deref(), Some(KERNEL_NIC_DRIVER));
    assert_eq!(bus.journal().records().unwrap(), []);
}

#[test]
fn an_override_that_an_operator_made_comes_back() {
    let mut bus = Bus::new();
    fs::write(bus.folder().join("driver_override"), format!("{KERNEL_NIC_DRIVER}\n")).unwrap();
    let mut binding = bus.bind().unwrap();
    binding.restore_by(&mut bus).unwrap();
    let record = Record::of(&bus.root(), NIC).unwrap();
    assert_eq!(record.driver_override.as_deref(), Some(KERNEL_NIC_DRIVER));
}

#[test]
fn what_is_shown_is_what_is_written() {
    let mut bus = Bus::new();
    let shown = Record::of(&bus.root(), NIC).unwrap().changes_to(&bus.root(), UIO_DRIVER);
    bus.bind().unwrap().keep().unwrap();
    assert_eq!(bus.written, shown);
    let line = shown[1].to_string();
    assert!(
        line.starts_with(&format!("echo '{NIC}' > ")) && line.ends_with("driver/unbind"),
        "{line}"
    );
}

#[test]
fn whichever_write_is_refused_all_is_as_before() {
    for forbidden in 0..3 {
        let mut bus = Bus::new();
        bus.forbidden = Some(forbidden);
        let error = bus.bind().unwrap_err();
        assert!(matches!(error, BindError::Refused { .. }), "{error}");
        assert_eq!(bus.driver().as_deref(), Some(KERNEL_NIC_DRIVER));
        assert_eq!(bus.journal().records().unwrap(), []);
    }
}

#[test]
fn a_driver_that_refuses_the_device_does_not_get_it() {
    // Linux 6.1's uio_hv_generic takes no channel that needs a hypercall to ring.
    let mut bus = Bus::new();
    bus.refusing.push(UIO_DRIVER);
    let error = bus.bind().unwrap_err();
    assert!(matches!(&error, BindError::Elsewhere { found: None, .. }), "{error}");
    assert_eq!(bus.driver().as_deref(), Some(KERNEL_NIC_DRIVER));
}

#[test]
fn a_run_that_was_killed_is_undone_by_its_journal() {
    let mut bus = Bus::new();
    bus.bind().unwrap().keep().unwrap();
    // The next run does not take it for the device's own driver.
    let error = bus.bind().unwrap_err();
    assert!(matches!(error, BindError::Journalled { .. }), "{error}");
    let (root, journal) = (bus.root(), bus.journal());
    let done = restore_all_by(&mut bus, &root, &journal).unwrap();
    assert_eq!(done.len(), 1);
    assert!(done[0].outcome.is_ok() && done[0].record.device.to_string() == NIC);
    assert_eq!(bus.driver().as_deref(), Some(KERNEL_NIC_DRIVER));
    assert!(restore_all_by(&mut bus, &root, &journal).unwrap().is_empty());
}

/// The interface that the kernel's driver makes.
fn interface(bus: &Bus, name: &str, kind: &str) {
    let folder = bus.folder().join("net").join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("addr_assign_type"), format!("{kind}\n")).unwrap();
    fs::write(folder.join("address"), "00:15:5d:00:00:01\n").unwrap();
}

#[test]
fn the_next_run_takes_over_what_a_killed_one_had_and_gives_it_back() {
    let mut bus = Bus::new();
    interface(&bus, "eth1", "0");
    let root = bus.root();
    let guid = Guid::try_parse(NIC).unwrap();
    let binding = bus.bind().unwrap();
    // As long as it lives, it is alone.
    let error = Binding::adopt(&root, guid, bus.journal()).unwrap_err();
    assert!(matches!(&error, BindError::Driven { device } if device == NIC), "{error}");
    // Killed: what is left is the record, and how people know the NIC.
    std::mem::forget(binding);
    release_locks(&bus);
    let record = bus.journal().record(guid).unwrap().unwrap();
    assert!(record.is_called("eth1") && record.is_called("00:15:5D:00:00:01") && !record.kept);
    assert!(
        !record.is_called("eth2")
            && !record.is_called("")
            && !record.is_called("00:15:5d:00:00:02")
    );
    let mut next = Binding::adopt(&root, guid, bus.journal()).unwrap();
    next.restore_by(&mut bus).unwrap();
    assert_eq!(
        (bus.driver().as_deref(), bus.journal().records().unwrap()),
        (Some(KERNEL_NIC_DRIVER), vec![])
    );
}

/// The descriptors of a process that was killed are closed; here the next one gets another file to lock instead.
fn release_locks(bus: &Bus) {
    fs::remove_file(bus.root().join("run/netvsc/bind").join(NIC).with_extension("lock")).unwrap();
}

#[test]
fn a_device_that_has_its_driver_again_keeps_it() {
    let mut bus = Bus::new();
    let (root, journal) = (bus.root(), bus.journal());
    std::mem::forget(bus.bind().unwrap());
    release_locks(&bus);
    // The run was killed, and the host offers the device again; or somebody gave it back by hand, but for the override.
    for (chosen, writes) in [("(null)", 0), (UIO_DRIVER, 1)] {
        let record = bus.journal().records().unwrap().remove(0);
        fs::write(bus.folder().join("driver_override"), format!("{chosen}\n")).unwrap();
        fs::remove_file(bus.folder().join("driver")).unwrap();
        bus.attach(KERNEL_NIC_DRIVER);
        bus.written.clear();
        let shown = record.changes_back(&root);
        assert_eq!((shown.len(), record.changes_back_later(&root).len()), (writes, 3));
        let done = restore_all_by(&mut bus, &root, &journal).unwrap();
        assert_eq!((done[0].outcome.as_ref().unwrap(), &bus.written), (&shown, &shown));
        let now = Record::of(&root, NIC).unwrap();
        assert_eq!((now.driver.as_deref(), now.driver_override), (Some(KERNEL_NIC_DRIVER), None));
        assert_eq!(journal.records().unwrap(), []);
        std::mem::forget(bus.bind().unwrap());
        release_locks(&bus);
    }
}

#[test]
fn a_record_of_a_device_that_is_offered_again_is_in_nobodys_way() {
    let mut bus = Bus::new();
    std::mem::forget(bus.bind().unwrap());
    release_locks(&bus);
    // The run was killed, and the host took the device away and offers it again: to the kernel it is a new one.
    fs::write(bus.folder().join("driver_override"), "(null)\n").unwrap();
    fs::remove_file(bus.folder().join("driver")).unwrap();
    bus.attach(KERNEL_NIC_DRIVER);
    let mut next = bus.bind().unwrap();
    assert_eq!(bus.driver().as_deref(), Some(UIO_DRIVER));
    next.restore_by(&mut bus).unwrap();
    assert_eq!(bus.driver().as_deref(), Some(KERNEL_NIC_DRIVER));
    assert_eq!(bus.journal().records().unwrap(), []);
}

/// The kernel, while somebody else does something just before the write with this number.
struct Meanwhile<'a, F> {
    bus: &'a mut Bus,
    at: usize,
    what: Option<F>,
}

impl<F: FnOnce(&mut Bus)> Sysfs for Meanwhile<'_, F> {
    fn write(&mut self, change: &Change) -> io::Result<()> {
        if self.bus.written.len() == self.at
            && let Some(what) = self.what.take()
        {
            what(self.bus);
        }
        self.bus.write(change)
    }
}

fn is_driven<T>(outcome: Result<T, BindError>) -> bool {
    matches!(outcome, Err(BindError::Driven { device }) if device == NIC)
}

#[test]
fn of_two_that_take_a_device_at_the_same_time_one_gets_it() {
    for at in 0..3 {
        let mut bus = Bus::new();
        let (root, journal) = (bus.root(), bus.journal());
        let mut second = None;
        let what = Some(|bus: &mut Bus| second = Some(bus.bind()));
        let mut kernel = Meanwhile { bus: &mut bus, at, what };
        let first = Binding::to_by(&mut kernel, &root, NIC, UIO_DRIVER, journal);
        assert!(second.is_some_and(is_driven), "before write {at}");
        let mut first = first.unwrap();
        let own = first.record().unwrap();
        assert_eq!(own.driver.as_deref(), Some(KERNEL_NIC_DRIVER));
        assert_eq!(bus.driver().as_deref(), Some(UIO_DRIVER));
        assert_eq!(bus.journal().records().unwrap(), std::slice::from_ref(own));
        first.restore_by(&mut bus).unwrap();
        assert_eq!(bus.driver().as_deref(), Some(KERNEL_NIC_DRIVER));
    }
}

#[test]
fn a_device_that_is_being_given_back_is_taken_only_afterwards() {
    for at in 0..3 {
        let mut bus = Bus::new();
        let mut first = bus.bind().unwrap();
        bus.written.clear();
        let mut second = None;
        let what = Some(|bus: &mut Bus| second = Some(bus.bind()));
        first.restore_by(&mut Meanwhile { bus: &mut bus, at, what }).unwrap();
        assert!(second.is_some_and(is_driven), "before write {at}");
        assert_eq!(bus.journal().records().unwrap(), []);
        // What it still does as it goes is no matter of its successor's.
        assert!(is_driven(bus.bind()));
        drop(first);
        let next = bus.bind().unwrap();
        assert_eq!(bus.journal().records().unwrap(), [next.record().unwrap().clone()]);
        next.keep().unwrap();
    }
}

#[test]
fn nobody_gives_back_what_is_driven() {
    let mut bus = Bus::new();
    let (root, journal) = (bus.root(), bus.journal());
    let mut run = bus.bind().unwrap();
    bus.written.clear();
    let done = restore_all_by(&mut bus, &root, &journal).unwrap();
    let [Restored { outcome: Err(error), .. }] = &done[..] else { panic!("{done:?}") };
    assert!(matches!(error, BindError::Driven { device } if device == NIC), "{error}");
    assert!(bus.written.is_empty() && bus.driver().as_deref() == Some(UIO_DRIVER));
    assert_eq!(journal.records().unwrap().len(), 1);
    run.restore_by(&mut bus).unwrap();
}

#[test]
fn a_device_that_somebody_else_bound_is_driven_by_one_as_well() {
    let bus = Bus::new();
    let (root, guid) = (bus.root(), Guid::try_parse(NIC).unwrap());
    // As driverctl does it: the journal knows nothing of it.
    fs::write(bus.folder().join("driver_override"), format!("{UIO_DRIVER}\n")).unwrap();
    fs::remove_file(bus.folder().join("driver")).unwrap();
    bus.attach(UIO_DRIVER);
    let first = Binding::adopt(&root, guid, bus.journal()).unwrap();
    assert!(first.record().is_none());
    assert!(is_driven(Binding::adopt(&root, guid, bus.journal())));
    drop(first);
    drop(Binding::adopt(&root, guid, bus.journal()).unwrap());
    assert_eq!(bus.journal().records().unwrap(), []);
}

/// Not a test by itself: drives the device below this root until it is killed.
const DRIVER_OF: &str = "NETVSC_TEST_DRIVES";

#[test]
fn drives_until_it_is_killed() {
    let Some(root) = std::env::var_os(DRIVER_OF).map(PathBuf::from) else { return };
    let journal = Journal::new(root.join("run/netvsc/bind"));
    let _run = Binding::adopt(&root, Guid::try_parse(NIC).unwrap(), journal).unwrap();
    // A child that survives it, and has what children get.
    let child = Command::new("cat").stdin(Stdio::inherit()).stdout(Stdio::null()).spawn();
    println!("drives {}", child.unwrap().id());
    // At the latest it ends with the test.
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
}

#[test]
fn a_run_that_is_killed_drives_nothing_any_more_and_nor_do_its_children() {
    let mut bus = Bus::new();
    let (root, guid) = (bus.root(), Guid::try_parse(NIC).unwrap());
    std::mem::forget(bus.bind().unwrap());
    release_locks(&bus);
    let mut run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "uio::tests::drives_until_it_is_killed", "--nocapture"])
        .env(DRIVER_OF, &root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The child of the run ends with this.
    let child = run.stdin.take();
    let said = BufReader::new(run.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(said.into_iter().any(|line| line.contains("drives ")), "it ended before");
    assert!(is_driven(Binding::adopt(&root, guid, bus.journal())));
    run.kill().unwrap();
    run.wait().unwrap();
    let mut next = Binding::adopt(&root, guid, bus.journal()).unwrap();
    next.restore_by(&mut bus).unwrap();
    assert_eq!(bus.driver().as_deref(), Some(KERNEL_NIC_DRIVER));
    drop(child);
}

#[test]
fn a_device_can_be_held_by_nobody_who_only_looks_into_the_folder() {
    let mut bus = Bus::new();
    let folder = bus.root().join("run/netvsc/bind");
    fs::create_dir_all(&folder).unwrap();
    // What a run left that was killed as it wrote.
    fs::write(folder.join(NIC).with_extension("new"), "dev").unwrap();
    let binding = bus.bind().unwrap();
    let lock = folder.join(NIC).with_extension("lock");
    for path in [folder.join(NIC), lock.clone()] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o600);
    }
    binding.keep().unwrap();
    // Something else in its place is told.
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    let error = bus.journal().hold(Guid::try_parse(NIC).unwrap()).unwrap_err();
    assert!(matches!(&error, BindError::Foreign(it) if it.path == lock), "{error}");
}

#[test]
fn what_was_left_in_user_space_on_purpose_stays_there() {
    let mut bus = Bus::new();
    interface(&bus, "eth1", "3");
    let (root, guid) = (bus.root(), Guid::try_parse(NIC).unwrap());
    bus.bind().unwrap().keep().unwrap();
    let record = bus.journal().record(guid).unwrap().unwrap();
    assert!(record.kept && record.is_called("eth1"));
    assert_eq!(record.mac, None, "somebody had given it another one");
    bus.written.clear();
    let mut run = Binding::adopt(&root, guid, bus.journal()).unwrap();
    run.restore_by(&mut bus).unwrap();
    assert!(bus.written.is_empty() && bus.driver().as_deref() == Some(UIO_DRIVER));
    drop(run);
    // A record of before there were such things is one of those, too; without any, there is nothing to give back.
    let old = format!("device {NIC}\ndriver {KERNEL_NIC_DRIVER}\noverride \n");
    fs::write(root.join("run/netvsc/bind").join(NIC), old).unwrap();
    assert!(bus.journal().record(guid).unwrap().unwrap().kept);
    restore_all_by(&mut bus, &root, &Journal::new(root.join("run/netvsc/bind"))).unwrap();
    assert!(Binding::adopt(&root, guid, bus.journal()).unwrap().record().is_none());
}

#[test]
fn a_device_that_the_host_took_away_is_given_back_by_forgetting_it() {
    let mut bus = Bus::new();
    let mut binding = bus.bind().unwrap();
    fs::remove_dir_all(bus.folder()).unwrap();
    bus.written.clear();
    binding.restore_by(&mut bus).unwrap();
    assert!(bus.written.is_empty());
    assert_eq!(bus.journal().records().unwrap(), []);
}

#[test]
fn names_that_are_no_devices_and_drivers_that_are_not_there_are_told() {
    let bus = Bus::new();
    let root = bus.root();
    let of = |device: &str| Record::of(&root, device).unwrap_err();
    assert!(matches!(of("../../devices"), BindError::Name(_)));
    assert!(matches!(of("f8615163-0000-1000-2000-6045bd000002"), BindError::NoDevice { .. }));
    let error = Binding::to(&root, NIC, "vfio", bus.journal()).unwrap_err();
    assert_eq!(error.to_string(), "the driver vfio is not loaded: `modprobe vfio`");
}

#[test]
fn a_spoilt_record_is_told_by_line_and_nothing_is_written() {
    let mut bus = Bus::new();
    let (root, journal) = (bus.root(), bus.journal());
    let folder = root.join("run/netvsc/bind");
    fs::create_dir_all(&folder).unwrap();
    for (text, wrong) in [
        ("", 1),
        ("device nobody\n", 1),
        (&format!("device {NIC}\ndriver ../../x\noverride \n"), 2),
        (&format!("device {NIC}\ndriver x\n"), 1),
        ("device f8615163-0000-1000-2000-6045bd000002\ndriver x\noverride \n", 1),
        (&format!("device {NIC}\ndriver x\nchosen y\n"), 3),
        (&format!("device {NIC}\ndriver x\noverride \nmac 1\n"), 4),
        (&format!("device {NIC}\ndriver x\noverride \ninterface a/b\n"), 4),
        (&format!("device {NIC}\ndriver x\noverride \nkept yes\nkept maybe\n"), 5),
    ] {
        fs::write(folder.join(NIC), text).unwrap();
        let error = restore_all_by(&mut bus, &root, &journal).unwrap_err();
        assert!(
            matches!(error, BindError::Record { line, .. } if line == wrong),
            "{text}: {error}"
        );
    }
    assert!(bus.written.is_empty());
}

#[test]
fn the_names_of_maps_carry_the_numbers_under_which_memory_is_shared() {
    assert_eq!(MapKind::parse("txrx_rings"), Some(MapKind::Rings));
    assert_eq!(MapKind::parse("recv:923432"), Some(MapKind::Receive(GpadlId(923_432))));
    assert_eq!(MapKind::parse("send:1"), Some(MapKind::Send(GpadlId(1))));
    for name in ["", "recv", "recv:", "recv:-1", "recv:4294967296", "sent:1"] {
        assert_eq!(MapKind::parse(name), None, "{name}");
    }
}

/// A tree with a uio device whose file is a plain one: enough to see what is read and refused.
fn uio_tree(bus: &Bus, maps: &[(&str, &str)]) {
    let uio = bus.folder().join("uio/uio0");
    for (index, (name, size)) in maps.iter().enumerate() {
        let map = uio.join(format!("maps/map{index}"));
        fs::create_dir_all(&map).unwrap();
        fs::write(map.join("name"), format!("{name}\n")).unwrap();
        fs::write(map.join("size"), format!("{size}\n")).unwrap();
    }
    fs::create_dir_all(&uio).unwrap();
    fs::write(bus.folder().join("id"), "15\n").unwrap();
    fs::create_dir_all(bus.root().join("dev")).unwrap();
    let file = fs::File::create(bus.root().join("dev/uio0")).unwrap();
    file.set_len(64 << 10).unwrap();
}

#[test]
fn a_device_is_opened_by_what_its_maps_say() {
    let bus = Bus::new();
    let error = Device::open(&bus.root(), NIC).unwrap_err();
    assert!(matches!(error, UioError::NotBound { .. }), "{error}");

    uio_tree(&bus, &[("txrx_rings", "0x8000"), ("int_page", "0x1000"), ("recv:7", "0x4000")]);
    let device = Device::open(&bus.root(), NIC).unwrap();
    assert_eq!((device.name(), device.maps().len()), ("uio0", 3));
    // The index is the place: the file is plain, so maps lie over each other here.
    let (gpadl, memory) = device.receive_buffer().unwrap();
    assert_eq!((gpadl, memory.pages()), (GpadlId(7), 4));
    let error = device.send_buffer().unwrap_err();
    assert!(matches!(error, UioError::NoMap { map: "send:N", .. }), "{error}");
    let channel = device.channel().unwrap();
    assert_eq!(channel.capacity(), 3 * 4096 - 8);
}

/// A channel's folder, as the kernel makes it.
fn channel(bus: &Bus, number: u32, index: &str, monitor: Option<&str>) -> PathBuf {
    let folder = bus.folder().join(format!("channels/{number}"));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("subchannel_id"), format!("{index}\n")).unwrap();
    if let Some(monitor) = monitor {
        fs::write(folder.join("monitor_id"), format!("{monitor}\n")).unwrap();
    }
    fs::write(folder.join("ring"), vec![0; 32 << 10]).unwrap();
    folder
}

#[test]
fn sub_channels_are_those_that_are_open_on_kernels_that_survive_them() {
    let bus = Bus::new();
    uio_tree(&bus, &[("txrx_rings", "0x8000"), ("monitor_page", "0x1000")]);
    channel(&bus, 15, "0", Some("2"));
    channel(&bus, 18, "2", None);
    channel(&bus, 19, "3", Some("255"));
    let second = channel(&bus, 17, "1", Some("3"));
    // One of which the kernel has made no more than the folder, and one that is not open.
    fs::create_dir_all(bus.folder().join("channels/20")).unwrap();
    fs::remove_file(channel(&bus, 21, "4", Some("4")).join("ring")).unwrap();
    let release = bus.root().join("proc/sys/kernel/osrelease");
    fs::create_dir_all(release.parent().unwrap()).unwrap();
    for (kernel, expected) in [
        ("6.1.0-49-amd64", vec![]),
        ("6.12.94-cloud", vec![]),
        ("6.16.0", vec![17, 18, 19]),
        ("7.0-rc1", vec![17, 18, 19]),
        ("", vec![]),
    ] {
        fs::write(&release, format!("{kernel}\n")).unwrap();
        let device = Device::open(&bus.root(), NIC).unwrap();
        let found = device.sub_channels().unwrap();
        let numbers: Vec<u32> = found.iter().map(|sub| sub.channel.0).collect();
        assert_eq!(numbers, expected, "on {kernel}");
        assert_eq!(device.serves_sub_channels(), !expected.is_empty());
        for sub in &found {
            assert!(device.sub_channel(sub).unwrap().is_some());
        }
    }
    fs::write(&release, "6.16.0\n").unwrap();
    let device = Device::open(&bus.root(), NIC).unwrap();
    let found = device.sub_channels().unwrap();
    fs::remove_dir_all(&second).unwrap();
    assert!(device.sub_channel(&found[0]).unwrap().is_none(), "the host took it back");
    channel(&bus, 17, "no number", None);
    let error = device.sub_channels().unwrap_err();
    assert!(matches!(error, UioError::Attribute { expected: "a number", .. }), "{error}");
}

#[test]
fn a_host_with_monitor_pages_is_rung_by_the_channels_flag_and_then_its_bit() {
    let bus = Bus::new();
    // Maps lie over each other in a plain file; these two lie apart, behind the rings.
    let maps = [("txrx_rings", "0x8000"), ("int_page", "0x1000"), ("monitor_page", "0x1000")];
    uio_tree(&bus, &maps);
    channel(&bus, 15, "0", Some("40"));
    channel(&bus, 70, "1", Some("41"));
    let release = bus.root().join("proc/sys/kernel/osrelease");
    fs::create_dir_all(release.parent().unwrap()).unwrap();
    fs::write(release, "6.16.0\n").unwrap();
    let device = Device::open(&bus.root(), NIC).unwrap();
    let bytes = |page: usize, at: usize| {
        let file = fs::read(bus.root().join("dev/uio0")).unwrap();
        u32::from_le_bytes(*file[page * 4096 + at..].first_chunk().unwrap())
    };
    let doorbell = device.doorbell(Some(40), Some(15)).unwrap();
    doorbell.ring();
    assert_eq!(bytes(1, 2048), 1 << 15, "in the half that is the guest's");
    assert_eq!(bytes(2, 8 + 8), 1 << 8, "number 40 is the ninth of the second group");
    let sub = device.sub_channels().unwrap().remove(0);
    device.doorbell(sub.monitor, Some(sub.channel.0)).unwrap().ring();
    assert_eq!(
        (bytes(1, 2048), bytes(1, 2048 + 8)),
        (1 << 15, 1 << 6),
        "70 is 6 of the third word"
    );
    assert_eq!(bytes(2, 8 + 8), 3 << 8);
    // Without a number that there is a flag for, the bit is all.
    device.doorbell(Some(2), Some(2048)).unwrap().ring();
    device.doorbell(Some(3), None).unwrap().ring();
    assert_eq!(bytes(2, 8), 3 << 2);
}

#[test]
fn maps_of_sizes_that_cannot_be_are_refused() {
    for (size, ring) in [("0x0", false), ("banana", false), ("0x3000", true), ("0x1000", true)] {
        let bus = Bus::new();
        uio_tree(&bus, &[("txrx_rings", size)]);
        let error = Device::open(&bus.root(), NIC).and_then(|device| device.channel().map(|_| ()));
        let error = error.unwrap_err();
        assert_eq!(matches!(error, UioError::RingSize { .. }), ring, "{error}");
        assert!(ring || matches!(error, UioError::Attribute { .. }), "{error}");
    }
}

#[test]
fn another_kind_of_uio_device_is_left_alone() {
    let bus = Bus::new();
    uio_tree(&bus, &[("registers", "0x1000")]);
    let error = Device::open(&bus.root(), NIC).unwrap_err();
    assert!(matches!(error, UioError::NoMap { map: "txrx_rings", .. }), "{error}");
}

proptest! {
    // Each case waits for the disk.
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_record_survives_the_journal(
        driver in "[a-z_]{0,12}",
        chosen in "[a-z_]{0,12}",
        names in prop::collection::btree_set("[a-z0-9@:.]{1,12}[a-z]", 0..3),
    ) {
        let name = |name: String| (!name.is_empty()).then_some(name);
        let mut bus = Bus::new();
        names.iter().for_each(|name| interface(&bus, name, "0"));
        if let Some(chosen) = name(chosen.clone()) {
            fs::write(bus.folder().join("driver_override"), chosen).unwrap();
        }
        fs::remove_file(bus.folder().join("driver")).unwrap();
        if let Some(driver) = name(driver) {
            fs::create_dir_all(bus.root().join("sys/bus/vmbus/drivers").join(&driver)).unwrap();
            bus.attach(&driver);
        }
        let before = Record::of(&bus.root(), NIC).unwrap();
        bus.bind().unwrap().keep().unwrap();
        let kept = Record { kept: true, ..before };
        prop_assert_eq!(bus.journal().records().unwrap(), vec![kept]);
    }
}
