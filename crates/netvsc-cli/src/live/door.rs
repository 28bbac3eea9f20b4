//! The side of the run.

use std::cell::Cell;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use vmbus::Instant;

use super::{FOLDER, Live, knock};

/// Between two answers. A run that moves frames all the time looks for who asks as often.
pub(crate) const REST: Duration = Duration::from_millis(20);

/// Where a run is asked.
#[derive(Debug)]
pub(crate) struct Door {
    listener: UnixListener,
    path: PathBuf,
    /// When to look again without having slept.
    look: Cell<Instant>,
    /// Until when nobody is answered.
    rest: Instant,
}

impl Door {
    /// Listens below this root. A run that may not does without: it has better things to do.
    pub(crate) fn open(root: &Path) -> Option<Self> {
        let folder = root.join(FOLDER);
        match Self::try_open(&folder) {
            Ok(door) => Some(door),
            Err(error) => {
                tracing::debug!(folder = %folder.display(), %error, "nobody can ask this run");
                None
            }
        }
    }

    fn try_open(folder: &Path) -> std::io::Result<Self> {
        fs::create_dir_all(folder)?;
        // Whatever the umask is: who may read the kernel's counters may read these.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        sweep(folder);
        let path = folder.join(format!("{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path)?;
        let (look, rest) = (Cell::new(Instant::ZERO), Instant::ZERO);
        let door = Self { listener, path, look, rest };
        fs::set_permissions(&door.path, fs::Permissions::from_mode(0o666))?;
        door.listener.set_nonblocking(true)?;
        Ok(door)
    }

    /// Answers one that asks, if one does and it is time to.
    pub(crate) fn serve(&mut self, now: Instant, tell: impl FnOnce() -> Live) {
        if now < self.look.get() || now < self.rest {
            return;
        }
        self.look.set(now + REST);
        match self.listener.accept() {
            Ok((caller, _)) => {
                self.rest = now + REST;
                if let Err(error) = answer(caller, &tell()) {
                    tracing::debug!(%error, "somebody who asked has gone");
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => tracing::debug!(%error, "somebody who would ask"),
        }
    }

    /// What to wait for, for who is about to sleep.
    pub(crate) fn poll(&self, now: Instant) -> Option<(BorrowedFd<'_>, PollFlags)> {
        // Who is woken by it looks at once.
        self.look.set(now);
        (now >= self.rest).then(|| (self.listener.as_fd(), PollFlags::IN))
    }

    /// When to wait for it again, if that is not now: soon after an answer, and never otherwise.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        (now < self.rest).then_some(self.rest)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Somebody may have taken it away already.
        let _ = fs::remove_file(&self.path);
    }
}

/// What is told is shorter than what a socket holds, so it goes at once or not at all.
fn answer(mut caller: UnixStream, live: &Live) -> std::io::Result<()> {
    caller.set_nonblocking(true)?;
    caller.write_all(&serde_json::to_vec(live)?)
}

/// Takes away what runs left that were killed. Nobody who lives is woken for it.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        let lives =
            entry.path().file_stem().is_some_and(|pid| Path::new("/proc").join(pid).exists());
        if socket && !lives && knock(&entry.path()).is_err_and(|error| error == Errno::CONNREFUSED)
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}
