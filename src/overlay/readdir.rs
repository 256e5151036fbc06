//! Merged listings.
//!
//! Answers to the kernel's `fs/overlayfs/readdir.c`. A listing has each visible name once, in the order of a keyed hash of
//! the name; the hash is also the cookie with which a reader goes on. So no state has to be kept for a reader: a listing
//! can be built anew at any time and continues where it was, whatever came or went meanwhile.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lru::LruCache;
use parking_lot::MutexGuard;
use smallvec::SmallVec;

use super::layer::FileSystem;
use super::node::{LayerIndex, LowerDir, Node, NodeId, UPPER};
use super::order::{Level, Mutex};
use super::resolve::From;
use super::superblock::{Caller, Entry, Lasting, Overlay};
use super::whiteout::{WH_OPAQUE, WH_PREFIX, is_wh_name};
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, Kind, Position};

/// Cookies below this one are for `.` and `..`.
const FIRST_COOKIE: u64 = 3;

/// One name of a directory, as a reader gets it.
#[derive(Debug)]
pub struct Dirent<'a> {
    /// The name.
    pub name: &'a OsStr,
    /// The inode number that a lookup would give.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// With this a reader goes on after the entry.
    pub cookie: u64,
}

/// Whether a reader wants more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// The entry was taken, or is to be given whole.
    Taken,
    /// The name alone is wanted.
    Name,
    /// The entry did not fit.
    Full,
}

/// A name that is about to be listed.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// The name.
    pub name: &'a OsStr,
    /// What it was when the listing was made.
    pub kind: Kind,
    /// How many names are left, this one included.
    pub left: usize,
}

#[derive(Debug)]
struct ListedName {
    cookie: u64,
    name: OsString,
    /// The topmost layer that has it.
    layer: LayerIndex,
    /// The real inode number in that layer.
    ino: u64,
    kind: Kind,
    /// The layers below that one that have a directory's name, too.
    below: SmallVec<[LayerIndex; 2]>,
}

impl ListedName {
    fn new(cookie: u64, name: OsString, layer: LayerIndex, ino: u64, kind: Kind) -> ListedName {
        ListedName { cookie, name, layer, ino, kind, below: SmallVec::new() }
    }

    fn place(&self) -> From<'_> {
        From::Listed { topmost: self.layer, below: (self.kind == Kind::Dir).then_some(&self.below) }
    }
}

/// All visible names of a directory.
#[derive(Debug)]
pub(super) struct Listing {
    names: Vec<ListedName>,
    /// The changes behind the mount that it was read after.
    epoch: u32,
}

/// A name on its way to a reader.
struct Next<'a> {
    listed: &'a ListedName,
    /// Where to look it up.
    from: From<'a>,
    /// What was known of changes behind the mount before it is looked up.
    epoch: u32,
    /// How many names are left, this one included.
    left: usize,
}

/// What is done with the names of a directory, one after the other.
type EachName<'a> = dyn FnMut(&Arc<Node>, Next<'_>) -> Result<Room> + 'a;

/// Listings that somebody is in the middle of. A leaf of the lock order.
#[derive(Debug)]
pub(super) struct Listings {
    lru: Mutex<LruCache<NodeId, Arc<Listing>>>,
    hasher: RandomState,
}

impl Default for Listings {
    fn default() -> Listings {
        const SIMULTANEOUS_READERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(31);
        Listings { lru: Mutex::new(Level::Leaf, LruCache::new(SIMULTANEOUS_READERS)), hasher: RandomState::new() }
    }
}

impl Listings {
    fn get(&self, id: NodeId) -> Option<Arc<Listing>> {
        self.lru.lock().get(&id).cloned()
    }

    fn keep(&self, id: NodeId, listing: Arc<Listing>) {
        let displaced = self.lru.lock().push(id, listing);
        drop(displaced);
    }

    /// The directory changed, or nobody reads it any more.
    pub fn forget(&self, id: NodeId) {
        let forgotten = self.lru.lock().pop(&id);
        drop(forgotten);
    }

    fn cookie(&self, name: &OsStr) -> u64 {
        // Positions are signed, and the first few are taken.
        (self.hasher.hash_one(name.as_bytes()) >> 1).max(FIRST_COOKIE)
    }
}

