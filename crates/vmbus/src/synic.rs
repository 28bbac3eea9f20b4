//! The two pages by which a hypervisor talks to a virtual processor: message slots and event flags (PROTOCOL §1.1, §1.3).
//!
//! A guest's kernel gives both pages to the hypervisor and hands what comes to [`Bus::handle_message`](crate::Bus::handle_message)
//! and to its channels. [`MessageSlot`] and [`EventFlags`] are either side of them; nothing here is needed by somebody
//! whose messages and signals come in another way.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::memory::{OutOfRange, PAGE_SIZE, SharedMemory, SharedPages};
use crate::message::{MAX_MESSAGE, Payload, VMBUS_SINT};

/// Bytes of a message slot, and of the event flags of one interrupt source.
const SLOT_SIZE: usize = 256;
/// Byte offset in the slot of the number that says what it holds; 0: nothing.
const TYPE: usize = 0;
/// Byte offset of the payload's length (8 bits), the flags (8 bits) and 16 reserved bits.
const LENGTH_AND_FLAGS: usize = 4;
/// Byte offset of the sender, which guests ignore (64 bits).
const SENDER: usize = 8;
/// Byte offset of the payload.
const PAYLOAD: usize = 16;
/// The flag "another message waits for this slot", where it stands in the word of [`LENGTH_AND_FLAGS`].
const PENDING: u32 = 1 << 8;
/// Event flags of one interrupt source.
const FLAGS: usize = 8 * SLOT_SIZE;

const _: () = assert!(PAYLOAD + MAX_MESSAGE == SLOT_SIZE && PAGE_SIZE / SLOT_SIZE == 16);

crate::open_enum! {
    /// What a message slot holds.
    pub struct SlotType(u32) {
        /// Nothing.
        EMPTY = 0,
        /// A control message of VMBus.
        VMBUS = 1,
        /// A timer of the hypervisor, which shares the page and is nothing to VMBus.
        TIMER = 0x8000_0010,
    }
}

/// What cannot be a page of the hypervisor's, or is not in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SynicError {
    /// Not one page.
    #[error("a page of message slots or event flags has 4096 bytes, this one has {0}")]
    Size(usize),
    /// A flag number that no flag has.
    #[error("event flags have numbers 0 to 2047, this one is {0}")]
    Flag(u16),
    /// A message that is longer than a slot.
    #[error("a message has at most 240 bytes, this one has {0}")]
    TooLong(usize),
    /// The slot holds a message that the guest has not taken. It will say when it has.
    #[error("the slot is taken; the guest ends the message before the next one can be posted")]
    Busy,
}

/// What a guest took out of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// What it was.
    pub kind: SlotType,
    /// The control message; `None` if it was something else, or longer than any.
    pub payload: Option<Payload>,
    /// Another one waits: tell the hypervisor that this one has ended.
    pub end_of_message: bool,
}

/// The message slot of VMBus in a page of slots, for either side.
#[derive(Clone, Debug)]
pub struct MessageSlot {
    page: SharedPages,
}

impl MessageSlot {
    /// The slot of VMBus's interrupt source in `page`.
    ///
    /// # Errors
    /// [`SynicError::Size`] if that is not exactly one page.
    pub fn new(page: SharedPages) -> Result<Self, SynicError> {
        Ok(Self { page: one_page(page)? })
    }

