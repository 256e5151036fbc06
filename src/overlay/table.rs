//! The node table: which nodes the kernel remembers, by number and by identity.
//!
//! A node stays as long as the kernel has looked it up more often than it forgot it, or a node below it stays. No system
//! call is made under the table's lock.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::ffi::OsStr;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashTable;
use parking_lot::Mutex;

use super::node::{Node, NodeId, ROOT_ID, RealId};

/// By what a node is recognised when it is looked up again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// The real object that stands for it.
    Real(RealId),
    /// Its name, for a lower file with several links.
    Name(NodeId, Arc<OsStr>),
}

#[derive(Debug)]
struct Slot {
    node: Arc<Node>,
    key: Key,
    /// Its parent, 0 for none. Kept here because no `state` may be locked under the table's lock.
    parent: NodeId,
    /// How often the kernel looked it up and did not yet forget it.
    lookups: u64,
}

impl Slot {
    /// How many nodes in the table have it as their parent; directories only.
    fn children(&self) -> u32 {
        self.node.dir.as_ref().map_or(0, |dir| dir.children.load(Ordering::Relaxed))
    }

    /// Counts a child more or less. The table's lock makes it one step.
    fn count_child(&self, change: impl FnOnce(u32) -> u32) {
        if let Some(dir) = &self.node.dir {
            dir.children.store(change(self.children()), Ordering::Relaxed);
        }
    }
}

/// A million entries are remembered for long: what is found by its key is stored once, in its slot.
#[derive(Debug, Default)]
struct Inner {
    slots: HashMap<NodeId, Slot>,
    /// The numbers of the nodes that are found by their keys.
    keys: HashTable<NodeId>,
    hasher: RandomState,
}

/// All nodes that the kernel remembers.
#[derive(Debug)]
pub(super) struct Table {
    next: AtomicU64,
    /// Lock order: after every node's `state`; only the descriptor caches come later.
    inner: Mutex<Inner>,
}

/// What `intern` found.
pub(super) enum Interned {
    New(Arc<Node>),
    Known(Arc<Node>),
}

impl Table {
    /// A table with nothing but the root, which is never forgotten.
    pub fn new(root: Arc<Node>) -> Table {
        let mut inner = Inner::default();
        let key = Key::Real(root.state.read().real);
        inner.slots.insert(ROOT_ID, Slot { node: root, key, parent: 0, lookups: 1 });
        inner.enter_key(ROOT_ID);
        Table { next: AtomicU64::new(ROOT_ID + 1), inner: Mutex::new(inner) }
    }

