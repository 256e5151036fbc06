//! Memory mappings of files, read and written through the kernel so that a failing page is an error and no SIGBUS; and
//! the one other call that needs `unsafe`, truncate(2).
#![allow(unsafe_code)]

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// How a file is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Reading only, shared.
    Read,
    /// Reading only, private.
    Private,
    /// Reading and writing, shared.
    Write,
}

/// A mapping of the first bytes of a file.
pub struct Mapping {
    address: *mut libc::c_void,
    length: usize,
    pipe: OwnedFd,
}

impl Mapping {
    /// Maps the first `length` bytes of `file`.
    pub fn new(file: impl AsFd, length: usize, share: Share) -> Result<Mapping, Errno> {
        let pipe = rustix::fs::memfd_create("mapping", MemfdFlags::CLOEXEC)?;
        let (protection, flags) = match share {
            Share::Read => (libc::PROT_READ, libc::MAP_SHARED),
            Share::Private => (libc::PROT_READ, libc::MAP_PRIVATE),
            Share::Write => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED),
        };
        let file = file.as_fd().as_raw_fd();
        // SAFETY: the kernel chooses a free address; the mapping belongs to this value alone and is never dereferenced.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, file, 0) };
        if address == libc::MAP_FAILED { Err(last_error()) } else { Ok(Mapping { address, length, pipe }) }
    }

    /// The bytes at `offset`; `EFAULT` where the file cannot give them.
    pub fn read(&self, offset: usize, length: usize) -> Result<Vec<u8>, Errno> {
        let length = length.min(self.length.saturating_sub(offset));
        // SAFETY: the range lies inside the mapping (both are cut to its length above); the kernel only reads it.
        let moved = unsafe { libc::pwrite(self.pipe.as_raw_fd(), self.address.byte_add(offset), length, 0) };
        let moved = usize::try_from(moved).map_err(|_| last_error())?;
        let mut bytes = vec![0; moved];
        let read = rustix::io::pread(&self.pipe, &mut bytes, 0)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Changes the bytes at `offset`, as far as the mapping goes, and writes them back.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<usize, Errno> {
        let length = bytes.len().min(self.length.saturating_sub(offset));
        rustix::io::pwrite(&self.pipe, &bytes[..length], 0)?;
        // SAFETY: the range lies inside the mapping (cut to its length above), which nothing else looks at.
        let moved = unsafe { libc::pread(self.pipe.as_raw_fd(), self.address.byte_add(offset), length, 0) };
        let moved = usize::try_from(moved).map_err(|_| last_error())?;
        // SAFETY: address and length are those of the mapping.
        match unsafe { libc::msync(self.address, self.length, libc::MS_SYNC) } {
            0 => Ok(moved),
            _ => Err(last_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: address and length are those of the mapping, and no reference into it was ever handed out.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

fn last_error() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// truncate(2), which has no form that takes a directory descriptor.
pub fn truncate(path: &std::path::Path, size: u64) -> Result<(), Errno> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    let size = libc::off_t::try_from(size).map_err(|_| Errno::INVAL)?;
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    match unsafe { libc::truncate(path.as_ptr(), size) } {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}
