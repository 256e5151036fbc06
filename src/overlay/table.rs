//! The node table: which nodes the kernel remembers, by number and by identity.
//!
//! A node stays as long as the kernel has looked it up more often than it forgot it, or a node below it stays. No system
//! call is made under the table's lock.

use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashTable;

use super::node::{Node, NodeId, ROOT_ID, RealId};
use super::order::{Level, Mutex};

/// By what a node is recognised when it is looked up again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// The real object that stands for it.
    Real(RealId),
    /// Its name, for a lower file with several links.
    Name(NodeId, Arc<OsStr>),
}

/// What the table knows of a node. Kept in the node itself, so that it is stored once however large the tables are, and
/// changed under the table's lock only.
#[derive(Debug)]
pub(super) struct Remembered {
    key: Key,
    /// Its parent, 0 for none. Kept here because no `state` may be locked under the table's lock.
    parent: NodeId,
    /// How often the kernel looked it up and did not yet forget it.
    lookups: u64,
}

impl Remembered {
    /// Of a node without parent that was just looked up for the first time.
    pub fn new(real: RealId) -> Remembered {
        Remembered { key: Key::Real(real), parent: 0, lookups: 1 }
    }
}

/// How many nodes in the table have this one as their parent; directories only.
fn children(node: &Node) -> u32 {
    node.dir.as_ref().map_or(0, |dir| dir.children.load(Ordering::Relaxed))
}

