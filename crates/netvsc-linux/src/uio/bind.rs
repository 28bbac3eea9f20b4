//! Taking a device from its driver and giving it back, the way `driverctl` does, with a journal.
//!
//! `driver_override` keeps every other driver away; `unbind` takes the device from the one it has; `drivers_probe` lets the kernel look for
//! the one that is wanted. Each step is a [`Change`], so that all of them can be shown first. A device that the host takes away and offers
//! again is a new one to the kernel, without an override (`vmbus_device_create`).

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use netvsc::MacAddress;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use vmbus::Guid;

use super::UioError;

/// The driver that hands devices to user space.
pub const UIO_DRIVER: &str = "uio_hv_generic";
/// The kernel's own driver of synthetic NICs.
pub const KERNEL_NIC_DRIVER: &str = "hv_netvsc";

/// Interfaces of a device that are looked at. A NIC has one.
const MOST_INTERFACES: usize = 16;
/// Longest attribute that is believed, in bytes.
const LINE: u64 = 4096;

/// Why a device could not change its driver.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Not the name of a device on VMBus.
    #[error("`{0}` is no VMBus device: expected the GUID by which /sys/bus/vmbus/devices knows it")]
    Name(String),
    /// There is no such device.
    #[error("there is no device {device} on VMBus ({} is missing)", folder.display())]
    NoDevice {
        /// The device.
        device: String,
        /// Its folder.
        folder: PathBuf,
    },
    /// The driver is not there.
    #[error("the driver {driver} is not loaded: `modprobe {driver}`")]
    NoDriver {
        /// The driver.
        driver: String,
    },
    /// An earlier run took the device and did not give it back.
    #[error("{device} was taken from its driver before and not given back ({} is there): `netvsc bind --restore` gives it back", journal.display())]
    Journalled {
        /// The device.
        device: String,
        /// The record of the earlier run.
        journal: PathBuf,
    },
    /// Another process drives it.
    #[error("{device} is driven by another run: stop that one first")]
    Driven {
        /// The device.
        device: String,
    },
    /// A record that cannot be understood.
    #[error("{}, line {line}: expected `{expected}`", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// How it should begin.
        expected: &'static str,
    },
    /// A write was refused. What had been done before was undone.
    #[error("{change}: {source}")]
    Refused {
        /// The write.
        change: Change,
        /// What the operating system said.
        source: io::Error,
    },
    /// The kernel took every write, and another driver or none has the device. What had been done was undone.
    #[error("{device} has {} after all writes, expected {wanted}; the kernel log says why", found.as_deref().unwrap_or("no driver"))]
    Elsewhere {
        /// The device.
        device: String,
        /// The driver that has it.
        found: Option<String>,
        /// The driver that should.
        wanted: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> BindError {
    let path = path.into();
    move |source| BindError::File { path, source }
}

/// One write to sysfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The attribute.
    pub path: PathBuf,
    /// What is written to it; empty for a line without text.
    pub value: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "echo '{}' > {}", self.value, self.path.display())
    }
}

/// Whoever takes writes to sysfs: the kernel, or a test in its place.
pub(super) trait Sysfs {
    fn write(&mut self, change: &Change) -> io::Result<()>;
}

/// The running kernel.
pub(super) struct Kernel;

