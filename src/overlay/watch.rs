//! Coherence: what is changed in a layer behind the mount is noticed and told.
//!
//! Every directory of which something lasting was told is watched in each layer that has it, so what was told about its
//! names and their objects may be believed until a notice comes. Where the budget of watches ends, what is told lasts a
//! second only.
//!
//! Changes that come through the union raise events in the upper, too. They are recognised without a notice: a name by
//! the node that is known to be there, or by the list of names just removed; an object by the time of its last change,
//! which the operation that made the change has noted.
//!
//! Notices are given by a thread that serves no request and holds no lock, because taking one can make the kernel wait
//! for a directory that a request under way has locked.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::node::{LayerIndex, Node, NodeId, Place, RealId, UPPER};
use super::superblock::Overlay;
use super::table::Key;
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, Happening, Inotify, Kind, Stat, WatchId};

/// Where notices go: who remembers what the union said.
pub trait Listener: Send + Sync {
    /// Whatever was said of this name in this directory holds no longer.
    fn name_changed(&self, parent: NodeId, name: &OsStr);
    /// Whatever was said of the object's attributes and contents holds no longer; of a directory, its listing.
    fn object_changed(&self, node: NodeId);
    /// Whatever was said of the object's attributes holds no longer. May be called while a request is answered.
    fn attributes_changed(&self, node: NodeId);
}

/// Whether a copy-up changed the inode number that callers see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    Kept,
    Changed,
}

/// How long events are gathered before they are looked at, so that many about one name become one.
const GATHER: Duration = Duration::from_millis(50);

/// How often directories for which there was no watch are looked at.
const BETWEEN_LOOKS: Duration = Duration::from_millis(700);

/// For how long a removal is remembered as the union's own.
const OWN: Duration = Duration::from_secs(2);

/// The watches of a union.
#[derive(Debug)]
pub(super) struct Watcher {
    /// Two queues, so that a flood of the union's own changes to the upper cannot push out events of a lower.
    /// None if the user may have no more queues; then nothing is watched, but looked at.
    queues: Option<Queues>,
    /// Which directories a watch is for: usually one. A leaf of the lock order.
    watched: Mutex<Watched>,
    /// Names that the union itself just removed. A leaf of the lock order.
    removed: Mutex<Removed>,
    budget: AtomicUsize,
}

#[derive(Debug)]
struct Queues {
    lowers: Inotify,
    upper: Inotify,
}

#[derive(Debug, Default)]
struct Watched {
    lowers: HashMap<WatchId, SmallVec<[(NodeId, LayerIndex); 1]>>,
    upper: HashMap<WatchId, SmallVec<[(NodeId, LayerIndex); 1]>>,
}

/// Two generations of names, of which the older is dropped in time.
#[derive(Debug)]
struct Removed {
    since: Instant,
    names: [HashSet<(NodeId, OsString)>; 2],
}

/// What a directory node knows of its watches.
#[derive(Debug, Default)]
pub(super) struct Watches(Mutex<SmallVec<[(LayerIndex, WatchId); 1]>>);

impl Watches {
    /// Whether there is a watch for each layer of the directory.
    pub fn is_complete(&self, node: &Node) -> bool {
        self.0.lock().len() == node.lowers().len() + usize::from(node.in_upper())
    }
}

/// When an object was last changed through the union, as its ctime: 0 for never.
#[derive(Debug, Default)]
pub(super) struct OwnChange(AtomicU64);

impl OwnChange {
    fn stamp(stat: &Stat) -> u64 {
        (stat.ctime.sec.cast_unsigned() << 30) | u64::from(stat.ctime.nsec)
    }

    pub fn note(&self, stat: &Stat) {
        self.0.store(Self::stamp(stat), Ordering::Relaxed);
    }

    fn is(&self, stat: &Stat) -> bool {
        self.0.load(Ordering::Relaxed) == Self::stamp(stat)
    }
}

impl Watcher {
    fn new() -> Watcher {
        // Watches are the user's, not the mount's: leave some to others.
        let most = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches");
        let most = most.ok().and_then(|text| text.trim().parse::<usize>().ok()).unwrap_or(8192);
        let queues = Inotify::new().and_then(|lowers| Ok(Queues { lowers, upper: Inotify::new()? }));
        if let Err(errno) = &queues {
            log::warn!("layers cannot be watched ({errno}); they are looked at every second");
        }
        let budget = if queues.is_ok() { most / 4 * 3 } else { 0 };
        Watcher {
            queues: queues.ok(),
            watched: Mutex::default(),
            removed: Mutex::new(Removed { since: Instant::now(), names: Default::default() }),
            budget: AtomicUsize::new(budget),
        }
    }

