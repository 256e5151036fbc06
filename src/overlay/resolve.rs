//! From a name in a directory to what the union shows there.
//!
//! Answers to the kernel's `fs/overlayfs/namei.c`: layers from the top down; the first object that is not a directory
//! ends the search, a whiteout ends it with nothing, an opaque directory ends it with what was found so far.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use smallvec::SmallVec;

use super::index::Indexed;
use super::metacopy::LowerData;
use super::node::{LayerIndex, LowerDir, Node, NodeId, UPPER};
use super::order::RwLock;
use super::superblock::{Caller, Entry, Lasting, Overlay};
use super::watch::is_large;
use super::whiteout::is_wh_name;
use super::xattr::{DirMarks, Mark, Opacity};
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, Stat};

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
