//! Copy-up: a lower object becomes an upper one, whole or not at all.
//!
//! Answers to the kernel's `fs/overlayfs/copy_up.c`: the copy is built in the work directory (data, attributes, origin;
//! settled on disk: `sync`) and published with one rename; until then everybody sees the lower object, from then on the copy.
//!
//! Data is copied under the node's own `copying` lock and no other.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::config::Fsync;
use super::index::has_no_handles;
use super::metacopy::LowerData;
use super::node::{LayerIndex, Node, Place, RealId, UPPER};
use super::origin::Origin;
use super::own_change::Number;
use super::superblock::{Caller, Overlay};
use super::table::Key;
use super::workdir::{Temporary, WorkDir};
use super::xattr::{Mark, is_absent};
use super::xattr_known::CAPABILITY;
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, CopyEffort, Kind, Mode, OFlags, RenameFlags, SetTime, Stat};

/// What is wanted of a file's data in the copy.
#[derive(Clone, Copy, Debug)]
pub(super) enum Data {
    /// None for now, if it can be found again; else all.
    Later,
    All,
    /// A truncation to that size, by a caller that takes suid and sgid away if it is given: the copy is made as the file is
    /// to be afterwards, so that nobody ever sees it cut but not yet changed, or changed though the rest failed.
    Cut {
        size: u64,
        kill: Option<Caller>,
    },
}

/// Whether a copy-up has done a truncation, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    Done,
    ToDo,
}

/// A copy that is ready to be published.
struct Built {
    /// The copy, open, if it is a regular file.
    copy: Option<OwnedFd>,
    number: Number,
    real: RealId,
}

/// Whether a copy found its place.
pub(super) enum Published {
    Yes,
    /// The node was renamed or removed meanwhile: try again.
    Moved,
}

impl Overlay {
    /// Sees to it that the upper holds a node and its parents. With `metacopy=on` its data stays where it is.
    ///
    /// # Errors
    /// `EROFS` without an upper, and whatever reading the lower or writing the upper gives. Nothing has changed then.
    pub(super) fn copy_up(&self, node: &Arc<Node>) -> Result<()> {
        self.copy_up_data(node, Data::Later).map(drop)
    }

    /// The same with its data, or part of it. A truncation is still to be done if the upper held the file already.
    pub(super) fn copy_up_data(&self, node: &Arc<Node>, data: Data) -> Result<Cut> {
        let work = self.work()?;
        let mut cut = Cut::ToDo;
        // From the topmost ancestor down, each under its own lock alone; and again, if one was moved meanwhile.
        while !node.in_upper() {
            let mut chain = vec![node.clone()];
            while let Some((parent, _)) = chain.last().and_then(|last| last.named())
                && !parent.in_upper()
            {
                chain.push(parent);
            }
            while let Some(next) = chain.pop() {
                let wanted = if next.id == node.id { data } else { Data::Later };
                let _copying = next.copying.lock();
                if next.in_upper() {
                    continue;
                }
                match self.copy_up_locked(work, &next, wanted)? {
                    Published::Moved => break,
                    Published::Yes if matches!(wanted, Data::Cut { .. }) => cut = Cut::Done,
                    Published::Yes => {}
                }
            }
        }
        if !matches!(data, Data::Later) && self.is_without_data(node) {
            let _copying = node.copying.lock();
            cut = self.complete_data(node, data)?;
        }
        Ok(cut)
    }

    fn copy_up_locked(&self, work: &WorkDir, node: &Arc<Node>, data: Data) -> Result<Published> {
        let (mut stat, layer) = self.with_real(node, |at, layer| Ok((self.stat_in(at, layer)?, layer)))?;
        if let Data::Cut { kill: Some(caller), .. } = data {
            stat.mode = caller.without_privileges(&self.shown(node, stat));
        }
        let temporary = work.temporary();
        // None where the file system has no handles: then the names part.
        let origin = match layer != UPPER && self.is_indexed(&stat) {
            true => self.with_real(node, |at, layer| self.origin_mark(at, layer))?,
            false => None,
        };
        let left = if matches!(data, Data::Later) { self.data_to_leave(node, &stat, layer) } else { None };
        let wanted = if left.is_none() && matches!(data, Data::Later) { Data::All } else { data };
        let Built { copy, number, real } = self.build(work, node, &temporary, &stat, layer, wanted)?;
        if let (Some(left), Some(copy)) = (&left, &copy) {
            self.set_mark_in_place(At::Fd(copy.as_fd()), Mark::Metacopy, &left.mark())?;
        }
        let Place::In { parent, name } = node.place() else {
            if left.is_some() {
                // Removed meanwhile: whoever has it open gets all of it.
                return Ok(Published::Moved);
            }
            return self.adopt_nameless(node, &temporary, copy);
        };
        if let Some(origin) = origin {
            let published = self.publish_in_index(node, temporary, (&stat, &origin), left)?;
            // By the index it shows already: an error would say that nothing was changed.
            if let Err(errno) = self.link_copied(node, &parent, &name) {
                log::info!("node {}: the copy is in the index, and has no name yet: {errno}", node.id);
            }
            return Ok(published);
        }
        if !parent.in_upper() {
            // Moved below a directory that is not copied up yet.
            return Ok(Published::Moved);
        }
        let complete = left.is_none();
        let published = self.publish(node, &parent, &name, temporary, (stat, number, real, left))?;
        if let (Published::Yes, Some(copy)) = (&published, copy.filter(|_| complete)) {
            // Most copies are written to next.
            self.writers.insert(node.id, Arc::new(copy));
        }
        Ok(published)
    }

