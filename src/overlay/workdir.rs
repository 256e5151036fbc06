//! The work directory: where every change is prepared before one rename or link makes it visible.
//!
//! Owns: the names in `WORKDIR/work`, all of which start with `#`, and their removal. What a crash leaves there is removed
//! at the next mount, as the kernel does.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::whiteout::{WH_OPAQUE, wh_name};
use crate::errno::{Errno, Result};
use crate::sys::{self, At, Kind};

/// The opened `work` directory.
#[derive(Debug)]
pub(super) struct WorkDir {
    pub dir: OwnedFd,
    /// The directory above it, as it was named.
    pub root: PathBuf,
    next: AtomicU64,
}

/// A name in the work directory whose object goes when this is dropped, unless it was published.
pub(super) struct Temporary<'a> {
    work: &'a WorkDir,
    name: OsString,
    published: bool,
}

impl WorkDir {
    pub fn new(dir: OwnedFd, root: PathBuf) -> WorkDir {
        WorkDir { dir, root, next: AtomicU64::new(0) }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// A name that nothing has.
    pub fn temporary(&self) -> Temporary<'_> {
        Temporary { work: self, name: self.unused_name(), published: false }
    }

    /// The same for the index, whose temporary names are removed at the next mount, too.
    pub fn unused_name(&self) -> OsString {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        OsString::from(format!("#{n:x}"))
    }

    /// Removes whatever is there.
    pub fn clear(&self) -> Result<()> {
        clear_dir(self.fd())
    }
}

impl Temporary<'_> {
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    pub fn at(&self) -> At<'_> {
        At::Name(self.work.fd(), &self.name)
    }

    /// Directory and name, for a rename.
    pub fn pair(&self) -> (BorrowedFd<'_>, &OsStr) {
        (self.work.fd(), &self.name)
    }

    /// It has been moved to its place: nothing of that name is left to remove.
    pub fn publish(mut self) {
        self.published = true;
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.published
            && let Err(errno) = remove_tree(self.work.fd(), &self.name)
            && errno != Errno::ENOENT
        {
            log::warn!("work directory: {} cannot be removed: {errno}", self.name.to_string_lossy());
        }
    }
}

/// Removes a name and all that is below it. Must only be used on what the overlay itself prepared or took away.
pub(super) fn remove_tree(dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    match sys::unlink(dir, name) {
        Err(Errno::EISDIR | Errno::EPERM) => {}
        result => return result,
    }
    match sys::rmdir(dir, name) {
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
        result => return result,
    }
    let fd = sys::open_dir(dir, name)?;
    clear_dir(fd.as_fd())?;
    sys::rmdir(dir, name)
}

fn clear_dir(dir: BorrowedFd<'_>) -> Result<()> {
    let mut names = Vec::new();
    let list = |names: &mut Vec<OsString>| {
        sys::read_dir(dir, |entry| {
            names.push(entry.name.to_owned());
            Ok(())
        })
    };
    if list(&mut names) == Err(Errno::EACCES) {
        // A directory that was copied up with a mode that shuts out its owner.
        sys::chmod(At::Fd(dir), 0o700)?;
        list(&mut names)?;
    }
    for name in names {
        match remove_tree(dir, &name) {
            Err(Errno::EACCES) => {
                sys::chmod(At::Fd(dir), 0o700)?;
                remove_tree(dir, &name)?;
            }
            result => result?,
        }
    }
    Ok(())
}

/// Whether file systems of this directory know 0/0 character devices as a user may make them.
pub(super) fn can_make_devices(work: &WorkDir) -> bool {
    let temporary = work.temporary();
    // To another union below, making one means that the name goes.
    sys::mknod(work.fd(), temporary.name(), Kind::Char, 0, 0).is_ok()
        && sys::stat(temporary.at()).is_ok_and(|stat| stat.is_null_device())
}

/// Whether whiteouts and opaque marks can be files with names of their own: not where another union takes them for its own.
pub(super) fn can_keep_wh_names(work: &WorkDir) -> Result<bool> {
    let temporary = work.temporary();
    sys::mkdir(work.fd(), temporary.name(), 0o700)?;
    let dir = sys::open_dir(work.fd(), temporary.name())?;
    let kept = |name: &OsStr| {
        sys::mknod(dir.as_fd(), name, Kind::File, 0, 0).is_ok()
            && sys::stat(At::Name(dir.as_fd(), name)).is_ok()
            && sys::unlink(dir.as_fd(), name).is_ok()
    };
    Ok(kept(&wh_name(OsStr::new("name"))) && kept(OsStr::new(WH_OPAQUE)))
}
