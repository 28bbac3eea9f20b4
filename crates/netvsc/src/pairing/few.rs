//! A set that mostly has one element.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::collections::btree_set;
use core::{iter, option};

/// An ordered set. One element lies in place: with one party behind each serial and MAC, and one claim on each NIC, a set costs
/// no memory of its own and no access to any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Few<V> {
    #[default]
    None,
    One(V),
    /// Two or more.
    #[expect(clippy::box_collection, reason = "the room for it is in every set of one")]
    Many(Box<BTreeSet<V>>),
}

impl<V: Ord + Copy> Few<V> {
    pub(super) fn insert(&mut self, value: V) {
        match self {
            Self::None => *self = Self::One(value),
            Self::One(first) if *first == value => {}
            Self::One(first) => *self = Self::Many(Box::new(BTreeSet::from([*first, value]))),
            Self::Many(values) => {
                values.insert(value);
            }
        }
    }

    pub(super) fn remove(&mut self, value: V) {
        match self {
            Self::One(first) if *first == value => *self = Self::None,
            Self::None | Self::One(_) => {}
            Self::Many(values) => {
                values.remove(&value);
                if let (1, Some(last)) = (values.len(), values.first().copied()) {
                    *self = Self::One(last);
                }
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Many(values) => values.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Those that are not below this one, in order.
    pub(super) fn from(&self, least: V) -> FewIter<'_, V, btree_set::Range<'_, V>> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(value) => (Some(value).filter(|value| **value >= least), None),
            Self::Many(values) => (None, Some(values.range(least..))),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// In order.
    pub(super) fn iter(&self) -> FewIter<'_, V, btree_set::Iter<'_, V>> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(value) => (Some(value), None),
            Self::Many(values) => (None, Some(values.iter())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

pub(super) type FewIter<'a, V, Many> =
    iter::Chain<option::IntoIter<&'a V>, iter::Flatten<option::IntoIter<Many>>>;

impl<'a, V: Ord + Copy> IntoIterator for &'a Few<V> {
    type Item = &'a V;
    type IntoIter = FewIter<'a, V, btree_set::Iter<'a, V>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((any::<bool>(), 0u8..4), 0..40)) {
            let (mut few, mut set) = (Few::None, BTreeSet::new());
            for (insert, value) in steps {
                if insert {
                    few.insert(value);
                    set.insert(value);
                } else {
                    few.remove(value);
                    set.remove(&value);
                }
                prop_assert_eq!(few.iter().collect::<Vec<_>>(), set.iter().collect::<Vec<_>>());
                prop_assert_eq!((few.len(), few.is_empty()), (set.len(), set.is_empty()));
                prop_assert_eq!(matches!(few, Few::Many(_)), set.len() > 1, "one form for each set");
                let from = (few.from(value).collect::<Vec<_>>(), set.range(value..).collect::<Vec<_>>());
                prop_assert_eq!(from.0, from.1);
            }
        }
    }
}
