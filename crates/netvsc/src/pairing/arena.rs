//! Records behind handles that notice when what they named has left.

use alloc::vec::Vec;
use core::fmt;

/// A place in an [`Arena`] and which of the records that were ever there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Handle {
    index: usize,
    generation: u64,
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

/// Records, each under a handle that never names another one.
#[derive(Clone, Debug)]
pub(super) struct Arena<T> {
    places: Vec<Place<T>>,
    free: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Place<T> {
    generation: u64,
    record: Option<T>,
}

impl<T> Arena<T> {
    pub(super) const fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    pub(super) fn insert(&mut self, record: T) -> Handle {
        if let Some(index) = self.free.pop()
            && let Some(place) = self.places.get_mut(index)
        {
            place.record = Some(record);
            return Handle { index, generation: place.generation };
        }
        self.places.push(Place { generation: 0, record: Some(record) });
        Handle { index: self.places.len() - 1, generation: 0 }
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&T> {
        let place = self.places.get(handle.index)?;
        place.record.as_ref().filter(|_| place.generation == handle.generation)
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        let place = self.places.get_mut(handle.index)?;
        place.record.as_mut().filter(|_| place.generation == handle.generation)
    }

    pub(super) fn remove(&mut self, handle: Handle) -> Option<T> {
        let place = self.places.get_mut(handle.index)?;
        if place.generation != handle.generation {
            return None;
        }
        let record = place.record.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(handle.index);
        Some(record)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Handle, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let handle = Handle { index, generation: place.generation };
            place.record.as_ref().map(|record| (handle, record))
        })
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_never_names_the_next_tenant() {
        let mut arena = Arena::new();
        let first = arena.insert('a');
        assert_eq!(arena.remove(first), Some('a'));
        let second = arena.insert('b');
        assert_eq!((arena.get(first), arena.get(second)), (None, Some(&'b')));
        assert_eq!(arena.get_mut(first), None);
        assert_eq!(arena.remove(first), None);
        assert_eq!(arena.len(), 1);
    }
}