    /// The node of a number.
    pub fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.inner.lock().slots.get(&id).map(|slot| slot.node.clone())
    }

    /// The node of a real object, or of a name, if the kernel remembers it.
    pub fn find(&self, key: &Key) -> Option<Arc<Node>> {
        let inner = self.inner.lock();
        inner.slots.get(&inner.find(key)?).map(|slot| slot.node.clone())
    }

    /// The node of a key, made if there is none that `fits`, with one more lookup counted.
    pub fn intern(
        &self,
        key: Key,
        parent: &Arc<Node>,
        fits: impl FnOnce(&Node) -> bool,
        make: impl FnOnce(NodeId) -> Node,
    ) -> Interned {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        if let Some(slot) = inner.find(&key).and_then(|id| inner.slots.get_mut(&id))
            && fits(&slot.node)
        {
            slot.lookups += 1;
            return Interned::Known(slot.node.clone());
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let node = Arc::new(make(id));
        inner.slots.insert(id, Slot { node: node.clone(), key, parent: parent.id, lookups: 1 });
        inner.enter_key(id);
        if let Some(slot) = inner.slots.get(&parent.id) {
            slot.count_child(|children| children + 1);
        }
        Interned::New(node)
    }

    /// The node was copied up or renamed: it is recognised by another key from now on.
    pub fn rekey(&self, node: &Node, key: Key) {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        inner.leave_key(node.id);
        let Some(slot) = inner.slots.get_mut(&node.id) else { return };
        slot.key = key;
        inner.enter_key(node.id);
    }

    /// The node has another parent from now on, or none. Returns the nodes that nobody needs any more.
    pub fn moved(&self, node: &Node, parent: Option<&Node>) -> Vec<Arc<Node>> {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let new = parent.map_or(0, |parent| parent.id);
        let Some(slot) = inner.slots.get_mut(&node.id) else { return Vec::new() };
        let old = std::mem::replace(&mut slot.parent, new);
        if let Some(slot) = inner.slots.get(&new) {
            slot.count_child(|children| children + 1);
        }
        if let Some(slot) = inner.slots.get(&old) {
            slot.count_child(|children| children.saturating_sub(1));
        }
        let mut gone = Vec::new();
        inner.sweep(old, &mut gone);
        gone
    }

    /// The kernel forgot `count` lookups. Returns the nodes that went with it, for the caches to forget too, and to be
    /// dropped outside of the lock.
    pub fn forget(&self, id: NodeId, count: u64) -> Vec<Arc<Node>> {
        let mut gone = Vec::new();
        let mut inner = self.inner.lock();
        if let Some(slot) = inner.slots.get_mut(&id) {
            slot.lookups = slot.lookups.saturating_sub(count);
            inner.sweep(id, &mut gone);
        }
        gone
    }

    /// Gives memory back when most of what there once was is forgotten; says whether it did.
    pub fn shrink(&self) -> bool {
        let mut inner = self.inner.lock();
        let much = inner.slots.capacity() > 4096 && inner.slots.len() < inner.slots.capacity() / 4;
        if much {
            inner.slots.shrink_to_fit();
            let Inner { slots, keys, hasher } = &mut *inner;
            keys.shrink_to_fit(|id| slots.get(id).map_or(0, |slot| hasher.hash_one(&slot.key)));
        }
        much
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.inner.lock().slots.len()
    }
}

impl Table {
    /// All nodes of this moment.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.inner.lock().slots.values().map(|slot| slot.node.clone()).collect()
    }
}

impl Inner {
    /// The node that is found by a key.
    fn find(&self, key: &Key) -> Option<NodeId> {
        let same = |id: &NodeId| self.slots.get(id).is_some_and(|slot| slot.key == *key);
        self.keys.find(self.hasher.hash_one(key), same).copied()
    }

    /// Makes a node the one that is found by its key, in place of another.
    fn enter_key(&mut self, id: NodeId) {
        let Inner { slots, keys, hasher } = self;
        let Some(slot) = slots.get(&id) else { return };
        let hash = hasher.hash_one(&slot.key);
        let same = |other: &NodeId| slots.get(other).is_some_and(|other| other.key == slot.key);
        match keys.find_mut(hash, same) {
            Some(known) => *known = id,
            None => {
                keys.insert_unique(hash, id, |id| slots.get(id).map_or(0, |slot| hasher.hash_one(&slot.key)));
            }
        }
    }

    /// A node is not found by its key any more.
    fn leave_key(&mut self, id: NodeId) {
        let Some(slot) = self.slots.get(&id) else { return };
        if let Ok(found) = self.keys.find_entry(self.hasher.hash_one(&slot.key), |known| *known == id) {
            found.remove();
        }
    }

    /// Removes a node that nobody needs, then its parent if that was the last need of it, and so on.
    fn sweep(&mut self, id: NodeId, gone: &mut Vec<Arc<Node>>) {
        let mut next = Some(id);
        while let Some(id) = next.take() {
            if id == ROOT_ID || self.slots.get(&id).is_none_or(|slot| slot.lookups > 0 || slot.children() > 0) {
                return;
            }
            self.leave_key(id);
            let Entry::Occupied(slot) = self.slots.entry(id) else { return };
            let Slot { node, parent, .. } = slot.remove();
            gone.push(node);
            if let Some(slot) = self.slots.get(&parent) {
                slot.count_child(|children| children.saturating_sub(1));
                next = Some(parent);
            }
        }
    }
}
