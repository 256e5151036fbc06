//! Directory entries: `getdents64(2)`.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags, RawDir};

use super::at::{Kind, open};
use super::faults::gate;
use crate::errno::Result;

/// One entry of a directory.
#[derive(Clone, Copy, Debug)]
pub struct Dent<'a> {
    /// Its name.
    pub name: &'a OsStr,
    /// Its inode number; of what lies below, where something is mounted on it.
    pub ino: u64,
    /// What it is, where the file system says so.
    pub kind: Option<Kind>,
}

/// Calls `each` for every entry of a directory but `.` and `..`, until it returns an error.
pub fn read_dir(dir: BorrowedFd<'_>, mut each: impl FnMut(Dent<'_>) -> Result<()>) -> Result<()> {
    // A description of its own, because the position belongs to it and several threads may list one directory.
    let dir = open(dir, OsStr::new("."), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let mut buffer: Vec<MaybeUninit<u8>> = vec![MaybeUninit::uninit(); 32 * 1024];
    gate("getdents64")?;
    let mut entries = RawDir::new(&dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            rustix::fs::FileType::Unknown => None,
            known => Some(Kind::of_mode(known.as_raw_mode())),
        };
        each(Dent { name: OsStr::from_bytes(name), ino: entry.ino(), kind })?;
    }
    Ok(())
}
