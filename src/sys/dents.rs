//! Directory entries: `getdents64(2)`.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags, SeekFrom, seek};

use super::at::{Kind, open};
use super::faults::gate;
use crate::errno::{Errno, Result};

/// How many bytes of entries are read at once.
const BUFFER: usize = 32 * 1024;

/// One entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dent<'a> {
    /// Its name.
    pub name: &'a OsStr,
    /// Its inode number; of what lies below, where something is mounted on it.
    pub ino: u64,
    /// What it is, where the file system says so.
    pub kind: Option<Kind>,
}

/// Whose position in a directory is read from: it belongs to the description, and several threads may list one directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// That of a description that is opened for it.
    New,
    /// The descriptor's own, which nobody else moves meanwhile; one that cannot be read from is opened anew all the same.
    Own,
}

/// Calls `each` for every entry of a directory but `.` and `..`, until it returns an error.
pub fn read_dir(dir: BorrowedFd<'_>, each: impl FnMut(Dent<'_>) -> Result<()>) -> Result<()> {
    read_dir_at(dir, Position::New, each)
}

/// The same, with the choice of a position.
pub fn read_dir_at(
    dir: BorrowedFd<'_>,
    position: Position,
    mut each: impl FnMut(Dent<'_>) -> Result<()>,
) -> Result<()> {
    if position == Position::Own && seek(dir, SeekFrom::Start(0)).is_ok() {
        return read_entries(dir, &mut each);
    }
    let opened = open(dir, OsStr::new("."), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    read_entries(opened.as_fd(), &mut each)
}

fn read_entries(dir: BorrowedFd<'_>, each: &mut impl FnMut(Dent<'_>) -> Result<()>) -> Result<()> {
    let mut buffer: Vec<u8> = Vec::with_capacity(BUFFER);
    gate("getdents64")?;
    loop {
        // SAFETY: the kernel writes at most the capacity to the buffer, and says how much it wrote.
        let read = unsafe {
            let read = libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), buffer.capacity());
            buffer.set_len(usize::try_from(read).unwrap_or(0).min(buffer.capacity()));
            read
        };
        match read {
            0 => return Ok(()),
            1.. => parse_entries(&buffer, each)?,
            _ => match std::io::Error::last_os_error().into() {
                Errno::EINTR => {}
                errno => return Err(errno),
            },
        }
    }
}

/// Calls `each` for every entry of a buffer (`linux_dirent64`) but `.` and `..`, until it returns an error.
///
/// # Errors
/// `EIO` at a record that ends before its name does or after the buffer, or has a name that is none: whoever made it
/// (a kernel makes no such records) is not believed.
pub fn parse_entries(mut records: &[u8], each: &mut impl FnMut(Dent<'_>) -> Result<()>) -> Result<()> {
    while !records.is_empty() {
        let (ino, rest) = records.split_first_chunk().ok_or(Errno::EIO)?;
        let (_position, rest) = rest.split_first_chunk::<8>().ok_or(Errno::EIO)?;
        let (length, rest) = rest.split_first_chunk().ok_or(Errno::EIO)?;
        let (kind, _name) = rest.split_first().ok_or(Errno::EIO)?;
        let (record, next) = records.split_at_checked(u16::from_ne_bytes(*length).into()).ok_or(Errno::EIO)?;
        let name = record.get(NAME..).ok_or(Errno::EIO)?;
        let name = name.split(|byte| *byte == 0).next().filter(|found| found.len() < name.len()).ok_or(Errno::EIO)?;
        match name {
            b"." | b".." => {}
            _ if name.is_empty() || name.contains(&b'/') => return Err(Errno::EIO),
            _ => each(Dent { name: OsStr::from_bytes(name), ino: u64::from_ne_bytes(*ino), kind: kind_of(*kind) })?,
        }
        records = next;
    }
    Ok(())
}

/// Where the name begins in a record, so that none is shorter.
const NAME: usize = 19;

fn kind_of(kind: u8) -> Option<Kind> {
    match kind {
        libc::DT_FIFO | libc::DT_CHR | libc::DT_DIR | libc::DT_BLK | libc::DT_REG | libc::DT_LNK | libc::DT_SOCK => {
            Some(Kind::of_mode(u32::from(kind) << 12))
        }
        _ => None,
    }
}
