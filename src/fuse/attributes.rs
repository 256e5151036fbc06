//! Requests about attributes, ordinary and extended, of an object or of the whole file system.
//!
//! Must never: decide who may change them. Which extended ones there are for callers is the mount's to say ([`Xattrs`]).

use std::ffi::OsStr;

use super::adapter::{Adapter, Answer, Buffers, Xattrs, caller, privileges};
use super::wire::{Header, Reader, Writer, opcode};
use crate::errno::{Errno, Result};
use crate::overlay::SetAttr;
use crate::sys::{self, SetTime, Time};

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
const SETXATTR_ACL_KILL_SGID: u32 = 1;

impl Adapter {
    pub(super) fn setattr(&self, header: &Header, body: &mut Reader<'_>, buffers: &mut Buffers) -> Result<Answer> {
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

    pub(super) fn statfs(&self, buffers: &mut Buffers) -> Result<Answer> {
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

    pub(super) fn xattr(&self, header: &Header, body: &mut Reader<'_>, buffers: &mut Buffers) -> Result<Answer> {
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
}
