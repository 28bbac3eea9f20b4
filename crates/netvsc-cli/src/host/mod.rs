//! `netvsc host`: the simulated host as a process of its own.

pub mod args;
mod peers;

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Instant as Clock;

use hyperv_host::Host;
use hyperv_host::host::HostEvent;
use hyperv_host::switch::DropCause;
use netvsc_linux::socket::{Account, ListenError, Listener};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vmbus::Instant;
use vmbus::time::earliest;

use crate::error::Error;
use crate::event::{Event, What};
use crate::remote::{Attention, RemoteHost, VfLink};
use crate::report::Report;
use crate::run::Plan;
use crate::scenario::{Order, Removal, Script};
use crate::service::Service;
use args::HostArgs;
use peers::Peers;

/// Runs until it is asked to stop.
///
/// # Errors
/// If nobody can listen there, or a TAP cannot be had or breaks.
pub fn run(args: &HostArgs) -> Result<ExitCode, Error> {
    let mut service = Service::start(&args.log)?;
    let mut server = Server::new(args)?;
    let mut report = Report::plain(args.json);
    let path = args.listen.display().to_string();
    server.tell(What::Listening { path });
    service.ready();
    let served = server.serve(&mut service, &mut report);
    service.stopping();
    served?;
    Ok(ExitCode::SUCCESS)
}

/// The host without a guest, and the guest if there is one.
struct Server<'a> {
    args: &'a HostArgs,
    listener: Listener,
    plan: Plan,
    scripts: Vec<Script>,
    peers: Peers,
    /// The interface that carries the frames of the first NIC's VF.
    link: Option<VfLink>,
    guest: Option<RemoteHost>,
    events: VecDeque<Event>,
    started: Clock,
    next_statistics: Option<Instant>,
}

