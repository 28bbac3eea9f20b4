//! With a TAP: the kernel's own TCP/IP is the traffic. The interface stays while hosts come and go.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant as Clock};

use netvsc::MacAddress;
use netvsc_linux::TapName;
use rustix::event::PollFlags;
use vmbus::Instant;
use vmbus::time::earliest;

use super::super::follow::{Follow, fit_segments};
use super::{Session, host_event, summarize};
use crate::args::RunArgs;
use crate::capture::Capture;
use crate::error::Error;
use crate::event::What;
use crate::line::Line;
use crate::live::{Door, Live, LiveNic};
use crate::remote::RemoteGuest;
use crate::report::Report;
use crate::service::Service;

/// How long frames may take to come to rest at the end.
const REST: Duration = Duration::from_secs(2);
/// How soon another host is looked for after one has gone, at first; twice as late each time.
const SOON: Duration = Duration::from_millis(20);
/// And at the latest.
const LATE: Duration = Duration::from_secs(1);
/// Time between two looks of the live view.
const VIEW: Duration = Duration::from_millis(100);

/// Runs until a signal or the end of `--duration`.
pub(super) fn run(
    args: &RunArgs,
    path: &Path,
    tap: &TapName,
    capture: Option<&Capture>,
    service: &mut Service,
) -> Result<ExitCode, Error> {
    let near = Line::open_with_queues(tap, args.uio.queues)?;
    let mut run = Run {
        session: Session::new(path, args),
        follow: Follow::new(near.tap()).ok(),
        near,
        ready: false,
        capture,
        patience: SOON,
        try_at: None,
        next_statistics: None,
        args,
    };
    // The kernel takes segments as they are.
    run.session.whole = true;
    // The first host has to be there; others are waited for.
    run.session.connect(capture)?;
    let mut report = Report::choose(args.json);
    run.session.tell(host_event(args));
    service.ready();
    let served = run.serve(service, &mut report);
    service.stopping();
    served?;
    let concluded = run.session.conclude();
    run.session.report(&mut report)?;
    let elapsed = run.session.started.elapsed();
    // The interface goes back to what it was before the verdict.
    drop(run);
    if let Some((account, facts)) = concluded {
        summarize(&mut report, &account, facts, elapsed)?;
    }
    Ok(ExitCode::SUCCESS)
}

struct Run<'a> {
    session: Session,
    near: Line,
    /// What somebody does to the interface.
    follow: Option<Follow>,
    /// The first NIC can carry frames. Before that, the kernel keeps what it has: this is a cable that is not plugged in.
    ready: bool,
    capture: Option<&'a Capture>,
    /// How long until another host is looked for.
    patience: Duration,
    /// When that is, while there is none.
    try_at: Option<Instant>,
    next_statistics: Option<Instant>,
    args: &'a RunArgs,
}

