//! The contents of files: read, write, sync, space.
//!
//! The kernel keeps no file handles with us (opens cost no message), so each request finds its real file through the
//! node: a descriptor that is pinned, one that is cached, or one that is opened now. Answers to the kernel's
//! `fs/overlayfs/file.c`.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::config::Fsync;
use super::copy_up::Data;
use super::node::{Nameless, Node, NodeId, Place, State, UPPER};
use super::superblock::{Caller, Overlay};
use crate::errno::{Errno, Result};
use crate::sys::pipe::Pipe;
use crate::sys::{self, AsFd, At, Kind, Mode, OFlags, Stat};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Both: it may be mapped, and written to through the mapping even after it was closed.
    Both,
}

/// Whether a write also takes suid, sgid and capabilities away.
#[derive(Clone, Copy, Debug)]
pub enum Privileges {
    /// They stay, but for the capability, which no write leaves.
    Keep,
    /// They stay, the capability too: a shared mapping was written to.
    KeepAll,
    /// They go, as far as this caller has no right to keep them.
    Kill(Caller),
}

impl Overlay {
    /// The node's real file, open for reading.
    pub(super) fn open_reader(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = self.writers.get(&node.id).or_else(|| self.readers.get(&node.id)) {
            return Ok(fd);
        }
        let state = node.state.read();
        if let Some(fd) = state.rare.open.as_ref().filter(|_| state.rare.data.is_none()) {
            return Ok(fd.clone());
        }
        let fd = Arc::new(if let Some(data) = &state.rare.data {
            self.open_data(data)?
        } else if state.layer == UPPER {
            self.open_real(&state, OFlags::RDONLY)?
        } else {
            // Reading must not change a lower layer. The owner and the privileged may say so.
            match self.open_real(&state, OFlags::RDONLY | OFlags::NOATIME) {
                Err(Errno::EPERM) => self.open_real(&state, OFlags::RDONLY)?,
                result => result?,
            }
        });
        // While the state is held: a copy-up cannot make the descriptor one of the past in between.
        self.readers.insert(node.id, fd.clone());
        Ok(fd)
    }

    /// The node's real file in the upper, open for reading and writing, after a copy-up if it takes one.
    pub(super) fn open_writer(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = self.writers.get(&node.id) {
            return Ok(fd);
        }
        self.copy_up_data(node, Data::All)?;
        let state = node.state.read();
        // A copy-up leaves its descriptor behind.
        if let Some(fd) = state.rare.open.clone().or_else(|| self.writers.get(&node.id)) {
            return Ok(fd);
        }
        let fd = match self.open_real(&state, OFlags::RDWR) {
            // A file that its owner, who is not root, may write to and not read: nothing to keep for readers.
            Err(Errno::EACCES) => return Ok(Arc::new(self.open_real(&state, OFlags::WRONLY)?)),
            result => Arc::new(result?),
        };
        self.writers.insert(node.id, fd.clone());
        Ok(fd)
    }

    /// The real object that has the attributes.
    pub(super) fn open_real(&self, state: &State, flags: OFlags) -> Result<OwnedFd> {
        // A fifo would wait for its other end.
        let flags = flags | OFlags::NONBLOCK;
        if let (Some(entry), Some(index)) = (&state.rare.index, &self.index) {
            return sys::open(index.dir.as_fd(), entry, flags, Mode::empty());
        }
        match &state.place {
            Place::In { parent, name } => {
                let dir = self.dir_fd(parent, state.layer)?;
                sys::open(dir.as_fd(), name, flags, Mode::empty())
            }
            Place::Nowhere(Nameless::Gone) => {
                sys::reopen(state.rare.object.as_ref().ok_or(Errno::ESTALE)?.as_fd(), flags)
            }
            Place::Nowhere(Nameless::Root) => Err(Errno::EISDIR),
        }
    }

