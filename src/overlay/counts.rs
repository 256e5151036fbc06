//! What is told of a union: what it has done, what it holds at a moment, and what a node is called in messages.
//!
//! Must never: be a lock, or be read to decide anything.

use std::sync::atomic::{AtomicU64, Ordering};

use super::node::{Nameless, NodeId, Place};
use super::superblock::Overlay;

/// What has happened since the union was opened.
#[derive(Debug, Default)]
pub(super) struct Counts {
    copy_ups: AtomicU64,
    copied_bytes: AtomicU64,
}

impl Counts {
    /// An object was copied up, with so many bytes.
    pub fn copied_up(&self, bytes: u64) {
        self.copy_ups.fetch_add(1, Ordering::Relaxed);
        self.copied_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What a union has done and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Nodes that the kernel remembers.
    pub nodes: usize,
    /// Descriptors that are kept because they may be wanted again.
    pub descriptors: usize,
    /// Objects copied up so far.
    pub copy_ups: u64,
    /// The sizes of the regular files among them.
    pub copied_bytes: u64,
    /// Directories that are watched, a layer's each.
    pub watches: usize,
    /// How many more may be.
    pub watch_budget: usize,
}

impl Overlay {
    /// What the union has done and what it holds at this moment.
    #[must_use]
    pub fn held(&self) -> Held {
        let (watches, watch_budget) = self.watcher.get().map(super::watch::Watcher::extent).unwrap_or_default();
        Held {
            nodes: self.remembered(),
            descriptors: self.dirs.len() + self.readers.len() + self.writers.len(),
            copy_ups: self.counts.copy_ups.load(Ordering::Relaxed),
            copied_bytes: self.counts.copied_bytes.load(Ordering::Relaxed),
            watches,
            watch_budget,
        }
    }

    /// A node as messages name it: the path of the layer that holds it, and its own path in the union.
    #[must_use]
    pub fn whereabouts(&self, id: NodeId) -> String {
        let Ok(node) = self.node(id) else { return format!("node {id}") };
        let layer = self.layers.describe(node.state.read().layer).to_string();
        let mut names = Vec::new();
        let mut current = node;
        loop {
            let place = current.place();
            match place {
                Place::Nowhere(Nameless::Root) => break,
                Place::Nowhere(Nameless::Gone) => {
                    names.push("(removed)".to_owned());
                    break;
                }
                Place::In { parent, name } => {
                    names.push(name.display().to_string());
                    current = parent;
                }
            }
        }
        names.reverse();
        format!("{layer}: /{}", names.join("/"))
    }

    /// Closes the descriptors that are only kept because they may be wanted again.
    pub fn close_kept(&self) {
        self.dirs.empty();
        self.readers.empty();
        self.writers.empty();
        self.whiteouts.empty();
    }
}
