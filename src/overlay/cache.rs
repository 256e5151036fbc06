//! Descriptors that are kept because they will be wanted again, bounded and least recently used first.
//!
//! Leaves of the lock order: nothing is locked and no system call is made while one of these locks is held.

use std::hash::Hash;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use lru::LruCache;

use super::order::{Level, Mutex};

/// Open descriptors by what they are of.
#[derive(Debug)]
pub(super) struct FdCache<K: Hash + Eq> {
    lru: Mutex<LruCache<K, Arc<OwnedFd>>>,
}

impl<K: Hash + Eq> FdCache<K> {
    /// A cache of at most `capacity` descriptors, at least one.
    pub fn new(capacity: usize) -> FdCache<K> {
        FdCache {
            lru: Mutex::new(Level::Leaf, LruCache::new(NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN))),
        }
    }

    pub fn get(&self, key: &K) -> Option<Arc<OwnedFd>> {
        self.lru.lock().get(key).cloned()
    }

    /// Keeps a descriptor. What it displaces is closed after the lock is released.
    pub fn insert(&self, key: K, fd: Arc<OwnedFd>) {
        let displaced = self.lru.lock().push(key, fd);
        drop(displaced);
    }

    /// Closes everything that nobody is using, to make room for others.
    pub fn empty(&self) {
        let mut lru = self.lru.lock();
        let capacity = lru.cap();
        let all = std::mem::replace(&mut *lru, LruCache::new(capacity));
        drop(lru);
        drop(all);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lru.lock().len()
    }

    /// Closes everything that nobody is using, and keeps nothing more.
    pub fn clear(&self) {
        let all = std::mem::replace(&mut *self.lru.lock(), LruCache::new(NonZeroUsize::MIN));
        drop(all);
    }

    pub fn remove(&self, key: &K) {
        let removed = self.lru.lock().pop(key);
        drop(removed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let cache = FdCache::new(2);
        let fd = || Arc::new(OwnedFd::from(std::fs::File::open("/").expect("the root can be opened")));
        cache.insert(1, fd());
        cache.insert(2, fd());
        assert!(cache.get(&1).is_some());
        cache.insert(3, fd());
        assert!(cache.get(&2).is_none());
        assert!(cache.get(&1).is_some() && cache.get(&3).is_some());
    }
}
