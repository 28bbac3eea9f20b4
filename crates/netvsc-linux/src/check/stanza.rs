//! What configuration says about interfaces, whoever wrote it and in whatever form: which ones are meant, and what is
//! wanted of them.

use netvsc::mac::MacAddress;

use super::config::{fits, ini, passes, unquoted};
use super::guest::net_driver;
use super::rules;
use crate::inventory::{ConfigFile, ConfigKind, Function, NetDevice};

/// One passage of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stanza {
    pub(super) kind: ConfigKind,
    pub(super) path: String,
    /// Names of the interfaces that are meant, or patterns of them; with a `!` before it one that is not meant, here and below.
    pub(super) names: Vec<String>,
    /// Their MACs.
    pub(super) macs: Vec<MacAddress>,
    /// Their drivers, or patterns of them.
    pub(super) drivers: Vec<String>,
    /// What they sit on (`ID_PATH`).
    paths: Vec<String>,
    /// Their types, as systemd calls them: `ether`, `loopback`.
    types: Vec<String>,
    /// What made them, if software did: `bridge`, `veth`.
    kinds: Vec<String>,
    /// Properties that they have in the udev database.
    pub(super) properties: Vec<(String, String)>,
    /// Whether they are to be left alone.
    pub(super) unmanaged: bool,
    /// What they are to be called.
    pub(super) wants_name: Option<String>,
    /// Their MTU, in bytes.
    pub(super) mtu: Option<u32>,
}

impl Stanza {
    fn new(file: &ConfigFile) -> Self {
        Self {
            kind: file.kind,
            path: file.path.clone(),
            names: Vec::new(),
            macs: Vec::new(),
            drivers: Vec::new(),
            paths: Vec::new(),
            types: Vec::new(),
            kinds: Vec::new(),
            properties: Vec::new(),
            unmanaged: false,
            wants_name: None,
            mtu: None,
        }
    }

    fn says_anything(&self) -> bool {
        let lists = [&self.names, &self.drivers, &self.paths, &self.types, &self.kinds];
        lists.iter().any(|list| !list.is_empty())
            || !(self.macs.is_empty() && self.properties.is_empty())
    }

    /// Whether it names a MAC and nothing that tells a synthetic NIC from its VF.
    pub(super) fn by_mac_alone(&self) -> bool {
        !self.macs.is_empty()
            && self.drivers.is_empty()
            && self.paths.is_empty()
            && self.properties.is_empty()
    }

    /// Whether an interface is meant. A stanza that says nothing means nobody.
    pub(super) fn means(&self, link: &NetDevice, function: Option<&Function>) -> bool {
        let told = link.told.as_ref();
        let altnames = told.iter().flat_map(|told| &told.altnames).map(String::as_str);
        let mut names = std::iter::once(link.name.as_str()).chain(altnames);
        let mac = |mac: &MacAddress| link.permanent == Some(*mac) || link.mac == Some(*mac);
        let property = |(key, value): &(String, String)| {
            let has = |key| link.property(key).is_some_and(|found| fits(value, found));
            key.strip_prefix('!').map_or_else(|| has(key), |key| !has(key))
        };
        self.says_anything()
            && names.any(|name| passes(&self.names, Some(name)))
            && (self.macs.is_empty() || self.macs.iter().any(mac))
            && passes(&self.drivers, net_driver(link, function))
            && passes(&self.paths, link.property("ID_PATH"))
            && passes(&self.types, type_of(link))
            && passes(&self.kinds, told.and_then(|told| told.made.as_deref()))
            && self.properties.iter().all(property)
    }
}

/// What systemd calls the type of an interface, of those that sit on a device.
fn type_of(link: &NetDevice) -> Option<&'static str> {
    match link.kind? {
        1 => Some("ether"),
        32 => Some("infiniband"),
        772 => Some("loopback"),
        _ => None,
    }
}

/// The passages of a file.
pub(super) fn read(file: &ConfigFile) -> Vec<Stanza> {
    let mut stanzas = match file.kind {
        ConfigKind::Netplan => netplan(file),
        ConfigKind::Network | ConfigKind::Link => vec![systemd(file)],
        ConfigKind::Connection => vec![connection(file)],
        ConfigKind::Ifcfg => vec![ifcfg(file)],
        ConfigKind::Interfaces => interfaces(file),
        ConfigKind::UdevRules => naming(file),
        _ => Vec::new(),
    };
    stanzas.retain(Stanza::says_anything);
    stanzas
}

