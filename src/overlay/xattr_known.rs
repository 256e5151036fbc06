//! Which extended attributes an object is known not to have, so that asking for them again costs no system call.
//!
//! Container stores ask every object of a mount for `security.capability` and for a list, and nearly none has either. One
//! `listxattr` tells both. What it told is believed as long as nobody can have set an attribute: the union itself says so
//! when it does, and what others do in a layer raises an event ([`watch`](super::watch)), after which nothing that was
//! learnt before is believed, of any object. An object that has several names may be changed under one that is not
//! watched, so of such nothing is believed.
//!
//! On the same grounds its mode is known to have neither suid nor sgid, which each write of who is not root asks for.
//!
//! Absence alone is remembered, never a value. Must never: hold a lock while a system call is made.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::node::{LayerIndex, Node, UPPER};
use super::superblock::Overlay;
use crate::errno::Result;
use crate::sys::{self, ACL_ACCESS, ACL_DEFAULT, At, Kind, Stat, magic};

/// The attribute that is asked for most.
pub(super) const CAPABILITY: &str = "security.capability";

/// The list was read.
const LISTED: u64 = 1;
/// It had nothing that a caller may see.
const NOTHING: u64 = 1 << 1;
/// It had no capability.
const NO_CAPABILITY: u64 = 1 << 2;
/// The object has one name.
const ONE_NAME: u64 = 1 << 3;
/// Its mode had neither suid nor sgid.
const NO_SUID: u64 = 1 << 4;
/// Counts the times that the union set an attribute, in the bits up to the epoch's.
const CHANGE: u64 = 1 << 5;
const LEARNT: u64 = LISTED | NOTHING | NO_CAPABILITY | NO_SUID;
/// Where the epoch begins in which it was learnt.
const EPOCH_SHIFT: u32 = 32;

/// What a node knows of its attributes. The low half: flags and a count of changes; the high half: the epoch.
#[derive(Debug, Default)]
pub(super) struct XattrsKnown(AtomicU64);

/// Counts what others changed in the layers.
#[derive(Debug, Default)]
pub(super) struct Epoch(AtomicU32);

/// The state before a list was read: what is learnt from it counts only if nothing happened since.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    state: u64,
    epoch: u32,
}

