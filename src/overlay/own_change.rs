//! The union's own changes to the upper, which raise events as those of others do, and are to be known from them.
//!
//! A name that came is known by the node that is there, or, for a file with several names, from a list of names just made;
//! one that went from a list of names just removed; an object by the time of its last change, which the operation that made
//! the change has noted.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
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

/// When an object was last changed through the union, and whether it changes without it.
#[derive(Debug, Default)]
pub(super) struct OwnChange {
    /// The ctime that the change left, 0 for never.
    last: AtomicU64,
    /// The round of events in which the last change came that raises one ([`Rounds`]); what comes of names leaves it.
    round: AtomicU32,
    /// How many requests change its data at this moment, and have not noted what they left.
    under_way: AtomicU16,
    flags: AtomicU8,
}

/// The data of an object changes for as long as this is there.
#[derive(Debug)]
pub(super) struct UnderWay<'a>(&'a OwnChange);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Release);
    }
}

/// Whose doing an object's last change was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    Own,
    /// The union changes it right now, and has not said yet what that left.
    Open,
    /// Not the union's, as far as it knows.
    Others,
}

/// Counts how often all events of the upper that had come were looked at.
///
/// An event that came in one round was looked at when the next but one begins: the look that ends the first may have begun
/// before it.
#[derive(Debug)]
pub(super) struct Rounds(AtomicU32);

impl Default for Rounds {
    /// Two after the round of what never raised an event.
    fn default() -> Rounds {
        Rounds(AtomicU32::new(2))
    }
}

