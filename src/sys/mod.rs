//! The one place for system calls, and the only unsafe code.
//!
//! Owns: every call into the kernel that the union makes. A named object is a directory descriptor and a name ([`At`]);
//! paths are never joined, a symlink is never followed, every descriptor is close-on-exec, `EINTR` is retried.
//! Takes borrowed descriptors, returns owned ones, and fails with an [`Errno`](crate::errno::Errno).
//!
//! Must never: know what a layer or a whiteout is.
#![allow(unsafe_code)]

mod acl;
mod at;
pub mod cpu;
mod data;
mod dents;
pub mod errand;
pub mod faults;
mod handle;
mod inotify;
mod ioctl;
mod journal;
pub(crate) mod magic;
pub mod mounts;
pub mod namespace;
pub mod pipe;
pub mod process;
mod thread;
mod tree;
pub mod uring;
mod xattr;

pub use acl::{ACL_ACCESS, ACL_DEFAULT, Acl};
pub use at::{
    At, Dev, FsStat, Kind, SetTime, Stat, Time, chmod, chown, link, make_dev, mkdir, mknod, open, open_dir,
    open_parent, readlink, rename, renamed, reopen, rmdir, set_times, split_dev, stat, statfs, symlink, unlink,
};
pub use data::{
    CopyEffort, copy_data, copy_range, fallocate, lock_exclusive, map_large_memory, pread, pwrite, seek, sync_all,
    sync_data, syncfs, trim_memory, truncate, unlock,
};
pub use dents::{Dent, Position, parse_entries, read_dir, read_dir_at};
pub use handle::{FileHandle, file_handle, fs_magic, fs_uuid, open_handle, random_uuid};
pub use inotify::{Happening, Inotify, WatchId, wait_for_events};
pub use ioctl::{
    VerityDigest, clone_fuse_device, close_backing, file_attr_ioctl, is_casefolded, open_backing, verity_digest,
};
pub use journal::{Journal, begin_write_out, write_out};
pub use thread::set_umask;
pub use tree::private_tree;
pub use xattr::{get_xattr, list_xattr, remove_xattr, set_xattr};

pub use rustix::fs::{Mode, OFlags, RenameFlags};
pub use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
