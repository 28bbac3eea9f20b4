//! Statistics that a driver keeps beside those of the interface, as `ethtool -S` prints them.
//!
//! The kernel's netvsc driver counts there what its VF carried (`vf_rx_packets` and others, netvsc_drv.c). Those counts stay when the
//! VF goes, unlike those of the VF's own interface, which makes them the only ones that tell the two paths apart over time.

#[expect(unsafe_code, reason = "ethtool's request points to its answer; this is the room for it")]
mod request;

use std::collections::BTreeMap;

use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};

use crate::tap::TapName;
use request::{Buffer, ask};

/// Commands of `struct ethtool_sset_info`, `ethtool_gstrings` and `ethtool_stats` (linux/ethtool.h).
const SIZES: u32 = 0x37;
const NAMES: u32 = 0x1b;
const VALUES: u32 = 0x1d;
/// The set of strings that names statistics.
const SET: u32 = 1;
/// Bytes of a name, zeros behind it included.
const NAME: usize = 32;
/// Statistics that a driver may have, by far.
const MOST: usize = 1 << 16;
/// Statistics that may be added between two requests: the kernel writes as many as there are then, whatever there is room for.
const SLACK: usize = 4096;

/// Why there are none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatisticsError {
    /// No interface is called this.
    #[error("`{0}` is no name of an interface")]
    Name(String),
    /// The kernel, or the interface's driver, refuses.
    #[error("the driver's statistics of `{name}` cannot be read: {source}")]
    Refused {
        /// The interface.
        name: String,
        /// Why.
        source: Errno,
    },
    /// The driver says something that cannot be.
    #[error("the driver of `{name}` claims {count} statistics: expected at most {MOST}")]
    TooMany {
        /// The interface.
        name: String,
        /// How many.
        count: usize,
    },
}

/// The statistics of an interface whose names `wanted` lets through; empty if its driver keeps none. No privilege is needed.
///
/// # Errors
/// [`StatisticsError`].
pub fn of(
    name: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, u64>, StatisticsError> {
    let interface: TapName = name.parse().map_err(|_| StatisticsError::Name(name.to_owned()))?;
    let refused = |source| StatisticsError::Refused { name: name.to_owned(), source };
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(refused)?;
    let fd = socket.as_fd();
    let mut sizes = Buffer::new(5);
    // The set that is asked for is a bit of a word of 64; the kernel clears it if there is none.
    sizes.put(0, SIZES);
    sizes.put(2, 1 << SET);
    match ask(fd, &interface, &mut sizes) {
        Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        other => other.map_err(refused)?,
    }
    let count = if sizes.get(2) == 0 { 0 } else { sizes.get(4) as usize };
    if count == 0 {
        return Ok(BTreeMap::new());
    }
    if count > MOST {
        return Err(StatisticsError::TooMany { name: name.to_owned(), count });
    }
    let room = count + SLACK;
    let mut names = Buffer::new(3 + room * NAME / 4);
    names.put(0, NAMES);
    names.put(1, SET);
    names.put(2, count as u32);
    ask(fd, &interface, &mut names).map_err(refused)?;
    let mut values = Buffer::new(2 + room * 2);
    values.put(0, VALUES);
    values.put(1, count as u32);
    ask(fd, &interface, &mut values).map_err(refused)?;
    // Between two requests the driver may have changed what it counts: then names and values do not belong together.
    if names.get(2) as usize != count || values.get(1) as usize != count {
        return Err(refused(Errno::AGAIN));
    }
    let mut found = BTreeMap::new();
    for at in 0..count {
        let name = names.text(12 + at * NAME, NAME);
        if wanted(&name) {
            let [low, high] = [2 + 2 * at, 3 + 2 * at].map(|place| values.get(place));
            found.insert(name, word(low, high));
        }
    }
    Ok(found)
}

/// A number of 64 bits out of its halves, as they lie in memory.
fn word(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_and_one_that_cannot_be_are_told_apart() {
        let none = of("netvsc-none", |_| true);
        let refused = StatisticsError::Refused { name: "netvsc-none".into(), source: Errno::NODEV };
        assert_eq!(none, Err(refused));
        let name = "a-name-that-is-too-long-for-linux";
        assert_eq!(of(name, |_| true), Err(StatisticsError::Name(name.into())));
    }

    #[test]
    fn an_interface_without_statistics_has_none() {
        assert_eq!(of("lo", |_| true), Ok(BTreeMap::new()));
    }

    #[test]
    fn halves_make_a_number_as_they_lie_in_memory() {
        let bytes = 0x0102_0304_0506_0708_u64.to_ne_bytes();
        let half = |at: usize| u32::from_ne_bytes(*bytes[at..].first_chunk().unwrap());
        assert_eq!(word(half(0), half(4)), 0x0102_0304_0506_0708);
    }
}
