//! `netvsc run --host unix:PATH`: a guest whose host is another process.

mod kernel;
mod transfer;

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant as Clock};

use netvsc::nic::NicOffloads;
use netvsc::rndis::scaling::KEY_SIZE;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vmbus::Instant;

use super::account::{Account, Facts};
use super::counters::NicLine;
use super::plan::spread_key;
use crate::args::RunArgs;
use crate::capture::Capture;
use crate::error::Error;
use crate::event::{Event, What};
use crate::guest::Sink;
use crate::remote::{Gone, RemoteGuest, VfInterface};
use crate::report::{NicView, Report};
use crate::service::Service;

/// Pages of memory that the guest shares: 64 MiB.
const PAGES: usize = 16_384;
/// How long the host may take to say what became of the frames.
const ANSWER: Duration = Duration::from_secs(2);

/// Runs the guest.
///
/// # Errors
/// What stood in the way, or why the run was not good.
pub(super) fn run(
    args: &RunArgs,
    path: &Path,
    capture: Option<&Capture>,
) -> Result<ExitCode, Error> {
    let mut service = Service::start(&args.log)?;
    match &args.tap {
        Some(tap) => kernel::run(args, path, tap, capture, &mut service),
        None => transfer::run(args, path, capture, &mut service),
    }
}

/// A guest with its host, as long as that is there, and the stream of events.
struct Session {
    path: PathBuf,
    remote: Option<RemoteGuest>,
    events: VecDeque<Event>,
    /// VFs that this guest let go because the host asked, and those that vanished.
    ejects: u64,
    surprises: u64,
    started: Clock,
    mtu: u32,
    /// Channels of each NIC, and the key by which the host spreads frames over them.
    queues: (u16, [u8; KEY_SIZE]),
    /// The interface for a VF whose frames go over one.
    vf: Option<VfInterface>,
    /// Segments that a VF received as one are taken as one.
    whole: bool,
}

