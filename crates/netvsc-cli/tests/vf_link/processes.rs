//! The processes of a test.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::namespace::Neighbour;
use crate::{ROLE, SILENCE};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_netvsc");

/// A process that is killed if the test dies before it.
pub struct Process {
    pub child: Child,
    said: Arc<Mutex<Vec<String>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it runs");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = said.clone();
        let reader = thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                lines.lock().expect("nobody panics").push(line);
            }
        });
        Self { child, said, reader: Some(reader) }
    }

    pub fn has_said(&self, what: &str) -> usize {
        let said = self.said.lock().expect("nobody panics");
        said.iter().filter(|line| line.contains(what)).count()
    }

    pub fn wait_for(&mut self, what: &str, times: usize) {
        let end = Instant::now() + SILENCE;
        while self.has_said(what) < times {
            let ended = self.child.try_wait().expect("a child");
            let said = self.said.lock().expect("nobody panics").join("\n");
            assert!(Instant::now() < end && ended.is_none(), "no `{what}`, {ended:?}:\n{said}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything that it said, once it has ended well.
    pub fn end(mut self) -> Vec<String> {
        let status = self.child.wait().expect("a child");
        self.reader.take().expect("once").join().expect("text");
        let said = std::mem::take(&mut *self.said.lock().expect("nobody panics"));
        let tail = said.iter().rev().take(5).rev().cloned().collect::<Vec<_>>().join("\n");
        assert!(status.success(), "{status}:\n{tail}");
        said
    }

    pub fn stop(self) -> Vec<String> {
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
    Process::start(
        inside(namespace, this.to_str().expect("a plain path"))
            .args(["--exact", "helper", "--nocapture"])
            .env(ROLE, role),
    )
}

pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + SILENCE;
    while !so() {
        assert!(Instant::now() < end, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
