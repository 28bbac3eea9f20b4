//! Which NIC belongs to which VF: what the kernel did, beside what the rules of [`netvsc::pairing`] call for.
//!
//! Both answers come from one [`Snapshot`]. A fact that nobody could read leaves the state [`State::Unknown`]; nothing
//! is guessed to fill a table.

mod places;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use netvsc::pairing::{
    Decision, DeviceKind, FunctionKey, NicState, Pairing, PairingConfig, PermanentMac, PortId,
    Reason, Refusal,
};
use netvsc::port::Path;
use vmbus::{Guid, Instant, Serial};

use self::places::{Owned, Places};
use crate::inventory::{
    Function, LogEvent, NetDevice, Parent, PciAddress, Sample, Snapshot, SoftKind, Source, Subject,
    VmbusDevice,
};

/// A fact and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The fact.
    pub value: T,
    /// Its source.
    pub source: Source,
}

/// State of a NIC: the words of pairing, and two for what a snapshot shows besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// No association, no VF.
    Synthetic,
    /// Associated; the VF is not here yet.
    Waiting,
    /// A VF is here, and not joined (yet).
    Pending,
    /// Joined; frames go the synthetic way.
    Paired,
    /// Joined; frames go through the VF.
    Accelerated,
    /// Not joined, because facts contradict each other.
    Conflict,
    /// A VF without NIC: all there is.
    Standalone,
    /// What would decide it could not be read.
    Unknown,
}

impl State {
    /// The word for machines.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Synthetic => "synthetic",
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Paired => "paired",
            Self::Accelerated => "accelerated",
            Self::Conflict => "conflict",
            Self::Standalone => "standalone",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The first thing between a NIC and its acceleration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The guest is isolated from its host.
    Isolated,
    /// No driver has the NIC, or one for user space.
    NicUnbound,
    /// The host has associated no VF.
    NoAssociation,
    /// No function with the NIC's serial is here.
    NoFunction,
    /// No driver has the function.
    NoDriver(PciAddress),
    /// The driver has made no interface, or it is in another network namespace.
    NoPort(PciAddress),
    /// There is an interface, and the kernel has not joined it.
    NotJoined,
    /// The VF's interface is down.
    VfDown,
    /// The host has not confirmed a switch to the VF.
    NotSwitched,
    /// The kernel log, which alone tells, could not be read or does not go back far enough.
    NoLog,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Isolated => f.write_str(
                "this guest is isolated from its host (confidential VM) and takes no VF from it",
            ),
            Self::NicUnbound => f.write_str("no network driver has the NIC"),
            Self::NoAssociation => f.write_str("the host has associated no VF with it"),
            Self::NoFunction => {
                f.write_str("the host has associated a VF, and no such function is here")
            }
            Self::NoDriver(at) => write!(f, "its function {at} is here, and no driver has it"),
            Self::NoPort(at) => write!(
                f,
                "its function {at} has a driver, and no interface in this network namespace"
            ),
            Self::NotJoined => {
                f.write_str("its VF has an interface, and the kernel has not joined the two")
            }
            Self::VfDown => f.write_str("its VF is joined, and the VF's interface is down"),
            Self::NotSwitched => {
                f.write_str("its VF is joined, and the host has not switched to it")
            }
            Self::NoLog => f.write_str(
                "only the kernel log tells, and it is silent, cut short or not ours to read",
            ),
        }
    }
}

/// A port of a function that came over a virtual bus.
#[derive(Clone, Debug)]
pub struct VfPort<'a> {
    /// Its function.
    pub function: &'a Function,
    /// Its interface.
    pub link: &'a NetDevice,
    /// What the rules call its function; none where the serial is not known.
    pub key: Option<FunctionKey>,
    /// Its serial and where that was read.
    pub serial: Option<Sourced<Serial>>,
    /// What the rules have to say about it, in sentences; none where they do not know it.
    pub rules: Option<String>,
    /// The NIC that the rules give it to.
    pub should: Option<(Guid, Reason)>,
    /// The NIC that the kernel joined it with.
    pub did: Option<Guid>,
}

