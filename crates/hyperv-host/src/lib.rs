//! A Hyper-V host to run guests against.
//!
//! [`Host`] is all of it: bus, NICs with a virtual switch, virtual functions on PCI buses. The example `guest`
//! (`cargo run -p hyperv-host --example guest`) has a whole guest on it, whose NIC gets VFs that are asked back and torn away.
//!
//! Each part is a machine of its own that can be had alone, as the NIC's service here: a guest's NIC comes up on it and sends a frame.
//!
//! ```
//! use hyperv_host::memory::{GuestMemory, GuestRam};
//! use hyperv_host::nic::{GuestView, NicService, NicServiceConfig};
//! use hyperv_host::switch::{PortConfig, SwitchPort, WireConfig};
//! use netvsc::{MacAddress, Nic, NicConfig, NicEvent, SharedBuffer};
//! use vmbus::{Channel, GpadlId, Instant, Pfn, Platform, SignalFlag};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mac = MacAddress([0x00, 0x15, 0x5d, 0, 0, 1]);
//! let now = Instant::ZERO;
//! // The guest's memory; the host reaches it by the numbers of its pages.
//! let ram = GuestRam::new(1, 1024);
//! let (up, down) = (ram.allocate(17)?, ram.allocate(17)?);
//! let receive = SharedBuffer { gpadl: GpadlId(1), pages: ram.allocate(64)? };
//! let send = SharedBuffer { gpadl: GpadlId(2), pages: ram.allocate(64)? };
//! let buffers = [(GpadlId(1), ram.map(receive.pages.frames())?), (GpadlId(2), ram.map(send.pages.frames())?)];
//! let gpadl = |id| buffers.iter().find(|(known, _)| *known == id).map(|(_, pages)| pages.clone());
//! let pages = |frames: &[Pfn]| ram.map(frames).ok();
//!
//! // The host's side of the channel, with a wire behind the NIC, and the guest's.
//! let wire = WireConfig::instant();
//! let mut port = SwitchPort::new(PortConfig { to_peer: wire, from_peer: wire, ..PortConfig::default() });
//! let mut service = NicService::new(NicServiceConfig::new(mac));
//! let ends = (ram.map(down.frames())?, ram.map(up.frames())?);
//! service.open(Channel::from_parts(ends.0, ends.1, SignalFlag::new())?, &mut port);
//! let channel = Channel::from_parts(up, down, SignalFlag::new())?;
//! let mut nic = Nic::new(channel, receive, Some(send), NicConfig::default(), now)?;
//!
//! // Each does what it can, until the NIC is ready.
//! let mut ready = false;
//! for _ in 0..100 {
//!     service.poll(now, GuestView { gpadl: &gpadl, pages: &pages }, &mut port);
//!     nic.poll(now, &mut |_| {})?;
//!     while let Some(event) = nic.poll_event() {
//!         ready |= matches!(event, NicEvent::Ready { .. });
//!     }
//! }
//! assert!(ready);
//!
//! let mut frame = [0; 60];
//! frame[..6].copy_from_slice(&[0xff; 6]);
//! frame[6..12].copy_from_slice(&mac.0);
//! nic.transmit(&frame)?;
//! nic.flush();
//! service.poll(now, GuestView { gpadl: &gpadl, pages: &pages }, &mut port);
//! assert_eq!(port.peer_receive(now).as_deref(), Some(&frame[..]));
//! # Ok(())
//! # }
//! ```

pub mod bus;
pub mod host;
pub mod memory;
pub mod nic;
pub mod pci;
pub mod switch;
pub mod vf;

pub use host::Host;
