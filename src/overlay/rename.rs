//! Renames, with `RENAME_NOREPLACE` and `RENAME_EXCHANGE`.
//!
//! Answers to the kernel's `ovl_rename`: what moves is copied up first; where a lower has the old name, a whiteout stays
//! behind, in the same step; a directory that a lower shares in is marked with where its lower part stays, or, without
//! `redirect_dir=on`, cannot be moved (`EXDEV`), which makes `mv` copy.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use smallvec::SmallVec;

use super::node::{LowerDir, Node, NodeId, Place, State, UPPER};
use super::order::WriteGuard;
use super::rename_ends::{End, check_apart};
use super::resolve::From;
use super::superblock::{Caller, Overlay};
use super::xattr::Mark;
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, Kind, RenameFlags};

/// What a rename does with what is under the new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rename {
    /// It is replaced.
    Replace,
    /// The rename fails with `EEXIST`.
    NoReplace,
    /// It gets the old name.
    Exchange,
}

/// What the upper has where a directory is to come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum There {
    /// Nothing that the file system does not replace by itself.
    Nothing,
    /// A whiteout, which a directory cannot replace.
    Device,
    /// A directory with names of whiteouts in it.
    Names,
}

impl Overlay {
    /// Renames in one step.
    ///
    /// # Errors
    /// `EXDEV` for a directory that a lower layer has or shares in, without `redirect_dir=on`; `ENOTEMPTY`, `ENOTDIR`, `EISDIR` as `rename(2)`.
    pub fn rename(&self, _caller: &Caller, from: (NodeId, &OsStr), to: (NodeId, &OsStr), how: Rename) -> Result<()> {
        let (old_parent, new_parent) = (self.node(from.0)?, self.node(to.0)?);
        if !old_parent.in_upper() || !new_parent.in_upper() || self.index_of_all().is_some() {
            // What will be refused must not copy anything up.
            let source = self.check_source(&old_parent, from.1)?;
            match how {
                Rename::Exchange => _ = self.check_source(&new_parent, to.1)?,
                Rename::Replace if source == Kind::Dir => self.check_replaced(&new_parent, to.1)?,
                Rename::Replace | Rename::NoReplace => {}
            }
        }
        self.copy_up(&old_parent)?;
        self.copy_up(&new_parent)?;
        if how == Rename::Replace {
            self.count_before_removal(&new_parent, to.1)?;
        }
        let mut entered = Vec::new();
        let result = loop {
            match self.try_rename(&old_parent, from.1, &new_parent, to.1, how, &mut entered) {
                // Data is copied under no lock that others need: copied up outside of the locks, and tried again.
                Ok(Some(below)) => {
                    if let Err(errno) = self.copy_up(&below) {
                        break Err(errno);
                    }
                }
                Ok(None) => break Ok(()),
                Err(errno) => break Err(errno),
            }
        };
        for id in entered {
            self.forget(id, 1);
        }
        result
    }

    /// Renames, or returns what has to be copied up first.
    fn try_rename(
        &self,
        old_parent: &Arc<Node>,
        old_name: &OsStr,
        new_parent: &Arc<Node>,
        new_name: &OsStr,
        how: Rename,
        entered: &mut Vec<NodeId>,
    ) -> Result<Option<Arc<Node>>> {
        // Two parents may lie anywhere; with one, a directory that is replaced lies in it.
        let one = old_parent.id == new_parent.id;
        let _down_the_tree = one.then(|| self.crossing.read());
        let _anywhere = (!one).then(|| self.crossing.write());
        let _names = self.lock_names(old_parent, new_parent)?;
        let (source, target) =
            (self.resolve(old_parent, old_name, From::Top)?, self.resolve(new_parent, new_name, From::Top)?);
        // What will be refused must not give anything a name, or copy it up.
        self.check_ends(source.as_ref(), target.as_ref(), how)?;
        let old = self.rename_end(old_parent, old_name, source, entered)?;
        let new = self.rename_end(new_parent, new_name, target, entered)?;
        let moving = old.node.clone().ok_or(Errno::ENOENT)?;
        if new.node.as_ref().is_some_and(|target| target.id == moving.id) {
            // Two names of one file: nothing to do, as rename(2) says.
            return Ok(None);
        }
        if !one {
            check_apart(&old, &new, &moving, how)?;
        }
        let swapped = new.node.clone().filter(|_| how == Rename::Exchange);
        if let Some(below) = std::iter::once(&moving).chain(&swapped).find(|node| !node.in_upper()) {
            if let (Kind::Dir, Rename::Replace, Some(target)) = (moving.kind, how, &new.node) {
                self.check_empty(target)?;
            }
            return Ok(Some(below.clone()));
        }
        if !one {
            self.keep_purity(&moving, new_parent)?;
        }
        self.claim_name(&new.parent, new.dir.as_fd(), &new.name)?;
        if swapped.is_some() {
            self.claim_name(&old.parent, old.dir.as_fd(), &old.name)?;
        }
        match &swapped {
            Some(target) => self.exchange(&old, &new, &moving, target)?,
            None => self.replace(&old, &new, &moving)?,
        }
        Ok(None)
    }

