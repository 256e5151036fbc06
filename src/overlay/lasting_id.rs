//! Node numbers by which file handles find objects in a later mount, too (`nfs_export=on`).
//!
//! A handle of FUSE holds a node's number and nothing else. So the number is made of what the kernel's overlay puts into its
//! own handles: the file handle of the object, or of the lower one that it was copied up from. Nothing has to be kept on
//! disk for that; but the way back, for a number that this mount has not given yet, is a search through the whole union.
//! It is made once: everything that has a name is in the table afterwards, until something is changed behind the mount.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::node::{LayerIndex, Node, NodeId, UPPER};
use super::readdir::Room;
use super::resolve::Found;
use super::superblock::{Caller, Overlay};
use super::table::Key;
use crate::errno::{Errno, Result};
use crate::sys::{AsFd, At, Kind};

/// Set in the numbers of this kind, and in none that is given in order.
const LASTING: NodeId = 1 << 63;

/// What was changed behind the mount when it was searched last, plus one; 0 for never.
#[derive(Debug, Default)]
pub(super) struct Searched(AtomicU64);

impl Overlay {
    /// The number for what was found under a name, if it has none yet. `None`: one of this mount alone, because there are no
    /// handles, or none to be had of this object.
    pub(super) fn lasting_id(&self, parent: &Arc<Node>, name: &OsStr, found: &Found, key: &Key) -> Option<NodeId> {
        if !self.exports() || self.table.find(key).is_some() {
            return None;
        }
        let identity = match (&found.index, &self.index) {
            (Some(entry), Some(index)) => self.identity(index.at(entry), UPPER),
            _ => {
                self.dir_fd(parent, found.layer).and_then(|dir| self.identity(At::Name(dir.as_fd(), name), found.layer))
            }
        };
        identity.unwrap_or_else(|errno| {
            log::debug!("{}: a handle of it will end with the mount: {errno}", name.display());
            None
        })
    }

    fn identity(&self, at: At<'_>, layer: LayerIndex) -> Result<Option<NodeId>> {
        let mark = match layer {
            UPPER => match self.known_origin(at)? {
                Some(origin) => Some(origin),
                None => self.upper_mark(at)?,
            },
            _ => self.origin_mark(at, layer)?,
        };
        Ok(mark.map(|mark| LASTING | hash(&mark)))
    }

    /// Sees to it that the node of a handle's number is in the table, if need be by a search. `ESTALE` if nothing that has a
    /// name has it.
    pub(super) fn meet(&self, id: NodeId) -> Result<()> {
        if self.table.get(id).is_some() {
            return Ok(());
        }
        if !self.exports() || id & LASTING == 0 {
            return Err(Errno::ESTALE);
        }
        let now = u64::from(self.foreign_changes.now()) + 1;
        if self.searched.0.load(Ordering::Acquire) == now {
            return Err(Errno::ESTALE);
        }
        log::info!("a handle of an earlier mount: all names are looked at once");
        let mut dirs = vec![self.root.id];
        while let Some(dir) = dirs.pop() {
            let mut entered = Vec::new();
            let listed = self.readdirplus(&SERVER, dir, 0, &mut |_| Room::Taken, &mut |_, entry| {
                entered.extend(entry.map(|entry| (entry.id, entry.attr.kind())));
            });
            if let Err(errno) = listed {
                log::info!("node {dir}: handles of what is in it are not found: {errno}");
            }
            let mut found = false;
            for (child, kind) in entered {
                found |= child == id;
                // Stays in the table, as all that has a name.
                self.forget(child, 1);
                if kind == Kind::Dir {
                    dirs.push(child);
                }
            }
            if found {
                return Ok(());
            }
        }
        self.searched.0.store(now, Ordering::Release);
        Err(Errno::ESTALE)
    }
}

/// A search is nobody's request.
const SERVER: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };

/// FNV-1a, of which every build of plyfs makes the same.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::hash;

    #[test]
    fn numbers_are_the_same_in_every_build() {
        // The test vectors of the function's authors.
        assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