    /// How many watches there are, and how many more there may be.
    pub fn extent(&self) -> (usize, usize) {
        let watched = self.watched.lock();
        (watched.lowers.len() + watched.upper.len(), self.budget.load(Ordering::Relaxed))
    }

    fn queue(&self, layer: LayerIndex) -> Option<&Inotify> {
        self.queues.as_ref().map(|queues| if layer == UPPER { &queues.upper } else { &queues.lowers })
    }

    /// Remembers that the union itself removed a name.
    fn note_removed(&self, parent: NodeId, name: &OsStr) {
        let mut removed = self.removed.lock();
        if removed.since.elapsed() > OWN {
            removed.since = Instant::now();
            removed.names.swap(0, 1);
            if let Some(current) = removed.names.first_mut() {
                current.clear();
            }
        }
        if let Some(current) = removed.names.first_mut() {
            current.insert((parent, name.to_owned()));
        }
    }

    fn removed_itself(&self, key: &(NodeId, OsString)) -> bool {
        self.removed.lock().names.iter().any(|names| names.contains(key))
    }

    fn end(&self, id: NodeId, layer: LayerIndex, watch: WatchId) {
        let mut watched = self.watched.lock();
        let map = if layer == UPPER { &mut watched.upper } else { &mut watched.lowers };
        let Some(users) = map.get_mut(&watch) else { return };
        users.retain(|user| *user != (id, layer));
        if !users.is_empty() {
            return;
        }
        map.remove(&watch);
        drop(watched);
        self.budget.fetch_add(1, Ordering::Relaxed);
        if let Some(Err(errno)) = self.queue(layer).map(|queue| queue.remove(watch)) {
            log::debug!("a watch cannot be ended: {errno}");
        }
    }
}

impl Overlay {
    /// Begins to watch: from now on what the union says of watched directories lasts, and changes are told to the
    /// listener. The thread ends with the union.
    ///
    /// # Errors
    /// When there is somebody who watches already, or no thread can be started.
    pub fn watch(self: &Arc<Overlay>, listener: impl Listener + 'static) -> Result<()> {
        let listener: Arc<dyn Listener> = Arc::new(listener);
        if self.listener.set(listener.clone()).is_err() || self.watcher.set(Watcher::new()).is_err() {
            return Err(Errno::EBUSY);
        }
        let overlay = Arc::downgrade(self);
        std::thread::Builder::new().name("plyfs-watch".into()).spawn(move || follow(&overlay, &*listener))?;
        Ok(())
    }

    /// Sees to it that a directory is watched in all its layers; false if it is not.
    ///
    /// Must be asked before what is to last is looked up, or a change in between would be missed.
    pub(super) fn is_watched(&self, node: &Arc<Node>) -> bool {
        let (Some(watcher), Some(dir)) = (self.watcher.get(), &node.dir) else { return false };
        let lowers = node.lowers();
        let in_upper = node.in_upper();
        let mut watches = dir.watches.0.lock();
        if watches.len() == lowers.len() + usize::from(in_upper) {
            return true;
        }
        let layers = in_upper.then_some(UPPER).into_iter().chain(lowers.iter().map(|lower| lower.layer));
        for layer in layers {
            if watches.iter().any(|(known, _)| *known == layer) {
                continue;
            }
            let Some(queue) = watcher.queue(layer).filter(|_| watcher.budget.load(Ordering::Relaxed) > 0) else {
                return false;
            };
            let added = self.dir_fd(node, layer).and_then(|fd| queue.add(fd.as_fd()));
            let Ok(watch) = added else {
                if let Err(Errno::ENOSPC) = added {
                    watcher.budget.store(0, Ordering::Relaxed);
                }
                return false;
            };
            watches.push((layer, watch));
            let mut watched = watcher.watched.lock();
            let map = if layer == UPPER { &mut watched.upper } else { &mut watched.lowers };
            let users = map.entry(watch).or_default();
            if users.is_empty() {
                watcher.budget.fetch_sub(1, Ordering::Relaxed);
            }
            users.push((node.id, layer));
        }
        true
    }

