//! From a request to an operation of the union, and from its result to a reply: translate, call, encode.
//!
//! Which request goes where; what they are about is for others: `names`, `listing`, `attributes`, `data`, `passthrough`.
//! Knows no device and no threads; whoever brings requests (the server's loop, another transport, a test) calls
//! [`Adapter::answer`]. Must never: decide what the union shows.

use std::sync::Arc;
use std::time::Duration;

pub use super::data::Channel;
use super::listing::Appetite;
use super::passthrough::Passthrough;
use super::wire::{Header, Reader, Writer, opcode};
use crate::errno::{Errno, Result};
use crate::overlay::{Caller, Lasting, NodeId, Overlay, Privileges};

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
    pub(super) xattrs: Xattrs,
    pub(super) long_setxattr: bool,
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

const WRITE_CACHE: u32 = 1;
const WRITE_KILL_SUIDGID: u32 = 1 << 2;
const FSYNC_DATA_ONLY: u32 = 1;

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
