//! The operations: plain data that can be logged, replayed, left out one by one, and pasted into a regression test.

use super::path::P;
use crate::common::caller::Caller;
use crate::common::mapping::Share;
use rustix::fs::OFlags;

/// One operation and who asks for it.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who.
    pub caller: Caller,
    /// What.
    pub op: Op,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// Leave it.
    Omit,
    /// The present.
    Now,
    /// Seconds and nanoseconds.
    At(i64, i64),
}

/// A kind of node for mknod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// A regular file.
    File,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device; 0 would be a whiteout, which is refused.
    Char(u64),
    /// A block device.
    Block(u64),
}

/// A system call, or a few that belong together. `slot` names one of the descriptors that stay open between calls.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Op {
    // Descriptors of files.
    Open {
        slot: usize,
        path: P,
        flags: u32,
        mode: u32,
    },
    Close {
        slot: usize,
    },
    Read {
        slot: usize,
        offset: u64,
        length: usize,
    },
    Write {
        slot: usize,
        offset: u64,
        length: usize,
        tint: u8,
    },
    /// write(2) at the descriptor's position or, with O_APPEND, at the end.
    Put {
        slot: usize,
        length: usize,
        tint: u8,
    },
    Ftruncate {
        slot: usize,
        size: u64,
    },
    Fallocate {
        slot: usize,
        mode: u32,
        offset: u64,
        length: u64,
    },
    SeekData {
        slot: usize,
        offset: u64,
    },
    SeekHole {
        slot: usize,
        offset: u64,
    },
    CopyRange {
        from: usize,
        to: usize,
        from_offset: u64,
        to_offset: u64,
        length: usize,
    },
    Fsync {
        slot: usize,
        data_only: bool,
    },
    Fstat {
        slot: usize,
    },
    Fchmod {
        slot: usize,
        mode: u32,
    },
    Fchown {
        slot: usize,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Futimens {
        slot: usize,
        atime: Time,
        mtime: Time,
    },
    Fsetxattr {
        slot: usize,
        name: P,
        value: P,
    },
    Flistxattr {
        slot: usize,
    },
    /// Maps the first bytes, changes them, unmaps.
    MapWrite {
        slot: usize,
        offset: usize,
        length: usize,
        tint: u8,
    },
    // Descriptors of directories.
    OpenDir {
        slot: usize,
        path: P,
    },
    /// What is left to list: names that were there all the time come exactly once.
    ReadRest {
        slot: usize,
    },
    // Paths.
    Stat {
        path: P,
    },
    Access {
        path: P,
        mode: u32,
    },
    /// Opens, reads everything, closes.
    Cat {
        path: P,
    },
    /// Opens, maps, reads, unmaps, closes.
    MapRead {
        path: P,
        share: Share,
    },
    /// Opens with O_CREAT and these flags, writes, closes.
    Save {
        path: P,
        flags: u32,
        mode: u32,
        length: usize,
        tint: u8,
    },
    Truncate {
        path: P,
        size: u64,
    },
    Unlink {
        path: P,
    },
    Rmdir {
        path: P,
    },
    Mkdir {
        path: P,
        mode: u32,
    },
    Symlink {
        path: P,
        target: P,
    },
    Readlink {
        path: P,
    },
    Link {
        from: P,
        to: P,
    },
    Rename {
        from: P,
        to: P,
        flags: u32,
    },
    Mknod {
        path: P,
        kind: Special,
        mode: u32,
    },
    Chmod {
        path: P,
        mode: u32,
    },
    Chown {
        path: P,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Utimens {
        path: P,
        atime: Time,
        mtime: Time,
    },
    Setxattr {
        path: P,
        name: P,
        value: P,
        flags: u32,
    },
    Getxattr {
        path: P,
        name: P,
    },
    Listxattr {
        path: P,
    },
    Removexattr {
        path: P,
        name: P,
    },
    List {
        path: P,
    },
    /// `rm -rf`: removes while listing, goes on after errors.
    RemoveTree {
        path: P,
    },
    Statfs {
        path: P,
    },
    SyncDir {
        path: P,
    },
    // The union as a whole.
    /// Closes every descriptor, unmounts and mounts again.
    Remount,
}

impl Op {
    /// Its name, to tell one kind of difference from another.
    pub fn name(&self) -> String {
        let text = format!("{self:?}");
        text.split([' ', '{']).next().unwrap_or_default().to_owned()
    }

    /// Whether it may make a new object.
    pub fn makes(&self) -> bool {
        let creates = |flags: u32| OFlags::from_bits_retain(flags).contains(OFlags::CREATE);
        match self {
            Op::Open { flags, .. } => creates(*flags),
            Op::Save { .. } | Op::Mkdir { .. } | Op::Symlink { .. } | Op::Mknod { .. } => true,
            _ => false,
        }
    }

    /// The names that it may add to or take from a directory.
    pub fn touches(&self) -> Vec<&P> {
        match self {
            Op::Open { path, .. }
            | Op::Save { path, .. }
            | Op::Unlink { path }
            | Op::Rmdir { path }
            | Op::Mkdir { path, .. }
            | Op::Symlink { path, .. }
            | Op::Mknod { path, .. }
            | Op::RemoveTree { path } => vec![path],
            Op::Link { to, .. } => vec![to],
            Op::Rename { from, to, .. } => vec![from, to],
            _ => Vec::new(),
        }
    }
}
