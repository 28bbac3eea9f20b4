//! `netvsc check`, as its users start it, against the guests of public complaints.

#[path = "../../netvsc-linux/tests/guest/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;
mod schema;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use guest::complaints::COMPLAINTS;
use guest::{Guest, kinds};
use serde_json::Value;

fn complaint(number: u32) -> Guest {
    let complaint = COMPLAINTS.iter().find(|complaint| complaint.number == number);
    (complaint.expect("it is there").build)()
}

fn check(root: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_netvsc"))
        .arg("check")
        .args(arguments)
        .arg("--sysfs-root")
        .arg(root)
        .env_remove("NO_COLOR")
        .env_remove("CLICOLOR_FORCE")
        .output()
        .expect("the program runs")
}

/// What it printed, having ended with a status.
fn said(guest: &Guest, arguments: &[&str], status: i32) -> String {
    let output = check(guest.root(), arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {errors}{text}");
    text
}

/// JSON that fits the schema, in which every key must stand.
fn valid(text: &str) -> Value {
    schema::valid(text, "check-1.json")
}

#[test]
fn every_complaint_fits_the_schema_and_says_what_is_expected() {
    for complaint in COMPLAINTS {
        let output = check((complaint.build)().root(), &["--json"]);
        let value = valid(&String::from_utf8(output.stdout).expect("text"));
        let mut found: Vec<_> = value["findings"]
            .as_array()
            .expect("findings")
            .iter()
            .map(|finding| {
                ["id", "severity", "subject"]
                    .map(|key| finding[key].as_str().expect("a word").to_owned())
            })
            .collect();
        let mut expected: Vec<_> =
            complaint.expected.iter().map(|(a, b, c)| [*a, *b, *c].map(str::to_owned)).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "complaint-{:02}", complaint.number);
        let worst = if found.iter().any(|row| row[1] == "critical") {
            ("critical", 2)
        } else if found.iter().any(|row| row[1] == "warn") {
            ("warn", 1)
        } else {
            ("ok", 0)
        };
        assert_eq!(value["status"], worst.0, "complaint-{:02}: {value:#}", complaint.number);
        assert_eq!(output.status.code(), Some(worst.1), "complaint-{:02}", complaint.number);
    }
}

#[test]
fn a_finding_is_told_with_its_evidence_and_its_fix() {
    let text = said(&complaint(8), &[], 1);
    assert_eq!(
        text,
        "NETVSC WARNING - 1 warn: own.manager on enP37498s1\n\
         \n\
         warn own.manager enP37498s1\n  \
         NetworkManager does not leave enP37498s1 alone, which belongs to a NIC\n  \
         because: managed=true (state, /run/NetworkManager/devices/3)\n  \
         because: ID_NET_MANAGED_BY is unmanaged (udev, /run/udev/data/n3)\n  \
         to mend: write /etc/NetworkManager/conf.d/90-netvsc-vf-7c1e522555d2.conf, then nmcli general reload; \
         `netvsc install` does it for all VFs\n    \
         cat > /etc/NetworkManager/conf.d/90-netvsc-vf-7c1e522555d2.conf <<'END'\n    \
         [keyfile]\n    unmanaged-devices+=mac:7c:1e:52:25:55:d2;except:driver:hv_netvsc\n    END\n"
    );
}

#[test]
fn styles_of_exit_are_those_of_nagios_npd_and_scripts() {
    let healthy = kinds::worked_example();
    let (info, warn, critical) = (complaint(37), complaint(8), complaint(7));
    let blind = kinds::worked_example();
    blind.remove("dev/kmsg");
    for (guest, nagios, npd, bool) in [
        (&healthy, 0, 0, 0),
        (&info, 0, 0, 0),
        (&warn, 1, 1, 1),
        (&critical, 2, 1, 1),
        (&blind, 3, 2, 0),
    ] {
        said(guest, &[], nagios);
        said(guest, &["--exit-style", "bool"], bool);
        let line = said(guest, &["--exit-style", "npd"], npd);
        assert!(line.lines().count() == 1 && line.trim_end().chars().count() <= 80, "{line}");
    }
    said(&info, &["--exit-style", "bool", "--threshold", "info"], 1);
    said(&warn, &["--exit-style", "bool", "--threshold", "critical"], 0);
    assert!(said(&healthy, &[], 0).starts_with("NETVSC OK - nothing is wrong\n"));
    assert!(said(&blind, &[], 3).starts_with("NETVSC UNKNOWN - "));
}

