//! A guest and a host in two processes: what each side does around `netvsc_linux::socket`.

mod guest;
mod host;
mod hush;
mod link;
mod port;

pub(crate) use guest::{Gone, RemoteGuest};
pub(crate) use host::{Attention, RemoteHost};
pub(crate) use hush::unhush;
pub(crate) use link::VfLink;
pub(crate) use port::{Change, KernelLink, RemotePort};
pub use port::{VfDriver, VfInterface};

use std::time::Duration;

/// How long either side waits for the other's next word while they meet.
const PATIENCE: Duration = Duration::from_secs(5);
/// Page frame number of the first page of a guest's memory.
const FIRST_FRAME: u64 = 0x100;
/// Pages of registers that a host shows: ports of VFs that there can be at a time.
const REGISTER_PAGES: u32 = 64;
