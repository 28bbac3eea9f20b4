//! The first pages of the shared memory: control messages and signals.

use vmbus::memory::SharedPages;
use vmbus::synic::{EventFlags, MessageSlot};

/// Pages of memory that carry control messages and signals: the first ones of what the guest shares.
pub const TALK_PAGES: usize = 6;

/// Those pages, for either side. Whoever puts something in rings the other's [`Bell`](super::Bell) afterwards.
#[derive(Clone, Debug)]
pub struct Talk {
    /// Page 0: control messages of the host.
    pub messages: MessageSlot,
    /// Page 1: the host signals a channel, by its id.
    pub events: EventFlags,
    /// Page 2: control messages of the guest.
    pub posts: MessageSlot,
    /// Page 3: the guest signals a channel, by its connection id without [`Talk::CONNECTIONS`].
    pub signals: EventFlags,
    /// Page 4: the guest rings the doorbell of a VF's port, by the page of its registers.
    pub doorbells: EventFlags,
    /// Page 5: a VF's port raises its interrupt, by the page of its registers.
    pub interrupts: EventFlags,
}

impl Talk {
    /// Connection ids of channels start here; flag 1 is connection 0x2001.
    pub const CONNECTIONS: u32 = 0x2000;

    /// The talk that goes through the first pages of `memory`; `None` if it has too few.
    #[must_use]
    pub fn new(memory: &SharedPages) -> Option<Self> {
        let slot = |page| MessageSlot::new(memory.slice(page, 1)?).ok();
        let flags = |page| EventFlags::new(memory.slice(page, 1)?).ok();
        Some(Self {
            messages: slot(0)?,
            events: flags(1)?,
            posts: slot(2)?,
            signals: flags(3)?,
            doorbells: flags(4)?,
            interrupts: flags(5)?,
        })
    }

    /// The flag by which the guest signals a connection; `None` if it has none.
    #[must_use]
    pub fn flag_of(connection: u32) -> Option<u16> {
        let flag = connection.checked_sub(Self::CONNECTIONS)?;
        u16::try_from(flag).ok().filter(|flag| *flag < 2048)
    }
}
