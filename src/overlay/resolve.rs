//! From a name in a directory to what the union shows there.
//!
//! Answers to the kernel's `fs/overlayfs/namei.c`: layers from the top down; the first object that is not a directory
//! ends the search, a whiteout ends it with nothing, an opaque directory ends it with what was found so far.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::index::Indexed;
use super::metacopy::LowerData;
use super::node::{LayerIndex, LowerDir, Node, NodeId, Place, RealId, UPPER};
use super::order::RwLock;
use super::origin::{Origin, inode_of};
use super::superblock::{Caller, Entry, Lasting, Overlay};
use super::table::{Interned, Key};
use super::watch::is_large;
use super::whiteout::is_wh_name;
use super::xattr::{DirMarks, Mark, Opacity};
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, Kind, Stat};

/// What the union has under a name.
#[derive(Debug)]
pub(super) struct Found {
    /// The attributes of the topmost real object.
    pub stat: Stat,
    /// The layer that it is in.
    pub layer: LayerIndex,
    /// The lower directories that are merged, topmost first; all of them, if the object is a lower directory.
    pub lowers: SmallVec<[LowerDir; 2]>,
    /// Directories that were opened on the way.
    pub fds: SmallVec<[(LayerIndex, OwnedFd); 2]>,
    /// The union's inode number of the file that this one was copied up from.
    pub origin: Option<u64>,
    /// The entry of the index by which it was found.
    pub index: Option<Arc<OsStr>>,
    /// Where the data lies, if the object has none.
    pub data: Option<Arc<LowerData>>,
}

/// What one layer says of a name.
enum Step {
    /// Nothing: go on below.
    Absent,
    /// A whiteout: nothing below shows.
    Hidden,
    /// An object; the flag says that whatever is below does not show.
    Object(Ends),
    /// A directory the rest of which lies elsewhere.
    Redirected(Vec<u8>),
    /// A file without its data.
    Hollow,
    /// A lower file that was removed, says the index.
    Removed,
}

/// Whether an object hides what lower layers have under its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    No,
    Yes,
}

/// Where to look.
#[derive(Clone, Copy, Debug)]
pub(super) enum From<'a> {
    /// Everywhere, from the top down.
    Top,
    /// From a layer on, above which none has the name; and below it only where it is listed, if that is known.
    Listed { topmost: LayerIndex, below: Option<&'a SmallVec<[LayerIndex; 2]>> },
}

impl From<'_> {
    fn may_have(self, layer: LayerIndex) -> bool {
        let From::Listed { topmost, below } = self else { return true };
        layer == topmost || (layer > topmost && below.is_none_or(|below| below.contains(&layer)))
    }
}

impl Overlay {
    /// Looks a name up. `ENOENT` when the union has none, `ENAMETOOLONG` as the upper's file system says.
    pub fn lookup(&self, _caller: &Caller, parent: NodeId, name: &OsStr) -> Result<Entry> {
        let parent = self.node(parent)?;
        let _unchanged = self.names(&parent)?.read();
        let _watched = self.is_watched(&parent);
        let before = self.foreign_changes.now();
        let found = self.resolve(&parent, name, From::Top)?.ok_or(Errno::ENOENT)?;
        let mut entry = self.enter(&parent, name, found)?;
        if self.foreign_changes.now() != before {
            // The notice may come before this answer, and would be forgotten over it.
            entry.lasting = Lasting::Neither;
        }
        Ok(entry)
    }

    /// Whether the absence of a name in a directory may be believed until a notice comes.
    #[must_use]
    pub fn absence_lasts(&self, parent: NodeId) -> bool {
        self.table.get(parent).is_some_and(|parent| self.is_watched(&parent))
    }

