//! PCI over VMBus, as a guest sees it: functions with slot and serial number.
//!
//! One VMBus channel of class "virtual PCI bus" carries one bus, in practice with one function on it. [`PciBus`] speaks
//! the protocol and says which functions came, left, or shall be given up; it never looks at network devices. Whoever
//! wants to know which NIC a function belongs to joins the events of this crate with those of the NIC by
//! [`Serial`](vmbus::Serial).
//!
//! # The life of a bus
//! A kernel opens the channel of an offer of class `vmbus::message::VPCI_CLASS`, hands it to [`PciBus::new`], and from
//! then on does three things: poll when the host's doorbell rang or [`PciBus::poll_deadline`] has come, take the events,
//! and act on them. Here the host is played by hand, so that the example runs anywhere.
//!
//! ```
//! use vmbus::memory::SharedPages;
//! use vmbus::packet::Outgoing;
//! use vmbus::{Channel, Instant, Pfn, Serial, SignalFlag};
//! use vpci::message::{Description, MessageType, Version, encode_relations};
//! use vpci::{Event, PciBus, PciBusConfig, Slot};
//!
//! // Two rings, as the guest shares them with the host when it opens the channel; each end is a channel of its own.
//! let ring = |first: u64| SharedPages::from_heap(&[0, 1, 2, 3].map(|page| Pfn(first + page)));
//! let (up, down) = (ring(0), ring(4));
//! let guest = Channel::from_parts(up.clone(), down.clone(), SignalFlag::new())?;
//! let mut host = Channel::from_parts(down, up, SignalFlag::new())?;
//!
//! // Two pages of MMIO space, for the window to configuration space.
//! let now = Instant::ZERO;
//! let mut bus = PciBus::new(guest, PciBusConfig::new(0xf_e000_0000), now);
//! let description = Description {
//!     slot: Slot::new(2, 0).unwrap(),
//!     vendor: 0x15b3,
//!     device: 0x1018,
//!     revision: 0,
//!     class: 2,
//!     subclass: 0,
//!     prog_if: 0,
//!     subsystem_vendor: 0,
//!     subsystem: 0,
//!     serial: Serial(7),
//!     numa_node: None,
//! };
//!
//! let mut told = Vec::new();
//! for _ in 0..10 {
//!     bus.poll(now)?;
//!     while let Some(event) = bus.poll_event() {
//!         match event {
//!             // A driver may be bound: BARs are placed through `vpci::ConfigSpace`, interrupts are asked for here.
//!             Event::FunctionArrived(function) => {
//!                 assert_eq!(bus.serial(function.slot()), Some(Serial(7)));
//!                 assert_eq!(function.bars()?.next().map(|bar| bar.size), Some(0x1000));
//!                 told.push("arrived");
//!             }
//!             // The driver stops, and then the host may have the function back.
//!             Event::EjectRequested { function } => {
//!                 told.push("asked back");
//!                 bus.eject_complete(function)?;
//!             }
//!             // Without an eject before, the hardware is gone already: reads give all ones.
//!             Event::FunctionLeft(_) => told.push("left"),
//!             Event::Overdue { step, .. } => println!("the host has not answered: {step}"),
//!             _ => {}
//!         }
//!     }
//!
//!     // The host's part: answers, the list of functions, and an eject once the function is in use.
//!     let mut buffer = [0; 4096];
//!     while let Some(packet) = host.receive(&mut buffer)? {
//!         let kind = MessageType(u32::from_le_bytes(*packet.payload.first_chunk().unwrap()));
//!         let mut say = |payload: &[u8]| {
//!             host.try_send(&Outgoing::InBand { transaction_id: 0, completion: false, payload })
//!         };
//!         match kind {
//!             MessageType::QUERY_BUS_RELATIONS => {
//!                 say(&encode_relations(Version::V1_4, &[description]))?;
//!             }
//!             MessageType::EJECT_COMPLETE => told.push("given back"),
//!             _ => {
//!                 // Success, and for the question for its BARs: one of 4 KiB.
//!                 let mut payload = [0; 28];
//!                 payload[4..8].copy_from_slice(&0xffff_f000_u32.to_le_bytes());
//!                 let transaction_id = packet.transaction_id;
//!                 host.try_send(&Outgoing::Completion { transaction_id, payload: &payload })?;
//!                 if kind == MessageType::ASSIGNED_RESOURCES2 {
//!                     let mut eject = MessageType::EJECT.0.to_le_bytes().to_vec();
//!                     eject.extend(description.slot.to_wire().to_le_bytes());
//!                     let payload = &eject[..];
//!                     host.try_send(&Outgoing::InBand { transaction_id: 0, completion: false, payload })?;
//!                 }
//!             }
//!         }
//!         host.commit_read()?;
//!     }
//! }
//! assert_eq!(told, ["arrived", "asked back", "left", "given back"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![no_std]
extern crate alloc;

pub mod assign;
pub mod bar;
pub mod bus;
pub mod config;
pub mod interrupt;
pub mod message;
pub mod msi;
pub mod naming;
pub mod slot;
pub mod window;

pub use bus::{Event, Function, FunctionId, PciBus, PciBusConfig};
pub use config::ConfigSpace;
pub use interrupt::{Interrupt, InterruptWish};
pub use slot::{BadSlot, DevFn, Slot};
pub use window::{MmioWindow, Width};
