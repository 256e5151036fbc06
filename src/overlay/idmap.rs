//! User and group ids: which an object has on disk, and which callers see.
//!
//! Answers to fuse-overlayfs's `uidmapping=`, `gidmapping=` and `squash_to_*=`. Every id that comes from a layer goes
//! through [`Ids`] before a caller sees it, and every id that a caller gives before it goes to a layer: owners, the
//! entries of ACLs, and the user namespace's root in a capability. A union that maps nothing has none, and pays nothing.
//!
//! An id that no triple has becomes the overflow id, in either direction. Where the server's own user namespace has no
//! overflow id, what shows for it is an id that the namespace has: to the kernel an object of an unknown owner is one that
//! nobody may remove or rename (`EOVERFLOW`), which the kernel's overlay, knowing the true owner, has no need to say.

use std::ffi::OsStr;

use super::config::{IdMapping, IdRange};
use super::node::UPPER;
use super::superblock::{Caller, Overlay};
use crate::errno::{Errno, Result};
use crate::sys::{self, ACL_ACCESS, ACL_DEFAULT, Acl, At, Stat};

/// What ids become on their way between layers and callers.
#[derive(Debug)]
pub(super) struct Ids {
    uids: Map,
    gids: Map,
}

#[derive(Debug, Default)]
struct Map {
    ranges: Vec<IdRange>,
    /// All objects show this one.
    squash: Option<u32>,
    /// What stands for an id that no range has.
    overflow: u32,
    /// What shows in place of the overflow id, if the server's user namespace does not have it.
    stand_in: Option<u32>,
}

/// Which of the two kinds of id.
#[derive(Clone, Copy)]
enum Which {
    Uid,
    Gid,
}

impl Map {
    fn new(which: Which, ranges: &[IdRange], squash: Option<u32>) -> Map {
        let (overflow, namespace) = match which {
            Which::Uid => ("/proc/sys/kernel/overflowuid", "/proc/self/uid_map"),
            Which::Gid => ("/proc/sys/kernel/overflowgid", "/proc/self/gid_map"),
        };
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let overflow = read(overflow).trim().parse().unwrap_or(65534);
        Map { ranges: ranges.to_vec(), squash, overflow, stand_in: stand_in(&read(namespace), overflow) }
    }

    fn is_needed(&self) -> bool {
        !self.ranges.is_empty() || self.squash.is_some() || self.stand_in.is_some()
    }

    fn shown(&self, id: u32) -> u32 {
        if let Some(squash) = self.squash {
            return squash;
        }
        let shown = if self.ranges.is_empty() {
            id
        } else {
            let range = self.ranges.iter().find(|range| id.wrapping_sub(range.disk) < range.count);
            range.map_or(self.overflow, |range| range.shown + (id - range.disk))
        };
        match self.stand_in {
            Some(stand_in) if shown == self.overflow => stand_in,
            _ => shown,
        }
    }

    fn on_disk(&self, id: u32) -> u32 {
        if self.ranges.is_empty() {
            return id;
        }
        let range = self.ranges.iter().find(|range| id.wrapping_sub(range.shown) < range.count);
        range.map_or(self.overflow, |range| range.disk + (id - range.shown))
    }
}

/// The id that shows for those of whom the user namespace knows nothing: the last that it has, unless it has the overflow
/// id. `map` is the text of `uid_map` or `gid_map`.
fn stand_in(map: &str, overflow: u32) -> Option<u32> {
    let mut last = None;
    for line in map.lines() {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) = (numbers.next(), numbers.next(), numbers.next()) else {
            continue;
        };
        if overflow.wrapping_sub(first) < count {
            return None;
        }
        last = last.max(count.checked_sub(1).and_then(|span| first.checked_add(span)));
    }
    last
}

impl Ids {
    /// The maps of a union, if ids change at all.
    pub fn new(mapping: &IdMapping) -> Option<Ids> {
        let uids = Map::new(Which::Uid, &mapping.uids, mapping.squash_uid);
        let gids = Map::new(Which::Gid, &mapping.gids, mapping.squash_gid);
        (uids.is_needed() || gids.is_needed()).then_some(Ids { uids, gids })
    }

    /// Whether what owner an object has on disk shows to nobody, so that it does not matter if it cannot be given.
    fn is_squashed(&self) -> bool {
        self.uids.squash.is_some() || self.gids.squash.is_some()
    }

    fn acl(&self, value: &[u8], uid: impl Fn(u32) -> u32, gid: impl Fn(u32) -> u32) -> Option<Vec<u8>> {
        Acl::parse(value).map(|acl| acl.with_ids(uid, gid).to_xattr())
    }
}

/// The capability of a user namespace (`VFS_CAP_REVISION_3`) with its root's id, which is the last four bytes, changed.
fn capability(value: &[u8], root: impl Fn(u32) -> u32) -> Option<Vec<u8>> {
    const REVISION_3: u8 = 3;
    let (head, tail) = value.split_last_chunk::<4>()?;
    if head.len() != 20 || head.get(3) != Some(&REVISION_3) {
        return None;
    }
    Some([head, &root(u32::from_le_bytes(*tail)).to_le_bytes()].concat())
}

