//! The node table: which nodes the kernel remembers, by number and by identity.
//!
//! A node stays as long as the kernel has looked it up more often than it forgot it, or a node below it stays. No system
//! call is made under the table's lock.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// How many nodes in the table have it as their parent.
    children: u32,
}

#[derive(Debug, Default)]
struct Inner {
    slots: HashMap<NodeId, Slot>,
    keys: HashMap<Key, NodeId>,
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
        inner.keys.insert(key.clone(), ROOT_ID);
        inner.slots.insert(ROOT_ID, Slot { node: root, key, parent: 0, lookups: 1, children: 0 });
        Table { next: AtomicU64::new(ROOT_ID + 1), inner: Mutex::new(inner) }
    }

    /// The node of a number.
    pub fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.inner.lock().slots.get(&id).map(|slot| slot.node.clone())
    }

    /// The node of a real object, or of a name, if the kernel remembers it.
    pub fn find(&self, key: &Key) -> Option<Arc<Node>> {
        let inner = self.inner.lock();
        let id = inner.keys.get(key)?;
        inner.slots.get(id).map(|slot| slot.node.clone())
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
        if let Some(slot) = inner.keys.get(&key).and_then(|id| inner.slots.get_mut(id))
            && fits(&slot.node)
        {
            slot.lookups += 1;
            return Interned::Known(slot.node.clone());
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let node = Arc::new(make(id));
        inner.keys.insert(key.clone(), id);
        inner.slots.insert(id, Slot { node: node.clone(), key, parent: parent.id, lookups: 1, children: 0 });
        if let Some(slot) = inner.slots.get_mut(&parent.id) {
            slot.children += 1;
        }
        Interned::New(node)
    }

    /// The node was copied up or renamed: it is recognised by another key from now on.
    pub fn rekey(&self, node: &Node, key: Key) {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let Some(slot) = inner.slots.get_mut(&node.id) else { return };
        if inner.keys.get(&slot.key) == Some(&node.id) {
            inner.keys.remove(&slot.key);
        }
        slot.key = key.clone();
        inner.keys.insert(key, node.id);
    }

    /// The node has another parent from now on, or none. Returns the nodes that nobody needs any more.
    pub fn moved(&self, node: &Node, parent: Option<&Node>) -> Vec<Arc<Node>> {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let new = parent.map_or(0, |parent| parent.id);
        let Some(slot) = inner.slots.get_mut(&node.id) else { return Vec::new() };
        let old = std::mem::replace(&mut slot.parent, new);
        if let Some(slot) = inner.slots.get_mut(&new) {
            slot.children += 1;
        }
        if let Some(slot) = inner.slots.get_mut(&old) {
            slot.children = slot.children.saturating_sub(1);
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
            inner.keys.shrink_to_fit();
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
    /// Removes a node that nobody needs, then its parent if that was the last need of it, and so on.
    fn sweep(&mut self, id: NodeId, gone: &mut Vec<Arc<Node>>) {
        let mut next = Some(id);
        while let Some(id) = next.take() {
            let Entry::Occupied(slot) = self.slots.entry(id) else { return };
            if slot.get().lookups > 0 || slot.get().children > 0 || id == ROOT_ID {
                return;
            }
            let Slot { node, key, parent, .. } = slot.remove();
            if self.keys.get(&key) == Some(&id) {
                self.keys.remove(&key);
            }
            gone.push(node);
            if let Some(slot) = self.slots.get_mut(&parent) {
                slot.children = slot.children.saturating_sub(1);
                next = Some(parent);
            }
        }
    }
}
