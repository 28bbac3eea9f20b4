//! An open uio device.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vmbus::memory::{PAGE_SIZE, SharedPages};
use vmbus::monitor::{MonitorDoorbell, MonitorPage};
use vmbus::{Channel, ChannelId, Doorbell, GpadlId};

use super::bind::read_line;
use super::map::{Map, MapKind};
use super::{UioError, bind::device_folder};
use crate::mapping::map_file;

/// The most sub-channels that are looked at; no NIC has more queues.
const MOST_CHANNELS: usize = 1024;

/// Rings the host of a uio device: by the bit of its monitor page, or by the descriptor.
///
/// Before the bit of the monitor page it sets that of the channel among the event flags, as Linux (`vmbus_setevent`), FreeBSD and DPDK do: a host that
/// looks at them finds out there whom it is about, and one that does not loses nothing.
///
/// The descriptor rings for the primary channel and every sub-channel at once, and the kernel unmasks their interrupts with it.
#[derive(Clone, Debug)]
pub struct UioDoorbell {
    file: Arc<File>,
    monitor: Option<MonitorDoorbell>,
    flag: Option<EventFlag>,
}

/// The event flag of a channel, in the direction of the host.
#[derive(Clone, Debug)]
struct EventFlag {
    page: SharedPages,
    channel: u32,
}

impl EventFlag {
    /// `None` for a channel without a flag: there are 2,048 in each half of the page (PROTOCOL §1.3).
    fn new(page: SharedPages, channel: u32) -> Option<Self> {
        (page.pages() == 1 && channel < 2048).then_some(Self { page, channel })
    }

    fn set(&self) {
        // The second half of the page is the guest's to write.
        let word = PAGE_SIZE / 2 + self.channel as usize / 32 * 4;
        if let Ok(flags) = self.page.atomic_u32(word) {
            flags.fetch_or((1_u32 << (self.channel % 32)).to_le(), Ordering::SeqCst);
        }
    }
}

impl Doorbell for UioDoorbell {
    fn ring(&self) {
        match &self.monitor {
            Some(bit) => {
                if let Some(flag) = &self.flag {
                    flag.set();
                }
                bit.ring();
            }
            None => {
                // It fails only once the device is gone, and then there is nobody to hear; reading the descriptor says so.
                if let Err(error) = rustix::io::write(&*self.file, &1_u32.to_ne_bytes()) {
                    tracing::debug!(%error, "the doorbell of a uio device");
                }
            }
        }
    }
}

/// What came of waiting for an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// The host rang; so many times since the device was made, all channels together.
    Rang {
        /// The count, which wraps around.
        count: u32,
    },
    /// Nothing came in time.
    Quiet,
    /// The host has taken the device away, or somebody its driver. It can only be closed.
    Gone,
}

/// A sub-channel that the host offered and the kernel opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubChannel {
    /// Its channel.
    pub channel: ChannelId,
    /// Its number within the device, from 1 on, as NVSP counts queues.
    pub index: u32,
    /// Where its rings can be mapped.
    ring: PathBuf,
    /// Its bit in the monitor page.
    pub(super) monitor: Option<u8>,
}

/// A VMBus device opened through `uio_hv_generic`.
///
/// Opening it opens its channel, with empty rings; when the last descriptor is closed, by whatever end of the process, the kernel closes
/// the channel, and the host forgets the conversation. Buffers stay shared until the device is unbound.
///
/// In a tree that is no kernel's there can be a device that is made of what any process can make: a socket of packets where its
/// file would be, on which a packet of 4 bytes is what one read or write of the file is and the end of the connection is the end
/// of the device, and a file `memory` beside name and size of each map. The first packet says that it is open. All else is as with
/// the kernel's.
#[derive(Debug)]
pub struct Device {
    name: String,
    folder: PathBuf,
    file: Arc<File>,
    maps: Vec<Map>,
    /// The memory of each map is in a file of its own.
    made: bool,
    /// Its descriptor rings for sub-channels, too.
    rings_all: bool,
}

