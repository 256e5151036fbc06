//! Requests about names: looking them up, making, removing and moving them, and letting go of what was looked up.
//!
//! Must never: decide what the union has under a name. Reading them all is for `listing`.

use std::time::Duration;

use super::adapter::{Adapter, Answer, Buffers, caller};
use super::wire::{self, Header, Reader, Writer, opcode};
use crate::errno::{Errno, Result};
use crate::overlay::{Entry, Lasting, Rename};

impl Adapter {
    pub(super) fn lookup(&self, header: &Header, body: &mut Reader<'_>, buffers: &mut Buffers) -> Result<Answer> {
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

    pub(super) fn batch_forget(&self, body: &mut Reader<'_>) -> Result<Answer> {
        let (count, _) = (body.u32()?, body.u32()?);
        for _ in 0..count {
            self.overlay.forget(body.u64()?, body.u64()?);
        }
        Ok(Answer::None)
    }

    /// The operations that make, remove or move names.
    pub(super) fn change_names(&self, header: &Header, body: &mut Reader<'_>, buffers: &mut Buffers) -> Result<Answer> {
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
}
