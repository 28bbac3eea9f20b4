//! Monitor pages: doorbells without a hypercall (PROTOCOL §1.4; Linux `hv_monitor_page`).
//!
//! A guest gives its host two pages when it makes contact. Where an offer names a bit in them, the guest rings by setting that
//! bit, and the host looks after the bits of a group within the time it has promised for each of them. So many doorbells
//! become one look, at the price of that time.
//!
//! [`MonitorPage`] is either page, for either side. [`MonitorPage::doorbell`] makes the [`Doorbell`] that a
//! [`Channel`](crate::Channel) rings; [`MonitorPage::take`] is how the other side looks.

use core::sync::atomic::Ordering;

use crate::channel::Doorbell;
use crate::id::ConnectionId;
use crate::memory::{OutOfRange, PAGE_SIZE, SharedMemory, SharedPages};

/// Byte offset of the group enable bits: bit n for group n, 0 to 3.
pub const TRIGGER_STATE: usize = 0;
/// Byte offset of the groups: pending bits and armed bits, 32 bits each, four times.
pub const TRIGGER_GROUPS: usize = 8;
/// Byte offset of the times of the next look, signed 32 bits for each number.
pub const NEXT_CHECK_TIMES: usize = 64;
/// Byte offset of the times within which the host looks, 16 bits for each number, in units of 100 ns.
pub const LATENCIES: usize = 576;
/// Byte offset of what a host signals for each number: connection id (32 bits), flag number (16 bits), reserved (16 bits).
pub const PARAMETERS: usize = 1088;

/// Groups of bits.
pub const GROUPS: u8 = 4;
/// Bits in a group.
pub const GROUP_BITS: u8 = 32;
/// Numbers there are: four groups of 32 bits.
pub const NUMBERS: u8 = GROUPS * GROUP_BITS;

const _: () = {
    let numbers = NUMBERS as usize;
    assert!(NEXT_CHECK_TIMES + numbers * 4 == LATENCIES);
    assert!(LATENCIES + numbers * 2 + 256 == PARAMETERS);
    assert!(PARAMETERS + numbers * 8 + 1984 == PAGE_SIZE);
};

/// What cannot be a monitor page, or is not in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MonitorError {
    /// A number without a bit.
    #[error("monitor number {0}: a page has the numbers 0 to 127")]
    Number(u8),
    /// Not one page.
    #[error("monitor page of {0} bytes: expected 4096")]
    Size(usize),
}

/// What a host signals when it finds a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The connection.
    pub connection: ConnectionId,
    /// The event flag of that connection.
    pub flag: u16,
}

/// One of the two monitor pages.
#[derive(Clone, Debug)]
pub struct MonitorPage {
    page: SharedPages,
}

impl MonitorPage {
    /// The monitor page in `page`.
    ///
    /// # Errors
    /// If that is not exactly one page.
    pub fn new(page: SharedPages) -> Result<Self, MonitorError> {
        match page.size() {
            PAGE_SIZE => Ok(Self { page }),
            size => Err(MonitorError::Size(size)),
        }
    }

    /// The doorbell that sets the bit `number`, as an offer names it.
    ///
    /// # Errors
    /// [`MonitorError::Number`] if there is no such bit: a guest takes that for a host that made a mistake, and rings by
    /// hypercall.
    pub fn doorbell(&self, number: u8) -> Result<MonitorDoorbell, MonitorError> {
        check(number)?;
        Ok(MonitorDoorbell { page: self.clone(), number })
    }

    /// The numbers whose bits are set in an enabled group, all of them cleared; for the side that looks.
    ///
    /// # Examples
    /// ```
    /// use vmbus::memory::SharedPages;
    /// use vmbus::monitor::MonitorPage;
    /// use vmbus::{Doorbell, Pfn};
    ///
    /// let page = MonitorPage::new(SharedPages::from_heap(&[Pfn(7)]))?;
    /// page.enable(1, true)?;
    /// page.doorbell(40)?.ring();
    /// assert_eq!(page.take().collect::<Vec<_>>(), [40]);
    /// assert_eq!(page.take().count(), 0);
    /// # Ok::<(), vmbus::monitor::MonitorError>(())
    /// ```
    pub fn take(&self) -> impl Iterator<Item = u8> + use<> {
        let enabled = self.word(TRIGGER_STATE);
        let groups: [u32; GROUPS as usize] = core::array::from_fn(|group| {
            let pending = TRIGGER_GROUPS + 8 * group;
            // A plain look first: most groups have nothing to say, and a swap takes the line away from who rings.
            if enabled & 1 << group == 0 || self.word(pending) == 0 {
                return 0;
            }
            let bits = self.page.atomic_u32(pending).map(|bits| bits.swap(0, Ordering::SeqCst));
            bits.map_or(0, u32::from_le)
        });
        (0..NUMBERS).filter(move |number| bit(*number) & groups[usize::from(number / 32)] != 0)
    }