    /// Ends the watches of a directory that is forgotten.
    pub(super) fn unwatch(&self, node: &Node) {
        let (Some(watcher), Some(dir)) = (self.watcher.get(), &node.dir) else { return };
        let watches = std::mem::take(&mut *dir.watches.0.lock());
        for (layer, watch) in watches {
            watcher.end(node.id, layer, watch);
        }
    }

    /// The union itself removed a name in the upper.
    pub(super) fn note_removed(&self, parent: &Node, name: &OsStr) {
        if let Some(watcher) = self.watcher.get() {
            watcher.note_removed(parent.id, name);
        }
    }

    /// An object was copied up: of its attributes some are the copy's now. Where it keeps its number nothing has to be
    /// told: whatever a file is copied up for makes the kernel ask for its attributes again, or tells it of them.
    pub(super) fn note_copy_up(&self, node: &Node, parent: &Node, number: Number) {
        let Some(listener) = self.listener.get() else { return };
        if node.kind == Kind::Dir || number == Number::Changed {
            listener.attributes_changed(node.id);
        }
        if number == Number::Changed {
            // The listing tells the old one.
            listener.object_changed(parent.id);
        }
    }

    /// Attributes changed that no reply tells of.
    pub(super) fn note_attributes(&self, node: &Node) {
        if let Some(listener) = self.listener.get() {
            listener.attributes_changed(node.id);
        }
    }

    /// The union itself changed an object in the upper.
    pub(super) fn note_change(&self, node: &Node, at: At<'_>) {
        if self.watcher.get().is_some()
            && let Ok(stat) = sys::stat(at)
        {
            node.own_change.note(&stat);
        }
    }

