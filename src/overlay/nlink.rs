//! How many names the union has for a file that the index holds.
//!
//! Owns: the count, which is kept with the copy (`nlink`) as a difference to what its file system counts or to what the lower
//! does, and the locks over its changes. Answers to `ovl_get_nlink` and the `ovl_nlink_start` to `ovl_nlink_end` of the kernel.
//!
//! Must never: change a name of a counted object, or the count, without [`CountLocks`]: the names lie in any directories, whose
//! own locks keep nobody from the others.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::index::entry_name;
use super::node::{LayerIndex, Node, RealId, State, UPPER};
use super::order::{Level, ReadGuard, RwLock, WriteGuard};
use super::origin::Origin;
use super::superblock::Overlay;
use super::xattr::Mark;
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, Kind, Mode, OFlags, Stat};

/// How many locks there are: enough for as many requests as are answered at once to seldom meet.
const LOCKS: usize = 32;

/// Held for writing while a name of a counted object comes or goes, from the first look at its count to the last change of it;
/// for reading while both of the numbers are read of which the count consists. An object is told by its inode, because not
/// every one that loses a name has a node; some share a lock. Lock order: after `names`, before the `state` of files.
#[derive(Debug)]
pub(super) struct CountLocks([RwLock<()>; LOCKS]);

impl Default for CountLocks {
    fn default() -> CountLocks {
        CountLocks(std::array::from_fn(|_| RwLock::new(Level::Counting, ())))
    }
}

impl CountLocks {
    fn of(&self, real: RealId) -> Option<&RwLock<()>> {
        // Neighbours have different ones.
        self.0.get(usize::try_from(real.ino % LOCKS as u64).unwrap_or_default())
    }
}

/// An object in the upper whose names are counted, and one of them is about to go.
pub(super) struct Counted<'a> {
    object: OwnedFd,
    /// Its entry in the index, if the name is its last.
    entry: Option<OsString>,
    _held: Option<WriteGuard<'a, ()>>,
}

/// The difference that a mark tells, and to which count: `U+1` to that of the upper, `L-1` to that of the lower.
fn difference(mark: &[u8]) -> Option<(u8, i64)> {
    let (kind, number) = mark.split_first().filter(|(kind, _)| matches!(kind, b'U' | b'L'))?;
    let number = std::str::from_utf8(number).ok()?.parse::<i32>().ok()?;
    Some((*kind, i64::from(number)))
}

