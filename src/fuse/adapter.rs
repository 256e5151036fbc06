//! From a request to an operation of the union, and from its result to a reply: translate, call, encode.
//!
//! Knows no device and no threads; whoever brings requests (the server's loop, another transport, a test) calls
//! [`Adapter::answer`]. Must never: decide what the union shows.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

pub use super::data::Channel;
use super::listing::Appetite;
use super::passthrough::Passthrough;
use super::wire::{self, Header, Reader, Writer, opcode};
use crate::errno::{Errno, Result};
use crate::overlay::{Caller, Entry, Lasting, NodeId, Overlay, Privileges, Rename, SetAttr};
use crate::sys::{self, SetTime, Time};

/// For how long the kernel may believe what it was told.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// What will be taken back when it changes.
    pub vouched: Duration,
    /// What may change without a notice.
    pub unvouched: Duration,
}

impl Policy {
    /// Everything for the same time.
    #[must_use]
    pub fn lasting(lifetime: Duration) -> Policy {
        Policy { vouched: lifetime, unvouched: lifetime }
    }

    pub(super) fn names(&self, lasting: Lasting) -> Duration {
        if lasting == Lasting::Neither { self.unvouched } else { self.vouched }
    }

    pub(super) fn attributes(&self, lasting: Lasting) -> Duration {
        match lasting {
            Lasting::Both => self.vouched,
            Lasting::Name | Lasting::Neither => self.unvouched,
            Lasting::NameOnly => Duration::ZERO,
        }
    }
}

impl Default for Policy {
    fn default() -> Policy {
        // As good as for ever; and a little less than the second after which every change is promised to show.
        Policy { vouched: Duration::from_secs(86_400), unvouched: Duration::from_millis(900) }
    }
}

/// Which extended attributes callers get to see and to set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Xattrs {
    /// All that the union has.
    #[default]
    All,
    /// All but access control lists, which nobody enforces.
    NoAcls,
    /// None: the kernel is told so once and never asks again.
    Nothing,
}

/// Translates between the protocol and the union.
#[derive(Debug)]
pub struct Adapter {
    pub(super) overlay: Arc<Overlay>,
    pub(super) policy: Policy,
    xattrs: Xattrs,
    long_setxattr: bool,
    pub(super) appetite: Appetite,
    /// The open files, where the kernel may read and write the real ones itself.
    pub(super) passthrough: Option<Passthrough>,
}

/// What goes back to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: the request has no reply.
    None,
    /// What is in [`Buffers::out`].
    Out,
    /// The first so many bytes of [`Buffers::data`].
    Data(usize),
    /// So many bytes in [`Buffers::channel`], behind the reply's header.
    Piped(usize),
}

/// The buffers of one worker, kept between requests. By default its replies go into memory only.
#[derive(Debug, Default)]
pub struct Buffers {
    /// An encoded reply.
    pub out: Vec<u8>,
    /// File data on its way to the kernel.
    pub data: Vec<u8>,
    /// The same, if it is not to be copied.
    pub channel: Channel,
    /// Nodes of which a lookup is in the reply: should it not arrive, they are to be forgotten again.
    pub entered: Vec<NodeId>,
}

const SETATTR_MODE: u32 = 1;
const SETATTR_UID: u32 = 1 << 1;
const SETATTR_GID: u32 = 1 << 2;
const SETATTR_SIZE: u32 = 1 << 3;
const SETATTR_ATIME: u32 = 1 << 4;
const SETATTR_MTIME: u32 = 1 << 5;
const SETATTR_ATIME_NOW: u32 = 1 << 7;
const SETATTR_HANDLE: u32 = 1 << 6;
const SETATTR_MTIME_NOW: u32 = 1 << 8;
const SETATTR_LOCK_OWNER: u32 = 1 << 9;
const SETATTR_CTIME: u32 = 1 << 10;
const SETATTR_KILL_SUIDGID: u32 = 1 << 11;
const WRITE_CACHE: u32 = 1;
const WRITE_KILL_SUIDGID: u32 = 1 << 2;
const FSYNC_DATA_ONLY: u32 = 1;
const SETXATTR_ACL_KILL_SGID: u32 = 1;