fn words(value: &str) -> impl Iterator<Item = String> {
    value.split_whitespace().map(str::to_owned)
}

fn macs(value: &str) -> impl Iterator<Item = MacAddress> {
    value.split_whitespace().filter_map(|word| word.replace('-', ":").parse().ok())
}

/// Adds a list of patterns to what a file of systemd has said before. A `!` at its head is for all of it, and an empty list takes
/// back what was said.
fn patterns(list: &mut Vec<String>, value: &str) {
    if value.is_empty() {
        list.clear();
    }
    let (not, value) = value.strip_prefix('!').map_or(("", value), |value| ("!", value));
    list.extend(words(value).map(|word| format!("{not}{word}")));
}

fn systemd(file: &ConfigFile) -> Stanza {
    let mut stanza = Stanza::new(file);
    for (section, key, value) in ini(&file.text) {
        match (section, key) {
            ("Match", "Name" | "OriginalName") => patterns(&mut stanza.names, value),
            ("Match", "MACAddress" | "PermanentMACAddress") => stanza.macs.extend(macs(value)),
            ("Match", "Driver") => patterns(&mut stanza.drivers, value),
            ("Match", "Path") => patterns(&mut stanza.paths, value),
            ("Match", "Type") => patterns(&mut stanza.types, value),
            ("Match", "Kind") => patterns(&mut stanza.kinds, value),
            // Only radios have these, and no software makes what sits on a bus.
            ("Match", "WLANInterfaceType" | "SSID" | "BSSID") => stanza.kinds.push("wlan".into()),
            ("Match", "Property") => {
                let (not, value) =
                    value.strip_prefix('!').map_or(("", value), |value| ("!", value));
                stanza.properties.extend(words(value).filter_map(|word| {
                    let (key, value) = word.split_once('=')?;
                    Some((format!("{not}{}", unquoted(key)), unquoted(value).to_owned()))
                }));
            }
            ("Link", "Unmanaged") => {
                stanza.unmanaged = matches!(value, "yes" | "true" | "1" | "on");
            }
            ("Link", "Name") => stanza.wants_name = Some(value.to_owned()),
            ("Link", "MTUBytes") => stanza.mtu = value.parse().ok(),
            _ => {}
        }
    }
    stanza
}

fn connection(file: &ConfigFile) -> Stanza {
    let mut stanza = Stanza::new(file);
    for (section, key, value) in ini(&file.text) {
        match (section, key) {
            ("connection", "interface-name") => stanza.names.push(value.to_owned()),
            ("ethernet" | "802-3-ethernet", "mac-address") => stanza.macs.extend(macs(value)),
            ("ethernet" | "802-3-ethernet", "mtu") => stanza.mtu = value.parse().ok(),
            ("match", "driver") => stanza.drivers.extend(value.split(';').map(str::to_owned)),
            _ => {}
        }
    }
    stanza
}

fn ifcfg(file: &ConfigFile) -> Stanza {
    let mut stanza = Stanza::new(file);
    let mut device = None;
    for (_, key, value) in ini(&file.text) {
        match key {
            "DEVICE" => device = Some(value.to_owned()),
            "HWADDR" | "LLADDR" => stanza.macs.extend(macs(value)),
            "MTU" => stanza.mtu = value.parse().ok(),
            _ => {}
        }
    }
    // With a MAC the name is what the interface is to be called, without one it says which is meant.
    if stanza.macs.is_empty() {
        stanza.names.extend(device);
    } else {
        stanza.wants_name = device;
    }
    stanza
}

fn interfaces(file: &ConfigFile) -> Vec<Stanza> {
    let mut stanzas: Vec<Stanza> = Vec::new();
    for line in file.text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("iface"), Some(name)) => {
                let mut stanza = Stanza::new(file);
                stanza.names.push(name.to_owned());
                stanzas.push(stanza);
            }
            (Some("mtu"), Some(mtu)) => {
                if let Some(stanza) = stanzas.last_mut() {
                    stanza.mtu = mtu.parse().ok();
                }
            }
            _ => {}
        }
    }
    stanzas
}

