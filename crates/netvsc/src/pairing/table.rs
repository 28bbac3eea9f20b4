//! A map that looks in one place, and that no choice of keys makes slower than an ordered one.
//!
//! The keys are chosen by the host. A hashed map with fixed hashing can be flooded with keys that all fall into one place; one with
//! random hashing needs random numbers, and every run is another. Here a place has room for a few keys, and what finds no room
//! lies aside, in an ordered map: keys that were chosen to collide cost a logarithm there, all others one access. Nothing is ever
//! listed in the order of its places.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::array;

use vmbus::{Guid, Serial};

use crate::mac::MacAddress;

/// Keys in one bucket.
const ROOM: usize = 4;
/// Keys for each bucket, on average, from which on there are twice as many buckets.
const MOST: usize = 2;
/// Multiplied with this (2^64 divided by the golden ratio), neighbours fall far from each other.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a [`Table`] looks up by.
pub(super) trait Key: Ord + Copy {
    /// A number that tells most keys apart.
    fn number(self) -> u64;
}

impl Key for Serial {
    fn number(self) -> u64 {
        u64::from(self.0)
    }
}

impl Key for MacAddress {
    fn number(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

impl Key for Guid {
    fn number(self) -> u64 {
        let (high, low) = self.as_u64_pair();
        high.wrapping_mul(SPREAD).rotate_left(32) ^ low
    }
}

impl Key for (Guid, u32) {
    fn number(self) -> u64 {
        self.0.number().wrapping_add(u64::from(self.1).wrapping_mul(SPREAD))
    }
}

/// A map.
#[derive(Clone, Debug)]
pub(super) struct Table<K, V> {
    /// A power of two, or none.
    buckets: Vec<Bucket<K, V>>,
    aside: BTreeMap<K, V>,
    len: usize,
}

/// In whole lines of the processor's cache, the keys in front: to see that a key is not here, no value is looked at.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
struct Bucket<K, V> {
    keys: [Option<K>; ROOM],
    /// How many keys of this bucket lie aside.
    aside: u32,
    /// Each at the place of its key.
    values: [Option<V>; ROOM],
}

impl<K: Key, V> Bucket<K, V> {
    fn empty() -> Self {
        Self { keys: [None; ROOM], aside: 0, values: array::from_fn(|_| None) }
    }

    fn find(&self, key: Option<K>) -> Option<usize> {
        self.keys.iter().position(|k| *k == key)
    }

    fn entries(&self) -> impl Iterator<Item = (K, &V)> {
        self.keys
            .iter()
            .zip(&self.values)
            .filter_map(|(key, value)| Some(((*key)?, value.as_ref()?)))
    }
}

impl<K: Key, V> Table<K, V> {
    pub(super) const fn new() -> Self {
        Self { buckets: Vec::new(), aside: BTreeMap::new(), len: 0 }
    }

    /// Where a key belongs. The upper bits of the product depend on all bits of the key.
    fn place(&self, key: K) -> usize {
        let bits = self.buckets.len().trailing_zeros();
        let mixed = key.number().wrapping_mul(SPREAD);
        mixed.checked_shr(u64::BITS - bits).unwrap_or(0) as usize
    }

    pub(super) fn get(&self, key: K) -> Option<&V> {
        let bucket = self.buckets.get(self.place(key))?;
        match bucket.find(Some(key)) {
            Some(at) => bucket.values.get(at)?.as_ref(),
            None if bucket.aside == 0 => None,
            None => self.aside.get(&key),
        }
    }

    pub(super) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        let place = self.place(key);
        let bucket = self.buckets.get_mut(place)?;
        match bucket.find(Some(key)) {
            Some(at) => bucket.values.get_mut(at)?.as_mut(),
            None if bucket.aside == 0 => None,
            None => self.aside.get_mut(&key),
        }
    }

    /// Puts a value under a key; what lay there goes.
    pub(super) fn insert(&mut self, key: K, value: V) {
        match self.get_mut(key) {
            Some(old) => *old = value,
            None => self.insert_new(key, value),
        }
    }

    /// Puts a value under a key that has none.
    pub(super) fn insert_new(&mut self, key: K, value: V) {
        if self.len >= self.buckets.len() * MOST {
            self.grow();
        }
        self.len += 1;
        self.put(key, value);
    }

    fn put(&mut self, key: K, value: V) {
        let place = self.place(key);
        let Some(bucket) = self.buckets.get_mut(place) else { return };
        let free = bucket.find(None);
        let entry = free.and_then(|at| bucket.keys.get_mut(at).zip(bucket.values.get_mut(at)));
        if let Some(entry) = entry {
            (*entry.0, *entry.1) = (Some(key), Some(value));
        } else {
            bucket.aside += 1;
            self.aside.insert(key, value);
        }
    }

    fn grow(&mut self) {
        let count = (self.buckets.len() * 2).max(1);
        let buckets = (0..count).map(|_| Bucket::empty()).collect();
        let before = core::mem::replace(&mut self.buckets, buckets);
        let aside = core::mem::take(&mut self.aside);
        for bucket in before {
            for (key, value) in bucket.keys.into_iter().zip(bucket.values) {
                if let (Some(key), Some(value)) = (key, value) {
                    self.put(key, value);
                }
            }
        }
        for (key, value) in aside {
            self.put(key, value);
        }
    }

    pub(super) fn remove(&mut self, key: K) -> Option<V> {
        let place = self.place(key);
        let bucket = self.buckets.get_mut(place)?;
        let value = match bucket.find(Some(key)) {
            Some(at) => {
                *bucket.keys.get_mut(at)? = None;
                bucket.values.get_mut(at)?.take()
            }
            None if bucket.aside == 0 => None,
            None => {
                let value = self.aside.remove(&key);
                bucket.aside -= u32::from(value.is_some());
                value
            }
        };
        self.len -= usize::from(value.is_some());
        value
    }
}

/// The same keys with the same values, wherever they lie.
impl<K: Key, V: PartialEq> PartialEq for Table<K, V> {
    fn eq(&self, other: &Self) -> bool {
        let placed = self.buckets.iter().flat_map(Bucket::entries);
        let mut all = placed.chain(self.aside.iter().map(|(key, value)| (*key, value)));
        self.len == other.len && all.all(|(key, value)| other.get(key) == Some(value))
    }
}

impl<K: Key, V: Eq> Eq for Table<K, V> {}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    /// Keys of which many have the same number.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Clash(u8);

