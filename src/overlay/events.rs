//! What an event of a watched directory means, and what has to be told because of it.
//!
//! Must never: be called by a thread that serves a request, or holds a lock of the table in `lib.rs`.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::node::{LayerIndex, Nameless, Node, Place, RealId, UPPER};
use super::own_change::Whose;
use super::superblock::Overlay;
use super::table::Key;
use super::watch::{Listener, Watcher};
use crate::errno::Result;
use crate::sys::{self, AsFd, At, Happening, Stat};

impl Overlay {
    /// Tells what the events of one queue mean.
    pub(super) fn tell(&self, listener: &dyn Listener, watcher: &Watcher, layer: LayerIndex) -> Result<()> {
        let Some(queue) = watcher.queue(layer) else { return Ok(()) };
        let mut events = if layer == UPPER { watcher.take_open() } else { HashSet::new() };
        let mut lost = false;
        queue.drain(|watch, what, name| {
            lost |= what == Happening::Overflow;
            events.insert((watch, what, name.map(OsStr::to_owned)));
        })?;
        if lost {
            log::info!("events were lost: everything is forgotten");
            self.forget_everything(listener, layer);
        }
        for (watch, what, name) in events {
            for (id, layer) in watcher.users(layer, watch) {
                let Some(node) = self.table.get(id) else { continue };
                match (what, &name) {
                    (Happening::Name, Some(name)) => self.name_happened(listener, watcher, &node, layer, name),
                    (Happening::Change, Some(name)) => {
                        let whose = self.object_happened(listener, &node, layer, name);
                        if whose == Whose::Open {
                            watcher.leave_open((watch, what, Some(name.clone())));
                        }
                    }
                    (Happening::Change, None) => self.directory_happened(listener, &node, layer),
                    (Happening::Ended, _) => {
                        self.foreign_changes.end();
                        if let Some(dir) = &node.dir {
                            dir.watches.ended(watch);
                        }
                        watcher.end(id, layer, watch);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// A name came or went in a layer.
    fn name_happened(
        &self,
        listener: &dyn Listener,
        watcher: &Watcher,
        dir: &Arc<Node>,
        layer: LayerIndex,
        name: &OsStr,
    ) {
        if layer == UPPER && self.is_as_known(watcher, dir, name) {
            return;
        }
        self.foreign_changes.end();
        if let (Some(name), Some(state)) = (super::whiteout::hidden_name(name), &dir.dir) {
            state.wh_names.store(0, Ordering::Relaxed);
            for lower in state.lowers.read().iter() {
                lower.wh_names.store(0, Ordering::Relaxed);
            }
            self.ask_again(listener, dir, name);
        }
        self.listings.forget(dir.id);
        self.ask_again(listener, dir, name);
        // Whether or not the name was known: the listing and the times of the directory are others now.
        listener.object_changed(dir.id);
    }

    /// Whether the upper has under a name what the union knows to be there.
    fn is_as_known(&self, watcher: &Watcher, dir: &Arc<Node>, name: &OsStr) -> bool {
        let Ok(fd) = self.dir_fd(dir, UPPER) else { return false };
        let look = || match sys::stat(At::Name(fd.as_fd(), name)) {
            Ok(stat) if !stat.is_null_device() => {
                let node = self.table.find(&Key::Real(RealId::of(&stat)));
                node.is_some_and(|node| {
                    let (layer, here) = {
                        let state = node.state.read();
                        (state.layer, state.place.is(dir, name))
                    };
                    // Of a file with several names the node knows one.
                    layer == UPPER && (here || watcher.linked.has(&(dir.id, name.to_owned())))
                })
            }
            _ => watcher.removed.has(&(dir.id, name.to_owned())),
        };
        self.at_a_look(dir, look)
    }

    /// Whether a look shows it, at once or once no request is under way that changes names in a directory: it says what it has
    /// done before it lets go of them. Mostly it shows at once, and nobody has to wait for that.
    fn at_a_look(&self, dir: &Node, look: impl Fn() -> bool) -> bool {
        look() || {
            let _settled = self.names(dir).map(|names| names.read());
            look()
        }
    }

    /// The object of a name changed in a layer. Says whose doing that was: an event of which that is open is looked at again.
    fn object_happened(&self, listener: &dyn Listener, dir: &Arc<Node>, layer: LayerIndex, name: &OsStr) -> Whose {
        let Ok(fd) = self.dir_fd(dir, layer) else { return Whose::Others };
        let at = At::Name(fd.as_fd(), name);
        let Some((stat, node, whose)) = self.own(layer, at).or_else(|| self.settled(dir, at, name)) else {
            return Whose::Others;
        };
        let Some(node) = node else {
            if layer != UPPER && stat.is_dir() {
                // A part of one, which may have become opaque; a node is known by the topmost.
                self.foreign_changes.end();
                self.ask_again(listener, dir, name);
            }
            return Whose::Others;
        };
        // Even if the last change was the union's own: it may have come right after one that was not.
        node.xattrs.forget();
        if layer == UPPER && whose != Whose::Others {
            return whose;
        }
        if layer == UPPER && node.own_change.is_unheard() {
            // Its clients' own writes, as a rule: of the contents the kernel keeps nothing while they go past it.
            listener.attributes_changed(node.id);
            return Whose::Others;
        }
        self.foreign_changes.end();
        if node.state.read().layer == layer {
            listener.object_changed(node.id);
        }
        if let Some(state) = &node.dir {
            state.forget_upper();
            // It may have become opaque.
            self.ask_again(listener, dir, name);
        }
        Whose::Others
    }

    /// What [`Overlay::settled`] would say, if the last change was noted as the union's own: then nobody need wait for that to
    /// be seen. Mostly it was.
    fn own(&self, layer: LayerIndex, at: At<'_>) -> Option<(Stat, Option<Arc<Node>>, Whose)> {
        let stat = (layer == UPPER).then(|| sys::stat(at).ok()).flatten()?;
        let node = self.table.find(&Key::Real(RealId::of(&stat))).filter(|node| node.own_change.is(&stat))?;
        Some((stat, Some(node), Whose::Own))
    }

    /// What a name has in a layer, the node that stands for it, and whose doing its last change was: while no request is
    /// under way that has changed the name and not said so yet.
    fn settled(&self, dir: &Arc<Node>, at: At<'_>, name: &OsStr) -> Option<(Stat, Option<Arc<Node>>, Whose)> {
        let _down_the_tree = self.crossing.read();
        let _names = self.names(dir).ok()?.read();
        let stat = sys::stat(at).ok()?;
        let node =
            self.table.find(&Key::Real(RealId::of(&stat))).or_else(|| self.table.find(&Key::Name(dir.id, name.into())));
        let whose = match &node {
            Some(node) if node.dir.is_some() && self.is_as_noted(node, at) => Whose::Own,
            Some(node) if node.dir.is_none() => node.own_change.whose(|| sys::stat(at)).ok()?,
            _ => Whose::Others,
        };
        Some((stat, node, whose))
    }

    /// Whether a directory's last change was the union's own.
    fn is_as_noted(&self, node: &Node, at: At<'_>) -> bool {
        self.at_a_look(node, || sys::stat(at).is_ok_and(|stat| node.own_change.is(&stat)))
    }

    /// A watched directory itself changed in a layer.
    fn directory_happened(&self, listener: &dyn Listener, node: &Arc<Node>, layer: LayerIndex) {
        let Ok(fd) = self.dir_fd(node, layer) else { return };
        node.xattrs.forget();
        // The union itself removed it, or changed it last.
        if layer == UPPER
            && (self.is_as_noted(node, At::Fd(fd.as_fd())) || matches!(node.place(), Place::Nowhere(Nameless::Gone)))
        {
            return;
        }
        self.foreign_changes.end();
        if let Some(state) = &node.dir {
            state.forget_upper();
        }
        listener.object_changed(node.id);
    }

    /// Looks at the directories that could not be watched. The kernel keeps a listing until the time of the directory
    /// changes, which for a merged one tells of one layer only.
    pub(super) fn look_at_unwatched(&self, listener: &dyn Listener) {
        for node in self.table.nodes() {
            let Some(dir) = node.dir.as_ref().filter(|dir| node.is_merged() && !dir.watches.is_complete(&node)) else {
                continue;
            };
            let lowers = node.lowers();
            let layers = node.in_upper().then_some(UPPER).into_iter().chain(lowers.iter().map(|lower| lower.layer));
            let mut look = DefaultHasher::new();
            for layer in layers {
                let stat = self.dir_fd(&node, layer).and_then(|fd| sys::stat(At::Fd(fd.as_fd())));
                stat.map(|stat| (stat.ino, stat.mtime.sec, stat.mtime.nsec)).ok().hash(&mut look);
            }
            let look = look.finish().max(1);
            let before = dir.look.swap(look, Ordering::Relaxed);
            if before != look && before != 0 {
                self.listings.forget(node.id);
                listener.object_changed(node.id);
            }
        }
    }

    /// Takes back everything that was said of a layer's objects, after events were lost.
    fn forget_everything(&self, listener: &dyn Listener, layer: LayerIndex) {
        self.foreign_changes.end();
        for node in self.table.nodes() {
            let (place, real) = {
                let state = node.state.read();
                (state.place.clone(), state.layer)
            };
            if matches!(place, Place::In { .. }) && node.dir.is_none() && (real == UPPER) == (layer == UPPER) {
                listener.object_changed(node.id);
            }
        }
        self.forget_below(listener, &self.root);
    }
}
