//! The life of a NIC in the guest: channel, buffers, start-up, frames, and its end.

use std::collections::BTreeMap;

use netvsc::adapter::{Adapter, AdapterCounters, AdapterEvent};
use netvsc::nic::{Nic, NicEvent, QueueTotals, QueuedNic, SharedBuffer};
use netvsc::nvsp::Version;
use netvsc::pairing::{NicId, PortId};
use netvsc::rndis::{Oid, PacketFilter, Status};
use netvsc::{MacAddress, VfPort};
use vmbus::memory::SharedPages;
use vmbus::time::earliest;
use vmbus::{Channel, ChannelId, Doorbell, GpadlId, Guid, Instant, Serial};
use vpci::bus::FunctionId;

use super::queue::Unopened;
use super::renew::Renewal;
use super::{Guest, Machine, Sink, adapter_config};
use crate::event::What;
use crate::gathered;

/// Pages of each ring of a NIC's channel, header page included: 512 KiB, as Linux takes.
pub(super) const RING_PAGES: usize = 128;
/// Pages of the receive buffer: 2 MiB.
const RECEIVE_PAGES: usize = 512;
/// Pages of the send buffer: 1 MiB.
const SEND_PAGES: usize = 256;

/// How far a NIC is.
enum Stage<D: Doorbell, P> {
    /// The channel is being opened.
    Opening(Channel<SharedPages, D>),
    /// The host is being told of the buffers.
    Sharing(Sharing<D>),
    /// The NIC is at work, or starting up.
    Running(Box<Adapter<QueuedNic<D>, P>>),
    /// There is no channel.
    Gone,
}

/// An open channel whose NIC starts up once the host knows of its buffers.
pub(super) struct Sharing<D: Doorbell> {
    pub(super) link: Channel<SharedPages, D>,
    pub(super) receive: SharedBuffer,
    pub(super) send: SharedBuffer,
    /// Buffers that the host has not confirmed.
    waiting: usize,
}

impl<D: Doorbell> Sharing<D> {
    fn new(link: Channel<SharedPages, D>, receive: SharedBuffer, send: SharedBuffer) -> Self {
        Self { link, receive, send, waiting: 2 }
    }

    /// The host knows of this buffer. True if it knows of all of them now.
    fn confirm(&mut self, gpadl: GpadlId) -> bool {
        if self.receive.gpadl == gpadl || self.send.gpadl == gpadl {
            self.waiting = self.waiting.saturating_sub(1);
        }
        self.waiting == 0
    }
}

/// The port that a NIC has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    pub(super) bus: Guid,
    pub(super) function: FunctionId,
    pub(super) port: PortId,
}

/// One NIC.
pub(super) struct NicDevice<D: Doorbell, P> {
    pub(super) instance: Guid,
    pub(super) channel: Option<ChannelId>,
    stage: Stage<D, P>,
    pub(super) mac: Option<MacAddress>,
    /// Its name in pairing, once its MAC is known.
    pub(super) id: Option<NicId>,
    /// An association that came before that.
    early: Option<Serial>,
    pub(super) bound: Option<Bound>,
    /// Pairing waits to hear that this port is let go.
    pub(super) unbinding: Option<PortId>,
    /// Its port leaves and arrives anew as soon as it is let go.
    pub(super) moving: bool,
    /// The host or a port rang.
    pub(super) rung: bool,
    /// What it is to hear, if that is not what it heard at first.
    filter: Option<PacketFilter>,
    /// What earlier openings did.
    past: AdapterCounters,
    past_queues: Vec<QueueTotals>,
    /// Sub-channels that are being opened, by their numbers.
    pub(super) opening_queues: BTreeMap<u16, Channel<SharedPages, D>>,
    /// Sub-channels that could not be opened and are tried again, likewise.
    pub(super) unopened: BTreeMap<u16, Unopened>,
    /// It is to begin anew.
    pub(super) renewal: Renewal<D>,
    /// It stops without what the host owes then.
    pub(super) give_up: Option<Instant>,
}

impl<D: Doorbell, P: VfPort> NicDevice<D, P> {
    pub(super) fn new(instance: Guid) -> Self {
        Self {
            instance,
            channel: None,
            stage: Stage::Gone,
            mac: None,
            id: None,
            early: None,
            bound: None,
            unbinding: None,
            moving: false,
            rung: false,
            filter: None,
            past: AdapterCounters::default(),
            past_queues: Vec::new(),
            opening_queues: BTreeMap::new(),
            unopened: BTreeMap::new(),
            renewal: Renewal::None,
            give_up: None,
        }
    }

