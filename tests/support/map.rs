//! A shared, writable map of the first page of a file: the one thing the tests need that has no safe interface.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

const PAGE: usize = 4096;

/// The first page of a file, mapped `MAP_SHARED`.
pub struct Map {
    // Invariant: a live mapping of PAGE bytes, unmapped only in `drop`.
    start: *mut u8,
}

impl Map {
    pub fn new(file: &File) -> Map {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Map { start: start.cast() }
    }

    pub fn get(&self, at: usize) -> u8 {
        assert!(at < PAGE);
        // SAFETY: inside the mapping; volatile, because others change the file.
        unsafe { self.start.add(at).read_volatile() }
    }

    pub fn set(&self, at: usize, byte: u8) {
        assert!(at < PAGE);
        // SAFETY: inside the mapping.
        unsafe { self.start.add(at).write_volatile(byte) }
    }

    pub fn sync(&self) {
        // SAFETY: exactly the mapping.
        assert_eq!(unsafe { libc::msync(self.start.cast(), PAGE, libc::MS_SYNC) }, 0);
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping, which nobody uses after this.
        unsafe { libc::munmap(self.start.cast(), PAGE) };
    }
}