#[test]
fn npd_gets_the_reasons_of_its_condition() {
    for (number, reason) in [
        (26, "VFMissing"),
        (24, "VFUnbound"),
        (8, "VFManaged"),
        (27, "DatapathStuck"),
        (28, "Flapping"),
    ] {
        let line = said(&complaint(number), &["--exit-style", "npd"], 1);
        assert!(line.starts_with(&format!("{reason}: ")), "{number}: {line}");
    }
}

/// A configuration of node-problem-detector, as it is installed.
fn detector(file: &str) -> Value {
    let path = format!("{}/assets/node-problem-detector/{file}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).expect("a file")).expect("JSON")
}

/// A condition as node-problem-detector keeps it (`generateStatus` of its custom plugin monitor).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    status: &'static str,
    reason: String,
    message: String,
}

impl Condition {
    fn usual(plugin: &Value, name: &Value) -> Self {
        let conditions = plugin["conditions"].as_array().expect("conditions");
        let usual = conditions.iter().find(|it| it["type"] == *name).expect("a known condition");
        let word = |key: &str| usual[key].as_str().expect("a word").to_owned();
        Self { status: "False", reason: word("reason"), message: word("message") }
    }

    /// Takes in what one rule came to. Any result but a problem puts the condition back, whichever rule set it.
    fn take(&mut self, plugin: &Value, rule: &Value, output: &Output) {
        let status = match output.status.code() {
            Some(0) => "False",
            Some(1) => "True",
            _ => "Unknown",
        };
        let message = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let reason = rule["reason"].as_str().expect("a reason").to_owned();
        let by_message = &plugin["pluginConfig"]["enable_message_change_based_condition_update"];
        let told = *by_message == Value::Bool(true) && self.message != message;
        if status != "True" {
            if self.status != status {
                *self = Self { status, ..Self::usual(plugin, &rule["condition"]) };
            }
        } else if self.status != status || self.reason != reason || told {
            *self = Self { status, reason, message };
        }
    }
}

/// Lets node-problem-detector run all its rules once in a guest: every state of a condition that came of it.
fn round(
    plugin: &Value,
    guest: &Guest,
    conditions: &mut BTreeMap<String, Condition>,
) -> Vec<Condition> {
    let mut seen = Vec::new();
    for rule in plugin["rules"].as_array().expect("rules") {
        let arguments = rule["args"].as_array().expect("arguments");
        let arguments: Vec<_> = arguments.iter().map(|it| it.as_str().expect("text")).collect();
        assert_eq!((&rule["path"], arguments[0]), (&"/usr/bin/netvsc".into(), "check"));
        let name = rule["condition"].as_str().expect("a condition").to_owned();
        let usual = || Condition::usual(plugin, &rule["condition"]);
        let condition = conditions.entry(name).or_insert_with(usual);
        let before = condition.clone();
        condition.take(plugin, rule, &check(guest.root(), &arguments[1..]));
        if *condition != before {
            seen.push(condition.clone());
        }
    }
    seen
}

