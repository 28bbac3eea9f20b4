//! The kinds of guests that there are, one function each.

use super::{Function, Guest, MLX5, Made, Nic, Port};

pub const MLX4: Made = Made { device: 0x1004, driver: Some("mlx4_core"), ..MLX5 };
pub const MANA: Made =
    Made { vendor: 0x1414, device: 0x00ba, driver: Some("mana"), device_number: 0, ..MLX5 };
pub const IXGBEVF: Made = Made { vendor: 0x8086, device: 0x1515, driver: Some("ixgbevf"), ..MLX5 };
pub const NVME: Made = Made {
    vendor: 0x1414,
    device: 0xb111,
    class: 0x01_0802,
    driver: Some("nvme"),
    device_number: 0,
};

pub const NIC_A: (&str, &str) = ("7c1e5225-55d2-7c1e-5225-55d27c1e5225", "7c:1e:52:25:55:d2");
const NIC_B: (&str, &str) = ("7c1e5225-5ca6-7c1e-5225-5ca67c1e5225", "7c:1e:52:25:5c:a6");
pub const BUS_A: &str = "d3cbd5f3-927a-45ec-985d-2ddb43e90b83";
const BUS_B: &str = "9970f259-1a65-4a22-bce2-500aee5b8543";

/// One NIC with its VF, and both in full, for kinds that then change something.
#[derive(Clone, Debug)]
pub struct Pair {
    pub nic: Nic,
    pub function: Function,
    pub port: Port,
}

/// What the kernel says when a pair is made and the path is switched.
pub fn say_accelerated(guest: &mut Guest, pair: &Pair, serial: &str) {
    guest.say_nic(2130, &pair.nic, &format!("VF slot {serial} added"));
    guest.say_nic(6120, &pair.nic, &format!("VF registering: {}", pair.port.name));
    let text = format!("joined to {}", pair.nic.name);
    guest.say_function(6121, &pair.function, &pair.port.name, &text);
    guest.say_nic(6301, &pair.nic, &format!("Data path switched to VF: {}", pair.port.name));
}

/// A NIC and its VF, accelerated.
pub fn pair(
    guest: &mut Guest,
    nic: (&str, &str, &str),
    bus: &str,
    serial: &str,
    vf: &str,
    made: &Made,
) -> Pair {
    let (guid, name, mac) = nic;
    let nic = guest.nic(guid, name, mac);
    let function = guest.function(bus, serial, made);
    let port = guest.port(&function, vf, mac, 0);
    guest.join(&nic, &port);
    let pair = Pair { nic, function, port };
    say_accelerated(guest, &pair, serial);
    pair
}

/// One accelerated NIC, mlx5, the base of many kinds.
pub fn one(guest: &mut Guest) -> Pair {
    pair(guest, (NIC_A.0, "eth0", NIC_A.1), BUS_A, "1", "enP37498s1", &MLX5)
}

fn two(made: &Made, suffix: &str) -> Guest {
    let mut guest = Guest::new();
    let (a, b) = (format!("enP37498s1{suffix}"), format!("enP6757s2{suffix}"));
    pair(&mut guest, (NIC_A.0, "eth0", NIC_A.1), BUS_A, "1", &a, made);
    pair(&mut guest, (NIC_B.0, "eth1", NIC_B.1), BUS_B, "2", &b, made);
    guest
}

/// Azure with ConnectX-3: two NICs.
pub fn azure_mlx4() -> Guest {
    two(&MLX4, "")
}

/// Azure with ConnectX-5: two NICs, with the port's name in the interface's.
pub fn azure_mlx5() -> Guest {
    two(&MLX5, "np0")
}

/// The worked example of the reference: two pairs, an emulated NIC beside, an NVMe disk on a virtual bus.
pub fn worked_example() -> Guest {
    let mut guest = two(&MLX5, "");
    guest.emulated("eth2", "00:15:5d:0a:0b:0c");
    guest.function("6b1b2a40-8c53-4f0e-9d1a-2f3c4d5e6f70", "0", &NVME);
    guest.say(2000, "tulip 0000:00:0a.0 eth2: no PCI slot information", None);
    guest
}

