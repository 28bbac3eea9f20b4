//! A file that one process at a time has locked.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// How often it is tried to get a lock whose file goes away meanwhile.
const LOOKS: usize = 10;

/// Something else is where the file of a lock should be. Somebody who may write to the folder has put it there.
#[derive(Debug, thiserror::Error)]
#[error("`{}` is {found}: expected nothing there, or a regular file of user {own}", path.display())]
pub struct ForeignLock {
    /// The file.
    pub path: PathBuf,
    /// What is there.
    pub found: String,
    /// Who this is.
    pub own: u32,
}

/// Why a lock was not taken.
#[derive(Debug)]
pub(crate) enum LockError {
    /// Somebody else has it.
    Held,
    /// The file is none of ours.
    Foreign(ForeignLock),
    /// The kernel says no.
    Kernel(io::Error),
}

/// A lock on a file of its own, which only this user can open: whoever may open a file can lock it, for as long as he likes.
///
/// It goes with this value, and with the process however that ends.
#[derive(Debug)]
pub(crate) struct FileLock {
    file: fs::File,
    path: PathBuf,
    /// The file goes with the lock.
    fleeting: bool,
}

impl FileLock {
    /// Takes the lock without waiting for it. The file is made if it is not there.
    pub(crate) fn take(path: &Path) -> Result<Self, LockError> {
        Self::take_as(path, rustix::process::geteuid().as_raw())
    }

    fn take_as(path: &Path, own: u32) -> Result<Self, LockError> {
        let foreign = |found| LockError::Foreign(ForeignLock { path: path.into(), found, own });
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        // A FIFO in its place would have nobody at its other end, and a link lead anywhere.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        options.custom_flags(flags.bits().cast_signed());
        for _ in 0..LOOKS {
            let file = options.open(path).map_err(|error| {
                let there = fs::symlink_metadata(path).ok();
                let found = there.and_then(|there| stranger(&there, own));
                found.map_or(LockError::Kernel(error), foreign)
            })?;
            let open = file.metadata().map_err(LockError::Kernel)?;
            if let Some(found) = stranger(&open, own) {
                return Err(foreign(found));
            }
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(LockError::Held),
                Err(error) => return Err(LockError::Kernel(error.into())),
            }
            let lock = Self { file, path: path.to_owned(), fleeting: false };
            // Whoever had it before may have taken the file away since it was opened.
            let same = |there: fs::Metadata| (there.dev(), there.ino()) == (open.dev(), open.ino());
            if fs::symlink_metadata(path).is_ok_and(same) {
                return Ok(lock);
            }
        }
        Err(LockError::Held)
    }

    /// The file goes with the lock. Otherwise it stays.
    pub(crate) fn fleeting(mut self) -> Self {
        self.fleeting = true;
        self
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if self.fleeting {
            let _ = fs::remove_file(&self.path);
        }
        // Closing it is not enough: a child has the descriptor as well, until it executes its program.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// What a file is, if it is no regular one of the user `own`.
fn stranger(data: &fs::Metadata, own: u32) -> Option<String> {
    let kind = data.file_type();
    let what = match () {
        () if kind.is_file() && data.uid() == own => return None,
        () if kind.is_file() => return Some(format!("a file of user {}", data.uid())),
        () if kind.is_symlink() => "a link",
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Some(what.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    fn found(path: &Path, own: u32) -> String {
        match FileLock::take_as(path, own) {
            Err(LockError::Foreign(ForeignLock { found, .. })) => found,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_has_it_at_a_time_and_the_file_stays_or_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        for fleeting in [false, true] {
            let lock = FileLock::take(&path).unwrap();
            let lock = if fleeting { lock.fleeting() } else { lock };
            assert!(matches!(FileLock::take(&path), Err(LockError::Held)));
            // A copy of the descriptor, as a child has one for a moment, keeps nothing locked.
            let _copy = lock.file.try_clone().unwrap();
            drop(lock);
            assert_eq!(path.exists(), !fleeting);
            drop(FileLock::take(&path).unwrap());
        }
        let nowhere = folder.path().join("no/lock");
        assert!(matches!(FileLock::take(&nowhere), Err(LockError::Kernel(_))));
    }

    #[test]
    fn what_is_no_regular_file_of_ours_is_not_locked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let own = rustix::process::geteuid().as_raw();
        drop(FileLock::take(&path).unwrap());
        assert_eq!(found(&path, own + 1), format!("a file of user {own}"));
        fs::remove_file(&path).unwrap();

        // At the other end of which there is nobody, and then somebody.
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert_eq!(found(&path, own), "a FIFO");
        let reader = fs::OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(&path)
            .unwrap();
        assert_eq!(found(&path, own), "a FIFO");
        drop(reader);
        fs::remove_file(&path).unwrap();

        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        assert_eq!(found(&path, own), "a link");
        assert!(!folder.path().join("elsewhere").exists());
        fs::remove_file(&path).unwrap();

        let socket = UnixListener::bind(&path).unwrap();
        assert_eq!(found(&path, own), "a socket");
        drop(socket);
        fs::remove_file(&path).unwrap();

        fs::create_dir(&path).unwrap();
        assert_eq!(found(&path, own), "a folder");
    }
}
