//! The verbs that look at a guest, as their users start them, against the kinds of guests that there are.

#[path = "../../netvsc-linux/tests/guest/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;
mod schema;

use std::path::Path;
use std::process::{Command, Output};

use guest::{Guest, kinds};
use schema::valid;
use serde_json::Value;

fn netvsc(root: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_netvsc"))
        .args(arguments)
        .arg("--sysfs-root")
        .arg(root)
        .env_remove("NO_COLOR")
        .env_remove("CLICOLOR_FORCE")
        .output()
        .expect("the program runs")
}

/// What it printed, having succeeded and complained of nothing.
fn said(guest: &Guest, arguments: &[&str]) -> String {
    let output = netvsc(guest.root(), arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// What it complained of, having failed with this status and printed nothing.
fn refused(guest: &Guest, arguments: &[&str], status: i32) -> String {
    let output = netvsc(guest.root(), arguments);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).expect("text")
}

// HISTORY 12: NIC and VF stand side by side.
#[test]
fn the_list_is_a_table() {
    let text = said(&kinds::worked_example(), &["list"]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "NIC   VF          MAC                SERIAL  PCI           DRIVER     PATH  STATE        REASON",
            "eth0  enP37498s1  7c:1e:52:25:55:d2  1       927a:00:02.0  mlx5_core  vf    accelerated  SerialAndMac",
            "eth1  enP6757s2   7c:1e:52:25:5c:a6  2       1a65:00:02.0  mlx5_core  vf    accelerated  SerialAndMac",
        ]
    );
}

#[test]
fn columns_and_brevity_are_the_users_choice() {
    let guest = kinds::worked_example();
    let text = said(&guest, &["list", "-o", "guid,slot"]);
    assert!(text.starts_with("GUID") && text.contains("55d27c1e5225  1"), "{text}");
    assert!(said(&guest, &["list", "-o", "+mtu"]).contains("REASON        MTU\n"));
    let one = said(&guest, &["show", "eth1", "-o", "serial,pci"]);
    assert_eq!(one, "SERIAL  PCI\n2       1a65:00:02.0\n");
    assert_eq!(said(&guest, &["show", "-br"]), said(&guest, &["list", "-br"]));
    let brief = said(&guest, &["list", "-br"]);
    assert_eq!(brief, "eth0  accelerated  enP37498s1\neth1  accelerated  enP6757s2\n");
    let text = refused(&guest, &["list", "-o", "colour"], 2);
    assert!(text.contains("there is no column `colour`") && text.contains("obstacle"), "{text}");
}

#[test]
fn colours_come_when_asked_for_and_never_into_a_pipe() {
    let guest = kinds::azure_mlx5();
    assert!(!said(&guest, &["list"]).contains('\u{1b}'));
    assert!(said(&guest, &["list", "--color", "always"]).contains('\u{1b}'));
}

#[test]
fn a_serial_taken_over_from_the_vf_is_marked() {
    let guest = kinds::azure_mlx5();
    guest.remove("dev/kmsg");
    let text = said(&guest, &["list", "-o", "nic,serial,state,reason,path"]);
    assert!(text.contains("eth0  ~1      unknown  -       -"), "{text}");
}

#[test]
fn every_kind_of_guest_fits_the_schema() {
    for guest in [
        kinds::worked_example(),
        kinds::azure_mlx4(),
        kinds::azure_mana(),
        kinds::mana_only(),
        kinds::on_prem(),
        kinds::emulated_beside(),
        kinds::synthetic_only(),
        kinds::mid_servicing(),
        kinds::driver_missing(),
        kinds::bonded(),
        kinds::duplicate_slot(),
        kinds::confidential(),
        kinds::uio_bound(),
        Guest::without_hyperv(),
    ] {
        for verb in ["list", "show"] {
            let output = netvsc(guest.root(), &[verb, "--json"]);
            assert!(output.status.success());
            let text = String::from_utf8(output.stdout).expect("text");
            let value = valid(&text, "guest-1.json");
            assert_eq!(value["source"]["kind"], "snapshot");
            assert_eq!(text.lines().count(), 1);
        }
        let text = netvsc(guest.root(), &["lsvmbus", "--json"]).stdout;
        valid(&String::from_utf8(text).expect("text"), "lsvmbus-1.json");
    }
}

