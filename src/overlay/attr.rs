//! Attributes: what an object is like, and changes of that.
//!
//! Answers to the kernel's `fs/overlayfs/inode.c`.

use std::ffi::OsString;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::copy_up::{Cut, Data};
use super::file::Privileges;
use super::node::{Node, NodeId, Place, State, UPPER};
use super::superblock::{Caller, Lasting, Overlay};
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, Kind, Mode, OFlags, SetTime, Stat};

/// Which attributes are to change, and to what.
#[derive(Clone, Copy, Debug)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: SetTime,
    /// Time of last change of the data.
    pub mtime: SetTime,
    /// Whether a change of size takes suid and sgid away.
    pub privileges: Privileges,
    /// Whether it may be the kernel that writes back a time it has kept for a file, rather than a caller who sets it.
    pub from_cache: bool,
}

impl SetAttr {
    fn is_empty(&self) -> bool {
        (self.mode, self.uid, self.gid, self.size) == (None, None, None, None)
            && (self.atime, self.mtime) == (SetTime::Omit, SetTime::Omit)
    }
}

impl Overlay {
    /// The attributes of a node.
    pub fn getattr(&self, id: NodeId) -> Result<(Stat, Lasting)> {
        let node = self.node(id)?;
        let attr = self.attr(&node)?;
        let lasting = match (&node.dir, node.named()) {
            (Some(_), _) if self.is_watched(&node) => Lasting::Both,
            (None, Some((parent, _))) if self.is_watched(&parent) => self.lasting_attributes(&node, &attr),
            _ => Lasting::Neither,
        };
        Ok((attr, lasting))
    }

    /// The target of a symbolic link. `EINVAL` for what is none.
    pub fn readlink(&self, id: NodeId) -> Result<OsString> {
        let node = self.node(id)?;
        if node.kind != Kind::Symlink {
            return Err(Errno::EINVAL);
        }
        self.with_real(&node, |at, _| sys::readlink(at))
    }

    /// Changes attributes, after a copy-up if it takes one, and returns them all.
    ///
    /// A size cuts or extends the file before the mode changes; of the data only what stays is copied up.
    pub fn setattr(&self, caller: &Caller, id: NodeId, set: &SetAttr) -> Result<(Stat, Lasting)> {
        let node = self.node(id)?;
        if set.from_cache {
            // It comes with every change of names, too. Who removed a name did not change what a lower has under it.
            let known = self.getattr(id)?;
            if set.mtime == SetTime::At(known.0.mtime) || node.is_nameless_lower() {
                return Ok(known);
            }
        }
        if let Some(size) = set.size {
            self.set_size(&node, size, set)?;
        }
        self.copy_up(&node)?;
        if set.uid.is_some() || set.gid.is_some() {
            self.set_owner(caller, &node, set)?;
        }
        let mut heralded = None;
        if set.is_empty() && node.kind != Kind::Dir && node.kind != Kind::Symlink {
            heralded = self.with_real(&node, |at, _| self.change_nothing(caller, &node, at))?;
        }
        if let Some(mode) = set.mode {
            self.set_mode(&node, mode)?;
        }
        if (set.atime, set.mtime) != (SetTime::Omit, SetTime::Omit) {
            self.with_real(&node, |at, _| sys::set_times(at, set.atime, set.mtime))?;
        }
        // The change is made, and an error would say that it is not: what failed once is asked again.
        let result = self.getattr(id).or_else(|_| self.getattr(id))?;
        self.note_as(&node, &result.0);
        match heralded {
            // It has to be asked for again, and is right then, whether or not there was a write.
            Some(mode) => Ok((Stat { mode, ..result.0 }, Lasting::NameOnly)),
            None => Ok(result),
        }
    }

    /// A change of owner to the same owner, by who may; or the herald of somebody's write, which has its own flag. They are
    /// one message. Returns the mode that a write would leave, if it is to be told to the kernel: once the write has come it
    /// will not ask for the mode by itself, and `link(2)` goes by the one that it knows (`protected_hardlinks`).
    fn change_nothing(&self, caller: &Caller, node: &Node, at: At<'_>) -> Result<Option<u32>> {
        let stat = self.owner_shown(at)?;
        // Root's writes leave suid as it is; their herald follows on the removal of a capability.
        let may = match caller.uid {
            0 => self.capability_dropped.swap(0, Ordering::Relaxed) != node.id,
            // A write past the server brings no flag of its own.
            _ if node.own_change.is_unheard() => true,
            uid => uid == stat.uid,
        };
        if may {
            return self.kill_privileges(caller, node, at).map(|()| None);
        }
        let left = caller.without_privileges(&stat);
        if caller.uid == 0 || left == stat.mode {
            return Ok(None);
        }
        node.own_change.tell_ahead();
        Ok(Some(left))
    }

    /// Whether a file may be given another name by that caller. The kernel has seen to it, unless it was told of a write ahead
    /// that never came: then it took what still has suid for harmless.
    pub(super) fn may_be_linked(&self, caller: &Caller, node: &Arc<Node>) -> Result<bool> {
        if caller.uid == 0 || !node.own_change.is_told_ahead() {
            return Ok(true);
        }
        let stat = self.attr(node)?;
        let runs_as_group = stat.mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP;
        Ok(stat.uid == caller.uid || !(stat.mode & libc::S_ISUID != 0 || runs_as_group))
    }

