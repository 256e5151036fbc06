//! An empty directory.

use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, INodeNo, ReplyAttr, ReplyDirectory, ReplyEntry, Request,
};

/// Mounts as an empty root.
#[derive(Debug)]
pub struct EmptyRoot;

impl Filesystem for EmptyRoot {
    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let now = SystemTime::UNIX_EPOCH;
        let attr = FileAttr {
            ino,
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind: FileType::Directory,
            perm: 0o755,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        reply.attr(&Duration::from_secs(1), &attr);
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, _name: &std::ffi::OsStr, reply: ReplyEntry) {
        reply.error(Errno::ENOENT);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        for (at, name) in [".", ".."].iter().enumerate().skip(offset as usize) {
            if reply.add(ino, at as u64 + 1, FileType::Directory, name) {
                break;
            }
        }
        reply.ok();
    }
}
