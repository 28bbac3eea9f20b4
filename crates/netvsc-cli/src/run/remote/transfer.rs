//! Without a TAP: one transfer over every NIC, to or from the stack behind it in the host's process.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant as Clock};

use netvsc::MacAddress;
use rustix::event::PollFlags;
use vmbus::Instant;
use vmbus::time::earliest;

use super::{Session, host_event, summarize};
use crate::args::RunArgs;
use crate::capture::Capture;
use crate::errand::{Errand, address};
use crate::error::Error;
use crate::event::What;
use crate::guest::Sending;
use crate::report::Report;
use crate::service::Service;
use crate::transfer::{Endpoint, Source};

/// How long frames may take to come to rest at the end.
const REST: Duration = Duration::from_secs(2);
/// Time between two looks of the live view.
const VIEW: Duration = Duration::from_millis(100);

/// One NIC's traffic.
struct Lane {
    stack: Endpoint,
    errand: Errand,
    told: bool,
}

/// Runs until every transfer is complete.
pub(super) fn run(
    args: &RunArgs,
    path: &Path,
    capture: Option<&Capture>,
    service: &mut Service,
) -> Result<ExitCode, Error> {
    // Whatever is wrong with the input is found before anything is printed.
    if let Some(path) = &args.transfer {
        Source::file(path)?;
    }
    let mut run = Run { session: Session::new(path, args), lanes: Vec::new(), args };
    run.session.connect(capture)?;
    let mut report = Report::choose(args.json);
    run.session.tell(host_event(args));
    run.serve(service, &mut report)?;
    run.finish(&mut report)?;
    Ok(ExitCode::SUCCESS)
}

struct Run<'a> {
    session: Session,
    /// By NIC, once it is ready.
    lanes: Vec<Option<Lane>>,
    args: &'a RunArgs,
}

impl Run<'_> {
    fn serve(&mut self, service: &mut Service, report: &mut Report) -> Result<(), Error> {
        let mut last_view = Clock::now();
        let mut rest_by = None;
        loop {
            let now = self.session.now();
            let moved = self.step(now)?;
            self.session.report(report)?;
            if report.is_live() && last_view.elapsed() > VIEW {
                report.nics(&self.session.views());
                last_view = Clock::now();
            }
            if self.done() {
                let by = *rest_by.get_or_insert(now + REST);
                if (self.session.is_quiet() && !moved) || now > by {
                    return Ok(());
                }
            }
            if service.asked_to_stop(now) {
                return Err(Error::Run(
                    "it was asked to stop before the transfers were over".into(),
                ));
            }
            if !moved {
                let at = self.lanes.iter_mut().flatten().map(|lane| lane.stack.deadline(now));
                let at = at.fold(earliest(rest_by, service.deadline()), earliest);
                self.session.wait(now, at, &[(service.as_fd(), PollFlags::IN)])?;
            }
        }
    }

    /// Whether every NIC's transfer is complete.
    fn done(&self) -> bool {
        let nics = self.session.remote.as_ref().map_or(0, |remote| remote.guest.nics());
        let done = self.lanes.iter().flatten().filter(|lane| lane.errand.done()).count();
        nics > 0 && done == nics
    }

    fn step(&mut self, now: Instant) -> Result<bool, Error> {
        let lanes = &mut self.lanes;
        let settled = self.session.settle(now, &mut |nic, fill| {
            if let Some(Some(lane)) = lanes.get_mut(nic) {
                lane.stack.push(|buffer| _ = fill(buffer));
            }
        });
        let mut moved = match settled {
            Ok(moved) => moved,
            Err(gone) => {
                self.session.dissolve(&gone);
                return Err(gone.into());
            }
        };
        let ready: Vec<(usize, MacAddress)> = self
            .session
            .events
            .iter()
            .filter_map(|event| match event.what {
                What::NicReady { nic, mac, .. } => Some((nic, mac)),
                _ => None,
            })
            .collect();
        for (nic, mac) in ready {
            self.start(nic, mac, now)?;
        }
        for nic in 0..self.lanes.len() {
            moved |= self.carry(nic, now)?;
        }
        Ok(moved)
    }

    /// A NIC is ready: its transfer begins. Even ones send, odd ones receive; a file is always sent.
    fn start(&mut self, nic: usize, mac: MacAddress, now: Instant) -> Result<(), Error> {
        if self.lanes.len() <= nic {
            self.lanes.resize_with(nic + 1, || None);
        }
        let Some(remote) = &self.session.remote else { return Ok(()) };
        let Some(place) = self.lanes.get_mut(nic).filter(|lane| lane.is_none()) else {
            return Ok(());
        };
        let seed = self.args.seed.wrapping_mul(1000).wrapping_add(nic as u64);
        let mut stack = Endpoint::new(mac, address(nic, 1), seed, now);
        stack.leave(remote.guest.offloads(nic), now);
        let (there, size) = (address(nic, 2), self.args.size.0);
        let errand = match &self.args.transfer {
            Some(path) => Errand::deliver(Source::file(path)?, &mut stack, there)?,
            None if nic.is_multiple_of(2) => {
                Errand::deliver(Source::seeded(seed, size), &mut stack, there)?
            }
            None => Errand::fetch(size, seed, &mut stack, there)?,
        };
        *place = Some(Lane { stack, errand, told: false });
        Ok(())
    }

    /// Moves the traffic of one NIC as far as it goes.
    fn carry(&mut self, nic: usize, now: Instant) -> Result<bool, Error> {
        let (Some(Some(lane)), Some(remote)) = (self.lanes.get_mut(nic), &mut self.session.remote)
        else {
            return Ok(false);
        };
        let mut moved = lane.errand.step(&mut lane.stack)?;
        lane.stack.poll(now);
        let mut sent = false;
        while let Some(frame) = lane.stack.front() {
            let work = lane.stack.front_work();
            match remote.guest.transmit_with(nic, &work.of(&[frame]), now) {
                Sending::Taken => sent = true,
                Sending::Later => break,
            }
            lane.stack.pop();
        }
        if sent {
            remote.guest.flush(nic);
            moved = true;
        }
        if lane.errand.done() && !std::mem::replace(&mut lane.told, true) {
            let what = What::TransferDone {
                nic,
                flow: None,
                bytes: lane.errand.progress().0,
                digest: lane.errand.digest(),
                digest_ok: lane.errand.digest_ok(),
            };
            self.session.tell(what);
            moved = true;
        }
        Ok(moved)
    }

    fn finish(&mut self, report: &mut Report) -> Result<(), Error> {
        let Some((account, mut facts)) = self.session.conclude() else {
            return Err(Error::Remote("the host left without an account of the frames".into()));
        };
        self.session.report(report)?;
        let lanes = || self.lanes.iter().flatten();
        facts.bytes = lanes().map(|lane| lane.errand.progress().0).sum();
        let good = lanes().all(|lane| lane.errand.digest_ok());
        facts.digest_ok = Some(good);
        summarize(report, &account, facts, self.session.started.elapsed())?;
        if good { Ok(()) } else { Err(Error::Run("a digest differs from what was sent".into())) }
    }
}