    /// Makes the copy, under a temporary name.
    fn build(
        &self,
        work: &WorkDir,
        node: &Arc<Node>,
        temporary: &Temporary<'_>,
        stat: &Stat,
        layer: LayerIndex,
        data: Data,
    ) -> Result<Built> {
        let (mut copy, mut dir) = (None, None);
        match node.kind {
            Kind::File => copy = Some(self.copy_file(work, node, temporary, stat, data)?),
            Kind::Dir => {
                sys::mkdir(work.fd(), temporary.name(), 0o700)?;
                if self.fsync == Fsync::Strict {
                    // Before it gets a mode that may refuse it.
                    dir = Some(sys::open_dir(work.fd(), temporary.name())?);
                }
            }
            Kind::Symlink => {
                let target = self.with_real(node, |at, _| sys::readlink(at))?;
                sys::symlink(&target, work.fd(), temporary.name())?;
            }
            kind => {
                let (kind, mode) = self.stored_as(kind, 0o600);
                sys::mknod(work.fd(), temporary.name(), kind, mode, if kind == Kind::File { 0 } else { stat.rdev })?;
            }
        }
        let to = copy.as_ref().map_or(temporary.at(), |(copy, _)| At::Fd(copy.as_fd()));
        let made = sys::stat(to)?;
        let mode = self.give_owner(to, &made, stat)?;
        // Before the ACL and the mode, which may refuse a server that is not root.
        let mut number = Number::Changed;
        if self.keeps_origin(node, stat) {
            let indexed = layer != UPPER && self.is_indexed(stat);
            number = self.with_real(node, |from, _| self.set_origin(node, stat, (from, layer), to, indexed))?;
        }
        // After the owner, a change of which drops capabilities, and after the data, for the same reason.
        self.with_real(node, |from, _| self.copy_xattrs(from, to, layer))?;
        let cut = matches!(data, Data::Cut { .. });
        if cut
            && let Err(errno) = sys::remove_xattr(to, &self.name_on_disk(OsStr::new(CAPABILITY), UPPER)?)
            && !is_absent(errno)
        {
            return Err(errno);
        }
        if !self.describe(to, stat)? && node.kind != Kind::Symlink {
            sys::chmod(to, self.movable_mode(node.kind, mode))?;
        }
        let mtime = if cut { SetTime::Now } else { SetTime::At(stat.mtime) };
        sys::set_times(to, SetTime::At(stat.atime), mtime)?;
        if let Some((copy, effort)) = &copy {
            self.settle_data(copy.as_fd(), *effort)?;
        }
        if let Some(dir) = &dir {
            sys::sync_all(dir.as_fd())?;
        }
        Ok(Built { copy: copy.map(|(copy, _)| copy), number, real: RealId::of(&made) })
    }

