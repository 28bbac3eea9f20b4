//! What the kernel log says about NICs and their VFs.
//!
//! Two forms are read: the records of `/dev/kmsg` with their dictionaries, which carry a device's GUID even before it has
//! a name, and the lines of a saved `dmesg`. Only records of the kernel itself count; anyone privileged can write others.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use vmbus::{Guid, Serial};

use super::model::PciAddress;
use super::tree::{Tree, read_all};

/// Longest saved log, in bytes.
const LOG_LIMIT: usize = 16 << 20;
/// How many records are read from the running kernel, whose buffer is bounded as well.
const RECORD_LIMIT: usize = 1 << 18;
/// Longest record of `/dev/kmsg`, in bytes.
const RECORD_SIZE: usize = 8192;

/// Whom a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A VMBus device.
    Vmbus(Guid),
    /// A PCI function.
    Pci(PciAddress),
    /// Nobody that the line names.
    Nobody,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEvent {
    /// The host associated the NIC with a serial.
    Associated(Serial),
    /// The host dissociated it.
    Dissociated(Serial),
    /// The driver found a VF of this name for the NIC.
    Registering(String),
    /// The function's interface joined the NIC of this name.
    Joined(String),
    /// The VF of this name leaves the NIC.
    Unregistering(String),
    /// The host confirmed: frames go through the VF.
    SwitchedToVf,
    /// The host confirmed: frames go the synthetic way.
    SwitchedFromVf,
    /// The switch could not be asked for.
    SwitchFailed,
    /// The driver waits for the association, holding the lock of all network configuration.
    WaitsForAssociation,
    /// The device has no slot directory: normal for an emulated NIC.
    NoSlot,
    /// The slot's name is no number.
    InvalidSerial(String),
    /// No NIC has this serial.
    NoNicFor(Serial),
    /// The VF could not join its NIC, for this reason. The kernel does not try again.
    JoinFailed(String),
    /// The VF joined and cannot be used as wanted, for this reason.
    Unusable(String),
    /// The VF could not follow its NIC into another network namespace.
    NamespaceFailed,
    /// The VF moved along.
    NamespaceMoved,
    /// The guest is isolated from its host and offers no SR-IOV.
    Isolated,
    /// The domain that the GUID asks for was taken.
    DomainCollision,
    /// The slot of this number could not be made.
    SlotFailed(String),
}

/// A line that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Time since boot, without the time that the machine slept.
    pub at: Duration,
    /// Whom it is about.
    pub subject: Subject,
    /// What it says.
    pub event: LogEvent,
    /// Its words.
    pub text: String,
}

/// The part of the log that matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelLog {
    /// Whether there was one to read.
    pub read: bool,
    /// Whether it goes back to the boot: only then does silence say something.
    pub complete: bool,
    /// How often records were overwritten before they were read.
    pub lost: u64,
    /// Whether the kernel said that it was suspended or hibernated, during which its clock stood still.
    pub slept: bool,
    /// When the newest record was written, whatever it is about.
    pub newest: Option<Duration>,
    /// The lines that were understood, oldest first.
    pub lines: Vec<LogLine>,
}

impl KernelLog {
    /// The lines about one NIC, oldest first.
    pub fn about(&self, subject: Subject) -> impl DoubleEndedIterator<Item = &LogLine> {
        self.lines.iter().filter(move |line| line.subject == subject)
    }

    /// The newest word of the host about a NIC's association, and when it came.
    #[must_use]
    pub fn association(&self, nic: Guid) -> Option<(Option<Serial>, Duration)> {
        self.about(Subject::Vmbus(nic)).rev().find_map(|line| match line.event {
            LogEvent::Associated(serial) => Some((Some(serial), line.at)),
            LogEvent::Dissociated(_) => Some((None, line.at)),
            _ => None,
        })
    }

