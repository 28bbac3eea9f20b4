//! The catalogue against every kind of guest and every complaint: exactly what is wrong, no more and no fewer.

#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;

use std::collections::{BTreeMap, BTreeSet};

use guest::complaints::{COMPLAINTS, Complaint, Expected, networkd};
use guest::faults::{HEALTHY, OTHERS};
use guest::{Guest, faults, kinds};
use netvsc_linux::check::{self, Label, Report, Severity};
use netvsc_linux::inventory::{Depth, take};
use netvsc_linux::relation::Relations;

/// What the checks say about a tree.
fn report(guest: &Guest) -> Report {
    let snapshot = take(Some(guest.root()), Depth::Checks).expect("the root is a directory");
    let relations = Relations::of(&snapshot);
    check::run(&check::Guest::new(&snapshot, &relations), |_| true)
}

type Row = (String, String, String);

fn rows(report: &Report) -> BTreeSet<Row> {
    let row = |finding: &check::Finding| {
        (finding.id.to_owned(), finding.severity.to_string(), finding.subject.clone())
    };
    assert_eq!(
        report.findings.iter().map(row).collect::<BTreeSet<_>>().len(),
        report.findings.len()
    );
    report.findings.iter().map(row).collect()
}

fn expected(expected: Expected) -> BTreeSet<Row> {
    expected.iter().map(|(a, b, c)| ((*a).into(), (*b).into(), (*c).into())).collect()
}

#[test]
fn healthy_guests_have_no_findings_and_nothing_is_left_undecided() {
    for (name, build) in HEALTHY {
        let report = report(&build());
        assert_eq!(rows(&report), BTreeSet::new(), "{name}: {:#?}", report.findings);
        assert_eq!(report.undecided, [], "{name}");
    }
}

/// A guest that slept: for its uptime that was time, for the kernel log not. The host associated a VF a moment ago.
fn slept() -> Guest {
    let mut guest = Guest::new();
    guest.azure();
    guest.write("proc/uptime", "144000.00 1.00");
    let nic = guest.nic("7c1e5225-55d2-7c1e-5225-55d27c1e5225", "eth0", "7c:1e:52:25:55:d2");
    for (at, text) in [
        (2_130, "VF slot 1 added"),
        (6_301, "Data path switched to VF: enP1s1"),
        (100_000, "VF slot 1 removed"),
        (100_010, "Data path switched from VF: enP1s1"),
        (100_500, "VF slot 1 added"),
    ] {
        guest.say_nic(at, &nic, text);
    }
    guest.say(100_600, "PM: hibernation: hibernation entry", None);
    guest
}

#[test]
fn what_the_kernel_said_before_it_slept_is_no_older_for_that() {
    let associated = |severity: &str| -> BTreeSet<Row> {
        [("pair.assoc-no-vf".to_owned(), severity.to_owned(), "eth0".to_owned())].into()
    };
    let undecided = |report: &Report| -> Vec<_> {
        report.undecided.iter().map(|open| open.id).filter(|id| id.starts_with("pair.")).collect()
    };
    // Nothing says what time it was.
    let bare = report(&slept());
    assert_eq!((rows(&bare), undecided(&bare)), (BTreeSet::new(), vec!["pair.assoc-no-vf"]));
    // `netvsc collect` writes it down, also that nobody knew.
    for (clock, expected, open) in [
        ("unknown", BTreeSet::new(), &["pair.assoc-no-vf"][..]),
        ("101.000000000", BTreeSet::new(), &[]),
        ("900.000000000", associated("warn"), &[]),
        ("7200.000000000", associated("critical"), &[]),
    ] {
        let guest = slept();
        guest.write("netvsc/clock", clock);
        let report = report(&guest);
        assert_eq!((rows(&report), &*undecided(&report)), (expected, open), "{clock}");
    }
    // One that is known to have been awake was silent for all of that time.
    let awake = slept();
    let log = std::fs::read_to_string(awake.path("dev/kmsg")).expect("a log");
    awake.write("dev/kmsg", &log.replace("hibernation entry", "Image not found"));
    assert_eq!(rows(&report(&awake)), associated("critical"));
    // What the log itself shows to be old is old.
    let mut guest = slept();
    guest.say(7_200_000, "something else", None);
    assert_eq!(rows(&report(&guest)), associated("critical"));
    // As long as the uptime can be of the same clock, it counts.
    guest.write("proc/uptime", "80000.00 1.00");
    assert_eq!(rows(&report(&guest)), associated("critical"));
}