    /// Takes what is in the slot, if anything, and frees it; for a guest.
    ///
    /// # Examples
    /// ```
    /// use vmbus::Pfn;
    /// use vmbus::memory::SharedPages;
    /// use vmbus::synic::{MessageSlot, SynicError};
    ///
    /// let slot = MessageSlot::new(SharedPages::from_heap(&[Pfn(7)]))?;
    /// slot.post(&[17, 0, 0, 0, 0, 0, 0, 0])?;
    /// assert_eq!(slot.post(&[4, 0, 0, 0, 0, 0, 0, 0]), Err(SynicError::Busy));
    /// let taken = slot.take().expect("a message");
    /// assert!(taken.end_of_message, "another one waits");
    /// assert_eq!(slot.take(), None);
    /// # Ok::<(), SynicError>(())
    /// ```
    #[must_use]
    pub fn take(&self) -> Option<Taken> {
        let number = self.word(TYPE)?;
        let kind = SlotType(u32::from_le(number.load(Ordering::Acquire)));
        if kind == SlotType::EMPTY {
            return None;
        }
        // A copy first, since the slot is the host's again once its type is 0.
        let mut bytes = [0; MAX_MESSAGE];
        let length = self.word(LENGTH_AND_FLAGS)?;
        let len = u32::from_le(length.load(Ordering::Relaxed)) as u8;
        expect_inside(self.page.read(at(PAYLOAD), &mut bytes));
        // Whoever else cleans the slot must not free the next message.
        let freed =
            number.compare_exchange(kind.0.to_le(), 0, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        // The flag is looked at only now: before, it could be set and missed.
        let flags = u32::from_le(length.load(Ordering::SeqCst));
        let payload = bytes.get(..usize::from(len)).map(Payload::from_bytes);
        Some(Taken {
            kind,
            payload: payload.filter(|_| kind == SlotType::VMBUS),
            end_of_message: freed && flags & PENDING != 0,
        })
    }

    /// Puts a control message into the slot; for a host, which signals the interrupt afterwards.
    ///
    /// # Errors
    /// [`SynicError::Busy`] if the last one has not been taken. The guest is told that another one waits, and says so when
    /// the slot is free. [`SynicError::TooLong`].
    pub fn post(&self, payload: &[u8]) -> Result<(), SynicError> {
        self.put(SlotType::VMBUS, payload)
    }

    /// Puts anything into the slot; for hosts that use it for more than VMBus.
    ///
    /// # Errors
    /// As [`MessageSlot::post`].
    pub fn put(&self, kind: SlotType, payload: &[u8]) -> Result<(), SynicError> {
        let too_long = SynicError::TooLong(payload.len());
        let len = u8::try_from(payload.len()).map_err(|_| too_long)?;
        if payload.len() > MAX_MESSAGE {
            return Err(too_long);
        }
        let (Some(number), Some(length)) = (self.word(TYPE), self.word(LENGTH_AND_FLAGS)) else {
            return Err(SynicError::Size(self.page.size()));
        };
        if number.load(Ordering::Acquire) != 0 {
            length.fetch_or(PENDING.to_le(), Ordering::SeqCst);
            // Taken meanwhile, perhaps before the guest could see the flag.
            if number.load(Ordering::SeqCst) != 0 {
                return Err(SynicError::Busy);
            }
        }
        expect_inside(self.page.write(at(PAYLOAD), payload));
        expect_inside(self.page.write(at(SENDER), &[0; 8]));
        length.store(u32::from(len).to_le(), Ordering::Relaxed);
        number.store(kind.0.to_le(), Ordering::Release);
        Ok(())
    }

    fn word(&self, field: usize) -> Option<&AtomicU32> {
        self.page.atomic_u32(at(field)).ok()
    }
}

/// The event flags of VMBus in a page of flags, for either side: one bit for each channel that a host can signal.
#[derive(Clone, Debug)]
pub struct EventFlags {
    page: SharedPages,
}

impl EventFlags {
    /// The flags of VMBus's interrupt source in `page`.
    ///
    /// # Errors
    /// [`SynicError::Size`] if that is not exactly one page.
    pub fn new(page: SharedPages) -> Result<Self, SynicError> {
        Ok(Self { page: one_page(page)? })
    }

    /// Sets a flag; for a host, which signals the interrupt afterwards. True if it was not set.
    ///
    /// # Errors
    /// [`SynicError::Flag`].
    pub fn set(&self, flag: u16) -> Result<bool, SynicError> {
        if usize::from(flag) >= FLAGS {
            return Err(SynicError::Flag(flag));
        }
        let bit = 1u32 << (flag % 32);
        let word = self.page.atomic_u32(at(usize::from(flag) / 32 * 4));
        let before = word.map_or(0, |word| word.fetch_or(bit.to_le(), Ordering::SeqCst));
        Ok(u32::from_le(before) & bit == 0)
    }