    fn file(&self, id: NodeId) -> Result<Arc<Node>> {
        let node = self.node(id)?;
        match node.kind {
            Kind::File => Ok(node),
            Kind::Dir => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The real file that clients may read and write without us while it is open: one that no copy-up can put another in
    /// the place of. What is opened for writing is copied up. `None` if it takes us to read it.
    pub fn file_to_pass(&self, id: NodeId, access: Access) -> Result<Option<Arc<OwnedFd>>> {
        let node = self.file(id)?;
        if access != Access::Read {
            return self.open_writer(&node).map(Some);
        }
        if self.is_writable() && (!node.in_upper() || self.is_without_data(&node)) {
            return Ok(None);
        }
        // What the server cannot open can perhaps be read another way.
        Ok(self.open_reader(&node).ok())
    }

    /// From now on a file may be written to without us.
    pub fn begin_direct_writes(&self, id: NodeId, access: Access) {
        let Ok(node) = self.node(id) else { return };
        if node.own_change.begin_unheard(access == Access::Both) {
            // What was told of its times before does not hold: no event and no message tells of a write through a mapping.
            self.note_attributes(&node);
        }
    }

    /// From now on it may not, but through a mapping. What was written so far is no foreign change.
    pub fn end_direct_writes(&self, id: NodeId) {
        let Ok(node) = self.node(id) else { return };
        node.own_change.end_unheard();
        match self.writers.get(&id) {
            Some(fd) => _ = self.note_change(&node, At::Fd(fd.as_fd())),
            None => {
                let noted = self.with_real(&node, |at, _| {
                    self.note_change(&node, at);
                    Ok(())
                });
                if let Err(errno) = noted {
                    log::debug!("node {id}: what was written to it may pass for a foreign change: {errno}");
                }
            }
        }
    }

    /// How many bytes a first change to an object would copy.
    #[must_use]
    pub fn bytes_to_copy(&self, id: NodeId) -> u64 {
        let size = || -> Result<u64> {
            let node = self.node(id)?;
            if node.kind != Kind::File || (node.in_upper() && node.data().is_none()) {
                return Ok(0);
            }
            Ok(self.attr(&node)?.size)
        };
        // Whoever asks for the change hears of the error.
        size().unwrap_or(0)
    }

    /// Reads up to a buffer full of a file; returns how many bytes there were.
    pub fn read(&self, id: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let node = self.file(id)?;
        let fd = self.open_reader(&node)?;
        sys::pread(fd.as_fd(), buffer, offset)
    }

    /// The same into a pipe, without copying it. Returns how many bytes there were, at most as many as the pipe takes.
    pub fn read_into_pipe(&self, id: NodeId, offset: u64, length: usize, pipe: &Pipe) -> Result<usize> {
        let node = self.file(id)?;
        let fd = self.open_reader(&node)?;
        pipe.fill(fd.as_fd(), offset, length)
    }

    /// Writes to a file, which is copied up first if it is in a lower layer. Returns how many bytes fitted.
    pub fn write(&self, id: NodeId, offset: u64, data: &[u8], privileges: Privileges) -> Result<usize> {
        let node = self.file(id)?;
        let fd = self.open_writer(&node)?;
        let at = At::Fd(fd.as_fd());
        let _until_noted = node.own_change.begin();
        let kept = match privileges {
            Privileges::KeepAll => super::xattr::value(at, "security.capability")?,
            _ => None,
        };
        // Before the write, as the kernel does it: never new contents under an old suid, whatever happens in between.
        if !matches!(privileges, Privileges::KeepAll) {
            self.written_to(&node, at)?;
        }
        let mut believed = None;
        if let Privileges::Kill(caller) = privileges {
            match self.look_for_suid(&node, || self.owner_shown(at))? {
                Some(stat) => self.clear_privileges(&caller, &node, at, &stat)?,
                None => believed = Some(caller),
            }
        }
        let written = sys::pwrite(fd.as_fd(), data, offset)?;
        if let Some(capability) = kept
            && let Err(errno) = sys::set_xattr(at, OsStr::new("security.capability"), &capability, 0)
        {
            // The data is written; without the right to give a capability it is safe that it went.
            log::info!("node {id}: the capability went with a write through a mapping: {errno}");
        }
        let left = self.note_change(&node, at);
        if let (Some(caller), Some(stat)) = (believed, left)
            && stat.mode & (libc::S_ISUID | libc::S_ISGID) != 0
        {
            // They came behind the mount only just now.
            node.xattrs.forget();
            self.kill_privileges(&caller, &node, at)?;
            self.note_change(&node, at);
        }
        Ok(written)
    }

    /// Clears suid, and sgid where the group may execute or the caller is not in it. The capability goes with every
    /// write of the server itself.
    pub(super) fn kill_privileges(&self, caller: &Caller, node: &Node, at: At<'_>) -> Result<()> {
        self.clear_privileges(caller, node, at, &self.owner_shown(at)?)
    }

    /// The same for an object that looks like this.
    fn clear_privileges(&self, caller: &Caller, node: &Node, at: At<'_>, stat: &Stat) -> Result<()> {
        let cleared = caller.without_privileges(stat);
        if cleared == stat.mode {
            return Ok(());
        }
        self.chmod(at, cleared)?;
        // The reply may tell of an error, or of nothing.
        self.note_attributes(node);
        Ok(())
    }

    /// Syncs a file: nothing to do for one that was never copied up, nor in a volatile union.
    pub fn fsync(&self, id: NodeId, data_only: bool) -> Result<()> {
        let node = self.node(id)?;
        if self.fsync == Fsync::Volatile || !node.in_upper() {
            return Ok(());
        }
        self.commit_copies()?;
        if node.kind == Kind::Dir {
            let fd = self.dir_fd(&node, UPPER)?;
            return match sys::sync_all(fd.as_fd()) {
                // Opened `O_PATH`, for want of the right to read it.
                Err(Errno::EBADF) => sys::syncfs(self.work()?.fd()),
                result => result,
            };
        }
        if self.is_without_data(&node) {
            return sys::sync_all(self.open_upper(&node, OFlags::RDONLY)?.as_fd());
        }
        let fd = self.open_reader(&node)?;
        if data_only { sys::sync_data(fd.as_fd()) } else { sys::sync_all(fd.as_fd()) }
    }

    /// `fallocate(2)` with any mode that the upper's file system knows.
    pub fn fallocate(&self, id: NodeId, mode: i32, offset: u64, length: u64, privileges: Privileges) -> Result<()> {
        let node = self.file(id)?;
        let fd = self.open_writer(&node)?;
        let _until_noted = node.own_change.begin();
        // Whether or not there is space then, as the kernel does it.
        if let Privileges::Kill(caller) = privileges {
            self.kill_privileges(&caller, &node, At::Fd(fd.as_fd()))?;
        }
        sys::fallocate(fd.as_fd(), mode, offset, length)?;
        self.written_to(&node, At::Fd(fd.as_fd()))?;
        self.note_change(&node, At::Fd(fd.as_fd()));
        Ok(())
    }

    /// `lseek(2)` for `SEEK_DATA` and `SEEK_HOLE`. `ENXIO` where there is no more of either.
    pub fn seek(&self, id: NodeId, offset: i64, whence: i32) -> Result<u64> {
        let node = self.file(id)?;
        let fd = self.open_reader(&node)?;
        sys::seek(fd.as_fd(), offset, whence)
    }

    /// `copy_file_range(2)` between two files of the union. May copy less than asked for.
    pub fn copy_file_range(
        &self,
        from: (NodeId, u64),
        to: (NodeId, u64),
        length: usize,
        privileges: Privileges,
    ) -> Result<usize> {
        let (source, target) = (self.file(from.0)?, self.file(to.0)?);
        let to_file = self.open_writer(&target)?;
        // After the target: if both are one file, it has been copied up by now.
        let source = self.open_reader(&source)?;
        let _until_noted = target.own_change.begin();
        if let Privileges::Kill(caller) = privileges {
            self.kill_privileges(&caller, &target, At::Fd(to_file.as_fd()))?;
        }
        let copied = sys::copy_range(source.as_fd(), from.1, to_file.as_fd(), to.1, length)?;
        self.written_to(&target, At::Fd(to_file.as_fd()))?;
        self.note_change(&target, At::Fd(to_file.as_fd()));
        Ok(copied)
    }

    /// One of the `FS_IOC_*FLAGS` ioctls. Those that set copy up first.
    pub fn file_attr(&self, id: NodeId, command: u32, data: &mut [u8; 32], sets: bool) -> Result<()> {
        let node = self.node(id)?;
        let fd = match node.kind {
            Kind::File if sets => self.open_writer(&node)?,
            Kind::File => self.open_reader(&node)?,
            Kind::Dir => {
                if sets {
                    self.copy_up(&node)?;
                }
                let layer = node.state.read().layer;
                self.dir_fd(&node, layer)?
            }
            _ => return Err(Errno::ENOTTY),
        };
        sys::file_attr_ioctl(fd.as_fd(), command, data)?;
        if sets {
            // The kernel does not know that this changes attributes.
            self.note_attributes(&node);
        }
        Ok(())
    }
}