impl<'a> Server<'a> {
    fn new(args: &'a HostArgs) -> Result<Self, Error> {
        // Everything that can be refused comes first, so that a refused start leaves nothing behind.
        let listener = Listener::bind(&args.listen)?;
        let peers = Peers::open(args.peer_tap.as_ref(), args.nics.into())?;
        let link = args.vf_peer.as_deref().map(VfLink::open).transpose()?;
        let mut plan = Plan::new(args.seed, args.nics.into(), true);
        for nic in &mut plan.nics {
            // A guest that coalesces has no use for checksums of what it is given as one.
            nic.nic.policy.offloads.stale_checksums = true;
            nic.nic.policy.own_unicast = true;
        }
        Ok(Self {
            args,
            listener,
            plan,
            scripts: Vec::new(),
            peers,
            link,
            guest: None,
            events: VecDeque::new(),
            started: Clock::now(),
            next_statistics: None,
        })
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn tell(&mut self, what: What) {
        let at = self.now();
        self.events.push_back(Event { at, what });
    }

    fn serve(&mut self, service: &mut Service, report: &mut Report) -> Result<(), Error> {
        let end = self.args.duration.map(|span| Instant::ZERO + span.0);
        loop {
            let now = self.now();
            self.welcome(now)?;
            let moved = self.step(now)?;
            for why in self.link.as_mut().map(VfLink::take_notes).unwrap_or_default() {
                self.tell(What::Pairing { nic: Some(0), why });
            }
            for event in self.events.drain(..) {
                report.event(&event)?;
            }
            if end.is_some_and(|end| now >= end) || service.asked_to_stop(now) {
                return Ok(());
            }
            if !moved {
                self.wait(now, earliest(end, service.deadline()), service)?;
            }
        }
    }

    /// Takes in whoever has connected.
    fn welcome(&mut self, now: Instant) -> Result<(), Error> {
        let stream = match self.listener.accept() {
            Ok(Some(stream)) => stream,
            Ok(None) => return Ok(()),
            Err(error @ ListenError::User { .. }) => {
                self.tell(What::Failed { what: error.to_string() });
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if self.guest.is_some() {
            RemoteHost::turn_away(stream);
            return Ok(());
        }
        match RemoteHost::new(stream, now) {
            Ok(guest) => {
                tracing::debug!("a guest has connected");
                self.guest = Some(guest);
            }
            Err(error) => self.tell(What::Failed { what: error.to_string() }),
        }
        Ok(())
    }

    /// Does all that can be done now. True if anything was done.
    fn step(&mut self, now: Instant) -> Result<bool, Error> {
        let Some(guest) = &mut self.guest else { return Ok(false) };
        if let Err(left) = guest.hear(&self.plan, now) {
            self.guest_left(left.to_string());
            return Ok(true);
        }
        let mut asked = false;
        while let Some(attention) = self.guest.as_mut().and_then(RemoteHost::poll_attention) {
            match attention {
                Attention::Ready { pages } => self.furnish(pages, now)?,
                Attention::AccountAsked => asked = true,
            }
        }
        let Some(guest) = &mut self.guest else { return Ok(false) };
        let mut moved = false;
        // What came over an interface was sent before what the guest says now.
        if let (Some(link), Some(host)) = (&mut self.link, guest.host()) {
            moved |= link.carry(host, now);
        }
        moved |= guest.settle(now);
        // What the guest had sent when it asked has arrived now.
        if asked && let Some(host) = guest.host() {
            let mut account = account(host, self.plan.nics.len());
            account.given += self.link.as_ref().map_or(0, VfLink::given_segments);
            guest.account(account);
        }
        if let Some(host) = guest.host() {
            moved |= self.peers.carry(host, now)?;
            if let Some(link) = &mut self.link {
                moved |= link.carry(host, now);
            }
        }
        moved |= self.handle_events(now);
        moved |= self.follow_scripts(now)?;
        self.statistics(now);
        let Some(guest) = &mut self.guest else { return Ok(true) };
        if let Err(left) = guest.say() {
            self.guest_left(left.to_string());
            moved = true;
        }
        Ok(moved)
    }

    /// Gives a new guest its devices.
    fn furnish(&mut self, pages: usize, now: Instant) -> Result<(), Error> {
        self.tell(What::GuestArrived { pages });
        self.peers.renew(self.args.seed, now);
        self.scripts.clear();
        if let Some(link) = &mut self.link {
            link.renew();
        }
        let churn = self.args.churn.0;
        let Some(guest) = &mut self.guest else { return Ok(()) };
        for (number, planned) in self.plan.nics.iter().enumerate() {
            let Some(host) = guest.host() else { return Ok(()) };
            host.add_nic(planned.nic.clone(), now);
            if number == 0 && self.link.is_some() {
                host.carry_vf_elsewhere(number);
            }
            // A kernel takes long segments as they are.
            host.set_peer_cuts(number, number == 0 && self.peers.has_line());
            if !self.args.without_vfs {
                let added = host.add_vf(number, planned.vf, now);
                added.map_err(|error| Error::Run(error.to_string()))?;
                guest.map_vf(planned.vf.instance);
            }
            let serial = planned.vf.serial;
            let quiet = churn.is_zero();
            let script = if quiet { Script::quiet(serial) } else { Script::churn(churn, serial) };
            self.scripts.push(script.starting(now));
        }
        let every = self.args.stats_interval.0;
        self.next_statistics = (!every.is_zero()).then(|| now + every);
        Ok(())
    }

    fn guest_left(&mut self, why: String) {
        let clean = self.guest.take().is_none_or(RemoteHost::dissolve);
        self.next_statistics = None;
        self.tell(What::GuestLeft { why, clean });
    }

    fn handle_events(&mut self, now: Instant) -> bool {
        let Self { guest: Some(guest), events, plan, peers, .. } = self else {
            return false;
        };
        let mut moved = false;
        while let Some(event) = guest.host().and_then(Host::poll_event) {
            moved = true;
            match event {
                HostEvent::VfGone { nic, .. } => {
                    if let Some(planned) = plan.nics.get(nic) {
                        guest.unmap_vf(planned.vf.instance);
                    }
                }
                HostEvent::Failed { nic, why } => {
                    let what = format!("the service of nic{nic}: {why}");
                    events.push_back(Event { at: now, what: What::Failed { what } });
                }
                HostEvent::DeviceFailed { instance, why } => {
                    let what = format!("the service of pci {instance}: {why}");
                    events.push_back(Event { at: now, what: What::Failed { what } });
                }
                HostEvent::NicOperational { nic } => peers.nic_started(nic),
                HostEvent::DeviceGone { .. }
                | HostEvent::NicGone { .. }
                | HostEvent::VfOffered { .. }
                | HostEvent::DataPath { .. } => {}
            }
        }
        moved
    }

    /// Lets VFs come and go.
    fn follow_scripts(&mut self, now: Instant) -> Result<bool, Error> {
        let Self { guest: Some(guest), events, plan, scripts, .. } = self else {
            return Ok(false);
        };
        let mut moved = false;
        for (nic, (script, planned)) in scripts.iter_mut().zip(&mut plan.nics).enumerate() {
            let Some(host) = guest.host() else { return Ok(moved) };
            let Some(order) = script.poll(now, 0, host.vf_place(nic)) else { continue };
            moved = true;
            let then = planned.disassociation;
            let (action, done) = match order {
                Order::Remove(Removal::Eject) => {
                    ("asks for the VF back".into(), host.eject_vf(nic, then, now))
                }
                Order::Remove(Removal::TearAway) => {
                    ("tears the VF away".into(), host.tear_away_vf(nic, then, now))
                }
                Order::Add(serial) => {
                    planned.vf.serial = serial;
                    let added = host.add_vf(nic, planned.vf, now);
                    guest.map_vf(planned.vf.instance);
                    (format!("gives a VF with serial {serial}"), added)
                }
            };
            done.map_err(|error| Error::Run(error.to_string()))?;
            events.push_back(Event { at: now, what: What::HostAction { nic, action } });
        }
        Ok(moved)
    }

    fn statistics(&mut self, now: Instant) {
        let Some(at) = self.next_statistics.filter(|at| *at <= now) else { return };
        self.next_statistics = Some(at.max(now) + self.args.stats_interval.0);
        let refused = self.peers.refused();
        let Some(host) = self.guest.as_mut().and_then(RemoteHost::host) else { return };
        let ports = (0..self.plan.nics.len()).filter_map(|nic| host.port_counters(nic));
        let (mut tx_synthetic, mut tx_vf, mut rx) = (0, 0, 0);
        for port in ports {
            tx_synthetic += port.synthetic.from_guest;
            tx_vf += port.vf.from_guest;
            rx += port.synthetic.to_guest + port.vf.to_guest;
        }
        self.tell(What::Statistics { tx_synthetic, tx_vf, rx, refused });
    }

    /// Sleeps until somebody wants something or a deadline comes.
    fn wait(&mut self, now: Instant, end: Option<Instant>, service: &Service) -> Result<(), Error> {
        let mut at = end;
        if let Some(guest) = &self.guest {
            let scripts = crate::scenario::deadline(&self.scripts, now);
            let link = self.link.as_ref().and_then(|link| link.deadline(now));
            at = [guest.deadline(), scripts, self.peers.deadline(now), self.next_statistics, link]
                .into_iter()
                .fold(at, earliest);
        }
        let timeout = at.map(|at| at.since(now)).and_then(|span| Timespec::try_from(span).ok());
        let ears = self.link.as_ref().map(VfLink::ears).unwrap_or_default();
        let mut fds = vec![
            PollFd::from_borrowed_fd(service.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
        ];
        if let Some(guest) = &self.guest {
            let descriptors = guest.descriptors().into_iter();
            fds.extend(descriptors.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
            let line = self.peers.polls();
            fds.extend(line.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
            fds.extend(ears.iter().map(|ear| PollFd::new(&**ear, PollFlags::IN)));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Error::System { doing: "wait for guests", source: error.into() }),
        }
    }
}

/// What became of the frames of a guest with so many NICs.
fn account(host: &Host, nics: usize) -> Account {
    let mut account = Account::default();
    for nic in 0..nics {
        if let Some(port) = host.port_counters(nic) {
            account.arrived += port.synthetic.from_guest_cut() + port.vf.from_guest_cut();
            // A guest counts what was joined as one.
            let joined = host.nic_counters(nic).map_or(0, |counters| counters.coalesced);
            account.given += port.synthetic.to_guest + port.vf.to_guest - joined;
            // What a wire brings before a guest listens, or when it does so no more, no switch has lost, nor what is for others.
            let drops = port.dropped_from_peer;
            let unheard = drops.by(DropCause::SyntheticDown) + drops.by(DropCause::Foreign);
            account.dropped += port.dropped() - unheard;
        }
        let perished = host.perished(nic);
        account.sent_surprise += perished.sent_surprise;
        account.received_surprise += perished.received_surprise;
        account.sent_orderly += perished.sent_orderly;
        account.received_orderly += perished.received_orderly;
    }
    account
}
