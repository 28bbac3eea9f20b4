//! One NIC that is driven, and its TAP interface: from the binding of its device to its return.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use netvsc::adapter::{AdapterCounters, AdapterEvent};
use netvsc::failover::Cause;
use netvsc::nic::{NicEvent, NicOffloads, SettingError};
use netvsc::rndis::scaling::KEY_SIZE;
use netvsc::rndis::{Oid, Status};
use netvsc::{MacAddress, NicConfig};
use netvsc_linux::uio::{Binding, Interrupt};
use rustix::event::PollFlags;
use vmbus::time::earliest;
use vmbus::{Guid, Instant};

use super::card::Card;
use super::vf::Fact;
use crate::capture::Capture;
use crate::error::Error;
use crate::event::{What, path_word};
use crate::guest::nvsp_name;
use crate::line::Line;
use crate::live::{LiveCounters, LiveNic};
use crate::remote::RemotePort;
use crate::run::follow::{Follow, Settings};

/// How long the host may take to let a NIC stop.
const REST: Duration = Duration::from_secs(2);

/// What the NIC is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// Starting, or at work.
    Working,
    /// On the way down; `by` then it is taken for down. It may begin anew after it.
    Stopping { by: Instant, again: bool },
    /// Given back, or taken away.
    Ended,
}

/// Who of a NIC's wants attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Voice {
    /// The device: interrupts.
    Device,
    /// The interface: frames of the kernel, or room for them.
    Interface,
    /// Changes of the interface.
    News,
}

/// What a NIC is to be like.
pub(super) struct Setup {
    pub(super) number: usize,
    pub(super) guid: Guid,
    pub(super) root: PathBuf,
    pub(super) mtu: u32,
    pub(super) queues: u16,
    /// There may be a VF for it.
    pub(super) vf: bool,
    pub(super) key: [u8; KEY_SIZE],
    pub(super) capture: Option<Capture>,
}

/// A NIC with its interface.
pub(super) struct UioNic {
    setup: Setup,
    // In this order: the device is closed before it is given back.
    card: Option<Card>,
    binding: Option<Binding>,
    line: Line,
    follow: Option<Follow>,
    config: NicConfig,
    /// The MTU with which it came up last.
    good_mtu: Option<u32>,
    mac: Option<MacAddress>,
    ready: bool,
    rung: bool,
    life: Life,
    /// What cards did that are gone.
    past: AdapterCounters,
    /// Pairing knows it.
    known: bool,
    /// For pairing.
    facts: Vec<Fact>,
    events: Vec<What>,
}

impl UioNic {
    /// Opens the device and begins the NIC's start-up.
    pub(super) fn new(
        setup: Setup,
        binding: Option<Binding>,
        line: Line,
        now: Instant,
    ) -> Result<Self, Error> {
        let config = NicConfig {
            mtu: setup.mtu,
            queues: setup.queues,
            // Without an interface for it there is nobody to use one.
            sriov: setup.vf,
            offloads: NicOffloads::ALL,
            ..NicConfig::default()
        };
        let mut nic = Self {
            setup,
            card: None,
            binding,
            line,
            follow: None,
            config,
            good_mtu: None,
            mac: None,
            ready: false,
            rung: false,
            life: Life::Working,
            past: AdapterCounters::default(),
            known: false,
            facts: Vec::new(),
            events: Vec::new(),
        };
        let (number, instance) = (nic.setup.number, nic.setup.guid);
        nic.tell(What::NicOffered { nic: number, instance });
        nic.open(now)?;
        Ok(nic)
    }

    fn open(&mut self, now: Instant) -> Result<(), Error> {
        let Setup { root, guid, key, number, queues, capture, .. } = &self.setup;
        let mut card = Card::open(root, *guid, self.config.clone(), *key, now)?;
        card.adapter().set_tap(capture.as_ref().map(|file| file.tap(*number, *queues)));
        let (nic, alone) = (*number, !card.serves_sub_channels());
        self.card = Some(card);
        if alone && self.config.queues > 1 {
            let why = "one channel is used: interrupts of others crash kernels before Linux 6.16";
            self.tell(What::Pairing { nic: Some(nic), why: why.into() });
        }
        (self.life, self.ready, self.rung) = (Life::Working, false, true);
        Ok(())
    }

    fn close(&mut self) {
        self.leave();
        if let Some(card) = self.card.take() {
            self.past = self.past + card.counters();
        }
        self.ready = false;
    }

