//! The processes of a test.

use std::io::{BufRead, BufReader};
use std::ops::Deref;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};

use crate::namespace::Neighbour;
use crate::{ROLE, SILENCE};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_netvsc");

/// A line that a process said, and when it came, by [`clock`].
#[derive(Debug)]
pub struct Line {
    pub at: u64,
    text: String,
}

impl Deref for Line {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// Microseconds of a clock that all processes of a test share, in whatever network namespace.
pub fn clock() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// What a process has said so far, and whether it says no more.
#[derive(Default)]
struct Said {
    lines: Vec<Line>,
    ended: bool,
}

/// A process that is killed if the test dies before it.
pub struct Process {
    pub child: Child,
    said: Arc<(Mutex<Said>, Condvar)>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it runs");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let said = Arc::new((Mutex::new(Said::default()), Condvar::new()));
        let shared = said.clone();
        let reader = thread::spawn(move || {
            let (said, more) = &*shared;
            for text in stdout.lines().map_while(Result::ok) {
                said.lock().expect("nobody panics").lines.push(Line { at: clock(), text });
                more.notify_all();
            }
            said.lock().expect("nobody panics").ended = true;
            more.notify_all();
        });
        Self { child, said, reader: Some(reader) }
    }

    pub fn has_said(&self, what: &str) -> usize {
        let said = self.said.0.lock().expect("nobody panics");
        said.lines.iter().filter(|line| line.contains(what)).count()
    }

    /// Waits until what it has said has something in it, which is looked for whenever it says more.
    pub fn wait_until<T>(&self, what: &str, look: impl Fn(&[Line]) -> Option<T>) -> T {
        let (said, more) = &*self.said;
        let end = Instant::now() + SILENCE;
        let mut said = said.lock().expect("nobody panics");
        loop {
            if let Some(found) = look(&said.lines) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || said.ended {
                let tail = said.lines[said.lines.len().saturating_sub(20)..].iter();
                let tail: Vec<_> = tail.map(|line| line.text.clone()).collect();
                // Whoever reads it goes on meanwhile.
                drop(said);
                panic!("no `{what}`:\n{}", tail.join("\n"));
            }
            said = more.wait_timeout(said, left).expect("nobody panics").0;
        }
    }

    pub fn wait_for(&self, what: &str, times: usize) {
        self.wait_until(what, |said| {
            (said.iter().filter(|line| line.contains(what)).count() >= times).then_some(())
        });
    }

    /// Everything that it said, once it has ended well.
    pub fn end(mut self) -> Vec<Line> {
        let status = self.child.wait().expect("a child");
        self.reader.take().expect("once").join().expect("text");
        let said = std::mem::take(&mut self.said.0.lock().expect("nobody panics").lines);
        let tail = &said[said.len().saturating_sub(5)..];
        assert!(status.success(), "{status}: {tail:#?}");
        said
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is running");
        self.child.wait().expect("a child");
    }

    pub fn stop(self) -> Vec<Line> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it is running");
        self.end()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This program with nothing of root's but what a packet socket needs, and so without programs in the kernel, as before Linux 6.6.
pub const LIMITED: [&str; 4] = ["setpriv", "--bounding-set", "-all,+net_admin,+net_raw", PROGRAM];

pub fn limited() -> Command {
    let mut command = Command::new(LIMITED[0]);
    command.args(&LIMITED[1..]);
    command
}

pub fn inside(namespace: &Neighbour, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", namespace.pid())).arg("--").arg(program);
    command
}

pub fn helper_in(namespace: &Neighbour, role: &str) -> Process {
    let this = std::env::current_exe().expect("a test knows its own program");
    helper(&mut inside(namespace, this.to_str().expect("a plain path")), role)
}

/// A helper in the namespace of the test.
pub fn helper_here(role: &str) -> Process {
    let this = std::env::current_exe().expect("a test knows its own program");
    helper(&mut Command::new(this), role)
}

fn helper(command: &mut Command, role: &str) -> Process {
    Process::start(command.args(["--exact", "helper", "--nocapture"]).env(ROLE, role))
}

pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + SILENCE;
    while !so() {
        assert!(Instant::now() < end, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