impl Sysfs for Kernel {
    fn write(&mut self, change: &Change) -> io::Result<()> {
        // One write for the whole value: sysfs takes each as a value of its own.
        let mut attribute = OpenOptions::new().write(true).open(&change.path)?;
        attribute.write_all(format!("{}\n", change.value).as_bytes())
    }
}

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
    /// Whether it was left with its new driver on purpose ([`Binding::keep`]). Otherwise a run has taken it, and gives it back at its end.
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

    /// The writes that make the device what the record says, from whatever driver has it now.
    #[must_use]
    pub fn changes_back(&self, root: &Path) -> Vec<Change> {
        let bound = driver_of(&device_folder(root, &self.device.to_string())).is_some();
        self.changes(root, bound, self.driver_override.as_deref().unwrap_or(""))
    }

    fn changes(&self, root: &Path, bound: bool, chosen: &str) -> Vec<Change> {
        let device = self.device.to_string();
        let folder = device_folder(root, &device);
        let mut changes =
            vec![Change { path: folder.join("driver_override"), value: chosen.to_owned() }];
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

    /// Writes a record down, on the disk if there is one, before anything is changed.
    ///
    /// A record of a device that the host has taken away and offered again meanwhile is one of a device that is gone: the new one has no
    /// override. The same is true after somebody has given it back by hand.
    fn enter(&self, record: &Record, driver: &str) -> Result<(), BindError> {
        let path = self.path(record.device);
        let taken = [&record.driver, &record.driver_override]
            .iter()
            .any(|it| it.as_deref() == Some(driver));
        if path.exists() && taken {
            let device = record.device.to_string();
            return Err(BindError::Journalled { device, journal: path });
        }
        self.write(record)
    }

    fn write(&self, record: &Record) -> Result<(), BindError> {
        fs::create_dir_all(&self.folder).map_err(file(&self.folder))?;
        let path = self.path(record.device);
        let draft = path.with_extension("new");
        // Whoever may open it can lock it, and so keep every run from the device: only this user. A draft of a run that was killed goes.
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

    /// Whoever has this drives the device, and nobody else. It goes with the process. `None` if there is no record.
    fn hold(&self, device: Guid) -> Result<Option<File>, BindError> {
        let path = self.path(device);
        let held = match File::open(&path) {
            Ok(held) => held,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file(path)(error)),
        };
        match flock(&held, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(held)),
            Err(Errno::WOULDBLOCK) => Err(BindError::Driven { device: device.to_string() }),
            Err(error) => Err(file(path)(error.into())),
        }
    }

    fn strike(&self, device: Guid) -> Result<(), BindError> {
        let path = self.path(device);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file(path)(error)),
            _ => Ok(()),
        }
    }

    /// How `device` was, if it was taken and not given back.
    ///
    /// # Errors
    /// As for [`Journal::records`].
    pub fn record(&self, device: &str) -> Result<Option<Record>, BindError> {
        Ok(self.records()?.into_iter().find(|record| record.device.to_string() == device))
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
            // A draft is a record of which nothing was done yet.
            if path.extension().is_some() {
                continue;
            }
            let text = read_bounded(&path).map_err(file(&path))?;
            records.push(Record::from_text(&path, &text)?);
        }
        records.sort_by_key(|record| record.device);
        Ok(records)
    }
}

/// A device that was given to another driver, and goes back to its own when this goes, unless it is [kept](Binding::keep).
#[derive(Debug)]
#[must_use = "the device goes back to its driver when the binding goes"]
pub struct Binding {
    root: PathBuf,
    journal: Journal,
    /// None once the device was given back, or kept.
    record: Option<Record>,
    /// Nobody else drives it.
    _hold: Option<File>,
}

impl Binding {
    /// Gives `device` to `driver`.
    ///
    /// What was is written into the journal first. If anything fails, all is as before.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn to(
        root: &Path,
        device: &str,
        driver: &str,
        journal: Journal,
    ) -> Result<Self, BindError> {
        Self::to_by(&mut Kernel, root, device, driver, journal)
    }

    pub(super) fn to_by(
        sysfs: &mut dyn Sysfs,
        root: &Path,
        device: &str,
        driver: &str,
        journal: Journal,
    ) -> Result<Self, BindError> {
        let record = Record::of(root, device)?;
        if !root.join("sys/bus/vmbus/drivers").join(driver).is_dir() {
            return Err(BindError::NoDriver { driver: driver.to_owned() });
        }
        journal.enter(&record, driver)?;
        let outcome = apply(sysfs, &record.changes_to(root, driver))
            .and_then(|()| check(root, record.device, Some(driver)))
            .and_then(|()| journal.hold(record.device));
        match outcome {
            Ok(hold) => {
                let (root, record) = (root.to_owned(), Some(record));
                Ok(Self { root, journal, record, _hold: hold })
            }
            Err(error) => {
                give_back(sysfs, root, &record, &journal)?;
                Err(error)
            }
        }
    }

    /// Takes over a device that is bound already. If a run that was killed had taken it, it is given back when this goes, as it would have
    /// been then; one that was left there on purpose stays.
    ///
    /// # Errors
    /// [`BindError::Driven`] if another process drives it; as for [`Journal::records`].
    pub fn adopt(root: &Path, device: Guid, journal: Journal) -> Result<Self, BindError> {
        let hold = journal.hold(device)?;
        let record = journal.record(&device.to_string())?.filter(|record| !record.kept);
        Ok(Self { root: root.to_owned(), journal, record, _hold: hold })
    }

    /// How the device was.
    #[must_use]
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Leaves the device where it is. The journal keeps the record, for [`restore_all`].
    ///
    /// # Errors
    /// If the journal cannot be written: the device is given back then.
    pub fn keep(mut self) -> Result<(), BindError> {
        if let Some(record) = &self.record {
            self.journal.write(&Record { kept: true, ..record.clone() })?;
        }
        self.record = None;
        Ok(())
    }

    /// Gives the device back. Whoever has its file open closes it first: a channel whose driver goes while it is open stays
    /// open at the host, and the kernel (6.12) cannot open it again.
    ///
    /// # Errors
    /// As for [`Binding::to`]; the record then stays in the journal.
    pub fn restore(mut self) -> Result<(), BindError> {
        self.restore_by(&mut Kernel)
    }

    pub(super) fn restore_by(&mut self, sysfs: &mut dyn Sysfs) -> Result<(), BindError> {
        let Some(record) = self.record.take() else {
            return Ok(());
        };
        give_back(sysfs, &self.root, &record, &self.journal)
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        if let Err(error) = self.restore_by(&mut Kernel) {
            tracing::warn!(%error, "a device was not given back; `netvsc bind --restore` tries again");
        }
    }
}

