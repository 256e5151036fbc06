//! File handles and file system identity: `name_to_handle_at(2)`, `open_by_handle_at(2)`, `FS_IOC_GETFSUUID`.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::path::Arg;

use super::at::At;
use super::faults::gate;
use crate::errno::{Errno, Result};

/// The largest handle of any file system (`MAX_HANDLE_SZ`).
const MAX_BYTES: usize = 128;

/// A file handle: what the file system needs to find an inode again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHandle {
    /// The file system's own name for the form of the bytes.
    pub kind: i32,
    /// Opaque bytes.
    pub bytes: Vec<u8>,
}

#[repr(C)]
struct Raw {
    bytes: u32,
    kind: i32,
    data: [u8; MAX_BYTES],
}

/// The handle of an object. `EOPNOTSUPP` where the file system has none.
pub fn file_handle(at: At<'_>) -> Result<FileHandle> {
    gate("name_to_handle_at")?;
    let (fd, name, flags) = at.raw_parts();
    // name_to_handle_at(2) does not follow symlinks by default and knows only its own flags.
    let flags = flags & libc::AT_EMPTY_PATH;
    let mut raw = Raw { bytes: MAX_BYTES as u32, kind: 0, data: [0; MAX_BYTES] };
    let mut mount_id: libc::c_int = 0;
    let result = name
        .into_with_c_str(|name| {
            // SAFETY: `raw` has room for the MAX_BYTES bytes that it announces, and outlives the call like the rest.
            Ok(unsafe {
                libc::syscall(
                    libc::SYS_name_to_handle_at,
                    fd.as_raw_fd(),
                    name.as_ptr(),
                    &raw mut raw,
                    &raw mut mount_id,
                    flags,
                )
            })
        })
        .map_err(Errno::from)?;
    if result != 0 {
        return Err(Errno::from(std::io::Error::last_os_error()));
    }
    let bytes = raw.data.get(..raw.bytes as usize).ok_or(Errno::EOVERFLOW)?.to_vec();
    Ok(FileHandle { kind: raw.kind, bytes })
}

/// Opens an object by its handle, `O_PATH`. Needs `CAP_DAC_READ_SEARCH`; `ESTALE` when it is gone.
pub fn open_handle(mount: BorrowedFd<'_>, handle: &FileHandle) -> Result<OwnedFd> {
    // Where somebody is about to make another object with the inode of one that is gone, ext4 says that there is no memory
    // (an inode that is being made is none yet), and a moment later that the handle is stale.
    for _ in 0..50 {
        match open_handle_once(mount, handle) {
            Err(Errno::ENOMEM) => std::thread::sleep(Duration::from_millis(1)),
            result => return result,
        }
    }
    open_handle_once(mount, handle)
}

fn open_handle_once(mount: BorrowedFd<'_>, handle: &FileHandle) -> Result<OwnedFd> {
    gate("open_by_handle_at")?;
    let mut raw = Raw {
        bytes: u32::try_from(handle.bytes.len()).map_err(|_| Errno::EINVAL)?,
        kind: handle.kind,
        data: [0; MAX_BYTES],
    };
    raw.data.get_mut(..handle.bytes.len()).ok_or(Errno::EINVAL)?.copy_from_slice(&handle.bytes);
    // SAFETY: the kernel reads the `bytes` bytes of `raw` that are there; a result that is not negative is a new
    // descriptor that nothing else owns.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw mut raw,
            libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW,
        );
        match libc::c_int::try_from(fd) {
            Ok(fd) if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(Errno::from(std::io::Error::last_os_error())),
        }
    }
}

/// The type of a file system, as `statfs(2)` numbers them.
pub fn fs_magic(fd: BorrowedFd<'_>) -> Result<u64> {
    gate("fstatfs")?;
    Ok(rustix::fs::fstatfs(fd)?.f_type.cast_unsigned())
}

/// The UUID of a file system, where the kernel tells it (Linux 6.9) and it has one of 16 bytes.
#[must_use]
pub fn fs_uuid(fd: BorrowedFd<'_>) -> Option<[u8; 16]> {
    #[repr(C)]
    struct FsUuid2 {
        len: u8,
        uuid: [u8; 16],
    }
    // _IOR(0x15, 0, struct fsuuid2)
    const FS_IOC_GETFSUUID: libc::c_ulong = 0x8011_1500;
    let readable =
        super::open(fd, OsStr::new("."), super::OFlags::RDONLY | super::OFlags::DIRECTORY, super::Mode::empty())
            .ok()?;
    let mut uuid = FsUuid2 { len: 0, uuid: [0; 16] };
    // SAFETY: the ioctl writes one fsuuid2, 17 bytes, to `uuid`.
    let r = unsafe { libc::ioctl(readable.as_raw_fd(), FS_IOC_GETFSUUID, &raw mut uuid) };
    if r == 0 && uuid.len == 16 {
        return Some(uuid.uuid);
    }
    btrfs_uuid(&readable)
}

/// A new UUID: random, in the form that says so (version 4).
pub fn random_uuid() -> Result<[u8; 16]> {
    gate("getrandom")?;
    let mut uuid = [0; 16];
    // So few bytes come all at once.
    rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty())?;
    uuid[6] = (uuid[6] & 0x0f) | 0x40;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    Ok(uuid)
}

/// btrfs answers a question of its own only.
fn btrfs_uuid(readable: &OwnedFd) -> Option<[u8; 16]> {
    // _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args): two counts, the UUID, and more, 1024 bytes in all.
    const BTRFS_IOC_FS_INFO: libc::c_ulong = 0x8400_941f;
    let mut info = [0_u64; 128];
    // SAFETY: the ioctl reads and writes 1024 bytes, which `info` has, aligned as its counts are. Other file systems do
    // not know it.
    let r = unsafe { libc::ioctl(readable.as_raw_fd(), BTRFS_IOC_FS_INFO, info.as_mut_ptr()) };
    let [_, _, first, second, ..] = info;
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&first.to_ne_bytes());
    uuid[8..].copy_from_slice(&second.to_ne_bytes());
    (r == 0).then_some(uuid)
}
