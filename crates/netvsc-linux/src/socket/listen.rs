//! Where a host listens, and who may come.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::sockopt::socket_peercred;

use crate::lock::{FileLock, ForeignLock, LockError};

/// Longest path of a Unix socket: 108 bytes with a zero at the end, of which our temporary name takes some.
const LONGEST_PATH: usize = 90;

/// Why nobody can listen there, or be reached.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A host is there, or begins to be at this moment.
    #[error("another host listens at `{}`: stop it, or choose another path", .0.display())]
    InUse(PathBuf),
    /// Something else is there.
    #[error("`{}` is there and is no socket: choose another path", .0.display())]
    NotASocket(PathBuf),
    /// No name for a socket.
    #[error("`{}` is no path for a socket: expected 1 to {LONGEST_PATH} bytes and a file name", .0.display())]
    Path(PathBuf),
    /// Nobody is there.
    #[error("no host listens at `{}` ({source}): start one with `netvsc host --listen {}`", path.display(), path.display())]
    Nobody {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file that hosts lock while they begin is somebody else's.
    #[error("{0}; have it removed, or choose a path in a folder to which nobody else may write")]
    Foreign(ForeignLock),
    /// The other side is somebody else.
    #[error("user {uid} is at the other end of the socket: expected root or user {own}")]
    User {
        /// Whoever it is.
        uid: u32,
        /// Who this is.
        own: u32,
    },
    /// The kernel says no.
    #[error("`{}`: {source}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Who looks at a path and listens there is alone with it for that moment.
///
/// The lock is on a file of its own: one on the folder could be held by anybody who may look into it.
fn lock(socket: &Path, folder: &Path, name: &std::ffi::OsStr) -> Result<FileLock, ListenError> {
    let mut file_name = name.to_owned();
    file_name.push(".lock");
    let path = folder.join(file_name);
    FileLock::take(&path).map(FileLock::fleeting).map_err(|error| match error {
        LockError::Held => ListenError::InUse(socket.to_owned()),
        LockError::Foreign(foreign) => ListenError::Foreign(foreign),
        LockError::Kernel(source) => ListenError::Kernel { path, source },
    })
}

/// A socket file at which a host listens. It goes with this value.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, by which it is known again.
    file: (u64, u64),
}

