//! What has to be on disk before a copy may show, and what before a sync.
//!
//! Promised is, but with `fsync=volatile`: whatever happens, a name of the upper never shows a copy that is not whole. A
//! copy-up itself may be lost by a power cut, as in the kernel's overlay; the lower object shows again then. So what counts
//! is the order: the data of a copy must not reach the disk later than its name. A sync before the rename sees to that
//! everywhere, and takes ten times as long as all the rest. It is made where the file system does not keep the order
//! by itself.
//!
//! | file system | copied data | shared extents |
//! |---|---|---|
//! | xfs, ext4 with a journal in itself | written out before the rename; its place and size are logged by then, and a log that holds the rename holds them | are logged, before the rename |
//! | btrfs | synced | are of the rename's transaction or an earlier one; a sync through the union that would go past it waits until that is on disk |
//! | others | synced | synced |
//!
//! On btrfs that is not the whole of it: with other syncs of the same file system at the same time a clone was empty after 7 of
//! 2,400 cuts of `tests/powercut` (after up to a fifth of them under the kernel's overlay, which commits nothing). A sync of
//! each clone closes it, and costs what the clone saves; so `auto` is safer than the kernel there, and `strict` safe.
//!
//! Attributes, xattrs and holes are changes of metadata, before the rename.

use std::sync::atomic::{AtomicU64, Ordering};

use super::config::Fsync;
use super::superblock::Overlay;
use crate::errno::{Errno, Result};
use crate::sys::{self, BorrowedFd, CopyEffort, Journal};

/// The copies whose data the disk has, if at all, with their names' transaction.
#[derive(Debug, Default)]
pub(super) struct Uncommitted {
    made: AtomicU64,
    /// How many of them are on disk at least.
    committed: AtomicU64,
}

impl Overlay {
    /// The data of a copy is complete: where it is to be written out that begins now, and goes on while the copy gets its
    /// attributes.
    pub(super) fn begin_to_settle(&self, copy: BorrowedFd<'_>, effort: CopyEffort) -> Result<()> {
        match (self.fsync, self.journal, effort) {
            (Fsync::Auto, Journal::Sequential, CopyEffort::Copied) => match sys::begin_write_out(copy) {
                Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
                result => result,
            },
            _ => Ok(()),
        }
    }

    /// Sees to it that the name that a copy is about to get does not reach the disk before its data.
    pub(super) fn settle_data(&self, copy: BorrowedFd<'_>, effort: CopyEffort) -> Result<()> {
        match (self.fsync, self.journal, effort) {
            (Fsync::Volatile, ..) | (Fsync::Auto, _, CopyEffort::Nothing) => Ok(()),
            (Fsync::Auto, Journal::Sequential, CopyEffort::Cloned) => Ok(()),
            (Fsync::Auto, Journal::Sequential, CopyEffort::Copied) => match sys::write_out(copy) {
                Err(Errno::ENOSYS | Errno::EPERM) => sys::sync_all(copy),
                result => result,
            },
            (Fsync::Auto, Journal::Transactions, CopyEffort::Cloned) => {
                self.uncommitted.made.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
            _ => sys::sync_all(copy),
        }
    }

    /// Before anything of the upper is synced: commits the copies that a sync might tear from their names.
    pub(super) fn commit_copies(&self) -> Result<()> {
        let made = self.uncommitted.made.load(Ordering::SeqCst);
        if self.uncommitted.committed.load(Ordering::SeqCst) < made {
            sys::syncfs(self.work()?.fd())?;
            self.uncommitted.committed.fetch_max(made, Ordering::SeqCst);
        }
        Ok(())
    }
}