// HISTORY 52, 60: a VF with an address, and one that a manager has.
#[test]
fn every_complaint_has_exactly_its_findings() {
    let numbers: Vec<_> = COMPLAINTS.iter().map(|complaint| complaint.number).collect();
    assert_eq!(numbers, (1..=47).collect::<Vec<_>>());
    for complaint in COMPLAINTS {
        let report = report(&(complaint.build)());
        let name = format!("complaint-{:02} ({})", complaint.number, complaint.source);
        assert_eq!(rows(&report), expected(complaint.expected), "{name}: {:#?}", report.findings);
    }
}

#[test]
fn every_other_fault_has_exactly_its_findings() {
    for (name, build, wanted) in OTHERS {
        let report = report(&build());
        assert_eq!(rows(&report), expected(wanted), "{name}: {:#?}", report.findings);
    }
}

#[test]
fn every_check_fires_somewhere_and_is_silent_somewhere() {
    let mut fires: BTreeMap<&str, BTreeSet<Severity>> = BTreeMap::new();
    let builds = COMPLAINTS.iter().map(|complaint| complaint.build);
    let builds =
        builds.chain(OTHERS.iter().map(|other| other.1)).chain(HEALTHY.iter().map(|h| h.1));
    let mut trees = 0;
    let mut told: BTreeMap<&str, usize> = BTreeMap::new();
    for build in builds {
        trees += 1;
        let report = report(&build());
        let ids: BTreeSet<_> =
            report.findings.iter().chain(&report.notes).map(|finding| finding.id).collect();
        for finding in report.findings.iter().chain(&report.notes) {
            fires.entry(finding.id).or_default().insert(finding.severity);
        }
        for id in ids {
            *told.entry(id).or_default() += 1;
        }
    }
    let all: BTreeSet<_> = check::checks().map(|check| check.id).collect();
    assert_eq!(fires.keys().copied().collect::<BTreeSet<_>>(), all);
    assert!(told.values().all(|number| *number < trees / 2), "{told:?}");
}

/// The table of the document, as it has to be: every check, and the guests in which it fires.
fn table() -> String {
    let mut fires: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for complaint in COMPLAINTS {
        let ids: BTreeSet<_> = complaint.expected.iter().map(|(id, ..)| *id).collect();
        for id in ids {
            fires.entry(id).or_default().push(complaint.number.to_string());
        }
    }
    for (name, _, expected) in OTHERS {
        let ids: BTreeSet<_> = expected.iter().map(|(id, ..)| *id).collect();
        for id in ids {
            fires.entry(id).or_default().push((*name).to_owned());
        }
    }
    let mut text = String::from("| check | severity | finds | fires in |\n|---|---|---|---|\n");
    for check in check::checks() {
        let fires =
            fires.get(check.id).map_or_else(|| "mana_only".to_owned(), |fires| fires.join(", "));
        text.push_str(&format!(
            "| {} | {} | {} | {fires} |\n",
            check.id, check.severity, check.finds
        ));
    }
    text
}

