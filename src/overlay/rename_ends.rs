//! The two ends of a rename: what is there, whether it may move, and the locks of both.
//!
//! Answers to the first half of the kernel's `ovl_rename`.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::node::{Node, NodeId, Place, UPPER};
use super::order::WriteGuard;
use super::rename::Rename;
use super::resolve::{Found, From};
use super::superblock::Overlay;
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, Kind};

/// One end of a rename.
pub(super) struct End {
    pub parent: Arc<Node>,
    /// The parent's directory in the upper.
    pub dir: Arc<OwnedFd>,
    pub name: Arc<OsStr>,
    /// What is there, with a lookup counted that the rename gives back.
    pub node: Option<Arc<Node>>,
    /// Whether a lower has something visible under the name.
    pub lower: bool,
}

impl End {
    pub fn pair(&self) -> (sys::BorrowedFd<'_>, &OsStr) {
        (self.dir.as_fd(), &self.name)
    }

    pub fn at(&self) -> At<'_> {
        At::Name(self.dir.as_fd(), &self.name)
    }
}

impl Overlay {
    /// Whether what is under a name could be moved; then what kind of object it is.
    pub(super) fn check_source(&self, parent: &Arc<Node>, name: &OsStr) -> Result<Kind> {
        let _names = self.names(parent)?.read();
        let found = self.resolve(parent, name, From::Top)?.ok_or(Errno::ENOENT)?;
        self.check_movable(&found)?;
        Ok(found.stat.kind())
    }

    /// Whether what is under a name, if anything is, could be replaced by a directory, as far as lowers share in it.
    pub(super) fn check_replaced(&self, parent: &Arc<Node>, name: &OsStr) -> Result<()> {
        let _names = self.names(parent)?.read();
        let Some(found) = self.resolve(parent, name, From::Top)?.filter(|found| found.stat.is_dir()) else {
            return Ok(());
        };
        let entry = self.enter(parent, name, found)?;
        let checked = self.node(entry.id).and_then(|target| self.check_empty(&target));
        self.forget(entry.id, 1);
        checked
    }

    /// `ENOTEMPTY` for a directory that shows names and that lowers share in: of one that is the upper's alone the file system
    /// says so itself, once the rest is copied up, as in the kernel's overlay.
    pub(super) fn check_empty(&self, target: &Arc<Node>) -> Result<()> {
        let shared = target.kind == Kind::Dir && !(target.in_upper() && target.lowers().is_empty());
        if shared && !self.is_empty(target)? { Err(Errno::ENOTEMPTY) } else { Ok(()) }
    }

    /// A directory can be moved if it is the upper's alone, or if it can be said where the rest of it stays.
    fn check_movable(&self, found: &Found) -> Result<()> {
        if found.stat.is_dir() && !self.writes_redirects() && (found.layer != UPPER || !found.lowers.is_empty()) {
            return Err(Errno::EXDEV);
        }
        Ok(())
    }

    /// Whether a rename of what was found under the one name to the other can be.
    pub(super) fn check_ends(&self, old: Option<&Found>, new: Option<&Found>, how: Rename) -> Result<()> {
        let old = old.ok_or(Errno::ENOENT)?;
        match (new, how) {
            (Some(_), Rename::NoReplace) => return Err(Errno::EEXIST),
            (None, Rename::Exchange) => return Err(Errno::ENOENT),
            (Some(new), Rename::Exchange) => self.check_movable(new)?,
            _ => {}
        }
        self.check_movable(old)
    }

    /// One end of a rename, by what was found there. The lower directories are opened, to be at hand under the locks.
    pub(super) fn rename_end(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        found: Option<Found>,
        entered: &mut Vec<NodeId>,
    ) -> Result<End> {
        let dir = self.dir_fd(parent, UPPER)?;
        // Of a name that shows nothing nothing needs to be hidden.
        let mut lower = false;
        let node = match found {
            Some(mut found) => {
                self.link_up(parent, name, &mut found)?;
                lower = self.must_hide(parent, name, &found)?;
                let layer = found.layer;
                let entry = self.enter(parent, name, found)?;
                entered.push(entry.id);
                let node = self.node(entry.id)?;
                self.dir_fd(if node.kind == Kind::Dir { &node } else { parent }, layer)?;
                Some(node)
            }
            None => None,
        };
        Ok(End { parent: parent.clone(), dir, name: Arc::from(name), node, lower })
    }

    /// Locks the names of one directory, or of two in order of their ids.
    pub(super) fn lock_names<'a>(
        &self,
        a: &'a Arc<Node>,
        b: &'a Arc<Node>,
    ) -> Result<(WriteGuard<'a, ()>, Option<WriteGuard<'a, ()>>)> {
        if a.id == b.id {
            return Ok((self.names(a)?.write(), None));
        }
        let (first, second) = if a.id < b.id { (a, b) } else { (b, a) };
        let first = self.names(first)?.write();
        Ok((first, Some(self.names(second)?.write())))
    }
}

/// Neither end may lie below the other. The kernel lets no such rename through to a mount; here it would wait for its
/// own locks, or fail on disk halfway.
pub(super) fn check_apart(old: &End, new: &End, moving: &Arc<Node>, how: Rename) -> Result<()> {
    if is_at_or_above(moving, &new.parent) {
        return Err(Errno::EINVAL);
    }
    match &new.node {
        Some(target) if !is_at_or_above(target, &old.parent) => Ok(()),
        Some(_) if how == Rename::Exchange => Err(Errno::EINVAL),
        Some(_) => Err(Errno::ENOTEMPTY),
        None => Ok(()),
    }
}

/// Whether a directory is another one or lies above it.
fn is_at_or_above(dir: &Arc<Node>, other: &Arc<Node>) -> bool {
    let mut current = other.clone();
    while current.id != dir.id {
        let Place::In { parent, .. } = current.place() else { return false };
        current = parent;
    }
    true
}
