//! A node: what the kernel knows by a number, an object of the union.
//!
//! Owns: where a node is (its place), which layer holds it (its real object), and the locks of both.
//! Answers to the kernel's `ovl_entry.h` and `ovl_inode`.
//!
//! A node stays the same over copy-up and rename. All names of one upper inode are one node; the names of a lower inode
//! with several links are a node each, because each is copied up on its own (the kernel's `index=off`).

use std::ffi::{OsStr, OsString};
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::metacopy::LowerData;
use super::order::{Level, Mutex, RwLock};
use super::own_change::OwnChange;
use super::table::Remembered;
use super::watch::Watches;
use super::xattr_known::XattrsKnown;
use crate::sys::{Kind, Stat};

/// The number by which the kernel knows a node. Never used twice in the life of a mount.
pub type NodeId = u64;

/// The root's number, which the FUSE protocol fixes.
pub const ROOT_ID: NodeId = 1;

/// A layer's position in the stack: 0 is the upper, 1 the topmost lower.
pub type LayerIndex = u16;

/// The upper's position, also in a union that has none.
pub const UPPER: LayerIndex = 0;

/// An object of the union.
#[derive(Debug)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// What it is. Never changes; another kind under the same name is another node.
    pub kind: Kind,
    ino: AtomicU64,
    /// Held while this node's data is copied up. Lock order: first of all, and never two at once.
    pub(super) copying: Mutex<()>,
    /// Where and what it is. Lock order: after the `names` of its parent. A file's may be held while the rename lock is
    /// taken, a directory's never.
    pub(super) state: RwLock<State>,
    /// When it was last changed through the union.
    pub(super) own_change: OwnChange,
    /// Which extended attributes it is known not to have.
    pub(super) xattrs: XattrsKnown,
    /// What the table knows of it. Lock order: under the table's lock only, and never two of one node.
    pub(super) remembered: Mutex<Remembered>,
    /// What only directories have.
    pub(super) dir: Option<Box<DirState>>,
}

/// Where a node is and which real object stands for it.
#[derive(Debug)]
pub(super) struct State {
    /// Where its name is.
    pub place: Place,
    /// The topmost layer that holds it.
    pub layer: LayerIndex,
    /// The identity of the real object in that layer.
    pub real: RealId,
    /// What few nodes have.
    pub rare: Rare,
}

/// What few nodes have, kept apart so that the others need no room for it. To write to it makes the room.
#[derive(Debug, Default)]
pub(super) struct Rare(Option<Box<Exceptions>>);

/// See [`Rare`].
#[derive(Debug, Default)]
pub(super) struct Exceptions {
    /// Where the data lies, if the real object has attributes only.
    pub data: Option<Arc<LowerData>>,
    /// The entry in the index, if the node is reached by that: not every name of it is one in the upper.
    pub index: Option<Arc<OsStr>>,
    /// The object itself (`O_PATH`), once it has no name. Stays open as long as the kernel knows the node.
    pub object: Option<Arc<OwnedFd>>,
    /// Open for reading and writing, where the mode would refuse to open it again. Stays open as `object` does.
    pub open: Option<Arc<OwnedFd>>,
}

static NO_EXCEPTIONS: Exceptions = Exceptions { data: None, index: None, object: None, open: None };

impl Deref for Rare {
    type Target = Exceptions;

    fn deref(&self) -> &Exceptions {
        self.0.as_deref().unwrap_or(&NO_EXCEPTIONS)
    }
}

impl DerefMut for Rare {
    fn deref_mut(&mut self) -> &mut Exceptions {
        self.0.get_or_insert_default()
    }
}

impl Rare {
    /// Sets or clears where the data lies.
    pub fn set_data(&mut self, data: Option<Arc<LowerData>>) {
        if data.is_some() || self.data.is_some() {
            self.deref_mut().data = data;
        }
    }

    /// Sets or clears the entry in the index.
    pub fn set_index(&mut self, index: Option<Arc<OsStr>>) {
        if index.is_some() || self.index.is_some() {
            self.deref_mut().index = index;
        }
    }

    /// Nothing has to be kept open for reading and writing any more: returns what was, for it to be closed.
    pub fn take_open(&mut self) -> Option<Arc<OwnedFd>> {
        self.0.as_mut().and_then(|rare| rare.open.take())
    }

    /// There is a name again: returns what was kept of the object, for it to be closed.
    pub fn take_object(&mut self) -> Option<Arc<OwnedFd>> {
        self.0.as_mut().and_then(|rare| rare.object.take())
    }
}

