//! `--pcap`: the frames of every NIC and path in a pcapng file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netvsc::Path;
use netvsc::adapter::{Direction, Frame, Tap, append_as_received};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, PcapError};
use vmbus::Instant;

use crate::error::Error;

/// Resolution of the times, as a negative power of ten: nanoseconds.
const NANOSECONDS: u8 = 9;

/// A file that frames are written to. Clones write to the same one.
#[derive(Clone)]
pub struct Capture(Arc<Mutex<Inner>>);

/// Where a frame was seen: its NIC, path, channel where the NIC may use several, and direction.
type Place = (usize, Path, Option<u16>, Direction);

struct Inner {
    path: PathBuf,
    writer: PcapNgWriter<BufWriter<File>>,
    /// Number of the interface that stands for each place where frames were seen.
    interfaces: BTreeMap<Place, u32>,
    frame: Vec<u8>,
    /// What went wrong first. Nothing is written after it.
    failed: Option<PcapError>,
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").finish_non_exhaustive()
    }
}

fn error(path: &FilePath, error: PcapError) -> Error {
    let source = match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other.to_string()),
    };
    Error::Capture { path: path.to_owned(), source }
}

impl Capture {
    /// Begins a file at `path`. One that is there is replaced.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(path: &FilePath) -> Result<Self, Error> {
        let file = File::create(path).map_err(|failed| error(path, PcapError::IoError(failed)))?;
        let writer = PcapNgWriter::new(BufWriter::new(file)).map_err(|why| error(path, why))?;
        Ok(Self(Arc::new(Mutex::new(Inner {
            path: path.to_owned(),
            writer,
            interfaces: BTreeMap::new(),
            frame: Vec::new(),
            failed: None,
        }))))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tap for a NIC that may use so many channels. If several, each is an interface of its own.
    #[must_use]
    pub fn tap(&self, nic: usize, queues: u16) -> Box<dyn Tap> {
        Box::new(NicTap { nic, several: queues > 1, capture: self.clone() })
    }

    /// Writes what is still in memory.
    ///
    /// # Errors
    /// If that, or any frame before, could not be written.
    pub fn finish(&self) -> Result<(), Error> {
        let inner = &mut *self.inner();
        let flushed = inner.writer.get_mut().flush().map_err(PcapError::IoError);
        match inner.failed.take().map_or(flushed, Err) {
            Ok(()) => Ok(()),
            Err(why) => Err(error(&inner.path, why)),
        }
    }
}

impl Inner {
    fn write(&mut self, place: Place, now: Instant, frame: &dyn Frame) -> Result<(), PcapError> {
        let next = self.interfaces.len() as u32;
        let interface_id = *self.interfaces.entry(place).or_insert(next);
        if interface_id == next {
            let (nic, path, queue, direction) = place;
            let name = match queue {
                Some(queue) => format!("nic{nic}-{path}-q{queue}-{direction}"),
                None => format!("nic{nic}-{path}-{direction}"),
            };
            self.writer.write_pcapng_block(InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: 0,
                options: vec![
                    InterfaceDescriptionOption::IfName(Cow::Owned(name)),
                    InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
                ],
            })?;
        }
        self.frame.clear();
        append_as_received(frame, &mut self.frame);
        let flags = match place.3 {
            Direction::In => 1,
            Direction::Out => 2,
        };
        self.writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id,
            timestamp: now.since(Instant::ZERO),
            original_len: self.frame.len() as u32,
            data: Cow::Borrowed(&self.frame),
            options: vec![EnhancedPacketOption::Flags(flags)],
        })?;
        Ok(())
    }
}

/// Frames of one NIC.
#[derive(Debug)]
struct NicTap {
    nic: usize,
    /// Whether the channels of the NIC are told apart.
    several: bool,
    capture: Capture,
}

impl Tap for NicTap {
    fn frame(
        &mut self,
        path: Path,
        queue: u16,
        direction: Direction,
        now: Instant,
        frame: &dyn Frame,
    ) {
        let inner = &mut *self.capture.inner();
        if inner.failed.is_none() {
            let queue = Some(queue).filter(|_| self.several && path == Path::Synthetic);
            inner.failed = inner.write((self.nic, path, queue, direction), now, frame).err();
        }
    }
}
