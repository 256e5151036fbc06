//! Whiteouts: what hides a name of a lower layer, how it is recognised and how it is written.
//!
//! Recognised everywhere: a 0/0 character device; an empty regular file with the whiteout mark, in a directory whose
//! opaque mark is `x`; `.wh.NAME` and `.wh..wh..opq`, the forms of AUFS, which container stores unpack, and later mount as
//! an upper as well as as a lower. A name of that kind that is made through the mount is a plain name, as for the kernel:
//! its directory carries a mark (`plain`) from then on.

use std::ffi::{OsStr, OsString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use super::node::{LayerIndex, LowerDir, Node, UPPER, known};
use super::superblock::Overlay;
use super::xattr::Mark;
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, Kind, Mode, OFlags, RenameFlags, Stat};

/// What the name of a whiteout in AUFS form starts with.
pub(super) const WH_PREFIX: &[u8] = b".wh.";

/// The file that makes a directory opaque in AUFS form.
pub(super) const WH_OPAQUE: &str = ".wh..wh..opq";

/// The name of the whiteout of `name` in AUFS form.
pub(super) fn wh_name(name: &OsStr) -> OsString {
    OsString::from_vec([WH_PREFIX, name.as_bytes()].concat())
}

/// The name that a whiteout in AUFS form hides.
pub(super) fn hidden_name(name: &OsStr) -> Option<&OsStr> {
    name.as_bytes().strip_prefix(WH_PREFIX).map(OsStr::from_bytes)
}

/// Whether a name is one that the AUFS form reserves.
pub(super) fn is_wh_name(name: &OsStr) -> bool {
    name.as_bytes().starts_with(WH_PREFIX)
}

impl Overlay {
    /// Whether what was found under a name is a whiteout.
    pub(super) fn is_whiteout(&self, at: At<'_>, stat: &Stat, xwhiteouts: bool) -> Result<bool> {
        if stat.is_null_device() {
            return Ok(true);
        }
        if xwhiteouts && stat.kind() == Kind::File && stat.size == 0 {
            return Ok(self.mark(at, Mark::Whiteout)?.is_some());
        }
        Ok(false)
    }

    /// Whether a directory of a layer holds `.wh.` names that are whiteouts, found out by reading it once. An upper that
    /// holds no devices has none that are not.
    pub(super) fn has_wh_names(&self, node: &Arc<Node>, lower: &LowerDir) -> Result<bool> {
        let flag = match (lower.layer, &node.dir) {
            (UPPER, _) if !self.device_whiteouts => return Ok(true),
            (UPPER, Some(dir)) => &dir.wh_names,
            (UPPER, None) => return Ok(false),
            _ => &lower.wh_names,
        };
        known(flag, || {
            let fd = self.dir_fd(node, lower.layer)?;
            Ok(holds_wh_names(fd.as_fd())? && self.hides_by_name(lower.layer, fd.as_fd())?)
        })
    }

    /// Whether `.wh.` names that a directory of a layer holds are whiteouts.
    pub(super) fn hides_by_name(&self, layer: LayerIndex, dir: BorrowedFd<'_>) -> Result<bool> {
        Ok((layer == UPPER && !self.device_whiteouts) || self.mark(At::Fd(dir), Mark::Plain)?.is_none())
    }

    /// Whether a name in AUFS form beside it hides a name of the layers below.
    pub(super) fn wh_hides(&self, parent: &Arc<Node>, lower: &LowerDir, name: &OsStr, dir: &OwnedFd) -> Result<bool> {
        if !self.has_wh_names(parent, lower)? {
            return Ok(false);
        }
        exists(At::Name(dir.as_fd(), &wh_name(name)))
    }

    /// Whether a directory hides lower ones by a whiteout beside it or an opaque file in it.
    pub(super) fn wh_hides_below(
        &self,
        parent: &Arc<Node>,
        lower: &LowerDir,
        name: &OsStr,
        dir: &OwnedFd,
        inside: Option<&OwnedFd>,
    ) -> Result<bool> {
        if let Some(inside) = inside
            && exists(At::Name(inside.as_fd(), OsStr::new(WH_OPAQUE)))?
        {
            return Ok(true);
        }
        self.wh_hides(parent, lower, name, dir)
    }

    /// Call before an object gets a name in an upper directory. A name in AUFS form is a plain name there from now on;
    /// `EINVAL` where such names are whiteouts already.
    pub(super) fn claim_name(&self, parent: &Arc<Node>, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        if !is_wh_name(name) {
            return Ok(());
        }
        if self.has_wh_names(parent, &LowerDir::default())? {
            return Err(Errno::EINVAL);
        }
        match self.set_mark(At::Fd(dir), Mark::Plain, b"y") {
            Err(errno) if super::xattr::is_absent(errno) => Err(Errno::EINVAL),
            result => result,
        }
    }