impl Adapter {
    /// An adapter for a union.
    #[must_use]
    pub fn new(overlay: Arc<Overlay>, policy: Policy) -> Adapter {
        Adapter {
            overlay,
            policy,
            xattrs: Xattrs::All,
            long_setxattr: true,
            appetite: Appetite::default(),
            passthrough: None,
        }
    }

    /// The same with fewer extended attributes.
    #[must_use]
    pub fn with_xattrs(self, xattrs: Xattrs) -> Adapter {
        Adapter { xattrs, ..self }
    }

    /// The same, for a kernel whose SETXATTR has the longer form (`FUSE_SETXATTR_EXT`) or not.
    #[must_use]
    pub fn with_long_setxattr(self, long_setxattr: bool) -> Adapter {
        Adapter { long_setxattr, ..self }
    }

    /// The same, for a connection that was granted passthrough.
    #[must_use]
    pub(super) fn with_passthrough(self, passthrough: Option<Passthrough>) -> Adapter {
        Adapter { passthrough, ..self }
    }

    /// The union.
    #[must_use]
    pub fn overlay(&self) -> &Arc<Overlay> {
        &self.overlay
    }

    /// Answers one request. What the reply is made of is in `buffers`.
    pub fn answer(&self, header: &Header, body: &[u8], buffers: &mut Buffers) -> Result<Answer> {
        buffers.out.clear();
        buffers.entered.clear();
        let mut body = Reader(body);
        match header.opcode {
            opcode::LOOKUP => self.lookup(header, &mut body, buffers),
            opcode::FORGET => {
                self.overlay.forget(header.node, body.u64()?);
                Ok(Answer::None)
            }
            opcode::BATCH_FORGET => self.batch_forget(&mut body),
            opcode::NOTIFY_REPLY => Ok(Answer::None),
            opcode::GETATTR => {
                let (attr, lasting) = self.overlay.getattr(header.node)?;
                buffers.out.put_attr_out(&attr, self.policy.attributes(lasting));
                Ok(Answer::Out)
            }
            opcode::STATX => {
                let (attr, lasting) = self.overlay.getattr(header.node)?;
                buffers.out.put_statx(&attr, self.policy.attributes(lasting));
                Ok(Answer::Out)
            }
            opcode::SETATTR => self.setattr(header, &mut body, buffers),
            opcode::READ => self.read(header, &mut body, buffers),
            opcode::WRITE => self.write(header, &mut body, buffers),
            opcode::READDIR | opcode::READDIRPLUS => self.readdir(header, &mut body, buffers),
            opcode::FSYNC | opcode::FSYNCDIR => {
                let (_handle, flags) = (body.u64()?, body.u32()?);
                self.overlay.fsync(header.node, flags & FSYNC_DATA_ONLY != 0)?;
                Ok(Answer::Out)
            }
            opcode::READLINK => {
                let target = self.overlay.readlink(header.node)?;
                buffers.out.extend_from_slice(target.as_encoded_bytes());
                Ok(Answer::Out)
            }
            opcode::STATFS => self.statfs(buffers),
            opcode::RELEASE => self.release(header, &mut body),
            opcode::RELEASEDIR | opcode::DESTROY => Ok(Answer::Out),
            opcode::GETXATTR | opcode::LISTXATTR | opcode::SETXATTR | opcode::REMOVEXATTR => {
                self.xattr(header, &mut body, buffers)
            }
            opcode::FALLOCATE | opcode::LSEEK | opcode::COPY_FILE_RANGE | opcode::IOCTL => {
                self.file_range(header, &mut body, buffers)
            }
            // Said once each, and the kernel never asks again: opens and closes cost no message from then on, and files
            // are made by MKNOD, which takes one message where CREATE and RELEASE take two. With passthrough the kernel must
            // learn at each open which file it may read and write itself.
            opcode::OPEN => self.open(header, &mut body, buffers),
            opcode::CREATE => self.create(header, &mut body, buffers),
            opcode::OPENDIR | opcode::FLUSH => Err(Errno::ENOSYS),
            _ => self.change_names(header, &mut body, buffers),
        }
    }

