//! What other people's acceptance tests look at, on trees of files and on the embedded host. Each test is called as the case that it
//! mirrors; `docs/ACCEPTANCE.md` has all cases, and those that other tests of this workspace mirror.

#[path = "../../netvsc-linux/tests/guest/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;

use std::path::Path;
use std::process::Command;

use guest::{Guest, kinds};
use serde_json::Value;

/// What the program prints, whatever its exit status.
fn netvsc(root: Option<&Path>, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netvsc"));
    command.args(arguments);
    if let Some(root) = root {
        command.arg("--sysfs-root").arg(root);
    }
    String::from_utf8(command.output().expect("the program runs").stdout).expect("text")
}

fn json(guest: &Guest, arguments: &[&str]) -> Value {
    serde_json::from_str(&netvsc(Some(guest.root()), arguments)).expect("JSON")
}

/// The ids of what `check` finds.
fn found(guest: &Guest) -> Vec<String> {
    let checked = json(guest, &["check", "--json"]);
    let findings = checked["findings"].as_array().expect("findings");
    findings.iter().map(|it| it["id"].as_str().expect("an id").to_owned()).collect()
}

/// Eight pairs, as many as a VM may have.
fn eight() -> Guest {
    kinds::many(8)
}

// Each synthetic NIC has one VF, the VF's module is there, and there are as many VFs as `lspci` counts Ethernet functions.
#[test]
fn verify_sriov_basic() {
    for guest in [kinds::azure_mlx4(), kinds::azure_mlx5(), kinds::on_prem(), eight()] {
        let listed = json(&guest, &["list", "--json"]);
        let nics = listed["nics"].as_array().expect("NICs");
        let mut vfs: Vec<_> = nics.iter().map(|nic| nic["vf"]["pci"].to_string()).collect();
        let drivers = nics.iter().all(|nic| nic["vf"]["driver"].is_string());
        assert!(drivers && nics.iter().all(|nic| nic["joined"] == true), "{listed}");
        vfs.dedup();
        let functions = std::fs::read_dir(guest.path("sys/bus/pci/devices")).expect("functions");
        assert_eq!(vfs.len(), functions.count());
    }
}

// The same for a function with a port for every NIC: one line of `lspci`, four VFs.
#[test]
fn verify_sriov_basic_with_one_function_for_all() {
    let listed = json(&kinds::azure_mana(), &["list", "--json"]);
    let nics = listed["nics"].as_array().expect("NICs");
    let mut ports: Vec<_> = nics.iter().map(|nic| nic["vf"]["ifname"].to_string()).collect();
    ports.sort();
    ports.dedup();
    assert_eq!((nics.len(), ports.len()), (4, 4), "{listed}");
    assert!(nics.iter().all(|nic| nic["vf"]["pci"] == "7870:00:00.0"));
}

// Eight NICs, each with its own VF, its own serial and its own path; nothing is wrong.
#[test]
fn verify_sriov_provision_with_max_nics() {
    let guest = eight();
    let text = netvsc(Some(guest.root()), &["list", "-br"]);
    assert_eq!(text.matches("accelerated").count(), 8, "{text}");
    assert_eq!(found(&guest), [""; 0]);
}

// Eight NICs that have no VF and want none.
#[test]
fn verify_synthetic_provision_with_max_nics() {
    let mut guest = Guest::new();
    for number in 0..8 {
        let mac = format!("00:15:5d:01:02:{number:02x}");
        guest.nic(
            &format!("2d0e6c1a-93f4-4b5e-8a77-0c1d2e3f0{number:03}"),
            &format!("eth{number}"),
            &mac,
        );
    }
    let text = netvsc(Some(guest.root()), &["list", "-br"]);
    assert_eq!(text.matches(" synthetic ").count(), 8, "{text}");
    assert_eq!(found(&guest), [""; 0]);
}

