//! Taking a device from its driver and giving it back, the way `driverctl` does, with a journal and alone.
//!
//! `driver_override` keeps every other driver away; `unbind` takes the device from the one it has; `drivers_probe` lets the kernel look for
//! the one that is wanted. Each step is a [`Change`], so that all of them can be shown first. A device that the host takes away and offers
//! again is a new one to the kernel, without an override (`vmbus_device_create`).

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use vmbus::Guid;

use super::UioError;
use super::journal::{Hold, Journal, Record};
use crate::lock::ForeignLock;

/// The driver that hands devices to user space.
pub const UIO_DRIVER: &str = "uio_hv_generic";
/// The kernel's own driver of synthetic NICs.
pub const KERNEL_NIC_DRIVER: &str = "hv_netvsc";

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
    #[error("{device} was taken from its driver before and not given back ({} is there): `netvsc bind --kernel {device}` gives it back", journal.display())]
    Journalled {
        /// The device.
        device: String,
        /// The record of the earlier run.
        journal: PathBuf,
    },
    /// Another process drives it, or has just begun to take it or to give it back.
    #[error("{device} is driven by another run: stop that one first")]
    Driven {
        /// The device.
        device: String,
    },
    /// The file that is locked by whoever drives a device is somebody else's.
    #[error("{0}; remove what is there")]
    Foreign(ForeignLock),
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

impl BindError {
    /// Whether this user may not read or write a file that others may.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

pub(super) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> BindError {
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

/// A device that was given to another driver, and goes back to its own when this goes, unless it is [kept](Binding::keep).
#[derive(Debug)]
#[must_use = "the device goes back to its driver when the binding goes"]
pub struct Binding {
    root: PathBuf,
    /// None once the device was given back, or kept.
    record: Option<Record>,
    /// Until all of that is done nobody else touches it.
    hold: Hold,
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
        let device = Record::of(root, device)?.device;
        if !root.join("sys/bus/vmbus/drivers").join(driver).is_dir() {
            return Err(BindError::NoDriver { driver: driver.to_owned() });
        }
        let hold = journal.hold(device)?;
        // Until then it may have been anybody's.
        let record = Record::of(root, &device.to_string())?;
        hold.enter(&record, driver)?;
        let outcome = apply(sysfs, &record.changes_to(root, driver))
            .and_then(|()| check(root, device, Some(driver)));
        match outcome {
            Ok(()) => Ok(Self { root: root.to_owned(), record: Some(record), hold }),
            Err(error) => {
                hold.restore_by(sysfs, root, &record)?;
                Err(error)
            }
        }
    }

    /// Takes over a device that is bound already. If a run that was killed had taken it, it is given back when this goes, as it would have
    /// been then; one that was left there on purpose stays.
    ///
    /// # Errors
    /// As for [`Journal::hold`] and [`Journal::record`].
    pub fn adopt(root: &Path, device: Guid, journal: Journal) -> Result<Self, BindError> {
        let hold = journal.hold(device)?;
        let record = hold.record()?.filter(|record| !record.kept);
        Ok(Self { root: root.to_owned(), record, hold })
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
            self.hold.write(&Record { kept: true, ..record.clone() })?;
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
        self.hold.restore_by(sysfs, &self.root, &record).map(drop)
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        if let Err(error) = self.restore_by(&mut Kernel) {
            tracing::warn!(%error, "a device was not given back; `netvsc bind --kernel` tries again");
        }
    }
}

impl Hold {
    /// Makes the device what `record`, which is one of it, says, and strikes the record from the journal if it is there. Returns the
    /// writes that were made.
    ///
    /// # Errors
    /// As for [`Binding::to`].
    pub fn restore(&self, root: &Path, record: &Record) -> Result<Vec<Change>, BindError> {
        self.restore_by(&mut Kernel, root, record)
    }

    pub(super) fn restore_by(
        &self,
        sysfs: &mut dyn Sysfs,
        root: &Path,
        record: &Record,
    ) -> Result<Vec<Change>, BindError> {
        let changes = record.changes_back(root);
        // A device that the host has taken away meanwhile needs nothing any more.
        if device_folder(root, &record.device.to_string()).is_dir() {
            apply(sysfs, &changes)?;
            check(root, record.device, record.driver.as_deref())?;
        }
        self.strike()?;
        Ok(changes)
    }
}

/// What became of a device that the journal had.
#[derive(Debug)]
pub struct Restored {
    /// How it was before it was taken.
    pub record: Record,
    /// The writes that made it so again. After an error the record stays in the journal.
    pub outcome: Result<Vec<Change>, BindError>,
}

/// Gives back whatever the journal has and nobody drives, as far as that is possible, and returns what became of each.
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
        let outcome = journal.hold(record.device).and_then(|hold| match hold.record()? {
            Some(record) => hold.restore_by(sysfs, root, &record),
            // Somebody else has, meanwhile.
            None => Ok(Vec::new()),
        });
        Restored { record, outcome }
    };
    Ok(journal.records()?.into_iter().map(&mut give).collect())
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

pub(super) fn driver_of(folder: &Path) -> Option<String> {
    fs::read_link(folder.join("driver")).ok()?.file_name()?.to_str().map(str::to_owned)
}

/// The first line of an attribute, without its end.
pub(super) fn read_line(path: &Path) -> Result<String, UioError> {
    let text = read_bounded(path).map_err(UioError::file(path))?;
    Ok(text.lines().next().unwrap_or_default().trim_end().to_owned())
}

pub(super) fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    File::open(path)?.take(LINE).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