/// Azure with MANA: one function with four ports. Its slot is not the serial of the association.
pub fn azure_mana() -> Guest {
    let mut guest = Guest::new();
    let function = guest.function("f8615163-7870-1000-2000-000d3a000000", "1296119428", &MANA);
    for number in 0..4 {
        let mac = format!("00:0d:3a:00:01:{number:02x}");
        let guid = format!("f8615163-000{number}-1000-2000-000d3a0001{number:02x}");
        let nic = guest.nic(&guid, &format!("eth{number}"), &mac);
        let suffix = if number == 0 { String::new() } else { format!("d{number}") };
        let port = guest.port(&function, &format!("enP30832s1{suffix}"), &mac, number);
        guest.join(&nic, &port);
        let pair = Pair { nic, function: function.clone(), port };
        say_accelerated(&mut guest, &pair, "1");
    }
    guest
}

/// MANA ports and no synthetic NIC: all there is, and legitimate.
pub fn mana_only() -> Guest {
    let mut guest = Guest::new();
    let function = guest.function("f8615163-7870-1000-2000-000d3a000000", "1", &MANA);
    guest.port(&function, "enP30832s1", "00:0d:3a:00:01:00", 0);
    guest
}

/// On-premises Hyper-V with Intel VFs and random GUIDs.
pub fn on_prem() -> Guest {
    let mut guest = Guest::new();
    pair(
        &mut guest,
        ("2d0e6c1a-93f4-4b5e-8a77-0c1d2e3f4a5b", "eth0", "00:15:5d:01:02:03"),
        "4f1c9b02-5e6d-4a7b-9c8d-1e2f3a4b5c6d",
        "3",
        "enP24173s3",
        &IXGBEVF,
    );
    guest
}

/// An emulated NIC with the MAC of an accelerated one.
pub fn emulated_beside() -> Guest {
    let mut guest = Guest::new();
    one(&mut guest);
    guest.emulated("eth1", NIC_A.1);
    guest
}

/// Without acceleration: nothing was ever associated.
pub fn synthetic_only() -> Guest {
    let mut guest = Guest::new();
    guest.nic(NIC_A.0, "eth0", NIC_A.1);
    guest
}

/// Servicing took the VF away ten seconds ago.
pub fn mid_servicing() -> Guest {
    let mut guest = Guest::new();
    let nic = guest.nic(NIC_A.0, "eth0", NIC_A.1);
    guest.say_nic(2130, &nic, "VF slot 1 added");
    guest.say_nic(6301, &nic, "Data path switched to VF: enP37498s1");
    guest.say_nic(7_190_000, &nic, "VF slot 1 removed");
    guest.say_nic(7_190_010, &nic, "Data path switched from VF: enP37498s1");
    guest.say_nic(7_190_020, &nic, "VF unregistering: enP37498s1");
    guest
}

/// After hibernation: the function came back in another domain, under another serial.
pub fn after_hibernation() -> Guest {
    let mut guest = Guest::new();
    let nic = guest.nic(NIC_A.0, "eth0", NIC_A.1);
    guest.say_nic(2130, &nic, "VF slot 1 added");
    guest.say_nic(6301, &nic, "Data path switched to VF: enP37498s1");
    guest.say_nic(60_000, &nic, "VF slot 1 removed");
    guest.say_nic(60_010, &nic, "Data path switched from VF: enP37498s1");
    guest.say_nic(60_020, &nic, "VF unregistering: enP37498s1");
    let function = guest.function(BUS_B, "2", &MLX5);
    let port = guest.port(&function, "enP6757s2", NIC_A.1, 0);
    guest.join(&nic, &port);
    guest.say_nic(90_000, &nic, "VF slot 2 added");
    guest.say_nic(91_000, &nic, "VF registering: eth1");
    guest.say_function(91_001, &function, "eth1", "joined to eth0");
    guest.say_nic(91_200, &nic, "Data path switched to VF: enP6757s2");
    guest
}

/// The function is there and no driver for it.
pub fn driver_missing() -> Guest {
    let mut guest = Guest::new();
    let nic = guest.nic(NIC_A.0, "eth0", NIC_A.1);
    guest.function(BUS_A, "1", &Made { driver: None, ..MANA });
    guest.say_nic(2130, &nic, "VF slot 1 added");
    guest
}