/// A NIC and all that is known about its pair.
#[derive(Clone, Debug)]
pub struct NicView<'a> {
    /// Its VMBus device.
    pub device: &'a VmbusDevice,
    /// Its interface, if a driver made one here.
    pub link: Option<&'a NetDevice>,
    /// What the host last said: a serial, or (`None` inside) that there is none any more.
    pub association: Option<Sourced<Option<Serial>>>,
    /// The VF that the kernel joined with it, or that should be: an index into [`Relations::ports`].
    pub vf: Option<usize>,
    /// Whether the kernel joined that VF.
    pub joined: bool,
    /// The state.
    pub state: State,
    /// Why the pair is one; none if a fact for that is missing, or there is no pair.
    pub reason: Option<Reason>,
    /// The path that the host last confirmed, or that frames were seen to take.
    pub path: Option<Path>,
    /// From where the path is known: the kernel log, or counters that moved.
    pub path_source: Option<Source>,
    /// Since when, on the clock of the kernel log.
    pub since: Option<Duration>,
    /// What stands between it and acceleration.
    pub obstacle: Option<Obstacle>,
}

impl NicView<'_> {
    /// The name of its interface, or its GUID while it has none.
    #[must_use]
    pub fn name(&self) -> String {
        self.link.map_or_else(|| self.device.guid.to_string(), |link| link.name.clone())
    }
}

/// All NICs and ports of a guest.
#[derive(Clone, Debug)]
pub struct Relations<'a> {
    /// The synthetic NICs, in the order of their interfaces' numbers.
    pub nics: Vec<NicView<'a>>,
    /// The ports of functions that came over virtual buses.
    pub ports: Vec<VfPort<'a>>,
    /// Other network devices on hardware, which are never candidates, and why not.
    pub others: Vec<(&'a NetDevice, Refusal)>,
    /// Whether the rules were told of every NIC what the host associates with it. Without that they take silence for none, and what they
    /// say of serials is no fact.
    pub informed: bool,
    rules: Pairing,
}

impl<'a> Relations<'a> {
    /// Relates what a snapshot shows.
    #[must_use]
    pub fn of(snapshot: &'a Snapshot) -> Self {
        let places = Places::of(snapshot);
        let mut rules = Rules::new(&places);
        rules.tell(&places);
        let ports = rules.ports(&places);
        let owned = Owned::of(&ports);
        let nic = |device| rules.nic(device, &ports, &owned, &places);
        let mut nics: Vec<_> = snapshot.nics().map(nic).collect();
        let key = |nic: &NicView<'_>| {
            (nic.link.and_then(|link| link.index).unwrap_or(u32::MAX), nic.device.guid)
        };
        nics.sort_by_key(key);
        let others = snapshot.links.iter().filter_map(|link| stranger(snapshot, link)).collect();
        let informed = informed(&places, &nics);
        Self { nics, ports, others, informed, rules: rules.pairing }
    }

    /// What the rules have to say about a NIC, in sentences. All parties that share its serial or MAC are in it.
    #[must_use]
    pub fn rules(&self, nic: &NicView<'a>) -> Option<String> {
        let id = self.rules.nic(nic.device.guid)?;
        self.rules.explain(id).ok().map(|explanation| explanation.to_string())
    }

    /// The port that a NIC has or should have.
    #[must_use]
    pub fn vf(&self, nic: &NicView<'a>) -> Option<&VfPort<'a>> {
        nic.vf.and_then(|at| self.ports.get(at))
    }

    /// The ports that belong to no NIC, by the kernel or by the rules.
    pub fn standalone(&self) -> impl Iterator<Item = &VfPort<'a>> {
        self.ports.iter().filter(|port| port.did.is_none() && port.should.is_none())
    }
}

/// Whether the newest word of the host about every NIC is known, or no word of his counts. Silence is a word in a log that goes back to
/// the boot.
fn informed(places: &Places<'_>, nics: &[NicView<'_>]) -> bool {
    let log = &places.snapshot.log;
    let told = |nic: &NicView<'_>| places.associations.contains_key(&nic.device.guid);
    places.isolated || log.complete || log.lost == 0 && nics.iter().all(told)
}

