//! Memory that changes between any two accesses, and remembers what was fetched.

extern crate std;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::vec::Vec;

use crate::memory::{OutOfRange, PAGE_SIZE, SharedMemory, SharedPages};

/// A change by the peer: before the access with this number, these bytes at this offset.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) access: u32,
    pub(super) offset: usize,
    pub(super) bytes: Vec<u8>,
}

/// Shared memory whose peer interferes. It gives no words, so that every access is seen.
#[derive(Clone, Debug)]
pub(super) struct Fickle {
    pub(super) pages: SharedPages,
    state: Rc<State>,
}

#[derive(Debug, Default)]
struct State {
    changes: Vec<Change>,
    accesses: Cell<u32>,
    /// Data that was read since the log was last taken: offset and length.
    fetched: RefCell<Vec<(usize, usize)>>,
    /// The memory pretends to end here.
    end: Cell<Option<usize>>,
}

impl Fickle {
    pub(super) fn new(pages: SharedPages, changes: Vec<Change>) -> Self {
        Self { pages, state: Rc::new(State { changes, ..State::default() }) }
    }

    /// Lets every access at or behind `end` fail from now on.
    pub(super) fn cut(&self, end: usize) {
        self.state.end.set(Some(end));
    }

    /// The pieces of data fetched since the last call.
    pub(super) fn take_fetched(&self) -> Vec<(usize, usize)> {
        self.state.fetched.take()
    }

    fn access(&self, offset: usize, len: usize) -> Result<(), OutOfRange> {
        let now = self.state.accesses.get();
        self.state.accesses.set(now + 1);
        for change in self.state.changes.iter().filter(|change| change.access == now) {
            self.pages.write(change.offset, &change.bytes).expect("changes lie inside");
        }
        match self.state.end.get() {
            Some(size) if offset + len > size => Err(OutOfRange { offset, len, size }),
            _ => Ok(()),
        }
    }
}

impl SharedMemory for Fickle {
    fn size(&self) -> usize {
        self.pages.size()
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfRange> {
        self.access(offset, out.len())?;
        if offset >= PAGE_SIZE {
            self.state.fetched.borrow_mut().push((offset, out.len()));
        }
        self.pages.read(offset, out)
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<(), OutOfRange> {
        self.access(offset, data.len())?;
        self.pages.write(offset, data)
    }

    fn load_u32(&self, offset: usize) -> Result<u32, OutOfRange> {
        self.access(offset, 4)?;
        self.pages.load_u32(offset)
    }

    fn store_u32(&self, offset: usize, value: u32) -> Result<(), OutOfRange> {
        self.access(offset, 4)?;
        self.pages.store_u32(offset, value)
    }
}
