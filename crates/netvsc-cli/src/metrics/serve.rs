//! Metrics over HTTP, to this machine: one request at a time, each bounded in size and time.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::args::Listen;
use super::text::CONTENT_TYPE;
use crate::error::Error;
use crate::notify;
use crate::stop::stop_signal;

/// Longest request that is read.
const LONGEST: usize = 8192;
/// How long a request may take to come, and its answer to go.
const PATIENCE: Duration = Duration::from_secs(5);

enum Door {
    Tcp(TcpListener),
    Unix(UnixListener, std::path::PathBuf),
}

/// Somebody who asks.
trait Caller: Read + Write {
    fn set_patience(&self, patience: Duration) -> std::io::Result<()>;
}

impl Caller for std::net::TcpStream {
    fn set_patience(&self, patience: Duration) -> std::io::Result<()> {
        self.set_nonblocking(false)?;
        self.set_read_timeout(Some(patience))?;
        self.set_write_timeout(Some(patience))
    }
}

impl Caller for UnixStream {
    fn set_patience(&self, patience: Duration) -> std::io::Result<()> {
        self.set_nonblocking(false)?;
        self.set_read_timeout(Some(patience))?;
        self.set_write_timeout(Some(patience))
    }
}

impl Door {
    fn open(listen: &Listen) -> std::io::Result<Self> {
        let door = match listen {
            Listen::Tcp(address) => Self::Tcp(TcpListener::bind(address)?),
            Listen::Unix(path) => {
                clear(path)?;
                let listener = UnixListener::bind(path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
                Self::Unix(listener, path.clone())
            }
        };
        match &door {
            Self::Tcp(listener) => listener.set_nonblocking(true)?,
            Self::Unix(listener, _) => listener.set_nonblocking(true)?,
        }
        Ok(door)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }

    /// The next caller, if one is there.
    fn caller(&self) -> std::io::Result<Option<Box<dyn Caller>>> {
        let caller = match self {
            Self::Tcp(listener) => listener.accept().map(|(it, _)| Box::new(it) as Box<dyn Caller>),
            Self::Unix(listener, _) => {
                listener.accept().map(|(it, _)| Box::new(it) as Box<dyn Caller>)
            }
        };
        match caller {
            Ok(caller) => Ok(Some(caller)),
            // Whoever knocked has gone again.
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Somebody may have taken it away already.
            let _ = fs::remove_file(path);
        }
    }
}

/// Takes away a socket that nobody listens at any more. Anything else stays, and binding fails.
fn clear(path: &Path) -> std::io::Result<()> {
    let socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let left = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
    if socket && UnixStream::connect(path).as_ref().is_err_and(left) {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Serves what `tell` says, until it is asked to stop.
pub(super) fn serve(
    listen: &Listen,
    tell: &mut dyn FnMut() -> Result<Vec<u8>, Error>,
) -> Result<(), Error> {
    let system = |source| Error::System { doing: "listen for those who ask for metrics", source };
    let stop = stop_signal()?;
    let door = Door::open(listen).map_err(system)?;
    notify::ready();
    loop {
        let mut ready =
            [PollFd::new(&stop, PollFlags::IN), PollFd::from_borrowed_fd(door.fd(), PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(system(error.into())),
        }
        if !ready[0].revents().is_empty() {
            notify::stopping();
            return Ok(());
        }
        if let Some(mut caller) = door.caller().map_err(system)? {
            // One that does not listen to the end is no matter of ours.
            if let Err(error) = answer(&mut *caller, tell) {
                tracing::debug!(%error, "somebody who asked for metrics");
            }
        }
    }
}

/// Reads one request and answers it.
fn answer(
    caller: &mut dyn Caller,
    tell: &mut dyn FnMut() -> Result<Vec<u8>, Error>,
) -> std::io::Result<()> {
    caller.set_patience(PATIENCE)?;
    let Some(request) = request(caller)? else {
        return reply(caller, "400 Bad Request", "text/plain", b"expected an HTTP request\n", true);
    };
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let body = method != "HEAD";
    let path = target.split('?').next().unwrap_or_default();
    match (method, path) {
        ("GET" | "HEAD", "/metrics") => match tell() {
            Ok(text) => reply(caller, "200 OK", CONTENT_TYPE, &text, body),
            Err(error) => {
                let text = format!("{error}\n");
                reply(caller, "500 Internal Server Error", "text/plain", text.as_bytes(), body)
            }
        },
        ("GET" | "HEAD", "/") => {
            reply(caller, "200 OK", "text/plain", b"netvsc: the metrics are at /metrics\n", body)
        }
        ("GET" | "HEAD", _) => {
            reply(caller, "404 Not Found", "text/plain", b"the metrics are at /metrics\n", body)
        }
        _ => reply(caller, "405 Method Not Allowed", "text/plain", b"expected GET or HEAD\n", true),
    }
}

/// The first line of a request, once its head has come whole. `None` if there is no such thing in what came.
fn request(caller: &mut dyn Caller) -> std::io::Result<Option<String>> {
    let (mut head, end) = (Vec::new(), Instant::now() + PATIENCE);
    let mut piece = [0; 1024];
    while !head.windows(4).any(|at| at == b"\r\n\r\n") {
        let read = caller.read(&mut piece)?;
        if read == 0 || head.len() + read > LONGEST || Instant::now() > end {
            return Ok(None);
        }
        head.extend_from_slice(piece.get(..read).unwrap_or_default());
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line).into_owned();
    Ok(Some(line).filter(|line| line.contains(" HTTP/1.")))
}

fn reply(
    caller: &mut dyn Caller,
    status: &str,
    kind: &str,
    text: &[u8],
    body: bool,
) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        text.len()
    );
    caller.write_all(head.as_bytes())?;
    if body {
        caller.write_all(text)?;
    }
    caller.flush()
}