    /// Whether the bits of `group` (0 to 3) are looked at; written by the host.
    ///
    /// # Errors
    /// [`MonitorError::Number`], with the first number of the group, if there is no such group.
    pub fn enable(&self, group: u8, on: bool) -> Result<(), MonitorError> {
        check(group.saturating_mul(GROUP_BITS))?;
        let mask = (1u32 << group).to_le();
        if let Ok(state) = self.page.atomic_u32(TRIGGER_STATE) {
            if on {
                state.fetch_or(mask, Ordering::SeqCst);
            } else {
                state.fetch_and(!mask, Ordering::SeqCst);
            }
        }
        Ok(())
    }

    /// Whether the host looks at the group that `number` belongs to.
    #[must_use]
    pub fn is_enabled(&self, number: u8) -> bool {
        number < NUMBERS && self.word(TRIGGER_STATE) & 1 << (number / GROUP_BITS) != 0
    }

    /// The time within which the host looks at `number`, in units of 100 ns.
    ///
    /// # Errors
    /// [`MonitorError::Number`].
    pub fn latency(&self, number: u8) -> Result<u16, MonitorError> {
        let mut bytes = [0; 2];
        self.read(LATENCIES, number, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Sets that time; for a host.
    ///
    /// # Errors
    /// [`MonitorError::Number`].
    pub fn set_latency(&self, number: u8, latency: u16) -> Result<(), MonitorError> {
        self.write(LATENCIES, number, &latency.to_le_bytes())
    }

    /// What the host signals for `number`.
    ///
    /// # Errors
    /// [`MonitorError::Number`].
    pub fn parameter(&self, number: u8) -> Result<Parameter, MonitorError> {
        let mut bytes = [0; 8];
        self.read(PARAMETERS, number, &mut bytes)?;
        let [c0, c1, c2, c3, f0, f1, _, _] = bytes;
        Ok(Parameter {
            connection: ConnectionId(u32::from_le_bytes([c0, c1, c2, c3])),
            flag: u16::from_le_bytes([f0, f1]),
        })
    }

    /// Sets what is signalled for `number`; for a host.
    ///
    /// # Errors
    /// [`MonitorError::Number`].
    pub fn set_parameter(&self, number: u8, parameter: Parameter) -> Result<(), MonitorError> {
        let word = u64::from(parameter.connection.0) | u64::from(parameter.flag) << 32;
        self.write(PARAMETERS, number, &word.to_le_bytes())
    }

    /// A 32-bit field of the page.
    fn word(&self, offset: usize) -> u32 {
        let word = self.page.load_u32(offset);
        debug_assert!(word.is_ok(), "{word:?}: the page is a page and the fields lie in it");
        word.unwrap_or(0)
    }

    /// Entry `number` of a table of entries as long as `out`.
    fn read(&self, table: usize, number: u8, out: &mut [u8]) -> Result<(), MonitorError> {
        check(number)?;
        expect_inside(self.page.read(table + usize::from(number) * out.len(), out));
        Ok(())
    }

    fn write(&self, table: usize, number: u8, entry: &[u8]) -> Result<(), MonitorError> {
        check(number)?;
        expect_inside(self.page.write(table + usize::from(number) * entry.len(), entry));
        Ok(())
    }
}

/// The page is a page and its tables lie in it, which the constants above assert.
fn expect_inside(access: Result<(), OutOfRange>) {
    debug_assert!(access.is_ok(), "{access:?}");
}

fn check(number: u8) -> Result<(), MonitorError> {
    if number < NUMBERS { Ok(()) } else { Err(MonitorError::Number(number)) }
}

/// The bit of a number in its group.
fn bit(number: u8) -> u32 {
    1 << (number % GROUP_BITS)
}

/// Rings by setting a bit in a monitor page.
#[derive(Clone, Debug)]
pub struct MonitorDoorbell {
    page: MonitorPage,
    number: u8,
}

impl Doorbell for MonitorDoorbell {
    fn ring(&self) {
        let pending = TRIGGER_GROUPS + 8 * usize::from(self.number / GROUP_BITS);
        let bits = self.page.page.atomic_u32(pending);
        debug_assert!(bits.is_ok(), "the page is a page and the groups lie in it");
        if let Ok(bits) = bits {
            bits.fetch_or(bit(self.number).to_le(), Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::packet::Outgoing;
    use crate::{Channel, Pfn};
    use std::vec;
    use std::vec::Vec;

    fn page() -> (MonitorPage, SharedPages) {
        let memory = SharedPages::from_heap(&[Pfn(3)]);
        (MonitorPage::new(memory.clone()).unwrap(), memory)
    }

    /// The page but for the zeros: offset and value of each byte.
    fn bytes(memory: &SharedPages) -> Vec<(usize, u8)> {
        let mut all = vec![0; PAGE_SIZE];
        memory.read(0, &mut all).unwrap();
        all.into_iter().enumerate().filter(|(_, byte)| *byte != 0).collect()
    }

    #[test]
    fn a_doorbell_sets_its_bit_and_no_other() {
        for (number, at, value) in
            [(0, 8, 1), (7, 8, 0x80), (8, 9, 1), (31, 11, 0x80), (32, 16, 1), (127, 35, 0x80)]
        {
            let (monitor, memory) = page();
            monitor.doorbell(number).unwrap().ring();
            assert_eq!(bytes(&memory), [(at, value)], "number {number}");
        }
    }

    #[test]
    fn tables_stand_where_the_protocol_has_them() {
        let (monitor, memory) = page();
        monitor.enable(3, true).unwrap();
        monitor.set_latency(33, 0x0102).unwrap();
        let parameter = Parameter { connection: ConnectionId(0x2006), flag: 0x0305 };
        monitor.set_parameter(127, parameter).unwrap();
        let entry = 1088 + 127 * 8;
        assert_eq!(
            bytes(&memory),
            [
                (0, 8),
                (576 + 66, 2),
                (576 + 67, 1),
                (entry, 6),
                (entry + 1, 0x20),
                (entry + 4, 5),
                (entry + 5, 3)
            ]
        );
        assert_eq!(monitor.latency(33), Ok(0x0102));
        assert_eq!(monitor.parameter(127), Ok(parameter));
        assert!(monitor.is_enabled(96) && !monitor.is_enabled(95) && !monitor.is_enabled(128));
        monitor.enable(3, false).unwrap();
        assert!(!monitor.is_enabled(96));
    }

    #[test]
    fn bits_are_taken_once_and_only_from_enabled_groups() {
        let (monitor, _) = page();
        for number in [127, 0, 31, 64, 64] {
            monitor.doorbell(number).unwrap().ring();
        }
        assert_eq!(monitor.take().count(), 0, "no group is enabled");
        monitor.enable(0, true).unwrap();
        monitor.enable(3, true).unwrap();
        assert_eq!(monitor.take().collect::<Vec<_>>(), [0, 31, 127]);
        assert_eq!(monitor.take().count(), 0);
        monitor.enable(2, true).unwrap();
        assert_eq!(monitor.take().collect::<Vec<_>>(), [64]);
    }

    #[test]
    fn numbers_beyond_the_last_are_refused() {
        let (monitor, memory) = page();
        let error = MonitorError::Number(128);
        assert_eq!(monitor.doorbell(128).map(drop).unwrap_err(), error);
        assert_eq!(monitor.latency(128), Err(error));
        assert_eq!(monitor.set_latency(128, 1), Err(error));
        assert_eq!(monitor.parameter(128), Err(error));
        let parameter = Parameter { connection: ConnectionId(1), flag: 1 };
        assert_eq!(monitor.set_parameter(128, parameter), Err(error));
        assert_eq!(monitor.enable(4, true), Err(error));
        assert_eq!(monitor.enable(255, true), Err(MonitorError::Number(255)));
        assert!(bytes(&memory).is_empty());
    }

    #[test]
    fn one_page_and_nothing_else() {
        let two = SharedPages::from_heap(&[Pfn(0), Pfn(1)]);
        assert_eq!(MonitorPage::new(two.clone()).map(drop).unwrap_err(), MonitorError::Size(8192));
        assert!(MonitorPage::new(two.slice(1, 1).unwrap()).is_ok());
    }

    #[test]
    fn a_channel_rings_through_the_page() {
        let ring = || SharedPages::from_heap(&[Pfn(0), Pfn(1)]);
        let (up, down) = (ring(), ring());
        let (monitor, _) = page();
        monitor.enable(0, true).unwrap();
        let bell = monitor.doorbell(5).unwrap();
        let mut guest = Channel::from_parts(up.clone(), down.clone(), bell.clone()).unwrap();
        let mut host = Channel::from_parts(down, up, bell).unwrap();
        let packet = Outgoing::InBand { transaction_id: 1, completion: false, payload: b"ding" };
        guest.try_send(&packet).unwrap();
        assert_eq!(monitor.take().collect::<Vec<_>>(), [5]);
        guest.try_send(&packet).unwrap();
        assert_eq!(monitor.take().count(), 0, "the host has not read yet");
        while host.receive(&mut [0; 64]).unwrap().is_some() {}
        assert!(!host.arm().unwrap());
        guest.try_send(&packet).unwrap();
        assert_eq!(monitor.take().collect::<Vec<_>>(), [5]);
    }
}