    fn lookup(&self, header: &Header, body: &mut Reader<'_>, buffers: &mut Buffers) -> Result<Answer> {
        if self.overlay.exports() {
            // For a handle: what has this number, or the directory above it.
            match Reader(body.0).text()?.as_encoded_bytes() {
                b"." => return self.overlay.lookup_self(header.node).map(|entry| self.entry(&entry, buffers)),
                b".." => return self.overlay.lookup_parent(header.node).map(|entry| self.entry(&entry, buffers)),
                _ => {}
            }
        }
        let name = body.name()?;
        self.appetite.looked_up(header.node, name);
        match self.overlay.lookup(&caller(header, 0), header.node, name) {
            Ok(entry) => Ok(self.entry(&entry, buffers)),
            Err(Errno::ENOENT) => {
                let lasting = self.overlay.absence_lasts(header.node);
                let lifetime = self.policy.names(if lasting { Lasting::Both } else { Lasting::Neither });
                if lifetime.is_zero() {
                    return Err(Errno::ENOENT);
                }
                buffers.out.put_entry(0, &wire::no_attr(), lifetime, Duration::ZERO);
                Ok(Answer::Out)
            }
            Err(errno) => Err(errno),
        }
    }

    /// What a LOOKUP that failed is answered with. If the kernel knows the name, it asks whether that still holds, and takes any
    /// error but `ENOMEM` and `EINTR` for a no: what is mounted on the object, or below it, would go. That the server has no
    /// descriptors left, or that a layer does not answer, is no such no.
    pub(super) fn unknown(&self, header: &Header, body: &[u8], errno: Errno) -> Errno {
        match errno {
            Errno::EMFILE | Errno::ENFILE => Errno::ENOMEM,
            Errno::EIO | Errno::ENOTCONN
                if Reader(body).name().is_ok_and(|name| self.overlay.is_known_as(header.node, name)) =>
            {
                Errno::ENOMEM
            }
            errno => errno,
        }
    }

    pub(super) fn entry(&self, entry: &Entry, buffers: &mut Buffers) -> Answer {
        let (names, attributes) = (self.policy.names(entry.lasting), self.policy.attributes(entry.lasting));
        buffers.out.put_entry(entry.id, &entry.attr, names, attributes);
        buffers.entered.push(entry.id);
        Answer::Out
    }

    fn batch_forget(&self, body: &mut Reader<'_>) -> Result<Answer> {
        let (count, _) = (body.u32()?, body.u32()?);
        for _ in 0..count {
            self.overlay.forget(body.u64()?, body.u64()?);
        }
        Ok(Answer::None)
    }

    /// The operations that make, remove or move names.
    fn change_names(&self, header: &Header, body: &mut Reader<'_>, buffers: &mut Buffers) -> Result<Answer> {
        let parent = header.node;
        let entry = match header.opcode {
            opcode::MKNOD => {
                let (mode, rdev, umask, _) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
                let name = body.name()?;
                self.overlay.mknod(&caller(header, umask), parent, name, mode, wire::decode_dev(rdev))?
            }
            opcode::MKDIR => {
                let (mode, umask) = (body.u32()?, body.u32()?);
                self.overlay.mkdir(&caller(header, umask), parent, body.name()?, mode)?
            }
            opcode::SYMLINK => {
                let (name, target) = (body.name()?, body.text()?);
                self.overlay.symlink(&caller(header, 0), parent, name, target)?
            }
            opcode::LINK => {
                let node = body.u64()?;
                self.overlay.link(&caller(header, 0), node, parent, body.name()?)?
            }
            opcode::TMPFILE => {
                let (flags, mode, umask) = (body.u32()?, body.u32()?, body.u32()?);
                let entry = self.overlay.tmpfile(&caller(header, umask), parent, mode)?;
                return self.entry_open(entry, flags, buffers);
            }
            opcode::UNLINK => {
                self.overlay.unlink(&caller(header, 0), parent, body.name()?)?;
                return Ok(Answer::Out);
            }
            opcode::RMDIR => {
                self.overlay.rmdir(&caller(header, 0), parent, body.name()?)?;
                return Ok(Answer::Out);
            }
            opcode::RENAME | opcode::RENAME2 => {
                let new_parent = body.u64()?;
                let flags = if header.opcode == opcode::RENAME2 { (body.u32()?, body.u32()?).0 } else { 0 };
                let how = match flags {
                    0 => Rename::Replace,
                    libc::RENAME_NOREPLACE => Rename::NoReplace,
                    libc::RENAME_EXCHANGE => Rename::Exchange,
                    _ => return Err(Errno::EINVAL),
                };
                let (old, new) = (body.name()?, body.name()?);
                self.overlay.rename(&caller(header, 0), (parent, old), (new_parent, new), how)?;
                return Ok(Answer::Out);
            }
            _ => return Err(Errno::ENOSYS),
        };
        Ok(self.entry(&entry, buffers))
    }