impl Epoch {
    /// Another value means that something was changed meanwhile.
    pub fn now(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Somebody changed something in a layer.
    pub fn end(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

impl XattrsKnown {
    /// The object was looked up and looks like this.
    pub fn see(&self, stat: &Stat) {
        if stat.is_dir() || stat.nlink <= 1 {
            self.0.fetch_or(ONE_NAME, Ordering::AcqRel);
        } else {
            self.0.fetch_and(!ONE_NAME, Ordering::AcqRel);
        }
    }

    /// The object was just made by the server, as a file with one name: nobody can have given it a capability.
    fn see_new(&self, epoch: &Epoch, no_suid: u64) {
        let (low, now) = ((1 << EPOCH_SHIFT) - 1, u64::from(epoch.now()) << EPOCH_SHIFT);
        let known = ONE_NAME | NO_CAPABILITY | no_suid | now;
        let update = |state: u64| Some((state & !LEARNT).wrapping_add(CHANGE) & low | known);
        let updated = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
        debug_assert!(updated.is_ok(), "the closure always returns a state");
    }

    /// The union has set an attribute, or another object stands for the node.
    pub fn forget(&self) {
        // A count that overflows into the epoch makes one that was never there, or is not believed for another reason.
        let update = |state: u64| Some((state & !LEARNT).wrapping_add(CHANGE));
        let updated = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
        debug_assert!(updated.is_ok(), "the closure always returns a state");
    }
}

/// Whether a list tells that there is no such attribute: not so of what security modules and file systems make up.
fn is_listed_if_there(name: &OsStr) -> bool {
    name == CAPABILITY || name == ACL_ACCESS || name == ACL_DEFAULT || name.as_encoded_bytes().starts_with(b"user.")
}

/// Whether a file system makes attributes up that it does not list, or is changed where nobody here notices.
fn is_elsewhere(fs: u64) -> bool {
    [magic::FUSE, magic::CEPH, magic::NFS, magic::SMB2, magic::CIFS, magic::V9FS].contains(&fs)
}

impl Overlay {
    /// What is known for sure now, as flags; and what a list that is read now would be learnt against.
    fn known_xattrs(&self, node: &Node) -> (u64, Option<Asked>) {
        let state = node.xattrs.0.load(Ordering::Acquire);
        let epoch = self.foreign_changes.0.load(Ordering::Acquire);
        let watched = state & ONE_NAME != 0
            && self.watcher.get().is_some()
            && match &node.dir {
                Some(dir) => dir.watches.is_complete(node),
                None => node
                    .named()
                    .is_some_and(|(parent, _)| parent.dir.as_ref().is_some_and(|dir| dir.watches.is_complete(&parent))),
            };
        if !watched {
            return (0, None);
        }
        let known = if state >> EPOCH_SHIFT == u64::from(epoch) { state & LEARNT } else { 0 };
        (known, Some(Asked { state, epoch }))
    }

    fn is_elsewhere(&self, layer: LayerIndex) -> bool {
        self.layers.filesystem_of(layer).is_none_or(|fs| is_elsewhere(fs.magic))
    }

    /// Whether a mode is one that a write leaves as it is, in the upper. Of what is described by an attribute it is never known.
    fn no_suid(&self, stat: &Stat) -> u64 {
        let plain = stat.mode & (libc::S_ISUID | libc::S_ISGID) == 0;
        if plain && self.source(UPPER).is_none() && !self.is_elsewhere(UPPER) { NO_SUID } else { 0 }
    }

    /// An object was just made by the server, and looks like this.
    pub(super) fn see_new(&self, node: &Node, stat: &Stat) {
        if stat.kind() == Kind::File && stat.nlink == 1 {
            node.xattrs.see_new(&self.foreign_changes, self.no_suid(stat));
        }
    }

    /// Whether an object in the upper is known to have neither suid nor sgid. If not, what `look` says of it is for the next
    /// time, and is returned.
    pub(super) fn look_for_suid(&self, node: &Node, look: impl FnOnce() -> Result<Stat>) -> Result<Option<Stat>> {
        let (known, asked) = self.known_xattrs(node);
        if known & NO_SUID != 0 {
            return Ok(None);
        }
        let stat = look()?;
        if let Some(Asked { state, epoch }) = asked {
            let still = if state >> EPOCH_SHIFT == u64::from(epoch) { state } else { state & !LEARNT };
            let new = still & ((1 << EPOCH_SHIFT) - 1) | self.no_suid(&stat) | u64::from(epoch) << EPOCH_SHIFT;
            // Whoever came in between knows better.
            let stored = node.xattrs.0.compare_exchange(state, new, Ordering::AcqRel, Ordering::Acquire);
            log::trace!("mode of node {}: {:o} {}", node.id, stat.mode, stored.is_ok());
        }
        Ok(Some(stat))
    }

    /// `shown` is the list as callers see it.
    fn learn_xattrs(&self, node: &Node, asked: Option<Asked>, layer: LayerIndex, shown: &[u8]) {
        let Some(Asked { state, epoch }) = asked.filter(|_| !self.is_elsewhere(layer)) else { return };
        let mut learnt = LISTED | if state >> EPOCH_SHIFT == u64::from(epoch) { state & NO_SUID } else { 0 };
        if shown.is_empty() {
            learnt |= NOTHING;
        }
        if shown.split(|byte| *byte == 0).all(|name| name != CAPABILITY.as_bytes()) {
            learnt |= NO_CAPABILITY;
        }
        let low = state & ((1 << EPOCH_SHIFT) - 1) & !LEARNT;
        let new = low | learnt | u64::from(epoch) << EPOCH_SHIFT;
        // Whoever came in between knows better.
        let stored = node.xattrs.0.compare_exchange(state, new, Ordering::AcqRel, Ordering::Acquire);
        log::trace!("xattrs of node {}: {learnt} {}", node.id, stored.is_ok());
    }

    /// Whether a node has no attribute that callers call `name`, found out with one list at most; false if that cannot
    /// be told.
    pub(super) fn lacks_xattr(&self, node: &Arc<Node>, name: &OsStr) -> Result<bool> {
        if !is_listed_if_there(name) {
            return Ok(false);
        }
        let (mut known, asked) = self.known_xattrs(node);
        if known & NO_CAPABILITY != 0 && name == CAPABILITY {
            return Ok(true);
        }
        if known & LISTED == 0 && asked.is_some() {
            match self.list_xattrs(node) {
                Ok(_) => known = self.known_xattrs(node).0,
                // For the question itself to say.
                Err(_) => return Ok(false),
            }
        }
        Ok(known & NOTHING != 0 || (known & NO_CAPABILITY != 0 && name == CAPABILITY))
    }

    /// The names of the attributes that are shown, each ended by a NUL; without a system call where there is none.
    pub(super) fn list_xattrs(&self, node: &Arc<Node>) -> Result<Vec<u8>> {
        let (known, asked) = self.known_xattrs(node);
        if known & NOTHING != 0 {
            return Ok(Vec::new());
        }
        self.with_real(node, |at: At<'_>, layer| {
            let list = sys::list_xattr(at)?;
            let mut shown = Vec::with_capacity(list.len());
            for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                if let Some(name) = self.shown_name(name, layer) {
                    shown.extend_from_slice(&name);
                    shown.push(0);
                }
            }
            self.learn_xattrs(node, asked, layer, &shown);
            Ok(shown)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_makes_what_was_learnt_before_it_unknown() {
        let known = XattrsKnown::default();
        known.0.store(ONE_NAME | LEARNT | 7 << EPOCH_SHIFT, Ordering::Relaxed);
        known.forget();
        let after = known.0.load(Ordering::Relaxed);
        assert_eq!(after & LEARNT, 0);
        assert_eq!((after & ONE_NAME, after >> EPOCH_SHIFT), (ONE_NAME, 7));
        let before = after;
        known.forget();
        assert_ne!(known.0.load(Ordering::Relaxed), before, "a list that was read before the change is told apart");
    }

    #[test]
    fn what_is_made_up_and_not_listed_is_asked_for_each_time() {
        for name in ["security.capability", "system.posix_acl_access", "user.mime"] {
            assert!(is_listed_if_there(OsStr::new(name)), "{name}");
        }
        for name in ["security.selinux", "system.nfs4_acl", "trusted.x", "ceph.dir.layout"] {
            assert!(!is_listed_if_there(OsStr::new(name)), "{name}");
        }
    }
}
