//! Memory whose other owner changes it between any two accesses.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;

use vmbus::memory::{OutOfRange, PAGE_SIZE, SharedMemory, SharedPages};
use vmbus::ring::{FEATURE_BITS, INTERRUPT_MASK, PENDING_SEND_SIZE, READ_INDEX, WRITE_INDEX};

use crate::script::Script;

/// Types of packets, legal and not.
const KINDS: [u16; 8] = [6, 7, 9, 11, 0, 8, 6, 0xffff];

/// The peer: what it will do, and what it saw.
pub(super) struct Peer<'a> {
    script: RefCell<Script<'a>>,
    /// Accesses to let pass.
    pause: Cell<u8>,
    accesses: Cell<usize>,
    /// Data that was read: offset and length.
    fetched: RefCell<Vec<(usize, usize)>>,
}

impl<'a> Peer<'a> {
    pub(super) fn new(script: &'a [u8]) -> Rc<Self> {
        Rc::new(Self {
            script: RefCell::new(Script::new(script)),
            pause: Cell::new(0),
            accesses: Cell::new(0),
            fetched: RefCell::default(),
        })
    }

    /// Accesses since the last call.
    pub(super) fn take_accesses(&self) -> usize {
        self.accesses.take()
    }

    /// Pieces of data that were read since the last call.
    pub(super) fn take_fetched(&self) -> Vec<(usize, usize)> {
        self.fetched.take()
    }
}

/// One ring of a hostile peer.
#[derive(Clone)]
pub(super) struct Fickle<'a> {
    pub(super) pages: SharedPages,
    pub(super) peer: Rc<Peer<'a>>,
    /// Whether it gives words: the accesses to those are not seen, so that changes happen between them only.
    pub(super) words: bool,
}

impl Fickle<'_> {
    /// An access: the moment for a change.
    fn access(&self) {
        self.peer.accesses.set(self.peer.accesses.get() + 1);
        if let Some(left) = self.peer.pause.get().checked_sub(1) {
            self.peer.pause.set(left);
        } else {
            self.change();
        }
    }

    /// The next thing the peer does; below 128 it lets that many accesses pass.
    pub(super) fn change(&self) {
        let mut script = self.peer.script.borrow_mut();
        let what = script.byte();
        if what < 128 {
            self.peer.pause.set(what);
            return;
        }
        let data = self.pages.size() - PAGE_SIZE;
        let place = |script: &mut Script<'_>| usize::from(script.u16()) * 8 % data;
        let done = match what & 7 {
            0 => self.pages.store_u32(WRITE_INDEX, place(&mut script) as u32),
            1 => self.pages.store_u32(READ_INDEX, place(&mut script) as u32),
            2 => self.pages.store_u32(INTERRUPT_MASK, script.byte().into()),
            3 => self.pages.store_u32(PENDING_SEND_SIZE, script.u16().into()),
            4 => self.pages.store_u32(FEATURE_BITS, script.byte().into()),
            5 => {
                let field = usize::from(script.byte() % 20) * 4;
                self.pages.store_u32(field, script.u32())
            }
            6 => {
                let at = place(&mut script);
                self.pages.write(PAGE_SIZE + at, &script.u64().to_le_bytes())
            }
            _ => {
                let at = place(&mut script);
                let kind = KINDS[usize::from(script.below(8))];
                let [header, len, flags] = [0; 3].map(|_: u8| u16::from(script.byte()));
                let word: Vec<_> =
                    [kind, header, len, flags].into_iter().flat_map(u16::to_le_bytes).collect();
                self.pages.write(PAGE_SIZE + at, &word)
            }
        };
        done.expect("changes lie inside");
    }
}

impl SharedMemory for Fickle<'_> {
    fn size(&self) -> usize {
        self.pages.size()
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfRange> {
        self.access();
        if offset >= PAGE_SIZE && !out.is_empty() {
            self.peer.fetched.borrow_mut().push((offset, out.len()));
        }
        self.pages.read(offset, out)
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<(), OutOfRange> {
        self.access();
        assert!(offset >= PAGE_SIZE, "data goes behind the header page");
        self.pages.write(offset, data)
    }

    fn load_u32(&self, offset: usize) -> Result<u32, OutOfRange> {
        self.access();
        self.pages.load_u32(offset)
    }

    fn store_u32(&self, offset: usize, value: u32) -> Result<(), OutOfRange> {
        self.access();
        self.pages.store_u32(offset, value)
    }

    fn words(&self, offset: usize) -> &[AtomicU64] {
        if self.words { self.pages.words(offset) } else { &[] }
    }

    fn whole(&self) -> &[AtomicU64] {
        if self.words { self.pages.whole() } else { &[] }
    }
}

impl fmt::Debug for Fickle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fickle").finish_non_exhaustive()
    }
}