/// Why a device is no candidate; none for NICs, ports of VFs, and devices that are no network cards.
fn stranger<'a>(snapshot: &Snapshot, link: &'a NetDevice) -> Option<(&'a NetDevice, Refusal)> {
    let kind = match &link.parent {
        Parent::Vmbus(_) => return None,
        Parent::Pci(at) => {
            let function = snapshot.function(*at);
            if function.is_some_and(|function| function.bus.is_some()) {
                return None;
            }
            let emulated = function.is_some_and(|f| f.driver.as_deref() == Some("tulip"));
            if emulated { DeviceKind::Emulated } else { DeviceKind::Pci }
        }
        Parent::Other(bus, _) if bus == "usb" => DeviceKind::Usb,
        Parent::Other(..) => DeviceKind::Other,
        Parent::None => match link.soft {
            SoftKind::Loopback => return None,
            SoftKind::Bond => DeviceKind::Bond,
            SoftKind::Bridge => DeviceKind::Bridge,
            SoftKind::Vlan => DeviceKind::Vlan,
            SoftKind::Tap => DeviceKind::Tap,
            SoftKind::Other => DeviceKind::Other,
        },
    };
    Some((link, Refusal::NotVpci(kind, link.mac?)))
}

/// The rules, and what they were told.
struct Rules {
    pairing: Pairing,
    /// By the number of the function in the snapshot and of the port in its function.
    ports: BTreeMap<(PciAddress, u32), PortId>,
}

impl Rules {
    fn new(places: &Places<'_>) -> Self {
        let isolated = places.isolated;
        let config = PairingConfig { isolated, ..PairingConfig::default() };
        Self { pairing: Pairing::new(config), ports: BTreeMap::new() }
    }

    /// Tells the rules every fact that was read, and carries out what they decide.
    fn tell(&mut self, places: &Places<'_>) {
        let now = Instant::ZERO;
        for device in places.snapshot.nics() {
            let mac = places.nics.get(&device.guid).and_then(|link| link.permanent);
            let Some(mac) = mac else { continue };
            match places.associations.get(&device.guid).copied().flatten() {
                Some(serial) => {
                    self.pairing.nic_arrived_associated(device.guid, mac, serial, now);
                }
                None => _ = self.pairing.nic_arrived(device.guid, mac, now),
            }
        }
        for function in &places.snapshot.functions {
            let Some(key) = key(places, function) else { continue };
            let id = self.pairing.function_arrived(key, now);
            for link in places.ports_of(function.address) {
                let mac = link.permanent.map_or(PermanentMac::NotYet, PermanentMac::Known);
                if let Ok(port) = self.pairing.port_arrived(id, link.port, mac, now) {
                    self.ports.insert((function.address, link.port), port);
                }
            }
        }
        while let Some(decision) = self.pairing.poll_decision() {
            if let Decision::Unbind { nic, port, .. } = decision {
                // Nothing is really bound here.
                let _ = self.pairing.unbound(nic.id, port.id, now);
            }
        }
    }

    fn ports<'a>(&self, places: &Places<'a>) -> Vec<VfPort<'a>> {
        let given: BTreeMap<PortId, (Guid, Reason)> = self
            .pairing
            .pairs()
            .map(|(nic, port, reason)| (port.id, (nic.instance, reason)))
            .collect();
        let mut ports = Vec::new();
        for link in &places.snapshot.links {
            let Parent::Pci(address) = link.parent else { continue };
            let Some(function) = places.snapshot.function(address).filter(|f| f.bus.is_some())
            else {
                continue;
            };
            let id = self.ports.get(&(address, link.port));
            let rules = id.and_then(|id| self.pairing.explain_port(*id).ok());
            ports.push(VfPort {
                function,
                link,
                key: key(places, function),
                serial: serial(function, link),
                rules: rules.map(|rules| rules.to_string()),
                should: id.and_then(|id| given.get(id)).copied(),
                did: places.joined(link),
            });
        }
        ports
    }

    fn nic<'a>(
        &self,
        device: &'a VmbusDevice,
        ports: &[VfPort<'a>],
        owned: &Owned,
        places: &Places<'a>,
    ) -> NicView<'a> {
        let link = places.nics.get(&device.guid).copied();
        let did = owned.did.get(&device.guid).copied();
        let should = owned.should.get(&device.guid).copied();
        let port = did.and_then(|at| ports.get(at));
        let association = association(places, device, port);
        let standing = self.pairing.nic(device.guid).and_then(|nic| self.pairing.state(nic).ok());
        let path = path(places, device.guid, did.is_some())
            .or_else(|| moving(places, link?).filter(|_| did.is_some()));
        let reason = match port {
            // Joined although the MACs differ: no rule makes such a pair.
            Some(port) if differ(link, port) => None,
            Some(port) => reason(association, port),
            None => should.and_then(|at| ports.get(at)?.should).map(|(_, reason)| reason),
        };
        let mut view = NicView {
            device,
            link,
            association,
            vf: did.or(should),
            joined: did.is_some(),
            state: State::Unknown,
            reason,
            path: path.map(|known| known.path),
            path_source: path.map(|known| known.source),
            since: path.and_then(|known| known.since),
            obstacle: None,
        };
        view.state = state(places, &view, standing);
        view.obstacle = obstacle(places, &view, view.vf.and_then(|at| ports.get(at)));
        view
    }
}