    impl Key for Clash {
        fn number(self) -> u64 {
            u64::from(self.0 % 3)
        }
    }

    proptest! {
        #[test]
        fn it_is_a_map_also_if_all_keys_fall_into_the_same_places(
            steps in prop::collection::vec((0u8..4, 0u8..40, any::<u16>()), 0..300)
        ) {
            let (mut table, mut map) = (Table::new(), BTreeMap::new());
            for (what, key, value) in steps {
                if what == 0 {
                    prop_assert_eq!(table.remove(Clash(key)), map.remove(&key));
                } else {
                    table.insert(Clash(key), value);
                    map.insert(key, value);
                }
                prop_assert_eq!(table.len, map.len());
                for key in 0..40 {
                    prop_assert_eq!(table.get(Clash(key)), map.get(&key));
                    prop_assert_eq!(table.get_mut(Clash(key)).copied(), map.get(&key).copied());
                }
            }
            let mut rebuilt = Table::new();
            for (key, value) in map.into_iter().rev() {
                rebuilt.insert(Clash(key), value);
            }
            prop_assert_eq!(&table, &rebuilt);
            if rebuilt.remove(Clash(0)).is_none() {
                rebuilt.insert(Clash(0), 0);
            }
            prop_assert_ne!(table, rebuilt);
        }
    }

    /// The share of keys that lie aside, of a hundred.
    fn aside<K: Key>(keys: impl Iterator<Item = K>) -> usize {
        let mut table = Table::new();
        for key in keys {
            table.insert(key, ());
        }
        table.aside.len() * 100 / table.len
    }

    #[test]
    fn keys_as_hosts_deal_them_out_find_room() {
        let range = || 0..100_000u32;
        assert!(aside(range().map(Serial)) < 5);
        assert!(aside(range().map(|n| Serial(n.wrapping_mul(0x1_0001)))) < 5);
        assert!(aside(range().map(|n| Serial(n.rotate_left(12)))) < 5);
        let mac = |n: u32| {
            let [a, b, c, d] = n.to_be_bytes();
            [MacAddress([0, 0x15, a, b, c, d]), MacAddress([d, c, b, a, 0x15, 0])]
        };
        for kind in 0..2 {
            assert!(aside(range().map(|n| mac(n)[kind])) < 5);
        }
        let guid = |n: u32| Guid::from_u128(u128::from(n) << 96 | 0xf8e6_5716);
        assert!(aside(range().map(guid)) < 5);
        assert!(aside(range().map(|n| (guid(n / 256), n % 256))) < 5);
    }
}