    /// Pairing is to know that it stops.
    fn leave(&mut self) {
        if std::mem::take(&mut self.known) {
            self.facts.push(Fact::Left);
        }
    }

    /// What pairing has not heard yet.
    pub(super) fn take_facts(&mut self) -> Vec<Fact> {
        std::mem::take(&mut self.facts)
    }

    /// The address that it has now.
    pub(super) fn address(&self) -> Option<MacAddress> {
        self.mac
    }

    /// Its VF has something to do.
    pub(super) fn ring(&mut self) {
        self.rung = true;
    }

    /// Gives it a port. False if it takes none now.
    pub(super) fn bind(&mut self, port: RemotePort, now: Instant) -> bool {
        let working = self.life == Life::Working;
        let Some(card) = self.card.as_mut().filter(|_| working) else { return false };
        self.rung = true;
        card.adapter().bind(port, now).is_ok()
    }

    /// Has it let go of its port, in order or because it is gone; [`Fact::Released`] follows. False if it has none.
    pub(super) fn release(&mut self, gone: bool, now: Instant) -> bool {
        let card = self.card.as_mut();
        let Some(adapter) = card.map(Card::adapter).filter(|adapter| adapter.has_port()) else {
            return false;
        };
        match gone {
            true => adapter.port_gone(now),
            false => adapter.release(Cause::Unbound, now),
        }
        self.rung = true;
        true
    }

    fn tell(&mut self, what: What) {
        self.events.push(what);
    }

    fn fail(&mut self, what: &dyn std::fmt::Display) {
        let what = format!("nic{}: {what}", self.setup.number);
        self.tell(What::Failed { what });
    }

    pub(super) fn take_events(&mut self) -> Vec<What> {
        std::mem::take(&mut self.events)
    }

    pub(super) fn is_ended(&self) -> bool {
        self.life == Life::Ended
    }

    /// What it did, over all its openings, and frames that the kernel did not take.
    pub(super) fn counters(&self) -> (AdapterCounters, u64) {
        let now = self.card.as_ref().map(Card::counters).unwrap_or_default();
        (self.past + now, self.line.refused())
    }

    /// What whoever asks is told of it, but for its VF.
    pub(super) fn live(&self) -> LiveNic {
        let card = self.card.as_ref().filter(|_| self.ready);
        let (counters, refused) = self.counters();
        LiveNic {
            device: self.line.tap().name().to_string(),
            guid: Some(self.setup.guid.to_string()),
            mac: self.mac.map(|mac| mac.to_string()),
            mtu: self.good_mtu,
            path: card.map(|card| path_word(card.path()).to_owned()),
            queues: card.map_or(0, |card| card.queues() + 1),
            counters: LiveCounters::of(&counters, refused),
            ..LiveNic::default()
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let stop = match self.life {
            Life::Stopping { by, .. } => Some(by),
            _ => None,
        };
        earliest(stop, self.card.as_ref().and_then(Card::deadline))
    }

    /// What to wait for.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (Voice, BorrowedFd<'_>, PollFlags)> {
        let open = self.ready && self.life == Life::Working;
        let card = self.card.iter().map(|card| (Voice::Device, card.as_fd(), PollFlags::IN));
        let line = self.line.polls(open).map(|(fd, flags)| (Voice::Interface, fd, flags));
        let news = self.follow.iter().map(|it| (Voice::News, it.as_fd(), PollFlags::IN));
        card.chain(line).chain(news)
    }

    /// The device's descriptor is readable.
    pub(super) fn interrupted(&mut self) -> Result<(), Error> {
        let Some(card) = &self.card else { return Ok(()) };
        match card.take_interrupt()? {
            Interrupt::Rang { .. } => self.rung = true,
            Interrupt::Quiet => {}
            Interrupt::Gone => {
                let nic = self.setup.number;
                self.tell(What::NicGone { nic, why: "the host took it back".into() });
                self.end();
            }
        }
        Ok(())
    }