#[test]
fn a_condition_of_npd_changes_when_the_guest_does_and_not_from_rule_to_rule() {
    let plugin = detector("netvsc.json");
    let blind = kinds::worked_example();
    blind.remove("dev/kmsg");
    for (number, reason) in [
        (26, "VFMissing"),
        (24, "VFUnbound"),
        (8, "VFManaged"),
        (27, "DatapathStuck"),
        (28, "Flapping"),
    ] {
        let mut conditions = BTreeMap::new();
        let bad = complaint(number);
        let seen = round(&plugin, &bad, &mut conditions);
        assert_eq!(seen.len(), 1, "{number}: {seen:#?}");
        assert!(seen[0].status == "True" && seen[0].message.starts_with(reason), "{seen:#?}");
        // Minute after minute.
        assert_eq!(round(&plugin, &bad, &mut conditions), [], "{number}");
        // What is wrong becomes something else, and then nothing.
        let seen = round(&plugin, &complaint(14), &mut conditions);
        assert!(seen.len() == 1 && seen[0].status == "True", "{number}: {seen:#?}");
        let seen = round(&plugin, &kinds::worked_example(), &mut conditions);
        assert!(seen.len() == 1 && seen[0].status == "False", "{number}: {seen:#?}");
        assert_eq!(seen[0].message, "accelerated networking is as it should be");
        let seen = round(&plugin, &blind, &mut conditions);
        assert!(seen.len() == 1 && seen[0].status == "Unknown", "{number}: {seen:#?}");
    }
}

#[test]
fn npd_runs_every_check_once() {
    let plugin = detector("netvsc.json");
    let mut left: Vec<&str> = netvsc_linux::check::checks().map(|check| check.id).collect();
    for rule in plugin["rules"].as_array().expect("rules") {
        let arguments = rule["args"].as_array().expect("arguments");
        let at = arguments.iter().position(|it| *it == "--only");
        match at.and_then(|at| arguments.get(at + 1)?.as_str()) {
            Some(ids) => left.retain(|id| ids.split(',').all(|it| it != *id)),
            None => left.clear(),
        }
    }
    assert_eq!(left, [""; 0], "checks that nobody runs");
}

#[test]
fn npd_knows_the_lines_of_the_kernel_that_tell_of_trouble() {
    let rules = detector("netvsc-kernel.json");
    let rules = rules["rules"].as_array().expect("rules");
    let nic = "hv_netvsc 7c1e5225-55d2-7c1e-5225-55d27c1e5225 eth0";
    let vf = "mlx5_core 927a:00:02.0 eth3";
    for (line, reason) in [
        (format!("{vf}: can not set master device eth0 (err = -16)"), Some("VFJoinFailed")),
        (
            format!("{vf}: can not register netvsc VF receive handler (err = -16)"),
            Some("VFJoinFailed"),
        ),
        (format!("{vf}: unable to change mtu to 9000"), Some("VFNotUsable")),
        (format!("{vf}: unable to open: -5"), Some("VFNotUsable")),
        (format!("{vf}: Invalid vf serial:1-1"), Some("VFSlotUnusable")),
        (
            "hv_pci d3cbd5f3-927a-45ec-985d-2ddb43e90b83: pci_create slot 1 failed".into(),
            Some("VFSlotUnusable"),
        ),
        (format!("{vf}: no netdev found for vf serial:7"), Some("VFWithoutNIC")),
        (format!("{nic}: could not move to same namespace as eth0: -5"), Some("VFNamespaceFailed")),
        (
            format!("{nic}: Data path failed to switch to VF: eth3, err: -11"),
            Some("DatapathSwitchFailed"),
        ),
        (format!("{nic}: VF unregistering: eth3"), Some("VFGone")),
        // What is normal.
        (format!("{nic}: VF slot 1 added"), None),
        (format!("{nic}: VF registering: eth3"), None),
        (format!("{nic}: Data path switched to VF: eth3"), None),
        ("tulip 0000:00:0a.0 eth2: no PCI slot information".into(), None),
    ] {
        // The expressions are Go's; these are the same in the dialect of schemas.
        let fits = |rule: &&Value| {
            let schema = serde_json::json!({"type": "string", "pattern": format!("^{}$", rule["pattern"].as_str().expect("a pattern"))});
            jsonschema::is_valid(&schema, &Value::from(line.as_str()))
        };
        let found: Vec<_> = rules.iter().filter(fits).map(|rule| rule["reason"].as_str()).collect();
        assert_eq!(found, reason.map(Some).into_iter().collect::<Vec<_>>(), "{line}");
    }
}