    pub(super) fn opening(&mut self, channel: ChannelId, link: Channel<SharedPages, D>) {
        self.channel = Some(channel);
        self.stage = Stage::Opening(link);
    }

    /// Stops it for a sleep. True if what the host said on its channel counts no longer; one that was just being started will be
    /// started from its beginning.
    pub(super) fn fall_asleep(&mut self, now: Instant) -> bool {
        self.early = None;
        self.unopened.clear();
        match (&mut self.stage, &self.renewal) {
            (Stage::Running(adapter), Renewal::None | Renewal::Stopping) => {
                adapter.nic_mut().shutdown(now);
                (self.renewal, self.rung) = (Renewal::Drowsy, true);
                true
            }
            (Stage::Running(_), _) => {
                self.renewal = Renewal::Asleep;
                true
            }
            (Stage::Opening(_) | Stage::Sharing(_) | Stage::Gone, _) => {
                self.stage = Stage::Gone;
                false
            }
        }
    }

    /// Whether it is on its way to sleep.
    pub(super) fn is_drowsy(&self) -> bool {
        matches!(self.renewal, Renewal::Drowsy)
    }

    /// Whether it waits to be offered again.
    pub(super) fn is_asleep(&self) -> bool {
        matches!(self.renewal, Renewal::Asleep)
    }

    pub(super) fn has_channel(&self) -> bool {
        self.channel.is_some()
    }

    /// The connection ends, and with it the channel.
    pub(super) fn lose_channel(&mut self) {
        self.channel = None;
    }

    /// It is offered again, and its channel is being opened.
    pub(super) fn wake(&mut self, channel: ChannelId, link: Channel<SharedPages, D>) {
        (self.channel, self.renewal) = (Some(channel), Renewal::Opening(link));
    }

    /// Whether its channel or its buffers are asked for.
    pub(super) fn is_opening(&self) -> bool {
        matches!(self.stage, Stage::Opening(_) | Stage::Sharing(_))
            || matches!(self.renewal, Renewal::Opening(_) | Renewal::Sharing(_))
    }

    pub(super) fn adapter(&self) -> Option<&Adapter<QueuedNic<D>, P>> {
        match &self.stage {
            Stage::Running(adapter) => Some(adapter),
            _ => None,
        }
    }

    pub(super) fn adapter_mut(&mut self) -> Option<&mut Adapter<QueuedNic<D>, P>> {
        match &mut self.stage {
            Stage::Running(adapter) => Some(adapter),
            _ => None,
        }
    }

    /// Whether the NIC has a port of this function.
    pub(super) fn has_bound(&self, bus: Guid, function: FunctionId) -> bool {
        self.bound.is_some_and(|bound| bound.bus == bus && bound.function == function)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let adapter = self.adapter().and_then(Adapter::poll_deadline);
        let unopened = self.unopened.values().map(|unopened| unopened.at).min();
        earliest(earliest(adapter, unopened), self.give_up)
    }

    pub(super) fn counters(&self) -> AdapterCounters {
        match self.adapter() {
            Some(adapter) => self.past + adapter.counters(),
            None => self.past,
        }
    }

    /// What each channel did, by its number, over all openings.
    pub(super) fn queue_totals(&self) -> Vec<QueueTotals> {
        let now = self.adapter().map(|adapter| adapter.nic().totals()).unwrap_or_default();
        let mut totals = self.past_queues.clone();
        totals.resize(totals.len().max(now.len()), QueueTotals::default());
        for (total, now) in totals.iter_mut().zip(now) {
            *total = *total + now;
        }
        totals
    }
}

impl<M: Machine> Guest<M> {
    /// The longest TCP segment that the host cuts for a NIC, in bytes with all headers; 0 for none.
    #[must_use]
    pub fn longest_segment(&self, number: usize) -> u32 {
        let adapter = self.nics.get(number).and_then(NicDevice::adapter);
        adapter.map_or(0, |adapter| adapter.nic().nic().info().large_send)
    }

