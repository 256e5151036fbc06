//! The union as a whole: what all operations share, and the way from a node to its real objects.
//!
//! Owns the table and the caches. Answers to the kernel's `fs/overlayfs/super.c`.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use super::cache::FdCache;
use super::config::{Features, Fsync, Uuid};
use super::counts::Counts;
use super::idmap::Ids;
use super::index::Index;
use super::ino::InodeNumbers;
use super::lasting_id::Searched;
use super::layer::Layers;
use super::nlink::CountLocks;
use super::node::{LayerIndex, Nameless, Node, NodeId, Place, RealId, UPPER};
use super::order::RwLock;
use super::readdir::Listings;
use super::recent::Recent;
use super::sync::Uncommitted;
use super::table::Table;
use super::watch::{Listener, Watcher};
use super::workdir::WorkDir;
use super::xattr::Namespace;
use super::xattr_known::Epoch;
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, FsStat, Journal, Kind, Stat};

/// A union of layers, ready to answer.
pub struct Overlay {
    pub(super) layers: Layers,
    /// The work directory; `None` in a union without upper.
    pub(super) work: Option<WorkDir>,
    /// Where copies of lower files with several names stand; `None` with `index=off`.
    pub(super) index: Option<Index>,
    pub(super) namespace: Namespace,
    pub(super) numbers: InodeNumbers,
    pub(super) fsync: Fsync,
    /// What is known of the order in which changes of the upper reach the disk.
    pub(super) journal: Journal,
    pub(super) uncommitted: Uncommitted,
    pub(super) features: Features,
    /// Whether the upper's file system holds marks.
    pub(super) keeps_marks: bool,
    pub(super) uuid: Uuid,
    /// Whether deletions are written as 0/0 devices; as `.wh.` names where not.
    pub(super) device_whiteouts: bool,
    /// What becomes of users and groups; nothing, mostly.
    pub(super) ids: Option<Ids>,
    /// Whether any layer has owners and modes in attributes.
    pub(super) overriding: bool,
    /// Who the server is: files of its own need no change of owner.
    pub(super) server: (u32, u32),
    pub(super) root: Arc<Node>,
    pub(super) table: Table,
    /// Directories by node and layer.
    pub(super) dirs: FdCache<(NodeId, LayerIndex)>,
    /// Files open for reading.
    pub(super) readers: FdCache<NodeId>,
    /// Files in the upper, open for reading and writing.
    pub(super) writers: FdCache<NodeId>,
    /// The whiteout that others are made names of.
    pub(super) whiteouts: FdCache<()>,
    pub(super) listings: Listings,
    /// The nodes of names that were looked up lately.
    pub(super) recent: Recent,
    pub(super) count_locks: CountLocks,
    /// Held for writing while the names of two directories anywhere in the tree are locked, for reading while those of a
    /// directory and of one in it are: the one goes by ids, the other down the tree, and together they would not be an order.
    /// Lock order: before any `names`.
    pub(super) crossing: RwLock<()>,
    /// Held for writing while a directory is renamed, for reading while directories are opened from the root down.
    /// Lock order: after `names` and the `state` of files, before the `state` of directories.
    pub(super) renaming: RwLock<()>,
    /// The node of which a capability was removed last; see [`Overlay::setattr`].
    pub(super) capability_dropped: AtomicU64,
    /// What others changed in the layers, for what is believed of extended attributes.
    pub(super) foreign_changes: Epoch,
    pub(super) counts: Counts,
    /// Whether all names are in the table, for handles of an earlier mount.
    pub(super) searched: Searched,
    /// Who is told of changes; set once watching has begun.
    pub(super) listener: OnceLock<Arc<dyn Listener>>,
    /// Set once watching has begun.
    pub(super) watcher: OnceLock<Watcher>,
}

/// Who makes a request.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// File system user id.
    pub uid: u32,
    /// File system group id.
    pub gid: u32,
    /// Process (thread) id, 0 if the kernel asks for itself.
    pub pid: u32,
    /// The umask, for what the caller makes.
    pub umask: u32,
}

impl Caller {
    /// Whether the caller is in a group. The supplementary groups are looked up where it runs; who cannot be found has
    /// none.
    pub(super) fn is_in_group(&self, gid: u32) -> bool {
        if self.gid == gid || self.uid == 0 {
            return true;
        }
        let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", self.pid)) else { return false };
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
        groups.split_whitespace().any(|group| group.parse() == Ok(gid))
    }

