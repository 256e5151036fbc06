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

/// Whether a directory finds its names whatever their case (`chattr +F`): on ext4, f2fs and tmpfs. No where the file system
/// does not say.
#[must_use]
pub fn is_casefolded(dir: BorrowedFd<'_>) -> bool {
    const FS_CASEFOLD_FL: u32 = 0x4000_0000;
    #[cfg(debug_assertions)]
    if super::faults::is_folded() {
        return true;
    }
    let mut flags = [0; 32];
    let [a, b, c, d, ..] = match file_attr_ioctl(dir, FS_IOC_GETFLAGS, &mut flags) {
        Ok(()) => flags,
        Err(_) => return false,
    };
    u32::from_ne_bytes([a, b, c, d]) & FS_CASEFOLD_FL != 0
}

/// What fs-verity says of a file: the number of the hash algorithm and the digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerityDigest {
    /// `FS_VERITY_HASH_ALG_*`.
    pub algorithm: u8,
    /// As long as the algorithm has it.
    pub digest: Vec<u8>,
}

/// The fs-verity digest of a file; `None` if it has none or the file system knows none.
pub fn verity_digest(fd: BorrowedFd<'_>) -> Result<Option<VerityDigest>> {
    #[repr(C)]
    struct Raw {
        algorithm: u16,
        size: u16,
        digest: [u8; 64],
    }
    // _IOWR('f', 134, struct fsverity_digest)
    const FS_IOC_MEASURE_VERITY: libc::c_ulong = 0xc004_6686;
    gate("ioctl")?;
    #[cfg(debug_assertions)]
    if let Some((algorithm, digest)) = super::faults::sealed_with() {
        return Ok(Some(VerityDigest { algorithm, digest }));
    }
    let mut raw = Raw { algorithm: 0, size: 64, digest: [0; 64] };
    // SAFETY: the ioctl writes at most the `size` bytes of digest that `raw` announces and has.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_MEASURE_VERITY, &raw mut raw) };
    if r < 0 {
        return match Errno::from(std::io::Error::last_os_error()) {
            Errno::ENODATA | Errno::ENOTTY | Errno::ENOTSUP => Ok(None),
            errno => Err(errno),
        };
    }
    let digest = raw.digest.get(..usize::from(raw.size)).ok_or(Errno::EIO)?.to_vec();
    Ok(Some(VerityDigest { algorithm: u8::try_from(raw.algorithm).map_err(|_| Errno::EIO)?, digest }))
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

/// `struct fuse_backing_map` of `linux/fuse.h`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// Makes a file known to a FUSE connection as one that the kernel may read and write itself
/// (`FUSE_DEV_IOC_BACKING_OPEN`); the number stands for it until it is closed. `EPERM` without `CAP_SYS_ADMIN`, or if the
/// connection was not granted passthrough; `ELOOP` for a file system that is stacked on others already.
pub fn open_backing(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<u32> {
    // _IOW(229, 1, struct fuse_backing_map)
    const FUSE_DEV_IOC_BACKING_OPEN: libc::c_ulong = 0x4010_e501;
    gate("backing_open")?;
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the ioctl reads one fuse_backing_map at the pointer.
    let r = unsafe { libc::ioctl(device.as_raw_fd(), FUSE_DEV_IOC_BACKING_OPEN, &raw const map) };
    u32::try_from(r).map_err(|_| Errno::from(std::io::Error::last_os_error()))
}

/// Takes the number back (`FUSE_DEV_IOC_BACKING_CLOSE`). What is open on it stays open.
pub fn close_backing(device: BorrowedFd<'_>, backing: u32) -> Result<()> {
    // _IOW(229, 2, uint32_t)
    const FUSE_DEV_IOC_BACKING_CLOSE: libc::c_ulong = 0x4004_e502;
    // SAFETY: the ioctl reads one u32 at the pointer.
    let r = unsafe { libc::ioctl(device.as_raw_fd(), FUSE_DEV_IOC_BACKING_CLOSE, &raw const backing) };
    if r < 0 { Err(Errno::from(std::io::Error::last_os_error())) } else { Ok(()) }
}