    /// Calls `found` with every flag that is set, cleared before the call; for a guest. A flag may stand for no channel,
    /// or for none any more: that is no mistake.
    pub fn take(&self, mut found: impl FnMut(u16)) {
        for word in 0..SLOT_SIZE / 4 {
            let Ok(bits) = self.page.atomic_u32(at(4 * word)) else { return };
            // A plain look first: most words have nothing to say.
            if bits.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut left = u32::from_le(bits.swap(0, Ordering::SeqCst));
            while left != 0 {
                // At most 2,047.
                found((32 * word + left.trailing_zeros() as usize) as u16);
                left &= left - 1;
            }
        }
    }
}

/// The offset in its page of a field of VMBus's slot.
fn at(field: usize) -> usize {
    SLOT_SIZE * usize::from(VMBUS_SINT) + field
}

fn one_page(page: SharedPages) -> Result<SharedPages, SynicError> {
    if page.size() == PAGE_SIZE { Ok(page) } else { Err(SynicError::Size(page.size())) }
}

/// The page is a page and the slot lies in it, which the constants above assert.
fn expect_inside(access: Result<(), OutOfRange>) {
    debug_assert!(access.is_ok(), "{access:?}");
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::Pfn;
    use std::vec;
    use std::vec::Vec;

    fn page() -> SharedPages {
        SharedPages::from_heap(&[Pfn(3)])
    }

    /// The page but for the zeros: offset and value of each byte.
    fn bytes(memory: &SharedPages) -> Vec<(usize, u8)> {
        let mut all = vec![0; PAGE_SIZE];
        memory.read(0, &mut all).unwrap();
        all.into_iter().enumerate().filter(|(_, byte)| *byte != 0).collect()
    }

    #[test]
    fn a_message_lies_in_the_slot_as_the_protocol_has_it() {
        let memory = page();
        let slot = MessageSlot::new(memory.clone()).unwrap();
        slot.post(&[0x11, 0, 0, 0, 0, 0, 0, 0, 0x99]).unwrap();
        assert_eq!(bytes(&memory), [(512, 1), (516, 9), (528, 0x11), (536, 0x99)]);
        let taken = slot.take().unwrap();
        assert_eq!(taken.payload.unwrap()[..], [0x11, 0, 0, 0, 0, 0, 0, 0, 0x99]);
        assert_eq!((taken.kind, taken.end_of_message), (SlotType::VMBUS, false));
        assert_eq!(bytes(&memory)[0], (516, 9), "the type is 0 again");
        assert_eq!(slot.take(), None);
    }

    #[test]
    fn messages_come_one_at_a_time_and_the_guest_learns_that_more_wait() {
        let memory = page();
        let slot = MessageSlot::new(memory.clone()).unwrap();
        let mut waiting = (1..=5_u8).collect::<Vec<_>>().into_iter().peekable();
        let mut seen = vec![];
        while waiting.peek().is_some() {
            slot.post(&[waiting.next().unwrap()]).unwrap();
            if let Some(next) = waiting.peek() {
                assert_eq!(slot.post(&[*next]), Err(SynicError::Busy));
                assert!(bytes(&memory).contains(&(517, 1)), "the flag");
            }
            let taken = slot.take().unwrap();
            assert_eq!(taken.end_of_message, waiting.peek().is_some());
            seen.push(taken.payload.unwrap()[0]);
        }
        assert_eq!(seen, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn what_is_no_control_message_is_taken_and_dropped() {
        let memory = page();
        let slot = MessageSlot::new(memory.clone()).unwrap();
        slot.put(SlotType::TIMER, &[7; 24]).unwrap();
        let taken = slot.take().unwrap();
        assert_eq!((taken.kind, taken.payload), (SlotType::TIMER, None));
        slot.post(&[1]).unwrap();
        memory.write(516, &[241]).unwrap();
        assert_eq!(slot.take().unwrap().payload, None, "longer than a slot");
        slot.post(&[1; 240]).unwrap();
        assert_eq!(slot.take().unwrap().payload.unwrap().len(), 240);
        assert_eq!(slot.post(&[1; 241]), Err(SynicError::TooLong(241)));
        assert_eq!(slot.post(&[1; 300]), Err(SynicError::TooLong(300)));
        assert_eq!(slot.take(), None);
    }

    #[test]
    fn flags_are_set_and_taken_once() {
        let memory = page();
        let flags = EventFlags::new(memory.clone()).unwrap();
        for flag in [2047, 1, 31, 32, 1, 0] {
            assert_eq!(flags.set(flag).unwrap(), !matches!(flag, 1 if bytes(&memory).len() > 2));
        }
        assert_eq!(bytes(&memory), [(512, 3), (515, 0x80), (516, 1), (512 + 255, 0x80)]);
        let mut seen = vec![];
        flags.take(|flag| seen.push(flag));
        assert_eq!(seen, [0, 1, 31, 32, 2047]);
        flags.take(|flag| panic!("{flag}"));
        assert!(bytes(&memory).is_empty());
        assert_eq!(flags.set(2048), Err(SynicError::Flag(2048)));
    }

    #[test]
    fn pages_are_pages() {
        let two = SharedPages::from_heap(&[Pfn(0), Pfn(1)]);
        assert_eq!(MessageSlot::new(two.clone()).map(drop), Err(SynicError::Size(8192)));
        assert_eq!(EventFlags::new(two).map(drop), Err(SynicError::Size(8192)));
    }
}