    /// The mode that a change of an object's contents by this caller leaves: without suid, and without sgid where the
    /// group may execute or the caller is not in it.
    pub(super) fn without_privileges(&self, stat: &Stat) -> u32 {
        let mut mode = stat.mode & !libc::S_ISUID;
        if mode & libc::S_ISGID != 0 && (mode & libc::S_IXGRP != 0 || !self.is_in_group(stat.gid)) {
            mode &= !libc::S_ISGID;
        }
        mode
    }
}

/// What a lookup or a creation returns.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The node's number, one more lookup of which the kernel now holds.
    pub id: NodeId,
    /// Its attributes.
    pub attr: Stat,
    /// Whether the name and the attributes may be believed until a notice comes.
    pub lasting: Lasting,
}

/// For how long what the union says holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// A notice will come if it changes.
    Both,
    /// The name will be taken back if it changes, the attributes not.
    Name,
    /// The name will be taken back if it changes; the attributes may be others the moment after.
    NameOnly,
    /// Nobody will say when it changes.
    Neither,
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay")
            .field("layers", &self.layers)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Overlay {
    /// The node of a number. `ESTALE` for one that was forgotten.
    pub(super) fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.table.get(id).ok_or(Errno::ESTALE)
    }

    /// The root of the union.
    #[must_use]
    pub fn root(&self) -> NodeId {
        self.root.id
    }

    /// The kernel forgot `count` lookups of a node.
    pub fn forget(&self, id: NodeId, count: u64) {
        self.let_go(self.table.forget(id, count));
    }

    /// Forgets what the caches hold of nodes that left the table.
    pub(super) fn let_go(&self, nodes: Vec<Arc<Node>>) {
        for node in nodes {
            if node.dir.is_some() {
                self.unwatch(&node);
                self.dirs.remove(&(node.id, UPPER));
                for lower in node.lowers().iter() {
                    self.dirs.remove(&(node.id, lower.layer));
                }
                self.listings.forget(node.id);
            } else {
                self.readers.remove(&node.id);
                self.writers.remove(&node.id);
            }
        }
    }

    /// How many nodes the kernel remembers.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.table.len()
    }

    /// Any regular file that the kernel remembers.
    #[must_use]
    pub fn any_file(&self) -> Option<NodeId> {
        self.table.any(|node| node.kind == Kind::File)
    }

    /// The size and use of the file system that changes go to.
    pub fn statfs(&self) -> Result<FsStat> {
        let layer = self.layers.upper.as_ref().or(self.layers.lowers.first()).ok_or(Errno::EIO)?;
        sys::statfs(layer.root.as_fd())
    }

    /// The union is mounted: its upper gets an identity, and what is never synced is marked. That mark refuses the upper
    /// to the next mount, as the kernel's does, until somebody who knows better removes it.
    pub fn begin(&self) -> Result<()> {
        if let Err(errno) = self.keep_uuid() {
            log::warn!("the upper directory cannot be given a uuid: {errno}");
        }
        let Some(work) = self.work.as_ref().filter(|_| self.fsync == Fsync::Volatile) else { return Ok(()) };
        sys::mkdir(work.fd(), OsStr::new("incompat"), 0o755)?;
        let incompat = sys::open_dir(work.fd(), OsStr::new("incompat"))?;
        sys::mkdir(incompat.as_fd(), OsStr::new("volatile"), 0o755)
    }

    /// The file system is unmounted: others may have the layers from now on, even before the process has ended.
    pub fn release(&self) {
        for fd in self.layers.upper.iter().map(|upper| upper.root.as_fd()).chain(self.work.iter().map(WorkDir::fd)) {
            if let Err(errno) = sys::unlock(fd) {
                log::debug!("a layer cannot be unlocked: {errno}");
            }
        }
        // Closed now and not with the process, where closing the watches, which takes long, may come first.
        self.dirs.clear();
        self.readers.clear();
        self.writers.clear();
        self.whiteouts.clear();
    }

    /// The work directory. `EROFS` in a union without an upper.
    pub(super) fn work(&self) -> Result<&WorkDir> {
        self.work.as_ref().ok_or(Errno::EROFS)
    }

    /// Whether the union can be written to.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.work.is_some()
    }

    /// The directory of a node in one layer.
    ///
    /// Goes up to the nearest ancestor that is open already and down again by names, never through a path.
    pub(super) fn dir_fd(&self, node: &Arc<Node>, layer: LayerIndex) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = self.dirs.get(&(node.id, layer)) {
            return Ok(fd);
        }
        let _no_renames = self.renaming.read();
        let mut missing: Vec<(Arc<Node>, Arc<OsStr>)> = Vec::new();
        let mut current = node.clone();
        let mut fd = loop {
            if let Some(fd) = self.dirs.get(&(current.id, layer)) {
                break fd;
            }
            let state = current.state.read();
            let parent = match &state.place {
                Place::Nowhere(Nameless::Root) => break self.layers.get(layer).ok_or(Errno::ESTALE)?.root.clone(),
                Place::Nowhere(Nameless::Gone) => break state.rare.object.clone().ok_or(Errno::ESTALE)?,
                Place::In { parent, name } => {
                    if let Some((home, ino)) = current.home_and_number(layer) {
                        break Arc::new(self.open_home(layer, &home, ino)?);
                    }
                    missing.push((current.clone(), name.clone()));
                    parent.clone()
                }
            };
            drop(state);
            current = parent;
        };
        while let Some((node, name)) = missing.pop() {
            fd = Arc::new(sys::open_dir(fd.as_fd(), &name)?);
            self.dirs.insert((node.id, layer), fd.clone());
        }
        Ok(fd)
    }

    /// Calls `f` with the real object that stands for a node, and its layer. The node's name stays what it is meanwhile.
    pub(super) fn with_real<T>(&self, node: &Arc<Node>, f: impl FnOnce(At<'_>, LayerIndex) -> Result<T>) -> Result<T> {
        if node.kind == Kind::Dir {
            let (layer, object) = {
                let state = node.state.read();
                (
                    state.layer,
                    matches!(state.place, Place::Nowhere(Nameless::Gone)).then(|| state.rare.object.clone()).flatten(),
                )
            };
            let fd = match object {
                Some(fd) => fd,
                None => self.dir_fd(node, layer)?,
            };
            return f(At::Fd(fd.as_fd()), layer);
        }
        let state = node.state.read();
        if let (Some(entry), Some(index)) = (&state.rare.index, &self.index) {
            return f(index.at(entry), UPPER);
        }
        match &state.place {
            Place::In { parent, name } => {
                let dir = self.dir_fd(parent, state.layer)?;
                f(At::Name(dir.as_fd(), name), state.layer)
            }
            Place::Nowhere(Nameless::Gone) => {
                f(At::Fd(state.rare.object.as_ref().ok_or(Errno::ESTALE)?.as_fd()), state.layer)
            }
            Place::Nowhere(Nameless::Root) => Err(Errno::ESTALE),
        }
    }

    /// The attributes of a node, from its real object. `ESTALE` if another object has taken its place.
    pub(super) fn attr(&self, node: &Arc<Node>) -> Result<Stat> {
        let (real, indexed) = {
            let state = node.state.read();
            (state.real, state.rare.index.is_some())
        };
        let steady = (node.kind != Kind::Dir).then(|| self.keep_count(real));
        let stat = self.with_real(node, |at, layer| {
            let mut stat = self.stat_in(at, layer)?;
            if layer == UPPER && (indexed || stat.nlink > 1) {
                self.count_names_kept(at, &mut stat, None)?;
            }
            Ok(stat)
        })?;
        drop(steady);
        if RealId::of(&stat) != real && RealId::of(&stat) != node.state.read().real {
            return Err(Errno::ESTALE);
        }
        Ok(self.shown(node, stat))
    }

    /// What callers see of a real object's attributes.
    pub(super) fn shown(&self, node: &Node, mut stat: Stat) -> Stat {
        stat.ino = node.ino();
        self.show_ids(&mut stat);
        if stat.kind() != Kind::Dir {
            let state = node.state.read();
            if state.layer != UPPER && matches!(state.place, Place::Nowhere(Nameless::Gone)) {
                // Its name is hidden by a whiteout; the lower layer keeps it.
                stat.nlink = 0;
            }
            if let Some(data) = &state.rare.data {
                stat.blocks = data.blocks;
            }
        }
        if node.is_merged() {
            // As the kernel: the links of several directories cannot be counted.
            stat.nlink = 1;
        }
        stat
    }
}
