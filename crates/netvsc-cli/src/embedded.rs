//! The embedded host: host and guest in one process, over one shared memory, on one clock.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyperv_host::Host;
use hyperv_host::bus::BusPolicy;
use hyperv_host::memory::GuestRam;
use hyperv_host::pci::PciPolicy;
use hyperv_host::vf::{SimulatedPort, VfConfig, VfDevice, VfFeatures, VfWindow};
use netvsc::MacAddress;
use vmbus::bus::PostRetry;
use vmbus::memory::SharedPages;
use vmbus::platform::{AllocError, Platform};
use vmbus::time::earliest;
use vmbus::{ConnectionId, Guid, Instant, SignalFlag};
use vpci::bus::Function;

use crate::guest::{Guest, Machine, Sink};

/// Pages of memory that a guest of a few NICs may share: 256 MiB.
const SHARED_PAGES: usize = 65_536;
/// Pages for each NIC of a guest of many: rings, buffers and VF, and the same again while it begins anew.
const PAGES_PER_NIC: usize = 2048;
/// Descriptors of each ring of a VF.
const VF_DEPTH: u32 = 256;

/// What one process has to know of both sides: doorbells that rang, and device windows that can be mapped.
#[derive(Debug, Default)]
struct Wiring {
    doorbells: BTreeMap<ConnectionId, SignalFlag>,
    /// Windows of VFs' ports by the instance GUID of their bus, put there by the host when it offers them.
    windows: BTreeMap<Guid, Vec<VfWindow>>,
    /// Interrupts of the ports that the guest has open.
    interrupts: BTreeMap<Guid, Vec<SignalFlag>>,
    /// Allocations of the guest that fail before the next succeeds.
    famine: usize,
    /// Allocations that failed so.
    starved: usize,
}

impl Wiring {
    /// Whether the guest gets no memory now.
    fn starves(&mut self) -> bool {
        let starves = self.famine > 0;
        self.famine -= usize::from(starves);
        self.starved += usize::from(starves);
        starves
    }
}

/// The guest's machine on the embedded host.
#[derive(Debug)]
pub struct EmbeddedMachine {
    ram: GuestRam,
    wiring: Rc<RefCell<Wiring>>,
}

impl Platform for EmbeddedMachine {
    fn allocate(&self, pages: usize) -> Result<SharedPages, AllocError> {
        if self.wiring.borrow_mut().starves() {
            return Err(AllocError { pages });
        }
        self.ram.allocate(pages)
    }
}

impl Machine for EmbeddedMachine {
    type Doorbell = SignalFlag;
    type Port = SimulatedPort;

    fn doorbell(&mut self, connection: ConnectionId) -> SignalFlag {
        self.wiring.borrow_mut().doorbells.entry(connection).or_default().clone()
    }

    fn forget_doorbell(&mut self, connection: ConnectionId) {
        self.wiring.borrow_mut().doorbells.remove(&connection);
    }

    fn open_ports(&mut self, bus: Guid, _: &Function) -> Result<Vec<SimulatedPort>, String> {
        let windows = self.wiring.borrow().windows.get(&bus).cloned();
        let windows = windows.ok_or("its registers cannot be mapped")?;
        let interrupts = windows.iter().map(|window| window.interrupt.clone()).collect();
        let open = |window| SimulatedPort::open(window, self, VF_DEPTH);
        let ports = windows.into_iter().map(open).collect::<Result<_, _>>();
        let ports = ports.map_err(|error| error.to_string())?;
        self.wiring.borrow_mut().interrupts.insert(bus, interrupts);
        Ok(ports)
    }
}

/// Host and guest, joined.
#[derive(Debug)]
pub struct World {
    /// The host.
    pub host: Host,
    /// The guest.
    pub guest: Guest<EmbeddedMachine>,
    ram: GuestRam,
    wiring: Rc<RefCell<Wiring>>,
    /// Doorbells that rang, kept to use its memory again.
    rang: Vec<ConnectionId>,
    /// How far the guest's clock is ahead of the host's.
    ahead: Duration,
    /// When a message that the hypervisor did not take is posted again, on the guest's clock.
    retry: PostRetry,
}

impl World {
    /// A host without devices and a guest that has not made contact. `seed` chooses the guest's page frame numbers.
    #[must_use]
    pub fn new(bus: BusPolicy, pci: PciPolicy, seed: u64) -> Self {
        Self::for_nics(0, bus, pci, seed)
    }

    /// The same with memory for so many NICs.
    #[must_use]
    pub fn for_nics(nics: usize, bus: BusPolicy, pci: PciPolicy, seed: u64) -> Self {
        let ram = GuestRam::new(seed, SHARED_PAGES.max(nics.saturating_mul(PAGES_PER_NIC)));
        let wiring = Rc::new(RefCell::new(Wiring::default()));
        let machine = EmbeddedMachine { ram: ram.clone(), wiring: wiring.clone() };
        Self {
            host: Host::new(bus, pci, Arc::new(ram.clone())),
            guest: Guest::new(machine),
            ram,
            wiring,
            rang: Vec::new(),
            ahead: Duration::ZERO,
            retry: PostRetry::default(),
        }
    }

