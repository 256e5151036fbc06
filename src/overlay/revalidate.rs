//! A node that is found again: what is known of it is brought up to what is there now, and what rested on it is told.
//!
//! Answers to the kernel's `ovl_revalidate`, which gives up where this goes on. The kernel asks for a name again after a
//! notice, and keeps what it finds to be the same node, with all that is mounted on it and below it. So a node stays the
//! node it is while real directories come to it or go from it behind the mount; but then every name below it has to be
//! asked for again, too.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::node::{Nameless, Node, NodeId, Place, RealId, UPPER};
use super::resolve::{Found, From};
use super::superblock::Overlay;
use super::watch::Listener;
use crate::sys::{self, AsFd};

impl Overlay {
    /// A node was found again, perhaps elsewhere: under another of its names, or moved behind the mount.
    pub(super) fn refresh(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &Arc<OsStr>, found: &Found) {
        let mut gone = Vec::new();
        {
            let mut state = node.state.write();
            if !state.place.is(parent, name) && !matches!(state.place, Place::Nowhere(Nameless::Root)) {
                state.place = Place::In { parent: parent.clone(), name: name.clone() };
                drop(state.rare.take_object());
                node.xattrs.forget();
                gone = self.table.moved(node, Some(parent));
            }
            let real = RealId::of(&found.stat);
            let same = state.real == real && state.layer == found.layer;
            if found.data.is_none() || !(same && found.layer == UPPER) {
                // An upper file that has got its data does not lose it again, whatever was read before.
                state.rare.set_data(found.data.clone());
            }
            if found.index.is_some() || !same {
                state.rare.set_index(found.index.clone());
            }
            if !same {
                self.readers.remove(&node.id);
                self.writers.remove(&node.id);
                node.xattrs.forget();
            }
            state.layer = found.layer;
            state.real = real;
        }
        self.let_go(gone);
        if let Some(dir) = &node.dir {
            let known = dir.lowers.read().clone();
            let same = known.len() == found.lowers.len()
                && known
                    .iter()
                    .zip(&found.lowers)
                    .all(|(a, b)| a.layer == b.layer && a.ino == b.ino && a.home == b.home);
            if !same {
                *dir.lowers.write() = found.lowers.iter().cloned().collect();
                dir.parts_changed.store(true, Ordering::Release);
                // What is open and what is watched may be directories that are no part of it any more.
                for lower in known.iter() {
                    self.dirs.remove(&(node.id, lower.layer));
                }
                self.unwatch(node);
            }
        }
    }

    /// Whether the kernel may know an object by a name: of an object with several, by the one that it was found by last.
    pub fn is_known_as(&self, parent: NodeId, name: &OsStr) -> bool {
        let Ok(dir) = self.node(parent) else { return false };
        self.table.below(parent).iter().any(|node| node.place().is(&dir, name))
    }

    /// Whatever was said of a name holds no longer; and if it is a directory that is made of other parts now, nothing that
    /// was said of the names below it.
    pub(super) fn ask_again(&self, listener: &dyn Listener, dir: &Arc<Node>, name: &OsStr) {
        listener.name_changed(dir.id, name);
        let Some(node) = self.look_again(dir, name) else { return };
        // Another object can have the number of one that is gone.
        listener.object_changed(node.id);
        if node.dir.as_ref().is_some_and(|dir| dir.parts_changed.swap(false, Ordering::AcqRel)) {
            self.forget_below(listener, &node);
        }
    }

    /// What is known under a name, brought up to date.
    fn look_again(&self, dir: &Arc<Node>, name: &OsStr) -> Option<Arc<Node>> {
        let _unchanged = self.names(dir).ok()?.read();
        let found = self.resolve(dir, name, From::Top).ok()??;
        let node = self.known(dir, name, &found).filter(|node| node.kind == found.stat.kind())?;
        // One that moved is for a lookup to move: whoever looks it up holds it.
        if node.place().is(dir, name) {
            self.refresh(&node, dir, &Arc::from(name), &found);
        }
        Some(node)
    }

    /// Takes back what was said of all names below a directory, from above down: what a directory is made of follows
    /// from what those above it are made of.
    pub(super) fn forget_below(&self, listener: &dyn Listener, dir: &Arc<Node>) {
        let mut below: Vec<(usize, Arc<Node>)> = Vec::new();
        for node in self.table.nodes() {
            if let Some(depth) = depth_below(dir, &node) {
                below.push((depth, node));
            }
        }
        below.sort_by_key(|(depth, node)| (*depth, node.id));
        self.forget_names(listener, dir);
        for (_, node) in below {
            let Some((parent, name)) = node.named() else { continue };
            if node.dir.is_some() {
                self.look_again(&parent, &name);
            }
            listener.name_changed(parent.id, &name);
            if let Some(dir) = &node.dir {
                dir.parts_changed.store(false, Ordering::Release);
                self.forget_names(listener, &node);
            }
        }
    }

    /// Takes back what was said of the names that a directory has now, in any layer. That they are not there may have
    /// been told; those that were, and are no more, are nodes.
    fn forget_names(&self, listener: &dyn Listener, dir: &Arc<Node>) {
        self.listings.forget(dir.id);
        let mut names: HashSet<OsString> = HashSet::new();
        let lowers = dir.lowers();
        let layers = dir.in_upper().then_some(UPPER).into_iter().chain(lowers.iter().map(|lower| lower.layer));
        for layer in layers {
            let read = self.dir_fd(dir, layer).and_then(|fd| {
                sys::read_dir(fd.as_fd(), |entry| {
                    names.insert(super::whiteout::hidden_name(entry.name).unwrap_or(entry.name).to_owned());
                    Ok(())
                })
            });
            if let Err(errno) = read {
                log::debug!("node {} in layer {layer}: {errno}", dir.id);
            }
        }
        for name in names {
            listener.name_changed(dir.id, &name);
        }
        listener.object_changed(dir.id);
    }
}

/// How far a node lies below a directory, if it does.
fn depth_below(dir: &Arc<Node>, node: &Arc<Node>) -> Option<usize> {
    let mut current = node.clone();
    for depth in 0.. {
        if current.id == dir.id {
            return (depth > 0).then_some(depth);
        }
        let Place::In { parent, .. } = current.place() else { return None };
        current = parent;
    }
    None
}