impl State {
    /// The name did not go, after all: the next time another object may be under it, which is then the one to keep.
    pub fn unpin(&mut self) {
        if matches!(self.place, Place::In { .. }) {
            drop(self.rare.take_object());
        }
    }
}

/// Where a node's name is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// A name in a directory.
    In { parent: Arc<Node>, name: Arc<OsStr> },
    /// It has none.
    Nowhere(Nameless),
}

/// Why an object has no name. Of its own, so that a [`Place`] takes no more room than a directory and a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nameless {
    /// The root of the union.
    Root,
    /// Its name was removed; `Exceptions::object` is the way to it.
    Gone,
}

impl Place {
    pub const ROOT: Place = Place::Nowhere(Nameless::Root);
    pub const GONE: Place = Place::Nowhere(Nameless::Gone);
}

/// Device and inode number of a real object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RealId {
    pub dev: u64,
    pub ino: u64,
}

impl RealId {
    pub fn of(stat: &Stat) -> RealId {
        RealId { dev: stat.dev, ino: stat.ino }
    }
}

/// What only directories have.
#[derive(Debug)]
pub(super) struct DirState {
    /// Held for writing while a name in this directory comes, goes or is published by a copy-up, for reading while one
    /// is looked up; two are taken in order of their ids or down the tree, as `crossing` allows. Lock order: after
    /// `copying` and `crossing`, before the rename lock.
    pub names: RwLock<()>,
    /// The lower directories that are merged here, topmost first.
    pub lowers: RwLock<Arc<[LowerDir]>>,
    /// For one that is not watched: what its real directories looked like when they were last compared.
    pub look: AtomicU64,
    /// Whether other lower directories are merged here than when the names below were last told of.
    pub parts_changed: AtomicBool,
    /// Whether somebody reads the names of its real directories by way of the descriptors that are kept open.
    /// For who tries and does without it otherwise: waited for by nobody, it has no place in the lock order.
    pub listing: parking_lot::Mutex<()>,
    /// The watches on it, one a layer. Lock order: after `names`, before any `state`.
    pub watches: Watches,
    /// Whether the upper directory carries the impure mark: 0 unknown, 1 no, 2 yes.
    pub impure: AtomicU8,
    /// Whether the upper directory holds `.wh.` names that are whiteouts: 0 unknown, 1 no, 2 yes.
    pub wh_names: AtomicU8,
    /// Whether the upper directory has a default ACL: 0 unknown, 1 no, 2 yes.
    pub default_acl: AtomicU8,
    /// How many nodes have it as their parent. Changes under the table's lock only.
    pub children: AtomicU32,
}

impl Default for DirState {
    fn default() -> DirState {
        DirState {
            names: RwLock::new(Level::Names, ()),
            lowers: RwLock::new(Level::Leaf, Arc::default()),
            look: AtomicU64::default(),
            parts_changed: AtomicBool::default(),
            listing: parking_lot::Mutex::default(),
            watches: Watches::default(),
            impure: AtomicU8::default(),
            wh_names: AtomicU8::default(),
            default_acl: AtomicU8::default(),
            children: AtomicU32::default(),
        }
    }
}

impl DirState {
    /// The upper directory was changed behind the mount: what was found out about it is found out again.
    pub fn forget_upper(&self) {
        for known in [&self.impure, &self.wh_names, &self.default_acl] {
            known.store(0, Ordering::Relaxed);
        }
    }
}

/// Names from a layer's root down to an object.
pub(super) type LayerPath = Arc<[OsString]>;

/// One lower directory of a merged directory.
#[derive(Debug, Default)]
pub(super) struct LowerDir {
    pub layer: LayerIndex,
    /// Where it lies, if a redirect leads there; else it has the node's name in the parent's directory of that layer.
    pub home: Option<LayerPath>,
    /// The inode number of this directory, 0 if it was not looked at.
    pub ino: u64,
    /// Whether whiteouts in it can be regular files with a mark (`opaque` is `x`).
    pub xwhiteouts: bool,
    /// Whether it takes long to watch.
    pub large: bool,
    /// Whether it holds `.wh.` names: 0 unknown, 1 no, 2 yes.
    pub wh_names: AtomicU8,
}

impl Clone for LowerDir {
    fn clone(&self) -> LowerDir {
        LowerDir {
            layer: self.layer,
            home: self.home.clone(),
            ino: self.ino,
            xwhiteouts: self.xwhiteouts,
            large: self.large,
            wh_names: AtomicU8::new(self.wh_names.load(Ordering::Relaxed)),
        }
    }
}