/// What the rules call a function; none for what did not come over vPCI, and where the serial is not known.
fn key(places: &Places<'_>, function: &Function) -> Option<FunctionKey> {
    let serial = function.serial().or_else(|| {
        places.ports_of(function.address).find_map(|link| named_serial(function, link))
    })?;
    Some(FunctionKey {
        bus: function.bus?,
        slot: u32::from(function.address.device) | u32::from(function.address.function) << 5,
        vendor: function.vendor.unwrap_or(u16::MAX),
        device: function.device.unwrap_or(u16::MAX),
        serial,
    })
}

/// The serial of a port's function: from its slot, or where there are no slots from a name made of it.
fn serial(function: &Function, link: &NetDevice) -> Option<Sourced<Serial>> {
    let slot = function.serial().map(|value| Sourced { value, source: Source::Slot });
    let named =
        || named_serial(function, link).map(|value| Sourced { value, source: Source::SlotName });
    slot.or_else(named)
}

fn named_serial(function: &Function, link: &NetDevice) -> Option<Serial> {
    if function.slot.is_some() {
        return None;
    }
    let prefix = format!("enP{}s", function.address.domain);
    let serial_in = |name: &str| {
        let (digits, port) = split_digits(name.strip_prefix(&prefix)?);
        // What udev puts behind it: `np0`, the port's name, or `d1`, its number.
        let good = port.is_empty() || port.starts_with("np") || port.starts_with('d');
        vpci::naming::serial_of(digits).filter(|_| good)
    };
    let altnames = link.told.iter().flat_map(|told| &told.altnames);
    link.property("ID_NET_NAME_SLOT")
        .into_iter()
        .chain(altnames.map(String::as_str))
        .find_map(serial_in)
}

/// The digits that a text begins with, and the rest.
fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn association(
    places: &Places<'_>,
    device: &VmbusDevice,
    port: Option<&VfPort<'_>>,
) -> Option<Sourced<Option<Serial>>> {
    if let Some(value) = places.associations.get(&device.guid).copied() {
        return Some(Sourced { value, source: Source::KernelLog });
    }
    if let Some(serial) = port.and_then(|port| port.serial) {
        return Some(Sourced { value: Some(serial.value), source: Source::InferredLink });
    }
    // A log that goes back to the boot and says nothing says that there was nothing.
    places.snapshot.log.complete.then_some(Sourced { value: None, source: Source::KernelLog })
}

/// Whether a NIC and a port have permanent MACs, and not the same.
fn differ(link: Option<&NetDevice>, port: &VfPort<'_>) -> bool {
    let ours = link.and_then(|link| link.permanent);
    ours.zip(port.link.permanent).is_some_and(|(ours, theirs)| ours != theirs)
}

fn reason(association: Option<Sourced<Option<Serial>>>, port: &VfPort<'_>) -> Option<Reason> {
    let told = association.filter(|told| told.source == Source::KernelLog)?.value;
    match (told, port.serial) {
        (Some(told), Some(slot)) if told == slot.value => Some(Reason::SerialAndMac),
        (_, Some(_)) => Some(Reason::Mac),
        _ => None,
    }
}

/// The path of a NIC's frames, as far as it is known.
#[derive(Clone, Copy)]
struct KnownPath {
    path: Path,
    since: Option<Duration>,
    source: Source,
}

