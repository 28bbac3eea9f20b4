//! `netvsc run --host uio`: synthetic NICs of this machine, driven from user space (PROTOCOL §12).
//!
//! `choose` says which, `card` is the machine of one of them over its device, `nic` its life together with a TAP interface that
//! stands in the place of the interface that the kernel's driver had.

pub(crate) mod args;
mod card;
mod choose;
mod nic;
mod vf;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant as Clock;

use netvsc::adapter::AdapterCounters;
use netvsc::rndis::scaling::KEY_SIZE;
use netvsc_linux::TapName;
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vmbus::time::earliest;
use vmbus::{Guid, Instant};

use self::nic::{Setup, UioNic, Voice};
use self::vf::Vf;
use crate::args::RunArgs;
use crate::bind::would_be_refused;
use crate::capture::Capture;
use crate::error::Error;
use crate::event::{Event, What};
use crate::inspect::print;
use crate::line::Line;
use crate::live::{Door, Live, LiveNic};
use crate::report::Report;
use crate::service::Service;

/// Runs until a signal, the end of `--duration`, or the end of the last NIC.
///
/// # Errors
/// If there is no NIC, one is needed, the kernel or the host refuses something, or the host takes back the last NIC.
pub(super) fn run(args: &RunArgs, capture: Option<&Capture>) -> Result<ExitCode, Error> {
    let root = args.uio.sysfs_root.as_deref().unwrap_or(Path::new("/"));
    let (chosen, refused) = choose::choose(&args.uio)?;
    if args.uio.dry_run {
        let told: String = refused.iter().map(would_be_refused).collect();
        print(&(told + &choose::writes(&chosen, root)?))?;
        return refused.into_iter().next().map_or(Ok(ExitCode::SUCCESS), Err);
    }
    let names = tap_names(args, chosen.len())?;
    let mut service = Service::start(&args.log)?;
    // Whatever can be refused without touching a NIC comes first.
    let open = |name| Line::open_with_queues(name, args.uio.queues);
    let lines = names.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let guids: Vec<_> = chosen.iter().map(|chosen| chosen.guid).collect();
    let interface = args.vf_interface();
    let vf = interface.map(|vf| Vf::new(root, &vf, &guids, Instant::ZERO)).transpose()?;
    let mut run = Run {
        nics: Vec::new(),
        vf,
        events: VecDeque::new(),
        started: Clock::now(),
        next_statistics: None,
        args,
    };
    let reason = "asked for".into();
    run.tell(What::Host { host: "uio", reason, seed: args.seed });
    let mut report = Report::choose(args.json);
    let mut random = Xoshiro256PlusPlus::seed_from_u64(args.seed);
    for (number, (chosen, line)) in chosen.iter().zip(lines).enumerate() {
        let binding = choose::bind(chosen, root)?;
        let mut key = [0; KEY_SIZE];
        random.fill_bytes(&mut key);
        let setup = Setup {
            number,
            guid: chosen.guid,
            root: root.to_owned(),
            mtu: args.mtu,
            queues: args.uio.queues,
            vf: run.vf.is_some(),
            key,
            capture: capture.cloned(),
        };
        run.nics.push(UioNic::new(setup, Some(binding), line, Instant::ZERO)?);
    }
    service.ready();
    let served = run.serve(&mut service, &mut report);
    service.stopping();
    // Also after an error, so that every NIC goes back in order.
    let rested = run.come_to_rest();
    run.statistics();
    run.report(&mut report)?;
    match served.and_then(|end| rested.map(|()| end))? {
        End::Wanted => Ok(ExitCode::SUCCESS),
        // Whoever started it is to know, and may start it again once there is a NIC.
        End::NoNic => Err(Error::TakenBack { nics: guids.iter().map(Guid::to_string).collect() }),
    }
}

/// The names of the interfaces: that of `--tap` for one NIC, `nv0` and so on for several.
fn tap_names(args: &RunArgs, nics: usize) -> Result<Vec<TapName>, Error> {
    match &args.tap {
        Some(name) if nics == 1 => Ok(vec![name.clone()]),
        Some(name) => Err(Error::Run(format!(
            "--tap {name} is one interface for {nics} NICs: leave it out, and they are called nv0, nv1 and so on"
        ))),
        None => {
            let name = |number| format!("nv{number}").parse::<TapName>();
            let names = (0..nics).map(name).collect::<Result<_, _>>();
            names.map_err(|error| Error::Run(error.to_string()))
        }
    }
}

/// Why a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By a signal or after its time.
    Wanted,
    /// The host has taken back all NICs.
    NoNic,
}

struct Run<'a> {
    nics: Vec<UioNic>,
    /// The kernel's VF of one of them.
    vf: Option<Vf>,
    events: VecDeque<Event>,
    started: Clock,
    next_statistics: Option<Instant>,
    args: &'a RunArgs,
}

