//! What an interface's settings were before it was hushed, written down so that what a run left behind that was killed can be undone: by
//! the next one over the same interface, or by `netvsc bind --restore`.
//!
//! A record is a file of its own, named after network namespace and interface. It goes with the boot, as the settings do, and is locked by
//! whoever has the interface hushed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use netvsc_linux::vf::NetworkNamespace;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use super::SETTINGS;

/// Where records are, below the root.
const FOLDER: &str = "run/netvsc/hush";
/// Longest record that is believed, in bytes.
const LONGEST: u64 = 4096;
/// Records that are looked at.
const MOST: usize = 1024;
/// Longest value of a setting, all of which are small numbers.
const DIGITS: usize = 4;

/// Why a record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    /// It cannot be understood.
    #[error("{}, line {line}: expected `{expected}`; take the file away", path.display())]
    Text {
        /// The record.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// How it should be.
        expected: &'static str,
    },
    /// The operating system says no.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError::File { path, source }
}

/// An interface, and what each of its settings was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    boot: String,
    namespace: NetworkNamespace,
    /// The interface's number, which outlives its names.
    pub(super) index: u32,
    pub(super) before: [Option<String>; SETTINGS.len()],
}

impl Record {
    /// Of an interface here and now.
    pub(super) fn new(
        index: u32,
        before: [Option<String>; SETTINGS.len()],
    ) -> Result<Self, RecordError> {
        const BOOT: &str = "/proc/sys/kernel/random/boot_id";
        let boot = fs::read_to_string(BOOT).map_err(file(Path::new(BOOT)))?.trim().to_owned();
        let own = NetworkNamespace::own();
        let namespace = own.map_err(file(Path::new("/proc/thread-self/ns/net")))?;
        Ok(Self { boot, namespace, index, before })
    }

    /// Whether it is of an interface of this boot and this namespace.
    fn is_of(&self, here: &Self) -> bool {
        self.boot == here.boot && self.namespace == here.namespace
    }

    /// Whether its boot, or its namespace, is over: another has the number of the namespace now.
    fn can_never_be(&self, here: &Self) -> bool {
        self.boot != here.boot || self.namespace.inode == here.namespace.inode
    }

    fn name(&self) -> String {
        format!("{}-{}", self.namespace.inode, self.index)
    }

    fn to_text(&self) -> String {
        let NetworkNamespace { inode, cookie } = self.namespace;
        let cookie = cookie.map_or_else(|| "-".to_owned(), |cookie| cookie.to_string());
        let mut text =
            format!("boot {}\nnamespace {inode} {cookie}\nindex {}\n", self.boot, self.index);
        for ((family, setting, _), before) in SETTINGS.iter().zip(&self.before) {
            if let Some(before) = before {
                text.push_str(&format!("{family}/{setting} {before}\n"));
            }
        }
        text
    }

    fn from_text(path: &Path, text: &str) -> Result<Self, RecordError> {
        let mut lines = text.lines().zip(1..).peekable();
        let wrong = |line, expected| RecordError::Text { path: path.to_owned(), line, expected };
        let mut next = |word: &str, expected| {
            let (text, line) = lines.next().ok_or_else(|| wrong(1, expected))?;
            let value = text.strip_prefix(word).and_then(|rest| rest.strip_prefix(' '));
            value.map(|value| (value, line)).ok_or_else(|| wrong(line, expected))
        };
        let (boot, _) = next("boot", "boot ID")?;
        const NAMESPACE: &str = "namespace INODE COOKIE";
        let (namespace, line) = next("namespace", NAMESPACE)?;
        let parts = namespace.split_once(' ').and_then(|(inode, cookie)| {
            let cookie = if cookie == "-" { None } else { Some(cookie.parse().ok()?) };
            Some(NetworkNamespace { inode: inode.parse().ok()?, cookie })
        });
        let namespace = parts.ok_or_else(|| wrong(line, NAMESPACE))?;
        let (index, line) = next("index", "index NUMBER")?;
        let index = index.parse().map_err(|_| wrong(line, "index NUMBER"))?;
        let mut before = SETTINGS.map(|_| None);
        for (text, line) in lines {
            // What is written back has to be what such a setting can be.
            let small = |value: &str| {
                (1..=DIGITS).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit())
            };
            let place = SETTINGS.iter().zip(&mut before).find_map(|((family, setting, _), at)| {
                let rest = text.strip_prefix(family)?.strip_prefix('/')?.strip_prefix(setting)?;
                let value = rest.strip_prefix(' ').filter(|value| small(value))?;
                Some((at, value))
            });
            let (at, value) = place.ok_or_else(|| wrong(line, "FAMILY/SETTING NUMBER"))?;
            *at = Some(value.to_owned());
        }
        Ok(Self { boot: boot.to_owned(), namespace, index, before })
    }
}