impl Overlay {
    /// Lists a directory from a cookie on (0 for the start), `.` and `..` first, until `each` is full.
    pub fn readdir(&self, id: NodeId, cookie: u64, each: &mut dyn FnMut(&Dirent<'_>) -> Room) -> Result<()> {
        self.list(id, cookie, &mut |parent, Next { listed, from, .. }| {
            let Some(ino) = self.listed_number(parent, listed, from)? else { return Ok(Room::Taken) };
            let kind = self.listed_kind(parent, listed)?;
            Ok(each(&Dirent { name: &listed.name, ino, kind, cookie: listed.cookie }))
        })
    }

    /// The same with a lookup of every name but `.` and `..`, which have no entry. `room` is asked before each lookup, and may
    /// want the name alone; an entry that `each` gets counts as a lookup.
    pub fn readdirplus(
        &self,
        _caller: &Caller,
        id: NodeId,
        cookie: u64,
        room: &mut dyn FnMut(&Named<'_>) -> Room,
        each: &mut dyn FnMut(&Dirent<'_>, Option<&Entry>),
    ) -> Result<()> {
        let state = std::cell::RefCell::new((room, each));
        self.list(id, cookie, &mut |parent, Next { listed, from, epoch, left }| {
            let (room, each) = &mut *state.borrow_mut();
            let wanted = room(&Named { name: &listed.name, kind: listed.kind, left });
            if wanted == Room::Full {
                return Ok(Room::Full);
            }
            let dirent = |ino| Dirent { name: &listed.name, ino, kind: listed.kind, cookie: listed.cookie };
            if listed.cookie < FIRST_COOKIE {
                each(&dirent(listed.ino), None);
                return Ok(Room::Taken);
            }
            if wanted == Room::Name {
                if let Some(ino) = self.listed_number(parent, listed, from)? {
                    each(&Dirent { kind: self.listed_kind(parent, listed)?, ..dirent(ino) }, None);
                }
                return Ok(Room::Taken);
            }
            match self.resolve(parent, &listed.name, from) {
                Ok(Some(found)) => {
                    let kind = found.stat.kind();
                    let mut entry = self.enter(parent, &listed.name, found)?;
                    if self.foreign_changes.now() != epoch {
                        // As in a lookup.
                        entry.lasting = Lasting::Neither;
                    }
                    each(&Dirent { kind, ..dirent(entry.attr.ino) }, Some(&entry));
                }
                // Gone by now.
                Ok(None) => {}
                // It cannot be looked at, but it is there: the name alone.
                Err(_) => each(&dirent(listed.ino), None),
            }
            Ok(Room::Taken)
        })
    }

    /// Calls `each` for the names after a cookie, until it is full. The names cannot change meanwhile.
    fn list(&self, id: NodeId, cookie: u64, each: &mut EachName<'_>) -> Result<()> {
        let node = self.node(id)?;
        let parent_ino = node.named().map_or(node.ino(), |(parent, _)| parent.ino());
        let _names = self.names(&node)?.read();
        let epoch = self.foreign_changes.now();
        for (cookie_of, name, ino) in [(1, ".", node.ino()), (2, "..", parent_ino)] {
            if cookie < cookie_of {
                let dots = ListedName::new(cookie_of, name.into(), UPPER, ino, Kind::Dir);
                if each(&node, Next { listed: &dots, from: From::Top, epoch, left: 0 })? == Room::Full {
                    return Ok(());
                }
            }
        }
        // Before the names are read, or one that comes meanwhile would be missed.
        let _watched = self.is_watched(&node);
        let listing = match self.listings.get(id).filter(|_| cookie != 0) {
            Some(listing) => listing,
            None => {
                let listing = Arc::new(self.build_listing(&node)?);
                self.listings.keep(id, listing.clone());
                listing
            }
        };
        let start = listing.names.partition_point(|listed| listed.cookie <= cookie);
        let rest = listing.names.get(start..).unwrap_or_default();
        if cookie != 0 && rest.is_empty() {
            // Every reader asks until it gets nothing: until then the listing is kept, or each would be made twice.
            self.listings.forget(id);
        }
        for (listed, left) in rest.iter().zip((1..=rest.len()).rev()) {
            let epoch = self.foreign_changes.now();
            let from = if epoch == listing.epoch { listed.place() } else { From::Top };
            if each(&node, Next { listed, from, epoch, left })? == Room::Full {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether the union shows nothing in a directory. Call with its names locked.
    pub(super) fn is_empty(&self, node: &Arc<Node>) -> Result<bool> {
        Ok(self.build_listing(node)?.names.is_empty())
    }

    fn build_listing(&self, node: &Arc<Node>) -> Result<Listing> {
        let epoch = self.foreign_changes.now();
        let alone = node.dir.as_ref().and_then(|dir| dir.listing.try_lock());
        let mut merge = Merge { overlay: self, node, names: Vec::new(), seen: HashMap::new(), epoch, alone };
        let lowers = node.lowers();
        if node.in_upper() {
            let only = lowers.is_empty();
            if merge.add(&LowerDir::default(), only)? == Opaque::Yes {
                return Ok(merge.finish());
            }
        }
        for (position, lower) in lowers.iter().enumerate() {
            let only = lowers.len() == 1 && !node.in_upper();
            match merge.add(lower, only) {
                Ok(Opaque::Yes) => break,
                Ok(Opaque::No) => {}
                // The layer changed behind the mount.
                Err(Errno::ENOENT | Errno::ENOTDIR) if position > 0 || node.in_upper() => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(merge.finish())
    }

    /// What a lookup would find: a file may say that it is a device.
    fn listed_kind(&self, parent: &Arc<Node>, listed: &ListedName) -> Result<Kind> {
        if listed.kind != Kind::File || self.source(listed.layer).is_none() {
            return Ok(listed.kind);
        }
        let dir = self.dir_fd(parent, listed.layer)?;
        let stat = self.stat_in(At::Name(dir.as_fd(), &listed.name), listed.layer);
        Ok(stat.map_or(listed.kind, |stat| stat.kind()))
    }

    /// The inode number that a lookup would give, without one where that is sure; `None` for a name that is gone.
    fn listed_number(&self, parent: &Arc<Node>, listed: &ListedName, from: From<'_>) -> Result<Option<u64>> {
        if listed.cookie < FIRST_COOKIE {
            return Ok(Some(listed.ino));
        }
        // The upper's own number holds for what was neither copied up nor merged.
        let own = listed.layer != UPPER || (parent.lowers().is_empty() && !self.is_impure(parent)?);
        if own {
            let dev = self.layers.filesystem_of(listed.layer).map(|fs| fs.dev);
            if let Some(number) = dev.and_then(|dev| self.numbers.persistent(&self.layers, dev, listed.ino)) {
                return Ok(Some(number));
            }
        }
        let found = match self.resolve(parent, &listed.name, from) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            // It cannot be looked at, but it is there.
            Err(_) => return Ok(Some(listed.ino)),
        };
        let entry = self.enter(parent, &listed.name, found)?;
        self.forget(entry.id, 1);
        Ok(Some(entry.attr.ino))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Opaque {
    No,
    Yes,
}

/// A listing in the making.
struct Merge<'a> {
    overlay: &'a Overlay,
    node: &'a Arc<Node>,
    names: Vec<ListedName>,
    /// Names that layers above have, or hide: where in `names` they are.
    seen: HashMap<OsString, Option<usize>>,
    epoch: u32,
    /// If nobody else lists the directory: the positions of its descriptors are this one's.
    alone: Option<MutexGuard<'a, ()>>,
}

impl Merge<'_> {
    /// How the names of a layer are read. To open a directory anew takes half as long as to read a small one.
    fn position(&self, layer: LayerIndex) -> Position {
        let rewinds = self.overlay.layers.filesystem_of(layer).is_some_and(FileSystem::rewinds);
        if self.alone.is_some() && rewinds { Position::Own } else { Position::New }
    }

    /// Adds what one layer has, under what the layers above have. `only`: there is no other layer.
    fn add(&mut self, lower: &LowerDir, only: bool) -> Result<Opaque> {
        let layer = lower.layer;
        let overlay = self.overlay;
        let fd = overlay.dir_fd(self.node, layer)?;
        let mut whiteouts_by_name = None;
        let mut hidden: Vec<OsString> = Vec::new();
        let mut opaque = Opaque::No;
        let mut any_wh = false;
        sys::read_dir_at(fd.as_fd(), self.position(layer), |entry| {
            if is_wh_name(entry.name)
                && match whiteouts_by_name {
                    Some(known) => known,
                    None => *whiteouts_by_name.insert(overlay.hides_by_name(layer, fd.as_fd())?),
                }
            {
                any_wh = true;
                if entry.name == WH_OPAQUE {
                    opaque = Opaque::Yes;
                } else if let Some(name) = entry.name.as_bytes().get(WH_PREFIX.len()..) {
                    hidden.push(OsStr::from_bytes(name).to_owned());
                }
                return Ok(());
            }
            if !only && let Some(above) = self.seen.get(entry.name) {
                if let Some(above) =
                    above.and_then(|above| self.names.get_mut(above)).filter(|above| above.kind == Kind::Dir)
                {
                    above.below.push(layer);
                }
                return Ok(());
            }
            let at = At::Name(fd.as_fd(), entry.name);
            let (kind, whiteout) = match entry.kind {
                Some(Kind::Char) | None => {
                    let stat = match sys::stat(at) {
                        Ok(stat) => stat,
                        Err(Errno::ENOENT) => return Ok(()),
                        Err(errno) => return Err(errno),
                    };
                    (stat.kind(), overlay.is_whiteout(at, &stat, lower.xwhiteouts)?)
                }
                Some(Kind::File) if lower.xwhiteouts => (Kind::File, overlay.is_whiteout(at, &sys::stat(at)?, true)?),
                Some(kind) => (kind, false),
            };
            if !only {
                self.seen.insert(entry.name.to_owned(), (!whiteout).then_some(self.names.len()));
            }
            if !whiteout {
                let (cookie, name) = (overlay.listings.cookie(entry.name), entry.name.to_owned());
                self.names.push(ListedName::new(cookie, name, layer, entry.ino, kind));
            }
            Ok(())
        })?;
        let known = if any_wh { 2 } else { 1 };
        match &self.node.dir {
            Some(dir) if layer == UPPER => dir.wh_names.store(known, Ordering::Relaxed),
            _ => lower.wh_names.store(known, Ordering::Relaxed),
        }
        self.seen.extend(hidden.into_iter().map(|name| (name, None)));
        Ok(opaque)
    }

    fn finish(mut self) -> Listing {
        self.names.sort_unstable_by(|a, b| (a.cookie, &a.name).cmp(&(b.cookie, &b.name)));
        let mut last = 0;
        for listed in &mut self.names {
            // Two names of one hash: the second goes on one further.
            listed.cookie = listed.cookie.max(last + 1);
            last = listed.cookie;
        }
        Listing { names: self.names, epoch: self.epoch }
    }
}

#[cfg(test)]
#[cfg(debug_assertions)]
mod tests {
    use super::*;
    use crate::overlay::config::Config;
    use crate::overlay::node::ROOT_ID;
    use crate::sys::faults::{Fault, arm, disarm};

    fn names(overlay: &Overlay, id: NodeId) -> Vec<String> {
        let mut names = Vec::new();
        let mut each = |dirent: &Dirent<'_>| {
            names.push(dirent.name.to_string_lossy().into_owned());
            Room::Taken
        };
        overlay.readdir(id, 0, &mut each).unwrap();
        names.sort();
        names.split_off(2)
    }

    #[test]
    fn what_is_open_is_listed_from_its_start_again_and_not_opened_anew() {
        let base = tempfile::tempdir().unwrap();
        let lowers: Vec<_> = ["a", "b", "c"].map(|name| base.path().join(name)).into();
        for (n, lower) in lowers.iter().enumerate() {
            std::fs::create_dir_all(lower.join("d")).unwrap();
            std::fs::write(lower.join(format!("d/{n}")), "").unwrap();
        }
        let overlay = Overlay::new(&Config { lowers: lowers.clone(), ..Config::default() }).unwrap();
        let caller = Caller { uid: 0, gid: 0, pid: 1, umask: 0 };
        let d = overlay.lookup(&caller, ROOT_ID, OsStr::new("d")).unwrap().id;
        assert_eq!(names(&overlay, d), ["0", "1", "2"]);
        std::fs::write(lowers[1].join("d/new"), "").unwrap();
        std::fs::remove_file(lowers[2].join("d/2")).unwrap();
        let rewinds = overlay.layers.filesystem_of(1).is_some_and(FileSystem::rewinds);
        let opened = |expected: &[&str]| {
            arm(0, Fault::Frozen);
            assert_eq!(names(&overlay, d), expected);
            disarm().into_iter().filter(|call| *call == "openat").count()
        };
        assert_eq!(opened(&["0", "1", "new"]), if rewinds { 0 } else { 3 });
        // Somebody else is in the middle of them.
        let node = overlay.node(d).unwrap();
        let _others = node.dir.as_ref().unwrap().listing.try_lock().unwrap();
        assert_eq!(opened(&["0", "1", "new"]), 3);
    }

    #[test]
    fn that_nothing_is_left_of_a_listing_costs_no_system_call_and_forgets_it() {
        let layer = tempfile::tempdir().unwrap();
        std::fs::write(layer.path().join("f"), "").unwrap();
        let config = Config { lowers: vec![layer.path().to_owned()], ..Config::default() };
        let overlay = Overlay::new(&config).unwrap();
        let mut last = 0;
        let mut take = |dirent: &Dirent<'_>| {
            last = dirent.cookie;
            Room::Taken
        };
        overlay.readdir(ROOT_ID, 0, &mut take).unwrap();
        arm(1, Fault::Fails(Errno::EIO));
        let mut more = 0;
        let ended = overlay.readdir(ROOT_ID, last, &mut |_| {
            more += 1;
            Room::Taken
        });
        disarm();
        assert_eq!((ended, more), (Ok(()), 0));
        assert!(overlay.listings.get(ROOT_ID).is_none());
    }
}