#[test]
fn a_command_line_without_sense_is_unknown_and_not_critical() {
    let guest = kinds::worked_example();
    for arguments in
        [&["--only", "own.nothing"][..], &["--force"], &["--exit-style", "loud"], &["--dry-run"]]
    {
        let output = check(guest.root(), arguments);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}");
        assert!(output.stdout.is_empty());
    }
    let output = check(Path::new("/no/such/root"), &[]);
    assert_eq!(output.status.code(), Some(3));
    let errors =
        String::from_utf8_lossy(&check(guest.root(), &["--only", "x"]).stderr).into_owned();
    assert!(errors.contains("pair.orphan-pci") && errors.contains("obs.double"), "{errors}");
}

#[test]
fn checks_are_listed_and_chosen() {
    let guest = complaint(7);
    let text = said(&guest, &["--list"], 0);
    assert_eq!(text.lines().count(), 36, "a header and every check");
    let row = text.lines().find(|line| line.starts_with("own.address ")).expect("a row");
    assert!(row.contains(" critical"), "{row}");
    let text = said(&guest, &["--only", "own.manager,mtu"], 1);
    assert!(text.contains("own.manager") && !text.contains("own.address"), "{text}");
}

#[test]
fn a_machine_without_hyperv_has_nothing_wrong() {
    let guest = Guest::without_hyperv();
    let text = said(&guest, &[], 0);
    assert!(text.lines().count() == 1 && text.contains("no Hyper-V guest"), "{text}");
    let output = check(guest.root(), &["--json"]);
    let value = valid(&String::from_utf8(output.stdout).expect("text"));
    assert_eq!(value["findings"], Value::Array(vec![]));
}

/// Every file below a folder with its contents, but for those that a kernel would not keep.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else {
                let contents = std::fs::read(&path).expect("a file");
                found.insert(path.strip_prefix(root).expect("below").to_owned(), contents);
            }
        }
    }
    found
}

#[test]
fn a_dry_run_shows_all_and_changes_nothing() {
    let guest = complaint(6);
    let before = files(guest.root());
    let text = said(&guest, &["--fix", "--dry-run"], 0);
    assert_eq!(files(guest.root()), before);
    let root = guest.root().display();
    let file = format!("{root}/etc/NetworkManager/conf.d/90-netvsc-vf-7c1e522555d2.conf");
    assert!(text.contains(&format!("cat > {file} <<")), "{text}");
    let undo = format!("nothing was changed (--dry-run); this would undo it:\n    rm {file}\n");
    assert!(text.contains(&undo), "{text}");
}

#[test]
fn a_fix_mends_what_was_found_and_what_undoes_it_is_printed() {
    let guest = complaint(6);
    let before = files(guest.root());
    let text = said(&guest, &["--fix"], 0);
    let root = guest.root().display();
    let undo = format!("done; this undoes it:\n    rm {root}/etc/NetworkManager/conf.d/");
    assert!(text.contains(&undo), "{text}");
    let mut after = files(guest.root());
    let fresh = after.remove(Path::new("etc/NetworkManager/conf.d/90-netvsc-vf-7c1e522555d2.conf"));
    assert!(fresh.is_some() && after == before, "one file, and no other");
    said(&guest, &[], 0);
}

