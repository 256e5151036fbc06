//! Coherence: what is changed in a layer behind the mount is noticed and told.
//!
//! Every directory of which something lasting was told is watched in each layer that has it, so what was told about its
//! names and their objects may be believed until a notice comes. Where the budget of watches ends, what is told lasts a
//! second only.
//!
//! Changes that come through the union raise events in the upper, too: `own_change` knows them. What the others mean is
//! for `events` to say.
//!
//! Notices are given by a thread that serves no request and holds no lock, because taking one can make the kernel wait
//! for a directory that a request under way has locked.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::node::{LayerIndex, Node, NodeId, UPPER};
use super::order::{Level, Mutex};
use super::own_change::{OwnNames, Rounds};
use super::superblock::Overlay;
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, Happening, Inotify, Stat, WatchId};

/// Where notices go: who remembers what the union said.
pub trait Listener: Send + Sync {
    /// Whatever was said of this name in this directory holds no longer.
    fn name_changed(&self, parent: NodeId, name: &OsStr);
    /// Whatever was said of the object's attributes and contents holds no longer; of a directory, its listing.
    fn object_changed(&self, node: NodeId);
    /// Whatever was said of the object's attributes holds no longer. May be called while a request is answered.
    fn attributes_changed(&self, node: NodeId);
}

/// How long events are gathered before they are looked at, so that many about one name become one.
const GATHER: Duration = Duration::from_millis(50);

/// How often directories for which there was no watch are looked at.
const BETWEEN_LOOKS: Duration = Duration::from_millis(700);

/// The size, in bytes, from which on a directory takes long to watch: some hundred names to a thousand. The system marks each
/// name that it has in memory, which for 50,000 of them took 5 ms.
const LARGE: u64 = 32 << 10;

/// Whether a directory takes long to watch, by what it looks like: then it waits until something in it is asked for.
pub(super) fn is_large(stat: &Stat) -> bool {
    stat.size >= LARGE
}

/// What happened, to what of a watched directory.
pub(super) type Event = (WatchId, Happening, Option<OsString>);

/// The watches of a union.
#[derive(Debug)]
pub(super) struct Watcher {
    /// Two queues, so that a flood of the union's own changes to the upper cannot push out events of a lower.
    /// None if the user may have no more queues; then nothing is watched, but looked at.
    queues: Option<Queues>,
    /// Which directories a watch is for: usually one. A leaf of the lock order.
    watched: Mutex<Watched>,
    pub removed: OwnNames,
    pub linked: OwnNames,
    pub rounds: Rounds,
    /// Events of the upper of which it could not be said whose doing they are: requests were under way. A leaf of the lock order.
    open: Mutex<HashSet<Event>>,
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

/// What a directory node knows of its watches.
#[derive(Debug)]
pub(super) struct Watches(Mutex<SmallVec<[(LayerIndex, WatchId); 1]>>);

impl Default for Watches {
    fn default() -> Watches {
        Watches(Mutex::new(Level::Watches, SmallVec::new()))
    }
}

impl Watches {
    /// Whether there is a watch for each layer of the directory.
    pub fn is_complete(&self, node: &Node) -> bool {
        self.0.lock().len() == node.lowers().len() + usize::from(node.in_upper())
    }

    /// One of them is no more.
    pub fn ended(&self, watch: WatchId) {
        self.0.lock().retain(|(_, known)| *known != watch);
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
            watched: Mutex::new(Level::Leaf, Watched::default()),
            removed: OwnNames::default(),
            linked: OwnNames::default(),
            rounds: Rounds::default(),
            open: Mutex::new(Level::Leaf, HashSet::new()),
            budget: AtomicUsize::new(budget),
        }
    }

    /// How many watches there are, and how many more there may be.
    pub fn extent(&self) -> (usize, usize) {
        let watched = self.watched.lock();
        (watched.lowers.len() + watched.upper.len(), self.budget.load(Ordering::Relaxed))
    }

    /// An event is to be looked at again.
    pub fn leave_open(&self, event: Event) {
        self.open.lock().insert(event);
    }

    /// The events that are to be looked at again.
    pub fn take_open(&self) -> HashSet<Event> {
        std::mem::take(&mut *self.open.lock())
    }

    /// How long to wait for events before looking again.
    fn patience(&self) -> Duration {
        if self.open.lock().is_empty() { BETWEEN_LOOKS } else { Duration::ZERO }
    }

    /// The directories that a watch is for.
    pub fn users(&self, layer: LayerIndex, watch: WatchId) -> SmallVec<[(NodeId, LayerIndex); 1]> {
        let watched = self.watched.lock();
        let map = if layer == UPPER { &watched.upper } else { &watched.lowers };
        map.get(&watch).cloned().unwrap_or_default()
    }

    pub fn queue(&self, layer: LayerIndex) -> Option<&Inotify> {
        self.queues.as_ref().map(|queues| if layer == UPPER { &queues.upper } else { &queues.lowers })
    }

    pub fn end(&self, id: NodeId, layer: LayerIndex, watch: WatchId) {
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
}

/// The thread: waits for events, lets them gather, tells what they mean.
fn follow(overlay: &Weak<Overlay>, listener: &dyn Listener) {
    let mut looked = Instant::now();
    loop {
        let Some(overlay) = overlay.upgrade() else { return };
        let Some(watcher) = overlay.watcher.get() else { return };
        let queues: Vec<&Inotify> = watcher.queues.iter().flat_map(|queues| [&queues.lowers, &queues.upper]).collect();
        let result = sys::wait_for_events(&queues, watcher.patience()).and_then(|()| {
            std::thread::sleep(GATHER);
            overlay.tell(listener, watcher, UPPER + 1)?;
            overlay.tell(listener, watcher, UPPER)?;
            watcher.rounds.end();
            Ok(())
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
