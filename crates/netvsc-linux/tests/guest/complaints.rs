//! One guest for every public complaint, as far as a tree can show it, with what is to be found in it: no more and no
//! fewer.

use super::kernel::{MAX_MTU, QDISC, RX_QUEUES, XDP, XDP_DRIVER};
use super::kinds::{self, MANA, Pair};
use super::{Guest, MLX5, Made};

/// What is to be found: check, severity, subject.
pub type Expected = &'static [(&'static str, &'static str, &'static str)];

/// A complaint.
pub struct Complaint {
    /// Its number in the reference.
    pub number: u32,
    /// Where it was made.
    pub source: &'static str,
    pub build: fn() -> Guest,
    pub expected: Expected,
}

pub const MAC: &str = "7c:1e:52:25:55:d2";
pub const VF: &str = "enP37498s1";
const OLD_RULE: &str =
    "SUBSYSTEM==\"net\", ACTION==\"add\", DRIVERS==\"hv_pci\", ENV{NM_UNMANAGED}=\"1\"";
pub const RULES: &str = "usr/lib/udev/rules.d";
pub const NETWORK: &str = "etc/systemd/network";

/// An accelerated pair on Azure.
pub fn azure() -> (Guest, Pair) {
    let mut guest = Guest::new();
    guest.azure();
    let pair = kinds::one(&mut guest);
    (guest, pair)
}

/// The same with MANA: one port, whose slot is its serial.
fn azure_mana() -> (Guest, Pair) {
    let mut guest = Guest::new();
    guest.azure();
    let nic = ("f8615163-0000-1000-2000-7c1e522555d2", "eth0", MAC);
    let bus = "f8615163-7870-1000-2000-000d3a000000";
    let pair = kinds::pair(&mut guest, nic, bus, "1", "enP30832s1", &MANA);
    (guest, pair)
}

/// NetworkManager runs and has taken an interface, or not.
pub fn network_manager(guest: &Guest, index: u32, managed: bool) {
    guest.write(
        &format!("run/NetworkManager/devices/{index}"),
        &format!("[device]\nmanaged={managed}"),
    );
}

/// systemd-networkd runs and says this of an interface.
pub fn networkd(guest: &Guest, version: &str, index: u32, state: &str) {
    guest.write(&format!("usr/lib/systemd/libsystemd-shared-{version}.so"), "");
    guest.write(&format!("run/systemd/netif/links/{index}"), &format!("ADMIN_STATE={state}"));
}

/// What udev keeps of a VF that no rule has marked.
pub fn unmarked(guest: &Guest, pair: &Pair) {
    guest.udev(pair.port.index, &[("ID_NET_DRIVER", "mlx5_core"), ("ID_NET_NAME_SLOT", VF)]);
}

/// The same lease on both.
fn lease(guest: &Guest, pair: &Pair) {
    guest.address(pair.port.index, "10.0.0.2/24");
    guest.route(pair.port.index, "10.0.0.0/24");
}

pub fn waiting(uptime: &str) -> (Guest, super::Nic) {
    let mut guest = Guest::new();
    guest.azure();
    guest.write("proc/uptime", &format!("{uptime} 1.00"));
    let nic = guest.nic("7c1e5225-55d2-7c1e-5225-55d27c1e5225", "eth0", MAC);
    guest.say_nic(2130, &nic, "VF slot 1 added");
    (guest, nic)
}