    /// Whether the newest confirmed switch of a NIC went to the VF, and when.
    #[must_use]
    pub fn switched_to_vf(&self, nic: Guid) -> Option<(bool, Duration)> {
        self.about(Subject::Vmbus(nic)).rev().find_map(|line| match line.event {
            LogEvent::SwitchedToVf => Some((true, line.at)),
            LogEvent::SwitchedFromVf | LogEvent::Unregistering(_) => Some((false, line.at)),
            _ => None,
        })
    }

    /// Whether the kernel said that the host does not get to give this guest VFs.
    #[must_use]
    pub fn isolated(&self) -> bool {
        self.lines.iter().any(|line| line.event == LogEvent::Isolated)
    }

    /// Reads the log below a root.
    pub(super) fn read(tree: &mut Tree) -> Self {
        const PATH: &str = "dev/kmsg";
        let fd = match tree.file(PATH) {
            Ok(fd) => fd,
            Err(Errno::ACCESS | Errno::PERM) => {
                tree.note(format!("/{PATH}"), "permission denied; it needs CAP_SYSLOG");
                return Self::default();
            }
            Err(Errno::NOENT) => return Self::default(),
            Err(error) => {
                tree.note(format!("/{PATH}"), std::io::Error::from(error).to_string());
                return Self::default();
            }
        };
        let device = rustix::fs::fstat(&fd)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice);
        let mut reader = Reader::new();
        let outcome = if device {
            reader.records(fd.as_fd())
        } else {
            read_all(fd.as_fd(), LOG_LIMIT).map(|bytes| {
                if bytes.len() > LOG_LIMIT {
                    tree.note(format!("/{PATH}"), format!("only {LOG_LIMIT} bytes were read"));
                }
                reader.text(&String::from_utf8_lossy(&bytes));
            })
        };
        match outcome {
            Ok(()) => reader.log.read = true,
            Err(Errno::PERM | Errno::ACCESS) => {
                tree.note(format!("/{PATH}"), "permission denied; it needs CAP_SYSLOG");
            }
            Err(error) => {
                tree.note(format!("/{PATH}"), std::io::Error::from(error).to_string());
            }
        }
        reader.finish()
    }
}

/// The kernel log cannot be read, for this reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LogUnreadable(pub String);

/// The log of the running kernel as it grows.
#[derive(Debug)]
pub struct LogStream {
    fd: OwnedFd,
    reader: Reader,
}

impl LogStream {
    /// Opens it, at its oldest record.
    ///
    /// # Errors
    /// [`LogUnreadable`], above all without CAP_SYSLOG.
    pub fn open() -> Result<Self, LogUnreadable> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open("/dev/kmsg", flags, Mode::empty()).map_err(unreadable)?;
        Ok(Self { fd, reader: Reader::new() })
    }

    /// Everything that the kernel still knows. To be called once, first.
    pub fn so_far(&mut self) -> KernelLog {
        let read = self.reader.records(self.fd.as_fd()).is_ok();
        self.reader.flush();
        let log = std::mem::take(&mut self.reader.log);
        KernelLog { read, complete: log.complete && read && log.lost == 0, ..log }
    }

    /// The lines since then that were understood, and how many times records were overwritten before they were read.
    ///
    /// # Errors
    /// [`LogUnreadable`] if it cannot be read any more.
    pub fn poll(&mut self) -> Result<(Vec<LogLine>, u64), LogUnreadable> {
        self.reader.records(self.fd.as_fd()).map_err(unreadable)?;
        self.reader.flush();
        let log = std::mem::take(&mut self.reader.log);
        Ok((log.lines, log.lost))
    }
}

impl AsFd for LogStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn unreadable(error: Errno) -> LogUnreadable {
    LogUnreadable(match error {
        Errno::PERM | Errno::ACCESS => "permission denied; it needs CAP_SYSLOG".into(),
        error => std::io::Error::from(error).to_string(),
    })
}

