//! The side of whoever asks.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;

use super::{FOLDER, LONGEST, Live, knock};
use crate::inspect::document::SCHEMA_VERSION;

/// How many runs are asked at most.
const MOST: usize = 64;
/// How long one may take to answer, and all of them together.
const PATIENCE: Duration = Duration::from_millis(500);
const TOGETHER: Duration = Duration::from_secs(2);

/// What runs have said.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Those that answered, by their processes.
    pub live: Vec<Live>,
    /// Those that did not: where, and why not.
    pub failed: Vec<(PathBuf, String)>,
}

/// Asks every run below this root. One that was killed says nothing and is no failure.
#[must_use]
pub fn ask_all(root: &Path) -> Answers {
    let folder = root.join(FOLDER);
    let mut answers = Answers::default();
    let entries = match trusted(&folder).and_then(|()| fs::read_dir(&folder)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return answers,
        Err(error) => {
            answers.failed.push((folder, error.to_string()));
            return answers;
        }
    };
    let sockets = entries.flatten().filter(|it| it.file_type().is_ok_and(|kind| kind.is_socket()));
    let mut paths: Vec<PathBuf> = sockets.map(|entry| entry.path()).take(MOST).collect();
    paths.sort();
    let end = Instant::now() + TOGETHER;
    for path in paths {
        match ask(&path, end.min(Instant::now() + PATIENCE)) {
            Ok(live) => answers.live.extend(live),
            Err(error) => answers.failed.push((path, error.to_string())),
        }
    }
    answers.live.sort_by_key(|live| live.pid);
    answers
}

fn refused(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why.into())
}

/// Only where nobody else can put a socket is believed what comes out of one.
fn trusted(folder: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(folder)?;
    let own = rustix::process::geteuid().as_raw();
    if !found.is_dir() || ![0, own].contains(&found.uid()) || found.mode() & 0o022 != 0 {
        return Err(refused("expected a directory of root's that nobody else writes to"));
    }
    Ok(())
}

/// What the run at this socket says; `None` if nobody is there any more.
fn ask(path: &Path, end: Instant) -> io::Result<Option<Live>> {
    let socket = match knock(path) {
        Ok(socket) => socket,
        Err(Errno::CONNREFUSED | Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let peer = socket_peercred(&socket)?;
    let own = rustix::process::geteuid().as_raw();
    if ![0, own].contains(&peer.uid.as_raw()) {
        return Err(refused(format!("user {} listens there", peer.uid.as_raw())));
    }
    let text = read_all(UnixStream::from(socket), end)?;
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let live: Live = serde_json::from_slice(&text)
        .map_err(|error| wrong(format!("not what a run says: {error}")))?;
    if live.schema_version != SCHEMA_VERSION {
        let version = live.schema_version;
        return Err(wrong(format!("schema version {version}: expected {SCHEMA_VERSION}")));
    }
    Ok(Some(live))
}

/// All that comes until the end of the connection, which is to come in time and not too late.
fn read_all(mut stream: UnixStream, end: Instant) -> io::Result<Vec<u8>> {
    stream.set_nonblocking(false)?;
    let mut text = Vec::new();
    let mut piece = [0; 8192];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece) {
            Ok(0) => return Ok(text),
            Ok(len) => text.extend_from_slice(piece.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
            }
            Err(error) => return Err(error),
        }
        if text.len() > LONGEST {
            let why = format!("an answer of more than {LONGEST} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use vmbus::Instant as Now;

    use super::super::{Door, LiveNic};
    use super::*;

    /// A root with the folder, and sockets at which `says` is said once.
    fn saying(says: &[&[u8]]) -> (tempfile::TempDir, Vec<thread::JoinHandle<()>>) {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join(FOLDER);
        fs::create_dir_all(&folder).unwrap();
        let speak = |(number, text): (usize, &&[u8])| {
            let listener = UnixListener::bind(folder.join(format!("{number}.sock"))).unwrap();
            let text = text.to_vec();
            thread::spawn(move || {
                let (mut caller, _) = listener.accept().unwrap();
                // Who hears too much hangs up.
                let _ = caller.write_all(&text);
            })
        };
        let speakers = says.iter().enumerate().map(speak).collect();
        (root, speakers)
    }

    #[test]
    fn a_run_is_asked_while_it_runs_and_not_after() {
        let root = tempfile::tempdir().unwrap();
        assert!(ask_all(root.path()).failed.is_empty(), "no folder, no run");
        let mut door = Door::open(root.path()).unwrap();
        door.serve(Now::ZERO, || panic!("nobody asks"));
        assert!(door.deadline(Now::ZERO).is_none(), "nobody is woken as nobody asked");
        let nic = LiveNic { device: "nv0".into(), queues: 2, ..LiveNic::default() };
        let live = Live::new("uio", 1.5, vec![nic]);
        let said = live.clone();
        let path = root.path().to_owned();
        let asker = thread::spawn(move || ask_all(&path));
        let mut now = Now::ZERO;
        while !asker.is_finished() {
            assert!(door.poll(now).is_some() != door.deadline(now).is_some());
            door.serve(now, || said.clone());
            now = now + super::super::door::REST;
            thread::yield_now();
        }
        let answers = asker.join().unwrap();
        assert_eq!((answers.live, answers.failed.len()), (vec![live], 0));
        drop(door);
        assert_eq!(fs::read_dir(root.path().join(FOLDER)).unwrap().count(), 0, "left behind");
    }

    #[test]
    fn what_a_killed_run_left_is_no_failure_and_goes_with_the_next() {
        let (root, _) = saying(&[]);
        // No process has this number.
        let left = root.path().join(FOLDER).join("4194304.sock");
        drop(UnixListener::bind(&left).unwrap());
        let answers = ask_all(root.path());
        assert!(answers.live.is_empty() && answers.failed.is_empty());
        let door = Door::open(root.path()).unwrap();
        assert!(!left.exists());
        drop(door);
    }

    #[test]
    fn who_says_nonsense_or_too_much_or_nothing_is_named() {
        let long = vec![b' '; LONGEST + 1];
        let later =
            br#"{"schema_version":99,"pid":1,"version":"","host":"","uptime_seconds":0,"nics":[]}"#;
        let (root, speakers) = saying(&[b"nonsense", &long, later, b""]);
        // One that never answers, though somebody listens.
        let silent = root.path().join(FOLDER).join("9.sock");
        let _silent = UnixListener::bind(&silent).unwrap();
        let answers = ask_all(root.path());
        assert!(answers.live.is_empty());
        let told: Vec<&str> = answers.failed.iter().map(|(_, why)| why.as_str()).collect();
        let expected =
            ["not what a run", "more than 65536", "schema version 99", "not what", "time"];
        assert_eq!(told.len(), expected.len(), "{told:?}");
        assert!(told.iter().zip(expected).all(|(told, word)| told.contains(word)), "{told:?}");
        speakers.into_iter().for_each(|speaker| speaker.join().unwrap());
    }

    #[test]
    fn a_folder_that_others_write_to_is_not_believed() {
        let (root, _) = saying(&[]);
        let folder = root.path().join(FOLDER);
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        let answers = ask_all(root.path());
        assert!(answers.failed.len() == 1 && answers.failed[0].1.contains("nobody else writes"));
    }
}
