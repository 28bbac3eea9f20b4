//! Records behind handles that notice when what they named has left.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

/// A place in an [`Arena`] and which of the records that were ever there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Handle {
    index: u32,
    generation: u32,
}

impl Handle {
    /// No handle is less.
    pub(super) const LEAST: Self = Self { index: 0, generation: 0 };
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
    free: Vec<u32>,
    retired: usize,
}

/// In whole lines of the processor's cache.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Place<T> {
    generation: u32,
    record: Option<T>,
}

impl<T> Arena<T> {
    pub(super) const fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new(), retired: 0 }
    }

    pub(super) fn insert(&mut self, record: T) -> Handle {
        if let Some(index) = self.free.pop()
            && let Some(place) = self.places.get_mut(index as usize)
        {
            place.record = Some(record);
            return Handle { index, generation: place.generation };
        }
        self.places.push(Place { generation: 0, record: Some(record) });
        Handle { index: (self.places.len() - 1) as u32, generation: 0 }
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&T> {
        let place = self.places.get(handle.index as usize)?;
        place.record.as_ref().filter(|_| place.generation == handle.generation)
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        let place = self.places.get_mut(handle.index as usize)?;
        place.record.as_mut().filter(|_| place.generation == handle.generation)
    }

    pub(super) fn remove(&mut self, handle: Handle) -> Option<T> {
        let place = self.places.get_mut(handle.index as usize)?;
        if place.generation != handle.generation {
            return None;
        }
        let record = place.record.take()?;
        // A place that has had all its tenants stays empty, so that no handle ever names another one.
        if let Some(next) = place.generation.checked_add(1) {
            place.generation = next;
            self.free.push(handle.index);
        } else {
            self.retired += 1;
        }
        Some(record)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Handle, &T)> {
        (0..).zip(&self.places).filter_map(|(index, place)| {
            let handle = Handle { index, generation: place.generation };
            place.record.as_ref().map(|record| (handle, record))
        })
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len() - self.retired
    }
}

/// Something about records of an [`Arena`], also about ones that have left: by their place, and where two that had the same
/// place meet, the older one aside.
#[derive(Clone, Debug)]
pub(super) struct ByHandle<V> {
    places: Vec<Option<(u32, V)>>,
    aside: BTreeMap<Handle, V>,
}

impl<V> ByHandle<V> {
    pub(super) const fn new() -> Self {
        Self { places: Vec::new(), aside: BTreeMap::new() }
    }

    pub(super) fn insert(&mut self, handle: Handle, value: V) {
        let index = handle.index as usize;
        if self.places.len() <= index {
            self.places.resize_with(index + 1, || None);
        }
        let Some(place) = self.places.get_mut(index) else { return };
        if let Some((generation, older)) = place.replace((handle.generation, value))
            && generation != handle.generation
        {
            self.aside.insert(Handle { generation, ..handle }, older);
        }
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&V> {
        match self.places.get(handle.index as usize) {
            Some(Some((generation, value))) if *generation == handle.generation => Some(value),
            _ if self.aside.is_empty() => None,
            _ => self.aside.get(&handle),
        }
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut V> {
        match self.places.get_mut(handle.index as usize) {
            Some(Some((generation, value))) if *generation == handle.generation => Some(value),
            _ => self.aside.get_mut(&handle),
        }
    }

    pub(super) fn remove(&mut self, handle: Handle) -> Option<V> {
        let place = self.places.get_mut(handle.index as usize)?;
        match place {
            Some((generation, _)) if *generation == handle.generation => {
                place.take().map(|(_, value)| value)
            }
            _ => self.aside.remove(&handle),
        }
    }

    /// By place; older tenants last.
    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        let here = self.places.iter().flatten().map(|(_, value)| value);
        here.chain(self.aside.values())
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

    #[test]
    fn what_is_said_of_an_earlier_tenant_stays_with_it() {
        let mut arena = Arena::new();
        let first = arena.insert(());
        let mut said = ByHandle::new();
        said.insert(first, 'a');
        arena.remove(first);
        let second = arena.insert(());
        assert_eq!(said.get(second), None);
        assert_eq!(said.remove(second), None);
        said.insert(second, 'b');
        assert_eq!((said.get(first), said.get(second)), (Some(&'a'), Some(&'b')));
        assert!(said.values().eq(&['b', 'a']));
        assert_eq!((said.remove(first), said.remove(first)), (Some('a'), None));
        *said.get_mut(second).unwrap() = 'c';
        assert_eq!(said.get(first), None);
        assert_eq!(said.remove(second), Some('c'));
        assert_eq!(said.values().count(), 0);
    }
}
