//! `netvsc run --tap`: the kernel's own TCP/IP is the traffic.
//!
//! The first NIC carries what the kernel sends into one TAP; behind the virtual switch is a second TAP, or a small stack
//! that answers pings. Host and guest are those of the default run, on the kernel's clock.

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant as Clock};

use hyperv_host::switch::Offered;
use netvsc::MacAddress;
use netvsc_linux::TapName;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use smoltcp::wire::Ipv4Address;
use vmbus::Instant;

use super::follow::{Follow, Settings};
use super::plan::Plan;
use super::stage::Stage;
use super::{NICS, host_event};
use crate::args::RunArgs;
use crate::capture::Capture;
use crate::error::Error;
use crate::guest::Sending;
use crate::line::Line;
use crate::live::{Door, Live, LiveNic};
use crate::report::Report;
use crate::scenario::Script;
use crate::service::Service;
use crate::transfer::Endpoint;

/// How long frames may take to come to rest at the end.
const REST: Duration = Duration::from_secs(2);
/// Address of the stack behind the switch where there is no second TAP.
const PEER: Ipv4Address = Ipv4Address::new(192, 0, 2, 2);

/// What is behind the switch.
enum Far {
    Line(Box<Line>),
    Stack(Box<Endpoint>),
}

/// MAC of that stack.
const PEER_MAC: MacAddress = MacAddress([0x02, 0, 0, 0, 1, 0]);

/// A run with the kernel's traffic.
struct Session {
    stage: Stage,
    near: Line,
    /// What somebody does to its interface.
    follow: Option<Follow>,
    far: Far,
    /// The first NIC can carry frames. Before that, the kernel keeps what it has: this is a cable that is not plugged in yet.
    ready: bool,
    started: Clock,
}

/// Runs until a signal or the end of `--duration`.
///
/// # Errors
/// If a TAP cannot be had or breaks, or frames were lost.
pub(super) fn run(
    args: &RunArgs,
    tap: &TapName,
    capture: Option<&Capture>,
) -> Result<ExitCode, Error> {
    let mut service = Service::start(&args.log)?;
    let mut session = Session::new(args, tap)?;
    if let Some(capture) = capture {
        session.stage.world.guest.capture_into(capture.clone());
    }
    let mut report = Report::choose(args.json);
    session.stage.tell(Instant::ZERO, host_event(args));
    session.serve(args, &mut service, &mut report)?;
    let (account, mut facts) = session.stage.totals(session.now());
    let port = session.stage.world.host.port_counters(0);
    facts.bytes = port.map_or(0, |port| port.to_peer_bytes + port.from_peer_bytes);
    let lost = account.lost();
    report.summary(&account.summary(facts, session.started.elapsed()))?;
    // The TAPs go back to what they were before the verdict.
    drop(session);
    if lost > 0 {
        return Err(Error::Run(format!("{lost} frames were lost by orderly switches")));
    }
    Ok(ExitCode::SUCCESS)
}

