//! The order of the locks, where a mistake would need two threads and bad luck to show: debug builds see it in one.

use std::ffi::OsStr;
use std::sync::Arc;

use plyfs::overlay::{Listener, NodeId, Overlay, Rename};

use crate::fixture::Layers;
use crate::vfs::caller;

struct Nobody;

impl Listener for Nobody {
    fn name_changed(&self, _parent: NodeId, _name: &OsStr) {}
    fn object_changed(&self, _node: NodeId) {}
    fn attributes_changed(&self, _node: NodeId) {}
}

/// A watched union, and the numbers of a directory and of `f` in it, of which only the file is remembered.
fn watched(layers: &Layers) -> (Arc<Overlay>, NodeId, NodeId) {
    let overlay = Arc::new(Overlay::new(&layers.config).unwrap());
    overlay.watch(Nobody).unwrap();
    let dir = overlay.lookup(&caller(), overlay.root(), OsStr::new("d")).unwrap().id;
    let file = overlay.lookup(&caller(), dir, OsStr::new("f")).unwrap().id;
    (overlay, dir, file)
}

#[test]
fn a_directory_that_goes_with_its_last_child_is_unwatched_after_the_child_is_let_go() {
    for how in 0..3 {
        let layers = Layers::of(&["other/x = 1"]).upper("d/f = 1\n d/e/x = 1");
        let (overlay, dir, file) = watched(&layers);
        overlay.forget(dir, 1);
        let (root, f) = (overlay.root(), OsStr::new("f"));
        match how {
            0 => overlay.unlink(&caller(), dir, f).unwrap(),
            1 => overlay.rename(&caller(), (dir, f), (root, OsStr::new("g")), Rename::Replace).unwrap(),
            _ => overlay.rename(&caller(), (root, OsStr::new("other")), (dir, f), Rename::Replace).unwrap_or(()),
        }
        overlay.forget(file, 1);
        assert_eq!(overlay.remembered(), 1);
    }
}

#[test]
fn a_rename_waits_for_nothing_of_its_own_when_no_descriptor_is_kept() {
    let layers = Layers::of(&["d/f = 1\n d/g = 2"]).upper("e/f = 3\n e/dir/x = 1\n d/up/x = 1");
    let (overlay, dir, file) = watched(&layers);
    let other = overlay.lookup(&caller(), overlay.root(), OsStr::new("e")).unwrap().id;
    for (from, to) in [("f", "f"), ("g", "f"), ("up", "dir")] {
        overlay.close_kept();
        let (from, to) = ((dir, OsStr::new(from)), (other, OsStr::new(to)));
        overlay.rename(&caller(), from, to, Rename::Replace).ok();
    }
    for (id, count) in [(file, 1), (dir, 1), (other, 1)] {
        overlay.forget(id, count);
    }
}
