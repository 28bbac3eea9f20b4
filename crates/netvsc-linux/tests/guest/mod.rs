//! Builds complete trees of Linux guests: sysfs, proc, kernel log, udev database.
//!
//! [`Guest`] puts one device after another into a temporary directory, with the links that the kernel makes between
//! them. What the names and numbers look like follows real guests.

pub mod complaints;
pub mod faults;
pub mod kernel;
pub mod kinds;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

const ROOT_BUS: &str = "sys/devices/LNXSYSTM:00/LNXSYBUS:00/PNP0A03:00/device:07/VMBUS:01";
const NIC_CLASS: &str = "f8615163-df3e-46c5-913f-f2d2f965ed0e";
const VPCI_CLASS: &str = "44c4f61d-4444-4400-9d52-802e27ede19f";

/// A synthetic NIC.
#[derive(Clone, Debug)]
pub struct Nic {
    pub guid: String,
    pub name: String,
    pub mac: String,
    pub index: u32,
    /// Where its network device is, from the root.
    pub net: String,
}

/// One port of a VF.
#[derive(Clone, Debug)]
pub struct Port {
    pub name: String,
    pub mac: String,
    pub index: u32,
    pub net: String,
}

/// A function on a virtual bus.
#[derive(Clone, Debug)]
pub struct Function {
    pub bus: String,
    pub address: String,
    /// Where it is, from the root.
    pub path: String,
    pub driver: Option<String>,
}

/// A tree that is being built. It goes with the value.
#[derive(Debug)]
pub struct Guest {
    root: tempfile::TempDir,
    channel: u32,
    index: u32,
    sequence: u64,
    log: String,
    samples: BTreeMap<u32, [u64; 3]>,
    /// What NICs sent through their VFs at the moments of the samples.
    by_vf: BTreeMap<u32, [u64; 3]>,
}

/// A rule that marks what is somebody's slave, whichever driver of VFs it has.
pub const GOOD_RULE: &str = "SUBSYSTEM==\"net\", ENV{ID_NET_DRIVER}==\"mana|mlx4_en|mlx4_core|mlx5_core|ixgbevf\", \\\n  \
    ATTR{flags}==\"0x?[89ABCDEF]??\", ENV{AZURE_UNMANAGED_SRIOV}=\"1\", \
    ENV{ID_NET_MANAGED_BY}=\"unmanaged\", ENV{NM_UNMANAGED}=\"1\"";

/// What NetworkManager itself marks: interfaces of other hypervisors, pairs of veth, gadgets; never a VF.
pub const NETWORK_MANAGERS_RULES: &str = "SUBSYSTEM!=\"net\", GOTO=\"others_end\"\n\
    ACTION!=\"add|change|move\", GOTO=\"others_end\"\n\
    ENV{INTERFACE}==\"vboxnet[0-9]*\", ENV{NM_UNMANAGED}=\"1\"\n\
    ATTR{address}==\"00:50:56:*\", ENV{INTERFACE}==\"vmnet[0-9]*\", ENV{NM_UNMANAGED}=\"1\"\n\
    ATTR{address}==\"00:1c:42:*\", ENV{INTERFACE}==\"vnic[0-9]*\", ENV{NM_UNMANAGED}=\"1\"\n\
    ENV{ID_NET_DRIVER}==\"veth\", ENV{INTERFACE}!=\"eth[0-9]*\", ENV{NM_UNMANAGED}=\"1\"\n\
    ENV{DEVTYPE}==\"gadget\", ENV{NM_UNMANAGED}=\"1\"\n\
    LABEL=\"others_end\"";

impl Guest {
    /// A guest with a VMBus and nothing on it, up for two hours, whose log goes back to its boot.
    pub fn new() -> Self {
        let mut guest = Self::without_hyperv();
        guest.folder("sys/bus/vmbus/devices");
        guest.silent();
        guest.folder("sys/bus/pci/devices");
        guest.folder("sys/bus/pci/slots");
        guest.say(0, "Linux version 6.8.0-1020-azure", None);
        guest
    }