pub const COMPLAINTS: &[Complaint] = &[
    Complaint {
        number: 1,
        source: "Azure/azure-vm-utils#106",
        build: || {
            let (guest, pair) = azure_mana();
            guest.write("proc/sys/kernel/osrelease", "5.14.0-570.el9.x86_64");
            guest.udev(pair.port.index, &[("ID_NET_DRIVER", "mana")]);
            network_manager(&guest, pair.port.index, true);
            lease(&guest, &pair);
            guest
        },
        expected: &[
            ("own.address", "critical", "enP30832s1"),
            ("own.manager", "warn", "enP30832s1"),
            ("sys.kernel", "warn", "kernel"),
        ],
    },
    Complaint {
        number: 2,
        source: "systemd/systemd#36997",
        build: || {
            let (guest, pair) = azure();
            networkd(&guest, "257.4-1.fc42", pair.port.index, "configured");
            guest.write(
                &format!("{NETWORK}/20-wired.network"),
                "[Match]\nName=e*\n[Network]\nDHCP=yes",
            );
            lease(&guest, &pair);
            guest
        },
        expected: &[
            ("own.address", "critical", VF),
            ("own.manager", "warn", VF),
            ("sys.networkd", "warn", "systemd-networkd"),
        ],
    },
    Complaint {
        number: 3,
        source: "coreos/fedora-coreos-tracker#1383",
        build: || {
            let (guest, pair) = azure();
            guest.folder("run/NetworkManager/initrd");
            network_manager(&guest, pair.port.index, true);
            lease(&guest, &pair);
            guest
        },
        expected: &[
            ("own.address", "critical", VF),
            ("own.manager", "warn", VF),
            ("own.rule-initramfs", "warn", VF),
        ],
    },
    Complaint {
        number: 4,
        source: "Azure/WALinuxAgent#1622",
        build: || {
            let (guest, pair) = azure();
            guest.remove(&format!("{RULES}/10-azure-unmanaged-sriov.rules"));
            guest.write(&format!("{RULES}/68-azure-sriov-nm-unmanaged.rules"), OLD_RULE);
            unmarked(&guest, &pair);
            network_manager(&guest, pair.port.index, true);
            guest
        },
        expected: &[
            ("own.manager", "warn", VF),
            ("own.rule-old", "warn", "/usr/lib/udev/rules.d/68-azure-sriov-nm-unmanaged.rules"),
        ],
    },
    Complaint {
        number: 5,
        source: "openshift/sriov-network-operator#414, #415",
        build: || {
            let (guest, pair) = azure();
            let rule = "SUBSYSTEM==\"net\", ACTION==\"add\", ATTR{flags}==\"0x?[89ABCDEF]??\", ENV{NM_UNMANAGED}=\"1\"";
            guest.write("etc/udev/rules.d/10-azure-unmanaged-sriov.rules", rule);
            // After the move the mark is gone, which the new kernel has no part in.
            guest.write("proc/sys/kernel/osrelease", "6.8.0-1020-azure");
            unmarked(&guest, &pair);
            network_manager(&guest, pair.port.index, true);
            guest.address(pair.port.index, "10.0.0.9/24");
            guest
        },
        expected: &[
            ("own.address", "critical", VF),
            ("own.manager", "warn", VF),
            ("own.rule-old", "warn", "/etc/udev/rules.d/10-azure-unmanaged-sriov.rules"),
        ],
    },
    Complaint {
        number: 6,
        source: "osbuild/osbuild#989",
        build: || {
            let (guest, pair) = azure();
            guest.remove(&format!("{RULES}/10-azure-unmanaged-sriov.rules"));
            unmarked(&guest, &pair);
            network_manager(&guest, pair.nic.index, true);
            guest
        },
        expected: &[("own.manager", "warn", VF)],
    },
    Complaint {
        number: 7,
        source: "MicrosoftDocs/azure-docs#116521",
        build: || {
            let (guest, pair) = azure();
            guest.remove(&format!("{RULES}/10-azure-unmanaged-sriov.rules"));
            unmarked(&guest, &pair);
            network_manager(&guest, pair.port.index, true);
            lease(&guest, &pair);
            guest
        },
        expected: &[("own.address", "critical", VF), ("own.manager", "warn", VF)],
    },
    Complaint {
        number: 8,
        source: "AlmaLinux/cloud-images#231",
        build: || {
            let (guest, pair) = azure();
            network_manager(&guest, pair.port.index, true);
            guest
        },
        expected: &[("own.manager", "warn", VF)],
    },
    Complaint {
        number: 9,
        source: "osbuild/image-builder#1743",
        build: || {
            let (guest, _) = azure();
            guest.write(&format!("{RULES}/68-azure-sriov-nm-unmanaged.rules"), OLD_RULE);
            guest
        },
        expected: &[
            ("own.rule-dup", "warn", "/usr/lib/udev/rules.d/68-azure-sriov-nm-unmanaged.rules"),
            ("own.rule-old", "warn", "/usr/lib/udev/rules.d/68-azure-sriov-nm-unmanaged.rules"),
        ],
    },
    Complaint {
        number: 10,
        source: "flatcar/init#106, flatcar/Flatcar#554",
        build: || {
            let (guest, pair) = azure_mana();
            guest.remove(&format!("{RULES}/10-azure-unmanaged-sriov.rules"));
            let rule = "SUBSYSTEM==\"net\", ENV{ID_NET_DRIVER}==\"mlx4_core|mlx5_core\", ENV{ID_NET_MANAGED_BY}=\"unmanaged\"";
            guest.write(&format!("{RULES}/99-azure-vf.rules"), rule);
            guest.udev(pair.port.index, &[("ID_NET_DRIVER", "mana")]);
            guest.write(
                "usr/lib/systemd/network/zz-default.network",
                "[Match]\nName=*\n[Network]\nDHCP=yes",
            );
            networkd(&guest, "258", pair.nic.index, "configured");
            guest
        },
        expected: &[
            ("own.manager", "warn", "enP30832s1"),
            ("own.rule-old", "warn", "/usr/lib/udev/rules.d/99-azure-vf.rules"),
        ],
    },
    Complaint {
        number: 11,
        source: "cloudfoundry/bosh-agent#366, #444",
        build: || {
            let (guest, pair) = azure();
            unmarked(&guest, &pair);
            guest.write("proc/sys/kernel/osrelease", "6.8.0-1020-azure");
            guest.write(
                "etc/systemd/network/10_enP37498s1.network",
                "[Match]\nName=enP37498s1\n[Network]\nDHCP=yes",
            );
            networkd(&guest, "258", pair.port.index, "configured");
            guest
        },
        expected: &[
            ("name.unstable", "info", "/etc/systemd/network/10_enP37498s1.network"),
            ("own.manager", "warn", VF),
        ],
    },
    Complaint {
        number: 12,
        source: "Azure/WALinuxAgent#2129",
        build: || {
            let mut guest = Guest::new();
            guest.azure();
            let nic = ("7c1e5225-55d2-7c1e-5225-55d27c1e5225", "eth1", MAC);
            let bus = "d3cbd5f3-927a-45ec-985d-2ddb43e90b83";
            kinds::pair(&mut guest, nic, bus, "1", "rename6", &MLX5);
            guest
        },
        expected: &[("name.temp", "warn", "rename6")],
    },
    Complaint {
        number: 13,
        source: "canonical/cloud-init#3450, #1853",
        build: || {
            let (mut guest, nic) = waiting("7200.00");
            let function = guest.function("d3cbd5f3-927a-45ec-985d-2ddb43e90b83", "1", &MLX5);
            let port = guest.port(&function, VF, MAC, 0);
            guest.udev(port.index, &[("ID_NET_DRIVER", "mlx5_core")]);
            assert_eq!(nic.mac, port.mac);
            guest
        },
        expected: &[("pair.unpaired", "warn", "eth0")],
    },
    Complaint {
        number: 14,
        source: "canonical/cloud-init#3316",
        build: kinds::bonded,
        expected: &[("own.master", "critical", VF), ("pair.join", "critical", VF)],
    },
    Complaint {
        number: 15,
        source: "canonical/cloud-init#4768",
        build: || {
            let (guest, _) = azure();
            guest.write(
                "etc/sysconfig/network-scripts/ifcfg-eth0",
                &format!("DEVICE=eth0\nHWADDR={MAC}\nBOOTPROTO=dhcp"),
            );
            guest
        },
        expected: &[("name.mac-match", "warn", "/etc/sysconfig/network-scripts/ifcfg-eth0")],
    },
    Complaint {
        number: 16,
        source: "canonical/cloud-init#539",
        build: || {
            let mut guest = Guest::new();
            guest.azure();
            let nic = ("7c1e5225-55d2-7c1e-5225-55d27c1e5225", "eth0", MAC);
            let bus = "d3cbd5f3-927a-45ec-985d-2ddb43e90b83";
            kinds::pair(&mut guest, nic, bus, "1", "rename3", &MLX5);
            guest.write(
                "etc/netplan/50-cloud-init.yaml",
                &format!("network:\n  version: 2\n  ethernets:\n    eth0:\n      dhcp4: true\n      match:\n        macaddress: {MAC}\n      set-name: eth0"),
            );
            guest
        },
        expected: &[
            ("name.mac-match", "warn", "/etc/netplan/50-cloud-init.yaml"),
            ("name.temp", "warn", "rename3"),
        ],
    },
    Complaint {
        number: 17,
        source: "canonical/cloud-init#1671, #6807",
        build: || {
            let guest = kinds::worked_example();
            guest.azure();
            guest.write(
                "etc/netplan/50-cloud-init.yaml",
                &format!("network:\n  ethernets:\n    eth1:\n      match:\n        driver: hv_netvsc\n        macaddress: {MAC}\n      set-name: eth1"),
            );
            guest
        },
        expected: &[("name.unstable", "info", "/etc/netplan/50-cloud-init.yaml")],
    },
    // FreeBSD has no sysfs: there is nothing to say, and nothing is said.
    Complaint {
        number: 18,
        source: "canonical/cloud-init#6657",
        build: || {
            let guest = Guest::without_hyperv();
            guest.remove("sys/class/net");
            guest
        },
        expected: &[],
    },
    Complaint {
        number: 19,
        source: "canonical/cloud-init#3660",
        build: || {
            let (mut guest, nic) = waiting("7200.00");
            let made = Made { class: 0x02_0700, device: 0x101b, device_number: 0, ..MLX5 };
            let function = guest.function("d3cbd5f3-927a-45ec-985d-2ddb43e90b83", "1", &made);
            let port = guest.port(&function, "ib0", &nic.mac, 0);
            guest.write(&format!("{}/type", port.net), "32");
            guest.write(&format!("{}/addr_len", port.net), "20");
            guest.say_nic(2140, &nic, "VF slot 1 removed");
            guest.write(
                "etc/systemd/network/10-eth0.link",
                &format!("[Match]\nMACAddress={MAC}\n[Link]\nName=eth0"),
            );
            guest
        },
        expected: &[("name.mac-match", "warn", "/etc/systemd/network/10-eth0.link")],
    },
    // Between its appearance and its joining a VF has no master yet; three seconds are no fault.
    Complaint {
        number: 20,
        source: "vyos/vyos-1x#5338",
        build: || {
            let (mut guest, _) = waiting("7200.00");
            let function = guest.function("d3cbd5f3-927a-45ec-985d-2ddb43e90b83", "1", &MLX5);
            let port = guest.port(&function, "eth1", MAC, 0);
            let entry = "I:7197000000\nE:ID_NET_DRIVER=mlx5_core\nG:systemd\nV:1";
            guest.write(&format!("run/udev/data/n{}", port.index), entry);
            guest
        },
        expected: &[],
    },
    Complaint {
        number: 21,
        source: "systemd/systemd#8652, #8678; coreos/fedora-coreos-config#1377",
        build: || {
            let mut guest = Guest::new();
            guest.nic("2d0e6c1a-93f4-4b5e-8a77-0c1d2e3f4a5b", "eth1", "00:15:5d:01:02:03");
            guest.nic("3d0e6c1a-93f4-4b5e-8a77-0c1d2e3f4a5b", "eth0", "00:15:5d:01:02:04");
            guest.write(
                "etc/udev/rules.d/70-persistent-net.rules",
                "SUBSYSTEM==\"net\", DRIVERS==\"hv_netvsc\", ATTR{address}==\"00:15:5d:01:02:03\", NAME=\"eth0\"",
            );
            guest
        },
        expected: &[("name.unstable", "info", "/etc/udev/rules.d/70-persistent-net.rules")],
    },
    Complaint {
        number: 22,
        source: "systemd/systemd#34255",
        build: || {
            let mut guest = Guest::new();
            guest.azure();
            let nic = ("f8615163-0000-1000-2000-7c1e522555d2", "eth0", MAC);
            let bus = "f8615163-7870-1000-2000-000d3a000000";
            kinds::pair(&mut guest, nic, bus, "1", "ens1", &MANA);
            guest.write(
                "etc/NetworkManager/system-connections/vf.nmconnection",
                "[connection]\ninterface-name=enP30832s1\n[ipv4]\nmethod=disabled",
            );
            guest
        },
        expected: &[(
            "name.unstable",
            "info",
            "/etc/NetworkManager/system-connections/vf.nmconnection",
        )],
    },
    Complaint {
        number: 23,
        source: "scylladb/seastar#742",
        build: || {
            let guest = kinds::after_hibernation();
            guest.azure();
            guest.write("etc/network/interfaces.d/vf", "iface enP37498s1 inet manual\n  mtu 1500");
            guest
        },
        expected: &[("name.unstable", "info", "/etc/network/interfaces.d/vf")],
    },
    Complaint {
        number: 24,
        source: "microsoft/lisa#4673",
        build: || {
            let guest = kinds::driver_missing();
            guest.azure();
            guest.modules(&["hv_netvsc", "pci-hyperv", "mlx4_en", "mlx5_core"]);
            guest
        },
        expected: &[
            ("pair.orphan-pci", "critical", "927a:00:00.0"),
            ("sys.module", "warn", "mana"),
        ],
    },
    Complaint {
        number: 25,
        source: "siderolabs/talos#7415, vyos/vyos-build#1254",
        build: || {
            let guest = kinds::driver_missing();
            guest.azure();
            guest
        },
        expected: &[("pair.orphan-pci", "critical", "927a:00:00.0")],
    },
    Complaint {
        number: 26,
        source: "MicrosoftDocs/azure-docs#60667",
        build: || waiting("7200.00").0,
        expected: &[("pair.assoc-no-vf", "critical", "eth0")],
    },
    Complaint {
        number: 27,
        source: "Azure/AKS#3420",
        build: || {
            let (mut guest, pair) = azure();
            guest.say_nic(7000, &pair.nic, "Data path switched from VF: enP37498s1");
            guest
        },
        expected: &[("path.synthetic", "critical", "eth0")],
    },
    Complaint {
        number: 28,
        source: "MicrosoftDocs/azure-docs#100444",
        build: || {
            let (mut guest, pair) = azure();
            for number in 0..450 {
                let at = 3_700_000 + number * 7_500;
                guest.say_nic(at, &pair.nic, "Data path switched from VF: enP37498s1");
                guest.say_nic(at + 500, &pair.nic, "Data path switched to VF: enP37498s1");
            }
            guest
        },
        expected: &[("path.flap", "warn", "eth0")],
    },
    Complaint {
        number: 29,
        source: "LIS/lis-next#556",
        build: || {
            let (mut guest, pair) = azure();
            guest.write("proc/uptime", "172800.00 1.00");
            for number in 0..4 {
                let at = 90_000_000 + number * 18_000_000;
                guest.say_nic(at, &pair.nic, "VF slot 1 removed");
                guest.say_nic(at + 10, &pair.nic, "Data path switched from VF: enP37498s1");
                guest.say_nic(at + 30_000, &pair.nic, "VF slot 1 added");
                guest.say_nic(at + 31_000, &pair.nic, "Data path switched to VF: enP37498s1");
            }
            guest
        },
        expected: &[("path.flap", "warn", "eth0")],
    },
    // A migration that takes the VF away for a quarter of an hour is the host's business, and no fault of the guest.
    Complaint {
        number: 30,
        source: "Azure/AKS#3719",
        build: || {
            let guest = kinds::mid_servicing();
            guest.azure();
            guest.write("proc/uptime", "8090.00 1.00");
            guest
        },
        expected: &[],
    },
    Complaint {
        number: 31,
        source: "microsoft/lisa#1013, #1051",
        build: || {
            let mut guest = kinds::after_hibernation();
            guest.azure();
            guest.sample(3, [900, 900, 900]);
            guest
        },
        expected: &[("path.frozen", "critical", "eth0")],
    },
    Complaint {
        number: 32,
        source: "microsoft/openvmm#3164",
        build: || {
            let mut guest = kinds::mid_servicing();
            guest.write("proc/uptime", "12000.00 1.00");
            let nic = super::Nic {
                guid: "7c1e5225-55d2-7c1e-5225-55d27c1e5225".into(),
                name: "eth0".into(),
                mac: MAC.into(),
                index: 2,
                net: String::new(),
            };
            guest.say_nic(7_195_000, &nic, "VF registering: eth1");
            guest.say_nic(7_200_000, &nic, "VF slot 1 added");
            guest
        },
        expected: &[("pair.assoc-no-vf", "critical", "eth0")],
    },
    Complaint {
        number: 33,
        source: "SAP/arp142-hana#347",
        build: || {
            let guest = kinds::azure_mana();
            guest.azure();
            guest
        },
        expected: &[],
    },
    Complaint {
        number: 34,
        source: "microsoft/lisa#4672",
        build: || {
            let guest = kinds::azure_mana();
            guest.azure();
            // A link that leads back up, as real trees have them.
            let device = "sys/devices/LNXSYSTM:00/LNXSYBUS:00/PNP0A03:00/device:07/VMBUS:01";
            guest.symlink(&format!("{device}/firmware_node"), "sys/devices/LNXSYSTM:00");
            guest
        },
        expected: &[],
    },
    Complaint {
        number: 35,
        source: "Azure/acs-engine#1938",
        build: || {
            let (guest, pair) = azure();
            for queue in 2..8 {
                guest.remove(&format!("{}/queues/rx-{queue}", pair.nic.net));
            }
            guest.write("proc/interrupts", &interrupts("mlx5_comp", "927a:00:02.0", 8, 1));
            guest
        },
        expected: &[("irq.spread", "info", VF), ("queue.few", "info", "eth0")],
    },
    Complaint {
        number: 36,
        source: "scylladb/scylladb#21554",
        build: || {
            let (guest, pair) = azure();
            guest.write("proc/sys/kernel/osrelease", "5.15.0-1089");
            guest.write("usr/lib/modules/5.15.0-1089/modules.dep", "kernel/mlx5_core.ko:");
            guest.address(pair.port.index, "fe80::7e1e:52ff:fe25:55d2/64");
            guest.route(pair.port.index, "fe80::/64");
            guest
        },
        expected: &[("own.address", "warn", VF), ("sys.kernel", "warn", "kernel")],
    },
    Complaint {
        number: 37,
        source: "flatcar/Flatcar#1458",
        build: || {
            let (guest, pair) = azure();
            guest.write("sys/devices/system/cpu/online", "0-31");
            guest.write("proc/sys/net/core/default_qdisc", "fq_codel");
            let queues = |number: u32| (RX_QUEUES, number.to_ne_bytes().to_vec());
            let mq = (QDISC, b"mq\0".to_vec());
            guest.tell("", pair.nic.index, "eth0", &[mq.clone(), queues(64)]);
            guest.tell("", pair.port.index, VF, &[mq, queues(32)]);
            guest
        },
        expected: &[("qdisc.double", "info", "eth0")],
    },
    Complaint {
        number: 38,
        source: "Azure/AgentBaker#6953, cilium/cilium#33258, MicrosoftDocs/azure-docs#121550",
        build: || {
            let (guest, pair) = azure();
            guest.write(&format!("{}/mtu", pair.nic.net), "3900");
            let max = |mtu: u32| (MAX_MTU, mtu.to_ne_bytes().to_vec());
            guest.tell("", pair.nic.index, "eth0", &[max(65521)]);
            guest.tell("", pair.port.index, VF, &[max(9978)]);
            guest.write(
                "etc/systemd/network/10-eth0.network",
                "[Match]\nName=eth0\n[Link]\nMTUBytes=65000",
            );
            guest
        },
        expected: &[("mtu.max", "warn", "eth0"), ("mtu.mismatch", "warn", "eth0")],
    },
    Complaint {
        number: 39,
        source: "scylladb/seastar#742, #3189, #3196",
        build: || {
            let (guest, _) = azure_mana();
            guest.write("proc/interrupts", &interrupts("mana_q", "7870:00:00.0", 8, 2));
            guest
        },
        expected: &[("irq.spread", "info", "enP30832s1")],
    },
    Complaint {
        number: 40,
        source: "Azure/AgentBaker#6676, Azure/AKS#5147",
        build: || {
            let (guest, pair) = azure();
            guest.write(&format!("{}/statistics/rx_missed_errors", pair.port.net), "4242");
            guest.ring(pair.port.index, 1024, 8192);
            guest
        },
        expected: &[("ring.small", "info", VF)],
    },
    Complaint {
        number: 41,
        source: "cilium/cilium#12150, #13685, #29091",
        build: || {
            let (guest, pair) = azure();
            guest.tell("", pair.nic.index, "eth0", &[]);
            guest.tell("", pair.port.index, VF, &[(XDP, XDP_DRIVER.to_vec())]);
            guest
        },
        expected: &[("xdp.asym", "warn", "eth0")],
    },
    Complaint {
        number: 42,
        source: "xdp-project/xdp-tools#378, Azure/AKS#4982",
        build: || {
            let (guest, pair) = azure();
            for (index, name) in [(pair.nic.index, "eth0"), (pair.port.index, VF)] {
                guest.tell("", index, name, &[(XDP, XDP_DRIVER.to_vec())]);
                guest.features(index, &["rx-gro"]);
            }
            guest.features(pair.port.index, &["rx-checksum", "rx-lro"]);
            guest
        },
        expected: &[("xdp.lro", "warn", VF)],
    },
    Complaint {
        number: 43,
        source: "Xilinx-CNS/onload#39",
        build: || {
            let (guest, pair) = azure();
            guest.tell("", pair.nic.index, "eth0", &[(XDP, XDP_DRIVER.to_vec())]);
            guest.tell("", pair.port.index, VF, &[]);
            guest
        },
        expected: &[("xdp.asym", "warn", "eth0")],
    },
    Complaint {
        number: 44,
        source: "MicrosoftDocs/azure-docs#50056, #106457, #114683; aregm/nff-go#467, #688",
        build: || {
            let (guest, pair) = azure();
            guest.route(pair.nic.index, "default");
            let device = format!("sys/bus/vmbus/devices/{}", pair.nic.guid);
            guest.write(&format!("{device}/driver_override"), "uio_hv_generic");
            guest
        },
        expected: &[("uio.default-route", "critical", "eth0")],
    },
    // One function, several ports, some of them for DPDK: nothing is wrong with that.
    Complaint {
        number: 45,
        source: "Microsoft's guide to DPDK on MANA",
        build: || {
            let mut guest = kinds::azure_mana();
            guest.azure();
            let path = guest.unbound_nic("f8615163-0004-1000-2000-000d3a000104");
            guest.bind(&path, "vmbus", "uio_hv_generic");
            guest.folder(&format!("{path}/uio/uio0"));
            guest
        },
        expected: &[],
    },
    Complaint {
        number: 46,
        source: "iopsystems/rezolus#1184",
        build: || {
            let (guest, _) = azure();
            guest.write("etc/rezolus/agent.toml", "[samplers.network_traffic]\nenabled = true");
            guest
        },
        expected: &[("obs.double", "info", "/etc/rezolus/agent.toml")],
    },
    Complaint {
        number: 47,
        source: "prometheus/node_exporter#2096, #3544",
        build: || {
            let (guest, _) = azure();
            guest.write("etc/default/prometheus-node-exporter", "ARGS=\"--collector.ethtool\"");
            guest
        },
        expected: &[("obs.double", "info", "/etc/default/prometheus-node-exporter")],
    },
];

/// `/proc/interrupts` of a card with so many lines, on eight processors of which so many take them all.
fn interrupts(name: &str, address: &str, lines: usize, busy: usize) -> String {
    let mut text = String::from(
        "           CPU0       CPU1       CPU2       CPU3       CPU4       CPU5       CPU6       CPU7\n",
    );
    text.push_str("   1:          9          0          0          0          0          0          0          0   IO-APIC   1-edge      i8042\n");
    for line in 0..lines {
        let counts: Vec<_> = (0..8).map(|cpu| if cpu < busy { "50000" } else { "0" }).collect();
        let number = 30 + line;
        text.push_str(&format!(
            "  {number}: {} Hyper-V PCIe MSI 1-edge {name}{line}@pci:{address}\n",
            counts.join(" ")
        ));
    }
    text.push_str("NMI:          0          0   Non-maskable interrupts");
    text
}
