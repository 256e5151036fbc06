//! The union's own changes to the upper, which raise events as those of others do, and are to be known from them.
//!
//! A name that came is known by the node that is there, or, for a file with several names, from a list of names just made;
//! one that went from a list of names just removed; an object by the time of its last change, which the operation that made
//! the change has noted.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::node::{Node, NodeId};
use super::superblock::Overlay;
use crate::errno::Result;
use crate::sys::{self, At, BorrowedFd, Kind, Stat};

/// For how long a name is remembered as the union's own doing.
const OWN: Duration = Duration::from_secs(2);

/// Whether a copy-up changed the inode number that callers see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    Kept,
    Changed,
}

/// When an object was last changed through the union, as its ctime (0 for never), and whether it changes without it.
#[derive(Debug, Default)]
pub(super) struct OwnChange(AtomicU64, AtomicU8);

/// Clients have it open to write to it without us.
const UNHEARD: u8 = 1;
/// Somebody may have it mapped to write to it without us, and without an event.
const MAPPED: u8 = 2;

impl OwnChange {
    /// Writes may come that nobody here hears of; says whether that is the first time that it may be mapped.
    pub fn begin_unheard(&self, mapped: bool) -> bool {
        let flags = if mapped { UNHEARD | MAPPED } else { UNHEARD };
        let before = self.1.fetch_or(flags, Ordering::Relaxed);
        mapped && before & MAPPED == 0
    }

    /// No more of them; a mapping may stay for as long as the node.
    pub fn end_unheard(&self) {
        self.1.fetch_and(!UNHEARD, Ordering::Relaxed);
    }

    pub fn is_unheard(&self) -> bool {
        self.1.load(Ordering::Relaxed) & UNHEARD != 0
    }

    pub fn is_mapped(&self) -> bool {
        self.1.load(Ordering::Relaxed) & MAPPED != 0
    }

    fn stamp(stat: &Stat) -> u64 {
        (stat.ctime.sec.cast_unsigned() << 30) | u64::from(stat.ctime.nsec)
    }

    /// Whether it was ever changed through the union.
    fn is_noted(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    pub fn note(&self, stat: &Stat) {
        self.0.store(Self::stamp(stat), Ordering::Relaxed);
    }

    pub fn is(&self, stat: &Stat) -> bool {
        self.0.load(Ordering::Relaxed) == Self::stamp(stat)
    }
}

/// Names that the union itself just removed, or made: two generations, of which the older is dropped in time. A leaf of the lock
/// order.
#[derive(Debug)]
pub(super) struct OwnNames(Mutex<Generations>);

#[derive(Debug)]
struct Generations {
    since: Instant,
    names: [HashSet<(NodeId, OsString)>; 2],
}

impl Default for OwnNames {
    fn default() -> OwnNames {
        OwnNames(Mutex::new(Generations { since: Instant::now(), names: Default::default() }))
    }
}

impl OwnNames {
    /// Remembers a name.
    fn note(&self, parent: NodeId, name: &OsStr) {
        let mut known = self.0.lock();
        if known.since.elapsed() > OWN {
            known.since = Instant::now();
            known.names.swap(0, 1);
            if let Some(current) = known.names.first_mut() {
                current.clear();
            }
        }
        if let Some(current) = known.names.first_mut() {
            current.insert((parent, name.to_owned()));
        }
    }

    /// Whether it was noted.
    pub fn has(&self, key: &(NodeId, OsString)) -> bool {
        self.0.lock().names.iter().any(|names| names.contains(key))
    }
}

impl Overlay {
    /// The union itself removed a name in the upper.
    pub(super) fn note_removed(&self, parent: &Node, name: &OsStr) {
        if let Some(watcher) = self.watcher.get() {
            watcher.removed.note(parent.id, name);
        }
    }

    /// The union itself gave a file in the upper one more name, or moved one of several.
    pub(super) fn note_linked(&self, parent: &Node, name: &OsStr) {
        if let Some(watcher) = self.watcher.get() {
            watcher.linked.note(parent.id, name);
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

    /// Makes, moves or removes names in directories of the upper. That changes the directories themselves, without an event
    /// of their own; but the event of an earlier change, such as the mark that a new directory gets, may not have been
    /// looked at yet, and would not be recognised by a time that is not that of the last change any more.
    pub(super) fn change_names<T>(
        &self,
        dirs: &[(&Node, BorrowedFd<'_>)],
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let as_noted: SmallVec<[_; 2]> = dirs
            .iter()
            .filter(|(dir, _)| dir.own_change.is_noted() && self.watcher.get().is_some())
            // What others did meanwhile is not to be taken for the union's.
            .filter(|(dir, fd)| sys::stat(At::Fd(*fd)).is_ok_and(|stat| dir.own_change.is(&stat)))
            .collect();
        let result = change();
        for (dir, fd) in as_noted {
            self.note_change(dir, At::Fd(*fd));
        }
        result
    }

    /// The union itself changed an object in the upper.
    pub(super) fn note_change(&self, node: &Node, at: At<'_>) {
        if self.watcher.get().is_some()
            && let Ok(stat) = sys::stat(at)
        {
            node.own_change.note(&stat);
        }
    }
}