/// The VF's interface got another name.
pub fn renamed_vf() -> Guest {
    let mut guest = Guest::new();
    pair(&mut guest, (NIC_A.0, "eth0", NIC_A.1), BUS_A, "1", "fast0", &MLX5);
    guest
}

/// The VF's interface was moved into another network namespace.
pub fn vf_in_namespace() -> Guest {
    let mut guest = Guest::new();
    let nic = guest.nic(NIC_A.0, "eth0", NIC_A.1);
    let function = guest.function(BUS_A, "1", &MLX5);
    guest.say_nic(2130, &nic, "VF slot 1 added");
    guest.say_nic(6120, &nic, "VF registering: eth1");
    guest.say_function(6121, &function, "eth1", "joined to eth0");
    guest.say_nic(6301, &nic, "Data path switched to VF: eth1");
    guest.say_nic(90_000, &nic, "Data path switched from VF: eth1");
    guest.say_nic(90_001, &nic, "VF unregistering: eth1");
    guest.write("run/netns/pod", "");
    guest
}

/// The VF was put into a bond.
pub fn bonded() -> Guest {
    let mut guest = Guest::new();
    let nic = guest.nic(NIC_A.0, "eth0", NIC_A.1);
    let function = guest.function(BUS_A, "1", &MLX5);
    let port = guest.port(&function, "enP37498s1", NIC_A.1, 0);
    let bond = guest.software("bond0", NIC_A.1);
    guest.write(&format!("{bond}/bonding/mode"), "active-backup 1");
    guest.enslave(&bond, "bond0", &port);
    guest.unmanage(&port);
    guest.say_nic(2130, &nic, "VF slot 1 added");
    guest
}

/// Two functions asked for one slot name: the second is `1-1`, which no driver takes for a serial.
pub fn duplicate_slot() -> Guest {
    let mut guest = Guest::new();
    guest.function("6b1b2a40-8c53-4f0e-9d1a-2f3c4d5e6f70", "1", &NVME);
    let nic = guest.nic(NIC_A.0, "eth0", NIC_A.1);
    let function = guest.function(BUS_A, "1-1", &MLX5);
    let port = guest.port(&function, "enP37498p0s2", NIC_A.1, 0);
    guest.unmanage(&port);
    guest.say_nic(2130, &nic, "VF slot 1 added");
    guest.say_function(6120, &function, &port.name, "Invalid vf serial:1-1");
    guest
}

/// A confidential VM: no VF by design.
pub fn confidential() -> Guest {
    let mut guest = Guest::new();
    let nic = guest.nic(NIC_A.0, "eth0", NIC_A.1);
    let text = "SR-IOV not advertised by guests on the host supporting isolation";
    guest.say_nic(2130, &nic, text);
    guest
}

/// A NIC that a user-space driver has, and its VF that nobody wants.
pub fn uio_bound() -> Guest {
    let mut guest = Guest::new();
    let path = guest.unbound_nic(NIC_A.0);
    guest.bind(&path, "vmbus", "uio_hv_generic");
    guest.folder(&format!("{path}/uio/uio0"));
    let function = guest.function(BUS_A, "1", &MLX5);
    let port = guest.port(&function, "enP37498s1", NIC_A.1, 0);
    guest.say_function(6120, &function, &port.name, "no netdev found for vf serial:1");
    guest
}

/// So many accelerated NICs, each with a function of its own.
pub fn many(nics: u16) -> Guest {
    let mut guest = Guest::new();
    for number in 0..nics {
        let (high, low) = (number >> 8, number & 0xff);
        let mac = format!("00:0d:3a:00:{high:02x}:{low:02x}");
        let guid = format!("f8615163-{number:04x}-1000-2000-000d3a00{number:04x}");
        let bus = format!("d3cbd5f3-{:04x}-45ec-985d-2ddb43e9{number:04x}", 0x1000 + number);
        let vf = format!("enP{}s{}", 0x1000 + number, number + 1);
        let serial = (number + 1).to_string();
        pair(&mut guest, (&guid, &format!("eth{number}"), &mac), &bus, &serial, &vf, &MLX5);
    }
    guest.tell_links();
    guest
}