impl Overlay {
    /// Nobody else changes the count of an object's names, or reads it, for as long as this is held.
    pub(super) fn hold_count(&self, real: RealId) -> Option<WriteGuard<'_, ()>> {
        self.index.as_ref().and_then(|_| self.count_locks.of(real)).map(RwLock::write)
    }

    /// Nobody changes the count of an object's names for as long as this is held.
    pub(super) fn keep_count(&self, real: RealId) -> Option<ReadGuard<'_, ()>> {
        self.index.as_ref().and_then(|_| self.count_locks.of(real)).map(RwLock::read)
    }

    /// Gives what was found in the upper the number of names that the union has for it.
    pub(super) fn count_names(&self, at: At<'_>, stat: &mut Stat, lower: Option<u32>) -> Result<()> {
        if self.index.is_none() || stat.is_dir() || stat.nlink == 0 || self.own_mark(at, Mark::Nlink)?.is_none() {
            return Ok(());
        }
        let _steady = self.keep_count(RealId::of(stat));
        stat.nlink = sys::stat(at)?.nlink;
        self.count_names_kept(at, stat, lower)
    }

    /// The same of attributes that were read since the count is kept as it is.
    pub(super) fn count_names_kept(&self, at: At<'_>, stat: &mut Stat, lower: Option<u32>) -> Result<()> {
        if self.index.is_none() || stat.is_dir() || stat.nlink == 0 {
            return Ok(());
        }
        let Some(mark) = self.own_mark(at, Mark::Nlink)? else { return Ok(()) };
        let union = match difference(&mark) {
            Some((b'U', more)) => i64::from(stat.nlink) + more,
            Some((_, more)) => match lower.or_else(|| self.names_of_origin(at)) {
                Some(lower) => i64::from(lower) + more,
                None => i64::from(stat.nlink) - 1,
            },
            None => i64::from(stat.nlink),
        };
        stat.nlink = u32::try_from(union).unwrap_or(1);
        Ok(())
    }

    fn names_of_origin(&self, at: At<'_>) -> Option<u32> {
        let origin = Origin::decode(&self.own_mark(at, Mark::Origin).ok()??)?;
        self.layers.lowers.iter().find_map(|layer| {
            let fd = sys::open_handle(layer.root.as_fd(), &origin.handle).ok()?;
            Some(sys::stat(At::Fd(fd.as_fd())).ok()?.nlink)
        })
    }

    /// The union has so many names more than the upper (`U`) or the lower (`L`) counts.
    fn count_from(&self, at: At<'_>, side: char, more: i64) -> Result<()> {
        self.set_mark_in_place(at, Mark::Nlink, format!("{side}{more:+}").as_bytes())
    }

    /// Begins the count of a copy that nobody can see yet: its names are the lower's, and the index is one, too.
    pub(super) fn begin_count(&self, copy: At<'_>, lower: &Stat) -> Result<()> {
        self.count_from(copy, 'U', i64::from(lower.nlink) - 1)
    }

    /// Makes a name that the union has had all along one of the upper's, too. Meanwhile the names are counted from the lower's,
    /// whose number does not change, so that the count is right whatever happens in between; the next mount sees to the rest.
    /// Where the lower is not to be found (without privilege) a crash right after the link leaves one name too many counted.
    pub(super) fn link_counted<T>(&self, at: At<'_>, link: impl FnOnce() -> Result<T>) -> Result<T> {
        let _alone = self.hold_count(RealId::of(&sys::stat(at)?));
        let Some((union, _)) = self.count_by_upper(at)? else { return link() };
        if let Some(lower) = self.names_of_origin(at) {
            self.count_from(at, 'L', union - i64::from(lower))?;
        }
        let linked = link();
        let settle = || self.count_from(at, 'U', union - i64::from(sys::stat(at)?.nlink));
        // The name is there, and an error would say that it is not: what failed once is asked again.
        if let Err(errno) = settle().or_else(|_| settle()) {
            // Counted from the lower's the number is right, too; before it changes it is counted from the upper's again.
            log::warn!("the names of a file in the index are still counted from the lower's: {errno}");
        }
        linked
    }

    /// The upper object of a name that is about to go, if its names are counted. All that may fail is done now: once the name
    /// is gone, an error would say that it is not. Nobody else changes its count until [`Overlay::name_removed`].
    pub(super) fn object_to_count(
        &self,
        dir: sys::BorrowedFd<'_>,
        name: &OsStr,
        layer: LayerIndex,
    ) -> Result<Option<Counted<'_>>> {
        if self.index.is_none() || layer != UPPER {
            return Ok(None);
        }
        let object = match sys::open(dir, name, OFlags::PATH, Mode::empty()) {
            Ok(object) => object,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let at = At::Fd(object.as_fd());
        let held = self.hold_count(RealId::of(&sys::stat(at)?));
        let Some((union, upper)) = self.count_by_upper(at)? else { return Ok(None) };
        let origin = match union <= 1 {
            // A layer got names that nobody counted: from now on those count that the upper has, besides the entry.
            true if upper > 2 => self.count_from(at, 'U', -1).map(|()| None)?,
            true => self.own_mark(at, Mark::Origin)?,
            false => None,
        };
        Ok(Some(Counted { object, entry: origin.as_deref().map(entry_name), _held: held }))
    }

    /// How many names the union and the upper have for an object. They are counted from the upper's from now on: so the count
    /// goes along with each name that comes or goes, in one step. None for what is not counted. Call with the count held.
    pub(super) fn count_by_upper(&self, at: At<'_>) -> Result<Option<(i64, i64)>> {
        if self.index.is_none() {
            return Ok(None);
        }
        let stat = sys::stat(at)?;
        if stat.is_dir() || stat.nlink == 0 {
            return Ok(None);
        }
        let upper = i64::from(stat.nlink);
        let name = Mark::Nlink.name(self.namespace);
        let mark = match self.despite_mode(at, || sys::get_xattr(at, OsStr::new(&name))) {
            Err(Errno::ENODATA | Errno::ENOTSUP | Errno::EPERM) => return Ok(None),
            mark => mark?,
        };
        match difference(&mark) {
            Some((b'U', more)) => Ok(Some((upper + more, upper))),
            // From a link that was cut short. Where the lower is not found, which takes privilege, that is how it stays.
            Some((_, more)) => {
                let Some(lower) = self.names_of_origin(at) else { return Ok(None) };
                let union = i64::from(lower) + more;
                self.count_from(at, 'U', union - upper)?;
                Ok(Some((union, upper)))
            }
            None => Ok(None),
        }
    }

    /// A name of a counted object was removed: the last one takes the index entry with it, and whoever has the object open
    /// goes on with the object itself. Returns the nodes to let go once no state is locked.
    pub(super) fn name_removed(&self, counted: Counted<'_>, of: Option<(&Arc<Node>, &mut State)>) -> Vec<Arc<Node>> {
        let (Some(index), Some(entry)) = (&self.index, counted.entry) else { return Vec::new() };
        if let Err(errno) = self.retire(index, &entry, Kind::File) {
            // No name leads to it, and the next mount removes it.
            log::warn!("index: {} is of no name any more, and stays: {errno}", entry.display());
        }
        let Some((node, state)) = of else { return Vec::new() };
        state.rare.set_index(None);
        state.rare.object.get_or_insert_with(|| Arc::new(counted.object));
        self.lose_name(node, state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_signed_and_of_one_of_two_counts() {
        assert_eq!(difference(b"U+2"), Some((b'U', 2)));
        assert_eq!(difference(b"L-1"), Some((b'L', -1)));
        for bad in [&b""[..], b"U", b"X+1", b"U+99999999999", b"+1"] {
            assert_eq!(difference(bad), None);
        }
    }
}
