//! What is told to the kernel, and what is not: the union's own changes raise events in the upper, and no notice.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use plyfs::overlay::{Lasting, Listener, NodeId, Overlay, Privileges, Rename};

use crate::fixture::Layers;
use crate::support::eventually;
use crate::vfs::caller;

/// Names and objects that a notice came for.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<BTreeSet<(NodeId, OsString)>>>);

impl Listener for Told {
    fn name_changed(&self, parent: NodeId, name: &OsStr) {
        self.0.lock().insert((parent, name.to_owned()));
    }

    fn object_changed(&self, node: NodeId) {
        self.0.lock().insert((node, OsString::new()));
    }

    fn attributes_changed(&self, _node: NodeId) {}
}

impl Told {
    fn has(&self, parent: NodeId, name: &str) -> bool {
        self.0.lock().contains(&(parent, name.into()))
    }
}

fn watched(layers: &Layers) -> (Arc<Overlay>, Told) {
    let overlay = Arc::new(Overlay::new(&layers.config).unwrap());
    let told = Told::default();
    overlay.watch(told.clone()).unwrap();
    // They are the user's, and other programs of the user may have them all at this moment.
    assert!(overlay.held().watch_budget > 0, "no inotify instance is to be had (fs.inotify.max_user_instances)");
    (overlay, told)
}

fn named(name: &str) -> &OsStr {
    OsStr::new(name)
}

#[test]
fn the_unions_own_names_raise_no_notice() {
    let layers = Layers::of(&["d/f = 1\n d/g = 2\n d/e/x = 3\n gone/x = 1"]).upper("d/own = 1").volatile();
    let (u, told) = watched(&layers);
    let root = u.root();
    let d = u.lookup(&caller(), root, named("d")).unwrap().id;
    let e = u.lookup(&caller(), d, named("e")).unwrap().id;
    u.unlink(&caller(), d, named("f")).unwrap();
    u.unlink(&caller(), d, named("g")).unwrap();
    let end = Instant::now() + Duration::from_millis(700);
    let mut round = 0;
    while Instant::now() < end {
        round += 1;
        let dir = u.mkdir(&caller(), d, named("new"), 0o755).unwrap().id;
        for name in ["a", "b"] {
            u.mknod(&caller(), dir, named(name), libc::S_IFREG | 0o644, 0).unwrap();
        }
        let over = u.mkdir(&caller(), d, named("f"), 0o755).unwrap().id;
        let a = u.lookup(&caller(), dir, named("a")).unwrap().id;
        u.link(&caller(), a, e, named("link")).unwrap();
        u.rename(&caller(), (dir, named("b")), (over, named("c")), Rename::Replace).unwrap();
        u.rename(&caller(), (e, named("link")), (dir, named("l")), Rename::Replace).unwrap();
        u.symlink(&caller(), d, named("g"), named("target")).unwrap();
        // Sometimes there is an event in between, as a rule all come together.
        if round % 64 == 0 {
            std::thread::sleep(Duration::from_millis(60));
        }
        for (dir, name) in [(dir, "a"), (dir, "l"), (over, "c"), (d, "g")] {
            u.unlink(&caller(), dir, named(name)).unwrap();
        }
        u.rename(&caller(), (d, named("new")), (e, named("moved")), Rename::Replace).unwrap();
        u.rmdir(&caller(), e, named("moved")).unwrap();
        u.rmdir(&caller(), d, named("f")).unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(*told.0.lock(), BTreeSet::new(), "after {round} rounds");
}

#[test]
fn the_unions_own_writes_raise_no_notice_while_they_go_on() {
    let layers = Layers::of(&["x = 1"]).upper("f = 1").volatile();
    let (u, told) = watched(&layers);
    let file = u.lookup(&caller(), u.root(), named("f")).unwrap().id;
    let (data, end) = (vec![1; 4 << 20], Instant::now() + Duration::from_millis(500));
    let mut pieces = 0;
    while Instant::now() < end {
        u.write(file, (pieces % 4) << 22, &data, Privileges::Keep).unwrap();
        pieces += 1;
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(*told.0.lock(), BTreeSet::new(), "after {pieces} pieces");
    fs::write(layers.upper_path("f"), "another's").unwrap();
    assert!(eventually(Duration::from_secs(5), || told.has(file, "")));
}

#[test]
fn a_name_that_another_moved_or_linked_in_the_upper_is_told() {
    let layers = Layers::of(&["d/x = 1"]).upper("d/f = 1\n d/h = 1");
    let (u, told) = watched(&layers);
    let d = u.lookup(&caller(), u.root(), named("d")).unwrap().id;
    for name in ["f", "h"] {
        u.lookup(&caller(), d, named(name)).unwrap();
    }
    // The file is known, the name is not the union's doing.
    fs::rename(layers.upper_path("d/f"), layers.upper_path("d/moved")).unwrap();
    fs::hard_link(layers.upper_path("d/h"), layers.upper_path("d/linked")).unwrap();
    let limit = Duration::from_secs(5);
    assert!(eventually(limit, || told.has(d, "f") && told.has(d, "moved") && told.has(d, "linked")));
}

#[test]
fn a_part_of_a_directory_that_becomes_opaque_is_told_with_all_below() {
    let layers = Layers::of(&["d/x = 1", "d/x = 2\n d/deep/low = 3"]).upper("d/deep/up = 1");
    let (u, told) = watched(&layers);
    let d = u.lookup(&caller(), u.root(), named("d")).unwrap().id;
    let deep = u.lookup(&caller(), d, named("deep")).unwrap().id;
    let low = u.lookup(&caller(), deep, named("low")).unwrap();
    crate::fixture::set_mark(&layers.lower(1, "d"), "opaque", b"y");
    assert!(eventually(Duration::from_secs(5), || told.has(u.root(), "d") && told.has(deep, "low")));
    assert!(u.lookup(&caller(), deep, named("low")).is_err());
    assert_eq!(u.lookup(&caller(), d, named("deep")).unwrap().id, deep, "another node, and its mounts would go");
    assert!(low.id != deep);
}

#[test]
fn a_large_directory_is_watched_once_something_in_it_is_asked_for() {
    let layers = Layers::of(&["small/x = 1\n large/x = 1"]).volatile();
    for n in 0..3000 {
        fs::write(layers.lower(1, format!("large/a rather long name, {n}")), "").unwrap();
    }
    let (u, told) = watched(&layers);
    let look = |name: &str| u.lookup(&caller(), u.root(), named(name)).unwrap();
    assert_eq!(look("small").lasting, Lasting::Both);
    let before = u.held().watches;
    let large = look("large");
    assert_eq!((large.lasting, u.held().watches), (Lasting::Name, before));
    u.lookup(&caller(), large.id, named("none")).unwrap_err();
    assert_eq!(u.held().watches, before + 1);
    assert_eq!(look("large").lasting, Lasting::Both);
    fs::write(layers.lower(1, "large/none"), "").unwrap();
    let told_soon = eventually(Duration::from_secs(5), || told.has(large.id, "none"));
    assert!(told_soon, "told: {:?}; held: {:?}", told.0.lock(), u.held());
}
