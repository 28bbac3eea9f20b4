//! What devices were like before they were taken, and who is alone with one.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use netvsc::MacAddress;
use vmbus::Guid;

use super::bind::{BindError, Change, device_folder, driver_of, file, read_bounded, read_line};
use crate::lock::{FileLock, LockError};

/// Interfaces of a device that are looked at. A NIC has one.
const MOST_INTERFACES: usize = 16;

/// How a device was before it was taken: what is needed to give it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The device.
    pub device: Guid,
    /// The driver that had it.
    pub driver: Option<String>,
    /// The driver that an operator had chosen for it.
    pub driver_override: Option<String>,
    /// What its interface was called. Without the kernel's driver it has none, and this is how people know it.
    pub interfaces: Vec<String>,
    /// The permanent MAC of its interface, if that had not been given another one.
    pub mac: Option<MacAddress>,
    /// Whether it was left with its new driver on purpose ([`Binding::keep`](super::Binding::keep)). Otherwise a run has taken it, and gives it back at its end.
    pub kept: bool,
}

impl Record {
    /// How the device `device` is now.
    ///
    /// # Errors
    /// [`BindError::Name`] and [`BindError::NoDevice`].
    pub fn of(root: &Path, device: &str) -> Result<Self, BindError> {
        let guid = Guid::try_parse(device).map_err(|_| BindError::Name(device.to_owned()))?;
        let folder = device_folder(root, &guid.to_string());
        if !folder.is_dir() {
            return Err(BindError::NoDevice { device: guid.to_string(), folder });
        }
        let chosen = read_line(&folder.join("driver_override")).ok();
        // An override that is not there reads as `(null)`.
        let chosen = chosen.filter(|name| !name.is_empty() && name != "(null)");
        let (interfaces, mac) = interfaces(&folder.join("net"));
        let driver = driver_of(&folder);
        Ok(Self { device: guid, driver, driver_override: chosen, interfaces, mac, kept: false })
    }

    /// The writes that give the device to `driver` and keep every other away from it.
    #[must_use]
    pub fn changes_to(&self, root: &Path, driver: &str) -> Vec<Change> {
        self.changes(root, self.driver.is_some(), driver)
    }

    /// The writes that make the device what the record says, from how it is now. A device that has its driver again keeps it: its
    /// interface is not to vanish for a moment. One that the host has taken away needs nothing any more.
    #[must_use]
    pub fn changes_back(&self, root: &Path) -> Vec<Change> {
        let Ok(has) = Self::of(root, &self.device.to_string()) else { return Vec::new() };
        if has.driver != self.driver {
            return self.changes(root, has.driver.is_some(), self.chosen());
        }
        let differs = has.driver_override != self.driver_override;
        differs.then(|| self.choose(root, self.chosen())).into_iter().collect()
    }

    /// The writes that make the device what the record says, once another driver has it.
    #[must_use]
    pub fn changes_back_later(&self, root: &Path) -> Vec<Change> {
        self.changes(root, true, self.chosen())
    }

    /// What the override was, as it is written.
    fn chosen(&self) -> &str {
        self.driver_override.as_deref().unwrap_or("")
    }

    fn choose(&self, root: &Path, chosen: &str) -> Change {
        let folder = device_folder(root, &self.device.to_string());
        Change { path: folder.join("driver_override"), value: chosen.to_owned() }
    }

    fn changes(&self, root: &Path, bound: bool, chosen: &str) -> Vec<Change> {
        let device = self.device.to_string();
        let folder = device_folder(root, &device);
        let mut changes = vec![self.choose(root, chosen)];
        if bound {
            changes.push(Change { path: folder.join("driver/unbind"), value: device.clone() });
        }
        changes.push(Change { path: root.join("sys/bus/vmbus/drivers_probe"), value: device });
        changes
    }