    fn copy_file(
        &self,
        work: &WorkDir,
        node: &Arc<Node>,
        temporary: &Temporary<'_>,
        stat: &Stat,
        data: Data,
    ) -> Result<(OwnedFd, CopyEffort)> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let copy = sys::open(work.fd(), temporary.name(), flags, Mode::from_raw_mode(0o600))?;
        let wanted = match data {
            Data::Later => {
                sys::truncate(copy.as_fd(), stat.size)?;
                return Ok((copy, CopyEffort::Nothing));
            }
            Data::All => stat.size,
            Data::Cut { size, .. } => stat.size.min(size),
        };
        let mut effort = CopyEffort::Nothing;
        if wanted > 0 {
            let from = self.open_reader(node)?;
            effort = sys::copy_data(from.as_fd(), copy.as_fd(), wanted, stat.size)?;
        }
        if let Data::Cut { size, .. } = data
            && size > wanted
        {
            sys::truncate(copy.as_fd(), size)?;
        }
        self.begin_to_settle(copy.as_fd(), effort)?;
        Ok((copy, effort))
    }

    /// Gives a copy the owner of the original, and returns the mode that it may have. An owner that it has already is left
    /// alone. What a server without the right to give things away copies up is its own from then on, as everything is
    /// that such a user copies; nothing runs with the rights of an owner who did not say so.
    pub(super) fn give_owner(&self, to: At<'_>, current: &Stat, stat: &Stat) -> Result<u32> {
        if self.source(UPPER).is_some() {
            // Comes with the mode, in one attribute.
            return Ok(stat.mode);
        }
        if (current.uid, current.gid) == (stat.uid, stat.gid) {
            return Ok(stat.mode);
        }
        match sys::chown(to, Some(stat.uid), Some(stat.gid)) {
            // Not the server's to give, or no id at all in its user namespace.
            Err(Errno::EPERM | Errno::EINVAL) => {}
            result => return result.map(|()| stat.mode),
        }
        // The group is one that the server may be in.
        let group = current.gid == stat.gid || sys::chown(to, None, Some(stat.gid)).is_ok();
        let owner = current.uid == stat.uid;
        let lost = if owner { 0 } else { libc::S_ISUID } | if group { 0 } else { libc::S_ISGID };
        Ok(stat.mode & !lost)
    }

    /// Whether a copy stays recognisable as one: not one of several links of a lower file, which part on copy-up.
    fn keeps_origin(&self, node: &Node, stat: &Stat) -> bool {
        node.kind == Kind::Dir || stat.nlink == 1 || self.is_indexed(stat)
    }

    /// Marks a copy with where it came from. Says whether its number will be found again by that. Without the mark one that is
    /// `indexed` would part from its other names.
    fn set_origin(
        &self,
        node: &Node,
        stat: &Stat,
        (from, layer): (At<'_>, LayerIndex),
        to: At<'_>,
        indexed: bool,
    ) -> Result<Number> {
        let uuid = self.layers.filesystem_of(layer).map(|fs| fs.uuid);
        let origin = match sys::file_handle(from) {
            Ok(handle) => Some(Origin { uuid: uuid.unwrap_or_default(), handle }),
            Err(errno) if indexed && !has_no_handles(errno) => return Err(errno),
            Err(_) => None,
        };
        // Empty: copied up, nobody knows from where.
        let mark = origin.as_ref().and_then(Origin::encode).unwrap_or_default();
        let found_again = || {
            let origin = origin.filter(|_| !mark.is_empty());
            origin.and_then(|origin| self.number_of_origin(&origin, Some(stat))) == Some(node.ino())
        };
        match self.set_mark(to, Mark::Origin, &mark) {
            Ok(()) if node.kind == Kind::Dir || found_again() => Ok(Number::Kept),
            Ok(()) => Ok(Number::Changed),
            // A merged directory is known by its lower one.
            Err(errno) if is_absent(errno) && node.kind == Kind::Dir => Ok(Number::Kept),
            Err(errno) if indexed => Err(errno),
            // Without privilege symlinks and special files hold no mark, in the kernel's overlay neither.
            Err(errno) if is_absent(errno) => Ok(Number::Changed),
            Err(errno) => Err(errno),
        }
    }

    /// Moves a finished copy to its place in the upper, in one step.
    fn publish(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: &Arc<OsStr>,
        temporary: Temporary<'_>,
        (wanted, number, real, data): (Stat, Number, RealId, Option<Arc<LowerData>>),
    ) -> Result<Published> {
        let Some(parent_dir) = &parent.dir else { return Err(Errno::ENOTDIR) };
        let to_dir = self.dir_fd(parent, UPPER)?;
        let _names = parent_dir.names.write();
        if !self.is_impure(parent)? && (node.kind == Kind::Dir || self.mark(temporary.at(), Mark::Origin)?.is_some()) {
            self.set_impure(parent, parent_dir)?;
        }
        self.claim_name(parent, to_dir.as_fd(), name)?;
        if let Some(dir) = &node.dir {
            dir.wh_names.store(1, Ordering::Relaxed);
        }
        let before = sys::stat(At::Fd(to_dir.as_fd()))?;
        {
            // A file's state keeps its name as it is while it changes hands. A directory's name is kept by `names`, and
            // its state must not be held while directories are opened.
            let file_state = (node.kind != Kind::Dir).then(|| node.state.write());
            let moved = match &file_state {
                Some(state) => !state.place.is(parent, name),
                None => !node.state.read().place.is(parent, name),
            };
            if moved {
                return Ok(Published::Moved);
            }
            let place = (to_dir.as_fd(), &**name);
            match self.in_writable(to_dir.as_fd(), || sys::rename(temporary.pair(), place, RenameFlags::NOREPLACE)) {
                Ok(()) => {}
                // Somebody put an object into the upper behind the mount.
                Err(Errno::EEXIST) => return Err(Errno::ESTALE),
                Err(Errno::EINVAL) => sys::renamed(temporary.pair(), (to_dir.as_fd(), name))?,
                Err(errno) => return Err(errno),
            }
            temporary.publish();
            self.settle_mode(At::Name(to_dir.as_fd(), name), node.kind, wanted.mode)?;
            let mut state = file_state.unwrap_or_else(|| node.state.write());
            // Before anybody can see that it is in the upper, and link it to where it is found by its inode.
            self.table.rekey(node, Key::Real(real));
            state.layer = UPPER;
            state.real = real;
            state.rare.set_data(data);
            node.xattrs.forget();
            self.readers.remove(&node.id);
        }
        self.counts.copied_up(if node.kind == Kind::File { wanted.size } else { 0 });
        self.listings.forget(parent.id);
        if number == Number::Changed {
            let own = self.numbers.persistent(&self.layers, real.dev, real.ino);
            node.set_ino(own.unwrap_or_else(|| self.numbers.made_up()));
        }
        self.note_copy_up(node, parent, number);
        restore_times(to_dir.as_fd(), &before);
        self.note_change(parent, At::Fd(to_dir.as_fd()));
        if self.is_settled_late(node.kind, wanted.mode) {
            self.note_change(node, At::Name(to_dir.as_fd(), name));
        }
        if node.kind == Kind::Dir
            && let Err(errno) = self.index_directory(At::Name(to_dir.as_fd(), name))
        {
            // Handles lead to it by its own number then, and an error would say that nothing was changed.
            log::warn!("the copy of {} has no entry in the index: {errno}", name.display());
        }
        Ok(Published::Yes)
    }

    /// The mode with which a copy is moved into place. Who is not root can move a directory only if it may write to it.
    pub(super) fn movable_mode(&self, kind: Kind, mode: u32) -> u32 {
        if kind == Kind::Dir && self.server.0 != 0 { mode | 0o200 } else { mode }
    }

    /// Gives an object its own mode, if it was moved with another.
    pub(super) fn settle_mode(&self, at: At<'_>, kind: Kind, mode: u32) -> Result<()> {
        if self.is_settled_late(kind, mode) { sys::chmod(at, mode) } else { Ok(()) }
    }

    /// Whether an object gets its own mode only once it is in its place.
    fn is_settled_late(&self, kind: Kind, mode: u32) -> bool {
        self.movable_mode(kind, mode) != mode && self.source(UPPER).is_none()
    }

    /// Does something in an upper directory that its owner, who is not root, has made unwritable: a copy-up is no change
    /// that the mode of the directory is there to prevent.
    pub(super) fn in_writable<T>(&self, dir: sys::BorrowedFd<'_>, f: impl Fn() -> Result<T>) -> Result<T> {
        match f() {
            Err(Errno::EACCES) if self.server.0 != 0 => {}
            result => return result,
        }
        let mode = sys::stat(At::Fd(dir))?.mode;
        if mode & 0o300 == 0o300 {
            return Err(Errno::EACCES);
        }
        sys::chmod(At::Fd(dir), mode | 0o300)?;
        let result = f();
        sys::chmod(At::Fd(dir), mode)?;
        result
    }

    /// A node without a name, open somewhere: the copy stays without one, too.
    fn adopt_nameless(&self, node: &Arc<Node>, temporary: &Temporary<'_>, copy: Option<OwnedFd>) -> Result<Published> {
        let object = match copy {
            Some(copy) => copy,
            None => sys::open(temporary.pair().0, temporary.name(), OFlags::PATH, Mode::empty())?,
        };
        let object = Arc::new(object);
        let real = RealId::of(&sys::stat(At::Fd(object.as_fd()))?);
        let mut state = node.state.write();
        state.layer = UPPER;
        state.real = real;
        state.rare.set_data(None);
        if node.kind == Kind::File {
            state.rare.open = Some(object.clone());
        }
        state.rare.object = Some(object);
        self.readers.remove(&node.id);
        Ok(Published::Yes)
    }
}

/// Does something to a directory of the upper that does not change it for those who look at it through the union.
pub(super) fn keeping_times<T>(dir: sys::BorrowedFd<'_>, change: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = sys::stat(At::Fd(dir))?;
    let changed = change()?;
    restore_times(dir, &before);
    Ok(changed)
}

fn restore_times(dir: sys::BorrowedFd<'_>, before: &Stat) {
    if let Err(errno) = sys::set_times(At::Fd(dir), SetTime::At(before.atime), SetTime::At(before.mtime)) {
        log::debug!("copy-up: times of the parent directory cannot be restored: {errno}");
    }
}
