//! Locks that hold themselves to the order that `lib.rs` writes down.
//!
//! Each lock has its level. In a debug build every thread knows which it holds, and to take one whose turn is over is a
//! panic with both names, whether or not anybody else happens to be in the way just then. In a release build these are the
//! locks of `parking_lot` and nothing else.
//!
//! Must never: be taken around a system call below [`Level::Table`].

use std::ops::{Deref, DerefMut};

/// A row of the lock table: what is held may be followed by what comes later, never by what comes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// `Node::copying`.
    Copying,
    /// `Overlay::crossing`.
    Crossing,
    /// `DirState::names`; several, in an order that `crossing` makes one.
    Names,
    /// `Watches`.
    Watches,
    /// `CountLocks`.
    Counting,
    /// `Node::state` of what is no directory; several, in order of their ids.
    File,
    /// `Overlay::renaming`.
    Renaming,
    /// `Node::state` of a directory; several, in order of their ids.
    Directory,
    /// The node table.
    Table,
    /// `Node::remembered`; several, under the table's.
    Remembered,
    /// A leaf: caches, maps, flags.
    Leaf,
}

impl Level {
    #[cfg(debug_assertions)]
    fn takes_several(self) -> bool {
        matches!(self, Level::Names | Level::File | Level::Directory | Level::Remembered)
    }
}

/// A lock's level, where it is looked at.
#[derive(Debug)]
struct Tag {
    #[cfg(debug_assertions)]
    level: Level,
}

impl Tag {
    const fn new(_level: Level) -> Tag {
        Tag {
            #[cfg(debug_assertions)]
            level: _level,
        }
    }
}

/// That a lock is held, as long as this lives.
#[derive(Debug)]
struct Held {
    #[cfg(debug_assertions)]
    lock: usize,
}

#[cfg(debug_assertions)]
mod held {
    use std::cell::RefCell;

    use super::{Held, Level, Tag};

    thread_local! {
        static HELD: RefCell<Vec<(Level, usize)>> = const { RefCell::new(Vec::new()) };
    }

    impl Held {
        /// Call before waiting for the lock: a wrong order is wrong even if nobody is in the way.
        pub fn begin(tag: &Tag, lock: usize) -> Held {
            let level = tag.level;
            let wrong = HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                let wrong = held
                    .iter()
                    .copied()
                    .find(|(other, at)| *other > level || *at == lock || (*other == level && !level.takes_several()));
                held.push((level, lock));
                wrong
            });
            let this = Held { lock };
            if let Ok(Some((other, _))) = wrong
                && !std::thread::panicking()
            {
                let fault = format!("lock order: {level:?} is taken while {other:?} is held");
                log::error!("{fault}");
                eprintln!("{fault}\n{}", std::backtrace::Backtrace::force_capture());
                std::panic::resume_unwind(Box::new(fault));
            }
            this
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                if let Some(last) = held.iter().rposition(|(_, lock)| *lock == self.lock) {
                    held.remove(last);
                }
            })
            .unwrap_or_default();
        }
    }
}

#[cfg(not(debug_assertions))]
impl Held {
    #[inline(always)]
    fn begin(_tag: &Tag, _lock: usize) -> Held {
        Held {}
    }
}

/// A lock's guard, with the knowledge that it is held.
#[derive(Debug)]
pub(super) struct Guard<G> {
    // Let go of first.
    inner: G,
    _held: Held,
}

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;

    #[inline]
    fn deref(&self) -> &G::Target {
        &self.inner
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    #[inline]
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.inner
    }
}

/// A [`RwLock`] held alone.
pub(super) type WriteGuard<'a, T> = Guard<parking_lot::RwLockWriteGuard<'a, T>>;
/// A [`RwLock`] held with others.
pub(super) type ReadGuard<'a, T> = Guard<parking_lot::RwLockReadGuard<'a, T>>;
/// A held [`Mutex`].
pub(super) type MutexGuard<'a, T> = Guard<parking_lot::MutexGuard<'a, T>>;

/// `parking_lot::Mutex` with a level.
#[derive(Debug)]
pub(super) struct Mutex<T> {
    tag: Tag,
    inner: parking_lot::Mutex<T>,
}

impl<T> Mutex<T> {
    pub const fn new(level: Level, value: T) -> Mutex<T> {
        Mutex { tag: Tag::new(level), inner: parking_lot::Mutex::new(value) }
    }

    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let held = Held::begin(&self.tag, (&raw const self.inner).addr());
        Guard { inner: self.inner.lock(), _held: held }
    }

    /// Without a lock, of what nobody else can see.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}

/// `parking_lot::RwLock` with a level.
#[derive(Debug)]
pub(super) struct RwLock<T> {
    tag: Tag,
    inner: parking_lot::RwLock<T>,
}

impl<T> RwLock<T> {
    pub const fn new(level: Level, value: T) -> RwLock<T> {
        RwLock { tag: Tag::new(level), inner: parking_lot::RwLock::new(value) }
    }

    #[inline]
    pub fn read(&self) -> ReadGuard<'_, T> {
        let held = Held::begin(&self.tag, (&raw const self.inner).addr());
        Guard { inner: self.inner.read(), _held: held }
    }

    #[inline]
    pub fn write(&self) -> WriteGuard<'_, T> {
        let held = Held::begin(&self.tag, (&raw const self.inner).addr());
        Guard { inner: self.inner.write(), _held: held }
    }

    /// Without a lock, of what nobody else can see.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}

#[cfg(test)]
#[cfg(debug_assertions)]
mod tests {
    use super::*;

    /// Whether it is refused. In a thread of its own, which ends with what it holds.
    fn is_refused(wrong: impl FnOnce() + Send) -> bool {
        std::thread::scope(|scope| scope.spawn(wrong).join().is_err())
    }

    #[test]
    fn the_order_of_the_table_is_kept() {
        let (names, state) = (RwLock::new(Level::Names, ()), RwLock::new(Level::File, ()));
        assert!(!is_refused(|| drop((names.read(), state.write()))));
        assert!(is_refused(|| drop((state.write(), names.read()))));
        // What was let go of is out of the way, in whatever order.
        assert!(!is_refused(|| {
            let (one, other) = (names.read(), state.read());
            drop(one);
            drop(other);
            drop(names.write());
        }));
    }

    #[test]
    fn what_is_to_be_held_alone_is_held_alone() {
        let copying = [Mutex::new(Level::Copying, ()), Mutex::new(Level::Copying, ())];
        assert!(is_refused(|| drop((copying[0].lock(), copying[1].lock()))));
        let names = [RwLock::new(Level::Names, ()), RwLock::new(Level::Names, ())];
        assert!(!is_refused(|| drop((names[0].write(), names[1].write()))));
        // Twice the same waits for itself as soon as somebody else waits in between.
        assert!(is_refused(|| drop((names[0].read(), names[0].read()))));
    }

    #[test]
    fn nothing_is_taken_below_a_leaf() {
        let (leaf, table) = (Mutex::new(Level::Leaf, ()), Mutex::new(Level::Table, ()));
        assert!(!is_refused(|| drop((table.lock(), leaf.lock()))));
        assert!(is_refused(|| drop((leaf.lock(), table.lock()))));
    }
}