/// Puts records together.
#[derive(Debug)]
struct Reader {
    log: KernelLog,
    first: bool,
    /// A line that still waits for its dictionary.
    pending: Option<(Duration, String, Subject)>,
}

impl Reader {
    fn new() -> Self {
        Self { log: KernelLog::default(), first: true, pending: None }
    }

    /// Everything that the kernel's buffer holds now.
    fn records(&mut self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut buffer = vec![0; RECORD_SIZE];
        for _ in 0..RECORD_LIMIT {
            match rustix::io::read(fd, &mut *buffer) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(length) => self.text(&String::from_utf8_lossy(&buffer[..length])),
                Err(Errno::PIPE) => self.log.lost += 1,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn text(&mut self, text: &str) {
        for line in text.lines() {
            match line.strip_prefix(' ') {
                Some(entry) => self.dictionary(entry),
                None => self.line(line),
            }
        }
    }

    fn dictionary(&mut self, entry: &str) {
        let Some((.., subject)) = &mut self.pending else { return };
        if let Some(device) = entry.strip_prefix("DEVICE=+") {
            *subject = match device.split_once(':') {
                Some(("vmbus", guid)) => guid.parse().map_or(*subject, Subject::Vmbus),
                Some(("pci", address)) => PciAddress::parse(address).map_or(*subject, Subject::Pci),
                _ => *subject,
            };
        }
    }

    fn line(&mut self, line: &str) {
        self.flush();
        let Some(head) = Head::parse(line) else { return };
        if self.first {
            self.first = false;
            self.log.complete = head.sequence.map_or(head.at.is_zero(), |number| number == 0);
        }
        self.log.newest = self.log.newest.max(Some(head.at));
        self.log.slept |= head.kernel && sleeps(head.text);
        if head.kernel {
            self.pending = Some((head.at, head.text.to_owned(), subject(head.text)));
        }
    }

    fn flush(&mut self) {
        let Some((at, text, subject)) = self.pending.take() else { return };
        let said = text.split_once(": ").map_or(text.as_str(), |(_, said)| said);
        if let Some(event) = event(said).or_else(|| event(&text)) {
            self.log.lines.push(LogLine { at, subject, event, text });
        }
    }

    fn finish(mut self) -> KernelLog {
        self.flush();
        self.log.complete &= self.log.read && self.log.lost == 0;
        self.log
    }
}

/// Whether the kernel goes to sleep or comes out of it (`kernel/power`: "PM: suspend entry", "PM: hibernation: hibernation exit").
fn sleeps(text: &str) -> bool {
    text.strip_prefix("PM: ").is_some_and(|said| {
        ["suspend", "hibernation"]
            .iter()
            .any(|how| ["entry", "exit"].iter().any(|end| said.contains(&format!("{how} {end}"))))
    })
}

struct Head<'a> {
    at: Duration,
    sequence: Option<u64>,
    kernel: bool,
    text: &'a str,
}

impl<'a> Head<'a> {
    /// Reads `6,701,2130455,-;text` or `[    2.130455] text`.
    fn parse(line: &'a str) -> Option<Self> {
        if let Some(rest) = line.strip_prefix('[') {
            let (stamp, text) = rest.split_once("] ")?;
            let (seconds, fraction) = stamp.trim().split_once('.')?;
            let micros: u32 = fraction.get(..6)?.parse().ok()?;
            let seconds = Duration::from_secs(seconds.parse().ok()?);
            let at = seconds.checked_add(Duration::from_micros(micros.into()))?;
            return Some(Self { at, sequence: None, kernel: true, text });
        }
        let (head, text) = line.split_once(';')?;
        let mut fields = head.split(',');
        let priority: u32 = fields.next()?.parse().ok()?;
        let sequence = fields.next()?.parse().ok()?;
        let at = Duration::from_micros(fields.next()?.parse().ok()?);
        // The low three bits are the urgency, the rest says who wrote it; 0 is the kernel.
        Some(Self { at, sequence: Some(sequence), kernel: priority >> 3 == 0, text })
    }
}

/// Whom the words before the colon name.
fn subject(text: &str) -> Subject {
    let prefix = text.split_once(": ").map_or(text, |(prefix, _)| prefix);
    prefix
        .split_whitespace()
        .find_map(|word| {
            let guid = || word.parse().ok().filter(|_| word.len() == 36).map(Subject::Vmbus);
            PciAddress::parse(word).map(Subject::Pci).or_else(guid)
        })
        .unwrap_or(Subject::Nobody)
}

/// What the words after the colon say.
fn event(said: &str) -> Option<LogEvent> {
    slot_event(said).or_else(|| pair_event(said)).or_else(|| trouble(said))
}

fn slot_event(said: &str) -> Option<LogEvent> {
    if let Some(rest) = said.strip_prefix("VF slot ") {
        let (number, word) = rest.split_once(' ')?;
        let serial = Serial(number.parse().ok()?);
        return match word {
            "added" => Some(LogEvent::Associated(serial)),
            "removed" => Some(LogEvent::Dissociated(serial)),
            _ => None,
        };
    }
    if let Some(rest) = said.strip_prefix("Invalid vf serial:") {
        return Some(LogEvent::InvalidSerial(rest.trim().to_owned()));
    }
    if let Some(rest) = said.strip_prefix("no netdev found for vf serial:") {
        return Some(LogEvent::NoNicFor(Serial(rest.trim().parse().ok()?)));
    }
    let slot = said.strip_prefix("pci_create slot ")?.strip_suffix(" failed")?;
    Some(LogEvent::SlotFailed(slot.to_owned()))
}

fn pair_event(said: &str) -> Option<LogEvent> {
    let name = |prefix| said.strip_prefix(prefix).map(|name| name.trim().to_owned());
    if let Some(name) = name("VF registering: ") {
        return Some(LogEvent::Registering(name));
    }
    if let Some(name) = name("VF unregistering: ") {
        return Some(LogEvent::Unregistering(name));
    }
    if let Some(name) = name("joined to ") {
        return Some(LogEvent::Joined(name));
    }
    let path = said.strip_prefix("Data path ")?;
    if path.starts_with("switched to VF") {
        Some(LogEvent::SwitchedToVf)
    } else if path.starts_with("switched from VF") {
        Some(LogEvent::SwitchedFromVf)
    } else if path.starts_with("failed to switch") {
        Some(LogEvent::SwitchFailed)
    } else {
        None
    }
}

/// Makes an event of a line that begins as expected.
type Make = fn(&str) -> LogEvent;

/// What goes wrong, by the beginning of the line.
const TROUBLES: [(&str, Make); 10] = [
    ("Waiting for the VF association", |_| LogEvent::WaitsForAssociation),
    ("no PCI slot information", |_| LogEvent::NoSlot),
    ("can not register netvsc VF", |text| LogEvent::JoinFailed(text.to_owned())),
    ("can not set master device", |text| LogEvent::JoinFailed(text.to_owned())),
    ("unable to change mtu", |text| LogEvent::Unusable(text.to_owned())),
    ("unable to open", |text| LogEvent::Unusable(text.to_owned())),
    ("could not move to same namespace", |_| LogEvent::NamespaceFailed),
    ("VF moved to namespace", |_| LogEvent::NamespaceMoved),
    ("Moved VF to namespace", |_| LogEvent::NamespaceMoved),
    ("SR-IOV not advertised by guests on the host", |_| LogEvent::Isolated),
];

fn trouble(said: &str) -> Option<LogEvent> {
    if let Some((_, make)) = TROUBLES.iter().find(|(start, _)| said.starts_with(start)) {
        return Some(make(said));
    }
    let collision = said.starts_with("PCI dom# ") && said.contains("has collision");
    collision.then_some(LogEvent::DomainCollision)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> KernelLog {
        let mut reader = Reader::new();
        reader.text(text);
        reader.log.read = true;
        reader.finish()
    }

    const NIC: &str = "7c1e5225-55d2-7c1e-5225-55d27c1e5225";

    #[test]
    fn the_dictionary_names_a_nic_that_has_no_name_yet() {
        let log = read(&format!(
            "6,701,2130455,-;hv_netvsc (unnamed net_device) (uninitialized): VF slot 1 added\n \
             SUBSYSTEM=vmbus\n DEVICE=+vmbus:{NIC}\n6,702,2130456,-;other"
        ));
        let nic: Guid = NIC.parse().unwrap();
        let at = Duration::from_micros(2_130_455);
        assert_eq!(log.association(nic), Some((Some(Serial(1)), at)));
        assert!(!log.complete, "the first record is not number 0");
    }

    #[test]
    fn a_saved_log_is_read_by_its_prefix() {
        let log = read(&format!(
            "[    0.000000] Linux version\n[    6.120001] hv_netvsc {NIC} eth0: VF slot 3 added\n\
             [    6.301220] hv_netvsc {NIC} eth0: Data path switched to VF: enP1s3\n\
             [    7.000000] mlx5_core 927a:00:02.0 eth3: joined to eth0\n\
             [    8.000000] hv_netvsc {NIC} eth0: VF slot 3 removed\n"
        ));
        let nic: Guid = NIC.parse().unwrap();
        assert!(log.complete);
        assert_eq!(log.association(nic).map(|(serial, _)| serial), Some(None));
        assert_eq!(log.switched_to_vf(nic).map(|(vf, _)| vf), Some(true));
        let function = Subject::Pci(PciAddress::parse("927a:00:02.0").unwrap());
        let joined = log.about(function).next().unwrap();
        assert_eq!(joined.event, LogEvent::Joined("eth0".into()));
    }

    #[test]
    fn what_user_space_wrote_into_the_log_does_not_count() {
        let log = read(&format!("14,0,5,-;hv_netvsc {NIC} eth0: VF slot 1 added"));
        assert!(log.lines.is_empty() && log.complete);
    }

    #[test]
    fn every_line_of_the_reference_is_understood() {
        for (said, expected) in [
            ("VF registering: eth3", LogEvent::Registering("eth3".into())),
            ("VF unregistering: eth3", LogEvent::Unregistering("eth3".into())),
            ("Data path switched from VF: eth3", LogEvent::SwitchedFromVf),
            ("Data path failed to switch to VF: eth3, err: -5", LogEvent::SwitchFailed),
            ("Waiting for the VF association from host", LogEvent::WaitsForAssociation),
            ("no PCI slot information", LogEvent::NoSlot),
            ("Invalid vf serial:1-1", LogEvent::InvalidSerial("1-1".into())),
            ("no netdev found for vf serial:4294967295", LogEvent::NoNicFor(Serial(u32::MAX))),
            ("could not move to same namespace as netdev", LogEvent::NamespaceFailed),
            ("pci_create slot 7 failed", LogEvent::SlotFailed("7".into())),
            ("PCI dom# 0x1 has collision, using 0x2", LogEvent::DomainCollision),
        ] {
            assert_eq!(event(said), Some(expected), "{said}");
        }
        assert!(matches!(event("unable to open: -5"), Some(LogEvent::Unusable(_))));
        assert!(matches!(
            event("can not set master device eth0 (err = -16)"),
            Some(LogEvent::JoinFailed(_))
        ));
    }

    #[test]
    fn nonsense_is_no_line() {
        for line in ["", ";", "[", "[x] y", "6,x,y;z", "[99999999999999999999.0] a", "VF slot"] {
            assert!(read(line).lines.is_empty(), "{line}");
        }
        assert_eq!(event("VF slot 4294967296 added"), None);
        assert_eq!(event("VF slot 1 eaten"), None);
    }
}