    /// What the guest's clock shows when the host's shows `now`.
    #[must_use]
    pub fn guest_time(&self, now: Instant) -> Instant {
        now + self.ahead
    }

    /// The guest's clock jumps forward.
    pub fn jump(&mut self, span: Duration) {
        self.ahead += span;
    }

    /// The guest's next allocations fail, so many of them.
    pub fn starve(&mut self, allocations: usize) {
        self.wiring.borrow_mut().famine = allocations;
    }

    /// Allocations that failed.
    #[must_use]
    pub fn starved(&self) -> usize {
        self.wiring.borrow().starved
    }

    /// Another guest takes over the machine, without a word to the host. What was given to the guest stays in place, what it had
    /// made of it is gone. The old guest is returned.
    pub fn restart_guest(&mut self) -> Guest<EmbeddedMachine> {
        let mut wiring = self.wiring.borrow_mut();
        wiring.doorbells.clear();
        wiring.interrupts.clear();
        wiring.famine = 0;
        drop(wiring);
        self.retry = PostRetry::default();
        let machine = EmbeddedMachine { ram: self.ram.clone(), wiring: self.wiring.clone() };
        std::mem::replace(&mut self.guest, Guest::new(machine))
    }

    /// Makes the registers of a network function reachable that is no NIC's VF and never has a link.
    pub fn map_stranger(&mut self, bus: Guid, mac: MacAddress) {
        let config = VfConfig { mac, link: false, features: VfFeatures::empty() };
        let window = VfDevice::new(config, Arc::new(self.ram.clone())).window();
        self.wiring.borrow_mut().windows.insert(bus, vec![window]);
    }

    /// Pages that the guest has allocated for sharing now.
    #[must_use]
    pub fn shared_pages(&self) -> usize {
        self.ram.allocated()
    }

    /// Makes the registers of a VF that is about to be offered reachable for the guest's driver.
    pub fn map_vf(&mut self, bus: Guid) {
        let windows = self.host.map_ports(bus);
        if !windows.is_empty() {
            self.wiring.borrow_mut().windows.insert(bus, windows);
        }
    }

    /// Removes the registers of a VF that is gone.
    pub fn unmap_vf(&mut self, bus: Guid) {
        let mut wiring = self.wiring.borrow_mut();
        wiring.windows.remove(&bus);
        wiring.interrupts.remove(&bus);
    }

    /// Carries messages, doorbells and interrupts between the two until neither has anything more to do at `now`. Frames for
    /// the guest go to `sink` with the number of their NIC.
    pub fn settle(&mut self, now: Instant, sink: &mut Sink<'_>) {
        loop {
            let guest_now = self.guest_time(now);
            let mut moved = self.guest.poll(guest_now, sink);
            while self.retry.ready(guest_now)
                && let Some(post) = self.guest.poll_outgoing()
            {
                let status = self.host.post(post.connection, &post.payload, now);
                moved |= self.guest.posted(post, status, &mut self.retry, guest_now);
            }
            moved |= self.ring_host();
            self.host.poll(now);
            while let Some(message) = self.host.poll_message() {
                self.guest.handle_message(&message, guest_now);
                moved = true;
            }
            let channels: Vec<_> = self.host.interrupts().collect();
            for channel in channels {
                self.guest.interrupt(channel);
                moved = true;
            }
            moved |= self.interrupt_ports();
            if !moved {
                return;
            }
        }
    }

    /// Tells the host which doorbells rang.
    fn ring_host(&mut self) -> bool {
        self.rang.clear();
        let wiring = self.wiring.borrow();
        self.rang
            .extend(wiring.doorbells.iter().filter(|(_, flag)| flag.take()).map(|(id, _)| *id));
        drop(wiring);
        for connection in &self.rang {
            self.host.signalled(*connection);
        }
        !self.rang.is_empty()
    }

    /// Tells the guest which VFs raised their interrupt.
    fn interrupt_ports(&mut self) -> bool {
        let wiring = self.wiring.borrow();
        let mut any = false;
        for (bus, interrupts) in &wiring.interrupts {
            for interrupt in interrupts {
                if interrupt.take() {
                    self.guest.port_interrupt(*bus);
                    any = true;
                }
            }
        }
        any
    }

    /// When something happens next although nobody does anything.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let ahead = self.guest_time(Instant::ZERO);
        let guest = earliest(self.guest.deadline(), self.retry.poll_deadline());
        let guest = guest.map(|at| Instant::ZERO + at.since(ahead));
        earliest(self.host.poll_deadline(), guest)
    }
}