impl Rounds {
    /// All that had come when the look began was looked at.
    pub fn end(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    fn now(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

/// Clients have it open to write to it without us.
const UNHEARD: u8 = 1;
/// Somebody may have it mapped to write to it without us, and without an event.
const MAPPED: u8 = 2;
/// The kernel was told the mode that a write would leave, before it came.
const TOLD_AHEAD: u8 = 4;

impl OwnChange {
    /// Writes may come that nobody here hears of; says whether that is the first time that it may be mapped.
    pub fn begin_unheard(&self, mapped: bool) -> bool {
        let flags = if mapped { UNHEARD | MAPPED } else { UNHEARD };
        let before = self.flags.fetch_or(flags, Ordering::Relaxed);
        mapped && before & MAPPED == 0
    }

    /// No more of them; a mapping may stay for as long as the node.
    pub fn end_unheard(&self) {
        self.flags.fetch_and(!UNHEARD, Ordering::Relaxed);
    }

    /// The kernel is told what a write would leave, which may never come. That stays known for as long as the node.
    pub fn tell_ahead(&self) {
        self.flags.fetch_or(TOLD_AHEAD, Ordering::Relaxed);
    }

    pub fn is_told_ahead(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & TOLD_AHEAD != 0
    }

    pub fn is_unheard(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & UNHEARD != 0
    }

    pub fn is_mapped(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & MAPPED != 0
    }

    fn stamp(stat: &Stat) -> u64 {
        (stat.ctime.sec.cast_unsigned() << 30) | u64::from(stat.ctime.nsec)
    }

    /// Whether an event of a change through the union may not have been looked at yet.
    fn is_awaited(&self, now: u32) -> bool {
        self.last.load(Ordering::Relaxed) != 0 && now.wrapping_sub(self.round.load(Ordering::Relaxed)) < 2
    }

    /// The last change left it like this, without an event.
    pub fn note_quiet(&self, stat: &Stat) {
        self.last.store(Self::stamp(stat), Ordering::Relaxed);
    }

    /// The last change left it like this, and raised an event.
    fn note(&self, stat: &Stat, now: u32) {
        self.round.store(now, Ordering::Relaxed);
        self.note_quiet(stat);
    }

    pub fn is(&self, stat: &Stat) -> bool {
        self.last.load(Ordering::Relaxed) == Self::stamp(stat)
    }

    /// The data is about to change. To be kept until the change is noted.
    #[must_use]
    pub fn begin(&self) -> UnderWay<'_> {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        UnderWay(self)
    }

    /// Whose change was the last, by a look at the object.
    pub fn whose(&self, look: impl FnOnce() -> Result<Stat>) -> Result<Whose> {
        let before = self.last.load(Ordering::SeqCst);
        let stat = look()?;
        // What began after the look has left no trace in it; what ended since then has noted what is to be seen there.
        let open = self.under_way.load(Ordering::Acquire) > 0;
        Ok(match self.last.load(Ordering::Acquire) {
            last if last == Self::stamp(&stat) => Whose::Own,
            last if open || last != before => Whose::Open,
            _ => Whose::Others,
        })
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
    /// looked at yet, and would not be recognised by a time that is not that of the last change any more. A directory of
    /// which no event is awaited is not looked at: names come and go in it at no further cost.
    pub(super) fn change_names<T>(
        &self,
        dirs: &[(&Node, BorrowedFd<'_>)],
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let as_noted: SmallVec<[_; 2]> = dirs
            .iter()
            .filter(|(dir, _)| self.awaits_own(dir))
            // What others did meanwhile is not to be taken for the union's.
            .filter(|(dir, fd)| sys::stat(At::Fd(*fd)).is_ok_and(|stat| dir.own_change.is(&stat)))
            .collect();
        let result = change();
        for (dir, fd) in as_noted {
            if let Ok(stat) = sys::stat(At::Fd(*fd)) {
                dir.own_change.note_quiet(&stat);
            }
        }
        result
    }

    /// Whether an event of the union's own change of an object may still be looked at.
    fn awaits_own(&self, node: &Node) -> bool {
        self.watcher.get().is_some_and(|watcher| node.own_change.is_awaited(watcher.rounds.now()))
    }

    /// The union itself changed an object in the upper, and this is what it is like now.
    pub(super) fn note_as(&self, node: &Node, stat: &Stat) {
        if let Some(watcher) = self.watcher.get() {
            node.own_change.note(stat, watcher.rounds.now());
        }
    }

    /// The union itself changed an object in the upper. What it is like now, if it was looked at.
    pub(super) fn note_change(&self, node: &Node, at: At<'_>) -> Option<Stat> {
        let stat = self.watcher.get().and_then(|_| sys::stat(at).ok())?;
        self.note_as(node, &stat);
        Some(stat)
    }

    /// The union itself moved an object, which changes its time and raises no event of it.
    pub(super) fn note_move(&self, node: &Node, at: At<'_>) {
        if self.awaits_own(node)
            && let Ok(stat) = sys::stat(at)
        {
            node.own_change.note_quiet(&stat);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::AsFd;

    #[test]
    fn whose_a_change_is_stays_open_until_it_is_noted() {
        let (dir, change) = (tempfile::tempdir().unwrap(), OwnChange::default());
        let file = std::fs::File::create(dir.path().join("f")).unwrap();
        let look = || sys::stat(At::Fd(file.as_fd()));
        let whose = || change.whose(look).unwrap();
        assert_eq!(whose(), Whose::Others);
        let under_way = change.begin();
        assert_eq!(whose(), Whose::Open);
        change.note(&look().unwrap(), 1);
        assert_eq!(whose(), Whose::Own);
        drop(under_way);
        assert_eq!(whose(), Whose::Own);
        std::thread::sleep(Duration::from_millis(20));
        file.set_len(1).unwrap();
        assert_eq!(whose(), Whose::Others);
        // It is noted between the look and the answer.
        let noted_meanwhile = change.whose(|| {
            let seen = look()?;
            std::thread::sleep(Duration::from_millis(20));
            file.set_len(2).unwrap();
            change.note(&look()?, 2);
            Ok(seen)
        });
        assert_eq!(noted_meanwhile, Ok(Whose::Open));
    }
}