    fn to_text(&self) -> String {
        let name = |name: &Option<String>| name.clone().unwrap_or_default();
        let (driver, chosen) = (name(&self.driver), name(&self.driver_override));
        let mut text = format!("device {}\ndriver {driver}\noverride {chosen}\n", self.device);
        for name in &self.interfaces {
            text.push_str(&format!("interface {name}\n"));
        }
        if let Some(mac) = self.mac {
            text.push_str(&format!("mac {mac}\n"));
        }
        text.push_str(if self.kept { "kept yes\n" } else { "kept no\n" });
        text
    }

    fn from_text(path: &Path, text: &str) -> Result<Self, BindError> {
        let mut lines = text.lines().enumerate();
        let mut next = |expected: &'static str| {
            let wrong = |line| BindError::Record { path: path.to_owned(), line, expected };
            let (at, line) = lines.next().ok_or_else(|| wrong(1))?;
            let value = line.strip_prefix(expected).and_then(|rest| rest.strip_prefix(' '));
            value.filter(|value| fits(value)).ok_or_else(|| wrong(at + 1))
        };
        let device = next("device")?;
        let wrong =
            |_| BindError::Record { path: path.to_owned(), line: 1, expected: "device GUID" };
        let device = Guid::try_parse(device).map_err(wrong)?;
        let name = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        let (driver, driver_override) = (name(next("driver")?), name(next("override")?));
        // What follows came later: a record without it is one of a NIC that was left where it is.
        let mut record =
            Self { device, driver, driver_override, interfaces: Vec::new(), mac: None, kept: true };
        for (at, line) in lines {
            let understood = match line.split_once(' ') {
                Some(("interface", name)) if fits(name) => {
                    record.interfaces.push(name.to_owned());
                    true
                }
                Some(("mac", mac)) => {
                    record.mac = mac.parse().ok();
                    record.mac.is_some()
                }
                Some(("kept", word @ ("yes" | "no"))) => {
                    record.kept = word == "yes";
                    true
                }
                _ => false,
            };
            if !understood {
                let expected = "interface NAME, mac MAC or kept yes|no";
                return Err(BindError::Record { path: path.to_owned(), line: at + 1, expected });
            }
        }
        Ok(record)
    }

    /// Whether `name` is what its interface was called, or its permanent MAC.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        let mac = name.to_ascii_lowercase().parse::<MacAddress>().ok();
        self.interfaces.iter().any(|own| own == name) || mac.is_some() && self.mac == mac
    }
}

/// Whether it can be a name: those of drivers become parts of what is written.
fn fits(value: &str) -> bool {
    value.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
}

/// What the interfaces in a device's `net` folder are called, and the permanent MAC of the first.
fn interfaces(folder: &Path) -> (Vec<String>, Option<MacAddress>) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().take(MOST_INTERFACES);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| fits(name)).collect();
    names.sort();
    let mac = names.first().and_then(|name| {
        let interface = folder.join(name);
        // `NET_ADDR_PERM`: nobody has given it another one.
        let own = read_line(&interface.join("addr_assign_type")).is_ok_and(|kind| kind == "0");
        read_line(&interface.join("address")).ok().filter(|_| own)?.parse().ok()
    });
    (names, mac)
}

/// The folder in which records are kept until their devices are given back, so that a run that was killed can be undone.
#[derive(Clone, Debug)]
pub struct Journal {
    folder: PathBuf,
}