    /// Does all that can be done now. True if anything was done.
    pub(super) fn step(&mut self, now: Instant) -> Result<bool, Error> {
        let mut moved = self.line.drain()?;
        if let Life::Stopping { by, again } = self.life
            && by <= now
        {
            self.fail(&"the host did not let it stop in time");
            self.stopped(again, now)?;
            return Ok(true);
        }
        let due = self.deadline().is_some_and(|at| at <= now);
        let Some(card) = &mut self.card else { return Ok(moved) };
        if std::mem::take(&mut self.rung) || due {
            moved = true;
            // What is wrong is told by an event.
            if let Err(error) = card.poll(now, &mut self.line) {
                tracing::debug!(%error, "the NIC");
            }
            if card.look_for_queues(now).map_err(Error::from)? {
                let why = format!("{} channels are in use", card.queues() + 1);
                let nic = Some(self.setup.number);
                self.tell(What::Pairing { nic, why });
            }
        }
        while let Some(event) = self.card.as_mut().and_then(|card| card.adapter().poll_event()) {
            moved = true;
            self.handle(event, now)?;
        }
        if self.ready
            && self.life == Life::Working
            && let Some(card) = &mut self.card
        {
            moved |= card.send_from(&mut self.line, now)?;
        }
        moved |= self.line.drain()?;
        Ok(moved)
    }

    fn handle(
        &mut self,
        event: AdapterEvent<NicEvent, RemotePort>,
        now: Instant,
    ) -> Result<(), Error> {
        let nic = self.setup.number;
        match event {
            AdapterEvent::Nic(event) => return self.handle_nic(event, now),
            AdapterEvent::Path { path, cause } => {
                self.tell(What::Path { nic, path, why: cause.to_string() });
            }
            AdapterEvent::Resending { frames } => {
                self.tell(What::Resent { nic, frames: frames as u64 });
            }
            AdapterEvent::Resumed { path, blackout, pushed_back } => {
                self.tell(What::Resumed { nic, path, blackout, pushed_back });
            }
            AdapterEvent::SwitchOverdue { path } => {
                let what = format!("nic{nic}: the host has not switched to the {path} path");
                self.tell(What::Overdue { what });
            }
            // With the value, the port goes.
            AdapterEvent::Released { .. } => {
                self.facts.push(Fact::Released);
                if let (Life::Stopping { .. }, Some(card)) = (self.life, &mut self.card) {
                    card.shutdown(now);
                    self.rung = true;
                }
            }
            AdapterEvent::Retrying { .. }
            | AdapterEvent::Unfit { .. }
            | AdapterEvent::Flapping { .. } => {
                let (nic, why) = (Some(nic), in_words(&event));
                self.tell(What::Pairing { nic, why });
            }
        }
        Ok(())
    }

