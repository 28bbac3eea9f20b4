//! `netvsc watch`: what happens to pairs, as it happens.
//!
//! The machine is `netvsc_linux::watch`; here are the clock, the waiting and the printing.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use netvsc_linux::inventory::{Depth, Snapshot, clock, take, take_without_log};
use netvsc_linux::relation::{State, wants_samples};
use netvsc_linux::udev::retrigger;
use netvsc_linux::watch::{Change, Ears, Heard, News, Told, Watch, What, history};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
use vmbus::Instant;
use vmbus::time::earliest;

use crate::error::Error;
use crate::inspect::args::{OutputArgs, SourceArgs};
use crate::inspect::document::SCHEMA_VERSION;
use crate::inspect::table::plain;
use crate::inspect::{INTERVAL, NO_HYPERV, watch_counters};
use crate::stop::stop_signal;
use crate::units::Span;

/// How often everything is looked at, whatever was heard. The only reason to wake up on an idle machine.
const ROUND: Duration = Duration::from_secs(60);
/// And how often while nothing but counters can tell that a NIC is accelerated.
const LOOK: Duration = Duration::from_secs(1);

/// What is said at length about the verb.
pub const LONG: &str = "\
Print what happens to the pairs of this Linux guest, as it happens, until Ctrl-C.

First each NIC with its state, then a line for each change: states, the path of frames, VFs that leave and come back, \
with how long what ended had lasted. What the host associates and which path frames take stands in the kernel log only, \
which needs CAP_SYSLOG; without it those states are unknown. Events that the kernel had to drop are made up for by \
looking at everything anew.

With --until settled it ends once every NIC is accelerated or has no VF to wait for, as a unit may need that begins behind it. Where the \
kernel log does not tell, a NIC whose counters show frames that go through its VF is accelerated; where they do not either, it waits \
for them until --timeout, and fails at once without one.

With --sysfs-root there is nothing to wait for: what the kernel log of that guest tells of the past is printed, then \
each NIC with its state.";

/// Exit statuses of the verb.
pub const STATUS: &str = "\
Exit status:
  0  it was asked to stop, by Ctrl-C, a signal, a reader that went away, or the end of a recorded guest; with --until settled, all
     NICs are as they will stay
  1  links cannot be listened to, or the history cannot be written; with --until settled, some NIC was not in time, or nobody
     can tell of it
  2  the command line makes no sense";

/// Options of `netvsc watch`.
#[derive(Clone, Debug, Args)]
pub struct WatchArgs {
    /// Also interfaces that are no NICs: their coming and going, names, up and down
    #[arg(short, long)]
    pub all: bool,

    /// First what the kernel log tells of the past
    #[arg(long)]
    pub history: bool,

    /// Append every change to this file as well, as JSON
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,

    /// Have udev look again at a VF when it is joined with its NIC
    #[arg(long, conflicts_with = "sysfs_root")]
    pub notify_udev: bool,

    /// End once every NIC is accelerated, or has no VF to wait for
    #[arg(long, value_enum, value_name = "WHEN")]
    pub until: Option<Until>,

    /// With --until, fail after this time instead of waiting for ever
    #[arg(long, value_name = "SPAN", requires = "until")]
    pub timeout: Option<Span>,

    /// Where to look.
    #[command(flatten)]
    pub source: SourceArgs,

    /// How to say it.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// When to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Until {
    /// No NIC waits for a VF
    Settled,
}

/// A change as JSON: one object per line.
#[derive(Serialize)]
struct Line<'a> {
    schema_version: u32,
    at: Option<String>,
    uptime: f64,
    event: &'static str,
    ifname: Option<&'a str>,
    ifindex: Option<u32>,
    guid: Option<String>,
    state: Option<&'static str>,
    from: Option<&'a str>,
    to: Option<String>,
    after: Option<f64>,
    vf: Option<&'a str>,
    pci: Option<String>,
    serial: Option<u32>,
    up: Option<bool>,
    detail: Option<&'a str>,
}