impl Device {
    /// Opens the device `device` (the name of its folder in `/sys/bus/vmbus/devices`), which is bound.
    ///
    /// `root` is `/`, except in tests.
    ///
    /// # Errors
    /// [`UioError::NotBound`] if it has no uio device, [`UioError::File`] and [`UioError::Attribute`] for what cannot be read or
    /// opened, [`UioError::NoMap`] if it is another kind of uio device.
    pub fn open(root: &Path, device: &str) -> Result<Self, UioError> {
        let folder = device_folder(root, device);
        let uio = folder.join("uio");
        let not_bound = || UioError::NotBound { device: device.to_owned(), folder: uio.clone() };
        let entries = fs::read_dir(&uio).map_err(|_| not_bound())?;
        let names =
            entries.flatten().take(2).filter_map(|entry| entry.file_name().into_string().ok());
        let name = names.filter(|name| name.starts_with("uio")).min().ok_or_else(not_bound)?;
        let maps = Map::read_all(&uio.join(&name).join("maps"))?;
        let path = root.join("dev").join(&name);
        let made = fs::metadata(&path).is_ok_and(|found| found.file_type().is_socket());
        let file = if made {
            connect(&path)
        } else {
            OpenOptions::new().read(true).write(true).open(&path)
        };
        let file = Arc::new(file.map_err(UioError::file(path))?);
        let rings_all = rings_all(root);
        let opened = Self { name, folder, file, maps, made, rings_all };
        opened.map(MapKind::Rings, "txrx_rings")?;
        Ok(opened)
    }

    /// `uioN`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its maps.
    #[must_use]
    pub fn maps(&self) -> &[Map] {
        &self.maps
    }

    /// The primary channel, with rings as the kernel left them.
    ///
    /// To be called once for each time the device is opened: a second one would read and write the same rings.
    ///
    /// # Errors
    /// If the rings cannot be mapped or are no rings, or the monitor page is none.
    pub fn channel(&self) -> Result<Channel<SharedPages, UioDoorbell>, UioError> {
        let rings = self.pages(self.map(MapKind::Rings, "txrx_rings")?)?;
        // The primary channel has a folder among the others, by its number.
        let number = read_line(&self.folder.join("id"))?;
        let monitor = self.monitor_number(&self.folder.join("channels").join(&number))?;
        self.over(&rings, monitor, number.parse().ok())
    }

    /// The memory that the host fills and the number under which it knows it.
    ///
    /// # Errors
    /// [`UioError::NoMap`] if the kernel could not share as much; otherwise as for [`Device::channel`].
    pub fn receive_buffer(&self) -> Result<(GpadlId, SharedPages), UioError> {
        let id = |kind| if let MapKind::Receive(id) = kind { Some(id) } else { None };
        self.buffer(id, "recv:N")
    }

    /// The memory that the host reads and the number under which it knows it.
    ///
    /// # Errors
    /// As for [`Device::receive_buffer`].
    pub fn send_buffer(&self) -> Result<(GpadlId, SharedPages), UioError> {
        let id = |kind| if let MapKind::Send(id) = kind { Some(id) } else { None };
        self.buffer(id, "send:N")
    }

    /// Whether sub-channels may be asked for, which is so from Linux 6.16 on. Before that the first interrupt of one crashes the kernel
    /// (`hv_uio_channel_cb` looks for a device that only primary channels have), unless a later stable release mends it, which its number does not tell.
    #[must_use]
    pub fn serves_sub_channels(&self) -> bool {
        self.rings_all
    }

