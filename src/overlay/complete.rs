//! The data of a metacopy follows, when it is wanted at last.
//!
//! Owns: the copy-up of data that a copy-up has left where it was. Answers to the metacopy half of the kernel's `copy_up.c`.
//!
//! A file with one name is replaced by a whole one. Of others the mark goes only when the data is complete and, where that is
//! asked for, on the disk; until then whoever reads gets the data of the layer below. So a crash at any moment leaves the old
//! file or the new one.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::copy_up::{Cut, Data, keeping_times};
use super::metacopy::LowerData;
use super::node::{Node, RealId, UPPER};
use super::superblock::Overlay;
use super::table::Key;
use super::xattr::{Mark, is_absent};
use super::xattr_known::CAPABILITY;
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, CopyEffort, Mode, OFlags, SetTime, Stat};

/// Whether a file without data was replaced by a whole one.
enum Replaced {
    Yes,
    /// It was renamed, removed or got another name meanwhile: try again.
    Moved,
    CannotBe,
}

/// Gives a file back the capability that a change of its data has taken.
fn give_capability(at: At<'_>, capability: Option<&[u8]>) -> Result<()> {
    capability.map_or(Ok(()), |value| sys::set_xattr(at, OsStr::new(CAPABILITY), value, 0))
}

impl Overlay {
    /// Copies the data up that a copy-up has left where it was. Call with the node's `copying` locked. Says whether a
    /// truncation that is wanted is done.
    ///
    /// Of an object that has one name only, and keeps its number by its origin, a whole one is made and takes its place:
    /// so a death in between leaves the old one, times and all. Others are completed in place, as the kernel does it with
    /// all: then a death can leave the old data under a new time.
    pub(super) fn complete_data(&self, node: &Arc<Node>, wanted: Data) -> Result<Cut> {
        let cut = if matches!(wanted, Data::Cut { .. }) { Cut::Done } else { Cut::ToDo };
        while let Some(data) = node.data() {
            match self.replace_by_whole(node, &data, wanted)? {
                Replaced::Yes => {}
                Replaced::Moved => continue,
                Replaced::CannotBe => self.complete_in_place(node, &data, wanted)?,
            }
            self.readers.remove(&node.id);
            self.note_attributes(node);
            return Ok(cut);
        }
        Ok(Cut::ToDo)
    }

    /// Makes a whole file of one without data, and moves it to its place.
    fn replace_by_whole(&self, node: &Arc<Node>, data: &LowerData, wanted: Data) -> Result<Replaced> {
        let Some((parent, name)) = node.named() else { return Ok(Replaced::CannotBe) };
        let Some(parent_dir) = &parent.dir else { return Err(Errno::ENOTDIR) };
        let stat = self.with_real(node, |at, _| sys::stat(at))?;
        let origin = self.with_real(node, |at, _| self.own_mark(at, Mark::Origin))?.unwrap_or_default();
        let indexed = node.state.read().rare.index.is_some();
        if stat.nlink != 1 || indexed || self.origin_number(&origin) != Some(node.ino()) {
            return Ok(Replaced::CannotBe);
        }
        let work = self.work()?;
        let temporary = work.temporary();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let copy = sys::open(work.fd(), temporary.name(), flags, Mode::from_raw_mode(0o600))?;
        let effort = self.fill(data, &copy, stat.size, wanted)?;
        self.settle_data(copy.as_fd(), effort)?;
        let dir = self.dir_fd(&parent, UPPER)?;
        let place = (dir.as_fd(), &*name);
        let at = At::Name(dir.as_fd(), &name);
        let _names = parent_dir.names.write();
        {
            // From here on nobody changes its attributes.
            let mut state = node.state.write();
            let stat = sys::stat(at)?;
            if !state.place.is(&parent, &name) || stat.nlink != 1 {
                return Ok(Replaced::Moved);
            }
            if RealId::of(&stat) != state.real {
                return Err(Errno::ESTALE);
            }
            match self.take_attributes(node, (at, &stat), At::Fd(copy.as_fd()), wanted) {
                // Of somebody else's, or what nobody may set any more: it has them where it is.
                Err(Errno::EPERM | Errno::EACCES | Errno::EINVAL | Errno::ENOTSUP) => return Ok(Replaced::CannotBe),
                result => result?,
            }
            let real = RealId::of(&sys::stat(At::Fd(copy.as_fd()))?);
            let publish = || self.in_writable(dir.as_fd(), || sys::renamed(temporary.pair(), place));
            keeping_times(dir.as_fd(), publish)?;
            temporary.publish();
            self.table.rekey(node, Key::Real(real));
            state.real = real;
            state.rare.set_data(None);
            node.xattrs.forget();
            let copy = Arc::new(copy);
            if !self.may_reopen(stat.mode) {
                // Somebody may have it open for writing from before its mode changed.
                state.rare.open = Some(copy.clone());
            }
            self.writers.insert(node.id, copy);
        }
        self.listings.forget(parent.id);
        self.note_change(&parent, At::Fd(dir.as_fd()));
        self.note_change(node, at);
        Ok(Replaced::Yes)
    }

    /// Copies the first bytes of the data, as many as are wanted of them, and gives the file the size that is wanted.
    fn fill(&self, data: &LowerData, to: &OwnedFd, size: u64, wanted: Data) -> Result<CopyEffort> {
        let size_wanted = if let Data::Cut { size, .. } = wanted { size } else { size };
        let bytes = size.min(size_wanted);
        let mut effort = CopyEffort::Nothing;
        if bytes > 0 {
            let from = self.open_data(data)?;
            let whole = sys::stat(At::Fd(from.as_fd()))?.size;
            effort = sys::copy_data(from.as_fd(), to.as_fd(), bytes, whole)?;
            // What was cloned can be longer than what the attributes say.
            sys::truncate(to.as_fd(), bytes)?;
        }
        if size_wanted > bytes {
            sys::truncate(to.as_fd(), size_wanted)?;
        }
        Ok(effort)
    }

