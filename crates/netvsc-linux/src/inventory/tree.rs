//! Bounded reads below one root.
//!
//! Sysfs answers an attribute with ENOENT, EINVAL, EIO or ENODEV whenever it likes, and a tree that came from somebody
//! else holds anything. Nothing here fails because of that: what cannot be read is a note beside the snapshot.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, openat, openat2,
    readlinkat, statat,
};
use rustix::io::Errno;

use super::record::{Collection, Recorder};

/// Longest attribute that is read, in bytes. Sysfs gives a page at most.
pub(crate) const ATTRIBUTE_LIMIT: usize = 4096;
/// Longest file of another kind (udev database, routing tables, configuration), in bytes.
pub(crate) const FILE_LIMIT: usize = 1 << 20;
/// How many entries of one directory are looked at. A machine cannot have more NICs than that.
pub(crate) const ENTRY_LIMIT: usize = 65_536;
/// How many bytes of entries one call reads: a directory of sysfs in one.
const ENTRY_BUFFER: usize = 4096;
/// How many notes are kept. One more says how many there were.
const NOTE_LIMIT: usize = 256;
/// How often a path is resolved anew because somebody renamed parts of it meanwhile.
const RESOLVE_TRIES: usize = 8;

/// The root directory of a tree cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// It is not there, not a directory, or not ours to read.
    #[error("cannot use `{}` as the root of a guest: {source}; expected a directory that holds `sys`, `proc` and `run`", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The kernel cannot keep paths below the root.
    #[error("cannot keep paths below `{}`: {source}; this needs Linux 5.6 or later and a sandbox that permits openat2", path.display())]
    Confine {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// Something that is there and could not be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unreadable {
    /// Which file, as a path from the root.
    pub path: String,
    /// Why, in words.
    pub why: String,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.why)
    }
}

/// A directory that was opened once, and its path for notes.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    pub(crate) path: String,
    /// Where it really is, if that is written down.
    real: Option<String>,
}

/// The tree below one root.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    /// Whether links may not lead out of the root. The running system needs no such thing.
    confined: bool,
    notes: Vec<Unreadable>,
    noted: usize,
    /// How often something was opened or a link read.
    touched: Cell<u32>,
    /// Who writes down what is read.
    recorder: Option<RefCell<Recorder>>,
}

const READ: OFlags =
    OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::DIRECTORY);

impl Tree {
    /// The running system (`None`), or a tree below a directory, which no path and no link leaves.
    pub(crate) fn open(root: Option<&Path>) -> Result<Self, RootError> {
        let path = root.unwrap_or(Path::new("/"));
        let fd = openat(CWD, path, FOLDER, Mode::empty())
            .map_err(|error| RootError::Open { path: path.to_owned(), source: error.into() })?;
        let tree = Self {
            root: fd,
            confined: root.is_some(),
            notes: Vec::new(),
            noted: 0,
            touched: Cell::new(0),
            recorder: None,
        };
        match tree.resolve(".", FOLDER) {
            Ok(_) => Ok(tree),
            Err(error) => Err(RootError::Confine { path: path.to_owned(), source: error.into() }),
        }
    }

    /// From now on, has everything written down that is read.
    pub(crate) fn record(&mut self) {
        self.recorder = Some(RefCell::default());
    }

    /// What was written down.
    pub(crate) fn collection(&mut self) -> Collection {
        let recorder = self.recorder.take().unwrap_or_default();
        recorder.into_inner().into_collection()
    }

    /// Writes down something that did not come from a file, as if it had.
    pub(crate) fn keep(&self, path: &str, bytes: &[u8]) {
        if let Some(recorder) = &self.recorder {
            recorder.borrow_mut().file(path, bytes);
        }
    }

    /// Writes something down about a name in a folder.
    fn recorded(&self, folder: &Folder, name: &str, write: impl FnOnce(&mut Recorder, String)) {
        if let (Some(recorder), Some(real)) = (&self.recorder, &folder.real) {
            write(&mut recorder.borrow_mut(), format!("{real}/{name}"));
        }
    }

    /// Where a path really leads, if that is written down.
    fn real(&self, path: &str) -> Option<String> {
        let recorder = self.recorder.as_ref()?;
        let read_link = |at: &str| readlinkat(&self.root, at, Vec::new()).ok()?.into_string().ok();
        recorder.borrow_mut().real(path, read_link)
    }

    /// What could not be read, in the order of paths.
    pub(crate) fn take_notes(&mut self) -> Vec<Unreadable> {
        let mut notes = std::mem::take(&mut self.notes);
        notes.sort();
        notes.dedup();
        if self.noted > NOTE_LIMIT {
            let why = format!("{} more could not be read", self.noted - NOTE_LIMIT);
            notes.push(Unreadable { path: "...".into(), why });
        }
        notes
    }

