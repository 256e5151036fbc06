//! Notices to the kernel: what it was told holds no longer.
//!
//! A name is told to be asked for again (`FUSE_EXPIRE_ONLY`, Linux 6.2), not to be dropped: what is mounted on a name, or
//! anywhere below it, goes when the name is dropped, and only what really is another object may cost a mount. fuser's
//! notices know no flags, so this one is written here. A kernel before 6.2 takes no notice of the flag, and drops the name.

use std::ffi::OsStr;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use fuser::{INodeNo, Notifier};

use super::wire::{Writer, notify};
use crate::errno::{Errno, Result};
use crate::overlay::{Listener, NodeId};

/// Passes what the union notices on to the kernel.
#[derive(Debug)]
pub struct Notices {
    notifier: Notifier,
    device: OwnedFd,
}

impl Notices {
    /// Notices through this session, and through a descriptor of its connection.
    #[must_use]
    pub fn new(notifier: Notifier, device: OwnedFd) -> Notices {
        Notices { notifier, device }
    }

    /// Has the kernel ask for a name again before it believes what it knows of it.
    fn expire(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        let message = expiry(parent, name)?;
        let parts = [IoSlice::new(&message), IoSlice::new(name.as_bytes()), IoSlice::new(&[0])];
        match rustix::io::retry_on_intr(|| rustix::io::writev(self.device.as_fd(), &parts)) {
            // The kernel knows nothing of it.
            Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// `fuse_out_header` and `fuse_notify_inval_entry_out`; the name and a NUL follow.
fn expiry(parent: NodeId, name: &OsStr) -> Result<Vec<u8>> {
    let length = u32::try_from(name.len()).map_err(|_| Errno::ENAMETOOLONG)?;
    let mut message = Vec::with_capacity(32);
    message.put_out_header(length.checked_add(17).ok_or(Errno::ENAMETOOLONG)?, notify::INVAL_ENTRY, 0);
    message.put_u64(parent);
    message.put_u32(length);
    message.put_u32(notify::EXPIRE_ONLY);
    Ok(message)
}

impl Listener for Notices {
    fn name_changed(&self, parent: NodeId, name: &OsStr) {
        if let Err(errno) = self.expire(parent, name) {
            log::debug!("notice about {} in {parent}: {errno}", name.to_string_lossy());
        }
    }

    fn attributes_changed(&self, node: NodeId) {
        // A negative offset: no data. The kernel takes no lock of the object for that.
        if let Err(error) = self.notifier.inval_inode(INodeNo(node), -1, 0) {
            log::debug!("notice about {node}: {error}");
        }
    }

    fn object_changed(&self, node: NodeId) {
        // From offset 0, length 0: to the end.
        if let Err(error) = self.notifier.inval_inode(INodeNo(node), 0, 0) {
            log::debug!("notice about {node}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_tells_its_length() {
        let message = expiry(7, OsStr::new("name")).unwrap_or_default();
        assert_eq!(message.len() + "name\0".len(), 37);
        assert_eq!(message.get(..4), Some(37u32.to_ne_bytes().as_slice()));
    }
}