    /// Tells what the events of one queue mean.
    fn tell(&self, listener: &dyn Listener, watcher: &Watcher, layer: LayerIndex) -> Result<()> {
        let mut events: HashSet<(WatchId, Happening, Option<OsString>)> = HashSet::new();
        let mut lost = false;
        let Some(queue) = watcher.queue(layer) else { return Ok(()) };
        queue.drain(|watch, what, name| {
            lost |= what == Happening::Overflow;
            events.insert((watch, what, name.map(OsStr::to_owned)));
        })?;
        if lost {
            log::info!("events were lost: everything is forgotten");
            self.forget_everything(listener, layer);
        }
        for (watch, what, name) in events {
            let users = {
                let watched = watcher.watched.lock();
                let map = if layer == UPPER { &watched.upper } else { &watched.lowers };
                map.get(&watch).cloned().unwrap_or_default()
            };
            for (id, layer) in users {
                let Some(node) = self.table.get(id) else { continue };
                match (what, &name) {
                    (Happening::Name, Some(name)) => self.name_happened(listener, watcher, &node, layer, name),
                    (Happening::Change, Some(name)) => self.object_happened(listener, &node, layer, name),
                    (Happening::Change, None) => self.directory_happened(listener, &node, layer),
                    (Happening::Ended, _) => {
                        self.foreign_changes.end();
                        if let Some(dir) = &node.dir {
                            dir.watches.0.lock().retain(|(_, known)| *known != watch);
                        }
                        watcher.end(id, layer, watch);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// A name came or went in a layer.
    fn name_happened(
        &self,
        listener: &dyn Listener,
        watcher: &Watcher,
        dir: &Arc<Node>,
        layer: LayerIndex,
        name: &OsStr,
    ) {
        if layer == UPPER && self.is_as_known(watcher, dir, name) {
            return;
        }
        self.foreign_changes.end();
        if let (Some(name), Some(state)) = (super::whiteout::hidden_name(name), &dir.dir) {
            state.wh_names.store(0, Ordering::Relaxed);
            for lower in state.lowers.read().iter() {
                lower.wh_names.store(0, Ordering::Relaxed);
            }
            listener.name_changed(dir.id, name);
        }
        self.listings.forget(dir.id);
        listener.name_changed(dir.id, name);
        // Whether or not the name was known: the listing and the times of the directory are others now.
        listener.object_changed(dir.id);
    }

    /// Whether the upper has under a name what the union knows to be there.
    fn is_as_known(&self, watcher: &Watcher, dir: &Arc<Node>, name: &OsStr) -> bool {
        let Ok(fd) = self.dir_fd(dir, UPPER) else { return false };
        match sys::stat(At::Name(fd.as_fd(), name)) {
            Ok(stat) if !stat.is_null_device() => {
                let node = self.table.find(&Key::Real(RealId::of(&stat)));
                node.is_some_and(|node| {
                    node.state.read().layer == UPPER && (node.kind != Kind::Dir || node.place().is(dir, name))
                })
            }
            _ => watcher.removed_itself(&(dir.id, name.to_owned())),
        }
    }

    /// The object of a name changed in a layer.
    fn object_happened(&self, listener: &dyn Listener, dir: &Arc<Node>, layer: LayerIndex, name: &OsStr) {
        let Ok(fd) = self.dir_fd(dir, layer) else { return };
        let Ok(stat) = sys::stat(At::Name(fd.as_fd(), name)) else { return };
        let node =
            self.table.find(&Key::Real(RealId::of(&stat))).or_else(|| self.table.find(&Key::Name(dir.id, name.into())));
        let Some(node) = node else { return };
        // Even if the last change was the union's own: it may have come right after one that was not.
        node.xattrs.forget();
        if layer == UPPER && node.own_change.is(&stat) {
            return;
        }
        self.foreign_changes.end();
        if node.state.read().layer == layer {
            listener.object_changed(node.id);
        }
        if node.kind == Kind::Dir {
            // It may have become opaque.
            listener.name_changed(dir.id, name);
        }
    }

    /// A watched directory itself changed in a layer.
    fn directory_happened(&self, listener: &dyn Listener, node: &Arc<Node>, layer: LayerIndex) {
        let Ok(fd) = self.dir_fd(node, layer) else { return };
        node.xattrs.forget();
        if layer == UPPER && sys::stat(At::Fd(fd.as_fd())).is_ok_and(|stat| node.own_change.is(&stat)) {
            return;
        }
        self.foreign_changes.end();
        listener.object_changed(node.id);
    }

    /// Looks at the directories that could not be watched. The kernel keeps a listing until the time of the directory
    /// changes, which for a merged one tells of one layer only.
    fn look_at_unwatched(&self, listener: &dyn Listener) {
        for node in self.table.nodes() {
            let Some(dir) = node.dir.as_ref().filter(|dir| node.is_merged() && !dir.watches.is_complete(&node)) else {
                continue;
            };
            let lowers = node.lowers();
            let layers = node.in_upper().then_some(UPPER).into_iter().chain(lowers.iter().map(|lower| lower.layer));
            let mut look = DefaultHasher::new();
            for layer in layers {
                let stat = self.dir_fd(&node, layer).and_then(|fd| sys::stat(At::Fd(fd.as_fd())));
                stat.map(|stat| (stat.ino, stat.mtime.sec, stat.mtime.nsec)).ok().hash(&mut look);
            }
            let look = look.finish().max(1);
            let before = dir.look.swap(look, Ordering::Relaxed);
            if before != look && before != 0 {
                self.listings.forget(node.id);
                listener.object_changed(node.id);
            }
        }
    }

    /// Takes back everything that was said of a layer's objects, after events were lost.
    fn forget_everything(&self, listener: &dyn Listener, layer: LayerIndex) {
        self.foreign_changes.end();
        for node in self.table.nodes() {
            let (place, real) = {
                let state = node.state.read();
                (state.place.clone(), state.layer)
            };
            if let Place::In { parent, name } = place
                && ((real == UPPER) == (layer == UPPER) || node.dir.is_some())
            {
                self.listings.forget(node.id);
                listener.name_changed(parent.id, &name);
                listener.object_changed(node.id);
            }
        }
        listener.object_changed(self.root.id);
    }
}

/// The thread: waits for events, lets them gather, tells what they mean.
fn follow(overlay: &Weak<Overlay>, listener: &dyn Listener) {
    let mut looked = Instant::now();
    loop {
        let Some(overlay) = overlay.upgrade() else { return };
        let Some(watcher) = overlay.watcher.get() else { return };
        let queues: Vec<&Inotify> = watcher.queues.iter().flat_map(|queues| [&queues.lowers, &queues.upper]).collect();
        let result = sys::wait_for_events(&queues, BETWEEN_LOOKS).and_then(|()| {
            std::thread::sleep(GATHER);
            overlay.tell(listener, watcher, UPPER + 1)?;
            overlay.tell(listener, watcher, UPPER)
        });
        if watcher.budget.load(Ordering::Relaxed) == 0 && looked.elapsed() >= BETWEEN_LOOKS {
            overlay.look_at_unwatched(listener);
            looked = Instant::now();
        }
        if overlay.table.shrink() {
            sys::trim_memory();
        }
        if let Err(errno) = result {
            log::error!("layers are not watched any more: {errno}");
            watcher.budget.store(0, Ordering::Relaxed);
        }
    }
}