/// Rules of udev that give interfaces names.
fn naming(file: &ConfigFile) -> Vec<Stanza> {
    let mut stanzas = Vec::new();
    for rule in rules::rules(&file.text) {
        let Some(name) = rule.assigned("NAME") else { continue };
        let mut stanza = Stanza::new(file);
        stanza.wants_name = Some(name.to_owned());
        for (key, value) in rule.matches() {
            match key {
                "ATTR{address}" | "ATTRS{address}" => stanza.macs.extend(macs(value)),
                "DRIVERS" | "ENV{ID_NET_DRIVER}" => stanza.drivers.push(value.to_owned()),
                "KERNEL" => stanza.names.push(value.to_owned()),
                _ => {}
            }
        }
        stanzas.push(stanza);
    }
    stanzas
}

/// A line of YAML: how far it is indented, its key, its value.
struct Line<'a> {
    indent: usize,
    key: &'a str,
    value: &'a str,
}

fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().filter_map(|line| {
        let code = line.split(" #").next().unwrap_or(line);
        let indent = code.len() - code.trim_start().len();
        let code = code.trim();
        if code.starts_with('#') {
            return None;
        }
        let (key, value) = match code.split_once(": ") {
            Some(parts) => parts,
            None => (code.strip_suffix(':')?, ""),
        };
        Some(Line { indent, key: unquoted(key.trim()), value: unquoted(value.trim()) })
    })
}

/// The part of YAML that netplan's files are written in: keys one below the other, and `{key: value, ..}` for `match`.
fn netplan(file: &ConfigFile) -> Vec<Stanza> {
    let mut stanzas: Vec<Stanza> = Vec::new();
    // How far `ethernets:`, the interface below it and its `match:` are indented.
    let (mut section, mut interface, mut matching) = (None, None, None);
    for line in lines(&file.text) {
        if section.is_some_and(|at| line.indent <= at) {
            (section, interface, matching) = (None, None, None);
        }
        if line.key == "ethernets" {
            section = Some(line.indent);
            continue;
        }
        if section.is_none() {
            continue;
        }
        if matching.is_some_and(|at| line.indent <= at) {
            matching = None;
        }
        if interface.is_none_or(|at| line.indent <= at) {
            interface = Some(line.indent);
            let mut stanza = Stanza::new(file);
            stanza.names.push(line.key.to_owned());
            stanzas.push(stanza);
            continue;
        }
        let Some(stanza) = stanzas.last_mut() else { continue };
        match (matching.is_some(), line.key) {
            (false, "match") => {
                // With a match the key above it is only a label.
                stanza.names.clear();
                matching = Some(line.indent);
                let inside = line.value.trim_matches(['{', '}']);
                for part in inside.split(',') {
                    if let Some((key, value)) = part.split_once(':') {
                        matched(stanza, unquoted(key.trim()), unquoted(value.trim()));
                    }
                }
            }
            (true, key) => matched(stanza, key, line.value),
            (false, "set-name") => stanza.wants_name = Some(line.value.to_owned()),
            (false, "mtu") => stanza.mtu = line.value.parse().ok(),
            _ => {}
        }
    }
    stanzas
}