/// Counts a child more or less. The table's lock makes it one step.
fn count_child(node: &Node, change: impl FnOnce(u32) -> u32) {
    if let Some(dir) = &node.dir {
        dir.children.store(change(children(node)), Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Inner {
    nodes: HashTable<Arc<Node>>,
    /// The nodes that are found by their keys.
    keys: HashTable<Arc<Node>>,
    /// Whether what has a name stays when the kernel forgets it, for whoever has a handle.
    keeps_named: bool,
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
    /// A table with nothing but the root, which is never forgotten. With handles, numbers begin with a random one: a handle
    /// of a number that means nothing in another mount shall find nothing there.
    pub fn new(root: Arc<Node>, handles: Option<u32>) -> Table {
        let mut inner = Inner { keeps_named: handles.is_some(), ..Inner::default() };
        inner.enter(root);
        let first = ROOT_ID + 1 + (u64::from(handles.unwrap_or_default()) << 30);
        Table { next: AtomicU64::new(first), inner: Mutex::new(Level::Table, inner) }
    }

    /// The node of a number.
    pub fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.inner.lock().get(id).cloned()
    }

    /// The same with one more lookup.
    pub fn look_up(&self, id: NodeId) -> Option<Arc<Node>> {
        let inner = self.inner.lock();
        let node = inner.get(id)?;
        node.remembered.lock().lookups += 1;
        Some(node.clone())
    }

    /// The node of a real object, or of a name, if the kernel remembers it.
    pub fn find(&self, key: &Key) -> Option<Arc<Node>> {
        self.inner.lock().find(key).cloned()
    }

    /// Any node of which this holds.
    pub fn any(&self, holds: impl Fn(&Node) -> bool) -> Option<NodeId> {
        self.inner.lock().nodes.iter().find(|node| holds(node)).map(|node| node.id)
    }

    /// The node of a key, made if there is none that `fits`, with one more lookup counted. It gets the number
    /// that is wanted for it, unless another has that.
    pub fn intern(
        &self,
        (key, id): (Key, Option<NodeId>),
        parent: &Arc<Node>,
        fits: impl FnOnce(&Node) -> bool,
        make: impl FnOnce(NodeId) -> Node,
    ) -> Interned {
        let mut inner = self.inner.lock();
        if let Some(node) = inner.find(&key)
            && fits(node)
        {
            node.remembered.lock().lookups += 1;
            return Interned::Known(node.clone());
        }
        let free = id.filter(|id| inner.get(*id).is_none());
        let id = free.unwrap_or_else(|| self.next.fetch_add(1, Ordering::Relaxed));
        let mut node = make(id);
        *node.remembered.get_mut() = Remembered { key, parent: parent.id, lookups: 1 };
        let node = Arc::new(node);
        inner.enter(node.clone());
        if let Some(parent) = inner.get(parent.id) {
            count_child(parent, |children| children + 1);
        }
        Interned::New(node)
    }

    /// The node was copied up or renamed: it is recognised by another key from now on.
    pub fn rekey(&self, node: &Node, key: Key) {
        let mut inner = self.inner.lock();
        let Some(node) = inner.get(node.id).cloned() else { return };
        inner.leave_key(&node);
        node.remembered.lock().key = key;
        inner.enter_key(node);
    }

    /// The node has another parent from now on, or none. Returns the nodes that nobody needs any more.
    pub fn moved(&self, node: &Node, parent: Option<&Node>) -> Vec<Arc<Node>> {
        let mut inner = self.inner.lock();
        let new = parent.map_or(0, |parent| parent.id);
        let Some(node) = inner.get(node.id).cloned() else { return Vec::new() };
        let old = std::mem::replace(&mut node.remembered.lock().parent, new);
        if let Some(parent) = inner.get(new) {
            count_child(parent, |children| children + 1);
        }
        if let Some(parent) = inner.get(old) {
            count_child(parent, |children| children.saturating_sub(1));
        }
        let mut gone = Vec::new();
        inner.sweep(old, &mut gone);
        if new == 0 {
            inner.sweep(node.id, &mut gone);
        }
        gone
    }

    /// The kernel forgot `count` lookups. Returns the nodes that went with it, for the caches to forget too, and to be
    /// dropped outside of the lock.
    pub fn forget(&self, id: NodeId, count: u64) -> Vec<Arc<Node>> {
        let mut gone = Vec::new();
        let mut inner = self.inner.lock();
        if let Some(node) = inner.get(id) {
            {
                let mut remembered = node.remembered.lock();
                remembered.lookups = remembered.lookups.saturating_sub(count);
            }
            inner.sweep(id, &mut gone);
        }
        gone
    }

    /// Gives memory back when most of what there once was is forgotten; says whether it did.
    pub fn shrink(&self) -> bool {
        let mut inner = self.inner.lock();
        let much = inner.nodes.capacity() > 4096 && inner.nodes.len() < inner.nodes.capacity() / 4;
        if much {
            let Inner { nodes, keys, hasher, .. } = &mut *inner;
            nodes.shrink_to_fit(|node| hasher.hash_one(node.id));
            keys.shrink_to_fit(|node| hasher.hash_one(&node.remembered.lock().key));
        }
        much
    }

    /// The nodes that have this one as their parent. Looks at all nodes: for what is rare.
    pub fn below(&self, parent: NodeId) -> Vec<Arc<Node>> {
        let inner = self.inner.lock();
        if inner.get(parent).is_none_or(|parent| children(parent) == 0) {
            return Vec::new();
        }
        inner.nodes.iter().filter(|node| node.remembered.lock().parent == parent).cloned().collect()
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.inner.lock().nodes.len()
    }

    /// All nodes of this moment.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.inner.lock().nodes.iter().cloned().collect()
    }
}

impl Inner {
    fn get(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.find(self.hasher.hash_one(id), |node| node.id == id)
    }

    /// The node that is found by a key.
    fn find(&self, key: &Key) -> Option<&Arc<Node>> {
        self.keys.find(self.hasher.hash_one(key), |node| node.remembered.lock().key == *key)
    }

    /// Takes a node in, by number and key.
    fn enter(&mut self, node: Arc<Node>) {
        let Inner { nodes, hasher, .. } = self;
        nodes.insert_unique(hasher.hash_one(node.id), node.clone(), |node| hasher.hash_one(node.id));
        self.enter_key(node);
    }

    /// Makes a node the one that is found by its key, in place of another.
    fn enter_key(&mut self, node: Arc<Node>) {
        let Inner { keys, hasher, .. } = self;
        let hash = hasher.hash_one(&node.remembered.lock().key);
        // A node in the table is not the one that enters, so that these are two locks.
        let same =
            |known: &Arc<Node>| !Arc::ptr_eq(known, &node) && known.remembered.lock().key == node.remembered.lock().key;
        match keys.find_mut(hash, same) {
            Some(known) => *known = node,
            None => {
                keys.insert_unique(hash, node, |node| hasher.hash_one(&node.remembered.lock().key));
            }
        }
    }

    /// A node is not found by its key any more.
    fn leave_key(&mut self, node: &Arc<Node>) {
        let hash = self.hasher.hash_one(&node.remembered.lock().key);
        if let Ok(found) = self.keys.find_entry(hash, |known| Arc::ptr_eq(known, node)) {
            found.remove();
        }
    }

    /// Removes a node that nobody needs, then its parent if that was the last need of it, and so on.
    fn sweep(&mut self, id: NodeId, gone: &mut Vec<Arc<Node>>) {
        let mut next = Some(id);
        while let Some(id) = next.take() {
            let Some(node) = self.get(id).cloned() else { return };
            let wanted = {
                let remembered = node.remembered.lock();
                remembered.lookups > 0 || (self.keeps_named && remembered.parent != 0)
            };
            if id == ROOT_ID || children(&node) > 0 || wanted {
                return;
            }
            self.leave_key(&node);
            if let Ok(found) = self.nodes.find_entry(self.hasher.hash_one(id), |known| known.id == id) {
                found.remove();
            }
            let parent = node.remembered.lock().parent;
            gone.push(node);
            if let Some(node) = self.get(parent) {
                count_child(node, |children| children.saturating_sub(1));
                next = Some(parent);
            }
        }
    }
}
