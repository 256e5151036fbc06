//! One side of the comparison: a mounted union (or a plain directory as model) and the descriptors open on it.

use super::op::Op;
use super::path::P;
use super::tree::on_disk;
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How many descriptors of each sort stay open between operations.
pub const SLOTS: usize = 4;

/// A tree to work on.
pub struct Side {
    point: PathBuf,
    /// The upper layer on disk, if it is a union.
    pub upper: Option<PathBuf>,
    /// Its root directory.
    pub root: OwnedFd,
    /// Open files.
    pub files: [Option<OwnedFd>; SLOTS],
    /// Directories that are being listed.
    pub dirs: [Option<DirSlot>; SLOTS],
    /// Whether opening for writing is followed by a change that copies up: the kernel does so at open, we at first write.
    pub settle: bool,
    /// Whether that change is to the data, which can be copied up apart from attributes, and so to its time as well.
    pub settle_data: bool,
    /// The umask of each caller, in the order of `Caller`.
    pub umasks: [u32; 3],
    /// A descriptor that was just opened for writing.
    pub unsettled: Option<usize>,
}

impl Side {
    /// The tree at `point`.
    pub fn new(point: &Path, settle: bool) -> Result<Side, Errno> {
        let root = openat(CWD, point, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Side {
            point: point.to_owned(),
            upper: None,
            root,
            files: Default::default(),
            dirs: Default::default(),
            settle,
            settle_data: false,
            umasks: [0o022; 3],
            unsettled: None,
        })
    }

    /// Where a path is for calls that take no directory descriptor.
    pub fn real(&self, path: &P) -> PathBuf {
        on_disk(&self.point, path)
    }
}

/// A listing that was begun, and what may change in it before it ends.
pub struct DirSlot {
    dir: OwnedFd,
    path: P,
    before: BTreeSet<Vec<u8>>,
    seen: BTreeMap<Vec<u8>, u32>,
    touched: BTreeSet<Vec<u8>>,
    upset: bool,
}

impl DirSlot {
    /// Begins to list `dir`: the first few names.
    pub fn new(dir: OwnedFd, path: P) -> Result<DirSlot, Errno> {
        let before = names(&dir).unwrap_or_default();
        let mut slot = DirSlot { dir, path, before, seen: BTreeMap::new(), touched: BTreeSet::new(), upset: false };
        slot.take(true)?;
        Ok(slot)
    }

    /// Remembers which names an operation may add or take away.
    pub fn note(&mut self, op: &Op) {
        self.touched.extend(op.touches().into_iter().map(|path| path.name().to_vec()));
        self.upset |=
            matches!(op, Op::RemoveTree { .. }) || op.touches().into_iter().any(|path| self.path.is_within(path));
    }

    /// Lists the rest. Gives the names that came more or less often than once though nobody touched them.
    pub fn finish(mut self) -> Result<Vec<String>, Errno> {
        self.take(false)?;
        let Ok(after) = names(&self.dir) else { return Ok(Vec::new()) };
        if self.upset {
            return Ok(Vec::new());
        }
        let steady = self.before.intersection(&after).filter(|name| !self.touched.contains(*name));
        let wrong = steady.filter_map(|name| match self.seen.get(name) {
            Some(1) => None,
            count => Some(format!("{} came {} times", name.escape_ascii(), count.copied().unwrap_or(0))),
        });
        Ok(wrong.collect())
    }

    fn take(&mut self, first_only: bool) -> Result<(), Errno> {
        let mut buffer = [MaybeUninit::uninit(); 300];
        let mut entries = RawDir::new(self.dir.as_fd(), &mut buffer);
        while let Some(entry) = entries.next() {
            *self.seen.entry(entry?.file_name().to_bytes().to_vec()).or_default() += 1;
            if first_only && entries.is_buffer_empty() {
                break;
            }
        }
        Ok(())
    }
}

fn names(dir: &OwnedFd) -> Result<BTreeSet<Vec<u8>>, Errno> {
    let dir = openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut names = BTreeSet::new();
    while let Some(entry) = entries.next() {
        names.insert(entry?.file_name().to_bytes().to_vec());
    }
    Ok(names)
}