    /// A machine without VMBus.
    pub fn without_hyperv() -> Self {
        // A tree is a thousand small files: in memory, where the machine has such a place.
        let root = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .expect("the temporary folder is writable");
        let (samples, by_vf) = (BTreeMap::new(), BTreeMap::new());
        let log = String::new();
        let guest = Self { root, channel: 14, index: 2, sequence: 0, log, samples, by_vf };
        guest.machine();
        guest.write("proc/uptime", "7200.00 14000.00");
        guest.write("proc/sys/kernel/osrelease", "6.8.0-1020-azure");
        guest.link_device(
            "sys/devices/virtual/net/lo",
            &Link {
                name: "lo",
                mac: "00:00:00:00:00:00",
                index: 1,
                flags: 9,
                kind: 772,
                mtu: 65536,
            },
        );
        guest
    }

    /// A machine with eight processors and every module, that is nobody's cloud.
    fn machine(&self) {
        self.write("sys/devices/system/cpu/online", "0-7");
        self.write("sys/class/dmi/id/chassis_asset_tag", "0000");
        self.write("proc/sys/net/core/default_qdisc", "pfifo_fast");
        self.modules(&["hv_netvsc", "pci-hyperv", "mlx4_en", "mlx5_core", "mana", "ixgbevf"]);
        self.write("usr/lib/udev/rules.d/10-azure-unmanaged-sriov.rules", GOOD_RULE);
        self.write("usr/lib/udev/rules.d/85-nm-unmanaged.rules", NETWORK_MANAGERS_RULES);
    }

    /// The modules that the kernel has on disk.
    pub fn modules(&self, names: &[&str]) {
        let lines: Vec<_> =
            names.iter().map(|name| format!("kernel/drivers/net/{name}.ko.zst:")).collect();
        self.write("usr/lib/modules/6.8.0-1020-azure/modules.dep", &lines.join("\n"));
    }

    /// Makes it a machine of Azure.
    pub fn azure(&self) {
        self.write("sys/class/dmi/id/chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77");
    }

    /// How many packets an interface had sent and received at three moments.
    pub fn sample(&mut self, index: u32, packets: [u64; 3]) {
        self.samples.insert(index, packets);
        self.write_samples();
    }

    /// How many packets a NIC that is sampled had sent through its VF at those moments.
    pub fn sample_vf(&mut self, index: u32, packets: [u64; 3]) {
        self.by_vf.insert(index, packets);
        self.write_samples();
    }

    fn write_samples(&self) {
        let lines = self.samples.iter().flat_map(|(index, packets)| {
            let by_vf = self.by_vf.get(index);
            let line = |(at, packets)| match by_vf {
                Some(by_vf) => format!("{at} {index} {packets} {packets} {}", by_vf[at]),
                None => format!("{at} {index} {packets} {packets}"),
            };
            packets.iter().enumerate().map(line).collect::<Vec<_>>()
        });
        self.write("netvsc/samples", &lines.collect::<Vec<_>>().join("\n"));
    }

