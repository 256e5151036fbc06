//! The ioctls that the union passes on, and those of `/dev/fuse`.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::faults::gate;
use crate::errno::{Errno, Result};

/// `_IOR('f', 1, long)`.
pub const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
/// `_IOW('f', 2, long)`.
pub const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
/// `_IOR('X', 31, struct fsxattr)`.
pub const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
/// `_IOW('X', 32, struct fsxattr)`.
pub const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;

/// Passes one of the `FS_IOC_*FLAGS` and `FS_IOC_FS*XATTR` ioctls on; `data` is read, or written, or both. `ENOTTY` for
/// any other.
pub fn file_attr_ioctl(fd: BorrowedFd<'_>, command: u32, data: &mut [u8; 32]) -> Result<()> {
    gate("ioctl")?;
    if ![FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR].contains(&command) {
        return Err(Errno::ENOTTY);
    }
    // SAFETY: each of the four reads or writes at most 28 bytes at the pointer, and `data` has 32.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), libc::c_ulong::from(command), data.as_mut_ptr()) };
    if r < 0 { Err(Errno::from(std::io::Error::last_os_error())) } else { Ok(()) }
}

/// Makes `new`, a fresh descriptor of `/dev/fuse`, one more queue of the connection of `device` (`FUSE_DEV_IOC_CLONE`).
pub fn clone_fuse_device(new: BorrowedFd<'_>, device: BorrowedFd<'_>) -> Result<()> {
    // _IOR(229, 0, uint32_t)
    const FUSE_DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;
    let source = device.as_raw_fd();
    // SAFETY: the ioctl reads one u32 at the pointer.
    let r = unsafe { libc::ioctl(new.as_raw_fd(), FUSE_DEV_IOC_CLONE, &raw const source) };
    if r < 0 { Err(Errno::from(std::io::Error::last_os_error())) } else { Ok(()) }
}
