//! Walking a tree the way find, du and the container stores do: getdents64 with a 32 KiB buffer, fstatat of every entry
//! relative to its directory, then down. Single-threaded, no sorting.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, openat, statat};

use crate::Result;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// glibc's own size for opendir.
const BUFFER: usize = 32 * 1024;

/// Opens a directory.
pub fn open(path: &Path) -> Result<OwnedFd> {
    openat(CWD, path, DIRECTORY, Mode::empty()).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// Visits every entry below `directory` with its attributes; returns how many there were.
pub fn walk(directory: BorrowedFd<'_>, visit: &mut dyn FnMut(&CStr, &Stat)) -> Result<u64> {
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut below: Vec<CString> = Vec::new();
    let mut seen = 0;
    let mut listing = RawDir::new(directory, buffer.spare_capacity_mut());
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        visit(name, &stat);
        seen += 1;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            below.push(name.to_owned());
        }
    }
    for name in below {
        let inner = openat(directory, &name, DIRECTORY, Mode::empty())?;
        seen += walk(inner.as_fd(), visit)?;
    }
    Ok(seen)
}

/// The names of a tree, relative to its root.
#[derive(Debug, Default)]
pub struct Names {
    /// Regular files, in a shuffled but always the same order.
    pub files: Vec<PathBuf>,
    /// Directories, without the root.
    pub directories: Vec<PathBuf>,
}

impl Names {
    /// Collects the names below a mount point.
    pub fn of(root: &Path) -> Result<Names> {
        let mut names = Names::default();
        names.collect(root, PathBuf::new())?;
        names.files.sort();
        names.directories.sort();
        Random::new(7).shuffle(&mut names.files);
        Ok(names)
    }

    fn collect(&mut self, root: &Path, below: PathBuf) -> Result<()> {
        for entry in std::fs::read_dir(root.join(&below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.directories.push(path.clone());
                self.collect(root, path)?;
            } else if kind.is_file() {
                self.files.push(path);
            }
        }
        Ok(())
    }
}

/// A small generator of numbers that are the same in every run (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Always the same sequence for the same seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// Bytes that do not compress to nothing.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    /// Fisher and Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            items.swap(i, j);
        }
    }
}