    /// The address to which frames for a NIC go: the one that was asked for last and agreed to, or its permanent one.
    #[must_use]
    pub fn address(&self, number: usize) -> Option<MacAddress> {
        let nic = self.nics.get(number)?;
        nic.adapter()?.nic().nic().config().address.or(nic.mac)
    }

    /// Asks the host for another address for a NIC; [`What::Address`] follows. False if that cannot be done now.
    pub fn ask_address(&mut self, number: usize, mac: MacAddress, now: Instant) -> bool {
        let nic = self.nics.get_mut(number);
        let adapter = nic.and_then(|nic| nic.adapter_mut());
        adapter.is_some_and(|adapter| adapter.nic_mut().nic_mut().set_mac(mac, now).is_ok())
    }

    /// Has a NIC hear what the filter says from now on, or as soon as it can be asked for; its VF follows.
    pub fn listen(&mut self, number: usize, filter: PacketFilter, now: Instant) {
        let Some(nic) = self.nics.get_mut(number) else { return };
        nic.filter = Some(filter);
        self.apply_filter(number, now);
    }

    fn apply_filter(&mut self, number: usize, now: Instant) {
        let Some(nic) = self.nics.get_mut(number) else { return };
        let Some(filter) = nic.filter else { return };
        let Some(card) = nic.adapter_mut().map(|adapter| adapter.nic_mut().nic_mut()) else {
            return;
        };
        if card.config().filter == filter {
            return;
        }
        // A NIC that starts up, or whose host has not answered yet, is asked again after it.
        if let Err(error) = card.set_packet_filter(filter, now) {
            tracing::debug!(%error, number, "the packet filter");
        }
        nic.rung = true;
    }

    /// The channel is open: the host is told of the buffers.
    pub(super) fn share_buffers(&mut self, number: usize, now: Instant) {
        if let Err(why) = self.try_share(number, now) {
            self.fail(format!("nic{number}: {why}"));
            self.give_up_opening(number, now);
        }
    }

    /// A NIC whose channel or buffers could not be had waits for nothing: its channel is closed, with what was shared on it, and the
    /// NIC stays away until the host offers it anew.
    pub(super) fn give_up_opening(&mut self, number: usize, now: Instant) {
        let Some(nic) = self.nics.get_mut(number).filter(|nic| nic.is_opening()) else { return };
        match nic.renewal {
            Renewal::None => nic.stage = Stage::Gone,
            _ => nic.renewal = Renewal::None,
        }
        let Some(channel) = nic.channel else { return };
        // One that did not open, or is rescinded, has nothing to close.
        if let Err(error) = self.bus.close(channel, now) {
            tracing::debug!(%error, "the channel of a NIC that was given up");
        }
    }

    fn try_share(&mut self, number: usize, now: Instant) -> Result<(), String> {
        let Some(nic) = self.nics.get_mut(number) else { return Ok(()) };
        let Some(channel) = nic.channel else { return Ok(()) };
        let mut share = |pages| {
            let pages = self.machine.allocate(pages).map_err(|error| error.to_string())?;
            self.bus.reveal(&self.machine, &pages).map_err(|error| error.to_string())?;
            let gpadl = self.bus.share(channel, &pages, now).map_err(|error| error.to_string())?;
            Ok::<_, String>(SharedBuffer { gpadl, pages })
        };
        let (receive, send) = (share(RECEIVE_PAGES)?, share(SEND_PAGES)?);
        nic.renewal = match std::mem::replace(&mut nic.renewal, Renewal::None) {
            Renewal::Opening(link) => Renewal::Sharing(Sharing::new(link, receive, send)),
            other => {
                nic.stage = match std::mem::replace(&mut nic.stage, Stage::Gone) {
                    Stage::Opening(link) => Stage::Sharing(Sharing::new(link, receive, send)),
                    other => other,
                };
                other
            }
        };
        Ok(())
    }

    /// The host knows of one of the buffers; with the last one the NIC starts up.
    pub(super) fn buffer_shared(&mut self, number: usize, gpadl: GpadlId, now: Instant) {
        let Some(nic) = self.nics.get_mut(number) else { return };
        if let Renewal::Sharing(sharing) = &mut nic.renewal {
            if sharing.confirm(gpadl) {
                self.begin_anew(number, now);
            }
        } else if let Stage::Sharing(sharing) = &mut nic.stage
            && sharing.confirm(gpadl)
        {
            self.start_up(number, now);
        }
    }

