//! VMBus devices that `uio_hv_generic` has given to this process (PROTOCOL §12; Linux `uio_hv_generic.c`).
//!
//! [`Binding`] takes a device from its driver and gives it back; [`Device`] opens one that is bound: its rings as a
//! [`vmbus::Channel`], the buffers that the kernel shared with the host already, and the descriptor that tells of interrupts
//! and rings the host's doorbell.
//!
//! What the kernel keeps for itself: GPADLs cannot be made, sub-channels not be closed one by one, and the interrupt mask in the
//! ring header is the user's alone from here on.
//!
//! What kernels do differently, and what is done about it:
//!
//! | kernels | what they do | here |
//! |---|---|---|
//! | 6.1, 6.6 | take no device whose channel has no bit in the monitor page; `write` masks and unmasks and never rings | rung by the bit |
//! | before 6.16 | `write` rings for the primary channel at most; an interrupt of a sub-channel crashes the kernel | none is asked for ([`Device::serves_sub_channels`]) |
//! | before 6.17 | mask a channel at each interrupt | a channel that rests unmasks itself in the header of its ring |
//! | some | show a sub-channel's `ring` before it is open, and map it with ENODEV | it is looked at again ([`Device::sub_channel`]) |
//! | some | do without `monitor_id` where there is none, others say 255 | both are none |
//! | all, from 6.12 on surely | answer EIO once the device is gone, ENODEV once unregistered | [`Interrupt::Gone`] |
//!
//! Later stable releases of older kernels have some of this already; what they could do more is not made use of.
//!
//! Nor are there page lists (GPA-direct packets): they name pages by frame number, and the driver tells those of nothing, its own
//! buffers included, for which GPADL numbers stand in the names of the maps. A process would have to read `/proc/self/pagemap`, which takes
//! CAP_SYS_ADMIN, and to keep the kernel from moving those pages, which takes huge pages; what goes through the send buffer needs neither.

mod bind;
mod device;
mod journal;
mod map;

pub use self::bind::{
    BindError, Binding, Change, KERNEL_NIC_DRIVER, Restored, UIO_DRIVER, restore_all,
};
pub use self::device::{Device, Interrupt, SubChannel, UioDoorbell};
pub use self::journal::{Hold, Journal, Record};
pub use self::map::{Map, MapKind};

use std::io;
use std::path::PathBuf;

/// Why a device cannot be used from user space.
#[derive(Debug, thiserror::Error)]
pub enum UioError {
    /// The driver has no uio device for it.
    #[error("{device} has no uio device: expected one entry in {}; is it bound to `uio_hv_generic`?", folder.display())]
    NotBound {
        /// The device, as its folder is called.
        device: String,
        /// Where its uio device would be.
        folder: PathBuf,
    },
    /// A file that has to be there cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// An attribute holds what it should not.
    #[error("{} holds `{found}`: expected {expected}", path.display())]
    Attribute {
        /// The file.
        path: PathBuf,
        /// What it holds, the beginning of it.
        found: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// One of the maps that the driver always has is missing.
    #[error(
        "{device} has no map `{map}`; expected txrx_rings, int_page, monitor_page, recv:N and send:N"
    )]
    NoMap {
        /// The uio device.
        device: String,
        /// The map.
        map: &'static str,
    },
    /// A map cannot be mapped.
    #[error("{device}, map `{map}` of {size} bytes: {source}")]
    Mapping {
        /// The uio device.
        device: String,
        /// The map.
        map: String,
        /// Its size in bytes.
        size: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// Rings of a size that cannot be.
    #[error("rings of {size} bytes: expected two halves of whole pages, at least two pages each")]
    RingSize {
        /// The size of both in bytes.
        size: u64,
    },
    /// The rings hold what no kernel leaves there.
    #[error("the rings of {device}: {source}")]
    Ring {
        /// The uio device.
        device: String,
        /// What is wrong with them.
        source: vmbus::ring::RingError,
    },
    /// The monitor page or the number of its bit makes no sense.
    #[error("the monitor page of {device}: {source}")]
    Monitor {
        /// The uio device.
        device: String,
        /// What is wrong with it.
        source: vmbus::monitor::MonitorError,
    },
}

impl UioError {
    fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

#[cfg(test)]
mod tests;