fn matched(stanza: &mut Stanza, key: &str, value: &str) {
    match key {
        "name" => stanza.names.push(value.to_owned()),
        "macaddress" => stanza.macs.extend(macs(value)),
        "driver" => stanza.drivers.push(value.to_owned()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::SoftKind;

    fn of(kind: ConfigKind, text: &str) -> Vec<Stanza> {
        read(&ConfigFile { kind, path: "/file".into(), text: text.into() })
    }

    const MAC: &str = "7c:1e:52:25:55:d2";

    #[test]
    fn netplan_is_read_in_both_its_forms() {
        let text = "network:\n  version: 2\n  ethernets:\n    eth0:\n      dhcp4: true\n      match:\n        \
                    driver: hv_netvsc\n        macaddress: 7c:1e:52:25:55:d2\n      set-name: eth0\n    \
                    \"b\":\n      match: {macaddress: '7c:1e:52:25:55:d2'} # alone\n      mtu: 9000\n    \
                    enP1s1: {}\n  bonds:\n    bond0:\n      match:\n        name: x\n";
        let stanzas = of(ConfigKind::Netplan, text);
        assert_eq!((stanzas.len(), &stanzas[2].names), (3, &vec!["enP1s1".to_owned()]));
        assert_eq!(stanzas[0].drivers, ["hv_netvsc"]);
        assert!(!stanzas[0].by_mac_alone());
        assert_eq!((stanzas[0].wants_name.as_deref(), stanzas[0].names.len()), (Some("eth0"), 0));
        assert!(stanzas[1].by_mac_alone());
        assert_eq!(stanzas[1].mtu, Some(9000));
    }

    #[test]
    fn files_of_systemd_say_whom_they_mean() {
        let text =
            format!("[Match]\nPermanentMACAddress={MAC}\nDriver=mlx5_core\n[Link]\nUnmanaged=yes");
        let stanza = &of(ConfigKind::Network, &text)[0];
        assert!(stanza.unmanaged && !stanza.by_mac_alone());
        let text = format!("[Match]\nMACAddress={MAC}\n[Link]\nName=lan0\nMTUBytes=9000");
        let stanza = &of(ConfigKind::Link, &text)[0];
        assert!(stanza.by_mac_alone());
        assert_eq!((stanza.wants_name.as_deref(), stanza.mtu), (Some("lan0"), Some(9000)));
        assert!(of(ConfigKind::Network, "[Network]\nDHCP=yes").is_empty());
        let text = format!("[Match]\nMACAddress={MAC}\nType=ether\n[Link]\nName=lan0");
        assert!(of(ConfigKind::Link, &text)[0].by_mac_alone(), "a VF is Ethernet as well");
    }

    #[test]
    fn files_of_systemd_mean_who_passes_all_their_lists() {
        let udev = [("ID_NET_DRIVER", "mlx5_core"), ("ID_PATH", "acpi-VMBUS:01-pci-927a:00:02.0")];
        let udev = udev.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let vf = NetDevice {
            kind: Some(1),
            udev: Some(udev.into()),
            ..NetDevice::software(3, "enP37498s1".into(), SoftKind::Other)
        };
        let means = |section: &str| {
            let stanzas = of(ConfigKind::Network, &format!("[Match]\n{section}"));
            stanzas.first().is_some_and(|stanza| stanza.means(&vf, None))
        };
        for section in [
            "Type=ether",
            "Name=!lo",
            "Name=*\nType=!loopback bridge tunnel\nDriver=!veth dummy",
            "Name=eth0\nName=\nName=en*",
            "Kind=!*",
            "Path=*-pci-*",
            "Property=!NETVSC_ROLE=vf",
        ] {
            assert!(means(section), "{section}");
        }
        for section in [
            "",
            "Type=wlan loopback",
            "Type=!ether",
            "Kind=bridge",
            "Name=e*\nDriver=!mlx*",
            "Name=!lo enP*",
            "Path=platform-*",
            "Property=!ID_NET_DRIVER=mlx5_core",
            "Type=ether\nSSID=home",
        ] {
            assert!(!means(section), "{section}");
        }
    }

    #[test]
    fn red_hats_and_debians_files_are_read() {
        let stanza = &of(ConfigKind::Ifcfg, &format!("DEVICE=eth0\nHWADDR=\"{MAC}\"\nMTU=1400"))[0];
        assert!(stanza.by_mac_alone() && stanza.names.is_empty());
        assert_eq!((stanza.wants_name.as_deref(), stanza.mtu), (Some("eth0"), Some(1400)));
        assert_eq!(of(ConfigKind::Ifcfg, "DEVICE=enP1s1")[0].names, ["enP1s1"]);
        let both = of(
            ConfigKind::Interfaces,
            "auto eth0\niface eth0 inet dhcp\n  mtu 1400\niface b inet6 auto",
        );
        assert_eq!((both.len(), both[0].mtu, both[1].mtu), (2, Some(1400), None));
        let text =
            format!("[connection]\ninterface-name=eth1\n[ethernet]\nmac-address={MAC}\nmtu=1400");
        let stanza = &of(ConfigKind::Connection, &text)[0];
        assert_eq!((stanza.names.len(), stanza.macs.len(), stanza.mtu), (1, 1, Some(1400)));
    }

    #[test]
    fn rules_of_udev_that_give_names_are_read() {
        let text = format!(
            "SUBSYSTEM==\"net\", ATTR{{address}}==\"{MAC}\", NAME=\"eth0\"\nACTION==\"add\""
        );
        let stanza = &of(ConfigKind::UdevRules, &text)[0];
        assert!(stanza.by_mac_alone());
        assert_eq!(stanza.wants_name.as_deref(), Some("eth0"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_fail(text in "[a-z{}\\[\\]:=\",# \n]{0,200}") {
            for kind in [ConfigKind::Netplan, ConfigKind::Link, ConfigKind::UdevRules, ConfigKind::Interfaces] {
                let _ = of(kind, &text);
            }
        }
    }
}