#[test]
fn a_file_that_is_replaced_can_be_had_back() {
    let guest = complaint(5);
    let path = "etc/udev/rules.d/10-azure-unmanaged-sriov.rules";
    let before = std::fs::read_to_string(guest.path(path)).unwrap();
    let text = said(&guest, &["--only", "own.rule-old", "--fix"], 0);
    let undo = text.split("this undoes it:\n").nth(1).expect("an undo");
    assert_eq!(said(&guest, &["--only", "own.rule-old"], 0).lines().count(), 1);
    // The undo is a script, and it changes the tree that was mended and no other file of its path.
    assert!(
        undo.contains(&format!("cat > {path} <<", path = guest.path(path).display())),
        "{undo}"
    );
    let script: String = undo.lines().map(|line| line.trim_start().to_owned() + "\n").collect();
    let done = Command::new("sh").arg("-c").arg(&script).status().expect("a shell");
    assert!(done.success(), "{script}");
    assert_eq!(std::fs::read_to_string(guest.path(path)).unwrap(), before);
}

#[test]
fn what_carries_the_default_route_is_left_alone_without_force() {
    let guest = complaint(38);
    guest.route(2, "default");
    let arguments = ["--only", "mtu.mismatch", "--fix"];
    let text = said(&guest, &arguments, 1);
    assert!(text.contains("refused: enP37498s1 carries the default route; --force"), "{text}");
    assert!(text.ends_with("nothing was changed\n"), "{text}");
    // With force it is tried, and a tree has no kernel to ask.
    let text = said(&guest, &[&arguments[..], &["--force"]].concat(), 1);
    assert!(text.contains("no running system"), "{text}");
    let text = said(&guest, &[&arguments[..], &["--json"]].concat(), 1);
    assert_eq!(valid(&text)["fixes"][0]["state"], "refused");
}

#[test]
fn who_does_not_know_the_routes_touches_nobody() {
    let guest = complaint(38);
    guest.remove("netlink/routes");
    let text = said(&guest, &["--only", "mtu.mismatch", "--fix"], 1);
    assert!(text.contains("the routes are not known"), "{text}");
}

#[test]
fn a_link_never_leads_a_fix_out_of_the_root() {
    let outside = tempfile::tempdir().unwrap();
    let guest = complaint(6);
    guest.folder("etc/NetworkManager");
    std::os::unix::fs::symlink(outside.path(), guest.path("etc/NetworkManager/conf.d")).unwrap();
    said(&guest, &["--fix"], 1);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn names_that_would_command_a_terminal_are_not_repeated() {
    let guest = complaint(26);
    guest.write("proc/sys/kernel/osrelease", "6.8\u{1b}[31m");
    let output = check(guest.root(), &[]);
    assert!(!String::from_utf8_lossy(&output.stdout).contains('\u{1b}'));
}

#[test]
fn the_running_system_can_be_checked_wherever_this_runs() {
    let output = Command::new(env!("CARGO_BIN_EXE_netvsc"))
        .args(["check", "--json"])
        .output()
        .expect("the program runs");
    let value = valid(&String::from_utf8(output.stdout).expect("text"));
    assert_eq!(value["source"]["kind"], "live");
}

#[test]
fn findings_fit_into_columns_and_into_one_line_each() {
    let complaint = COMPLAINTS.iter().find(|it| it.expected.len() > 1).expect("one with several");
    let guest = (complaint.build)();
    let found = |arguments: &[&str]| -> Vec<String> {
        let output = check(guest.root(), arguments);
        String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
    };
    let brief = found(&["-br"]);
    let table = found(&["-o", "check,severity,safe,since,subject,text,fix"]);
    assert_eq!(table.len(), brief.len() + 1);
    assert!(table[0].starts_with("CHECK") && table[0].contains("  SAFE  "), "{table:#?}");
    for (line, row) in brief.iter().zip(&table[1..]) {
        let words: Vec<_> = line.split_whitespace().collect();
        assert!(row.starts_with(words[1]) && row.contains(words[0]), "{line} in {row}");
    }
    let bad = check(guest.root(), &["-o", "colour"]);
    assert_eq!(bad.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("possible values: severity"), "{bad:?}");
}