    /// Adds a note that was taken when this tree was collected.
    pub(crate) fn note_again(&mut self, path: &str, why: &str) {
        let note = Unreadable { path: path.to_owned(), why: why.to_owned() };
        if !self.notes.contains(&note) {
            self.note(note.path, note.why);
        }
    }

    /// Remembers that a file could not be read or does not hold what it should.
    pub(crate) fn note(&mut self, path: String, why: impl Into<String>) {
        self.noted += 1;
        if self.notes.len() < NOTE_LIMIT {
            self.notes.push(Unreadable { path, why: why.into() });
        }
    }

    /// How many files, directories and links were touched so far.
    pub(crate) fn touched(&self) -> u32 {
        self.touched.get()
    }

    fn touch(&self) {
        self.touched.set(self.touched.get().saturating_add(1));
    }

    fn resolve(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.touch();
        if !self.confined {
            return openat(&self.root, path, flags, Mode::empty());
        }
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..RESOLVE_TRIES {
            match openat2(&self.root, path, flags, Mode::empty(), how) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens a file below the root for reading.
    pub(crate) fn file(&self, path: &str) -> Result<OwnedFd, Errno> {
        self.resolve(path, READ)
    }

    /// Opens a directory; links on the way are followed, as far as they stay below the root.
    pub(crate) fn folder(&mut self, path: &str) -> Option<Folder> {
        match self.resolve(path, FOLDER) {
            Ok(fd) => {
                let real = self.real(path);
                if let (Some(recorder), Some(real)) = (&self.recorder, &real) {
                    recorder.borrow_mut().folder(real);
                }
                Some(Folder { fd, path: format!("/{path}"), real })
            }
            Err(error) => {
                self.refused(format!("/{path}"), error);
                None
            }
        }
    }

    /// Opens a directory directly below another one, not through a link.
    pub(crate) fn below(&mut self, folder: &Folder, name: &str) -> Option<Folder> {
        let path = format!("{}/{name}", folder.path);
        self.touch();
        match openat(&folder.fd, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => {
                self.recorded(folder, name, |recorder, real| recorder.folder(&real));
                let real = folder.real.as_ref().map(|real| format!("{real}/{name}"));
                Some(Folder { fd, path, real })
            }
            Err(error) => {
                self.refused(path, error);
                None
            }
        }
    }

    /// Whether a path below the root leads to something.
    pub(crate) fn exists(&self, path: &str) -> bool {
        let there = self.resolve(path, OFlags::PATH | OFlags::CLOEXEC);
        if let Ok(fd) = &there {
            self.seen(path, fd);
        }
        there.is_ok()
    }

    /// Writes down that there is something.
    fn seen(&self, path: &str, fd: &OwnedFd) {
        let Some(real) = self.real(path) else { return };
        let Some(recorder) = &self.recorder else { return };
        let stat = rustix::fs::fstat(fd);
        match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Directory) => recorder.borrow_mut().folder(&real),
            Ok(_) => recorder.borrow_mut().seen(&real),
            Err(_) => {}
        }
    }