    /// Gives a file all that another has but the mark that says that its data lies elsewhere.
    fn take_attributes(&self, node: &Arc<Node>, (from, stat): (At<'_>, &Stat), to: At<'_>, wanted: Data) -> Result<()> {
        let current = sys::stat(to)?;
        if (current.uid, current.gid) != (stat.uid, stat.gid) {
            sys::chown(to, Some(stat.uid), Some(stat.gid))?;
        }
        let cut = matches!(wanted, Data::Cut { .. });
        let hollow = Mark::Metacopy.name(self.namespace);
        let capability = self.name_on_disk(OsStr::new(CAPABILITY), UPPER)?;
        let list = sys::list_xattr(from)?;
        let mut names: Vec<&OsStr> = list.split(|byte| *byte == 0).map(OsStr::from_bytes).collect();
        names.retain(|name| !name.is_empty() && **name != *hollow && !(cut && **name == *capability));
        // ACLs last: a mode without write permission refuses the rest to who is not root.
        names.sort_by_key(|name| name.as_bytes().starts_with(b"system.posix_acl_"));
        for name in names {
            sys::set_xattr(to, name, &sys::get_xattr(from, name)?, 0)?;
        }
        sys::chmod(to, stat.mode)?;
        if let Data::Cut { kill: Some(caller), .. } = wanted {
            self.kill_privileges(&caller, node, to)?;
        }
        sys::set_times(to, SetTime::At(stat.atime), if cut { SetTime::Now } else { SetTime::At(stat.mtime) })
    }

    fn complete_in_place(&self, node: &Arc<Node>, data: &LowerData, wanted: Data) -> Result<()> {
        let to = self.open_upper_writable(node)?;
        let at = At::Fd(to.as_fd());
        let stat = sys::stat(at)?;
        let mode = self.stat_in(at, UPPER)?.mode;
        let capability = super::xattr::value(at, CAPABILITY)?;
        if let Err(errno) = self.bring_data(node, data, &to, (&stat, capability.as_deref()), wanted) {
            // The mark is there still, so the data is the lower's: with the rest as it was, nothing is changed.
            let back = sys::truncate(to.as_fd(), stat.size)
                .and_then(|()| if self.stat_in(at, UPPER)?.mode == mode { Ok(()) } else { self.chmod(at, mode) })
                .and_then(|()| give_capability(at, capability.as_deref()))
                .and_then(|()| sys::set_times(at, SetTime::At(stat.atime), SetTime::At(stat.mtime)));
            if let Err(errno) = back {
                log::warn!("node {}: its data did not come, and its size did not come back: {errno}", node.id);
            }
            return Err(errno);
        }
        let mut state = node.state.write();
        state.rare.set_data(None);
        if !self.may_reopen(stat.mode) {
            // Somebody may have it open for writing from before its mode changed.
            state.rare.open = Some(Arc::new(to));
        }
        Ok(())
    }

    /// Brings the data into an upper file as it is, or as it is to be, and takes its mark, last of all.
    fn bring_data(
        &self,
        node: &Arc<Node>,
        data: &LowerData,
        to: &OwnedFd,
        (stat, capability): (&Stat, Option<&[u8]>),
        wanted: Data,
    ) -> Result<()> {
        let at = At::Fd(to.as_fd());
        let cut = matches!(wanted, Data::Cut { .. });
        if let Data::Cut { size, .. } = wanted
            && size < stat.size
        {
            // While the mark is there: cut, and still whole.
            sys::truncate(to.as_fd(), size)?;
        }
        let effort = self.fill(data, to, stat.size, wanted)?;
        self.settle_data(to.as_fd(), effort)?;
        if sys::stat(at)?.mode != stat.mode {
            sys::chmod(at, stat.mode)?;
        }
        if !cut {
            give_capability(at, capability)?;
        } else if let Err(errno) = sys::remove_xattr(at, &self.name_on_disk(OsStr::new(CAPABILITY), UPPER)?)
            && !is_absent(errno)
        {
            return Err(errno);
        }
        if let Data::Cut { kill: Some(caller), .. } = wanted {
            self.kill_privileges(&caller, node, at)?;
        }
        sys::set_times(at, SetTime::At(stat.atime), if cut { SetTime::Now } else { SetTime::At(stat.mtime) })?;
        match self.remove_mark(at, Mark::Metacopy) {
            Ok(()) | Err(Errno::ENODATA) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// The upper file, open for reading and writing, whatever its mode says to a server that is not root.
    fn open_upper_writable(&self, node: &Arc<Node>) -> Result<OwnedFd> {
        match self.open_upper(node, OFlags::RDWR) {
            Err(Errno::EACCES) if self.server.0 != 0 => {}
            result => return result,
        }
        let mode = self.with_real(node, |at, _| Ok(sys::stat(at)?.mode))?;
        self.with_real(node, |at, _| sys::chmod(at, mode | 0o600))?;
        let opened = self.open_upper(node, OFlags::RDWR);
        self.with_real(node, |at, _| sys::chmod(at, mode))?;
        opened
    }

    /// The upper file itself, also of one that has no data.
    pub(super) fn open_upper(&self, node: &Node, flags: OFlags) -> Result<OwnedFd> {
        self.open_real(&node.state.read(), flags)
    }
}