impl Run<'_> {
    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn tell(&mut self, what: What) {
        let at = self.now();
        self.events.push_back(Event { at, what });
    }

    fn report(&mut self, report: &mut Report) -> Result<(), Error> {
        for event in self.events.drain(..) {
            report.event(&event)?;
        }
        Ok(())
    }

    fn serve(&mut self, service: &mut Service, report: &mut Report) -> Result<End, Error> {
        let end = self.args.duration.map(|span| Instant::ZERO + span.0);
        let every = self.args.stats_interval.0;
        self.next_statistics = (!every.is_zero()).then(|| self.now() + every);
        let root = self.args.uio.sysfs_root.as_deref().unwrap_or(Path::new("/"));
        let mut door = Door::open(root);
        loop {
            let moved = self.step()?;
            let now = self.now();
            if let Some(door) = &mut door {
                door.serve(now, || self.live());
            }
            if let Some(at) = self.next_statistics.filter(|at| *at <= now) {
                self.next_statistics = Some(at.max(now) + every);
                self.statistics();
            }
            self.report(report)?;
            let asked = service.asked_to_stop(now);
            if asked || end.is_some_and(|end| now >= end) {
                return Ok(End::Wanted);
            }
            if self.nics.iter().all(UioNic::is_ended) {
                return Ok(End::NoNic);
            }
            let opening = door.as_ref().and_then(|door| door.deadline(now));
            let at = [self.next_statistics, service.deadline(), moved.then_some(now), opening];
            let at = at.into_iter().fold(end, earliest);
            let asked = door.as_ref().filter(|_| !moved).and_then(|door| door.poll(now));
            let others = asked.into_iter().chain([(service.as_fd(), PollFlags::IN)]);
            self.wait(at, others)?;
        }
    }

    /// Lets every NIC stop in order.
    fn come_to_rest(&mut self) -> Result<(), Error> {
        let now = self.now();
        for nic in &mut self.nics {
            nic.stop(false, now);
        }
        while !self.nics.iter().all(UioNic::is_ended) {
            let at = self.step()?.then(|| self.now());
            self.wait(at, [])?;
        }
        // What came of the end itself.
        self.step().map(drop)
    }

    /// Does all that can be done now. True if anything was done.
    fn step(&mut self) -> Result<bool, Error> {
        let now = self.now();
        let mut moved = false;
        for nic in &mut self.nics {
            let stepped = nic.step(now);
            let told = nic.take_events();
            self.events.extend(told.into_iter().map(|what| Event { at: now, what }));
            moved |= stepped?;
        }
        if let Some(vf) = &mut self.vf {
            moved |= vf.poll(now, &mut self.nics)?;
            let told = vf.take_events();
            self.events.extend(told.into_iter().map(|what| Event { at: now, what }));
        }
        Ok(moved)
    }

    /// Sleeps until a NIC, its VF or one of `others` wants attention, and takes up what the NICs want.
    fn wait<'a>(
        &mut self,
        at: Option<Instant>,
        others: impl IntoIterator<Item = (BorrowedFd<'a>, PollFlags)>,
    ) -> Result<(), Error> {
        let now = self.now();
        let at = self.nics.iter().map(UioNic::deadline).fold(at, earliest);
        let at = earliest(at, self.vf.as_ref().and_then(Vf::deadline));
        let ears = self.vf.as_ref().map(Vf::ears).unwrap_or_default();
        let timeout = at.map(|at| at.since(now)).and_then(|span| Timespec::try_from(span).ok());
        let (mut fds, mut owners) = (Vec::new(), Vec::new());
        for (number, nic) in self.nics.iter().enumerate().filter(|(_, nic)| !nic.is_ended()) {
            for (voice, fd, flags) in nic.descriptors() {
                fds.push(PollFd::from_borrowed_fd(fd, flags));
                owners.push((number, voice));
            }
        }
        let others = others.into_iter();
        fds.extend(others.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        fds.extend(ears.iter().map(|ear| PollFd::new(&**ear, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                return Err(Error::System { doing: "wait for frames", source: error.into() });
            }
        }
        let heard = owners.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        let heard: Vec<_> = heard.map(|(owner, _)| owner).collect();
        for (number, voice) in heard {
            let Some(nic) = self.nics.get_mut(number) else { continue };
            match voice {
                Voice::Device => nic.interrupted()?,
                Voice::News => nic.follow(now)?,
                // It is looked at in any case.
                Voice::Interface => {}
            }
        }
        Ok(())
    }

    /// What whoever asks is told.
    fn live(&self) -> Live {
        let nics = self.nics.iter().enumerate().map(|(number, nic)| {
            let vf = self.vf.as_ref().and_then(|vf| vf.of(number));
            LiveNic { vf: vf.map(str::to_owned), ..nic.live() }
        });
        Live::new("uio", self.started.elapsed().as_secs_f64(), nics.collect())
    }

    fn statistics(&mut self) {
        let mut all = (AdapterCounters::default(), 0);
        for nic in &self.nics {
            let (counters, refused) = nic.counters();
            all = (all.0 + counters, all.1 + refused);
        }
        let (counters, refused) = all;
        self.tell(What::Statistics {
            tx_synthetic: counters.frames_synthetic,
            tx_vf: counters.frames_vf,
            rx: counters.frames_received,
            refused,
        });
    }
}
