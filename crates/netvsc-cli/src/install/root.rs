//! Files below a root directory that no link leads out of.
//!
//! The root may be the image of another machine, whose absolute links mean that machine's files and not ours.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fchmod, mkdirat, openat, openat2,
    readlinkat, renameat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

/// What a file is called while it is being written.
const UNFINISHED: &str = ".netvsc-unfinished";
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::DIRECTORY);

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// A regular file with these contents.
    File(Vec<u8>),
    /// A link to this.
    Link(String),
    /// Something else.
    Other,
}

/// A root directory.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

/// What could not be done with which path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} `{}`: {source}", path.display())]
pub struct RootError {
    /// What was tried.
    pub doing: &'static str,
    /// With what.
    pub path: PathBuf,
    /// What the operating system said.
    pub source: std::io::Error,
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Self, RootError> {
        let fd = openat(CWD, path, FOLDER, Mode::empty());
        let failed = |source: Errno| RootError {
            doing: "use as a root",
            path: path.to_owned(),
            source: source.into(),
        };
        Ok(Self { fd: fd.map_err(failed)?, path: path.to_owned() })
    }

    fn failed(&self, doing: &'static str, path: &str) -> impl FnOnce(Errno) -> RootError {
        let path = self.path.join(path.trim_start_matches('/'));
        move |error| RootError { doing, path, source: error.into() }
    }

    fn folder(&self, path: &str) -> Result<OwnedFd, Errno> {
        let path = path.trim_matches('/');
        let path = if path.is_empty() { "." } else { path };
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.fd, path, FOLDER, Mode::empty(), how)
    }

    /// Opens a folder, making what is missing on the way.
    fn make(&self, path: &str) -> Result<OwnedFd, RootError> {
        let mut at = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let above = self.folder(&at).map_err(self.failed("open", &at))?;
            at = format!("{at}/{part}");
            match mkdirat(&above, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(self.failed("make", &at)(error)),
            }
        }
        self.folder(path).map_err(self.failed("open", path))
    }

    /// The folders that writing into this one would make.
    pub(super) fn missing(&self, path: &str) -> Vec<String> {
        let mut missing = Vec::new();
        let mut at = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at = format!("{at}/{part}");
            if matches!(self.folder(&at), Err(Errno::NOENT)) {
                missing.push(at.clone());
            }
        }
        missing
    }

    /// What is at a path, without following a link in its last part.
    pub(super) fn look(&self, path: &str) -> Result<Found, RootError> {
        let (folder, name) = split(path);
        let folder = match self.folder(folder) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(error) => return Err(self.failed("open", folder)(error)),
        };
        let stat = match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(error) => return Err(self.failed("look at", path)(error)),
        };
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let file = openat(&folder, name, flags, Mode::empty());
                let file = file.map_err(self.failed("read", path))?;
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut bytes).map_err(
                    |source| RootError { source, ..self.failed("read", path)(Errno::IO) },
                )?;
                Found::File(bytes)
            }
            FileType::Symlink => {
                let target = readlinkat(&folder, name, Vec::new());
                let target = target.map_err(self.failed("read", path))?;
                Found::Link(target.to_string_lossy().into_owned())
            }
            _ => Found::Other,
        })
    }

    /// Writes a file in one step: whoever looks sees the old one or the new one.
    pub(super) fn write(&self, path: &str, bytes: &[u8], mode: u32) -> Result<(), RootError> {
        let (folder, name) = split(path);
        let folder = self.make(folder)?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::from_raw_mode(mode);
        // One that a killed installation left behind.
        let _ = unlinkat(&folder, UNFINISHED, AtFlags::empty());
        let file = openat(&folder, UNFINISHED, flags, mode).map_err(self.failed("write", path))?;
        fchmod(&file, mode).map_err(self.failed("write", path))?;
        let written = std::io::Write::write_all(&mut std::fs::File::from(file), bytes);
        written.map_err(|source| RootError { source, ..self.failed("write", path)(Errno::IO) })?;
        self.finish(&folder, name).map_err(self.failed("write", path))
    }

    /// Makes a link in one step.
    pub(super) fn link(&self, path: &str, target: &str) -> Result<(), RootError> {
        let (folder, name) = split(path);
        let folder = self.make(folder)?;
        let _ = unlinkat(&folder, UNFINISHED, AtFlags::empty());
        symlinkat(target, &folder, UNFINISHED).map_err(self.failed("make", path))?;
        self.finish(&folder, name).map_err(self.failed("make", path))
    }

    fn finish(&self, folder: &OwnedFd, name: &str) -> Result<(), Errno> {
        renameat(folder, UNFINISHED, folder.as_fd(), name).inspect_err(|_| {
            let _ = unlinkat(folder, UNFINISHED, AtFlags::empty());
        })
    }

    /// Removes a file or a link.
    pub(super) fn remove(&self, path: &str) -> Result<(), RootError> {
        let (folder, name) = split(path);
        let gone = self.folder(folder).and_then(|at| unlinkat(&at, name, AtFlags::empty()));
        match gone {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.failed("remove", path)(error)),
        }
    }

    /// Removes a folder if it is empty. Says whether it did.
    pub(super) fn remove_folder(&self, path: &str) -> bool {
        let (folder, name) = split(path);
        self.folder(folder).and_then(|at| unlinkat(&at, name, AtFlags::REMOVEDIR)).is_ok()
    }

    /// Whether the file at a path is this very file.
    pub(super) fn is_same(&self, path: &str, file: &Path) -> bool {
        let (folder, name) = split(path);
        let there = self.folder(folder).and_then(|at| statat(&at, name, AtFlags::empty()));
        let here = rustix::fs::stat(file);
        there.is_ok_and(|a| here.is_ok_and(|b| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)))
    }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}