#[test]
fn json_says_what_the_table_says() {
    let text = said(&kinds::azure_mana(), &["list", "-p"]);
    let value = valid(&text, "guest-1.json");
    let nic = &value["nics"][2];
    assert_eq!((&nic["state"], &nic["reason"]), (&"accelerated".into(), &"Mac".into()));
    assert_eq!(nic["vf"]["ifname"], "enP30832s1d2");
    assert_eq!(nic["vf"]["slot"]["serial"], 1_296_119_428);
    assert_eq!(nic["association"]["serial"], 1);
    assert!(text.lines().count() > 20, "-p is for people");
}

#[test]
fn a_machine_without_hyperv_is_told_in_one_line() {
    let guest = Guest::without_hyperv();
    let text = said(&guest, &["list"]);
    assert!(text.lines().count() == 1 && text.contains("no Hyper-V guest"), "{text}");
    let output = netvsc(guest.root(), &["list", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let value = valid(&String::from_utf8(output.stdout).expect("text"), "guest-1.json");
    assert_eq!((&value["nics"], &value["hyperv"]), (&Value::Array(vec![]), &Value::Bool(false)));
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
}

#[test]
fn a_vmbus_without_nics_is_told_in_one_line() {
    let guest = Guest::new();
    guest.folder("sys/bus/vmbus/devices");
    let text = said(&guest, &["list"]);
    assert_eq!(text, "no NIC on this VMBus, and no VF behind it\n");
    let value = valid(&said(&guest, &["list", "--json"]), "guest-1.json");
    assert_eq!((&value["nics"], &value["hyperv"]), (&Value::Array(vec![]), &Value::Bool(true)));
}

#[test]
fn devices_are_a_table_of_the_columns_that_are_asked_for() {
    let guest = kinds::worked_example();
    let text = said(&guest, &["lsvmbus", "-o", "id,driver,name,cpus"]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["ID", "DRIVER", "NAME", "CPUS"]);
    let nic = lines.iter().find(|line| line.contains("hv_netvsc")).expect("a NIC");
    assert!(nic.contains("Synthetic network adapter"), "{text}");
    let value = valid(&said(&guest, &["lsvmbus", "--json"]), "lsvmbus-1.json");
    assert_eq!(lines.len(), 1 + value["devices"].as_array().expect("a list").len());
    let brief = said(&guest, &["lsvmbus", "-br"]);
    assert_eq!(brief.lines().count() + 1, lines.len());
    assert!(brief.contains("7c1e5225-55d2-7c1e-5225-55d27c1e5225  hv_netvsc"), "{brief}");
    assert!(
        refused(&guest, &["lsvmbus", "-o", "serial"], 2).contains("[possible values: id, guid")
    );
}

#[test]
fn a_page_shows_sources_and_both_interfaces() {
    let guest = kinds::worked_example();
    let page = said(&guest, &["show", "eth0"]);
    for words in [
        "eth0 is accelerated\n",
        "association  serial 1                              kernel-log",
        "vf serial    1                                     slot",
        "enP37498s1",
        "mtu            1500               1500",
        "CHANNEL  SUB  CPU  INTERRUPTS",
        "Data path switched to VF: enP37498s1",
    ] {
        assert!(page.contains(words), "{words} is missing in:\n{page}");
    }
    assert!(!page.contains("eth1"), "{page}");
}

#[test]
fn a_pair_is_found_by_every_name_it_has() {
    let guest = kinds::worked_example();
    for name in [
        "eth0",
        "enP37498s1",
        "7C:1E:52:25:55:D2",
        "{7c1e5225-55d2-7c1e-5225-55d27c1e5225}",
        "d3cbd5f3-927a-45ec-985d-2ddb43e90b83",
        "927a:00:02.0",
    ] {
        assert!(said(&guest, &["show", name]).starts_with("eth0 is"), "{name}");
    }
    let text = refused(&guest, &["show", "eth9"], 1);
    assert!(text.contains("`eth9`") && text.contains("netvsc list"), "{text}");
}

#[test]
fn a_pair_is_found_by_names_written_as_other_tools_write_them() {
    let guest = kinds::worked_example();
    guest.tell("", 2, "eth0", &[guest::kernel::altname("the-uplink")]);
    guest.tell("", 3, "enP37498s1", &[guest::kernel::altname("enP37498p0s2")]);
    for name in [
        "the-uplink",
        "enP37498p0s2",
        "{7C1E5225-55D2-7C1E-5225-55D27C1E5225}",
        "7C-1E-52-25-55-D2",
        "927A:00:02.0",
        "{d3cbd5f3-927a-45ec-985d-2ddb43e90b83}",
    ] {
        let text = said(&guest, &["show", name]);
        assert!(text.starts_with("eth0 is accelerated"), "{name}: {text}");
    }
    let value = valid(&said(&guest, &["list", "--json"]), "guest-1.json");
    assert_eq!(value["nics"][0]["altnames"][0], "the-uplink");
    assert_eq!(value["nics"][0]["vf"]["altnames"][0], "enP37498p0s2");
    // Case matters in names.
    assert!(refused(&guest, &["show", "ETH0"], 1).contains("ETH0"));
}

#[test]
fn what_the_kernel_log_does_not_tell_is_not_explained_as_a_fact() {
    let silent = kinds::worked_example();
    silent.remove("dev/kmsg");
    let wrapped = kinds::worked_example();
    wrapped.write("dev/kmsg", "6,900,7000000000,-;something else");
    for (guest, why) in [(silent, "it needs CAP_SYSLOG"), (wrapped, "does not go back to the boot")]
    {
        let text = said(&guest, &["explain", "eth0"]);
        assert!(text.contains("The host probably associates serial 1 with it"), "{text}");
        assert!(text.contains("(inferred-link)") && text.contains(why), "{text}");
        assert!(text.contains("the rules agree: the permanent MACs agree, and what"), "{text}");
        for claim in ["no serial", "no NIC is associated", "The host associates"] {
            assert!(!text.contains(claim), "{claim}: {text}");
        }
    }
    // A port without a NIC has no serial of a NIC that nobody knows of, nor lacks one.
    let mut alone = kinds::mana_only();
    alone.nic("7c1e5225-55d2-7c1e-5225-55d27c1e5299", "eth7", "7c:1e:52:25:55:99");
    alone.remove("dev/kmsg");
    let text = said(&alone, &["explain", "enP30832s1"]);
    assert!(!text.contains("none has its serial") && text.contains("not known of all"), "{text}");
    // Where the log goes back to the boot, its silence is an answer.
    let text = said(&kinds::worked_example(), &["explain", "eth0"]);
    assert!(text.contains("The host associates serial 1 with it (kernel-log)"), "{text}");
    assert!(text.contains("The rules: NIC ") && !text.contains("probably"), "{text}");
}

#[test]
fn the_first_thing_in_the_way_is_explained() {
    for (guest, words) in [
        (kinds::driver_missing(), "function 927a:00:00.0 is here, and no driver has it"),
        (kinds::synthetic_only(), "the host has associated no VF with it"),
        (kinds::bonded(), "the kernel has not joined the two"),
        (kinds::confidential(), "isolated from its host"),
        (kinds::vf_in_namespace(), "no interface in this network namespace"),
    ] {
        let text = said(&guest, &["explain", "eth0"]);
        assert!(text.contains(words), "{words} is missing in:\n{text}");
    }
    let text = said(&kinds::worked_example(), &["explain", "eth0"]);
    assert!(text.contains("the rules agree: serial and permanent MAC agree"), "{text}");
    let text = said(&kinds::emulated_beside(), &["explain", "eth1"]);
    assert!(text.contains("an emulated network card") && text.contains("(P1)"), "{text}");
    let text = said(&kinds::mana_only(), &["explain", "enP30832s1"]);
    assert!(text.contains("has no NIC") && text.contains("Its permanent MAC is"), "{text}");
    valid(&said(&kinds::bonded(), &["explain", "eth0", "--json"]), "explain-1.json");
}

#[test]
fn scripts_get_one_word() {
    let guest = kinds::worked_example();
    let nic = ["resolve", "--mac", "7c:1e:52:25:5c:a6"];
    assert_eq!(said(&guest, &nic), "eth1\n");
    assert_eq!(said(&guest, &["resolve", "--serial", "2", "--print", "vf"]), "enP6757s2\n");
    assert_eq!(said(&guest, &["resolve", "--pci", "1a65:00:02.0"]), "eth1\n");
    let guid = "7c1e5225-5ca6-7c1e-5225-5ca67c1e5225";
    assert_eq!(said(&guest, &["resolve", "--guid", guid, "--print", "pci"]), "1a65:00:02.0\n");
    let of_vf = ["resolve", "--interface", "enP6757s2", "--print", "guid"];
    assert_eq!(said(&guest, &of_vf), format!("{guid}\n"));
    valid(&said(&guest, &["resolve", "--serial", "1", "--json"]), "resolve-1.json");
}

#[test]
fn scripts_get_an_error_instead_of_a_guess() {
    let guest = kinds::azure_mana();
    let text = refused(&guest, &["resolve", "--serial", "1"], 1);
    assert!(text.contains("more than one NIC: eth0, eth1, eth2, eth3"), "{text}");
    let text = refused(&guest, &["resolve", "--serial", "9"], 1);
    assert!(text.contains("serial 9"), "{text}");
    let text =
        refused(&kinds::synthetic_only(), &["resolve", "--interface", "eth0", "--print", "vf"], 1);
    assert!(text.contains("eth0 is synthetic") && text.contains("netvsc explain eth0"), "{text}");
    assert!(refused(&guest, &["resolve"], 2).contains("--mac"));
    refused(&guest, &["resolve", "--serial", "1", "--mac", "x"], 2);
}

#[test]
fn lsvmbus_prints_what_the_classic_script_prints() {
    let mut guest = Guest::new();
    kinds::one(&mut guest);
    assert_eq!(
        said(&guest, &["lsvmbus"]),
        "VMBUS ID 14: Synthetic network adapter\nVMBUS ID 22: PCI Express pass-through\n"
    );
    let text = said(&guest, &["lsvmbus", "-v"]);
    assert!(text.ends_with(
        "VMBUS ID 22: Class_ID = {44c4f61d-4444-4400-9d52-802e27ede19f} - PCI Express pass-through\n\
         \tRel_ID=22, target_cpu=0\n\n"
    ));
    let text = said(&guest, &["lsvmbus", "-vv"]);
    assert!(text.contains("\n\tDevice_ID = {7c1e5225-55d2-7c1e-5225-55d27c1e5225}\n\tSysfs path: /sys/bus/vmbus/devices/"));
    guest.device(
        "00000000-0000-0000-0000-000000000001",
        "00000000-0000-0000-0000-000000000002",
        None,
        1,
    );
    assert!(said(&guest, &["lsvmbus"]).ends_with("VMBUS ID 23: Unknown\n"));
}

#[test]
fn what_could_not_be_read_is_said_beside_the_table() {
    let guest = kinds::worked_example();
    guest.write("sys/class/net/eth0/mtu", "\u{1b}[31mhuge");
    let output = netvsc(guest.root(), &["list"]);
    assert!(output.status.success());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("/sys/class/net/eth0/mtu") && !errors.contains('\u{1b}'), "{errors}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("eth0  enP37498s1"));
}

#[test]
fn names_that_would_command_a_terminal_are_not_repeated_by_any_verb() {
    let mut guest = Guest::new();
    let nic = ("7c1e5225-55d2-7c1e-5225-55d27c1e5225", "e\u{1b}[31m0", "7c:1e:52:25:55:d2");
    let bus = "d3cbd5f3-927a-45ec-985d-2ddb43e90b83";
    kinds::pair(&mut guest, nic, bus, "1", "v\u{1b}[2J\u{9b}", &kinds::IXGBEVF);
    for arguments in [
        &["list"][..],
        &["list", "-br"],
        &["show"],
        &["explain", "7c:1e:52:25:55:d2"],
        &["resolve", "--mac", "7c:1e:52:25:55:d2"],
        &["resolve", "--mac", "7c:1e:52:25:55:d2", "--print", "vf"],
        &["lsvmbus", "-vv"],
        &["check"],
        &["watch"],
        &["udev", "v\u{1b}[2J\u{9b}"],
    ] {
        let output = netvsc(guest.root(), arguments);
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(!text.is_empty(), "{arguments:?}");
        let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
        assert!(!text.contains(obeyed), "{arguments:?}: {text:?}");
    }
}

#[test]
fn a_root_that_is_not_there_is_an_error() {
    let output = netvsc(Path::new("/no/such/root"), &["list"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/root"));
}

#[test]
fn the_running_system_can_be_listed_wherever_this_runs() {
    let output = Command::new(env!("CARGO_BIN_EXE_netvsc"))
        .args(["list", "--json"])
        .output()
        .expect("the program runs");
    assert!(output.status.success());
    let value = valid(&String::from_utf8(output.stdout).expect("text"), "guest-1.json");
    assert_eq!(value["source"]["kind"], "live");
    assert!(value["generated_at"].is_string());
}

/// What a verb says on both outputs if it may read what everybody may, and no more.
fn unprivileged(guest: &Guest, arguments: &[&str]) -> (String, String) {
    // Only root can drop capabilities, and only root has any to drop; the user stays, so that the program can be read.
    let program = env!("CARGO_BIN_EXE_netvsc");
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all", "--", program]);
        command
    } else {
        Command::new(program)
    };
    let output = command.args(arguments).arg("--sysfs-root").arg(guest.root()).output();
    let output = output.expect("setpriv of util-linux, which tests with the kernel need");
    // What a check found is no failure; what it could not decide is 3.
    let status = output.status.code();
    assert!(status == Some(0) || (arguments[0] == "check" && status == Some(3)), "{output:?}");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (text(output.stdout), text(output.stderr))
}

#[test]
fn without_privilege_all_that_is_readable_is_shown_and_each_capability_that_is_missed_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let guest = kinds::worked_example();
    guest.write("etc/netplan/50-cloud-init.yaml", "network: {version: 2}");
    for secret in ["dev/kmsg", "etc/netplan/50-cloud-init.yaml"] {
        let nobodys = std::fs::Permissions::from_mode(0o000);
        std::fs::set_permissions(guest.path(secret), nobodys).expect("a file of this test");
    }
    let log = "cannot read /dev/kmsg: permission denied; it needs CAP_SYSLOG\n";
    for (arguments, shown) in [
        (&["list"][..], "eth1  enP6757s2   7c:1e:52:25:5c:a6  ~2 "),
        (&["show", "eth0"], "eth0 is unknown: only the kernel log tells"),
        (&["explain", "eth0"], "enP37498s1"),
        (&["lsvmbus", "-br"], "7c1e5225-55d2-7c1e-5225-55d27c1e5225  hv_netvsc"),
        (&["metrics"], "netvsc_state{device=\"eth1\",state=\"unknown\"} 1"),
        (&["check"], "path.synthetic  the kernel log could not be read; it needs CAP_SYSLOG"),
        (&["udev", "eth0"], "NETVSC_ROLE="),
    ] {
        let (text, errors) = unprivileged(&guest, arguments);
        assert!(text.contains(shown), "{arguments:?}: {text}");
        let complains = !matches!(arguments[0], "explain" | "udev");
        assert_eq!(errors.contains(log), complains, "{arguments:?}: {errors}");
        let reads_all = matches!(arguments[0], "check" | "metrics");
        assert_eq!(errors.contains("it needs CAP_DAC_READ_SEARCH"), reads_all, "{errors}");
    }
    let (text, _) = unprivileged(&guest, &["explain", "eth0"]);
    assert!(text.contains("CAP_SYSLOG"), "{text}");
}
