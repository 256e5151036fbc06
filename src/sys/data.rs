//! The contents of files: read, write, seek, sync and copy; and the few calls about the process that belong here.
//!
//! Answers to `pread(2)`, `lseek(2)` (`SEEK_DATA`, `SEEK_HOLE`), `copy_file_range(2)`, `ioctl_ficlone(2)`.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{self, FallocateFlags, SeekFrom};
use rustix::io::{self, retry_on_intr};

use super::faults::gate;
use crate::errno::{Errno, Result};

/// Reads at an offset until the buffer is full or the file ends; returns how many bytes were read.
pub fn pread(fd: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let read = gate("pread").and_then(|()| Ok(retry_on_intr(|| io::pread(fd, &mut *rest, offset + done as u64))?));
        match read {
            Ok(0) => break,
            Ok(n) => {
                done += n;
                // Within a page only the end of the file cuts a read short: no second call to be told so.
                if done % 4096 != 0 {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// Writes all bytes at an offset, or as many as fit; fails only if not one could be written.
pub fn pwrite(fd: BorrowedFd<'_>, data: &[u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
        let written = gate("pwrite").and_then(|()| Ok(retry_on_intr(|| io::pwrite(fd, rest, offset + done as u64))?));
        match written {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// Sets the size of a file.
pub fn truncate(fd: BorrowedFd<'_>, size: u64) -> Result<()> {
    gate("ftruncate")?;
    Ok(retry_on_intr(|| fs::ftruncate(fd, size))?)
}

/// Syncs data and metadata of a file or directory.
pub fn sync_all(fd: BorrowedFd<'_>) -> Result<()> {
    gate("fsync")?;
    Ok(retry_on_intr(|| fs::fsync(fd))?)
}

/// Syncs the data of a file, and of its metadata what is needed to read it.
pub fn sync_data(fd: BorrowedFd<'_>) -> Result<()> {
    gate("fdatasync")?;
    Ok(retry_on_intr(|| fs::fdatasync(fd))?)
}

/// Syncs the file system of a descriptor.
pub fn syncfs(fd: BorrowedFd<'_>) -> Result<()> {
    gate("syncfs")?;
    Ok(fs::syncfs(fd)?)
}

/// `fallocate(2)` with any mode of the kernel's.
pub fn fallocate(fd: BorrowedFd<'_>, mode: i32, offset: u64, length: u64) -> Result<()> {
    gate("fallocate")?;
    let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
    Ok(retry_on_intr(|| fs::fallocate(fd, mode, offset, length))?)
}

/// `lseek(2)` with any `whence`. `ENXIO` past the end for `SEEK_DATA` and `SEEK_HOLE`.
pub fn seek(fd: BorrowedFd<'_>, offset: i64, whence: i32) -> Result<u64> {
    gate("lseek")?;
    // SAFETY: lseek(2) takes no pointers.
    let position = unsafe { libc::lseek(fd.as_raw_fd(), offset, whence) };
    u64::try_from(position).map_err(|_| Errno::from(std::io::Error::last_os_error()))
}

/// Copies a range within the kernel; may copy less than asked for.
pub fn copy_range(
    from: BorrowedFd<'_>,
    from_offset: u64,
    to: BorrowedFd<'_>,
    to_offset: u64,
    len: usize,
) -> Result<usize> {
    gate("copy_file_range")?;
    let (mut from_offset, mut to_offset) = (from_offset, to_offset);
    Ok(retry_on_intr(|| fs::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), len))?)
}

/// How the data of a file was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyEffort {
    /// There was nothing to copy.
    Nothing,
    /// Extents are shared; nothing was copied.
    Cloned,
    /// Bytes were copied.
    Copied,
}

/// Copies the first `size` bytes of one file of `whole` bytes to another that is empty. Holes stay holes; extents are
/// shared if possible.
pub fn copy_data(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64, whole: u64) -> Result<CopyEffort> {
    if size == 0 {
        return Ok(CopyEffort::Nothing);
    }
    if gate("ficlone").and_then(|()| Ok(fs::ioctl_ficlone(to, from)?)).is_ok() {
        // The clone is of the whole file, however much of it is wanted.
        if whole > size {
            truncate(to, size)?;
        }
        return Ok(CopyEffort::Cloned);
    }
    let mut effort = CopyEffort::Nothing;
    let mut offset = 0;
    let mut end = 0;
    while offset < size {
        gate("lseek")?;
        let data = match fs::seek(from, SeekFrom::Data(offset)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(io::Errno::NXIO) => break,
            Err(io::Errno::INVAL | io::Errno::OPNOTSUPP) => offset,
            Err(errno) => return Err(errno.into()),
        };
        if data >= size {
            break;
        }
        let hole = fs::seek(from, SeekFrom::Hole(data)).unwrap_or(size).min(size);
        copy_bytes(from, to, data, hole)?;
        effort = CopyEffort::Copied;
        offset = hole;
        end = hole;
    }
    if end < size {
        // The file ends in a hole.
        truncate(to, size)?;
    }
    Ok(effort)
}

/// Copies the bytes from `start` up to `end`, at the same offsets.
fn copy_bytes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<()> {
    let mut offset = start;
    let mut buffer = Vec::new();
    while offset < end {
        let want = usize::try_from(end - offset).unwrap_or(usize::MAX).min(1 << 27);
        if buffer.is_empty() {
            match copy_range(from, offset, to, offset, want) {
                Ok(n) if n > 0 => {
                    offset += n as u64;
                    continue;
                }
                // Across file systems, or a file system that lies about its support: by hand.
                Ok(_) | Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOTSUP | Errno::ENOSYS | Errno::EPERM) => {
                    // No larger than what is left: to clear memory and give it back takes longer than to copy a small file.
                    buffer.resize(want.min(1 << 18), 0);
                }
                Err(errno) => return Err(errno),
            }
        }
        let want = want.min(buffer.len());
        let n = pread(from, buffer.get_mut(..want).unwrap_or_default(), offset)?;
        if n == 0 {
            break;
        }
        let mut data = buffer.get(..n).unwrap_or_default();
        while !data.is_empty() {
            let written = pwrite(to, data, offset)?;
            if written == 0 {
                return Err(Errno::EIO);
            }
            offset += written as u64;
            data = data.get(written..).unwrap_or_default();
        }
    }
    Ok(())
}

/// Has memory of half a megabyte and more mapped on its own, once and for all: the C library raises that limit each time such
/// memory is freed, and then clears a thread's first pages by hand before they are used.
pub fn map_large_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) sets a number that later allocations look at.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 512 * 1024);
    }
}

/// Gives memory that was freed back to the system.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called at any time by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets go of a `flock(2)`.
pub fn unlock(fd: BorrowedFd<'_>) -> Result<()> {
    Ok(fs::flock(fd, fs::FlockOperation::Unlock)?)
}

/// Takes an exclusive `flock(2)` without waiting. `EAGAIN` when somebody else has it.
pub fn lock_exclusive(fd: BorrowedFd<'_>) -> Result<()> {
    Ok(fs::flock(fd, fs::FlockOperation::NonBlockingLockExclusive)?)
}
