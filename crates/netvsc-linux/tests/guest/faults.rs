//! Guests with faults that no complaint is about, and guests in which nothing is wrong.

use super::complaints::{
    Expected, MAC, NETWORK, RULES, VF, azure, network_manager, networkd, unmarked, waiting,
};
use super::kernel::{PARENT, PERM_ADDRESS, mac};
use super::{GOOD_RULE, Guest, MLX5, kinds};

/// A name, how to build it, and what is to be found in it.
pub type Fault = (&'static str, fn() -> Guest, Expected);

/// A name, and how to build it.
pub type Healthy = (&'static str, fn() -> Guest);

/// Guests for the checks that no complaint is about.
pub const OTHERS: &[Fault] = &[
    ("duplicate_slot", kinds::duplicate_slot, &[("pair.slot-name", "critical", "927a:00:02.0")]),
    ("vf_in_namespace", vf_elsewhere, &[("own.netns", "warn", "eth0")]),
    ("bonded", kinds::bonded, &[("own.master", "critical", VF), ("pair.join", "critical", VF)]),
    ("driver_missing", kinds::driver_missing, &[("pair.orphan-pci", "critical", "927a:00:00.0")]),
    ("blocked", blocked, &[("pair.blocked", "critical", "eth0")]),
    ("wrong_mac", wrong_mac, &[("pair.wrong", "critical", "eth0")]),
    ("other_serial", other_serial, &[("pair.by-mac-only", "info", "eth0")]),
    ("join_failed", join_failed, &[("pair.join", "critical", VF)]),
    ("wsl2", wsl2, &[("pair.assoc-no-vf", "info", "eth0")]),
    ("dhcpcd", dhcpcd, &[("own.manager", "warn", VF)]),
    (
        "ifupdown",
        ifupdown,
        &[("name.unstable", "info", "/etc/network/interfaces"), ("own.manager", "warn", VF)],
    ),
    ("neighbour", neighbour, &[("own.address", "critical", VF)]),
    ("mtu_refused", mtu_refused, &[("mtu.max", "warn", "eth0"), ("mtu.mismatch", "warn", "eth0")]),
    (
        "no_vpci_driver",
        no_vpci_driver,
        &[("pair.assoc-no-vf", "critical", "eth0"), ("sys.module", "warn", "pci_hyperv")],
    ),
    ("meant_by_type", || meant("Type=ether"), MEANT),
    ("meant_by_exception", || meant("Name=!lo"), MEANT),
    (
        "meant_with_all",
        || meant("Name=*\nType=!loopback bridge tunnel vxlan wireguard\nDriver=!veth dummy"),
        MEANT,
    ),
    (
        "section_of_others",
        || {
            left_alone(
                "[device-a]\nmatch-device=interface-name:veth*\nmanaged=0\n[device-b]\nmatch-device=*\nmanaged=1",
            )
        },
        &[("own.manager", "warn", VF)],
    ),
    ("initramfs_older", initramfs_older, &[("own.manager", "warn", VF), INITRAMFS]),
    ("initramfs_older_than_ours", ours_in_initramfs, &[("own.manager", "warn", VF), INITRAMFS]),
    (
        "connectx3_managed",
        connectx3_managed,
        &[("own.manager", "warn", VF), ("sys.networkd", "warn", "systemd-networkd")],
    ),
    ("vf_down", vf_down, &[("path.synthetic", "critical", "eth0")]),
    ("excepted_too_late", excepted_too_late, MEANT),
    (
        "two_meant",
        two_meant,
        &[
            ("own.manager", "warn", "enP37498s1np0"),
            ("own.manager", "warn", "enP6757s2np0"),
            ("sys.networkd", "warn", "systemd-networkd"),
        ],
    ),
];

const MEANT: Expected =
    &[("own.manager", "warn", VF), ("sys.networkd", "warn", "systemd-networkd")];

/// systemd-networkd runs and has said nothing yet, and a file of its own means a VF that no rule has marked.
fn meant(section: &str) -> Guest {
    let (guest, pair) = azure();
    unmarked(&guest, &pair);
    guest.remove(&format!("{RULES}/10-azure-unmanaged-sriov.rules"));
    networkd(&guest, "252", pair.nic.index, "configured");
    let text = format!("[Match]\n{section}\n[Network]\nDHCP=yes");
    guest.write(&format!("{NETWORK}/80-dhcp.network"), &text);
    guest
}

const INITRAMFS: (&str, &str, &str) = ("own.rule-initramfs", "warn", VF);

/// NetworkManager took a VF in the initramfs, and a module of dracut would have put the rule there.
pub fn initramfs_older() -> Guest {
    let (guest, pair) = azure();
    guest.folder("run/NetworkManager/initrd");
    network_manager(&guest, pair.port.index, true);
    guest.write(
        "usr/lib/dracut/modules.d/97azure-unmanaged-sriov/module-setup.sh",
        "install() {\n    inst_rules 10-azure-unmanaged-sriov.rules\n}",
    );
    guest
}

/// The same with the rule of `netvsc install` and its hook for initramfs-tools.
pub fn ours_in_initramfs() -> Guest {
    let guest = initramfs_older();
    guest.remove("usr/lib/dracut");
    guest.remove(&format!("{RULES}/10-azure-unmanaged-sriov.rules"));
    guest.write(
        &format!("{RULES}/60-netvsc.rules"),
        "SUBSYSTEMS==\"vmbus\", IMPORT{program}=\"/usr/lib/udev/netvsc udev\"",
    );
    guest.write("usr/share/initramfs-tools/hooks/netvsc", "cp 60-netvsc.rules \"$DESTDIR\"");
    guest
}

/// A ConnectX-3, whose function is driven by mlx4_core and whose interface by mlx4_en, as udev knows it or not.
fn connectx3(udev: &[(&str, &str)]) -> Guest {
    let mut guest = Guest::new();
    let nic = (kinds::NIC_A.0, "eth0", MAC);
    let pair = kinds::pair(&mut guest, nic, kinds::BUS_A, "1", VF, &kinds::MLX4);
    let marks = [("ID_NET_MANAGED_BY", "unmanaged"), ("NM_UNMANAGED", "1")];
    guest.udev(pair.port.index, &[udev, &marks].concat());
    let list = |key: &str, drivers: &str| {
        format!(
            "{key}==\"{drivers}\", ATTR{{flags}}==\"0x?[89ABCDEF]??\", ENV{{NM_UNMANAGED}}=\"1\""
        )
    };
    let rules = [
        list("ENV{ID_NET_DRIVER}", "mana|mlx4_en|mlx5_core"),
        list("DRIVERS", "mana|mlx4_core|mlx5_core"),
    ];
    guest.write(&format!("{RULES}/10-azure-unmanaged-sriov.rules"), &rules.join("\n"));
    guest
}

/// systemd-networkd has it, by a file for all interfaces.
fn connectx3_managed() -> Guest {
    let guest = connectx3(&[("ID_NET_DRIVER", "mlx4_en")]);
    networkd(&guest, "252", 3, "configured");
    guest.write(&format!("{NETWORK}/50-dhcp.network"), "[Match]\nName=e*\n[Network]\nDHCP=yes");
    guest
}

/// Lists of drivers that have the wrong name of each.
pub fn connectx3_misnamed(key: &str, driver: &str) -> Guest {
    let guest = connectx3(&[]);
    let rule = format!(
        "{key}==\"{driver}|mlx5_core\", ATTR{{flags}}==\"0x?[89ABCDEF]??\", ENV{{NM_UNMANAGED}}=\"1\""
    );
    guest.write(&format!("{RULES}/10-azure-unmanaged-sriov.rules"), &rule);
    guest
}

/// Somebody set the VF down, and the kernel went back to the synthetic path.
pub fn vf_down() -> Guest {
    let (mut guest, pair) = azure();
    guest.write(&format!("{}/flags", pair.port.net), "0x1802");
    guest.write(&format!("{}/operstate", pair.port.net), "down");
    guest.say_nic(900_000, &pair.nic, "Data path switched from VF: enP37498s1");
    guest
}

/// NetworkManager runs and has said nothing about the VF, which no rule marks; this is what it was told.
fn left_alone(settings: &str) -> Guest {
    let (guest, pair) = azure();
    unmarked(&guest, &pair);
    guest.remove(&format!("{RULES}/10-azure-unmanaged-sriov.rules"));
    network_manager(&guest, pair.nic.index, true);
    guest.write("etc/NetworkManager/conf.d/90-netvsc-vf.conf", settings);
    guest
}

/// Its NIC is down as well, and so the VF has to be.
fn both_down() -> Guest {
    let guest = vf_down();
    guest.write("sys/class/net/eth0/flags", "0x1002");
    guest
}

/// The file that excepts the VF comes after the one that means it, and the first by name is the one that counts.
fn excepted_too_late() -> Guest {
    let guest = meant("Name=en*");
    let text = "[Match]\nDriver=mlx5_core\n[Link]\nUnmanaged=yes";
    guest.write(&format!("{NETWORK}/99-vf.network"), text);
    guest
}

/// A file for all interfaces means both VFs, and this systemd does not know the mark.
fn two_meant() -> Guest {
    let guest = kinds::azure_mlx5();
    networkd(&guest, "252", 2, "configured");
    guest.write(&format!("{NETWORK}/80-dhcp.network"), "[Match]\nName=*\n[Network]\nDHCP=yes");
    guest
}

fn vf_elsewhere() -> Guest {
    let guest = kinds::vf_in_namespace();
    let parent = (PARENT, b"927a:00:02.0\0".to_vec());
    guest.tell("netns/pod/", 3, "eth1", &[parent, (PERM_ADDRESS, mac(MAC))]);
    guest
}

fn blocked() -> Guest {
    let mut guest = Guest::new();
    let nic = guest.nic("7c1e5225-55d2-7c1e-5225-55d27c1e5225", "eth0", MAC);
    guest.say_nic(7_100_000, &nic, "Waiting for the VF association from host");
    guest
}

fn wrong_mac() -> Guest {
    let (guest, pair) = azure();
    guest.write(&format!("{}/address", pair.port.net), "7c:1e:52:25:5c:a6");
    guest
}

fn other_serial() -> Guest {
    let (mut guest, pair) = azure();
    guest.say_nic(6200, &pair.nic, "VF slot 9 added");
    guest
}

fn join_failed() -> Guest {
    let (mut guest, _) = waiting("7200.00");
    let function = guest.function("d3cbd5f3-927a-45ec-985d-2ddb43e90b83", "1", &MLX5);
    let port = guest.port(&function, VF, MAC, 0);
    guest.unmanage(&port);
    guest.say_function(6120, &function, VF, "can not set master device eth0 (err = -16)");
    guest
}

fn wsl2() -> Guest {
    let mut guest = Guest::new();
    let nic = guest.nic("2d0e6c1a-93f4-4b5e-8a77-0c1d2e3f4a5b", "eth0", "00:15:5d:01:02:03");
    guest.say_nic(2130, &nic, "VF slot 1 added");
    guest
}

fn dhcpcd() -> Guest {
    let (guest, _) = azure();
    guest.write("run/dhcpcd/pid", "77");
    guest.write("etc/dhcpcd.conf", "hostname\ndenyinterfaces veth* docker*");
    guest
}

fn ifupdown() -> Guest {
    let (guest, _) = azure();
    guest.write("run/network/ifstate", "lo=lo\neth0=eth0");
    guest.write(
        "etc/network/interfaces",
        "auto eth0\niface eth0 inet dhcp\niface enP37498s1 inet dhcp",
    );
    guest
}

fn neighbour() -> Guest {
    let (guest, pair) = azure();
    guest.neighbour(pair.port.index, "10.0.0.1");
    guest
}

fn mtu_refused() -> Guest {
    let (mut guest, pair) = azure();
    guest.write(&format!("{}/mtu", pair.nic.net), "9000");
    guest.say_function(6125, &pair.function, VF, "unable to change mtu to 9000");
    guest
}

fn no_vpci_driver() -> Guest {
    let (mut guest, _) = waiting("7200.00");
    guest.modules(&["hv_netvsc", "mlx5_core"]);
    let class = "44c4f61d-4444-4400-9d52-802e27ede19f";
    guest.device("d3cbd5f3-927a-45ec-985d-2ddb43e90b83", class, None, 1);
    guest
}

/// Guests in which nothing is wrong.
pub const HEALTHY: &[Healthy] = &[
    ("worked_example", kinds::worked_example),
    ("azure_mlx4", kinds::azure_mlx4),
    ("azure_mlx5", kinds::azure_mlx5),
    ("azure_mana", kinds::azure_mana),
    ("mana_only", kinds::mana_only),
    ("on_prem", kinds::on_prem),
    ("emulated_beside", kinds::emulated_beside),
    ("synthetic_only", kinds::synthetic_only),
    ("mid_servicing", kinds::mid_servicing),
    ("after_hibernation", kinds::after_hibernation),
    ("renamed_vf", kinds::renamed_vf),
    ("confidential", kinds::confidential),
    ("uio_bound", kinds::uio_bound),
    ("without_hyperv", Guest::without_hyperv),
    ("managed_well", managed_well),
    ("guarded_rule", guarded_rule),
    ("rules_by_driver", rules_by_driver),
    ("left_alone_by_section", || {
        left_alone("[device-azure]\nmatch-device=driver:mlx5_core;driver:mlx4_core\nmanaged=0")
    }),
    ("left_alone_by_netvsc", || {
        let specs = format!("match-device=mac:{MAC};except:driver:hv_netvsc");
        left_alone(&format!("[device-netvsc-vf]\n{specs}\nmanaged=0"))
    }),
    ("left_alone_by_exception", || {
        left_alone("[device]\nmatch-device=except:driver:hv_netvsc\nmanaged=false")
    }),
    ("connectx3", || connectx3(&[("ID_NET_DRIVER", "mlx4_en")])),
    ("connectx3_without_udev", || connectx3(&[])),
    ("both_down", both_down),
    ("ubuntu_22", || ubuntu("249", false)),
    ("ubuntu_24", || ubuntu("255", true)),
];

/// Ubuntu as it comes: netplan wrote files for the NIC, and none that means the VF, marked or not.
fn ubuntu(version: &str, marked: bool) -> Guest {
    let (guest, pair) = azure();
    if !marked {
        unmarked(&guest, &pair);
        guest.remove(&format!("{RULES}/10-azure-unmanaged-sriov.rules"));
    }
    networkd(&guest, version, pair.port.index, "unmanaged");
    networkd(&guest, version, pair.nic.index, "configured");
    let matches = format!("[Match]\nDriver=hv_netvsc\nPermanentMACAddress={MAC}\n");
    guest.write(
        "run/systemd/network/10-netplan-eth0.network",
        &format!("{matches}[Network]\nDHCP=ipv4"),
    );
    guest.write("run/systemd/network/10-netplan-eth0.link", &format!("{matches}[Link]\nName=eth0"));
    guest
}

/// A rule that finds VFs by what it jumps over, not by what it asks itself.
fn guarded_rule() -> Guest {
    let (guest, _) = azure();
    guest.write(
        &format!("{RULES}/10-azure-unmanaged-sriov.rules"),
        "SUBSYSTEM!=\"net\", GOTO=\"end\"\nACTION==\"remove\", GOTO=\"end\"\n\
         ATTR{flags}!=\"0x?[89ABCDEF]??\", GOTO=\"end\"\n\
         DRIVERS==\"hv_pci\", ENV{NM_UNMANAGED}=\"1\"\nLABEL=\"end\"",
    );
    guest
}

/// A rule for every driver that a VF of Azure may have.
fn rules_by_driver() -> Guest {
    let (guest, _) = azure();
    let rule = |driver| {
        format!(
            "SUBSYSTEM==\"net\", ENV{{ID_NET_DRIVER}}==\"{driver}\", ATTR{{flags}}==\"0x?[89ABCDEF]??\", \
             ENV{{AZURE_UNMANAGED_SRIOV}}=\"1\", ENV{{NM_UNMANAGED}}=\"1\"\n"
        )
    };
    guest.write(
        &format!("{RULES}/10-azure-unmanaged-sriov.rules"),
        &["mana", "mlx4_en", "mlx5_core"].map(rule).concat(),
    );
    guest
}

/// Managers run, and each has been told to leave the VF alone, by another means each.
fn managed_well() -> Guest {
    let (guest, pair) = azure();
    network_manager(&guest, pair.nic.index, true);
    networkd(&guest, "252", pair.port.index, "unmanaged");
    guest.write(
        "etc/systemd/network/01-vf.network",
        "[Match]\nProperty=AZURE_UNMANAGED_SRIOV=1\n[Link]\nUnmanaged=yes",
    );
    guest.write("run/dhcpcd/pid", "77");
    guest.write("etc/dhcpcd.conf", "denyinterfaces enP*");
    guest.write(
        "etc/NetworkManager/conf.d/vf.conf",
        "[keyfile]\nunmanaged-devices=driver:mlx5_core",
    );
    guest.write(&format!("{RULES}/11-again.rules"), GOOD_RULE);
    guest.write(
        "etc/netplan/50-cloud-init.yaml",
        &format!("network:\n  ethernets:\n    eth0:\n      match: {{driver: hv_netvsc, macaddress: \"{MAC}\"}}\n      set-name: eth0\n      mtu: 1500"),
    );
    guest
}