    fn setattr(&self, header: &Header, body: &mut Reader<'_>, buffers: &mut Buffers) -> Result<Answer> {
        let valid = body.u32()?;
        let (_padding, _handle) = (body.u32()?, body.u64()?);
        let size = body.u64()?;
        let _lock_owner = body.u64()?;
        let (atime, mtime, _ctime) = (body.u64()?, body.u64()?, body.u64()?);
        let (atime_nsec, mtime_nsec, _ctime_nsec) = (body.u32()?, body.u32()?, body.u32()?);
        let mode = body.u32()?;
        let _unused = body.u32()?;
        let (uid, gid) = (body.u32()?, body.u32()?);
        let has = |flag| valid & flag != 0;
        let time = |set, now, sec: u64, nsec| match (has(set), has(now)) {
            (false, _) => SetTime::Omit,
            (true, true) => SetTime::Now,
            (true, false) => SetTime::At(Time { sec: sec.cast_signed(), nsec }),
        };
        let set = SetAttr {
            mode: has(SETATTR_MODE).then_some(mode),
            uid: has(SETATTR_UID).then_some(uid),
            gid: has(SETATTR_GID).then_some(gid),
            size: has(SETATTR_SIZE).then_some(size),
            atime: time(SETATTR_ATIME, SETATTR_ATIME_NOW, atime, atime_nsec),
            mtime: time(SETATTR_MTIME, SETATTR_MTIME_NOW, mtime, mtime_nsec),
            privileges: privileges(header, has(SETATTR_KILL_SUIDGID)),
            from_cache: valid & !(SETATTR_HANDLE | SETATTR_LOCK_OWNER) == SETATTR_MTIME | SETATTR_CTIME,
        };
        let (attr, lasting) = self.overlay.setattr(&caller(header, 0), header.node, &set)?;
        buffers.out.put_attr_out(&attr, self.policy.attributes(lasting));
        Ok(Answer::Out)
    }

    fn write(&self, header: &Header, body: &mut Reader<'_>, buffers: &mut Buffers) -> Result<Answer> {
        let (_handle, offset, size, flags) = (body.u64()?, body.u64()?, body.u32()? as usize, body.u32()?);
        let (_lock_owner, _open_flags, _padding) = (body.u64()?, body.u32()?, body.u32()?);
        let data = body.bytes(size)?;
        let kill = match flags & WRITE_CACHE {
            0 => privileges(header, flags & WRITE_KILL_SUIDGID != 0),
            _ => Privileges::KeepAll,
        };
        let written = self.overlay.write(header.node, offset, data, kill)?;
        buffers.out.put_u32(u32::try_from(written).unwrap_or(u32::MAX));
        buffers.out.put_u32(0);
        Ok(Answer::Out)
    }

    fn statfs(&self, buffers: &mut Buffers) -> Result<Answer> {
        let fs = self.overlay.statfs()?;
        for value in [fs.blocks, fs.bfree, fs.bavail, fs.files, fs.ffree] {
            buffers.out.put_u64(value);
        }
        for value in [fs.bsize, fs.namelen, fs.frsize, 0] {
            buffers.out.put_u32(value);
        }
        buffers.out.resize(80, 0);
        Ok(Answer::Out)
    }