    /// The sub-channels that there are now, in the order of their numbers. The kernel opens them as the host offers them, so there may
    /// be more in a moment. None where the kernel does not [serve](Self::serves_sub_channels) them.
    ///
    /// # Errors
    /// [`UioError::File`] if their folder cannot be read, [`UioError::Attribute`] for a number that is none.
    pub fn sub_channels(&self) -> Result<Vec<SubChannel>, UioError> {
        if !self.serves_sub_channels() {
            return Ok(Vec::new());
        }
        let channels = self.folder.join("channels");
        let entries = fs::read_dir(&channels).map_err(UioError::file(&channels))?;
        let mut found = Vec::new();
        for entry in entries.take(MOST_CHANNELS) {
            let folder = entry.map_err(UioError::file(&channels))?.path();
            let ring = folder.join("ring");
            let name = folder.file_name().and_then(|name| name.to_str());
            let Some(channel) = name.and_then(|name| name.parse().ok()).map(ChannelId) else {
                continue;
            };
            let path = folder.join("subchannel_id");
            let text = match read_line(&path) {
                Ok(text) => text,
                // The host has taken it back meanwhile.
                Err(UioError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            let index = text.parse().ok();
            let index =
                index.ok_or(UioError::Attribute { path, found: text, expected: "a number" })?;
            // The primary channel has a folder, too; its rings are the device's. A sub-channel without rings is not open yet.
            if index != 0 && ring.exists() {
                let monitor = self.monitor_number(&folder)?;
                found.push(SubChannel { channel, index, ring, monitor });
            }
        }
        found.sort_by_key(|sub| sub.index);
        Ok(found)
    }

    /// The rings of a sub-channel; `None` if the kernel has not opened it yet, or the host has taken it back.
    ///
    /// To be called until there are any, as [`Device::channel`] once.
    ///
    /// # Errors
    /// As for [`Device::channel`].
    pub fn sub_channel(
        &self,
        sub: &SubChannel,
    ) -> Result<Option<Channel<SharedPages, UioDoorbell>>, UioError> {
        let file = match OpenOptions::new().read(true).write(true).open(&sub.ring) {
            Ok(file) => file,
            Err(error) if is_away(&error) => return Ok(None),
            Err(error) => return Err(UioError::file(&sub.ring)(error)),
        };
        let size = file.metadata().map_err(UioError::file(&sub.ring))?.len();
        match self.map_pages(&file, 0, size, &sub.ring.display().to_string()) {
            Ok(rings) => self.over(&rings, sub.monitor, Some(sub.channel.0)).map(Some),
            Err(UioError::Mapping { source, .. }) if is_away(&source) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets the host's interrupts of all channels through, and rings it where there is no monitor page.
    ///
    /// # Errors
    /// What the kernel says; `EIO` after the device is gone.
    pub fn unmask(&self) -> io::Result<()> {
        self.control(1)
    }

    /// Keeps the host's interrupts of all channels away.
    ///
    /// # Errors
    /// As for [`Device::unmask`].
    pub fn mask(&self) -> io::Result<()> {
        self.control(0)
    }

    /// Waits until the host rings, at most so many milliseconds, or for ever.
    ///
    /// # Errors
    /// What the kernel says, other than that the device is gone.
    pub fn wait(&self, milliseconds: Option<u32>) -> io::Result<Interrupt> {
        let limit = milliseconds.map(|ms| Timespec {
            tv_sec: i64::from(ms / 1000),
            tv_nsec: i64::from(ms % 1000) * 1_000_000,
        });
        let mut fds = [PollFd::new(&*self.file, PollFlags::IN)];
        match poll(&mut fds, limit.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(Interrupt::Quiet),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        self.take()
    }

    /// The interrupts that came and were not read yet. Blocks if there are none: to be called when the descriptor is readable.
    ///
    /// # Errors
    /// As for [`Device::wait`].
    pub fn take(&self) -> io::Result<Interrupt> {
        let mut count = [0; 4];
        match rustix::io::read(&*self.file, &mut count) {
            Ok(4) => Ok(Interrupt::Rang { count: u32::from_ne_bytes(count) }),
            // The last is what a socket in its place says if something was written that nobody has read.
            Ok(_) | Err(Errno::IO | Errno::NODEV | Errno::CONNRESET) => Ok(Interrupt::Gone),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Interrupt::Quiet),
            Err(error) => Err(error.into()),
        }
    }

    fn control(&self, on: u32) -> io::Result<()> {
        rustix::io::write(&*self.file, &on.to_ne_bytes())?;
        Ok(())
    }

    fn map(&self, kind: MapKind, map: &'static str) -> Result<&Map, UioError> {
        let found = self.maps.iter().find(|map| map.kind == kind);
        found.ok_or_else(|| UioError::NoMap { device: self.name.clone(), map })
    }

    fn buffer(
        &self,
        id: impl Fn(MapKind) -> Option<GpadlId>,
        map: &'static str,
    ) -> Result<(GpadlId, SharedPages), UioError> {
        let found = self.maps.iter().find_map(|map| Some((id(map.kind)?, map)));
        let (gpadl, map) =
            found.ok_or_else(|| UioError::NoMap { device: self.name.clone(), map })?;
        Ok((gpadl, self.pages(map)?))
    }

    fn pages(&self, map: &Map) -> Result<SharedPages, UioError> {
        if self.made {
            let maps = self.folder.join("uio").join(&self.name).join("maps");
            let path = maps.join(format!("map{}/memory", map.index));
            let file = OpenOptions::new().read(true).write(true).open(&path);
            return self.map_pages(file.map_err(UioError::file(path))?, 0, map.size, &map.name);
        }
        self.map_pages(&*self.file, (map.index * PAGE_SIZE) as u64, map.size, &map.name)
    }

    fn map_pages(
        &self,
        file: impl AsFd,
        offset: u64,
        size: u64,
        map: &str,
    ) -> Result<SharedPages, UioError> {
        let pages = usize::try_from(size / PAGE_SIZE as u64).unwrap_or(usize::MAX);
        map_file(file, offset, pages, &[]).map_err(|error| UioError::Mapping {
            device: self.name.clone(),
            map: map.to_owned(),
            size,
            source: error.into(),
        })
    }

    /// The bit of a channel in the monitor page, by the channel's folder. There is no such file where the host gave it none.
    fn monitor_number(&self, folder: &Path) -> Result<Option<u8>, UioError> {
        let path = folder.join("monitor_id");
        let Ok(text) = read_line(&path) else {
            return Ok(None);
        };
        let number: u32 = text.parse().map_err(|_| UioError::Attribute {
            path,
            found: text,
            expected: "the number of a monitor bit, 0 to 127, or 255 for none",
        })?;
        // 255 is what a host says that has none.
        Ok(u8::try_from(number).ok().filter(|number| *number != u8::MAX))
    }

    fn over(
        &self,
        rings: &SharedPages,
        monitor: Option<u8>,
        channel: Option<u32>,
    ) -> Result<Channel<SharedPages, UioDoorbell>, UioError> {
        let pages = rings.pages();
        let size = (pages * PAGE_SIZE) as u64;
        let half = if pages.is_multiple_of(2) && pages >= 4 { pages / 2 } else { 0 };
        let (Some(tx), Some(rx), 2..) = (rings.slice(0, half), rings.slice(half, half), half)
        else {
            return Err(UioError::RingSize { size });
        };
        let doorbell = self.doorbell(monitor, channel)?;
        Channel::from_parts(tx, rx, doorbell)
            .map_err(|source| UioError::Ring { device: self.name.clone(), source })
    }

    /// What rings for a channel, by its bit in the monitor page if it has one.
    pub(super) fn doorbell(
        &self,
        monitor: Option<u8>,
        channel: Option<u32>,
    ) -> Result<UioDoorbell, UioError> {
        let monitor = match monitor {
            Some(number) => {
                let page = self.pages(self.map(MapKind::Monitor, "monitor_page")?)?;
                let bit = MonitorPage::new(page).and_then(|page| page.doorbell(number));
                let device = self.name.clone();
                Some(bit.map_err(|source| UioError::Monitor { device, source })?)
            }
            None => None,
        };
        let flag = match (monitor.is_some(), self.map(MapKind::Interrupts, "int_page"), channel) {
            (true, Ok(map), Some(channel)) => EventFlag::new(self.pages(map)?, channel),
            _ => None,
        };
        Ok(UioDoorbell { file: Arc::clone(&self.file), monitor, flag })
    }
}

/// Whether it is an error of something that is not there yet, or no more.
fn is_away(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

/// Whether this kernel rings for sub-channels by a device's descriptor, and survives their interrupts, which it does from 6.16 on.
fn rings_all(root: &Path) -> bool {
    let release = read_line(&root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 16)
}

/// What stands for the device's file where no kernel makes one.
fn connect(path: &Path) -> io::Result<File> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    match rustix::io::read(&socket, &mut [0; 4])? {
        4 => Ok(File::from(socket)),
        // As the kernel says for a device that goes while it is being opened.
        _ => Err(Errno::NODEV.into()),
    }
}

impl AsFd for Device {
    /// Readable when the host rang, or the device is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
