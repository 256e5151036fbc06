//! Notices to the kernel: what it was told holds no longer.

use std::ffi::OsStr;

use fuser::{INodeNo, Notifier};

use crate::overlay::{Listener, NodeId};

/// Passes what the union notices on to the kernel.
#[derive(Debug)]
pub struct Notices(Notifier);

impl Notices {
    /// Notices through this session.
    #[must_use]
    pub fn new(notifier: Notifier) -> Notices {
        Notices(notifier)
    }
}

impl Listener for Notices {
    fn name_changed(&self, parent: NodeId, name: &OsStr) {
        if let Err(error) = self.0.inval_entry(INodeNo(parent), name) {
            log::debug!("notice about {} in {parent}: {error}", name.to_string_lossy());
        }
    }

    fn attributes_changed(&self, node: NodeId) {
        // A negative offset: no data. The kernel takes no lock of the object for that.
        if let Err(error) = self.0.inval_inode(INodeNo(node), -1, 0) {
            log::debug!("notice about {node}: {error}");
        }
    }

    fn object_changed(&self, node: NodeId) {
        // From offset 0, length 0: to the end.
        if let Err(error) = self.0.inval_inode(INodeNo(node), 0, 0) {
            log::debug!("notice about {node}: {error}");
        }
    }
}