/// The events of a transfer over two NICs whose VFs are asked back, torn away and given again.
fn transfer() -> Vec<Value> {
    let text = netvsc(None, &["run", "--json", "--size", "8MiB", "--seed", "3"]);
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

// Data is copied, and the VF's frames are counted on both sides.
#[test]
fn verify_sriov_single_vf_connection() {
    let events = transfer();
    let summary = events.last().expect("a summary");
    assert_eq!((&summary["event"], &summary["digest_ok"]), (&"summary".into(), &true.into()));
    assert!(summary["frames_vf"].as_u64() > Some(0), "{summary}");
}

// Acceleration goes and comes back twice and more under the traffic; no frame is lost when it goes in order.
#[test]
fn verify_sriov_disable_enable() {
    let events = transfer();
    let summary = events.last().expect("a summary");
    let gone = ["ejects", "surprises"].map(|it| summary[it].as_u64().expect("a number"));
    assert!(gone.iter().sum::<u64>() >= 4, "{summary}");
    assert_eq!(summary["frames_lost_orderly"], 0);
    let pairs = summary["pairs"].as_array().expect("pairs");
    assert!(pairs.iter().all(|pair| pair["state"] == "accelerated"), "{summary}");
}

// Every device has a class with a name, the NICs a channel for each of eight processors; through the text that is parsed there.
#[test]
fn verify_vmbus_devices_channels() {
    let text = netvsc(Some(kinds::worked_example().root()), &["lsvmbus", "-vv"]);
    assert!(!text.contains("Unknown"), "{text}");
    for device in text.split_terminator("\n\n") {
        let channels = device.matches("\tRel_ID=").count();
        let nic = device.contains("Synthetic network adapter");
        assert_eq!(channels, if nic { 8 } else { 1 }, "{device}");
        assert!(device.starts_with("VMBUS ID ") && device.contains("\tDevice_ID = {"), "{device}");
    }
    assert_eq!(text.matches("Class_ID").count(), 5);
}

// The heartbeat is among the devices, by the name that is looked for.
#[test]
fn verify_vmbus_heartbeat_properties() {
    let mut guest = kinds::confidential();
    guest.device(
        "fd149e91-82e0-4a7d-afa6-2a4166cbd7c0",
        "57164f39-9115-4e78-ab55-382f3bd5422d",
        Some("hv_utils"),
        1,
    );
    let text = netvsc(Some(guest.root()), &["lsvmbus"]);
    assert!(text.contains(": [Heartbeat]\n"), "{text}");
}

// A confidential VM: only the devices that it allows, and none of them a virtual PCI bus.
#[test]
fn verify_lsvmbus() {
    let text = netvsc(Some(kinds::confidential().root()), &["lsvmbus"]);
    assert_eq!(text, "VMBUS ID 14: Synthetic network adapter\n");
}

// A MANA function without driver is what that case is there to notice.
#[test]
fn verify_mana_driver_present() {
    assert_eq!(found(&kinds::azure_mana()), [""; 0]);
    assert_eq!(found(&kinds::driver_missing()), ["pair.orphan-pci"]);
}

// MANA without any synthetic NIC is as good as it gets.
#[test]
fn is_pci_only_nic() {
    let guest = kinds::mana_only();
    assert_eq!(found(&guest), [""; 0]);
    let properties = netvsc(Some(guest.root()), &["udev", "enP30832s1"]);
    assert!(properties.starts_with("NETVSC_ROLE=standalone\n"), "{properties}");
    assert!(!properties.contains("UNMANAGED"), "it is to have an address: {properties}");
}

// Of every VF with a NIC the network part of azure-vm-utils' selftest wants these three properties.
#[test]
fn azure_vm_utils_selftest() {
    for (guest, vfs) in [
        (kinds::azure_mlx4(), &["enP37498s1", "enP6757s2"][..]),
        (kinds::azure_mana(), &["enP30832s1", "enP30832s1d1", "enP30832s1d2", "enP30832s1d3"]),
    ] {
        for vf in vfs {
            let properties = netvsc(Some(guest.root()), &["udev", vf]);
            for wanted in
                ["AZURE_UNMANAGED_SRIOV=1", "ID_NET_MANAGED_BY=unmanaged", "NM_UNMANAGED=1"]
            {
                assert!(properties.lines().any(|line| line == wanted), "{vf}: {properties}");
            }
        }
    }
}

// AgentBaker looks at four facts: the MANA function, its module, that the VF is joined with eth0, and that its counters rise. All
// four are in one document, without the kernel log and without privilege.
#[test]
fn agent_baker_mana() {
    let mut guest = kinds::azure_mana();
    guest.remove("dev/kmsg");
    let index = json(&guest, &["list", "--json"])["nics"][0]["ifindex"].as_u64().expect("a number");
    let index = u32::try_from(index).expect("a small number");
    guest.sample_vf(index, [100, 103, 106]);
    let shown = json(&guest, &["show", "--json", "eth0"]);
    let nic = &shown["nics"][0];
    assert_eq!((&nic["vf"]["ids"], &nic["vf"]["driver"]), (&"1414:00ba".into(), &"mana".into()));
    assert_eq!((&nic["joined"], &nic["vf"]["ifname"]), (&true.into(), &"enP30832s1".into()));
    let told = (&nic["state"], &nic["path"], &nic["path_source"]);
    assert_eq!(told, (&"accelerated".into(), &"vf".into(), &"counters".into()));
}