    /// The lock of the names in a directory. `ENOTDIR` for what is none.
    pub(super) fn names<'a>(&self, dir: &'a Node) -> Result<&'a RwLock<()>> {
        dir.dir.as_ref().map(|dir| &dir.names).ok_or(Errno::ENOTDIR)
    }

    /// What the union has under a name in a directory; `None` for nothing. Call with the directory's names locked.
    pub(super) fn resolve(&self, parent: &Arc<Node>, name: &OsStr, from: From<'_>) -> Result<Option<Found>> {
        let mut found: Option<Found> = None;
        let lowers = parent.lowers();
        if from.may_have(UPPER) && parent.in_upper() {
            let below = if lowers.is_empty() { Below::Nothing } else { Below::Something };
            match self.look(parent, name, &LowerDir::default(), below, &mut found)? {
                Step::Absent | Step::Object(Ends::No) => {}
                Step::Hidden | Step::Removed => return Ok(None),
                Step::Object(Ends::Yes) => return self.finish(parent, name, found),
                Step::Hollow => return self.finish_hollow(parent, name, found),
                Step::Redirected(redirect) => return self.finish_elsewhere(parent, name, found, &redirect, UPPER),
            }
        }
        for (position, lower) in lowers.iter().enumerate().filter(|(_, lower)| from.may_have(lower.layer)) {
            let below = if position + 1 == lowers.len() { Below::Nothing } else { Below::Something };
            match self.look(parent, name, lower, below, &mut found)? {
                Step::Absent => {}
                Step::Hidden | Step::Object(Ends::Yes) => break,
                Step::Removed => {
                    log::warn!("the index says that {} was removed, and it shows", name.display());
                    return Err(Errno::EIO);
                }
                Step::Object(Ends::No) => {}
                Step::Hollow => return self.finish_hollow(parent, name, found),
                Step::Redirected(redirect) => {
                    return self.finish_elsewhere(parent, name, found, &redirect, lower.layer);
                }
            }
        }
        self.finish(parent, name, found)
    }

    /// Whether a lower layer has a visible object under a name: what has to be hidden when the upper's goes.
    pub(super) fn lower_has(&self, parent: &Arc<Node>, name: &OsStr) -> Result<bool> {
        for lower in parent.lowers().iter() {
            match self.look(parent, name, lower, Below::Something, &mut None)? {
                Step::Absent => {}
                Step::Hidden => return Ok(false),
                Step::Object(..) | Step::Removed | Step::Redirected(_) | Step::Hollow => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Looks a name up in one layer and adds what it has to `found`.
    fn look(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        lower: &LowerDir,
        below: Below,
        found: &mut Option<Found>,
    ) -> Result<Step> {
        let layer = lower.layer;
        if is_wh_name(name) && self.has_wh_names(parent, lower)? {
            return Ok(Step::Absent);
        }
        let dir = match self.dir_fd(parent, layer) {
            Ok(dir) => dir,
            // The layer changed behind the mount: what is gone has no names.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(Step::Absent),
            Err(errno) => return Err(errno),
        };
        let at = At::Name(dir.as_fd(), name);
        let mut stat = match sys::stat(at) {
            Ok(stat) => stat,
            Err(Errno::ENOENT | Errno::ENOTDIR) => {
                let hidden = below == Below::Something && self.wh_hides(parent, lower, name, &dir)?;
                return Ok(if hidden { Step::Hidden } else { Step::Absent });
            }
            Err(errno) => return Err(errno),
        };
        if self.layers.get(layer).is_some_and(|layer| layer.mount != stat.mount) {
            log::info!("{}: something is mounted on {}", self.layers.describe(layer), name.display());
            return Err(Errno::EXDEV);
        }
        if stat.is_dir() && self.layers.is_root(&stat) {
            log::info!("{}: {} is the root of another layer", self.layers.describe(layer), name.display());
            return Err(Errno::ELOOP);
        }
        if self.is_whiteout(at, &stat, lower.xwhiteouts)? {
            return Ok(Step::Hidden);
        }
        self.overrule(at, layer, &mut stat)?;
        if !stat.is_dir() {
            // Below a directory, what is no directory does not show and hides what is below it in turn.
            if found.is_none() && layer != UPPER {
                match self.find_in_index(at, &stat, layer)? {
                    Indexed::Nothing => {}
                    Indexed::Removed => return Ok(Step::Removed),
                    Indexed::Copy(mut indexed) => {
                        indexed.data = self.data_of_indexed(parent, name, &indexed, stat, layer)?;
                        *found = Some(indexed);
                        return Ok(Step::Object(Ends::Yes));
                    }
                }
            }
            if found.is_none() {
                let mut stat = stat;
                if layer == UPPER && stat.nlink > 1 {
                    self.count_names(at, &mut stat, None)?;
                }
                *found = Some(Found::new(stat, layer));
                if self.lacks_data(at, &stat, layer)? {
                    return Ok(Step::Hollow);
                }
            }
            return Ok(Step::Object(Ends::Yes));
        }
        if layer != UPPER
            && let Some(found) = found.as_ref()
            && !self.is_origin(parent, name, found, (at, layer))?
        {
            return Ok(Step::Object(Ends::Yes));
        }
        let (DirMarks { opacity, redirect }, fd) = self.look_into(parent, at, below, layer)?;
        let xwhiteouts = opacity == Opacity::Xwhiteouts;
        let hides = opacity == Opacity::Opaque
            || (below == Below::Something && self.wh_hides_below(parent, lower, name, &dir, fd.as_ref())?);
        let found = found.get_or_insert_with(|| Found::new(stat, layer));
        if layer != UPPER {
            let large = is_large(&stat);
            found.lowers.push(LowerDir { layer, ino: stat.ino, xwhiteouts, large, ..LowerDir::default() });
        }
        found.fds.extend(fd.map(|fd| (layer, fd)));
        if let Some(redirect) = redirect.filter(|_| !hides && layer < self.layers.last_merged()) {
            return Ok(Step::Redirected(redirect));
        }
        Ok(Step::Object(if hides || below == Below::Nothing { Ends::Yes } else { Ends::No }))
    }

    /// Whether a directory is opaque or redirected. It is opened for that, and kept open for who lists it next. With
    /// nothing below, only a redirect to elsewhere means something, or an `x` to the last lower, which hides nothing.
    fn look_into(
        &self,
        parent: &Arc<Node>,
        at: At<'_>,
        below: Below,
        layer: LayerIndex,
    ) -> Result<(DirMarks, Option<OwnedFd>)> {
        if below == Below::Nothing {
            let redirect = self.redirect_of_last(parent, at, layer)?;
            return Ok((DirMarks { redirect, ..DirMarks::default() }, None));
        }
        let At::Name(dir, name) = at else { return Err(Errno::EINVAL) };
        match sys::open_dir(dir, name) {
            Ok(fd) => Ok((self.dir_marks(At::Fd(fd.as_fd()))?, Some(fd))),
            // It may be looked at, if not into.
            Err(Errno::EACCES) => Ok((self.dir_marks(at)?, None)),
            Err(errno) => Err(errno),
        }
    }

    /// The rest of a directory lies elsewhere.
    fn finish_elsewhere(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        found: Option<Found>,
        redirect: &[u8],
        above: LayerIndex,
    ) -> Result<Option<Found>> {
        let found = found.map(|found| self.follow(parent, name, found, redirect, above)).transpose()?;
        self.finish(parent, name, found)
    }

    /// The data of a file lies elsewhere.
    fn finish_hollow(&self, parent: &Arc<Node>, name: &OsStr, found: Option<Found>) -> Result<Option<Found>> {
        let Some(mut found) = found else { return Ok(None) };
        self.find_data(parent, name, &mut found)?;
        self.finish(parent, name, Some(found))
    }

    /// Adds what only an upper file needs: the number of the file that it was copied up from.
    fn finish(&self, parent: &Arc<Node>, name: &OsStr, found: Option<Found>) -> Result<Option<Found>> {
        let Some(mut found) = found else { return Ok(None) };
        if found.stat.is_dir() {
            self.check_directory_entry(parent, name, &found)?;
        }
        if found.layer == UPPER && !found.stat.is_dir() && found.index.is_none() && self.is_impure(parent)? {
            let dir = self.dir_fd(parent, UPPER)?;
            if let Some(mark) = self.mark(At::Name(dir.as_fd(), name), Mark::Origin)? {
                found.origin = self.origin_number(&mark);
                self.check_has_data(At::Name(dir.as_fd(), name), &found)?;
            }
        }
        Ok(Some(found))
    }

    /// The union's inode number of the file that an origin mark names, if a layer's file system can tell.
    pub(super) fn origin_number(&self, mark: &[u8]) -> Option<u64> {
        self.number_of_origin(&Origin::decode(mark)?, None)
    }

    /// The same. Where one handle could be opened others can, so that of an object that is at hand needs no opening, and
    /// where one was refused all are.
    pub(super) fn number_of_origin(&self, origin: &Origin, of: Option<&Stat>) -> Option<u64> {
        const REFUSED: u8 = 1;
        const OPENED: u8 = 2;
        let layer = self
            .layers
            .lowers
            .iter()
            .find(|layer| self.layers.filesystems.get(layer.fs).is_some_and(|fs| fs.uuid == origin.uuid))?;
        let fs = self.layers.filesystems.get(layer.fs)?;
        let ino = match (fs.handles.load(Ordering::Relaxed), of.filter(|stat| stat.dev == fs.dev)) {
            (OPENED, Some(stat)) => stat.ino,
            (REFUSED, _) => inode_of(&origin.handle, fs.magic)?,
            _ => match sys::open_handle(layer.root.as_fd(), &origin.handle) {
                Ok(fd) => {
                    fs.handles.store(OPENED, Ordering::Relaxed);
                    sys::stat(At::Fd(fd.as_fd())).ok()?.ino
                }
                // Not for the unprivileged: read the number from the handle.
                Err(Errno::EPERM) => {
                    fs.handles.store(REFUSED, Ordering::Relaxed);
                    inode_of(&origin.handle, fs.magic)?
                }
                Err(_) => return None,
            },
        };
        self.numbers.persistent(&self.layers, fs.dev, ino)
    }

    /// The union's number of what was found.
    fn number(&self, found: &Found) -> u64 {
        let dev = found.stat.dev;
        let persistent = match (found.layer, found.lowers.first()) {
            // A merged directory has the number of the topmost lower one, which a copy-up does not change.
            (UPPER, Some(lower)) => {
                let dev = self
                    .layers
                    .get(lower.layer)
                    .and_then(|layer| self.layers.filesystems.get(layer.fs))
                    .map(|fs| fs.dev);
                dev.and_then(|dev| self.numbers.persistent(&self.layers, dev, lower.ino))
            }
            _ => found.origin.or_else(|| self.numbers.persistent(&self.layers, dev, found.stat.ino)),
        };
        persistent.unwrap_or_else(|| self.numbers.made_up())
    }

    /// Makes what was found under a name a node of the table, with one more lookup.
    pub(super) fn enter(&self, parent: &Arc<Node>, name: &OsStr, found: Found) -> Result<Entry> {
        let (node, stat) = self.intern(parent, name, found);
        let (attr, lasting) = self.vouch(parent, &node, stat)?;
        Ok(Entry { id: node.id, attr, lasting })
    }

    /// The same for what was just made, quietly if no event came of it but that of its name: a new directory is not watched
    /// before somebody looks into it.
    pub(super) fn enter_new(&self, parent: &Arc<Node>, name: &OsStr, found: Found, quietly: bool) -> Result<Entry> {
        let (node, stat) = self.intern(parent, name, found);
        match quietly {
            true => node.own_change.note_quiet(&stat),
            false => self.note_as(&node, &stat),
        }
        if !stat.is_dir() {
            if stat.kind() == Kind::File && stat.nlink == 1 {
                node.xattrs.see_new(&self.foreign_changes);
            }
            let (attr, lasting) = self.vouch(parent, &node, stat)?;
            return Ok(Entry { id: node.id, attr, lasting });
        }
        if let Some(dir) = &node.dir {
            dir.wh_names.store(1, Ordering::Relaxed);
        }
        let lasting = if self.is_watched(parent) { Lasting::Name } else { Lasting::Neither };
        Ok(Entry { id: node.id, attr: self.shown(&node, stat), lasting })
    }

    /// Makes a new file without a name a node.
    pub(super) fn enter_nameless(&self, file: Arc<OwnedFd>) -> Result<Entry> {
        let stat = self.stat_in(At::Fd(file.as_fd()), UPPER)?;
        let real = RealId::of(&stat);
        let number =
            self.numbers.persistent(&self.layers, stat.dev, stat.ino).unwrap_or_else(|| self.numbers.made_up());
        let make = |id| Node::new(id, stat.kind(), number, Place::GONE, UPPER, real);
        let node = match self.table.intern((Key::Real(real), None), &self.root, |_| false, make) {
            Interned::New(node) | Interned::Known(node) => node,
        };
        self.let_go(self.table.moved(&node, None));
        let mut state = node.state.write();
        state.rare.open = Some(file.clone());
        state.rare.object = Some(file);
        drop(state);
        Ok(Entry { id: node.id, attr: self.shown(&node, stat), lasting: Lasting::Neither })
    }

    fn intern(&self, parent: &Arc<Node>, name: &OsStr, found: Found) -> (Arc<Node>, Stat) {
        let kind = found.stat.kind();
        let real = RealId::of(&found.stat);
        let name: Arc<OsStr> = Arc::from(name);
        let broken_link = self.is_broken_link(&found);
        let key = if broken_link { Key::Name(parent.id, name.clone()) } else { Key::Real(real) };
        let number = self.number(&found);
        let place = || Place::In { parent: parent.clone(), name: name.clone() };
        let wanted = self.lasting_id(parent, &name, &found, &key);
        let interned = self.table.intern(
            (key, wanted),
            parent,
            |node| node.kind == kind,
            |id| {
                let mut node = Node::new(id, kind, number, place(), found.layer, real);
                node.state.get_mut().rare.set_data(found.data.clone());
                node.state.get_mut().rare.set_index(found.index.clone());
                node
            },
        );
        let node = match interned {
            Interned::New(node) => {
                if let Some(dir) = &node.dir {
                    *dir.lowers.write() = found.lowers.into_iter().collect();
                }
                node
            }
            Interned::Known(node) => {
                self.refresh(&node, parent, &name, &found);
                node
            }
        };
        node.xattrs.see(&found.stat);
        for (layer, fd) in found.fds {
            self.dirs.insert((node.id, layer), Arc::new(fd));
        }
        (node, found.stat)
    }

    /// What is shown of a node that was just looked up, and for how long it holds.
    fn vouch(&self, parent: &Arc<Node>, node: &Arc<Node>, stat: Stat) -> Result<(Stat, Lasting)> {
        let shown = self.shown(node, stat);
        if self.watcher.get().is_none() || !self.is_watched(parent) {
            return Ok((shown, Lasting::Neither));
        }
        let Some(dir) = &node.dir else { return Ok((shown, self.lasting_attributes(node, &shown))) };
        if dir.watches.is_complete(node) {
            return Ok((shown, Lasting::Both));
        }
        if is_large(&stat) || node.lowers().iter().any(|lower| lower.large) {
            return Ok((shown, Lasting::Name));
        }
        // Watched from now on; what happened since it was looked at is seen by looking again.
        if self.is_watched(node) { Ok((self.attr(node)?, Lasting::Both)) } else { Ok((shown, Lasting::Name)) }
    }

    /// Whether a name is a file of its own because its copy will be: one of several of a lower file.
    pub(super) fn is_broken_link(&self, found: &Found) -> bool {
        found.layer != UPPER && !found.stat.is_dir() && found.stat.nlink > 1 && !self.is_indexed(&found.stat)
    }

    /// A file with several links can change under a name that is not watched, one that is mapped without an event.
    pub(super) fn lasting_attributes(&self, node: &Node, stat: &Stat) -> Lasting {
        match stat.nlink {
            _ if node.own_change.is_mapped() => Lasting::NameOnly,
            0 | 1 => Lasting::Both,
            _ => Lasting::Name,
        }
    }
}

impl Found {
    pub fn new(stat: Stat, layer: LayerIndex) -> Found {
        Found { stat, layer, lowers: SmallVec::new(), fds: SmallVec::new(), origin: None, index: None, data: None }
    }
}

/// Whether there are layers below that an object could hide.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Below {
    Nothing,
    Something,
}
