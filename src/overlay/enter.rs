//! From what the union has under a name to a node: which one, with which number, and for how long what is said of it holds.
//!
//! Answers to the kernel's `ovl_get_inode`. Must never: look for anything in a layer; that is for `resolve`.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::node::{Node, Place, RealId, UPPER};
use super::resolve::Found;
use super::superblock::{Entry, Lasting, Overlay};
use super::table::{Interned, Key};
use super::watch::is_large;
use crate::errno::Result;
use crate::sys::{AsFd, At, Stat};

impl Overlay {
    /// Makes what was found under a name a node of the table, with one more lookup.
    pub(super) fn enter(&self, parent: &Arc<Node>, name: &OsStr, found: Found) -> Result<Entry> {
        let (node, stat) = self.intern(parent, name, found);
        let (attr, lasting) = self.vouch(parent, &node, stat)?;
        Ok(Entry { id: node.id, attr, lasting })
    }

    /// The same for what was just made, quietly if no event came of it but that of its name: a new directory is not watched
    /// before somebody looks into it.
    pub(super) fn enter_new(&self, parent: &Arc<Node>, name: &OsStr, found: Found, quietly: bool) -> Result<Entry> {
        let (node, stat) = self.intern(parent, name, found);
        match quietly {
            true => node.own_change.note_quiet(&stat),
            false => self.note_as(&node, &stat),
        }
        if !stat.is_dir() {
            self.see_new(&node, &stat);
            let (attr, lasting) = self.vouch(parent, &node, stat)?;
            return Ok(Entry { id: node.id, attr, lasting });
        }
        if let Some(dir) = &node.dir {
            dir.wh_names.store(1, Ordering::Relaxed);
        }
        let lasting = if self.is_watched(parent) { Lasting::Name } else { Lasting::Neither };
        Ok(Entry { id: node.id, attr: self.shown(&node, stat), lasting })
    }

    /// Makes a new file without a name a node.
    pub(super) fn enter_nameless(&self, file: Arc<OwnedFd>) -> Result<Entry> {
        let stat = self.stat_in(At::Fd(file.as_fd()), UPPER)?;
        let real = RealId::of(&stat);
        let number =
            self.numbers.persistent(&self.layers, stat.dev, stat.ino).unwrap_or_else(|| self.numbers.made_up());
        let make = |id| Node::new(id, stat.kind(), number, Place::GONE, UPPER, real);
        let node = match self.table.intern((Key::Real(real), None), &self.root, |_| false, make) {
            Interned::New(node) | Interned::Known(node) => node,
        };
        self.let_go(self.table.moved(&node, None));
        let mut state = node.state.write();
        state.rare.open = Some(file.clone());
        state.rare.object = Some(file);
        drop(state);
        Ok(Entry { id: node.id, attr: self.shown(&node, stat), lasting: Lasting::Neither })
    }

    fn intern(&self, parent: &Arc<Node>, name: &OsStr, found: Found) -> (Arc<Node>, Stat) {
        let kind = found.stat.kind();
        let real = RealId::of(&found.stat);
        let name: Arc<OsStr> = Arc::from(name);
        let broken_link = self.is_broken_link(&found);
        let key = if broken_link { Key::Name(parent.id, name.clone()) } else { Key::Real(real) };
        let number = self.number(&found);
        let place = || Place::In { parent: parent.clone(), name: name.clone() };
        let wanted = self.lasting_id(parent, &name, &found, &key);
        let interned = self.table.intern(
            (key, wanted),
            parent,
            |node| node.kind == kind,
            |id| {
                let mut node = Node::new(id, kind, number, place(), found.layer, real);
                node.state.get_mut().rare.set_data(found.data.clone());
                node.state.get_mut().rare.set_index(found.index.clone());
                node
            },
        );
        let node = match interned {
            Interned::New(node) => {
                if let Some(dir) = &node.dir {
                    *dir.lowers.write() = found.lowers.into_iter().collect();
                }
                node
            }
            Interned::Known(node) => {
                self.refresh(&node, parent, &name, &found);
                node
            }
        };
        self.recent.note(parent.id, &name, node.id);
        node.xattrs.see(&found.stat);
        for (layer, fd) in found.fds {
            self.dirs.insert((node.id, layer), Arc::new(fd));
        }
        (node, found.stat)
    }

    /// What is shown of a node that was just looked up, and for how long it holds.
    fn vouch(&self, parent: &Arc<Node>, node: &Arc<Node>, stat: Stat) -> Result<(Stat, Lasting)> {
        let shown = self.shown(node, stat);
        if self.watcher.get().is_none() || !self.is_watched(parent) {
            return Ok((shown, Lasting::Neither));
        }
        let Some(dir) = &node.dir else { return Ok((shown, self.lasting_attributes(node, &shown))) };
        if dir.watches.is_complete(node) {
            return Ok((shown, Lasting::Both));
        }
        if is_large(&stat) || node.lowers().iter().any(|lower| lower.large) {
            return Ok((shown, Lasting::Name));
        }
        // Watched from now on; what happened since it was looked at is seen by looking again.
        if self.is_watched(node) { Ok((self.attr(node)?, Lasting::Both)) } else { Ok((shown, Lasting::Name)) }
    }

    /// Whether a name is a file of its own because its copy will be: one of several of a lower file.
    pub(super) fn is_broken_link(&self, found: &Found) -> bool {
        found.layer != UPPER && !found.stat.is_dir() && found.stat.nlink > 1 && !self.is_indexed(&found.stat)
    }

    /// A file with several links can change under a name that is not watched, one that is mapped without an event.
    pub(super) fn lasting_attributes(&self, node: &Node, stat: &Stat) -> Lasting {
        match stat.nlink {
            _ if node.own_change.is_mapped() => Lasting::NameOnly,
            0 | 1 => Lasting::Both,
            _ => Lasting::Name,
        }
    }

    /// The union's number of what was found.
    fn number(&self, found: &Found) -> u64 {
        let dev = found.stat.dev;
        let persistent = match (found.layer, found.lowers.first()) {
            // A merged directory has the number of the topmost lower one, which a copy-up does not change.
            (UPPER, Some(lower)) => {
                let dev = self.layers.filesystem_of(lower.layer).map(|fs| fs.dev);
                dev.and_then(|dev| self.numbers.persistent(&self.layers, dev, lower.ino))
            }
            _ => found.origin.or_else(|| self.numbers.persistent(&self.layers, dev, found.stat.ino)),
        };
        persistent.unwrap_or_else(|| self.numbers.made_up())
    }
}
