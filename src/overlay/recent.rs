//! Which node a name had when it was last looked up: for who is told a name, and would else look for it in every layer to
//! find the node.
//!
//! A guess, which the node's own place confirms or not. Names share what little room there is, and the last one has it.

use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

use super::node::NodeId;

/// How many names there is room for: some directories full of them, in 32 KiB.
const ROOM: usize = 4096;

/// The nodes of the names that were looked up last.
#[derive(Debug)]
pub(super) struct Recent {
    nodes: Box<[AtomicU64]>,
    hasher: RandomState,
}

impl Default for Recent {
    fn default() -> Recent {
        Recent { nodes: (0..ROOM).map(|_| AtomicU64::default()).collect(), hasher: RandomState::new() }
    }
}

impl Recent {
    fn place(&self, parent: NodeId, name: &OsStr) -> Option<&AtomicU64> {
        let hash = self.hasher.hash_one((parent, name.as_encoded_bytes()));
        self.nodes.get(usize::try_from(hash % self.nodes.len() as u64).ok()?)
    }

    /// A name was looked up, or made.
    pub fn note(&self, parent: NodeId, name: &OsStr, id: NodeId) {
        if let Some(place) = self.place(parent, name) {
            place.store(id, Ordering::Relaxed);
        }
    }

    /// The node that a name may have.
    pub fn guess(&self, parent: NodeId, name: &OsStr) -> Option<NodeId> {
        self.place(parent, name).map(|place| place.load(Ordering::Relaxed)).filter(|id| *id != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_the_node_that_was_noted_last() {
        let (recent, name) = (Recent::default(), OsStr::new("name"));
        assert_eq!(recent.guess(1, name), None);
        recent.note(1, name, 7);
        recent.note(1, name, 8);
        assert_eq!(recent.guess(1, name), Some(8));
        // More names than there is room for push each other out, and nothing else happens.
        (0..2 * ROOM as u64).for_each(|n| recent.note(n, name, n + 1));
        assert_eq!(recent.guess(2 * ROOM as u64 - 1, name), Some(2 * ROOM as u64));
        let kept = (0..ROOM as u64).filter(|n| recent.guess(*n, name) == Some(n + 1)).count();
        assert!(kept < ROOM, "{kept}");
    }
}