/// Makes a device what `record` says, from whatever driver has it now, and strikes the record from the journal if it is there.
///
/// # Errors
/// As for [`Binding::to`].
pub fn restore(root: &Path, record: &Record, journal: &Journal) -> Result<(), BindError> {
    give_back(&mut Kernel, root, record, journal)
}

/// What became of a device that the journal had.
#[derive(Debug)]
pub struct Restored {
    /// How it was before it was taken.
    pub record: Record,
    /// Whether it is so again. Otherwise the record stays in the journal.
    pub outcome: Result<(), BindError>,
}

/// Gives back whatever the journal has, as far as that is possible, and returns what became of each.
///
/// # Errors
/// As for [`Journal::records`]; what goes wrong with a device stands with that device.
pub fn restore_all(root: &Path, journal: &Journal) -> Result<Vec<Restored>, BindError> {
    restore_all_by(&mut Kernel, root, journal)
}

pub(super) fn restore_all_by(
    sysfs: &mut dyn Sysfs,
    root: &Path,
    journal: &Journal,
) -> Result<Vec<Restored>, BindError> {
    let mut give = |record: Record| {
        let outcome = give_back(sysfs, root, &record, journal);
        Restored { record, outcome }
    };
    Ok(journal.records()?.into_iter().map(&mut give).collect())
}

/// Makes a device what a record says, and strikes the record.
fn give_back(
    sysfs: &mut dyn Sysfs,
    root: &Path,
    record: &Record,
    journal: &Journal,
) -> Result<(), BindError> {
    // A device that the host has taken away meanwhile needs nothing any more.
    if device_folder(root, &record.device.to_string()).is_dir() {
        apply(sysfs, &record.changes_back(root))?;
        check(root, record.device, record.driver.as_deref())?;
    }
    journal.strike(record.device)
}

fn apply(sysfs: &mut dyn Sysfs, changes: &[Change]) -> Result<(), BindError> {
    for change in changes {
        sysfs
            .write(change)
            .map_err(|source| BindError::Refused { change: change.clone(), source })?;
    }
    Ok(())
}

/// Whether the driver that is wanted has the device. Where none had it before, any may have found it meanwhile.
fn check(root: &Path, device: Guid, wanted: Option<&str>) -> Result<(), BindError> {
    let device = device.to_string();
    let found = driver_of(&device_folder(root, &device));
    match wanted {
        Some(wanted) if found.as_deref() != Some(wanted) => {
            Err(BindError::Elsewhere { device, found, wanted: wanted.to_owned() })
        }
        _ => Ok(()),
    }
}

pub(super) fn device_folder(root: &Path, device: &str) -> PathBuf {
    root.join("sys/bus/vmbus/devices").join(device)
}

fn driver_of(folder: &Path) -> Option<String> {
    fs::read_link(folder.join("driver")).ok()?.file_name()?.to_str().map(str::to_owned)
}

/// The first line of an attribute, without its end.
pub(super) fn read_line(path: &Path) -> Result<String, UioError> {
    let text = read_bounded(path).map_err(UioError::file(path))?;
    Ok(text.lines().next().unwrap_or_default().trim_end().to_owned())
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    File::open(path)?.take(LINE).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