    /// Writes down that a name was listed.
    fn listed(&self, folder: &Folder, name: &str) {
        if folder.real.is_none() {
            return;
        }
        let stat = statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let Ok(stat) = stat else { return };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.recorded(folder, name, |recorder, real| recorder.folder(&real));
            }
            FileType::Symlink => {
                let target = readlinkat(&folder.fd, name, Vec::new()).ok();
                let target = target.and_then(|target| target.into_string().ok());
                if let Some(target) = target {
                    self.recorded(folder, name, |recorder, real| recorder.link(&real, &target));
                }
            }
            _ => self.recorded(folder, name, |recorder, real| recorder.seen(&real)),
        }
    }

    /// The names in a directory, sorted. Names that are no text are left out, with a note.
    pub(crate) fn names(&mut self, folder: &Folder) -> Vec<String> {
        let mut names = Vec::new();
        // Another look may have left the place to read from elsewhere.
        if let Err(error) = rustix::fs::seek(&folder.fd, SeekFrom::Start(0)) {
            self.refused(folder.path.clone(), error);
            return names;
        }
        let mut buffer = [MaybeUninit::uninit(); ENTRY_BUFFER];
        let mut entries = RawDir::new(&folder.fd, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.refused(folder.path.clone(), error);
                    break;
                }
            };
            if names.len() >= ENTRY_LIMIT {
                let why = format!("expected at most {ENTRY_LIMIT} entries; the rest was left out");
                self.note(folder.path.clone(), why);
                break;
            }
            match name_of(entry.file_name()) {
                Some("." | "..") => {}
                Some(name) => {
                    self.listed(folder, name);
                    names.push(name.to_owned());
                }
                None => self.note(folder.path.clone(), "holds a name that is not text"),
            }
        }
        names.sort_unstable();
        names
    }

    /// The names in a directory below the root; none if it is not there.
    pub(crate) fn names_at(&mut self, path: &str) -> Vec<String> {
        self.folder(path).map(|folder| self.names(&folder)).unwrap_or_default()
    }

    /// The names in a directory directly below another one.
    pub(crate) fn names_below(&mut self, folder: &Folder, name: &str) -> Vec<String> {
        self.below(folder, name).map(|folder| self.names(&folder)).unwrap_or_default()
    }

    /// Opens a file in a directory, or in one directly below it; no link is followed.
    fn open_in(&self, folder: &Folder, name: &str) -> Result<OwnedFd, Errno> {
        self.touch();
        let flags = READ | OFlags::NOFOLLOW;
        if self.confined && name.contains('/') {
            let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            return openat2(&folder.fd, name, flags, Mode::empty(), how);
        }
        openat(&folder.fd, name, flags, Mode::empty())
    }

    /// An attribute, without white space around it; of something directly below the directory, if there is a slash in
    /// its name. `None` if it is not there, or could not be read (then with a note).
    pub(crate) fn text(&mut self, folder: &Folder, name: &str) -> Option<String> {
        let fd = match self.open_in(folder, name) {
            Ok(fd) => fd,
            Err(error) => {
                self.recorded(folder, name, Recorder::refused);
                self.refused(format!("{}/{name}", folder.path), error);
                return None;
            }
        };
        let mut buffer = [0; ATTRIBUTE_LIMIT + 1];
        let read = read_some(fd.as_fd(), &mut buffer);
        match &read {
            Ok(length) => {
                let bytes = &buffer[..*length];
                self.recorded(folder, name, |recorder, real| recorder.file(&real, bytes));
            }
            Err(_) => self.recorded(folder, name, Recorder::refused),
        }
        match read {
            Ok(length) if length > ATTRIBUTE_LIMIT => {
                let why = format!("expected at most {ATTRIBUTE_LIMIT} bytes");
                self.note(format!("{}/{name}", folder.path), why);
                None
            }
            Ok(length) => self.as_text(&buffer[..length], || format!("{}/{name}", folder.path)),
            Err(error) => {
                self.refused(format!("{}/{name}", folder.path), error);
                None
            }
        }
    }

    fn as_text(&mut self, bytes: &[u8], path: impl FnOnce() -> String) -> Option<String> {
        match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => Some(text.trim().to_owned()),
            _ => {
                self.note(path(), "expected text, found binary data");
                None
            }
        }
    }

    /// An attribute that is to be read as something.
    pub(crate) fn parsed<T>(
        &mut self,
        folder: &Folder,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(folder, name)?;
        let value = parse(&text);
        if value.is_none() {
            let found: String = text.chars().take(40).flat_map(char::escape_default).collect();
            self.note(
                format!("{}/{name}", folder.path),
                format!("expected {expected}, found `{found}`"),
            );
        }
        value
    }

    /// A decimal or, with 0x before it, hexadecimal number.
    pub(crate) fn number(&mut self, folder: &Folder, name: &str) -> Option<u64> {
        self.parsed(folder, name, "a number", number)
    }

    /// A number of 32 bits.
    pub(crate) fn small(&mut self, folder: &Folder, name: &str) -> Option<u32> {
        self.parsed(folder, name, "a number of 32 bits", |text| number(text)?.try_into().ok())
    }

    /// The last part of what a link points to: the name of a driver, a bus, a device.
    pub(crate) fn link(&mut self, folder: &Folder, name: &str) -> Option<String> {
        let target = self.target(folder, name)?;
        let last = target.rsplit('/').next()?;
        (!last.is_empty() && last != "." && last != "..").then(|| last.to_owned())
    }

    /// What a link points to, as it stands there.
    pub(crate) fn target(&mut self, folder: &Folder, name: &str) -> Option<String> {
        self.touch();
        match readlinkat(&folder.fd, name, Vec::new()) {
            Ok(target) => {
                let target = target.into_string().ok()?;
                self.recorded(folder, name, |recorder, real| recorder.link(&real, &target));
                Some(target)
            }
            // There, but not a link.
            Err(Errno::INVAL) => {
                self.note(format!("{}/{name}", folder.path), "expected a link");
                None
            }
            Err(error) => {
                self.refused(format!("{}/{name}", folder.path), error);
                None
            }
        }
    }

    /// Writes to a file that is there, in one go.
    pub(crate) fn put(&self, path: &str, bytes: &[u8]) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = self.resolve(path, flags)?;
        match rustix::io::retry_on_intr(|| rustix::io::write(&fd, bytes))? {
            length if length == bytes.len() => Ok(()),
            _ => Err(Errno::IO),
        }
    }

    /// Makes a file, or puts another one in its place in one step; folders that are missing are made.
    pub(crate) fn replace(&self, path: &str, bytes: &[u8]) -> Result<(), Errno> {
        let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
        let mut at = String::new();
        let mut fd = self.resolve(".", FOLDER)?;
        for part in folder.split('/').filter(|part| !part.is_empty() && *part != ".") {
            at = if at.is_empty() { part.to_owned() } else { format!("{at}/{part}") };
            fd = match self.resolve(&at, FOLDER) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&fd, part, Mode::from_raw_mode(0o755))?;
                    self.resolve(&at, FOLDER)?
                }
                other => other?,
            };
        }
        let fresh = format!(".{name}.netvsc");
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(&fd, fresh.as_str(), flags, Mode::from_raw_mode(0o644))?;
        let written = (|| {
            let mut rest = bytes;
            while !rest.is_empty() {
                let length = rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?;
                rest = &rest[length.min(rest.len())..];
            }
            rustix::fs::fsync(&file)?;
            rustix::fs::renameat(&fd, fresh.as_str(), &fd, name)
        })();
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&fd, fresh.as_str(), rustix::fs::AtFlags::empty());
        }
        written
    }

    /// Whether a path below the root leads to a directory.
    pub(crate) fn is_folder(&self, path: &str) -> bool {
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
        let there = self.resolve(path, flags);
        if let Ok(fd) = &there {
            self.seen(path, fd);
        }
        there.is_ok()
    }

    /// A regular file of text below the root, of at most `limit` bytes.
    pub(crate) fn contents(&mut self, path: &str, limit: usize) -> Option<String> {
        let bytes = self.bytes(path, limit)?;
        self.as_text(&bytes, || format!("/{path}"))
    }

    /// A regular file below the root, of at most `limit` bytes.
    pub(crate) fn bytes(&mut self, path: &str, limit: usize) -> Option<Vec<u8>> {
        let shown = format!("/{path}");
        let bytes = match self.file(path).and_then(|fd| read_all(fd.as_fd(), limit)) {
            Ok(bytes) => {
                if let Some(real) = self.real(path) {
                    self.keep(&real, &bytes);
                }
                bytes
            }
            Err(error) => {
                if let (Some(real), Some(recorder)) = (self.real(path), &self.recorder) {
                    recorder.borrow_mut().refused(real);
                }
                self.refused(shown, error);
                return None;
            }
        };
        if bytes.len() > limit {
            self.note(shown, format!("expected at most {limit} bytes"));
            return None;
        }
        Some(bytes)
    }

    /// Takes down a refusal, unless it only says that there is nothing: the device or attribute is not there (any
    /// more), or the driver has no such value just now.
    fn refused(&mut self, path: String, error: Errno) {
        let why = match error {
            Errno::NOENT | Errno::NODEV | Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP => return,
            Errno::ACCESS | Errno::PERM => {
                "permission denied; it needs CAP_DAC_READ_SEARCH".to_owned()
            }
            Errno::LOOP => "expected no link, or links that come to an end".to_owned(),
            Errno::ISDIR => "expected a file, found a directory".to_owned(),
            Errno::NOTDIR => "expected a directory".to_owned(),
            other => std::io::Error::from(other).to_string(),
        };
        self.note(path, why);
    }
}

fn name_of(name: &CStr) -> Option<&str> {
    name.to_str().ok()
}

/// One read, which is all that an attribute takes.
fn read_some(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut *buffer))
}

/// Reads up to one byte more than `limit`, from a regular file only.
pub(crate) fn read_all(fd: BorrowedFd<'_>, limit: usize) -> Result<Vec<u8>, Errno> {
    let stat = rustix::fs::fstat(fd)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR),
        _ => return Err(Errno::BADF),
    }
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 16_384];
    loop {
        let wanted = (limit + 1 - bytes.len()).min(chunk.len());
        match read_some(fd, &mut chunk[..wanted])? {
            0 => return Ok(bytes),
            length => bytes.extend_from_slice(&chunk[..length]),
        }
        if bytes.len() > limit {
            return Ok(bytes);
        }
    }
}

/// Reads `12`, `-1` (as none), `0x1414`.
pub(crate) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
            u64::from_str_radix(digits, 16).ok()
        }
        Some(_) => None,
        None if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        None => None,
    }
}