impl Overlay {
    /// Gives an object's owner on disk the ids that callers see.
    pub(super) fn show_ids(&self, stat: &mut Stat) {
        if let Some(ids) = &self.ids {
            stat.uid = ids.uids.shown(stat.uid);
            stat.gid = ids.gids.shown(stat.gid);
        }
    }

    /// The attributes of an object in the upper, with the owner that callers see. Locks nothing of the node.
    pub(super) fn owner_shown(&self, at: At<'_>) -> Result<Stat> {
        let mut stat = self.stat_in(at, UPPER)?;
        self.show_ids(&mut stat);
        Ok(stat)
    }

    /// Whoever makes a request, with the ids that what it makes has on disk.
    pub(super) fn caller_on_disk(&self, caller: &Caller) -> Caller {
        match &self.ids {
            Some(ids) => Caller { uid: ids.uids.on_disk(caller.uid), gid: ids.gids.on_disk(caller.gid), ..*caller },
            None => *caller,
        }
    }

    /// Changes the owner on disk. In a union that shows everything as one owner's it is tried only.
    pub(super) fn chown_on_disk(&self, at: At<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        match sys::chown(at, uid, gid) {
            Err(Errno::EPERM | Errno::EINVAL) if self.ids.as_ref().is_some_and(Ids::is_squashed) => Ok(()),
            result => result,
        }
    }

    /// The ids on disk of an owner that a caller names.
    pub(super) fn owner_on_disk(&self, uid: Option<u32>, gid: Option<u32>) -> (Option<u32>, Option<u32>) {
        match &self.ids {
            Some(ids) => (uid.map(|id| ids.uids.on_disk(id)), gid.map(|id| ids.gids.on_disk(id))),
            None => (uid, gid),
        }
    }

    /// The value of an attribute as callers see it.
    pub(super) fn xattr_shown(&self, name: &OsStr, value: Vec<u8>) -> Vec<u8> {
        let Some(ids) = &self.ids else { return value };
        let shown = if name == ACL_ACCESS || name == ACL_DEFAULT {
            ids.acl(&value, |id| ids.uids.shown(id), |id| ids.gids.shown(id))
        } else if name == "security.capability" {
            capability(&value, |id| ids.uids.shown(id))
        } else {
            None
        };
        shown.unwrap_or(value)
    }

    /// The value on disk of an attribute that a caller sets; `None` if it is the caller's.
    pub(super) fn xattr_on_disk(&self, name: &OsStr, value: &[u8]) -> Option<Vec<u8>> {
        let ids = self.ids.as_ref()?;
        if name == ACL_ACCESS || name == ACL_DEFAULT {
            ids.acl(value, |id| ids.uids.on_disk(id), |id| ids.gids.on_disk(id))
        } else if name == "security.capability" {
            capability(value, |id| ids.uids.on_disk(id))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(ranges: &[(u32, u32, u32)]) -> Map {
        let ranges = ranges.iter().map(|&(disk, shown, count)| IdRange { disk, shown, count }).collect();
        Map { ranges, overflow: 65534, ..Map::default() }
    }

    #[test]
    fn triples_map_both_ways_and_the_rest_overflows() {
        let map = map(&[(0, 1000, 1), (1, 100_000, 65536)]);
        for (disk, shown) in [(0, 1000), (1, 100_000), (65536, 165_535)] {
            assert_eq!((map.shown(disk), map.on_disk(shown)), (shown, disk));
        }
        assert_eq!((map.shown(65537), map.shown(u32::MAX)), (65534, 65534));
        assert_eq!((map.on_disk(0), map.on_disk(999), map.on_disk(165_536)), (65534, 65534, 65534));
    }

    #[test]
    fn the_whole_range_maps_without_an_overflow() {
        let map = map(&[(0, 0, u32::MAX)]);
        assert_eq!((map.shown(u32::MAX - 1), map.on_disk(u32::MAX - 1)), (u32::MAX - 1, u32::MAX - 1));
    }

    #[test]
    fn a_squashed_id_shows_for_everybody_and_changes_nothing_on_disk() {
        let squashed = Map { squash: Some(7), ..map(&[]) };
        assert_eq!((squashed.shown(0), squashed.shown(1000), squashed.on_disk(1000)), (7, 7, 1000));
    }

    #[test]
    fn a_namespace_without_the_overflow_id_shows_one_that_it_has() {
        assert_eq!(stand_in("         0          0 4294967295\n", 65534), None);
        assert_eq!(stand_in("0 1000 1\n1 100000 65536\n", 65534), None);
        assert_eq!(stand_in("0 65534 1\n", 65534), Some(0));
        assert_eq!(stand_in("0 1000 1\n1 100000 1000\n", 65534), Some(1000));
        assert_eq!(stand_in("", 65534), None);
        let alone = Map { stand_in: Some(0), ..map(&[]) };
        assert_eq!((alone.shown(65534), alone.shown(0), alone.is_needed()), (0, 0, true));
    }

    #[test]
    fn only_a_capability_of_a_namespace_has_an_id() {
        let v2 = [0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(capability(&v2, |_| 1), None);
        let v3 = [&[0, 0, 0, 3][..], &v2[4..], &1000u32.to_le_bytes()].concat();
        let mapped = capability(&v3, |id| id + 1).unwrap();
        assert_eq!((mapped.len(), &mapped[20..]), (24, &1001u32.to_le_bytes()[..]));
        assert_eq!(capability(b"", |_| 1), None);
    }
}