impl Session {
    fn new(path: &Path, args: &RunArgs) -> Self {
        let (path, events) = (path.to_owned(), VecDeque::new());
        let (mtu, vf) = (args.mtu, args.vf_interface());
        let queues = (args.uio.queues, spread_key(args.seed));
        let (ejects, surprises) = (0, 0);
        let (remote, started, whole) = (None, Clock::now(), false);
        Self { path, remote, events, ejects, surprises, started, mtu, queues, vf, whole }
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn tell(&mut self, what: What) {
        let at = self.now();
        self.events.push_back(Event { at, what });
    }

    /// Connects, and makes contact over the bus.
    fn connect(&mut self, capture: Option<&Capture>) -> Result<(), Gone> {
        let mut remote = RemoteGuest::connect(&self.path, PAGES, self.vf.as_ref())?;
        if let Some(capture) = capture {
            remote.guest.capture_into(capture.clone());
        }
        // Long segments of the kernel's are cut by the host, and it may give it such.
        remote.guest.leave_to_host(NicOffloads { coalescing: self.whole, ..NicOffloads::ALL });
        remote.guest.set_mtu(self.mtu);
        remote.guest.take_whole(self.whole);
        let (queues, key) = self.queues;
        remote.guest.set_queues(queues, key);
        // For the first time, so that it cannot be refused.
        let _ = remote.guest.start(self.now());
        self.remote = Some(remote);
        Ok(())
    }

    /// Does all that can be done at `now` but what is `sink`'s. True if anything was done.
    ///
    /// # Errors
    /// [`Gone`]: there is no host any more.
    fn settle(&mut self, now: Instant, sink: &mut Sink<'_>) -> Result<bool, Gone> {
        let Some(remote) = &mut self.remote else { return Ok(false) };
        let mut moved = remote.settle(now, sink)?;
        for why in remote.take_notes() {
            self.events.push_back(Event { at: now, what: What::Pairing { nic: Some(0), why } });
        }
        while let Some(what) = remote.guest.poll_event() {
            match &what {
                What::EjectAnswered { .. } => self.ejects += 1,
                // One that was let go leaves, too.
                What::FunctionLeft { .. } => self.surprises += 1,
                _ => {}
            }
            self.events.push_back(Event { at: now, what });
            moved = true;
        }
        Ok(moved)
    }

    /// The host is gone: everything that was shared with it is given back.
    fn dissolve(&mut self, why: &Gone) {
        let pages_kept = self.remote.take().map_or(0, RemoteGuest::dissolve);
        self.tell(What::HostLeft { why: why.to_string(), pages_kept });
    }

    fn report(&mut self, report: &mut Report) -> Result<(), Error> {
        for event in self.events.drain(..) {
            report.event(&event)?;
        }
        Ok(())
    }

    fn views(&self) -> Vec<NicView> {
        let Some(remote) = &self.remote else { return Vec::new() };
        (0..remote.guest.nics()).map(|nic| remote.guest.view(nic)).collect()
    }

    /// Whether no frame of any NIC is on its way out.
    fn is_quiet(&self) -> bool {
        let Some(remote) = &self.remote else { return true };
        (0..remote.guest.nics()).all(|nic| remote.guest.is_quiet(nic))
    }

    /// When something happens next although nobody does anything.
    fn deadline(&self) -> Option<Instant> {
        self.remote.as_ref().and_then(RemoteGuest::deadline)
    }

    /// Sleeps until the host, one of `others`, or the moment `at` wants attention.
    fn wait(
        &self,
        now: Instant,
        at: Option<Instant>,
        others: &[(BorrowedFd<'_>, PollFlags)],
    ) -> Result<(), Error> {
        let at = vmbus::time::earliest(at, self.deadline());
        let timeout = at.map(|at| at.since(now)).and_then(|span| Timespec::try_from(span).ok());
        let ears: Vec<_> = self.remote.iter().flat_map(RemoteGuest::ears).collect();
        let ears = ears.iter().map(|ear| (ear.as_fd(), PollFlags::IN));
        let own = self.remote.iter().flat_map(RemoteGuest::descriptors).chain(ears);
        let all = others.iter().copied().chain(own);
        let mut fds: Vec<_> = all.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Error::System { doing: "wait for frames", source: error.into() }),
        }
    }

    /// The account of frames, for which the host is asked; then the guest takes leave. Without a host there is none.
    fn conclude(&mut self) -> Option<(Account, Facts)> {
        let by = self.now() + ANSWER;
        self.remote.as_mut()?.ask_account();
        let answer = loop {
            let now = self.now();
            if self.settle(now, &mut |_, _| {}).is_err() || now >= by {
                break None;
            }
            if let Some(answer) = self.remote.as_mut().and_then(RemoteGuest::take_account) {
                break Some(answer);
            }
            self.wait(now, Some(by), &[]).ok()?;
        };
        let end = self.now();
        let remote = self.remote.as_mut()?;
        let facts = Facts {
            nics: remote.guest.nics(),
            pairs: remote.guest.pairs(),
            counters: NicLine::all(&remote.guest),
            ejects: self.ejects,
            surprises: self.surprises.saturating_sub(self.ejects),
            end,
            ..Facts::default()
        };
        let mut account = Account::remote(answer?, &remote.guest);
        if self.vf.is_some() && (facts.surprises > 0 || remote.link_losses() > 0) {
            account.swallow();
        }
        remote.leave(end);
        Some((account, facts))
    }
}

/// The first event of such a run.
fn host_event(args: &RunArgs) -> What {
    What::Host { host: "unix", reason: "asked for".into(), seed: args.seed }
}

/// Says how it ended.
fn summarize(
    report: &mut Report,
    account: &Account,
    facts: Facts,
    wall: Duration,
) -> Result<(), Error> {
    report.summary(&account.summary(facts, wall))?;
    match account.lost() {
        0 => Ok(()),
        lost => Err(Error::Run(format!("{lost} frames were lost by orderly switches"))),
    }
}