    /// Takes sgid from what is not the caller's group's, before its ACL or owner changes: the server, who changes it, may
    /// keep it. Gives the mode that it had, if it had that.
    pub(super) fn clear_sgid_of_stranger(&self, caller: &Caller, node: &Arc<Node>) -> Result<Option<u32>> {
        let stat = self.attr(node)?;
        if stat.mode & libc::S_ISGID == 0 || caller.is_in_group(stat.gid) {
            return Ok(None);
        }
        self.copy_up(node)?;
        self.clear_sgid(node.id)?;
        Ok(Some(stat.mode))
    }

    /// Changes the owner. The file system takes suid away, and sgid where the group may execute; what remains to be done is
    /// what depends on who the caller is. Call after the copy-up.
    fn set_owner(&self, caller: &Caller, node: &Arc<Node>, set: &SetAttr) -> Result<()> {
        let plain = caller.uid != 0 && node.kind != Kind::Dir;
        let had = if plain { self.clear_sgid_of_stranger(caller, node)? } else { None };
        let (uid, gid) = self.owner_on_disk(set.uid, set.gid);
        let changed = self.with_real(node, |at, _| self.chown(at, uid, gid));
        if let (Err(_), Some(mode)) = (changed, had)
            && let Err(errno) = self.with_real(node, |at, _| self.chmod(at, mode))
        {
            log::warn!("node {}: neither its owner nor its mode could be set: {errno}", node.id);
        }
        node.xattrs.forget();
        changed
    }

    /// Takes the set-group-id bit away, as a change of the ACL by somebody outside the group does.
    pub fn clear_sgid(&self, id: NodeId) -> Result<()> {
        let node = self.node(id)?;
        self.with_real(&node, |at, _| {
            let mode = self.stat_in(at, UPPER)?.mode;
            if mode & libc::S_ISGID == 0 { Ok(()) } else { self.chmod(at, mode & !libc::S_ISGID) }
        })
    }

    fn set_size(&self, node: &Arc<Node>, size: u64, set: &SetAttr) -> Result<()> {
        match node.kind {
            Kind::File => {}
            Kind::Dir => return Err(Errno::EISDIR),
            _ => return Err(Errno::EINVAL),
        }
        let kill = match &set.privileges {
            Privileges::Kill(caller) => Some(*caller),
            Privileges::Keep | Privileges::KeepAll => None,
        };
        if self.copy_up_data(node, Data::Cut { size, kill })? == Cut::Done {
            return Ok(());
        }
        let fd = self.open_writer(node)?;
        self.written_to(node, At::Fd(fd.as_fd()))?;
        if let Some(caller) = &kill {
            self.kill_privileges(caller, node, At::Fd(fd.as_fd()))?;
        }
        sys::truncate(fd.as_fd(), size)
    }

    fn set_mode(&self, node: &Arc<Node>, mode: u32) -> Result<()> {
        if node.kind == Kind::File {
            if !self.may_read_marks(mode) {
                self.copy_up_data(node, Data::All)?;
            }
            self.pin_before(node, mode);
        }
        let changed = self.with_real(node, |at, _| self.chmod(at, mode));
        node.xattrs.forget();
        changed
    }

    /// Whether the server could open a file of that mode and owner for reading and writing.
    pub(super) fn may_reopen(&self, mode: u32) -> bool {
        self.server.0 == 0 || mode & 0o600 == 0o600 || self.source(UPPER).is_some()
    }

    /// Keeps a file open that the server could not open again once it has the new mode: somebody may have it open.
    fn pin_before(&self, node: &Arc<Node>, mode: u32) {
        if self.is_without_data(node) {
            // Opened when its data comes, whatever its mode is then.
            return;
        }
        if self.may_reopen(mode) {
            let unpinned = node.state.write().rare.take_open();
            drop(unpinned);
            return;
        }
        match self.open_writer(node) {
            Ok(fd) => node.state.write().rare.open = Some(fd),
            // It could not be written to before, either.
            Err(errno) => log::debug!("node {} cannot be kept open: {errno}", node.id),
        }
    }

    /// A name of the node is about to go: keeps the way to its object. Call with the node's state locked.
    pub(super) fn pin_object(
        &self,
        node: &Node,
        state: &mut State,
        dir: sys::BorrowedFd<'_>,
        name: &std::ffi::OsStr,
    ) -> Result<()> {
        if state.rare.object.is_none() {
            let open = state.rare.open.clone().or_else(|| self.writers.get(&node.id));
            // A reader can be of the data, which is not the object.
            let reader = || self.readers.get(&node.id).filter(|_| state.rare.data.is_none());
            let fd = match open.or_else(reader) {
                Some(open) => open,
                None => Arc::new(sys::open(dir, name, OFlags::PATH, Mode::empty())?),
            };
            state.rare.object = Some(fd);
        }
        Ok(())
    }

    /// The node's name is gone. Call with its state locked, after [`Overlay::pin_object`].
    ///
    /// Returns the nodes that went with it, to be let go once no state is locked: a directory's watches come before it.
    #[must_use]
    pub(super) fn lose_name(&self, node: &Arc<Node>, state: &mut State) -> Vec<Arc<Node>> {
        state.place = Place::GONE;
        self.table.moved(node, None)
    }
}