impl Listener {
    /// Listens at `path`. Only this user (and root) may connect: the file has mode 0600. A socket that a host left behind
    /// when it was killed is replaced.
    ///
    /// # Errors
    /// [`ListenError::InUse`], [`ListenError::NotASocket`], [`ListenError::Path`], [`ListenError::Foreign`], [`ListenError::Kernel`].
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let kernel = |source| ListenError::Kernel { path: path.to_owned(), source };
        let name = path.file_name().filter(|_| path.as_os_str().len() <= LONGEST_PATH);
        let name = name.ok_or_else(|| ListenError::Path(path.to_owned()))?;
        let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        // Two hosts that start at the same time: one of them has to look again.
        let lock = lock(path, folder, name)?;
        Self::refuse_what_lives(path)?;
        // Under another name first, so that nobody can connect before the mode is right.
        let mut temporary = name.to_owned();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = folder.join(temporary);
        let _ = fs::remove_file(&temporary);
        let socket = UnixListener::bind(&temporary).map_err(kernel)?;
        let placed = fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))
            .and_then(|()| socket.set_nonblocking(true))
            .and_then(|()| fs::symlink_metadata(&temporary))
            .and_then(|data| fs::rename(&temporary, path).map(|()| data));
        let data = placed.map_err(|source| {
            let _ = fs::remove_file(&temporary);
            kernel(source)
        })?;
        drop(lock);
        Ok(Self { socket, path: path.to_owned(), file: (data.dev(), data.ino()) })
    }

    /// What is at the path may be a socket at which nobody listens, or nothing.
    fn refuse_what_lives(path: &Path) -> Result<(), ListenError> {
        let kernel = |source| ListenError::Kernel { path: path.to_owned(), source };
        let kind = match fs::symlink_metadata(path) {
            Ok(data) => data.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(kernel(error)),
        };
        if !kind.is_socket() {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Ok(_) => Err(ListenError::InUse(path.to_owned())),
            Err(error) => Err(kernel(error)),
        }
    }

    /// The next guest that has connected, and whether it may; `None` if there is none.
    ///
    /// # Errors
    /// [`ListenError::User`] for one that may not, who is hung up on; [`ListenError::Kernel`].
    pub fn accept(&self) -> Result<Option<UnixStream>, ListenError> {
        let kernel = |source| ListenError::Kernel { path: self.path.clone(), source };
        match self.socket.accept() {
            Ok((stream, _)) => {
                check_user(&stream, &self.path)?;
                Ok(Some(stream))
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::Interrupted
                | io::ErrorKind::ConnectionAborted => Ok(None),
                _ => Err(kernel(error)),
            },
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Listener {
    /// For polling; readable means that somebody has connected.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Not what somebody else has put there since.
        let ours = |data: &fs::Metadata| (data.dev(), data.ino()) == self.file;
        if fs::symlink_metadata(&self.path).as_ref().is_ok_and(ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Connects to the host that listens at `path`.
///
/// # Errors
/// [`ListenError::Nobody`], [`ListenError::User`], [`ListenError::Kernel`].
pub fn connect(path: &Path) -> Result<UnixStream, ListenError> {
    let nobody = |source| ListenError::Nobody { path: path.to_owned(), source };
    let stream = UnixStream::connect(path).map_err(nobody)?;
    check_user(&stream, path)?;
    Ok(stream)
}

/// The other end is to be root or the user that this process runs as.
fn check_user(stream: &UnixStream, path: &Path) -> Result<(), ListenError> {
    let credentials = socket_peercred(stream)
        .map_err(|error| ListenError::Kernel { path: path.to_owned(), source: error.into() })?;
    let own = rustix::process::geteuid();
    if may_talk(credentials.uid.as_raw(), own.as_raw()) {
        Ok(())
    } else {
        Err(ListenError::User { uid: credentials.uid.as_raw(), own: own.as_raw() })
    }
}

/// Whether `uid` may be at the other end of a socket of `own`.
const fn may_talk(uid: u32, own: u32) -> bool {
    uid == 0 || uid == own
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, mknodat};

    use super::*;

    #[test]
    fn root_and_the_same_user_may_talk_and_nobody_else() {
        assert!(may_talk(0, 1000) && may_talk(1000, 1000) && may_talk(0, 0));
        assert!(!may_talk(1000, 0) && !may_talk(1001, 1000) && !may_talk(65_534, 1000));
    }

    #[test]
    fn only_the_owner_can_connect_and_the_file_goes_with_the_host() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("host.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert!(listener.accept().unwrap().is_none());
        let _guest = connect(&path).unwrap();
        assert!(listener.accept().unwrap().is_some());
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse(p)) if p == path));
        drop(listener);
        assert!(matches!(connect(&path), Err(ListenError::Nobody { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn nobody_who_may_look_into_the_folder_can_keep_a_host_from_listening() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("host.sock");
        let looker = fs::File::open(folder.path()).unwrap();
        flock(&looker, FlockOperation::LockExclusive).unwrap();
        drop(Listener::bind(&path).unwrap());
        // Another host that begins at this moment is waited for by nobody.
        let lock = lock(&path, folder.path(), "host.sock".as_ref()).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse(p)) if p == path));
        drop(lock);
        // One that was killed meanwhile left its file, and no lock.
        fs::write(folder.path().join("host.sock.lock"), "").unwrap();
        drop(Listener::bind(&path).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
    }

    // In a shared folder anybody may be there first.
    #[test]
    fn what_somebody_else_put_in_the_place_of_the_lock_is_told_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("host.sock");
        let place = folder.path().join("host.sock.lock");
        for (found, fifo) in [("a link", false), ("a FIFO", true)] {
            match fifo {
                true => {
                    mknodat(CWD, &place, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
                }
                false => std::os::unix::fs::symlink("/etc/passwd", &place).unwrap(),
            }
            let error = Listener::bind(&path).unwrap_err();
            assert!(matches!(&error, ListenError::Foreign(it) if it.path == place), "{error}");
            let text = error.to_string();
            assert!(text.contains(found) && text.contains("choose a path"), "{text}");
            assert!(!path.exists());
            fs::remove_file(&place).unwrap();
        }
    }

    #[test]
    fn what_a_killed_host_left_is_replaced_and_other_files_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("host.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "as a killed host leaves it");
        let listener = Listener::bind(&path).unwrap();
        connect(&path).unwrap();
        // Another host has taken the place meanwhile, by force.
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists(), "that one is not ours to remove");

        let file = folder.path().join("letter");
        fs::write(&file, "dear").unwrap();
        assert!(matches!(Listener::bind(&file), Err(ListenError::NotASocket(p)) if p == file));
        assert_eq!(fs::read(&file).unwrap(), b"dear");
        let long = folder.path().join("x".repeat(100));
        assert!(matches!(Listener::bind(&long), Err(ListenError::Path(p)) if p == long));
        assert!(matches!(Listener::bind(Path::new("/")), Err(ListenError::Path(_))));
    }
}
