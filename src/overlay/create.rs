//! New objects: files, directories, symlinks, nodes, hard links.
//!
//! Answers to the kernel's `fs/overlayfs/dir.c`. What can be made right at once in its place is; what needs an owner, an
//! opaque mark or a whiteout replaced is prepared in the work directory and moved into place in one step.

use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::copy_up::Data;
use super::node::{LowerDir, Node, NodeId, UPPER, known};
use super::order::WriteGuard;
use super::resolve::{Found, From};
use super::superblock::{Caller, Entry, Overlay};
use super::workdir::{Temporary, WorkDir, remove_tree};
use crate::errno::{Errno, Result};
use crate::sys::{self, ACL_ACCESS, ACL_DEFAULT, Acl, AsFd, At, Kind, Mode, OFlags, RenameFlags};

/// What is to be made.
#[derive(Clone, Copy, Debug)]
enum What<'a> {
    /// A regular file, directory, fifo, socket or device; the mode is before the umask.
    Node {
        kind: Kind,
        mode: u32,
        rdev: u64,
    },
    Symlink(&'a OsStr),
    /// Another name of an upper object.
    Link(&'a Arc<Node>),
}

impl What<'_> {
    fn kind(&self) -> Kind {
        match self {
            What::Node { kind, .. } => *kind,
            What::Symlink(_) => Kind::Symlink,
            What::Link(node) => node.kind,
        }
    }
}

impl Overlay {
    /// Makes a regular file, fifo, socket or device. A 0/0 character device would be a whiteout: `EPERM`.
    pub fn mknod(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, rdev: u64) -> Result<Entry> {
        let kind = Kind::of_mode(mode);
        match kind {
            Kind::Char if rdev == 0 => return Err(Errno::EPERM),
            Kind::Dir | Kind::Symlink => return Err(Errno::EINVAL),
            _ => {}
        }
        self.make(caller, parent, name, What::Node { kind, mode, rdev })
    }