/// A record that is there, and is nobody else's as long as this is.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) record: Record,
    path: PathBuf,
    _lock: File,
}

impl Entry {
    /// What it says is done.
    pub(super) fn strike(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "a record that stays");
        }
    }
}

/// Where records are kept.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    folder: PathBuf,
}

impl Journal {
    /// Below this root. The folder is made when it is needed.
    pub(super) fn new(root: &Path) -> Self {
        Self { folder: root.join(FOLDER) }
    }

    /// The record that a run left behind of the interface with this number; `None` if there is none, or it is still somebody's.
    pub(super) fn find(&self, index: u32) -> Result<Option<Entry>, RecordError> {
        let here = Record::new(index, Default::default())?;
        let entry = self.open(&self.folder.join(here.name()))?;
        // One of another boot, or of a namespace that is gone, is written over.
        Ok(entry.filter(|entry| entry.record.is_of(&here) && entry.record.index == index))
    }

    /// All of those in this network namespace, in the order of the interfaces, and those that nobody can read. Records of what is gone for
    /// good are struck.
    pub(super) fn left_behind(&self) -> Result<Vec<Result<Entry, RecordError>>, RecordError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(file(&self.folder)(error)),
        };
        let here = Record::new(0, Default::default())?;
        let mut left = Vec::new();
        for entry in entries.take(MOST) {
            let path = entry.map_err(file(&self.folder))?.path();
            // A draft is a record of which nothing was done yet.
            if path.extension().is_some() {
                continue;
            }
            match self.open(&path) {
                Ok(None) => {}
                Ok(Some(entry)) if entry.record.is_of(&here) => left.push(Ok(entry)),
                Ok(Some(entry)) if entry.record.can_never_be(&here) => entry.strike(),
                Ok(Some(_)) => {}
                Err(error) => left.push(Err(error)),
            }
        }
        left.sort_by_key(|entry| entry.as_ref().ok().map(|entry| entry.record.index));
        Ok(left)
    }

    /// Writes a record down, in the place of one that is there.
    pub(super) fn write(&self, record: Record) -> Result<Entry, RecordError> {
        fs::create_dir_all(&self.folder).map_err(file(&self.folder))?;
        let path = self.folder.join(record.name());
        let draft = path.with_extension("new");
        // Whoever may open it can lock it: only this user. A draft of a run that was killed goes.
        let _ = fs::remove_file(&draft);
        let mut options = OpenOptions::new();
        let created = options.write(true).create_new(true).mode(0o600).open(&draft);
        let written = created.and_then(|mut lock| {
            // Before it has its name, so that nobody takes it for one that was left behind.
            flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            lock.write_all(record.to_text().as_bytes())?;
            lock.sync_all()?;
            Ok(lock)
        });
        let lock = written.map_err(file(&draft))?;
        fs::rename(&draft, &path).map_err(file(&path))?;
        Ok(Entry { record, path, _lock: lock })
    }

    /// A record, if it is there and nobody has it.
    fn open(&self, path: &Path) -> Result<Option<Entry>, RecordError> {
        // No link is followed, and nobody is waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let lock = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(lock) => File::from(lock),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(file(path)(error.into())),
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(file(path)(error.into())),
        }
        // Somebody may have put another in its place, or struck it, before it was locked.
        let of = |data: fs::Metadata| (data.dev(), data.ino());
        let locked = lock.metadata().map(of).map_err(file(path))?;
        if fs::symlink_metadata(path).map(of).ok() != Some(locked) {
            return Ok(None);
        }
        let mut text = Vec::new();
        (&lock).take(LONGEST).read_to_end(&mut text).map_err(file(path))?;
        let record = Record::from_text(path, &String::from_utf8_lossy(&text))?;
        Ok(Some(Entry { record, path: path.to_owned(), _lock: lock }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::in_namespace;

    fn record() -> Record {
        let namespace = NetworkNamespace { inode: 4_026_531_840, cookie: Some(7) };
        let before = [Some("0".to_owned()), None];
        Record { boot: "8a6c".to_owned(), namespace, index: 5, before }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let path = Path::new("record");
        let old = NetworkNamespace { inode: 9, cookie: None };
        for record in [
            record(),
            Record { before: [Some("2".to_owned()), Some("0".to_owned())], ..record() },
            Record { namespace: old, before: [None, None], ..record() },
        ] {
            assert_eq!(Record::from_text(path, &record.to_text()).unwrap(), record);
        }
        assert_eq!(
            record().to_text(),
            "boot 8a6c\nnamespace 4026531840 7\nindex 5\nipv6/disable_ipv6 0\n"
        );
    }

    #[test]
    fn nothing_but_a_record_is_believed() {
        let good = record().to_text();
        for (from, to, at) in [
            ("boot 8a6c", "boat 8a6c", 1),
            ("4026531840 7", "4026531840", 2),
            ("4026531840 7", "4026531840 x", 2),
            ("index 5", "index -5", 3),
            ("ipv6/disable_ipv6 0", "ipv6/disable_ipv6 00000", 4),
            ("ipv6/disable_ipv6 0", "ipv6/disable_ipv6 0;1", 4),
            ("ipv6/disable_ipv6 0", "ipv6/forwarding 1", 4),
            ("ipv6/disable_ipv6 0", "ipv6/../../kernel/panic 1", 4),
        ] {
            let text = good.replace(from, to);
            assert_ne!(text, good);
            match Record::from_text(Path::new("record"), &text).unwrap_err() {
                RecordError::Text { line, .. } => assert_eq!(line, at, "{text}"),
                other => panic!("{other}"),
            }
        }
        assert!(Record::from_text(Path::new("record"), "").is_err());
    }

    /// In a process of its own: one that is just being started by another test has the locks of this one for a moment, too.
    #[test]
    fn records_of_others_are_left_and_those_of_the_dead_struck() {
        const NAME: &str =
            "remote::hush::record::tests::records_of_others_are_left_and_those_of_the_dead_struck";
        in_namespace(NAME, || {
            let root = tempfile::tempdir().unwrap();
            let journal = Journal::new(root.path());
            assert_eq!(journal.left_behind().unwrap().len(), 0);
            let own = Record::new(5, [Some("0".to_owned()), None]).unwrap();
            let other = |inode: u64, cookie: u64, boot: &str| Record {
                boot: boot.to_owned(),
                namespace: NetworkNamespace { inode, cookie: Some(cookie) },
                index: 6,
                ..own.clone()
            };
            let inode = own.namespace.inode;
            let elsewhere = other(1, 1, &own.boot);
            for record in
                [&own, &elsewhere, &other(inode, u64::MAX, &own.boot), &other(2, 1, "older")]
            {
                drop(journal.write(record.clone()).unwrap());
            }
            let left = journal.left_behind().unwrap();
            let left: Vec<_> = left.into_iter().map(Result::unwrap).collect();
            assert_eq!(left.iter().map(|entry| &entry.record).collect::<Vec<_>>(), [&own]);
            let names = || {
                let entries = fs::read_dir(root.path().join(FOLDER)).unwrap().flatten();
                let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
                names.sort();
                names
            };
            assert_eq!(names(), [elsewhere.name().as_str(), own.name().as_str()]);
            // It is somebody's now.
            assert!(journal.find(5).unwrap().is_none());
            drop(left);
            let found = journal.find(5).unwrap().expect("nobody's");
            assert!(journal.left_behind().unwrap().is_empty());
            found.strike();
            assert_eq!(names(), [elsewhere.name().as_str()]);
            assert!(journal.find(5).unwrap().is_none());
        });
    }

    #[test]
    fn a_record_is_its_users_and_a_link_is_none() {
        use std::os::unix::fs::PermissionsExt;
        in_namespace(
            "remote::hush::record::tests::a_record_is_its_users_and_a_link_is_none",
            || {
                let root = tempfile::tempdir().unwrap();
                let journal = Journal::new(root.path());
                let own = Record::new(5, [Some("0".to_owned()), None]).unwrap();
                let entry = journal.write(own.clone()).unwrap();
                let path = entry.path.clone();
                assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
                // In the place of one that is there.
                let entry = (entry, journal.write(own).unwrap()).1;
                drop(entry);
                let away = root.path().join("away");
                fs::rename(&path, &away).unwrap();
                std::os::unix::fs::symlink(&away, &path).unwrap();
                assert!(matches!(journal.find(5), Err(RecordError::File { .. })));
                let left = journal.left_behind().unwrap();
                assert!(matches!(&left[..], [Err(RecordError::File { .. })]), "{left:?}");
                let entry = journal.write(Record::new(5, Default::default()).unwrap()).unwrap();
                assert!(
                    fs::symlink_metadata(&entry.path).unwrap().is_file(),
                    "in the place of the link"
                );
                assert!(
                    fs::read_to_string(&away).unwrap().contains("disable_ipv6"),
                    "what it led to stays"
                );
            },
        );
    }
}