impl Journal {
    /// The journal in `folder`, which is made when it is needed; `/run/netvsc/bind` on a running system, where it goes with the
    /// boot as the bindings do.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn path(&self, device: Guid) -> PathBuf {
        self.folder.join(device.to_string())
    }

    /// Is alone with a device, without waiting for whoever is.
    ///
    /// The lock is on a file of its own, which stays. A record comes and goes with what is done to the device: whoever locked that could
    /// have the lock of one that is not there any more, and nobody could lock what he has no record of.
    ///
    /// # Errors
    /// [`BindError::Driven`] if another process has it; [`BindError::Foreign`], [`BindError::File`].
    pub fn hold(&self, device: Guid) -> Result<Hold, BindError> {
        fs::create_dir_all(&self.folder).map_err(file(&self.folder))?;
        let path = self.path(device).with_extension("lock");
        let lock = FileLock::take(&path).map_err(|error| match error {
            LockError::Held => BindError::Driven { device: device.to_string() },
            LockError::Foreign(foreign) => BindError::Foreign(foreign),
            LockError::Kernel(source) => BindError::File { path, source },
        })?;
        Ok(Hold { journal: self.clone(), device, _lock: lock })
    }

    /// How `device` was, if it was taken and not given back.
    ///
    /// # Errors
    /// As for [`Journal::records`], of this record.
    pub fn record(&self, device: Guid) -> Result<Option<Record>, BindError> {
        match self.read(&self.path(device)) {
            Err(BindError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            record => record.map(Some),
        }
    }

    /// A record is that of the device by which its file is called, for that is the one whose holder may act on it.
    fn read(&self, path: &Path) -> Result<Record, BindError> {
        let text = read_bounded(path).map_err(file(path))?;
        let record = Record::from_text(path, &text)?;
        if self.path(record.device) != path {
            let expected = "device, and the GUID that the file has for a name";
            return Err(BindError::Record { path: path.to_owned(), line: 1, expected });
        }
        Ok(record)
    }

    /// What was taken and not given back, in the order of the devices.
    ///
    /// # Errors
    /// [`BindError::Record`] for a record that cannot be understood, [`BindError::File`] for one that cannot be read.
    pub fn records(&self) -> Result<Vec<Record>, BindError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(file(&self.folder)(error)),
        };
        let mut records = Vec::new();
        for entry in entries {
            let path = entry.map_err(file(&self.folder))?.path();
            // A lock, or a draft: a record of which nothing was done yet.
            if path.extension().is_some() {
                continue;
            }
            match self.read(&path) {
                // Given back since the folder was read.
                Err(BindError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                }
                record => records.push(record?),
            }
        }
        records.sort_by_key(|record| record.device);
        Ok(records)
    }
}

/// Whoever has this is alone with a device: he takes it, drives it and gives it back, and nobody else. It goes with the process.
#[derive(Debug)]
pub struct Hold {
    journal: Journal,
    device: Guid,
    _lock: FileLock,
}

impl Hold {
    /// How the device was, if it was taken and not given back.
    ///
    /// # Errors
    /// As for [`Journal::record`].
    pub fn record(&self) -> Result<Option<Record>, BindError> {
        self.journal.record(self.device)
    }

    /// Writes a record down, on the disk if there is one, before anything is changed.
    ///
    /// A record of a device that the host has taken away and offered again meanwhile is one of a device that is gone: the new one has no
    /// override. The same is true after somebody has given it back by hand.
    pub(super) fn enter(&self, record: &Record, driver: &str) -> Result<(), BindError> {
        let path = self.journal.path(self.device);
        let taken = [&record.driver, &record.driver_override]
            .iter()
            .any(|it| it.as_deref() == Some(driver));
        if path.exists() && taken {
            let device = self.device.to_string();
            return Err(BindError::Journalled { device, journal: path });
        }
        self.write(record)
    }

    pub(super) fn write(&self, record: &Record) -> Result<(), BindError> {
        let path = self.journal.path(self.device);
        let draft = path.with_extension("new");
        // That of a run that was killed goes.
        let _ = fs::remove_file(&draft);
        let mut options = OpenOptions::new();
        let created = options.write(true).create_new(true).mode(0o600).open(&draft);
        let written = created.and_then(|mut file| {
            file.write_all(record.to_text().as_bytes())?;
            file.sync_all()
        });
        written.map_err(file(&draft))?;
        fs::rename(&draft, &path).map_err(file(&path))
    }

    pub(super) fn strike(&self) -> Result<(), BindError> {
        let path = self.journal.path(self.device);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file(path)(error)),
            _ => Ok(()),
        }
    }
}
