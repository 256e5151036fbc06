//! The opened layers and the file systems that they lie on.
//!
//! Every layer is opened before the union is mounted and reached through that descriptor alone from then on, so the
//! mount point may be a layer or lie above one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use super::node::{LayerIndex, UPPER};
use super::override_stat::Source;
use crate::errno::Result;
use crate::sys::{self, At, Stat, magic};

/// One opened layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub root: Arc<OwnedFd>,
    /// Of a lower that is reached through a mount of its own, that mount: kept because letting go of it takes long.
    pub _tree: Option<OwnedFd>,
    /// Which of [`Layers::filesystems`] it lies on.
    pub fs: usize,
    /// In which attribute it has owners and modes, if they are not where they belong.
    pub source: Option<Source>,
    /// The number of the mount that its objects are found through; what is found through another is not its own.
    pub mount: u64,
    /// As it was named; for messages and for whoever asks.
    pub path: PathBuf,
}

/// A file system under the union.
#[derive(Debug)]
pub(super) struct FileSystem {
    pub dev: u64,
    /// Its type (`statfs(2)`).
    pub magic: u64,
    /// Its UUID, zeroes if it has none or the kernel does not tell.
    pub uuid: [u8; 16],
    /// Whether objects can be opened by their handles: 0 unknown, 1 not by this server, 2 yes.
    pub handles: AtomicU8,
}

impl FileSystem {
    /// Whether a directory that stays open shows what is there by now when it is read from its start again. Where that is
    /// not known, it is opened anew: btrfs (Linux 6.5) and remote file systems can show what there was when it was opened.
    pub fn rewinds(&self) -> bool {
        [magic::EXT4, magic::XFS, magic::TMPFS].contains(&self.magic)
    }
}

/// All layers: the upper, if there is one, and the lowers, topmost first.
#[derive(Debug)]
pub(super) struct Layers {
    pub upper: Option<Layer>,
    pub lowers: Vec<Layer>,
    /// Layers below these that hold data only: of files that say where.
    pub data: Vec<Layer>,
    pub filesystems: Vec<FileSystem>,
    /// The roots of all layers and the work directory, in order: see [`Layers::is_root`].
    pub roots: Vec<(u64, u64)>,
}

impl Layers {
    /// Notes which directories are the roots of layers.
    pub fn find_roots(&mut self, work: Option<BorrowedFd<'_>>) -> Result<()> {
        let layers = self.upper.iter().chain(&self.lowers).chain(&self.data).map(|layer| layer.root.as_fd());
        let roots = layers.chain(work).map(|root| sys::stat(At::Fd(root)).map(|stat| (stat.dev, stat.ino)));
        self.roots = roots.collect::<Result<_>>()?;
        self.roots.sort_unstable();
        Ok(())
    }

    /// Whether a directory that was found under a name is the root of a layer: layers lie within each other. It would be
    /// reached in two ways, and what is done on one of them would not be seen on the other (the kernel: `ELOOP`, too).
    pub fn is_root(&self, stat: &Stat) -> bool {
        self.roots.binary_search(&(stat.dev, stat.ino)).is_ok()
    }

    /// The file system that a layer is on.
    pub fn filesystem_of(&self, index: LayerIndex) -> Option<&FileSystem> {
        self.filesystems.get(self.get(index)?.fs)
    }

    /// A layer by its position; `None` for the upper of a union without one.
    pub fn get(&self, index: LayerIndex) -> Option<&Layer> {
        match index {
            UPPER => self.upper.as_ref(),
            _ => {
                let position = usize::from(index) - 1;
                self.lowers.get(position).or_else(|| self.data.get(position.checked_sub(self.lowers.len())?))
            }
        }
    }

    /// A layer as messages name it.
    pub fn describe(&self, index: LayerIndex) -> std::path::Display<'_> {
        self.get(index).map_or(std::path::Path::new("?"), |layer| layer.path.as_path()).display()
    }

    /// The lowest layer whose directories are merged.
    pub fn last_merged(&self) -> LayerIndex {
        LayerIndex::try_from(self.lowers.len()).unwrap_or(LayerIndex::MAX)
    }

    /// The layers that hold data only.
    pub fn of_data(&self) -> std::ops::RangeInclusive<LayerIndex> {
        let first = self.last_merged() + 1;
        first..=self.last_merged() + LayerIndex::try_from(self.data.len()).unwrap_or(0)
    }

    /// The file system of a device, if a layer lies on it.
    pub fn filesystem(&self, dev: u64) -> Option<(usize, &FileSystem)> {
        self.filesystems.iter().enumerate().find(|(_, fs)| fs.dev == dev)
    }
}