impl<'a> Line<'a> {
    fn of(change: &'a Change, at: Option<String>) -> Self {
        let subject = change.subject.as_ref();
        let seconds = |at: Instant| at.since(Instant::ZERO).as_secs_f64();
        let mut line = Self {
            schema_version: SCHEMA_VERSION,
            at,
            uptime: seconds(change.at),
            event: change.what.word(),
            ifname: subject.map(|subject| subject.name.as_str()),
            ifindex: subject.and_then(|subject| subject.index),
            guid: subject.and_then(|subject| subject.guid).map(|guid| guid.to_string()),
            state: None,
            from: None,
            to: None,
            after: change.what.after().map(|span| span.as_secs_f64()),
            vf: None,
            pci: None,
            serial: None,
            up: None,
            detail: None,
        };
        match &change.what {
            What::Present { state, vf, .. } => {
                (line.state, line.vf) = (Some(state.word()), vf.as_deref());
            }
            What::Arrived { state } | What::Gone { state } => line.state = Some(state.word()),
            What::State { from, to, obstacle, .. } => {
                (line.state, line.from) = (Some(to.word()), Some(from.word()));
                (line.to, line.detail) = (Some(to.to_string()), obstacle.as_deref());
            }
            What::Path { to, .. } => line.to = Some(to.to_string()),
            What::VfGone { vf, pci, .. } | What::VfBack { vf, pci, .. } => {
                (line.vf, line.pci) = (Some(vf.as_str()), pci.map(|pci| pci.to_string()));
            }
            What::Associated { serial } => line.serial = *serial,
            What::Renamed { from } => line.from = Some(from),
            What::Up { up } => line.up = Some(*up),
            What::Resynchronised { lost } => line.detail = Some(lost),
            What::LinkArrived | What::LinkGone => {}
        }
        line
    }
}

/// Where changes go.
struct Teller<'a> {
    args: &'a WatchArgs,
    log: Option<(&'a PathBuf, File)>,
    live: bool,
    /// Whether nobody reads standard output any more.
    alone: bool,
}

impl<'a> Teller<'a> {
    fn new(args: &'a WatchArgs) -> Result<Self, Error> {
        let log = args.log.as_ref().map(|path| {
            let file = OpenOptions::new().append(true).create(true).open(path);
            file.map(|file| (path, file))
                .map_err(|source| Error::History { path: path.clone(), source })
        });
        let live = args.source.sysfs_root.is_none();
        Ok(Self { args, log: log.transpose()?, live, alone: false })
    }

    fn tell(&mut self, change: &Change) -> Result<(), Error> {
        let subject = change.subject.as_ref();
        if !self.args.all && subject.is_some_and(|subject| subject.guid.is_none()) {
            return Ok(());
        }
        let at = self.live.then(|| wall(change.at)).map(humantime::format_rfc3339_millis);
        let at = at.map(|at| at.to_string());
        let json = || {
            let line = serde_json::to_string(&Line::of(change, at.clone()));
            line.map(|line| line + "\n").map_err(|error| Error::Output(error.into()))
        };
        if let Some((path, file)) = &mut self.log {
            let failed = |source| Error::History { path: path.clone(), source };
            file.write_all(json()?.as_bytes()).map_err(failed)?;
        }
        let text = if self.args.output.json() {
            json()?
        } else {
            let at = at.clone().unwrap_or_else(|| format!("[{:>12}]", change.at.to_string()));
            let name = subject.map_or("netvsc", |subject| subject.name.as_str());
            let text = format!("{at} {name}: {}", change.what);
            // Names are somebody else's choice.
            text.chars().filter(|c| !c.is_control()).chain(['\n']).collect()
        };
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.alone = true,
            Err(error) => return Err(Error::Output(error)),
            Ok(()) => {}
        }
        Ok(())
    }

    fn drain(&mut self, watch: &mut Watch) -> Result<(), Error> {
        while let Some(change) = watch.poll_change() {
            self.tell(&change)?;
            if let (true, What::VfBack { .. }) = (self.args.notify_udev, &change.what)
                && let Some(subject) = &change.subject
            {
                // A VF that went meanwhile has no event to raise.
                let _ = retrigger(None, &subject.name, &mut |_| None);
            }
        }
        Ok(())
    }
}

/// Now, on the clock of the kernel log.
fn now() -> Instant {
    Instant::ZERO + clock::now()
}