#[test]
fn the_document_has_every_check_and_the_guests_in_which_it_fires() {
    let document =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/CHECKS.md"));
    let document = document.expect("the document");
    let table = table();
    assert!(document.contains(&table), "docs/CHECKS.md should have:\n{table}");
    let rows = document.lines().filter(|line| line.starts_with("| ") && line.contains('.'));
    assert!(rows.count() >= check::checks().count());
    let complaints = document.split("\n## Complaints\n").nth(1).expect("the complaints");
    for Complaint { number, source, expected, .. } in COMPLAINTS {
        let mut ids: Vec<_> = expected.iter().map(|(id, ..)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        let ids = if ids.is_empty() { "nothing".to_owned() } else { ids.join(", ") };
        let row = format!("| {number} | {source} | {ids} |\n");
        assert!(complaints.contains(&row), "docs/CHECKS.md should have: {row}");
    }
}

#[test]
fn every_finding_says_on_what_it_rests_and_what_to_do() {
    let builds = COMPLAINTS.iter().map(|complaint| complaint.build);
    for build in builds.chain(OTHERS.iter().map(|other| other.1)) {
        let report = report(&build());
        for finding in &report.findings {
            let id = finding.id;
            assert!(!finding.evidence.is_empty(), "{id} has no evidence");
            assert!(!finding.fix.text.is_empty(), "{id} has no fix");
            assert!(!finding.text.ends_with('.') && !finding.text.is_empty(), "{id}");
            for evidence in &finding.evidence {
                assert!(!evidence.fact.is_empty() && !evidence.path.is_empty(), "{id}");
                let file = evidence.path.starts_with('/') || evidence.path.starts_with("netlink/");
                assert!(file, "{id}: {}", evidence.path);
            }
            for step in &finding.fix.steps {
                assert!(!step.to_string().is_empty());
            }
        }
    }
}

/// Does what a fix would write, and has managers forget what they said before.
fn mend(guest: &Guest, fix: &check::Fix) {
    for step in &fix.steps {
        let check::Step::File { path, contents, .. } = step else { continue };
        guest.write(path.trim_start_matches('/'), contents.trim_end());
    }
    for states in ["run/systemd/netif/links", "run/NetworkManager/devices"] {
        if guest.path(states).exists() {
            guest.remove(states);
            guest.folder(states);
        }
    }
}

#[test]
fn what_a_fix_writes_satisfies_the_check_that_asked_for_it() {
    let mut mended: BTreeMap<&str, u32> = BTreeMap::new();
    let builds = COMPLAINTS.iter().map(|complaint| complaint.build);
    for build in builds.chain(OTHERS.iter().map(|other| other.1)) {
        for finding in report(&build()).findings {
            let files = finding.fix.steps.iter().all(|s| matches!(s, check::Step::File { .. }));
            if finding.fix.steps.is_empty() || !files {
                continue;
            }
            let guest = build();
            mend(&guest, &finding.fix);
            let left = report(&guest);
            let again =
                left.findings.iter().find(|f| (f.id, &f.subject) == (finding.id, &finding.subject));
            assert_eq!(again, None, "mended by {:?}", finding.fix.steps);
            *mended.entry(finding.id).or_default() += 1;
        }
    }
    assert_eq!(
        mended.into_keys().collect::<Vec<_>>(),
        ["own.manager", "own.rule-old", "sys.networkd"]
    );
}

#[test]
fn a_vf_that_was_set_down_is_named_and_set_up() {
    let report = report(&faults::vf_down());
    let [finding] = report.findings.as_slice() else { panic!("{report:?}") };
    assert_eq!(
        finding.text,
        "enP37498s1, the VF of eth0, is down, and frames go the synthetic way"
    );
    assert!(finding.evidence.iter().any(|evidence| evidence.fact == "VF is down"));
    assert_eq!(finding.since.map(|since| since.as_secs()), Some(900));
    let steps: Vec<_> = finding.fix.steps.iter().map(ToString::to_string).collect();
    assert_eq!(steps, ["ip link set dev enP37498s1 up"]);
}

#[test]
fn a_connectx3_is_called_by_the_driver_that_each_key_asks_for() {
    for (key, driver, lacks) in [
        ("ENV{ID_NET_DRIVER}", "mlx4_core", "its list of drivers lacks mlx4_en,"),
        ("DRIVERS", "mlx4_en", "its list of drivers lacks mlx4_core,"),
    ] {
        let report = report(&faults::connectx3_misnamed(key, driver));
        let [finding] = report.findings.as_slice() else { panic!("{key}: {report:?}") };
        assert!(finding.id == "own.rule-old" && finding.text.contains(lacks), "{}", finding.text);
    }
    for udev in [&[][..], &[("ID_NET_DRIVER", "mlx4_en")]] {
        let guest = kinds::azure_mlx4();
        guest.udev(3, udev);
        networkd(&guest, "252", 3, "configured");
        let report = report(&guest);
        let finding = report.findings.iter().find(|finding| finding.id == "own.manager");
        let step = &finding.expect("a manager that has it").fix.steps[0];
        assert!(step.to_string().contains("\nDriver=mlx4_en\n"), "{step}");
    }
}

#[test]
fn an_initramfs_that_is_older_than_its_rule_is_told_from_one_without_it() {
    let told = |guest: &Guest| {
        let report = report(guest);
        let finding = report.findings.into_iter().find(|f| f.id == "own.rule-initramfs");
        let finding = finding.expect("the finding");
        let carried = finding.evidence.iter().find(|e| e.fact.starts_with("it puts "));
        (finding.text, carried.map(|evidence| evidence.path.clone()), finding.fix.text)
    };
    let carriers = [
        (
            faults::initramfs_older(),
            "/usr/lib/dracut/modules.d/97azure-unmanaged-sriov/module-setup.sh",
        ),
        (faults::ours_in_initramfs(), "/usr/share/initramfs-tools/hooks/netvsc"),
    ];
    for (guest, path) in carriers {
        let (text, carrier, fix) = told(&guest);
        assert!(text.ends_with("which is older than the rule that marks it"), "{text}");
        assert_eq!(carrier.as_deref(), Some(path));
        assert!(fix.starts_with("make the initramfs anew: dracut -f"), "{fix}");
    }
    let guest = faults::initramfs_older();
    guest.remove("usr/lib/dracut");
    // The driver of the NIC is no rule, and a file beside modules is no module.
    guest.write("usr/lib/dracut/modules.d/README", "10-azure-unmanaged-sriov.rules");
    guest.write("etc/dracut.conf.d/azure.conf", "add_drivers+=\" hv_vmbus hv_netvsc \"");
    let (text, carrier, fix) = told(&guest);
    assert!(
        text.ends_with("where the rule that marks it is missing") && carrier.is_none(),
        "{text}"
    );
    assert!(
        fix.contains("install_items+=\" /usr/lib/udev/rules.d/10-azure-unmanaged-sriov.rules \"")
    );
}

#[test]
fn which_systemd_forgets_is_told_by_what_follows_a_dot() {
    let of = |version: &str| {
        let mut guest = Guest::new();
        let pair = kinds::one(&mut guest);
        networkd(&guest, version, pair.port.index, "unmanaged");
        guest.write("etc/systemd/network/80-all.network", "[Match]\nName=*\n[Network]\nDHCP=yes");
        report(&guest)
    };
    for old in ["249", "256-3.el10", "257.4-1.fc42"] {
        let wanted = expected(&[("sys.networkd", "warn", "systemd-networkd")]);
        assert_eq!(rows(&of(old)), wanted, "{old}");
    }
    for new in ["257.7-1.fc42", "258~rc2", "258.1"] {
        assert_eq!((rows(&of(new)), of(new).undecided), (BTreeSet::new(), Vec::new()), "{new}");
    }
    for unknown in ["257", "257-9.el10_0.1"] {
        let report = of(unknown);
        let undecided: Vec<_> = report.undecided.iter().map(|undecided| undecided.id).collect();
        assert_eq!(
            (rows(&report), undecided),
            (BTreeSet::new(), vec!["sys.networkd"]),
            "{unknown}"
        );
    }
}

#[test]
fn a_vf_without_nic_is_told_and_is_no_fault() {
    let report = report(&kinds::mana_only());
    let [note] = report.notes.as_slice() else { panic!("{:?}", report.notes) };
    assert_eq!((note.id, note.severity), ("pair.standalone", Severity::Ok));
}

#[test]
fn what_cannot_be_read_leaves_checks_undecided_and_names_what_is_needed() {
    let mut guest = Guest::new();
    kinds::one(&mut guest);
    guest.remove("dev/kmsg");
    guest.remove("netlink/addresses");
    let report = report(&guest);
    assert_eq!(report.findings, []);
    let reasons: BTreeMap<_, _> = report
        .undecided
        .iter()
        .map(|undecided| (undecided.id, undecided.reason.as_str()))
        .collect();
    assert!(reasons["path.synthetic"].contains("CAP_SYSLOG"));
    assert!(reasons["own.address"].contains("netlink"));
    assert!(reasons["path.flap"].contains("CAP_SYSLOG"));
}

#[test]
fn only_what_is_asked_for_runs() {
    let guest = kinds::bonded();
    let snapshot = take(Some(guest.root()), Depth::Checks).unwrap();
    let relations = Relations::of(&snapshot);
    let guest = check::Guest::new(&snapshot, &relations);
    let report = check::run(&guest, |id| id.starts_with("own."));
    assert_eq!(rows(&report), expected(&[("own.master", "critical", "enP37498s1")]));
}

#[test]
fn thresholds_are_settings() {
    let mut guest = Guest::new();
    let pair = kinds::one(&mut guest);
    guest.say_nic(7_000_000, &pair.nic, "Data path switched from VF: enP37498s1");
    assert_eq!(report(&guest).findings, [], "200 s are not 300 s");
    let snapshot = take(Some(guest.root()), Depth::Checks).unwrap();
    let relations = Relations::of(&snapshot);
    let mut strict = check::Guest::new(&snapshot, &relations);
    strict.thresholds.synthetic_warn = std::time::Duration::from_secs(100);
    let report = check::run(&strict, |_| true);
    assert_eq!(rows(&report), expected(&[("path.synthetic", "warn", "eth0")]));
    let since = report.findings[0].since.unwrap();
    assert_eq!(since.as_secs(), 7000);
}

#[test]
fn evidence_about_pairs_carries_the_label_of_its_source() {
    let report = report(&kinds::duplicate_slot());
    let labels: Vec<_> = report.findings[0].evidence.iter().map(|e| e.label.word()).collect();
    assert_eq!(labels, ["slot", "sysfs"]);
    assert!(
        report.findings[0].evidence[1].fact.contains("8c53:00:00.0")
            || report.findings[0].evidence[1].fact.contains(":00:00.0")
    );
    assert_eq!(Label::Inferred.word(), "inferred");
}

#[test]
fn whoever_carries_the_session_or_the_default_route_is_known_with_its_relatives() {
    let mut guest = Guest::new();
    let pair = kinds::one(&mut guest);
    let other = guest.nic("7c1e5225-5ca6-7c1e-5225-5ca67c1e5225", "eth1", "7c:1e:52:25:5c:a6");
    guest.route(pair.nic.index, "default");
    let snapshot = take(Some(guest.root()), Depth::Checks).unwrap();
    let relations = Relations::of(&snapshot);
    let mut seen = check::Guest::new(&snapshot, &relations);
    let carriers: Vec<_> = seen.carriers().into_keys().collect();
    assert_eq!(carriers, [pair.nic.index, pair.port.index]);
    let ours = format!("10.0.0.{}", other.index).parse().unwrap();
    seen.session = Some(("192.0.2.7".parse().unwrap(), ours));
    assert!(seen.carriers().contains_key(&other.index));
}

/// Files of every kind that no program would write.
fn deface(guest: &Guest, paths: &[&str], how: usize) {
    for path in paths {
        let full = guest.path(path);
        std::fs::create_dir_all(full.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(&full);
        let _ = std::fs::remove_dir_all(&full);
        match how {
            0 => std::fs::write(full, [0xff, 0, 1, 2, 0xfe]).unwrap(),
            1 => std::fs::write(full, vec![b'['; 9 << 20]).unwrap(),
            2 => std::os::unix::fs::symlink(full.file_name().unwrap(), &full).unwrap(),
            3 => std::fs::create_dir_all(full).unwrap(),
            4 => std::fs::write(full, "").unwrap(),
            _ => std::fs::write(full, "[Match\n: {{{\n==\"\"\"=\n\\\n0-,9\n".repeat(50)).unwrap(),
        }
    }
}

#[test]
fn malformed_machines_never_make_it_fail() {
    const PATHS: [&str; 26] = [
        "etc/netplan/a.yaml",
        "etc/systemd/network/a.network",
        "etc/systemd/network/a.link",
        "etc/udev/rules.d/a.rules",
        "etc/NetworkManager/NetworkManager.conf",
        "etc/NetworkManager/conf.d/a.conf",
        "etc/NetworkManager/system-connections/a.nmconnection",
        "etc/sysconfig/network-scripts/ifcfg-a",
        "etc/network/interfaces",
        "etc/dhcpcd.conf",
        "etc/driverctl.d/a",
        "etc/rezolus/a.toml",
        "run/NetworkManager/devices/3",
        "run/systemd/netif/links/3",
        "run/network/ifstate",
        "proc/interrupts",
        "proc/sys/kernel/osrelease",
        "sys/devices/system/cpu/online",
        "sys/class/dmi/id/chassis_asset_tag",
        "usr/lib/modules/6.8.0-1020-azure/modules.dep",
        "boot/config-6.8.0-1020-azure",
        "netvsc/samples",
        "netlink/links",
        "netlink/addresses",
        "netlink/routes",
        "netlink/rings",
    ];
    for how in 0..6 {
        let guest = kinds::worked_example();
        deface(&guest, &PATHS, how);
        let snapshot = take(Some(guest.root()), Depth::Checks).unwrap();
        let relations = Relations::of(&snapshot);
        let report = check::run(&check::Guest::new(&snapshot, &relations), |_| true);
        // What was defaced is not believed.
        assert!(
            report.worst().is_none_or(|worst| worst < Severity::Critical),
            "{how}: {report:#?}"
        );
        if how < 3 {
            let noted =
                |path: &str| snapshot.unreadable.iter().any(|note| note.path.ends_with(path));
            for path in ["a.yaml", "a.rules", "proc/interrupts", "dhcpcd.conf"] {
                assert!(noted(path), "{how}: {path}: {:#?}", snapshot.unreadable);
            }
        }
    }
}