    fn handle_nic(&mut self, event: NicEvent, now: Instant) -> Result<(), Error> {
        let nic = self.setup.number;
        match event {
            NicEvent::Ready { mac, mtu, version, .. } => {
                let nvsp = nvsp_name(version);
                self.tell(What::NicReady { nic, mac, nvsp, mtu });
                self.begin(mac, mtu, now)?;
                self.known = true;
                self.facts.push(Fact::Arrived(mac));
            }
            NicEvent::Associated { serial } => {
                self.tell(What::Associated { nic, serial });
                self.facts.push(Fact::Associated(serial));
            }
            NicEvent::Disassociated { .. } => {
                self.tell(What::Disassociated { nic });
                self.facts.push(Fact::Disassociated);
            }
            NicEvent::QueuesGranted { count } => {
                if let Some(card) = &mut self.card {
                    card.expect_queues(count, now);
                }
            }
            NicEvent::Set { oid, status } => self.was_set(oid, status, now),
            NicEvent::Overdue { step } => {
                self.tell(What::Overdue {
                    what: format!("nic{nic}: the host has not answered {step}"),
                });
            }
            NicEvent::Failed(error) => {
                self.fail(&error);
                self.failed(now)?;
            }
            NicEvent::Stopped => {
                let again = matches!(self.life, Life::Stopping { again: true, .. });
                self.stopped(again, now)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The NIC carries frames: its interface is to look like it.
    fn begin(&mut self, permanent: MacAddress, mtu: u32, now: Instant) -> Result<(), Error> {
        let first = self.good_mtu.is_none();
        let mac = self.config.address.unwrap_or(permanent);
        (self.ready, self.rung) = (true, true);
        (self.good_mtu, self.mac) = (Some(mtu), Some(mac));
        let tap = self.line.tap();
        if tap.mac()? != mac {
            tap.set_mac(mac)?;
        }
        // One that was moved into another namespace is its owner's to set.
        if tap.mtu().is_ok_and(|current| current != mtu) {
            tap.set_mtu(mtu)?;
        }
        if first {
            let _ = tap.set_up(true);
            self.follow = Follow::new(tap).ok();
        } else if let Some(follow) = &mut self.follow {
            follow.note(tap);
        }
        // It may have been a bridge's port all along, or have become one meanwhile.
        self.filter(now);
        Ok(())
    }

    /// The NIC is out of order. One that does not bear a new MTU goes back to its old one.
    fn failed(&mut self, now: Instant) -> Result<(), Error> {
        match self.good_mtu.filter(|mtu| *mtu != self.config.mtu && self.life == Life::Working) {
            Some(mtu) => {
                self.config.mtu = mtu;
                self.close();
                self.open(now)
            }
            None => {
                self.end();
                Err(Error::Run(format!("nic{} is out of order", self.setup.number)))
            }
        }
    }

    /// Somebody may have changed the interface: the NIC follows.
    pub(super) fn follow(&mut self, now: Instant) -> Result<(), Error> {
        let Some(follow) = &mut self.follow else { return Ok(()) };
        let Some(settings) = follow.poll(self.line.tap())? else { return Ok(()) };
        if !self.ready || self.life != Life::Working {
            return Ok(());
        }
        let Settings { mac, mtu, .. } = settings;
        if let Some(mac) = mac.filter(|mac| Some(*mac) != self.mac)
            && let Some(card) = &mut self.card
            && let Err(error) = card.nic().set_mac(mac, now)
        {
            self.fail(&error);
            self.restore_mac();
        }
        self.filter(now);
        if let Some(mtu) = mtu.filter(|mtu| Some(*mtu) != self.good_mtu) {
            self.config.mtu = mtu;
            self.stop(true, now);
        }
        Ok(())
    }

    /// The NIC is to hear what its interface wants, also after it has begun anew. Its VF follows.
    fn filter(&mut self, now: Instant) {
        let Some(follow) = &self.follow else { return };
        let filter = follow.last().filter();
        self.config.filter = filter;
        let Some(card) = self.card.as_mut().filter(|_| self.ready) else { return };
        if card.nic().config().filter == filter {
            return;
        }
        self.rung = true;
        match card.nic().set_packet_filter(filter, now) {
            // Once the host has answered, it is asked again.
            Ok(()) | Err(SettingError::UnderWay(_)) => {}
            Err(error) => self.fail(&error),
        }
    }

    fn restore_mac(&mut self) {
        if let Some(mac) = self.mac
            && let Err(error) = self.line.tap().set_mac(mac)
        {
            self.fail(&error);
        }
        if let Some(follow) = &mut self.follow {
            follow.note(self.line.tap());
        }
    }

    fn was_set(&mut self, oid: Oid, status: Status, now: Instant) {
        match oid {
            Oid::CONFIG_PARAMETER => {
                let found = self.line.tap().mac().ok();
                if status == Status::SUCCESS {
                    (self.mac, self.config.address) = (found, found);
                } else {
                    self.fail(&format!("the host refuses the MAC address, status {status}"));
                    self.restore_mac();
                }
            }
            Oid::CURRENT_PACKET_FILTER => {
                if status != Status::SUCCESS {
                    self.fail(&format!("the host refuses the packet filter, status {status}"));
                }
                self.filter(now);
            }
            _ => {}
        }
    }

    /// Begins the way down.
    pub(super) fn stop(&mut self, again: bool, now: Instant) {
        match (self.life, &mut self.card) {
            (Life::Working, Some(card)) => {
                // One that has a VF lets go of it first.
                if !card.adapter().has_port() {
                    card.shutdown(now);
                }
                (self.life, self.rung) = (Life::Stopping { by: now + REST, again }, true);
                self.leave();
            }
            (Life::Stopping { by, .. }, Some(_)) => self.life = Life::Stopping { by, again },
            _ => self.end(),
        }
    }

    fn stopped(&mut self, again: bool, now: Instant) -> Result<(), Error> {
        self.close();
        if again {
            return self.open(now);
        }
        self.end();
        Ok(())
    }

    /// Gives everything back.
    fn end(&mut self) {
        self.close();
        self.life = Life::Ended;
        if let Some(binding) = self.binding.take()
            && let Err(error) = binding.restore()
        {
            self.fail(&format!("{error}; `netvsc bind --kernel {}` tries again", self.setup.guid));
        }
    }
}

/// What an adapter says of its path, to be told.
fn in_words(event: &AdapterEvent<NicEvent, RemotePort>) -> String {
    match event {
        AdapterEvent::Retrying { attempt } => {
            format!("the host is asked for the VF again, try {attempt}")
        }
        AdapterEvent::Unfit { error } => format!("the VF is not used: {error}"),
        AdapterEvent::Flapping { switches } => {
            format!("the path has switched {switches} times within an hour")
        }
        other => other.word().to_owned(),
    }
}
