//! Configuration files, each kind from its own folders. Only their text is kept; the checks read it.

use std::collections::BTreeSet;

use super::tree::Tree;

/// Longest configuration file that is read, in bytes.
const CONFIG_LIMIT: usize = 256 << 10;
/// How many files of one folder are read.
const FILES_LIMIT: usize = 1024;
/// How many bytes are kept of all files together.
const TOTAL_LIMIT: usize = 16 << 20;

/// Whose configuration a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConfigKind {
    /// Rules of udev.
    UdevRules,
    /// netplan.
    Netplan,
    /// `.network` files of systemd-networkd.
    Network,
    /// `.link` files of udev.
    Link,
    /// Settings of NetworkManager.
    NetworkManager,
    /// Connections of NetworkManager.
    Connection,
    /// `ifcfg-*` files of Red Hat and SUSE.
    Ifcfg,
    /// `interfaces` of ifupdown.
    Interfaces,
    /// dhcpcd.
    Dhcpcd,
    /// Overrides of drivers that driverctl keeps.
    Driverctl,
    /// What goes into an initramfs.
    Initramfs,
    /// Exporters of metrics.
    Exporter,
}

/// A configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// Whose it is.
    pub kind: ConfigKind,
    /// Where it is, from the root.
    pub path: String,
    /// What it says.
    pub text: String,
}

impl ConfigFile {
    /// Its name without the folder.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// A folder and how the names of its files begin and end; an end with a slash at its head is a file of each folder in it. Where several folders have files of one kind, an earlier one's
/// file hides a later one's of the same name.
type Place = (ConfigKind, &'static str, &'static str, &'static str);

const PLACES: [Place; 36] = [
    (ConfigKind::UdevRules, "etc/udev/rules.d", "", ".rules"),
    (ConfigKind::UdevRules, "run/udev/rules.d", "", ".rules"),
    (ConfigKind::UdevRules, "usr/local/lib/udev/rules.d", "", ".rules"),
    (ConfigKind::UdevRules, "usr/lib/udev/rules.d", "", ".rules"),
    (ConfigKind::UdevRules, "lib/udev/rules.d", "", ".rules"),
    (ConfigKind::Netplan, "run/netplan", "", ".yaml"),
    (ConfigKind::Netplan, "etc/netplan", "", ".yaml"),
    (ConfigKind::Netplan, "usr/lib/netplan", "", ".yaml"),
    (ConfigKind::Network, "etc/systemd/network", "", ".network"),
    (ConfigKind::Network, "run/systemd/network", "", ".network"),
    (ConfigKind::Network, "usr/local/lib/systemd/network", "", ".network"),
    (ConfigKind::Network, "usr/lib/systemd/network", "", ".network"),
    (ConfigKind::Link, "etc/systemd/network", "", ".link"),
    (ConfigKind::Link, "run/systemd/network", "", ".link"),
    (ConfigKind::Link, "usr/local/lib/systemd/network", "", ".link"),
    (ConfigKind::Link, "usr/lib/systemd/network", "", ".link"),
    (ConfigKind::NetworkManager, "etc/NetworkManager", "NetworkManager", ".conf"),
    (ConfigKind::NetworkManager, "etc/NetworkManager/conf.d", "", ".conf"),
    (ConfigKind::NetworkManager, "run/NetworkManager/conf.d", "", ".conf"),
    (ConfigKind::NetworkManager, "usr/lib/NetworkManager/conf.d", "", ".conf"),
    (ConfigKind::Connection, "etc/NetworkManager/system-connections", "", ".nmconnection"),
    (ConfigKind::Connection, "run/NetworkManager/system-connections", "", ".nmconnection"),
    (ConfigKind::Ifcfg, "etc/sysconfig/network-scripts", "ifcfg-", ""),
    (ConfigKind::Ifcfg, "etc/sysconfig/network", "ifcfg-", ""),
    (ConfigKind::Interfaces, "etc/network", "interfaces", ""),
    (ConfigKind::Interfaces, "etc/network/interfaces.d", "", ""),
    (ConfigKind::Dhcpcd, "etc", "dhcpcd.conf", ""),
    (ConfigKind::Driverctl, "etc/driverctl.d", "", ""),
    (ConfigKind::Initramfs, "etc/dracut.conf.d", "", ".conf"),
    (ConfigKind::Initramfs, "usr/lib/dracut/dracut.conf.d", "", ".conf"),
    (ConfigKind::Initramfs, "usr/lib/dracut/modules.d", "", "/module-setup.sh"),
    (ConfigKind::Initramfs, "etc/initramfs-tools/hooks", "", ""),
    (ConfigKind::Initramfs, "usr/share/initramfs-tools/hooks", "", ""),
    (ConfigKind::Exporter, "etc/default", "prometheus-node-exporter", ""),
    (ConfigKind::Exporter, "etc/sysconfig", "node_exporter", ""),
    (ConfigKind::Exporter, "etc/rezolus", "", ".toml"),
];

/// The folders of a kind, from the root.
pub fn folders(kind: ConfigKind) -> impl Iterator<Item = &'static str> {
    PLACES.iter().filter(move |place| place.0 == kind).map(|place| place.1)
}

/// Reads them all; what goes into an initramfs only where a manager of networks ran in one (`early`), for that is a hundred files.
pub(super) fn read(tree: &mut Tree, early: bool) -> Vec<ConfigFile> {
    let mut files = Vec::new();
    let mut seen = BTreeSet::new();
    let mut total = 0;
    let places = PLACES.into_iter().filter(|place| early || place.0 != ConfigKind::Initramfs);
    for (kind, folder, start, end) in places {
        // `etc` and `etc/default` hold much else, and what is looked for there has one name.
        let exact = end.is_empty() && !start.is_empty() && !start.ends_with('-');
        let exact = exact || (start == "NetworkManager");
        let names = if exact {
            vec![format!("{start}{end}")]
        } else {
            let mut names = tree.names_at(folder);
            if end.starts_with('/') {
                names.retain(|name| tree.is_folder(&format!("{folder}/{name}")));
                names.iter_mut().for_each(|name| name.push_str(end));
            }
            names.retain(|name| name.starts_with(start) && name.ends_with(end));
            names
        };
        if names.len() > FILES_LIMIT {
            let why = format!("expected at most {FILES_LIMIT} files; the rest was left out");
            tree.note(format!("/{folder}"), why);
        }
        for name in names.into_iter().take(FILES_LIMIT) {
            let path = format!("{folder}/{name}");
            if !seen.insert((kind, name)) || tree.is_folder(&path) {
                continue;
            }
            let Some(text) = tree.contents(&path, CONFIG_LIMIT) else { continue };
            total += text.len();
            if total > TOTAL_LIMIT {
                let why = format!("expected at most {TOTAL_LIMIT} bytes of configuration");
                tree.note(format!("/{path}"), why);
                return files;
            }
            files.push(ConfigFile { kind, path: format!("/{path}"), text });
        }
    }
    files
}