    /// Makes a directory, which is opaque if a lower layer has, or had, the name.
    pub fn mkdir(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Entry> {
        self.make(caller, parent, name, What::Node { kind: Kind::Dir, mode, rdev: 0 })
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, caller: &Caller, parent: NodeId, name: &OsStr, target: &OsStr) -> Result<Entry> {
        self.make(caller, parent, name, What::Symlink(target))
    }

    /// Gives an object one more name. It is copied up first.
    pub fn link(&self, caller: &Caller, id: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry> {
        let node = self.node(id)?;
        if node.kind == Kind::Dir {
            return Err(Errno::EPERM);
        }
        if !self.may_be_linked(caller, &node)? {
            return Err(Errno::EPERM);
        }
        self.copy_up(&node)?;
        if node.data().is_some() {
            // From both names the data is to be found.
            let marked = match node.named() {
                Some((parent, name)) => {
                    let dir = self.dir_fd(&parent, UPPER)?;
                    self.set_redirect(At::Name(dir.as_fd(), &name), (&parent, &name), true)
                }
                None => Err(Errno::EXDEV),
            };
            if marked.is_err() {
                self.copy_up_data(&node, Data::All)?;
            }
        }
        let before = node.named();
        let made = self.make(caller, parent, name, What::Link(&node));
        if let Some((parent, name)) = before {
            // The node is where it was found last.
            self.note_linked(&parent, &name);
        }
        made
    }

    /// Makes a regular file without a name (`O_TMPFILE`). It can be given one by [`Overlay::link`].
    pub fn tmpfile(&self, caller: &Caller, parent: NodeId, mode: u32) -> Result<Entry> {
        let parent = self.node(parent)?;
        if parent.kind != Kind::Dir {
            return Err(Errno::ENOTDIR);
        }
        let caller = self.caller_on_disk(caller);
        self.copy_up(&parent)?;
        let dir = self.dir_fd(&parent, UPPER)?;
        // Group and ACLs as for a name in that directory.
        sys::set_umask(caller.umask)?;
        let flags = OFlags::RDWR | OFlags::TMPFILE;
        let (_, stored) = self.stored_as(Kind::File, mode & 0o7777);
        let file = sys::open(dir.as_fd(), OsStr::new("."), flags, Mode::from_raw_mode(stored))?;
        let at = At::Fd(file.as_fd());
        let mut made = sys::stat(at)?;
        let above = self.stat_in(At::Fd(dir.as_fd()), UPPER)?;
        let inherits_group = above.mode & libc::S_ISGID != 0;
        let gid = if inherits_group { above.gid } else { caller.gid };
        if self.source(UPPER).is_some() {
            (made.uid, made.gid) = (caller.uid, gid);
            made.mode = libc::S_IFREG | (mode & 0o7777 & !caller.umask);
            self.describe(at, &made)?;
        } else if (made.uid, made.gid) != (caller.uid, gid) {
            self.chown_on_disk(at, Some(caller.uid), Some(gid))?;
            // A change of owner takes suid and sgid away.
            sys::chmod(at, made.mode)?;
        }
        self.enter_nameless(Arc::new(file))
    }

    fn make(&self, caller: &Caller, parent: NodeId, name: &OsStr, what: What<'_>) -> Result<Entry> {
        let parent = self.node(parent)?;
        self.copy_up(&parent)?;
        let Some(parent_dir) = &parent.dir else { return Err(Errno::ENOTDIR) };
        let dir = self.dir_fd(&parent, UPPER)?;
        let _names = parent_dir.names.write();
        let target = Target { parent: &parent, dir: dir.as_fd(), name };
        self.claim_name(&parent, target.dir, name)?;
        // Known from now on: what is to be done about it once the object is there must not fail.
        self.has_wh_names(&parent, &LowerDir::default())?;
        if let What::Link(node) = what {
            // It may be one that was copied up: the directory holds such from now on.
            if self.is_impure_object(node)? {
                self.set_impure(&parent, parent_dir)?;
            }
        }
        let make = || self.make_counted(&self.caller_on_disk(caller), &target, what);
        let (file, replaced) = self.change_names(&[(&parent, target.dir)], make)?;
        if let What::Link(_) = what {
            self.note_linked(&parent, name);
        }
        self.listings.forget(parent.id);
        let found = match self.look_at_new(&target, what, file.as_ref()) {
            Ok(found) => found,
            Err(errno) => {
                let _alone = self.hold_count_of(what);
                self.unmake(&target, replaced);
                return Err(errno);
            }
        };
        self.drop_wh_name(&parent, target.dir, name);
        let entry = self.enter_new(&parent, name, found, self.is_made_quietly(&parent, what))?;
        if let Some(file) = file {
            self.keep_open(&entry, Arc::new(file));
        }
        Ok(entry)
    }

    /// Whether the making of an object raises no event but that of its name: it changes no object that was there, and sets
    /// nothing once the name is.
    fn is_made_quietly(&self, parent: &Node, what: What<'_>) -> bool {
        match what {
            What::Link(_) => false,
            What::Node { kind: Kind::Dir, mode, .. } => {
                parent.lowers().is_empty() && self.movable_mode(Kind::Dir, mode) == mode
            }
            What::Node { .. } | What::Symlink(_) => true,
        }
    }

    /// A file that was just made will be written to soon; and if its mode would refuse the server, only through this.
    fn keep_open(&self, entry: &Entry, file: Arc<OwnedFd>) {
        if !self.may_reopen(entry.attr.mode)
            && let Some(node) = self.table.get(entry.id)
        {
            node.state.write().rare.open = Some(file.clone());
        }
        self.writers.insert(entry.id, file);
    }

    fn is_impure_object(&self, node: &Arc<Node>) -> Result<bool> {
        Ok(self.with_real(node, |at, _| self.mark(at, super::xattr::Mark::Origin))?.is_some())
    }

    /// What was just made, for the table.
    fn look_at_new(&self, target: &Target<'_>, what: What<'_>, file: Option<&OwnedFd>) -> Result<Found> {
        match (what, file) {
            (What::Node { .. }, Some(file)) => Ok(Found::new(self.stat_in(At::Fd(file.as_fd()), UPPER)?, UPPER)),
            (What::Link(_), _) => self.resolve(target.parent, target.name, From::Top)?.ok_or(Errno::ENOENT),
            _ => Ok(Found::new(self.stat_in(At::Name(target.dir, target.name), UPPER)?, UPPER)),
        }
    }

    /// Takes back what was just made, because its maker will be told that nothing was.
    fn unmake(&self, target: &Target<'_>, replaced: Replaces) {
        let taken_back = match replaced {
            Replaces::Nothing => remove_tree(target.dir, target.name),
            Replaces::Whiteout => self.work().and_then(|work| {
                let temporary = work.temporary();
                self.replace_by_whiteout((target.dir, target.name), temporary.pair())
            }),
        };
        if let Err(errno) = taken_back {
            log::warn!("{} was made and cannot be taken back: {errno}", target.name.display());
        }
    }

    /// Makes the object; another name of one whose names are counted while nobody else changes the count.
    fn make_counted(
        &self,
        caller: &Caller,
        target: &Target<'_>,
        what: What<'_>,
    ) -> Result<(Option<OwnedFd>, Replaces)> {
        let _alone = self.hold_count_of(what);
        if let What::Link(node) = what {
            self.with_real(node, |at, _| self.count_by_upper(at))?;
        }
        self.make_in_upper(caller, target, what)
    }

    fn hold_count_of(&self, what: What<'_>) -> Option<WriteGuard<'_, ()>> {
        let What::Link(node) = what else { return None };
        let real = node.state.read().real;
        self.hold_count(real)
    }

    /// Makes the object, in place if that is right in one step. Says what it took the place of.
    fn make_in_upper(
        &self,
        caller: &Caller,
        target: &Target<'_>,
        what: What<'_>,
    ) -> Result<(Option<OwnedFd>, Replaces)> {
        let merged = !target.parent.lowers().is_empty();
        if self.owner_comes_right(caller, &what) {
            match self.make_in_place(caller, target, what) {
                Err(Errno::EEXIST) => {}
                Ok(file) => {
                    if merged && what.kind() == Kind::Dir {
                        let marked = self.set_opaque(At::Name(target.dir, target.name));
                        match marked {
                            Ok(()) => {}
                            // Nothing below has the name: it only saves later lookups from asking, as in the kernel.
                            Err(errno) if self.has_wh_names(target.parent, &LowerDir::default()) == Ok(false) => {
                                log::debug!("a new directory was not marked opaque: {errno}");
                            }
                            // What is below may be hidden by a name beside it, which is about to go.
                            Err(errno) => {
                                self.unmake(target, Replaces::Nothing);
                                return Err(errno);
                            }
                        }
                    }
                    return Ok((file, Replaces::Nothing));
                }
                Err(errno) => return Err(errno),
            }
        }
        self.make_by_way_of_work(caller, target, what)
    }

    /// Whether an object that the server just makes belongs to the caller.
    fn owner_comes_right(&self, caller: &Caller, what: &What<'_>) -> bool {
        if self.source(UPPER).is_some() {
            // Owners are described, but for a symlink's, which nothing describes.
            return matches!(what, What::Link(_) | What::Symlink(_));
        }
        matches!(what, What::Link(_)) || (caller.uid, caller.gid) == self.server
    }

    fn make_in_place(&self, caller: &Caller, target: &Target<'_>, what: What<'_>) -> Result<Option<OwnedFd>> {
        let (dir, name) = (target.dir, target.name);
        match what {
            What::Node { kind, mode, rdev } => {
                // The umask as the caller has it: whether it applies is for the default ACL of the directory to say.
                sys::set_umask(caller.umask)?;
                make_node(dir, name, kind, mode, rdev)
            }
            What::Symlink(link) => sys::symlink(link, dir, name).map(|()| None),
            What::Link(node) => self.with_real(node, |at, _| sys::link(at, dir, name)).map(|()| None),
        }
    }

    /// Makes the object in the work directory, with all that belongs to it, and moves it into place.
    fn make_by_way_of_work(
        &self,
        caller: &Caller,
        target: &Target<'_>,
        what: What<'_>,
    ) -> Result<(Option<OwnedFd>, Replaces)> {
        let replaces = self.check_free(target)?;
        let work = self.work()?;
        let temporary = work.temporary();
        let mut mode = 0o777;
        let file = self.prepare(caller, work, &temporary, target, what, &mut mode)?;
        let is_dir = what.kind() == Kind::Dir;
        if is_dir && !target.parent.lowers().is_empty() {
            // Opaque from its first visible moment.
            self.set_opaque(temporary.at())?;
        }
        let to = (target.dir, target.name);
        match replaces {
            Replaces::Nothing => match sys::rename(temporary.pair(), to, RenameFlags::NOREPLACE) {
                Err(Errno::EINVAL) => sys::renamed(temporary.pair(), to)?,
                result => result?,
            },
            // The whiteout, now in the work directory, goes with the temporary name.
            Replaces::Whiteout if is_dir => sys::rename(temporary.pair(), to, RenameFlags::EXCHANGE)?,
            Replaces::Whiteout => sys::renamed(temporary.pair(), to)?,
        }
        if !(is_dir && replaces == Replaces::Whiteout) {
            temporary.publish();
        }
        if let Err(errno) = self.settle_mode(At::Name(target.dir, target.name), what.kind(), mode) {
            self.unmake(target, replaces);
            return Err(errno);
        }
        Ok((file, replaces))
    }

    fn prepare(
        &self,
        caller: &Caller,
        work: &WorkDir,
        temporary: &Temporary<'_>,
        target: &Target<'_>,
        what: What<'_>,
        settled: &mut u32,
    ) -> Result<Option<OwnedFd>> {
        let (dir, name) = temporary.pair();
        let file = match what {
            What::Link(node) => {
                self.with_real(node, |at, _| sys::link(at, work.fd(), name))?;
                return Ok(None);
            }
            What::Symlink(link) => {
                sys::symlink(link, dir, name)?;
                None
            }
            What::Node { kind, mode, rdev } => {
                sys::set_umask(0)?;
                let (kind, mode) = self.stored_as(kind, mode & 0o700);
                make_node(dir, name, kind, mode, rdev)?
            }
        };
        let at = file.as_ref().map_or(temporary.at(), |file| At::Fd(file.as_fd()));
        let parent = self.stat_in(At::Fd(target.dir), UPPER)?;
        let inherits_group = parent.mode & libc::S_ISGID != 0;
        let gid = if inherits_group { parent.gid } else { caller.gid };
        let mut made = sys::stat(at)?;
        if self.source(UPPER).is_some() {
            if let What::Node { kind, mode, rdev } = what {
                let sgid = if inherits_group && kind == Kind::Dir { libc::S_ISGID } else { 0 };
                (made.uid, made.gid, made.rdev) = (caller.uid, gid, rdev);
                made.mode = kind.mode_bits() | (mode & 0o7777 & !caller.umask) | sgid;
                self.describe(at, &made)?;
            }
            return Ok(file);
        }
        if (made.uid, made.gid) != (caller.uid, gid) {
            self.chown_on_disk(at, Some(caller.uid), Some(gid))?;
        }
        if let What::Node { kind, mode, .. } = what {
            let mode = mode & 0o7777 | if inherits_group && kind == Kind::Dir { libc::S_ISGID } else { 0 };
            let mode = self.inherit_acl(at, target, kind, mode, caller.umask)?;
            sys::chmod(at, self.movable_mode(kind, mode))?;
            *settled = mode;
        }
        Ok(file)
    }

    /// Gives a new object the ACLs that it inherits, and returns its mode: cut by the umask only where there are none.
    fn inherit_acl(&self, at: At<'_>, target: &Target<'_>, kind: Kind, mode: u32, umask: u32) -> Result<u32> {
        let Some(parent) = &target.parent.dir else { return Ok(mode & !umask) };
        // An ACL that cannot be read is not taken for none: the object would be open to more than it says.
        let read = || match sys::get_xattr(At::Fd(target.dir), OsStr::new(ACL_DEFAULT)) {
            Ok(value) => Ok(Some(value)),
            Err(Errno::ENODATA | Errno::ENOTSUP) => Ok(None),
            Err(errno) => Err(errno),
        };
        if !known(&parent.default_acl, || Ok(read()?.is_some()))? {
            return Ok(mode & !umask);
        }
        let Some(value) = read()? else { return Ok(mode & !umask) };
        let default = Acl::parse(&value).ok_or(Errno::EIO)?;
        let (access, mode) = default.inherit(mode);
        if let Some(access) = access {
            sys::set_xattr(at, OsStr::new(ACL_ACCESS), &access.to_xattr(), 0)?;
        }
        if kind == Kind::Dir {
            sys::set_xattr(at, OsStr::new(ACL_DEFAULT), &value, 0)?;
        }
        Ok(mode)
    }

    /// What the upper has under a name that the union shows nothing under. `EEXIST` if there is an object after all.
    fn check_free(&self, target: &Target<'_>) -> Result<Replaces> {
        let at = At::Name(target.dir, target.name);
        match sys::stat(at) {
            Err(Errno::ENOENT) => Ok(Replaces::Nothing),
            Err(errno) => Err(errno),
            Ok(stat) if self.is_whiteout(at, &stat, false)? => Ok(Replaces::Whiteout),
            Ok(_) => Err(Errno::EEXIST),
        }
    }
}

/// Where an object is to be made.
struct Target<'a> {
    parent: &'a Arc<Node>,
    /// The parent's directory in the upper.
    dir: BorrowedFd<'a>,
    name: &'a OsStr,
}

/// What a new object takes the place of in the upper.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Replaces {
    Nothing,
    Whiteout,
}

/// Makes a node; a regular file is returned open.
fn make_node(dir: BorrowedFd<'_>, name: &OsStr, kind: Kind, mode: u32, rdev: u64) -> Result<Option<OwnedFd>> {
    match kind {
        Kind::File => {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            sys::open(dir, name, flags, Mode::from_raw_mode(mode & 0o7777)).map(Some)
        }
        Kind::Dir => sys::mkdir(dir, name, mode).map(|()| None),
        kind => sys::mknod(dir, name, kind, mode, rdev).map(|()| None),
    }
}