    /// Hides a lower name where the upper has nothing under it: in one step, and only if nothing is there by now.
    ///
    /// All whiteouts that are made here are names of one inode, as the kernel's are: a name takes half the time of an inode.
    pub(super) fn make_whiteout(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        if !self.device_whiteouts {
            return sys::mknod(dir, &wh_name(name), Kind::File, 0, 0);
        }
        if let Some(shared) = self.whiteouts.get(&()) {
            match sys::link(At::Fd(shared.as_fd()), dir, name) {
                Err(errno) if errno != Errno::EEXIST => {
                    // All its names are gone, or it has as many as may be, or may have none here: another takes its place.
                    log::debug!("a whiteout gets no other name: {errno}");
                    self.whiteouts.remove(&());
                }
                result => return result,
            }
        }
        sys::mknod(dir, name, Kind::Char, 0, 0)?;
        // It can be gone by now, or be something else; then the next one is shared.
        if let Ok(made) = sys::open(dir, name, OFlags::PATH, Mode::empty())
            && sys::stat(At::Fd(made.as_fd())).is_ok_and(|stat| stat.is_null_device())
        {
            self.whiteouts.insert((), Arc::new(made));
        }
        Ok(())
    }

    /// Takes an upper object away and leaves a whiteout in its place, in one step. The object is then in the work
    /// directory under the name of `taken`.
    pub(super) fn replace_by_whiteout(
        &self,
        from: (BorrowedFd<'_>, &OsStr),
        taken: (BorrowedFd<'_>, &OsStr),
    ) -> Result<()> {
        if !self.device_whiteouts {
            // The whiteout first: an object that is both there and hidden is what the upper shows.
            match sys::mknod(from.0, &wh_name(from.1), Kind::File, 0, 0) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
            return sys::renamed(from, taken);
        }
        match sys::rename(from, taken, RenameFlags::WHITEOUT) {
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EPERM) => {
                // No RENAME_WHITEOUT: prepare one and swap it with the object.
                sys::mknod(taken.0, taken.1, Kind::Char, 0, 0)?;
                sys::rename(from, taken, RenameFlags::EXCHANGE)
            }
            result => result,
        }
    }

    /// Takes a file's name away and leaves a whiteout in its place, in one step, after which the object has a name less: where
    /// names are counted it must not have one in the work directory instead, which might stay.
    pub(super) fn cover_by_whiteout(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        if !self.device_whiteouts {
            match sys::mknod(dir, &wh_name(name), Kind::File, 0, 0) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
            return sys::unlink(dir, name);
        }
        let temporary = self.work()?.temporary();
        sys::mknod(temporary.pair().0, temporary.name(), Kind::Char, 0, 0)?;
        sys::renamed(temporary.pair(), (dir, name))?;
        temporary.publish();
        Ok(())
    }

    /// Removes a whiteout in AUFS form that the upper may have for a name, once something stands under the name itself.
    /// If it stays, it hides what is hidden anyway: no reason to call what was done not done.
    pub(super) fn drop_wh_name(&self, parent: &Arc<Node>, dir: BorrowedFd<'_>, name: &OsStr) {
        if self.has_wh_names(parent, &LowerDir::default()) == Ok(false) {
            return;
        }
        match sys::unlink(dir, &wh_name(name)) {
            Ok(()) | Err(Errno::ENOENT | Errno::ENAMETOOLONG) => {}
            Err(errno) => log::warn!("the whiteout of {} cannot be removed: {errno}", name.display()),
        }
    }

    /// Makes a directory that is not yet visible opaque. Where deletions are names, so is this, besides the mark: whoever
    /// reads the one form reads the other, and the file system may keep the mark to itself.
    pub(super) fn set_opaque(&self, at: At<'_>) -> Result<()> {
        let marked = self.set_mark(at, Mark::Opaque, b"y");
        if self.device_whiteouts {
            return marked;
        }
        match marked {
            Err(errno) if !super::xattr::is_absent(errno) => return Err(errno),
            _ => {}
        }
        let dir = match at {
            At::Name(dir, name) => sys::open_dir(dir, name)?,
            At::Fd(fd) => sys::open_dir(fd, OsStr::new("."))?,
        };
        match sys::mknod(dir.as_fd(), OsStr::new(WH_OPAQUE), Kind::File, 0, 0) {
            // It was opaque before.
            Err(Errno::EEXIST) => Ok(()),
            result => result,
        }
    }
}

/// Whether any file's name in a directory starts with `.wh.`.
fn holds_wh_names(dir: BorrowedFd<'_>) -> Result<bool> {
    let mut found = false;
    match sys::read_dir(dir, |entry| {
        found |= is_wh_name(entry.name) && matches!(entry.kind, Some(Kind::File) | None);
        // Any error ends the listing early.
        if found { Err(Errno::EEXIST) } else { Ok(()) }
    }) {
        Err(Errno::EEXIST) if found => Ok(true),
        // Not readable: whether a certain whiteout is there can still be asked for by name.
        Err(Errno::EACCES) => Ok(true),
        result => result.map(|()| found),
    }
}

pub(super) fn exists(at: At<'_>) -> Result<bool> {
    match sys::stat(at) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG) => Ok(false),
        Err(errno) => Err(errno),
    }
}