/// A yes or no that is found out once.
pub(super) fn known(
    flag: &AtomicU8,
    find_out: impl FnOnce() -> crate::errno::Result<bool>,
) -> crate::errno::Result<bool> {
    match flag.load(Ordering::Relaxed) {
        1 => Ok(false),
        2 => Ok(true),
        _ => {
            let answer = find_out()?;
            flag.store(if answer { 2 } else { 1 }, Ordering::Relaxed);
            Ok(answer)
        }
    }
}

impl Node {
    pub(super) fn new(id: NodeId, kind: Kind, ino: u64, place: Place, layer: LayerIndex, real: RealId) -> Node {
        let level = if kind == Kind::Dir { Level::Directory } else { Level::File };
        Node {
            id,
            kind,
            ino: AtomicU64::new(ino),
            copying: Mutex::new(Level::Copying, ()),
            state: RwLock::new(level, State { place, layer, real, rare: Rare::default() }),
            own_change: OwnChange::default(),
            xattrs: XattrsKnown::default(),
            remembered: Mutex::new(Level::Remembered, Remembered::new(real)),
            dir: (kind == Kind::Dir).then(Box::default),
        }
    }

    /// The inode number that callers see. It changes only when one of several links of a lower file is copied up.
    pub fn ino(&self) -> u64 {
        self.ino.load(Ordering::Relaxed)
    }

    pub(super) fn set_ino(&self, ino: u64) {
        self.ino.store(ino, Ordering::Relaxed);
    }

    /// Whether the upper holds it.
    pub(super) fn in_upper(&self) -> bool {
        self.state.read().layer == UPPER
    }

    /// Whether it is a lower object whose name was removed.
    pub(super) fn is_nameless_lower(&self) -> bool {
        let state = self.state.read();
        state.layer != UPPER && matches!(state.place, Place::Nowhere(Nameless::Gone))
    }

    /// Where its data lies, if the real object has attributes only.
    pub(super) fn data(&self) -> Option<Arc<LowerData>> {
        self.state.read().rare.data.clone()
    }

    /// Its place, as it is now.
    pub(super) fn place(&self) -> Place {
        self.state.read().place.clone()
    }

    /// Its parent and name, if it has a name.
    pub(super) fn named(&self) -> Option<(Arc<Node>, Arc<OsStr>)> {
        match &self.state.read().place {
            Place::In { parent, name } => Some((parent.clone(), name.clone())),
            Place::Nowhere(_) => None,
        }
    }

    /// The lower directories merged here; none for what is no directory.
    pub(super) fn lowers(&self) -> Arc<[LowerDir]> {
        self.dir.as_ref().map_or_else(|| Arc::from([]), |dir| dir.lowers.read().clone())
    }

    /// Where the node lies in a layer that a redirect led to.
    pub(super) fn home(&self, layer: LayerIndex) -> Option<LayerPath> {
        self.home_and_number(layer).map(|(home, _)| home)
    }

    /// The same with the inode number that was found there.
    pub(super) fn home_and_number(&self, layer: LayerIndex) -> Option<(LayerPath, u64)> {
        let dir = self.dir.as_ref().filter(|_| layer != UPPER)?;
        let lowers = dir.lowers.read();
        lowers.iter().find(|lower| lower.layer == layer).and_then(|lower| Some((lower.home.clone()?, lower.ino)))
    }

    /// Whether several real directories are merged here.
    pub(super) fn is_merged(&self) -> bool {
        self.dir.as_ref().is_some_and(|dir| {
            let lowers = dir.lowers.read().len();
            lowers > 1 || (lowers == 1 && self.in_upper())
        })
    }
}

impl Place {
    /// Whether this is that name in that directory.
    pub fn is(&self, dir: &Node, child: &OsStr) -> bool {
        matches!(self, Place::In { parent, name } if parent.id == dir.id && **name == *child)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_no_room_for_what_few_nodes_have() {
        // Of the 300 bytes that a remembered entry may take, tables and name included.
        assert_eq!(size_of::<State>(), 56);
    }

    #[test]
    fn what_few_nodes_have_takes_room_once_there_is_something() {
        let mut rare = Rare::default();
        rare.set_data(None);
        rare.set_index(None);
        assert!(rare.take_open().is_none() && rare.take_object().is_none() && rare.0.is_none());
        rare.set_index(Some(Arc::from(OsStr::new("entry"))));
        assert!(rare.index.is_some() && rare.data.is_none());
        rare.set_index(None);
        assert!(rare.index.is_none());
    }
}