    /// A NIC starts up for the first time, or after its card was away.
    fn start_up(&mut self, number: usize, now: Instant) {
        let Some(nic) = self.nics.get_mut(number) else { return };
        let stage = std::mem::replace(&mut nic.stage, Stage::Gone);
        let Stage::Sharing(Sharing { link, receive, send, .. }) = stage else { return };
        match Nic::new(link, receive, Some(send), self.nic_config.clone(), now) {
            Ok(started) => {
                nic.rung = true;
                let started = QueuedNic::new(started, self.spread_key);
                let mut adapter = Adapter::new(started, adapter_config());
                adapter.take_whole(self.whole);
                let queues = self.nic_config.queues;
                adapter.set_tap(self.capture.as_ref().map(|file| file.tap(number, queues)));
                nic.stage = Stage::Running(Box::new(adapter));
            }
            Err(error) => self.fail(format!("nic{number}: {error}")),
        }
    }

    /// Polls a NIC that rang or whose time has come. True if anything was done.
    pub(super) fn poll_nic(&mut self, number: usize, now: Instant, sink: &mut Sink<'_>) -> bool {
        self.give_up_stop(number, now);
        let Some(nic) = self.nics.get_mut(number) else { return false };
        let due = nic.deadline().is_some_and(|at| at <= now);
        let mut moved = self.open_again(number, now);
        let Some(nic) = self.nics.get_mut(number) else { return moved };
        let rung = std::mem::take(&mut nic.rung);
        let Stage::Running(adapter) = &mut nic.stage else { return moved };
        if rung || due {
            moved = true;
            let mtu = adapter.nic().nic().info().mtu;
            let polled = adapter.poll(now, &mut |_, frame| {
                sink(number, &mut |buffer| gathered::take(frame, buffer, mtu));
            });
            if let Err(error) = polled {
                self.events.push_back(What::Failed { what: format!("nic{number}: {error}") });
            }
        }
        while let Some(event) =
            self.nics.get_mut(number).and_then(|nic| nic.adapter_mut()?.poll_event())
        {
            self.handle_adapter_event(number, event, now);
            moved = true;
        }
        moved
    }

    fn handle_adapter_event(
        &mut self,
        number: usize,
        event: AdapterEvent<NicEvent, M::Port>,
        now: Instant,
    ) {
        match event {
            AdapterEvent::Nic(event) => self.handle_nic_event(number, event, now),
            AdapterEvent::Path { path, cause } => {
                let why = cause.to_string();
                self.events.push_back(What::Path { nic: number, path, why });
            }
            AdapterEvent::Resending { frames } => {
                let frames = frames as u64;
                self.events.push_back(What::Resent { nic: number, frames });
            }
            AdapterEvent::Released { port, .. } => self.port_released(number, port, now),
            AdapterEvent::SwitchOverdue { path } => {
                let what = format!("nic{number}: the host has not switched to the {path} path");
                self.events.push_back(What::Overdue { what });
            }
            AdapterEvent::Resumed { path, blackout, pushed_back } => {
                self.blackouts.add(blackout, pushed_back);
                let nic = number;
                self.events.push_back(What::Resumed { nic, path, blackout, pushed_back });
            }
            AdapterEvent::Retrying { attempt } => {
                let why = format!("the host is asked for the VF again, try {attempt}");
                self.events.push_back(What::Pairing { nic: Some(number), why });
            }
            AdapterEvent::Unfit { error } => {
                let why = format!("the VF is not used: {error}");
                self.events.push_back(What::Pairing { nic: Some(number), why });
            }
            AdapterEvent::Flapping { switches } => {
                let why = format!("the path has switched {switches} times within an hour");
                self.events.push_back(What::Pairing { nic: Some(number), why });
            }
        }
    }