impl Run<'_> {
    fn serve(&mut self, service: &mut Service, report: &mut Report) -> Result<(), Error> {
        let end = self.args.duration.map(|span| Instant::ZERO + span.0);
        let every = self.args.stats_interval.0;
        self.next_statistics = (!every.is_zero()).then(|| self.session.now() + every);
        let mut last_view = Clock::now();
        let mut door = Door::open(Path::new("/"));
        loop {
            let now = self.session.now();
            let moved = self.step(now, true)?;
            if let Some(door) = &mut door {
                door.serve(now, || self.live(now));
            }
            self.statistics(now);
            self.session.report(report)?;
            if report.is_live() && last_view.elapsed() > VIEW {
                report.nics(&self.session.views());
                last_view = Clock::now();
            }
            if end.is_some_and(|end| now >= end) || service.asked_to_stop(now) {
                break;
            }
            if !moved {
                let opening = door.as_ref().and_then(|door| door.deadline(now));
                let at = [end, self.try_at, self.next_statistics, service.deadline(), opening]
                    .into_iter()
                    .fold(None, earliest);
                let mut others = vec![(service.as_fd(), PollFlags::IN)];
                others.extend(self.near.polls(self.ready));
                others.extend(door.as_ref().and_then(|door| door.poll(now)));
                others.extend(self.follow.iter().map(|follow| (follow.as_fd(), PollFlags::IN)));
                self.session.wait(now, at, &others)?;
            }
        }
        self.come_to_rest()
    }

    /// Lets what is on its way arrive; takes nothing more from the kernel.
    fn come_to_rest(&mut self) -> Result<(), Error> {
        let by = self.session.now() + REST;
        loop {
            let now = self.session.now();
            let moved = self.step(now, false)?;
            if (self.session.is_quiet() && !moved) || now > by {
                return Ok(());
            }
            if !moved {
                self.session.wait(now, Some(by), &[])?;
            }
        }
    }

    /// Does all that can be done now. `open` is whether the kernel's frames are taken and hosts are looked for.
    fn step(&mut self, now: Instant, open: bool) -> Result<bool, Error> {
        if self.session.remote.is_none() {
            return Ok(open && self.look_for_host(now)?);
        }
        let near = &mut self.near;
        let settled = self.session.settle(now, &mut |nic, fill| {
            if nic == 0 {
                near.push(fill);
            }
        });
        let mut moved = match settled {
            Ok(moved) => moved,
            Err(gone) => {
                self.session.dissolve(&gone);
                self.ready = false;
                (self.patience, self.try_at) = (SOON, Some(now));
                return Ok(true);
            }
        };
        moved |= self.near.drain()?;
        for at in 0..self.session.events.len() {
            match self.session.events.get(at).map(|event| &event.what) {
                Some(&What::NicReady { nic: 0, mac, mtu, .. }) => self.begin(mac, mtu, now)?,
                Some(&What::Address { nic: 0, mac, taken: false }) => {
                    self.near.tap().set_mac(mac)?;
                    self.note();
                }
                _ => {}
            }
        }
        moved |= self.follow(now)?;
        let Some(remote) = &mut self.session.remote else { return Ok(moved) };
        if open && self.ready {
            let guest = &mut remote.guest;
            if self
                .near
                .fetch(|frame, left| guest.transmit_with(0, &left.work(frame).of(&[frame]), now))?
            {
                guest.flush(0);
                moved = true;
            }
        }
        Ok(moved)
    }

    /// The first NIC carries frames: its interface is to look like it.
    fn begin(&mut self, permanent: MacAddress, mtu: u32, now: Instant) -> Result<(), Error> {
        let first = !self.ready;
        self.ready = true;
        let mac = self.session.remote.as_ref().and_then(|remote| remote.guest.address(0));
        let (tap, mac) = (self.near.tap(), mac.unwrap_or(permanent));
        if tap.mac()? != mac {
            // Some kernels change it only while the interface is down.
            tap.set_mac(mac)?;
        }
        // One that was moved into another namespace is its owner's to set.
        if tap.mtu().is_ok_and(|current| current != mtu) {
            tap.set_mtu(mtu)?;
        }
        let longest = self.session.remote.as_ref().map(|remote| remote.guest.longest_segment(0));
        fit_segments(tap, longest.unwrap_or(0));
        if first {
            let _ = tap.set_up(true);
        }
        self.session.mtu = mtu;
        self.note();
        self.listen(now);
        Ok(())
    }

    /// The interface is as this program has set it.
    fn note(&mut self) {
        if let Some(follow) = &mut self.follow {
            follow.note(self.near.tap());
        }
    }

    /// The NIC is to hear what its interface wants.
    fn listen(&mut self, now: Instant) {
        if let (Some(follow), Some(remote)) = (&self.follow, &mut self.session.remote) {
            remote.guest.listen(0, follow.last().filter(), now);
        }
    }

    /// Somebody may have changed the interface: the NIC follows.
    fn follow(&mut self, now: Instant) -> Result<bool, Error> {
        let Some(follow) = &mut self.follow else { return Ok(false) };
        let Some(found) = follow.poll(self.near.tap())? else { return Ok(false) };
        let Some(remote) = self.session.remote.as_mut().filter(|_| self.ready) else {
            return Ok(false);
        };
        let guest = &mut remote.guest;
        if let Some(mac) = found.mac.filter(|mac| guest.address(0) != Some(*mac)) {
            guest.ask_address(0, mac, now);
        }
        guest.listen(0, found.filter(), now);
        if let Some(mtu) = found.mtu.filter(|mtu| *mtu != self.session.mtu) {
            guest.change_mtu(0, mtu, now);
        }
        Ok(true)
    }

    /// Looks for another host if it is time to.
    fn look_for_host(&mut self, now: Instant) -> Result<bool, Error> {
        if self.try_at.is_some_and(|at| at > now) {
            return Ok(false);
        }
        match self.session.connect(self.capture) {
            Ok(()) => {
                self.try_at = None;
                self.session.tell(host_event(self.args));
                Ok(true)
            }
            Err(error) => {
                tracing::debug!(%error, "no host yet");
                self.try_at = Some(now + self.patience);
                self.patience = (self.patience * 2).min(LATE);
                Ok(false)
            }
        }
    }

    /// What whoever asks is told.
    fn live(&self, now: Instant) -> Live {
        let remote = self.session.remote.as_ref();
        let tap = self.near.tap().name().as_str();
        let nics = remote.into_iter().flat_map(|remote| {
            (0..remote.guest.nics()).map(move |nic| {
                let device = (nic == 0).then_some(tap);
                LiveNic::of_guest(&remote.guest, nic, device)
            })
        });
        let mut nics: Vec<_> = nics.collect();
        // The first is the one that the kernel has.
        if let Some(first) = nics.first_mut() {
            first.mtu = self.ready.then_some(self.session.mtu);
            first.vf = remote.and_then(RemoteGuest::vf_interface);
            first.counters.refused = self.near.refused();
        }
        Live::new("unix", now.since(Instant::ZERO).as_secs_f64(), nics)
    }

    fn statistics(&mut self, now: Instant) {
        let Some(at) = self.next_statistics.filter(|at| *at <= now) else { return };
        self.next_statistics = Some(at.max(now) + self.args.stats_interval.0);
        let Some(remote) = &self.session.remote else { return };
        let counters = remote.guest.counters(0);
        let what = What::Statistics {
            tx_synthetic: counters.frames_synthetic,
            tx_vf: counters.frames_vf,
            rx: counters.frames_received,
            refused: self.near.refused(),
        };
        self.session.tell(what);
    }
}