    fn xattr(&self, header: &Header, body: &mut Reader<'_>, buffers: &mut Buffers) -> Result<Answer> {
        let node = header.node;
        if self.xattrs == Xattrs::Nothing {
            return Err(Errno::ENOSYS);
        }
        match header.opcode {
            opcode::SETXATTR => {
                let (size, flags) = (body.u32()? as usize, body.u32()?.cast_signed());
                let extra = if self.long_setxattr { (body.u32()?, body.u32()?).0 } else { 0 };
                let name = self.offered(body.text()?)?;
                self.overlay.setxattr(node, name, body.bytes(size)?, flags)?;
                if extra & SETXATTR_ACL_KILL_SGID != 0 && name == sys::ACL_ACCESS {
                    self.overlay.clear_sgid(node)?;
                }
                return Ok(Answer::Out);
            }
            opcode::REMOVEXATTR => {
                self.overlay.removexattr(&caller(header, 0), node, self.offered(body.text()?)?)?;
                return Ok(Answer::Out);
            }
            _ => {}
        }
        let (size, _padding) = (body.u32()? as usize, body.u32()?);
        let value = match header.opcode {
            opcode::GETXATTR => self.overlay.getxattr(node, self.offered(body.text()?)?)?,
            _ => self.offered_names(self.overlay.listxattr(&caller(header, 0), node)?),
        };
        if size == 0 {
            buffers.out.put_u32(u32::try_from(value.len()).map_err(|_| Errno::E2BIG)?);
            buffers.out.put_u32(0);
        } else if value.len() > size {
            return Err(Errno::ERANGE);
        } else {
            buffers.out.extend_from_slice(&value);
        }
        Ok(Answer::Out)
    }

    /// The name of an attribute, if there can be such. `ENOTSUP` as of a file system without access control lists.
    fn offered<'a>(&self, name: &'a OsStr) -> Result<&'a OsStr> {
        let acl = name == sys::ACL_ACCESS || name == sys::ACL_DEFAULT;
        if acl && self.xattrs != Xattrs::All { Err(Errno::ENOTSUP) } else { Ok(name) }
    }

    fn offered_names(&self, names: Vec<u8>) -> Vec<u8> {
        if self.xattrs == Xattrs::All {
            return names;
        }
        let names = names.split_inclusive(|byte| *byte == 0);
        names.filter(|name| !name.starts_with(b"system.posix_acl_")).flatten().copied().collect()
    }

    /// The operations on ranges of files, and on their flags.
    fn file_range(&self, header: &Header, body: &mut Reader<'_>, buffers: &mut Buffers) -> Result<Answer> {
        let _handle = body.u64()?;
        match header.opcode {
            opcode::FALLOCATE => {
                let (offset, length, mode) = (body.u64()?, body.u64()?, body.u32()?.cast_signed());
                let kill = privileges(header, header.uid != 0);
                self.overlay.fallocate(header.node, mode, offset, length, kill)?;
            }
            opcode::LSEEK => {
                let (offset, whence) = (body.u64()?.cast_signed(), body.u32()?.cast_signed());
                buffers.out.put_u64(self.overlay.seek(header.node, offset, whence)?);
            }
            opcode::COPY_FILE_RANGE => {
                let kill = privileges(header, header.uid != 0);
                let (from_offset, to, _handle) = (body.u64()?, body.u64()?, body.u64()?);
                let (to_offset, length) = (body.u64()?, body.u64()?);
                // The reply counts in 32 bits, and a page less stays aligned.
                let length = usize::try_from(length).unwrap_or(usize::MAX).min(!0xfff_u32 as usize);
                let copied = self.overlay.copy_file_range((header.node, from_offset), (to, to_offset), length, kill)?;
                buffers.out.put_u32(u32::try_from(copied).unwrap_or(u32::MAX));
                buffers.out.put_u32(0);
            }
            _ => self.ioctl(header, body, buffers)?,
        }
        Ok(Answer::Out)
    }

    fn ioctl(&self, header: &Header, body: &mut Reader<'_>, buffers: &mut Buffers) -> Result<()> {
        let (_flags, command, _argument) = (body.u32()?, body.u32()?, body.u64()?);
        let (in_size, out_size) = (body.u32()? as usize, body.u32()? as usize);
        let mut data = [0u8; 32];
        if in_size > data.len() || out_size > data.len() {
            return Err(Errno::ENOTTY);
        }
        let given = body.bytes(in_size)?;
        data.get_mut(..in_size).ok_or(Errno::EIO)?.copy_from_slice(given);
        self.overlay.file_attr(header.node, command, &mut data, in_size > 0)?;
        for value in [0, 0, 0, 0] {
            buffers.out.put_u32(value);
        }
        buffers.out.extend_from_slice(data.get(..out_size).unwrap_or_default());
        Ok(())
    }
}

pub(super) fn caller(header: &Header, umask: u32) -> Caller {
    Caller { uid: header.uid, gid: header.gid, pid: header.pid, umask }
}

pub(super) fn privileges(header: &Header, kill: bool) -> Privileges {
    if kill { Privileges::Kill(caller(header, 0)) } else { Privileges::Keep }
}
