//! How a file system brings data and names to disk: whether a name can be there after a power cut without its data.
//!
//! Answers to `sync_file_range(2)`, and to what jbd2 and sysfs tell.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::faults::gate;
use super::ioctl::{FS_IOC_FSGETXATTR, file_attr_ioctl};
use super::{At, fs_magic, magic, split_dev, stat};
use crate::errno::{Errno, Result};

/// What is known of the order in which a file system's changes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// One log, written from its start on: a change is never on disk without those before it. Data is outside of it; but
    /// what was written out before a change is logged is there when the log is, for the log flushes the device first.
    Sequential,
    /// btrfs: a transaction has all changes or none. But a sync of one file or directory, which goes past the transaction,
    /// can take names along of which the data is to come with it. And a page that was written out is not yet part of its
    /// file.
    Transactions,
    /// Not known: another file system, or one without a journal.
    Unknown,
}

impl Journal {
    /// What is known of the file system of a directory, which has to be open for reading.
    #[must_use]
    pub fn of(dir: BorrowedFd<'_>) -> Journal {
        // Linux before 5.8, which does not tell the mount; 5.2 has the `sync_file_range` that leaves no page out.
        let Some(stat) = stat(At::Fd(dir)).ok().filter(|stat| stat.mount != 0) else { return Journal::Unknown };
        match fs_magic(dir) {
            Ok(magic::XFS) if !is_realtime(dir) => Journal::Sequential,
            Ok(magic::EXT4) if has_journal(Path::new("/"), stat.dev) => Journal::Sequential,
            Ok(magic::BTRFS) => Journal::Transactions,
            _ => Journal::Unknown,
        }
    }
}

/// Whether what is made in a directory of xfs gets its data on another device, which the log does not flush.
fn is_realtime(dir: BorrowedFd<'_>) -> bool {
    const FS_XFLAG_RTINHERIT: u8 = 1;
    let mut attributes = [0; 32];
    // The second byte of the flags, as they lie in memory.
    let second = if cfg!(target_endian = "little") { 1 } else { 2 };
    file_attr_ioctl(dir, FS_IOC_FSGETXATTR, &mut attributes).is_err() || attributes[second] & FS_XFLAG_RTINHERIT != 0
}

/// Whether the file system on a device, which has the magic number of ext2, ext3 and ext4, has a journal, and has it in
/// itself: one on a device of its own flushes the other one for the data alone that it was told of. jbd2 lists
/// journals as `DEVICE-INODE`, and those that are devices of their own as `DEVICE`.
fn has_journal(root: &Path, dev: u64) -> bool {
    let (major, minor) = split_dev(dev);
    let device = std::fs::read_link(root.join(format!("sys/dev/block/{major}:{minor}")));
    let Some(name) = device.ok().as_deref().and_then(Path::file_name).and_then(|name| name.to_str().map(str::to_owned))
    else {
        return false;
    };
    let journals = std::fs::read_dir(root.join("proc/fs/jbd2")).into_iter().flatten().flatten();
    let mut within = journals.filter_map(|entry| entry.file_name().into_string().ok());
    let is_of_device = |journal: String| {
        let inode = journal.strip_prefix(&name).and_then(|rest| rest.strip_prefix('-'));
        inode.is_some_and(|inode| !inode.is_empty() && inode.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let options = |name: &str| -> PathBuf { root.join("proc/fs/ext4").join(name).join("options") };
    // With this option a commit does not wait for what was written before it.
    within.any(is_of_device)
        && std::fs::read_to_string(options(&name))
            .is_ok_and(|text| !text.lines().any(|option| option == "journal_async_commit"))
}

/// Begins to write the data of a file to the device. Errors as of [`write_out`], which has to follow.
pub fn begin_write_out(fd: BorrowedFd<'_>) -> Result<()> {
    sync_file_range(fd, libc::SYNC_FILE_RANGE_WRITE)
}

/// Writes the data of a file to the device and waits for that, but for no journal, and flushes no device.
/// `ENOSYS` or `EPERM` where a sandbox does not know the call.
pub fn write_out(fd: BorrowedFd<'_>) -> Result<()> {
    let wait = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_file_range(fd, wait | libc::SYNC_FILE_RANGE_WRITE)
}

fn sync_file_range(fd: BorrowedFd<'_>, flags: u32) -> Result<()> {
    gate("sync_file_range")?;
    // SAFETY: sync_file_range(2) takes no pointers.
    let r = unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, flags) };
    if r == 0 { Ok(()) } else { Err(Errno::from(std::io::Error::last_os_error())) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::make_dev;

    fn machine(journals: &[&str], options: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let block = root.path().join("sys/dev/block");
        std::fs::create_dir_all(&block).unwrap();
        std::os::unix::fs::symlink("../../devices/virtual/block/dm-1", block.join("252:1")).unwrap();
        for journal in journals {
            std::fs::create_dir_all(root.path().join("proc/fs/jbd2").join(journal)).unwrap();
        }
        std::fs::create_dir_all(root.path().join("proc/fs/ext4/dm-1")).unwrap();
        std::fs::write(root.path().join("proc/fs/ext4/dm-1/options"), options).unwrap();
        root
    }

    #[test]
    fn a_journal_counts_that_is_in_the_file_system_itself() {
        let options = "rw\ndelalloc\ndata=ordered\n";
        for (journals, options, has) in [
            (["dm-0-8", "dm-1-8"].as_slice(), options, true),
            (&["dm-0-8", "dm-11-8"], options, false),
            (&[], options, false),
            (&["dm-1"], options, false),
            (&["dm-1-"], options, false),
            (&["dm-1-x"], options, false),
            (&["dm-1-8"], "rw\njournal_async_commit\n", false),
        ] {
            let root = machine(journals, options);
            assert_eq!(has_journal(root.path(), make_dev(252, 1)), has, "{journals:?} {options}");
            assert!(!has_journal(root.path(), make_dev(252, 2)));
        }
        let root = machine(&["dm-1-8"], options);
        std::fs::remove_file(root.path().join("proc/fs/ext4/dm-1/options")).unwrap();
        assert!(!has_journal(root.path(), make_dev(252, 1)));
    }

    #[test]
    fn of_memory_nothing_is_known() {
        let Ok(memory) = std::fs::File::open("/dev/shm") else { return };
        assert_eq!(Journal::of(std::os::fd::AsFd::as_fd(&memory)), Journal::Unknown);
    }
}
