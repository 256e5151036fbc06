//! Extended attributes by directory descriptor and name.
//!
//! Answers to `xattr(7)` and to the `*xattrat` calls of Linux 6.13; older kernels go through a magic link.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::path::Arg;

use super::at::At;
use super::faults::gate;
use crate::errno::{Errno, Result};

const SYS_SETXATTRAT: libc::c_long = 463;
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;
const SYS_REMOVEXATTRAT: libc::c_long = 466;

/// `struct xattr_args` of `linux/xattr.h`.
#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// Set once the kernel has said that it has no `*xattrat`.
static OLD_KERNEL: AtomicBool = AtomicBool::new(false);

/// The largest value and the largest list that the kernel hands out.
const MAX: usize = 65536;

fn c_str<T>(name: &OsStr, f: impl FnOnce(&CStr) -> Result<T>) -> Result<T> {
    name.into_with_c_str(|name| Ok(f(name))).map_err(Errno::from)?
}

/// Runs a raw `*xattrat` call, or `old` on the magic link where the kernel has none.
fn call(
    at: At<'_>,
    new: impl Fn(BorrowedFd<'_>, &CStr, libc::c_int) -> libc::c_long,
    old: impl FnOnce(&CStr) -> isize,
) -> Result<usize> {
    if !OLD_KERNEL.load(Ordering::Relaxed) {
        let (fd, name, flags) = at.raw_parts();
        let n = c_str(name, |name| Ok(new(fd, name, flags)))?;
        if let Ok(n) = usize::try_from(n) {
            return Ok(n);
        }
        match Errno::from(std::io::Error::last_os_error()) {
            Errno::ENOSYS => OLD_KERNEL.store(true, Ordering::Relaxed),
            // The calls do not take an `O_PATH` descriptor for the object itself.
            Errno::EBADF if matches!(at, At::Fd(_)) => {}
            errno => return Err(errno),
        }
    }
    at.with_proc_path(|path| {
        let n = c_str(OsStr::new(path), |path| Ok(old(path)))?;
        usize::try_from(n).map_err(|_| Errno::from(std::io::Error::last_os_error()))
    })
}

/// The value of an attribute. `ENODATA` when there is none of that name, `EOPNOTSUPP` when there can be none.
pub fn get_xattr(at: At<'_>, name: &OsStr) -> Result<Vec<u8>> {
    gate("getxattr")?;
    let mut value = vec![0u8; 256];
    loop {
        let (pointer, size) = (value.as_mut_ptr(), value.len());
        let result = c_str(name, |name| {
            call(
                at,
                |fd, path, flags| {
                    let args = XattrArgs { value: pointer as u64, size: u32::try_from(size).unwrap_or(0), flags: 0 };
                    // SAFETY: the kernel writes at most `size` bytes to `value`, which outlives the call; the strings
                    // are NUL-terminated and `args` is a xattr_args of the size that is given.
                    unsafe {
                        libc::syscall(
                            SYS_GETXATTRAT,
                            fd.as_raw_fd(),
                            path.as_ptr(),
                            flags,
                            name.as_ptr(),
                            &raw const args,
                            size_of::<XattrArgs>(),
                        )
                    }
                },
                // SAFETY: as above: at most `size` bytes are written to `value`.
                |path| unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), pointer.cast(), size) },
            )
        });
        match result {
            Ok(n) => {
                value.truncate(n);
                return Ok(value);
            }
            Err(Errno::ERANGE) if size < MAX => value.resize(MAX, 0),
            Err(errno) => return Err(errno),
        }
    }
}

/// The names of all attributes, each ended by a NUL.
pub fn list_xattr(at: At<'_>) -> Result<Vec<u8>> {
    gate("listxattr")?;
    let mut list = vec![0u8; 1024];
    loop {
        let (pointer, size) = (list.as_mut_ptr(), list.len());
        let result = call(
            at,
            // SAFETY: the kernel writes at most `size` bytes to `list`, which outlives the call.
            |fd, path, flags| unsafe {
                libc::syscall(SYS_LISTXATTRAT, fd.as_raw_fd(), path.as_ptr(), flags, pointer, size)
            },
            // SAFETY: as above.
            |path| unsafe { libc::listxattr(path.as_ptr(), pointer.cast(), size) },
        );
        match result {
            Ok(n) => {
                list.truncate(n);
                return Ok(list);
            }
            Err(Errno::ERANGE) if size < MAX => list.resize(MAX, 0),
            Err(errno) => return Err(errno),
        }
    }
}

/// Sets an attribute; `flags` are `XATTR_CREATE` (`EEXIST` if it is there) and `XATTR_REPLACE` (`ENODATA` if not).
pub fn set_xattr(at: At<'_>, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
    gate("setxattr")?;
    c_str(name, |name| {
        call(
            at,
            |fd, path, at_flags| {
                let args = XattrArgs {
                    value: value.as_ptr() as u64,
                    size: u32::try_from(value.len()).unwrap_or(u32::MAX),
                    flags: flags.cast_unsigned(),
                };
                // SAFETY: the kernel reads `value.len()` bytes of `value`; strings are NUL-terminated, `args` is sized.
                unsafe {
                    libc::syscall(
                        SYS_SETXATTRAT,
                        fd.as_raw_fd(),
                        path.as_ptr(),
                        at_flags,
                        name.as_ptr(),
                        &raw const args,
                        size_of::<XattrArgs>(),
                    )
                }
            },
            // SAFETY: the kernel reads `value.len()` bytes of `value`.
            |path| unsafe {
                libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) as isize
            },
        )
    })?;
    Ok(())
}

/// Removes an attribute. `ENODATA` when there is none.
pub fn remove_xattr(at: At<'_>, name: &OsStr) -> Result<()> {
    gate("removexattr")?;
    c_str(name, |name| {
        call(
            at,
            // SAFETY: both strings are NUL-terminated and outlive the call.
            |fd, path, flags| unsafe {
                libc::syscall(SYS_REMOVEXATTRAT, fd.as_raw_fd(), path.as_ptr(), flags, name.as_ptr())
            },
            // SAFETY: as above.
            |path| unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) as isize },
        )
    })?;
    Ok(())
}