    fn exchange(&self, old: &End, new: &End, moving: &Arc<Node>, target: &Arc<Node>) -> Result<()> {
        if old.parent.id != new.parent.id {
            self.keep_purity(target, &old.parent)?;
        }
        self.prepare_move(old, moving, new)?;
        self.prepare_move(new, target, old)?;
        let on_disk = || sys::rename(old.pair(), new.pair(), RenameFlags::EXCHANGE);
        self.swap_names(old, new, moving, Some(target), None, on_disk)
    }

    fn replace(&self, old: &End, new: &End, moving: &Arc<Node>) -> Result<()> {
        let is_dir = moving.kind == Kind::Dir;
        let mut inside = None;
        let (mut removed, mut entry) = (None, None);
        let mut there = There::Nothing;
        if let Some(target) = &new.node {
            match (is_dir, target.kind == Kind::Dir) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) => {
                    inside = Some(self.names(target)?.write());
                    if !self.is_empty(target)? {
                        if target.in_upper() && !target.is_merged() {
                            // ENOTEMPTY or EEXIST: for the file system to say.
                            sys::renamed(old.pair(), new.pair())?;
                        }
                        return Err(Errno::ENOTEMPTY);
                    }
                    entry = self.entry_of_directory(target)?;
                    // Before anything else takes its place: whoever is in it stays in it, and its number is not used again.
                    let layer = target.state.read().layer;
                    removed = Some(self.dir_fd(target, layer)?);
                    if layer == UPPER && !self.device_whiteouts {
                        there = There::Names;
                        self.dirs.remove(&(target.id, UPPER));
                    } else if layer == UPPER {
                        self.clear_of_whiteouts(new.dir.as_fd(), &new.name)?;
                        self.dirs.remove(&(target.id, UPPER));
                    }
                }
                (false, false) => {}
            }
        }
        self.prepare_move(old, moving, new)?;
        if is_dir && new.node.is_none() {
            match sys::stat(new.at()) {
                Ok(stat) if self.is_whiteout(new.at(), &stat, false)? => there = There::Device,
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        // Known from now on: what is to be done about it after the rename must not fail, nor open anything.
        self.has_wh_names(&new.parent, &LowerDir::default())?;
        let on_disk = || self.move_upper(old, new, there);
        let result = self.swap_names(old, new, moving, None, removed, on_disk);
        drop(inside);
        result.inspect(|()| self.retire_directory(entry))
    }

    /// The rename itself, in the upper.
    fn move_upper(&self, old: &End, new: &End, there: There) -> Result<()> {
        if there == There::Names {
            return self.change_places(old, new);
        }
        if there == There::Device {
            // A directory cannot replace a device; the two change places, and the whiteout stays if it is wanted.
            sys::rename(old.pair(), new.pair(), RenameFlags::EXCHANGE)?;
            if !old.lower
                && let Err(errno) = sys::unlink(old.dir.as_fd(), &old.name)
            {
                // It hides nothing: the rename is done all the same.
                log::debug!("a whiteout that hides nothing stays: {}: {errno}", old.name.display());
            }
            return Ok(());
        }
        if !old.lower {
            sys::renamed(old.pair(), new.pair())?;
            self.drop_wh_name(&new.parent, new.dir.as_fd(), &new.name);
            return Ok(());
        }
        if !self.device_whiteouts {
            self.replace_by_whiteout(old.pair(), new.pair())?;
            self.drop_wh_name(&new.parent, new.dir.as_fd(), &new.name);
            return Ok(());
        }
        match sys::rename(old.pair(), new.pair(), RenameFlags::WHITEOUT) {
            Err(Errno::EINVAL | Errno::EPERM | Errno::ENOSYS) => self.move_without_rename_whiteout(old, new)?,
            result => result?,
        }
        self.drop_wh_name(&new.parent, new.dir.as_fd(), &new.name);
        Ok(())
    }

    /// A directory takes the place of one that holds nothing but names of whiteouts, which leaves by way of the old place.
    fn change_places(&self, old: &End, new: &End) -> Result<()> {
        sys::rename(old.pair(), new.pair(), RenameFlags::EXCHANGE)?;
        let temporary = self.work()?.temporary();
        let left = match old.lower {
            true => self.replace_by_whiteout(old.pair(), temporary.pair()),
            false => sys::renamed(old.pair(), temporary.pair()),
        };
        if let Err(errno) = left {
            sys::rename(old.pair(), new.pair(), RenameFlags::EXCHANGE)?;
            return Err(errno);
        }
        self.drop_wh_name(&new.parent, new.dir.as_fd(), &new.name);
        Ok(())
    }

    /// For file systems without `RENAME_WHITEOUT`. Where nothing is replaced, a whiteout is put under the new name, where it
    /// hides nothing, and the two change places. What is replaced must not go before its successor is there: then what
    /// moves takes its place first, and the whiteout comes to the old name in a second step. Who is killed in between leaves
    /// one name too many, and nothing is lost.
    fn move_without_rename_whiteout(&self, old: &End, new: &End) -> Result<()> {
        let there = match sys::stat(new.at()) {
            Ok(_) => true,
            Err(Errno::ENOENT) => false,
            Err(errno) => return Err(errno),
        };
        if new.node.is_none() && there {
            // A whiteout.
            return sys::rename(old.pair(), new.pair(), RenameFlags::EXCHANGE);
        }
        let temporary = self.work()?.temporary();
        sys::mknod(temporary.pair().0, temporary.name(), Kind::Char, 0, 0)?;
        if new.node.is_none() {
            sys::renamed(temporary.pair(), new.pair())?;
            return sys::rename(old.pair(), new.pair(), RenameFlags::EXCHANGE);
        }
        let hidden = if there {
            sys::rename(old.pair(), new.pair(), RenameFlags::EXCHANGE)?;
            // What is replaced leaves by way of the work directory, together with the temporary name.
            sys::rename(temporary.pair(), old.pair(), RenameFlags::EXCHANGE)
        } else {
            sys::renamed(old.pair(), new.pair())?;
            sys::renamed(temporary.pair(), old.pair())
        };
        if let Err(errno) = hidden {
            match there {
                true => sys::rename(old.pair(), new.pair(), RenameFlags::EXCHANGE)?,
                false => sys::renamed(new.pair(), old.pair())?,
            }
            return Err(errno);
        }
        Ok(())
    }

    /// Does a rename on disk and tells the nodes where they are now, while nobody can look. A directory that is replaced
    /// goes on in `removed`.
    fn swap_names(
        &self,
        old: &End,
        new: &End,
        moving: &Arc<Node>,
        swapped: Option<&Arc<Node>>,
        mut removed: Option<Arc<OwnedFd>>,
        on_disk: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let other = swapped.or(new.node.as_ref());
        let replaced = other.filter(|_| swapped.is_none());
        let (mut homes, mut other_homes) = (self.homes(moving), swapped.and_then(|node| self.homes(node)));
        // Files in order of their ids, then the rename lock, then directories: the written order.
        let mut nodes: SmallVec<[&Arc<Node>; 2]> = other.into_iter().chain([moving]).collect();
        nodes.sort_by_key(|node| (node.kind == Kind::Dir, node.id));
        // Opened now: under the locks below nothing may be opened from above.
        let left = match replaced {
            Some(node) if node.kind != Kind::Dir => Some(self.dir_fd(&new.parent, node.state.read().layer)?),
            _ => None,
        };
        let counted = match replaced {
            Some(replaced) if replaced.kind != Kind::Dir => self.object_to_count(new.dir.as_fd(), &new.name, UPPER)?,
            _ => None,
        };
        let mut renaming = None;
        let mut states = SmallVec::<[(NodeId, WriteGuard<'_, State>); 2]>::new();
        for node in nodes {
            if node.kind == Kind::Dir && renaming.is_none() {
                renaming = Some(self.renaming.write());
            }
            let mut state = node.state.write();
            if replaced.is_some_and(|replaced| replaced.id == node.id) && state.place.is(&new.parent, &new.name) {
                match (removed.take(), &left) {
                    (Some(dir), _) => state.rare.object = Some(dir),
                    (None, Some(dir)) => self.pin_object(node, &mut state, dir.as_fd(), &new.name)?,
                    (None, None) => return Err(Errno::ESTALE),
                }
            }
            states.push((node.id, state));
        }
        let dirs = [(&*old.parent, old.dir.as_fd()), (&*new.parent, new.dir.as_fd())];
        if let Err(errno) = self.change_names(if old.parent.id == new.parent.id { &dirs[..1] } else { &dirs }, on_disk)
        {
            states.iter_mut().for_each(|(_, state)| state.unpin());
            return Err(errno);
        }
        let mut gone = Vec::new();
        if let Some(counted) = counted {
            let state = replaced.and_then(|replaced| states.iter_mut().find(|(id, _)| *id == replaced.id));
            gone = self.name_removed(counted, replaced.zip(state.map(|(_, state)| &mut **state)));
        }
        for (id, state) in &mut states {
            if *id == moving.id && !state.place.is(&old.parent, &old.name) {
                self.note_linked(&new.parent, &new.name);
            } else if *id == moving.id {
                gone.extend(self.settle(moving, state, new));
                stay(moving, homes.take());
            } else if let Some(other) = other
                && state.place.is(&new.parent, &new.name)
            {
                match swapped {
                    Some(_) => {
                        gone.extend(self.settle(other, state, old));
                        stay(other, other_homes.take());
                    }
                    None => gone.extend(self.lose_name(other, state)),
                }
            }
        }
        self.note_removed(&old.parent, &old.name);
        self.note_move(moving, new.at());
        if let Some(swapped) = swapped {
            self.note_move(swapped, old.at());
        }
        self.listings.forget(old.parent.id);
        self.listings.forget(new.parent.id);
        drop(states);
        drop(renaming);
        self.let_go(gone);
        Ok(())
    }

    /// The node is at that end from now on.
    fn settle(&self, node: &Arc<Node>, state: &mut State, end: &End) -> Vec<Arc<Node>> {
        state.place = Place::In { parent: end.parent.clone(), name: end.name.clone() };
        // It may not have been watched there until now.
        node.xattrs.forget();
        self.table.moved(node, Some(&end.parent))
    }

    /// A directory that lowers share in must tell before where they stay; another that comes to where a lower has its
    /// name, or shares a parent with lowers, must be opaque before.
    fn prepare_move(&self, from: &End, moving: &Arc<Node>, to: &End) -> Result<()> {
        let elsewhere = from.parent.id != to.parent.id;
        if moving.is_merged() {
            self.set_redirect(from.at(), (&from.parent, &from.name), elsewhere)?;
        } else if let Some(data) = moving.data() {
            self.set_redirect(from.at(), (&from.parent, &from.name), elsewhere || data.linked)?;
        } else if moving.kind == Kind::Dir && !to.parent.lowers().is_empty() {
            self.set_opaque(from.at())?;
        } else {
            return Ok(());
        }
        self.note_change(moving, from.at());
        Ok(())
    }

    /// A directory that gets an object which was copied up is impure from now on.
    fn keep_purity(&self, moving: &Arc<Node>, parent: &Arc<Node>) -> Result<()> {
        let Some(dir) = &parent.dir else { return Err(Errno::ENOTDIR) };
        if self.is_impure(parent)? {
            return Ok(());
        }
        if moving.kind != Kind::Dir && self.with_real(moving, |at, _| self.mark(at, Mark::Origin))?.is_none() {
            return Ok(());
        }
        self.set_impure(parent, dir)
    }
}

/// The lower parts of a directory that was moved stay where they are.
fn stay(node: &Node, homes: Option<Arc<[LowerDir]>>) {
    if let (Some(dir), Some(homes)) = (&node.dir, homes) {
        *dir.lowers.write() = homes;
    }
}