impl Session {
    fn new(args: &RunArgs, tap: &TapName) -> Result<Self, Error> {
        // Everything that can be refused comes first, so that a refused run leaves nothing behind.
        let near = Line::open_with_queues(tap, args.uio.queues)?;
        let far = args.peer_tap.as_ref().map(Line::open).transpose()?;
        let now = Instant::ZERO;
        let mut plan = Plan::new(args.seed, NICS, true).with_queues(args.uio.queues);
        for nic in &mut plan.nics {
            nic.nic.policy.own_unicast = true;
        }
        let mac = plan.nics.first().map_or(plan.emulated, |nic| nic.nic.mac);
        near.tap().set_mac(mac)?;
        near.tap().set_up(true)?;
        let follow = Follow::new(near.tap()).ok();
        let far = match far {
            Some(line) => {
                line.tap().set_up(true)?;
                Far::Line(Box::new(line))
            }
            None => Far::Stack(Box::new(Endpoint::new(PEER_MAC, PEER, args.seed, now))),
        };
        let churn = args.churn.0;
        let mut stage = Stage::new(plan, now, |nic, plan| {
            let serial = plan.nics[nic].vf.serial;
            if churn.is_zero() { Script::quiet(serial) } else { Script::churn(churn, serial) }
        })?;
        // The kernel takes long segments as they are.
        stage.world.host.set_peer_cuts(0, matches!(far, Far::Line(_)));
        Ok(Self { stage, near, follow, far, ready: false, started: Clock::now() })
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn serve(
        &mut self,
        args: &RunArgs,
        service: &mut Service,
        report: &mut Report,
    ) -> Result<(), Error> {
        self.stage.world.guest.start(self.now())?;
        let end = args.duration.map(|span| Instant::ZERO + span.0);
        let mut last_view = Clock::now();
        let mut door = Door::open(std::path::Path::new("/"));
        loop {
            let now = self.now();
            let moved = self.step(now, true)?;
            if let Some(door) = &mut door {
                door.serve(now, || self.live(now));
            }
            for event in self.stage.events.drain(..) {
                report.event(&event)?;
            }
            if report.is_live() && last_view.elapsed() > Duration::from_millis(100) {
                report.nics(&self.stage.views());
                last_view = Clock::now();
            }
            if end.is_some_and(|end| now >= end) || service.asked_to_stop(now) {
                break;
            }
            if !moved {
                self.wait(now, end, service, door.as_ref())?;
            }
        }
        self.come_to_rest()?;
        for event in self.stage.events.drain(..) {
            report.event(&event)?;
        }
        Ok(())
    }

    /// Lets what is on its way arrive; takes nothing more from the kernel.
    fn come_to_rest(&mut self) -> Result<(), Error> {
        let by = self.now() + REST;
        loop {
            let now = self.now();
            let moved = self.step(now, false)?;
            let quiet = (0..self.stage.nics()).all(|nic| self.stage.is_quiet(nic));
            if (quiet && !moved) || now > by {
                return Ok(());
            }
            if !moved {
                std::thread::yield_now();
            }
        }
    }

    /// Does all that can be done now. `open` is whether the kernel's frames are taken and the scripts go on.
    fn step(&mut self, now: Instant, open: bool) -> Result<bool, Error> {
        let near = &mut self.near;
        self.stage.world.settle(now, &mut |nic, fill| {
            if nic == 0 {
                near.push(fill);
            }
        });
        let mut moved = self.near.drain()?;
        let ready = &mut self.ready;
        let was_ready = *ready;
        moved |= self.stage.handle_events(now, |nic| {
            *ready |= nic == 0;
            Ok(())
        })?;
        moved |= self.follow(now, !was_ready)?;
        moved |= self.carry_far(now, open && self.ready)?;
        if open {
            moved |= self.stage.follow_scripts(now, |_| 0)?;
            let guest = &mut self.stage.world.guest;
            if self.ready
                && self.near.fetch(|frame, left| {
                    guest.transmit_with(0, &left.work(frame).of(&[frame]), now)
                })?
            {
                guest.flush(0);
                moved = true;
            }
        }
        Ok(moved)
    }

    /// Somebody may have changed the interface: the NIC follows with its address, and hears what the interface wants. Of `new` it
    /// is all to be told.
    fn follow(&mut self, now: Instant, new: bool) -> Result<bool, Error> {
        let Some(follow) = self.follow.as_mut().filter(|_| self.ready) else { return Ok(false) };
        let news = follow.poll(self.near.tap())?;
        if news.is_none() && !new {
            return Ok(false);
        }
        let guest = &mut self.stage.world.guest;
        let settings = *follow.last();
        if let Some(mac) = settings.mac.filter(|mac| guest.address(0) != Some(*mac)) {
            guest.ask_address(0, mac, now);
        }
        // A frame that comes while the interface is down is refused by the kernel, and counted there.
        guest.listen(0, Settings { up: None, ..settings }.filter(), now);
        Ok(true)
    }

    /// What whoever asks is told.
    fn live(&self, now: Instant) -> Live {
        let guest = &self.stage.world.guest;
        let tap = self.near.tap().name().as_str();
        let nics =
            (0..guest.nics()).map(|nic| LiveNic::of_guest(guest, nic, (nic == 0).then_some(tap)));
        let mut nics: Vec<_> = nics.collect();
        if let Some(first) = nics.first_mut() {
            first.counters.refused = self.near.refused();
        }
        Live::new("embedded", now.since(Instant::ZERO).as_secs_f64(), nics)
    }

    fn carry_far(&mut self, now: Instant, open: bool) -> Result<bool, Error> {
        let host = &mut self.stage.world.host;
        let mut moved = false;
        let mut send = |frame: &[u8], _| match host.peer_transmit(0, frame, now) {
            Offered::Busy => Sending::Later,
            Offered::Accepted | Offered::Dropped(_) => Sending::Taken,
        };
        match &mut self.far {
            Far::Line(line) => {
                if open {
                    moved |= line.fetch_plain(false, &mut send)?;
                }
                while let Some((frame, uncut)) = host.peer_receive_uncut(0, now) {
                    let buffer = match uncut {
                        Some(uncut) => line.push_uncut(frame, uncut),
                        None => {
                            line.push(|buffer| {
                                buffer.extend_from_slice(&frame);
                                None
                            });
                            frame
                        }
                    };
                    host.recycle(0, buffer);
                    moved = true;
                }
                moved |= line.drain()?;
            }
            Far::Stack(stack) => {
                stack.poll(now);
                while let Some(frame) = stack.front() {
                    if let Sending::Later = send(frame, None) {
                        break;
                    }
                    stack.pop();
                    moved = true;
                }
                while let Some(frame) = host.peer_receive(0, now) {
                    stack.push(|buffer| buffer.extend_from_slice(&frame));
                    host.recycle(0, frame);
                    moved = true;
                }
            }
        }
        Ok(moved)
    }

    /// Sleeps until a TAP, a signal or a deadline wants attention.
    fn wait(
        &mut self,
        now: Instant,
        end: Option<Instant>,
        service: &Service,
        door: Option<&Door>,
    ) -> Result<(), Error> {
        let opening = door.and_then(|door| door.deadline(now));
        let mut at = [self.stage.deadline(now), end, service.deadline(), opening]
            .into_iter()
            .fold(None, vmbus::time::earliest);
        if let Far::Stack(stack) = &mut self.far {
            at = vmbus::time::earliest(at, stack.deadline(now));
        }
        let span = at.map(|at| at.since(now));
        let timeout = span.and_then(|span| Timespec::try_from(span).ok());
        // A frame that found no room waits for the other side, not for the kernel.
        let ready = self.ready;
        let mut fds = vec![PollFd::from_borrowed_fd(service.as_fd(), PollFlags::IN)];
        let far = if let Far::Line(line) = &self.far { Some(&**line) } else { None };
        let lines = [Some(&self.near), far].into_iter().flatten();
        let polls = lines.flat_map(|line| line.polls(ready));
        let polls = polls.chain(door.and_then(|door| door.poll(now)));
        let news = self.follow.iter().map(|follow| (follow.as_fd(), PollFlags::IN));
        let polls = polls.chain(news);
        fds.extend(polls.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Error::System { doing: "wait for frames", source: error.into() }),
        }
    }
}