    fn handle_nic_event(&mut self, number: usize, event: NicEvent, now: Instant) {
        match event {
            NicEvent::Ready { mac, mtu, version, .. } => {
                let nvsp = nvsp_name(version);
                self.events.push_back(What::NicReady { nic: number, mac, nvsp, mtu });
                let Some(nic) = self.nics.get_mut(number) else { return };
                if nic.id.is_some() {
                    // It has begun anew, and is the same.
                    return;
                }
                let pairing = &mut self.pairing;
                nic.id = Some(match nic.early.take() {
                    Some(serial) => pairing.nic_arrived_associated(nic.instance, mac, serial, now),
                    None => pairing.nic_arrived(nic.instance, mac, now),
                });
                nic.mac = Some(mac);
            }
            NicEvent::Associated { serial } => {
                self.events.push_back(What::Associated { nic: number, serial });
                let Some(nic) = self.nics.get_mut(number) else { return };
                if let Some(id) = nic.id {
                    let stale = self.pairing.associated(id, serial, now).err();
                    self.note_stale(stale);
                } else {
                    nic.early = Some(serial);
                }
            }
            NicEvent::Disassociated { .. } => {
                self.events.push_back(What::Disassociated { nic: number });
                let Some(nic) = self.nics.get_mut(number) else { return };
                nic.early = None;
                if let Some(id) = nic.id {
                    let stale = self.pairing.disassociated(id, now).err();
                    self.note_stale(stale);
                }
            }
            NicEvent::Overdue { step } => {
                let what = format!("nic{number}: the host has not answered {step}");
                self.events.push_back(What::Overdue { what });
                self.stop_is_overdue(number, now);
            }
            NicEvent::Failed(error) => self.fail(format!("nic{number}: {error}")),
            NicEvent::Set { oid: Oid::CONFIG_PARAMETER, status } => {
                let taken = status == Status::SUCCESS;
                if let Some(mac) = self.address(number) {
                    self.events.push_back(What::Address { nic: number, mac, taken });
                }
            }
            NicEvent::Set { oid: Oid::CURRENT_PACKET_FILTER, status } => {
                if status != Status::SUCCESS {
                    let why = format!("the host refuses the packet filter, status {status}");
                    self.fail(format!("nic{number}: {why}"));
                }
                self.apply_filter(number, now);
            }
            NicEvent::Link { .. }
            | NicEvent::Set { .. }
            | NicEvent::Reset { .. }
            | NicEvent::QueuesGranted { .. }
            | NicEvent::SendTable
            | NicEvent::SwitchCompleted { .. }
            | NicEvent::HostSwitched { .. } => {}
            NicEvent::Stopped => self.nic_stopped(number, now),
        }
    }

    /// The NIC's channel is gone, and the NIC with it.
    pub(super) fn nic_rescinded(&mut self, number: usize, now: Instant) {
        let Some(nic) = self.nics.get_mut(number) else { return };
        (nic.past, nic.past_queues) = (nic.counters(), nic.queue_totals());
        nic.opening_queues.clear();
        nic.unopened.clear();
        nic.channel = None;
        (nic.renewal, nic.give_up) = (Renewal::None, None);
        nic.early = None;
        let bound = nic.bound.take();
        let left = nic.id.take();
        let stage = std::mem::replace(&mut nic.stage, Stage::Gone);
        if let Some(id) = left {
            let stale = self.pairing.nic_left(id, now).err();
            self.note_stale(stale);
        }
        if let (Stage::Running(adapter), Some(bound)) = (stage, bound)
            && let (_, Some(port)) = adapter.into_parts()
        {
            self.keep_port(bound, port);
        }
        self.events.push_back(What::NicGone { nic: number, why: "the host took it back".into() });
    }

    /// Asks the host for another MAC. False if that cannot be done now. The pair does not depend on it.
    pub fn change_mac(&mut self, number: usize, now: Instant) -> bool {
        let Some(nic) = self.nics.get_mut(number) else { return false };
        let (instance, permanent) = (nic.instance, nic.mac);
        let (Some(adapter), Some(MacAddress([_, rest @ ..]))) = (nic.adapter_mut(), permanent)
        else {
            return false;
        };
        let [b, c, d, e, f] = rest;
        let other = MacAddress([0x02, b, c, d, e, !f]);
        if seeded!("match-current-mac") {
            nic.id = Some(self.pairing.nic_arrived(instance, other, now));
            return true;
        }
        adapter.nic_mut().nic_mut().set_mac(other, now).is_ok()
    }

    /// A stale handle is a mistake of this shell; it is told and nothing is done with it.
    pub(super) fn note_stale(&mut self, error: Option<netvsc::pairing::FactError>) {
        if let Some(error) = error {
            self.fail(error.to_string());
        }
    }
}

/// The version as people write it: "6.1".
pub(crate) fn nvsp_name(version: Version) -> String {
    let name = version.to_string();
    name.trim_start_matches('V').replace('_', ".")
}