/// The path that was last confirmed. Without a VF there is only one.
fn path(places: &Places<'_>, nic: Guid, joined: bool) -> Option<KnownPath> {
    let logged = |path, since| KnownPath { path, since, source: Source::KernelLog };
    match (joined, places.switches.get(&nic).copied()) {
        (true, Some((true, at))) => Some(logged(Path::Vf, Some(at))),
        (_, Some((false, at))) => Some(logged(Path::Synthetic, Some(at))),
        (false, _) => Some(KnownPath { path: Path::Synthetic, since: None, source: Source::Link }),
        (true, None) => places.snapshot.log.complete.then_some(logged(Path::Synthetic, None)),
    }
}

/// What the counters of a NIC tell where the log does not: frames that its driver has just given to the VF went that way. Where
/// none went there is nothing to tell, since perhaps none was sent.
fn moving(places: &Places<'_>, link: &NetDevice) -> Option<KnownPath> {
    let samples = &places.snapshot.machine.samples;
    let sent = |sample: &Sample| sample.get(&link.index?)?.sent_by_vf;
    let (first, last) = (samples.first().and_then(sent)?, samples.last().and_then(sent)?);
    (last > first).then_some(KnownPath { path: Path::Vf, since: None, source: Source::Counters })
}

/// Whether [samples](crate::inventory::sample) of the counters would tell something about a snapshot that its kernel log does not.
#[must_use]
pub fn wants_samples(snapshot: &Snapshot) -> bool {
    Relations::of(snapshot).nics.iter().any(|nic| nic.joined && nic.path.is_none())
}

fn state(places: &Places<'_>, view: &NicView<'_>, rules: Option<NicState>) -> State {
    if view.joined {
        return match view.path {
            Some(Path::Vf) => State::Accelerated,
            Some(Path::Synthetic) => State::Paired,
            None => State::Unknown,
        };
    }
    // The rules may have a pair that the kernel has not made.
    match rules {
        Some(NicState::Conflict(_)) => return State::Conflict,
        Some(NicState::Pending | NicState::Paired(_) | NicState::Accelerated(_)) => {
            return State::Pending;
        }
        Some(NicState::Synthetic | NicState::Waiting) | None => {}
    }
    match view.association.map(|told| told.value) {
        Some(Some(_)) => State::Waiting,
        Some(None) => State::Synthetic,
        None if places.isolated => State::Synthetic,
        None => State::Unknown,
    }
}

/// The first broken link of the chain from the association to frames on the VF.
fn obstacle(
    places: &Places<'_>,
    view: &NicView<'_>,
    port: Option<&VfPort<'_>>,
) -> Option<Obstacle> {
    if view.state == State::Accelerated {
        return None;
    }
    if let Some(port) = port {
        if !view.joined {
            return Some(Obstacle::NotJoined);
        }
        if port.link.is_up() == Some(false) {
            return Some(Obstacle::VfDown);
        }
        return Some(if view.path.is_some() { Obstacle::NotSwitched } else { Obstacle::NoLog });
    }
    if places.isolated {
        return Some(Obstacle::Isolated);
    }
    if view.link.is_none() {
        return Some(Obstacle::NicUnbound);
    }
    let serial = match view.association {
        Some(Sourced { value: Some(serial), .. }) => serial,
        Some(_) => return Some(Obstacle::NoAssociation),
        None => return Some(Obstacle::NoLog),
    };
    let function = places.serials.get(&serial).copied();
    Some(match function {
        None if view.state == State::Conflict => Obstacle::NotJoined,
        None => Obstacle::NoFunction,
        Some(function) if function.driver.is_none() => Obstacle::NoDriver(function.address),
        Some(function) if places.ports_of(function.address).next().is_none() => {
            Obstacle::NoPort(function.address)
        }
        Some(_) => Obstacle::NotJoined,
    })
}

/// How often the path of a NIC was switched in the span before `now`.
#[must_use]
pub fn switches(snapshot: &Snapshot, nic: Guid, span: Duration) -> usize {
    let Some(now) = snapshot.uptime else { return 0 };
    let from = now.saturating_sub(span);
    let switch =
        |event: &LogEvent| matches!(event, LogEvent::SwitchedToVf | LogEvent::SwitchedFromVf);
    let lines = snapshot.log.about(Subject::Vmbus(nic));
    lines.filter(|line| line.at >= from && switch(&line.event)).count()
}