/// When that was by the calendar.
fn wall(at: Instant) -> SystemTime {
    SystemTime::now().checked_sub(now().since(at)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// `netvsc watch`.
///
/// # Errors
/// If links cannot be listened to, the root cannot be used, or something cannot be written.
pub fn watch(args: &WatchArgs) -> Result<(), Error> {
    let mut teller = Teller::new(args)?;
    if let Some(root) = &args.source.sysfs_root {
        let snapshot = take(Some(root), Depth::Pairs)?;
        for change in history(&snapshot) {
            teller.tell(&change)?;
        }
        let end = Instant::ZERO + snapshot.uptime.or(snapshot.log.newest).unwrap_or_default();
        let mut watch = Watch::new(snapshot, end);
        teller.drain(&mut watch)?;
        return match args.until.map_or(Settled::Yes, |Until::Settled| settled(&watch)) {
            Settled::Yes => Ok(()),
            Settled::No => Err(late(&watch)),
            Settled::Untold(error) => Err(error),
        };
    }
    let deadline = args.timeout.map(|Span(span)| now() + span);
    let stop = stop_signal()?;
    let mut ears = Ears::open()?;
    for why in ears.deaf() {
        crate::remark(why);
    }
    let log = ears.log_so_far();
    let snapshot = Snapshot { log, ..take_without_log(Depth::Pairs)? };
    if !snapshot.hyperv && !args.all {
        crate::remark(NO_HYPERV);
    }
    if args.history {
        for change in history(&snapshot) {
            teller.tell(&change)?;
        }
    }
    let mut watch = Watch::new(snapshot, now());
    teller.drain(&mut watch)?;
    while !teller.alone {
        let over = deadline.is_some_and(|end| now() >= end);
        let settled = args.until.map(|Until::Settled| settled(&watch));
        let (stopped, round) = match settled {
            Some(Settled::Yes) => break,
            Some(Settled::Untold(error)) if over || deadline.is_none() => return Err(error),
            _ if over => return Err(late(&watch)),
            Some(Settled::Untold(_)) => {
                let look = earliest(deadline, Some(now() + LOOK));
                wait(&ears, stop.as_fd(), look)?
            }
            _ => wait(&ears, stop.as_fd(), deadline)?,
        };
        let again = listen(&mut ears, &mut watch)?;
        match again {
            Again::No if !round => watch.settle(now()),
            again => {
                let lost = if let Again::Lost(what) = again { Some(what) } else { None };
                watch.replace(take_without_log(Depth::Pairs)?, lost, now());
            }
        }
        teller.drain(&mut watch)?;
        if stopped {
            break;
        }
    }
    Ok(())
}

/// Whether all NICs are as they will stay.
enum Settled {
    Yes,
    /// Some NIC waits for a VF.
    No,
    /// None does but those of which nobody can tell: the log would have told already, and counters do not.
    Untold(Error),
}

fn settled(watch: &Watch) -> Settled {
    match watch.unsettled() {
        None => return Settled::Yes,
        Some((_, State::Unknown)) => {}
        Some(_) => return Settled::No,
    }
    let mut snapshot = watch.snapshot().clone();
    let why = if snapshot.log.read {
        "the kernel log does not go back to the boot"
    } else {
        "the kernel log could not be read"
    };
    // What is counted is true for now only, so the one that watches goes on without it.
    if snapshot.live && wants_samples(&snapshot) {
        watch_counters(&mut snapshot, INTERVAL);
    }
    let counted = Watch::new(snapshot, now());
    let untold = |(nic, _)| Settled::Untold(Error::Untold { nic: plain(nic), why });
    counted.unsettled().map_or(Settled::Yes, untold)
}

/// That there is a NIC which still waits for a VF.
fn late(watch: &Watch) -> Error {
    let (nic, state) = watch.unsettled().unwrap_or(("no NIC", State::Unknown));
    Error::Unsettled { nic: plain(nic), state: state.word() }
}

/// Whether everything has to be looked at anew.
enum Again {
    No,
    Yes,
    /// Because events of this source were lost.
    Lost(&'static str),
}

fn listen(ears: &mut Ears, watch: &mut Watch) -> Result<Again, Error> {
    let mut again = Again::No;
    for heard in ears.listen()? {
        match heard {
            Heard::Lost(what) => again = Again::Lost(what),
            Heard::News(news) => {
                let said = matches!(news, News::Said(_));
                if watch.tell(news) == Told::LookAgain && matches!(again, Again::No) {
                    again = Again::Yes;
                }
                // Of a path that is switched to and fro, both are told.
                if said && matches!(again, Again::No) {
                    watch.settle(now());
                }
            }
        }
    }
    Ok(again)
}

/// Sleeps until there is something to hear, or the deadline is there. Says whether the program is to stop, and whether a round is
/// over.
fn wait(
    ears: &Ears,
    stop: std::os::fd::BorrowedFd<'_>,
    deadline: Option<Instant>,
) -> Result<(bool, bool), Error> {
    let mut fds: Vec<PollFd<'_>> = std::iter::once(stop)
        .chain(ears.descriptors())
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
    let left = deadline.map_or(ROUND, |end| end.since(now()).min(ROUND));
    let round = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(60),
        tv_nsec: left.subsec_nanos().into(),
    };
    match poll(&mut fds, Some(&round)) {
        Ok(0) => Ok((false, true)),
        Ok(_) => Ok((fds.first().is_some_and(|stop| !stop.revents().is_empty()), false)),
        Err(Errno::INTR) => Ok((false, false)),
        Err(error) => Err(Error::System { doing: "wait for events", source: error.into() }),
    }
}
