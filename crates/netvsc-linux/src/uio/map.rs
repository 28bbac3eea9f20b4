//! The maps of a uio device: pieces of memory with a name and a size.

use std::path::Path;

use vmbus::GpadlId;

use super::UioError;
use super::bind::read_line;

/// How many maps are looked at. The kernel has at most five (`MAX_UIO_MAPS`).
const MOST_MAPS: usize = 8;
/// The largest map that is believed, in bytes: what one GPADL can describe.
const LARGEST: u64 = 4 << 30;

/// What a map holds, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Both rings of the primary channel, that to the host first, half each (`txrx_rings`).
    Rings,
    /// The page of event flags (`int_page`).
    Interrupts,
    /// The monitor page by which the guest rings (`monitor_page`).
    Monitor,
    /// Memory that the host fills, shared under this number (`recv:N`).
    Receive(GpadlId),
    /// Memory that the host reads, shared under this number (`send:N`).
    Send(GpadlId),
}

impl MapKind {
    /// What `name` stands for.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "txrx_rings" => Self::Rings,
            "int_page" => Self::Interrupts,
            "monitor_page" => Self::Monitor,
            _ => match name.split_once(':')? {
                ("recv", number) => Self::Receive(GpadlId(number.parse().ok()?)),
                ("send", number) => Self::Send(GpadlId(number.parse().ok()?)),
                _ => return None,
            },
        })
    }
}

/// One map of a uio device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// Its number; it is mapped at that many pages into the device.
    pub index: usize,
    /// What it holds.
    pub kind: MapKind,
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

impl Map {
    /// The maps below `folder`, which is `/sys/class/uio/uioN/maps`. Those with names unknown here are left out.
    pub(super) fn read_all(folder: &Path) -> Result<Vec<Self>, UioError> {
        let mut maps = Vec::new();
        for index in 0..MOST_MAPS {
            let map = folder.join(format!("map{index}"));
            if !map.is_dir() {
                break;
            }
            let name = read_line(&map.join("name"))?;
            let path = map.join("size");
            let text = read_line(&path)?;
            let size = parse_hex(&text).filter(|size| (1..=LARGEST).contains(size));
            let expected = "a size in hexadecimal, from 1 byte to 4 GiB";
            let size = size.ok_or(UioError::Attribute { path, found: text, expected })?;
            if let Some(kind) = MapKind::parse(&name) {
                maps.push(Self { index, kind, name, size });
            }
        }
        Ok(maps)
    }
}

fn parse_hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}