    /// The directory to give as a root.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A path in it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    pub fn folder(&self, path: &str) {
        fs::create_dir_all(self.path(path)).expect("a folder");
    }

    /// Writes a file, with the folders above it.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
        fs::write(path, format!("{text}\n")).expect("a file");
    }

    /// Takes a file, link or folder away.
    pub fn remove(&self, path: &str) {
        let path = self.path(path);
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path).expect("a folder to remove");
        } else {
            fs::remove_file(path).expect("a file to remove");
        }
    }

    /// Makes a link, relative as the kernel's are, to another path of the tree.
    pub fn symlink(&self, at: &str, to: &str) {
        let from: Vec<&str> = at.split('/').collect();
        let target: Vec<&str> = to.split('/').collect();
        let shared = from.iter().zip(&target).take_while(|(a, b)| a == b).count();
        // As in sysfs, the last part of the target always stands in the link.
        let common = shared.min(target.len() - 1);
        let up = "../".repeat(from.len() - 1 - common);
        let relative = format!("{up}{}", target[common..].join("/"));
        let at = self.path(at);
        fs::create_dir_all(at.parent().expect("below the root")).expect("a folder");
        symlink(relative, at).expect("a link");
    }

    /// A record of the kernel log, `at` in milliseconds since boot.
    pub fn say(&mut self, at: u64, text: &str, device: Option<&str>) {
        let micros = at * 1000;
        self.log.push_str(&format!("6,{},{micros},-;{text}\n", self.sequence));
        if let Some(device) = device {
            let bus = device.split(':').next().unwrap_or_default();
            self.log.push_str(&format!(" SUBSYSTEM={}\n DEVICE=+{device}\n", bus));
        }
        self.sequence += 1;
        fs::create_dir_all(self.path("dev")).expect("a folder");
        fs::write(self.path("dev/kmsg"), &self.log).expect("the log");
    }

    /// Says something about a NIC.
    pub fn say_nic(&mut self, at: u64, nic: &Nic, text: &str) {
        let line = format!("hv_netvsc {} {}: {text}", nic.guid, nic.name);
        self.say(at, &line, Some(&format!("vmbus:{}", nic.guid)));
    }

    /// Says something about a function.
    pub fn say_function(&mut self, at: u64, function: &Function, name: &str, text: &str) {
        let driver = function.driver.as_deref().unwrap_or("pci");
        let line = format!("{driver} {} {name}: {text}", function.address);
        self.say(at, &line, Some(&format!("pci:{}", function.address)));
    }

    /// A VMBus device; gives its directory.
    pub fn device(&mut self, guid: &str, class: &str, driver: Option<&str>, cpus: u32) -> String {
        let path = format!("{ROOT_BUS}/{guid}");
        let id = self.channel;
        self.channel += cpus.max(1);
        self.write(&format!("{path}/id"), &id.to_string());
        self.write(&format!("{path}/class_id"), &format!("{{{class}}}"));
        self.write(&format!("{path}/device_id"), &format!("{{{guid}}}"));
        self.write(&format!("{path}/vendor"), "0x1414");
        self.write(&format!("{path}/state"), "3");
        self.write(&format!("{path}/numa_node"), "0");
        self.write(&format!("{path}/driver_override"), "(null)");
        let mapping: Vec<_> = (0..cpus).map(|cpu| format!("{}:{cpu}", id + cpu)).collect();
        self.write(&format!("{path}/channel_vp_mapping"), &mapping.join("\n"));
        self.symlink(&format!("sys/bus/vmbus/devices/{guid}"), &path);
        self.symlink(&format!("{path}/subsystem"), "sys/bus/vmbus");
        if let Some(driver) = driver {
            self.bind(&path, "vmbus", driver);
            for cpu in 0..cpus {
                self.channel_folder(&format!("{path}/channels/{}", id + cpu), cpu);
            }
        }
        path
    }

    fn channel_folder(&self, path: &str, cpu: u32) {
        let values = [
            ("cpu", cpu),
            ("subchannel_id", cpu),
            ("interrupts", 4711),
            ("events", 123),
            ("intr_in_full", 0),
            ("intr_out_empty", 99),
            ("out_full_first", 0),
            ("out_full_total", 0),
            ("read_avail", 0),
            ("write_avail", 520_192),
        ];
        for (name, value) in values {
            self.write(&format!("{path}/{name}"), &value.to_string());
        }
    }

    /// Binds a driver to a device.
    pub fn bind(&self, path: &str, bus: &str, driver: &str) {
        self.folder(&format!("sys/bus/{bus}/drivers/{driver}"));
        self.symlink(&format!("{path}/driver"), &format!("sys/bus/{bus}/drivers/{driver}"));
    }

    /// A synthetic NIC with its driver, up.
    pub fn nic(&mut self, guid: &str, name: &str, mac: &str) -> Nic {
        let path = self.device(guid, NIC_CLASS, Some("hv_netvsc"), 8);
        self.write(&format!("{path}/device"), "0x3");
        let index = self.next_index();
        let net = format!("{path}/net/{name}");
        self.link_device(&net, &Link { name, mac, index, flags: 0x1003, kind: 1, mtu: 1500 });
        self.symlink(&format!("{net}/device"), &path);
        self.udev(index, &[("ID_NET_DRIVER", "hv_netvsc"), ("ID_PATH", "acpi-VMBUS:01")]);
        self.address(index, &format!("10.0.{}.{}/24", index >> 8, index & 0xff));
        self.route(index, "10.0.0.0/24");
        self.sample(index, [1000, 1100, 1200]);
        Nic { guid: guid.into(), name: name.into(), mac: mac.into(), index, net }
    }

    /// A synthetic NIC that no driver has taken.
    pub fn unbound_nic(&mut self, guid: &str) -> String {
        self.device(guid, NIC_CLASS, None, 1)
    }

    /// A virtual bus with one function in device 2 (0 for those that are not NICs), and its slot.
    pub fn function(&mut self, bus: &str, serial: &str, made: &Made) -> Function {
        let path = self.device(bus, VPCI_CLASS, Some("hv_pci"), 1);
        self.write(&format!("{path}/device"), "0x5");
        let domain = &bus[9..13];
        let place = format!("{domain}:00:{:02x}", made.device_number);
        let address = format!("{place}.0");
        let path = format!("{path}/pci{domain}:00/{address}");
        self.pci(&path, &address, made);
        if !serial.is_empty() {
            self.slot(serial, &place);
        }
        let driver = made.driver.map(str::to_owned);
        Function { bus: bus.into(), address, path, driver }
    }

    /// A slot directory.
    pub fn slot(&self, name: &str, place: &str) {
        self.write(&format!("sys/bus/pci/slots/{name}/address"), place);
        self.write(&format!("sys/bus/pci/slots/{name}/max_bus_speed"), "Unknown");
        self.write(&format!("sys/bus/pci/slots/{name}/cur_bus_speed"), "Unknown");
    }

    fn pci(&self, path: &str, address: &str, made: &Made) {
        self.write(&format!("{path}/vendor"), &format!("{:#06x}", made.vendor));
        self.write(&format!("{path}/device"), &format!("{:#06x}", made.device));
        self.write(&format!("{path}/class"), &format!("{:#08x}", made.class));
        let [_, base, sub, interface] = made.class.to_be_bytes();
        self.write(
            &format!("{path}/modalias"),
            &format!(
                "pci:v{:08X}d{:08X}sv00000000sd00000000bc{base:02X}sc{sub:02X}i{interface:02X}",
                made.vendor, made.device
            ),
        );
        self.write(&format!("{path}/numa_node"), "0");
        self.symlink(&format!("sys/bus/pci/devices/{address}"), path);
        self.symlink(&format!("{path}/subsystem"), "sys/bus/pci");
        if let Some(driver) = made.driver {
            self.bind(path, "pci", driver);
        }
    }

    /// An emulated NIC on the chipset's own PCI bus.
    pub fn emulated(&mut self, name: &str, mac: &str) -> Port {
        let path = "sys/devices/pci0000:00/0000:00:0a.0";
        let made = Made { vendor: 0x1011, device: 9, driver: Some("tulip"), ..MLX5 };
        self.pci(path, "0000:00:0a.0", &made);
        self.port_at(path, name, mac, 0)
    }

    /// A port of a function, up and not joined to anything.
    pub fn port(&mut self, function: &Function, name: &str, mac: &str, number: u32) -> Port {
        self.port_at(&function.path, name, mac, number)
    }

    fn port_at(&mut self, path: &str, name: &str, mac: &str, number: u32) -> Port {
        let index = self.next_index();
        let net = format!("{path}/net/{name}");
        self.link_device(&net, &Link { name, mac, index, flags: 0x1003, kind: 1, mtu: 1500 });
        self.symlink(&format!("{net}/device"), path);
        self.write(&format!("{net}/dev_port"), &number.to_string());
        Port { name: name.into(), mac: mac.into(), index, net }
    }

    /// Joins a port to a NIC as the kernel does: links both ways, the slave flag, what the stock rules write for udev.
    pub fn join(&mut self, nic: &Nic, port: &Port) {
        self.enslave(&nic.net, &nic.name, port);
        self.unmanage(port);
        self.sample(port.index, [900, 990, 1080]);
    }

    /// What azure-vm-utils' rules leave in the udev database for a VF.
    pub fn unmanage(&self, port: &Port) {
        self.udev(
            port.index,
            &[
                ("AZURE_UNMANAGED_SRIOV", "1"),
                ("ID_NET_MANAGED_BY", "unmanaged"),
                ("NM_UNMANAGED", "1"),
            ],
        );
    }

    /// Puts a port below another device.
    pub fn enslave(&self, upper: &str, name: &str, port: &Port) {
        self.write(&format!("{}/flags", port.net), "0x1803");
        self.symlink(&format!("{}/master", port.net), upper);
        self.symlink(&format!("{}/upper_{name}", port.net), upper);
        self.symlink(&format!("{upper}/lower_{}", port.name), &port.net);
    }

    /// A device made by software.
    pub fn software(&mut self, name: &str, mac: &str) -> String {
        let index = self.next_index();
        let net = format!("sys/devices/virtual/net/{name}");
        self.link_device(&net, &Link { name, mac, index, flags: 0x1003, kind: 1, mtu: 1500 });
        self.write(&format!("{net}/addr_assign_type"), "3");
        net
    }

    fn link_device(&self, net: &str, link: &Link<'_>) {
        let Link { name, mac, index, flags, kind, mtu } = link;
        self.symlink(&format!("sys/class/net/{name}"), net);
        let values = [
            ("address", (*mac).to_owned()),
            ("addr_assign_type", "0".into()),
            ("addr_len", "6".into()),
            ("type", kind.to_string()),
            ("ifindex", index.to_string()),
            ("iflink", index.to_string()),
            ("flags", format!("{flags:#x}")),
            ("mtu", mtu.to_string()),
            ("operstate", "up".into()),
            ("carrier", "1".into()),
            ("speed", "50000".into()),
            ("dev_port", "0".into()),
            ("uevent", format!("INTERFACE={name}\nIFINDEX={index}")),
        ];
        for (attribute, value) in values {
            self.write(&format!("{net}/{attribute}"), &value);
        }
        for queue in 0..8 {
            self.folder(&format!("{net}/queues/tx-{queue}"));
            self.folder(&format!("{net}/queues/rx-{queue}"));
        }
        for counter in ["rx_packets", "rx_bytes", "tx_packets", "tx_bytes", "rx_dropped"] {
            self.write(&format!("{net}/statistics/{counter}"), "1000");
        }
    }

    /// Writes an entry of the udev database.
    pub fn udev(&self, index: u32, properties: &[(&str, &str)]) {
        let mut text = String::from("I:6123456\n");
        for (key, value) in properties {
            text.push_str(&format!("E:{key}={value}\n"));
        }
        text.push_str("G:systemd\nV:1");
        self.write(&format!("run/udev/data/n{index}"), &text);
    }

    fn next_index(&mut self) -> u32 {
        self.index += 1;
        self.index - 1
    }
}

struct Link<'a> {
    name: &'a str,
    mac: &'a str,
    index: u32,
    flags: u32,
    kind: u32,
    mtu: u32,
}

/// What a function is made of.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    pub vendor: u16,
    pub device: u16,
    pub class: u32,
    pub driver: Option<&'static str>,
    pub device_number: u8,
}

/// A ConnectX-5 VF.
pub const MLX5: Made = Made {
    vendor: 0x15b3,
    device: 0x1018,
    class: 0x02_0000,
    driver: Some("mlx5_core"),
    device_number: 2,
};
