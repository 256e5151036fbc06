//! Removal: a name goes, and nothing of a lower layer shows in its place, not for a moment.
//!
//! Answers to the kernel's `fs/overlayfs/dir.c`: a name that only the upper has is removed there; a name that a lower has,
//! too, is replaced by a whiteout in one step.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::node::{LayerIndex, Node, NodeId, UPPER};
use super::order::RwLock;
use super::resolve::{Found, From};
use super::superblock::{Caller, Overlay};
use super::table::Key;
use super::whiteout::is_wh_name;
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, Kind, RenameFlags};

impl Overlay {
    /// Removes a name that is not a directory. `ENOENT`, `EISDIR`.
    pub fn unlink(&self, _caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()> {
        let parent = self.node(parent)?;
        self.copy_up(&parent)?;
        self.count_before_removal(&parent, name)?;
        let _names = self.names(&parent)?.write();
        if let Some((node, layer)) = self.lower_file(&parent, name) {
            match self.take_away(&parent, name, layer, Some(&node), true) {
                // Something was put into the upper behind the mount.
                Err(Errno::EEXIST) => {}
                result => return result,
            }
        }
        let mut found = self.resolve(&parent, name, From::Top)?.ok_or(Errno::ENOENT)?;
        if found.stat.is_dir() {
            return Err(Errno::EISDIR);
        }
        self.link_up(&parent, name, &mut found)?;
        let node = self.known(&parent, name, &found);
        let lower = self.must_hide(&parent, name, &found)?;
        self.take_away(&parent, name, found.layer, node.as_ref(), lower)
    }

    /// What is known to be under a name: an object of a lower layer, and which. It is believed as the kernel believes it who
    /// was told of the name: the directory is watched. Whoever makes a whiteout of it needs not look into any layer:
    /// that the upper has nothing there the making finds out, and what the lowers have does not matter to it.
    fn lower_file(&self, parent: &Arc<Node>, name: &OsStr) -> Option<(Arc<Node>, LayerIndex)> {
        if self.index.is_some() || !self.device_whiteouts || is_wh_name(name) {
            return None;
        }
        let node = self.recent.guess(parent.id, name).and_then(|id| self.table.get(id))?;
        let layer = {
            let state = node.state.read();
            let known = node.kind != Kind::Dir && state.layer != UPPER && state.place.is(parent, name);
            known.then_some(state.layer)?
        };
        self.is_watched(parent).then_some((node, layer))
    }

    /// Removes an empty directory: one in which the union shows nothing. `ENOENT`, `ENOTDIR`, `ENOTEMPTY`.
    pub fn rmdir(&self, _caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()> {
        let parent = self.node(parent)?;
        if !parent.in_upper() {
            // What will be refused must not copy anything up.
            self.check_removable(&parent, name)?;
        }
        self.copy_up(&parent)?;
        self.count_before_removal(&parent, name)?;
        let _down_the_tree = self.crossing.read();
        let _names = self.names(&parent)?.write();
        let found = self.resolve(&parent, name, From::Top)?.ok_or(Errno::ENOENT)?;
        if !found.stat.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        if self.remove_bare(&parent, name, &found)? {
            return Ok(());
        }
        let layer = found.layer;
        // A node, so that the directory can be listed; forgotten again below.
        let entry = self.enter(&parent, name, found)?;
        let result = self.rmdir_entered(&parent, name, entry.id, layer);
        self.forget(entry.id, 1);
        result
    }

    /// Whether an empty directory is under a name.
    fn check_removable(&self, parent: &Arc<Node>, name: &OsStr) -> Result<()> {
        let _names = self.names(parent)?.read();
        let found = self.resolve(parent, name, From::Top)?.ok_or(Errno::ENOENT)?;
        if !found.stat.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        let entry = self.enter(parent, name, found)?;
        let empty = self.node(entry.id).and_then(|node| self.is_empty(&node));
        self.forget(entry.id, 1);
        if empty? { Ok(()) } else { Err(Errno::ENOTEMPTY) }
    }

    /// Removes a directory that no lower layer has a part in if there is nothing in it on disk, which the removal itself finds
    /// out. False if there is something: names, or whiteouts, of which the union shows none.
    fn remove_bare(&self, parent: &Arc<Node>, name: &OsStr, found: &Found) -> Result<bool> {
        // One that was moved has its lower part elsewhere, which no look at its name finds.
        if !found.lowers.is_empty() || self.must_hide(parent, name, found)? {
            return Ok(false);
        }
        let node = self.known(parent, name, found);
        if node.as_ref().is_some_and(|node| node.kind != Kind::Dir || !node.place().is(parent, name)) {
            return Ok(false);
        }
        let _inside = node.as_ref().map(|node| self.names(node).map(RwLock::write)).transpose()?;
        // Whoever is in it stays in it.
        let object = node.as_ref().map(|node| self.dir_fd(node, UPPER)).transpose()?;
        let dir = self.dir_fd(parent, UPPER)?;
        match self.change_names(&[(parent, dir.as_fd())], || sys::rmdir(dir.as_fd(), name)) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => return Ok(false),
            result => result?,
        }
        self.note_removed(parent, name);
        self.listings.forget(parent.id);
        if let (Some(node), Some(object)) = (&node, object) {
            self.lose_dir(node, object);
        }
        Ok(true)
    }

    /// The name of a directory is gone; who is in it goes on in `object`.
    fn lose_dir(&self, node: &Arc<Node>, object: Arc<OwnedFd>) {
        let mut state = node.state.write();
        state.rare.object = Some(object);
        let gone = self.lose_name(node, &mut state);
        drop(state);
        self.let_go(gone);
    }

    fn rmdir_entered(&self, parent: &Arc<Node>, name: &OsStr, id: NodeId, layer: u16) -> Result<()> {
        let node = self.node(id)?;
        let _inside = self.names(&node)?.write();
        if !self.is_empty(&node)? {
            return Err(Errno::ENOTEMPTY);
        }
        let lower = !parent.lowers().is_empty() && self.lower_has(parent, name)?;
        let object = self.dir_fd(&node, layer)?;
        let dir = self.dir_fd(parent, UPPER)?;
        let entry = self.entry_of_directory(&node)?;
        self.change_names(&[(parent, dir.as_fd())], || match layer {
            UPPER => self.remove_upper_dir(dir.as_fd(), name, lower),
            _ => self.make_whiteout(dir.as_fd(), name),
        })?;
        self.retire_directory(entry);
        self.note_removed(parent, name);
        self.listings.forget(parent.id);
        self.lose_dir(&node, object);
        Ok(())
    }

    /// Removes an upper directory in which there is nothing but whiteouts.
    fn remove_upper_dir(&self, dir: sys::BorrowedFd<'_>, name: &OsStr, lower: bool) -> Result<()> {
        if !lower {
            match sys::rmdir(dir, name) {
                Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
                result => return result,
            }
        }
        let temporary = self.work()?.temporary();
        if self.server.0 != 0 {
            let at = At::Name(dir, name);
            let mode = sys::stat(at)?.mode;
            if mode & 0o700 != 0o700 {
                // It is about to go, and who is not root can move only what it may write to.
                sys::chmod(at, mode | 0o700)?;
            }
        }
        // Out of sight at once; its whiteouts, and a whiteout that it was exchanged for, go with the temporary name.
        if lower {
            self.replace_by_whiteout((dir, name), temporary.pair())
        } else {
            sys::renamed((dir, name), temporary.pair())
        }
    }

    /// Whether a lower would show if what was found went from the upper.
    pub(super) fn must_hide(&self, parent: &Arc<Node>, name: &OsStr, found: &Found) -> Result<bool> {
        Ok(found.layer != UPPER || (!parent.lowers().is_empty() && self.lower_has(parent, name)?))
    }

    /// Takes an object that is not a directory from its name.
    fn take_away(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        layer: LayerIndex,
        node: Option<&Arc<Node>>,
        lower: bool,
    ) -> Result<()> {
        let dir = self.dir_fd(parent, UPPER)?;
        let counted = self.object_to_count(dir.as_fd(), name, layer)?;
        let mut state = node.map(|node| node.state.write());
        if let (Some(node), Some(state)) = (node, &mut state)
            && state.place.is(parent, name)
        {
            let real = if layer == UPPER { dir.clone() } else { self.dir_fd(parent, layer)? };
            self.pin_object(node, state, real.as_fd(), name)?;
        }
        let taken = self.change_names(&[(parent, dir.as_fd())], || {
            if layer != UPPER {
                self.make_whiteout(dir.as_fd(), name)
            } else if lower && counted.is_some() {
                self.cover_by_whiteout(dir.as_fd(), name)
            } else if lower {
                let temporary = self.work()?.temporary();
                self.replace_by_whiteout((dir.as_fd(), name), temporary.pair())
            } else {
                sys::unlink(dir.as_fd(), name)
            }
        });
        if let Err(errno) = taken {
            if let Some(state) = &mut state {
                state.unpin();
            }
            return Err(errno);
        }
        let mut gone = match counted {
            Some(counted) => self.name_removed(counted, node.zip(state.as_deref_mut())),
            None => Vec::new(),
        };
        self.note_removed(parent, name);
        self.listings.forget(parent.id);
        if let (Some(node), Some(state)) = (node, &mut state)
            && state.place.is(parent, name)
        {
            gone.extend(self.lose_name(node, state));
        }
        drop(state);
        self.let_go(gone);
        Ok(())
    }

    /// The node of what was found under a name, if the kernel remembers it.
    pub(super) fn known(&self, parent: &Arc<Node>, name: &OsStr, found: &Found) -> Option<Arc<Node>> {
        let by_real = self.table.find(&Key::Real(super::node::RealId::of(&found.stat)));
        if self.is_broken_link(found) {
            return self.table.find(&Key::Name(parent.id, Arc::from(name)));
        }
        by_real
    }

    /// Replaces an upper directory that holds nothing but whiteouts by an empty opaque one, so that another directory can
    /// be renamed over it.
    pub(super) fn clear_of_whiteouts(&self, dir: sys::BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let inside: OwnedFd = sys::open_dir(dir, name)?;
        let mut any = false;
        sys::read_dir(inside.as_fd(), |_| {
            any = true;
            Ok(())
        })?;
        if !any {
            return Ok(());
        }
        let work = self.work()?;
        let temporary = work.temporary();
        let stat = self.stat_in(At::Fd(inside.as_fd()), UPPER)?;
        sys::mkdir(work.fd(), temporary.name(), 0o700)?;
        let mode = self.give_owner(temporary.at(), &sys::stat(temporary.at())?, &stat)?;
        self.copy_xattrs(At::Fd(inside.as_fd()), temporary.at(), UPPER)?;
        if !self.describe(temporary.at(), &stat)? {
            sys::chmod(temporary.at(), mode)?;
        }
        self.set_opaque(temporary.at())?;
        sys::rename(temporary.pair(), (dir, name), RenameFlags::EXCHANGE)
    }
}
