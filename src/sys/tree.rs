//! A layer's directory without the mounts in it: `open_tree(2)`, `mount_setattr(2)`.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::OpenTreeFlags;

use super::faults::gate;
use crate::errno::{Errno, Result};

/// `struct mount_attr` of `linux/mount.h`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

const READ_ONLY: u64 = 0x1;
const NO_ATIME: u64 = 0x10;
const ATIME_FIELD: u64 = 0x70;

/// The same directory by a mount of its own, which nobody else can reach: in it nothing is mounted on anything, and nothing
/// can be written. `EPERM` for who may not mount, `EINVAL` where a mount inside may not be uncovered.
///
/// The second descriptor is the mount's own. The mount would outlive it as long as there are others, but closing it waits
/// for every processor, up to milliseconds where they are busy: so it is for the caller to keep.
pub fn private_tree(dir: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd)> {
    gate("open_tree")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(dir, "", flags)?;
    // Access times are locked in a user namespace.
    set_flags(tree.as_fd(), READ_ONLY | NO_ATIME, ATIME_FIELD).or_else(|_| set_flags(tree.as_fd(), READ_ONLY, 0))?;
    let dir = super::open(tree.as_fd(), OsStr::new("."), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    Ok((dir, tree))
}

fn set_flags(tree: BorrowedFd<'_>, set: u64, clear: u64) -> Result<()> {
    let attr = MountAttr { set, clear, propagation: 0, user_namespace: 0 };
    // SAFETY: the kernel reads one mount_attr of the size that is given; the path is empty and NUL-terminated.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if r == 0 { Ok(()) } else { Err(Errno::from(std::io::Error::last_os_error())) }
}
