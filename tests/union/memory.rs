//! What the union remembers: no more than what was looked up and not forgotten, and no descriptor beyond its caches.

use std::fs;

use crate::fixture::{Layers, Union, descriptors_into, union};

/// Something done with a union.
type Step = fn(&Union);

#[test]
fn each_lookup_has_to_be_forgotten() {
    let u = union(&["f = 1"]);
    let root = u.overlay.root();
    assert_eq!((root, u.overlay.remembered()), (1, 1));
    let caller = crate::vfs::caller();
    let look = || u.overlay.lookup(&caller, root, "f".as_ref()).unwrap().id;
    let id = look();
    assert_eq!((look(), look()), (id, id));
    u.overlay.forget(id, 2);
    assert_eq!(u.overlay.remembered(), 2);
    assert_eq!(u.read_node(id).unwrap(), "1");
    u.overlay.forget(id, 1);
    assert_eq!(u.overlay.remembered(), 1);
    u.overlay.forget(id, 5);
    u.overlay.forget(9999, 1);
    u.overlay.forget(root, 1_000_000);
    assert_eq!(u.overlay.remembered(), 1);
    u.shows("f = 1");
}

#[test]
fn a_directory_stays_while_something_below_it_is_known() {
    let u = union(&["a/b/c = 1"]);
    let (a, b, c) = (u.at("a").unwrap(), u.at("a/b").unwrap(), u.at("a/b/c").unwrap());
    let counts = std::mem::take(&mut *u.lookups.lock());
    u.overlay.forget(a, counts[&a]);
    u.overlay.forget(b, counts[&b]);
    assert_eq!(u.overlay.remembered(), 4);
    assert_eq!(u.read_node(c).unwrap(), "1");
    u.put(c, 0, b"2").unwrap();
    u.overlay.forget(c, counts[&c]);
    assert_eq!(u.overlay.remembered(), 1);
    u.shows("a/b/c = 2");
}

#[test]
fn every_operation_gives_back_what_it_borrows() {
    let u = union(&["a = 1\n b = 1\n c = 1\n d/e/f = 1\n g/\n h = 1\n i == h"]);
    let steps: &[(&str, Step)] = &[
        ("write", |u| u.append("a", "2").unwrap()),
        ("rename", |u| u.rename("a", "b").unwrap()),
        ("rename over", |u| u.rename("b", "c").unwrap()),
        ("rename that fails", |u| assert!(u.rename("d", "x").is_err())),
        ("exchange", |u| u.rename_how("c", "d/e/f", plyfs::overlay::Rename::Exchange).unwrap()),
        ("unlink", |u| u.unlink("c").unwrap()),
        ("rmdir", |u| u.rmdir("g").unwrap()),
        ("rmdir that fails", |u| assert!(u.rmdir("d").is_err())),
        ("link", |u| assert!(u.link("h", "j").is_ok())),
        ("mkdir", |u| assert!(u.mkdir("k").is_ok())),
        ("rename of a directory", |u| u.rename("k", "d/k").unwrap()),
        ("list", |u| drop(u.list("d"))),
        ("unlink of a link", |u| u.unlink("i").unwrap()),
    ];
    for (name, step) in steps {
        step(&u);
        u.forget_all();
        assert_eq!(u.overlay.remembered(), 1, "after {name}");
    }
    u.close();
}

#[test]
fn nodes_that_lost_their_names_go_with_their_last_lookup() {
    let u = union(&["a = 1\n d/x = 1\n h = 1\n i == h"]);
    u.create("new", "n").unwrap();
    u.mkdir("dir").unwrap();
    let ids = ["a", "new", "dir", "h"].map(|name| u.at(name).unwrap());
    u.unlink("a").unwrap();
    u.unlink("new").unwrap();
    u.rmdir("dir").unwrap();
    u.unlink("h").unwrap();
    for id in ids {
        assert!(u.overlay.getattr(id).is_ok());
    }
    u.close();
}

#[test]
fn a_walk_leaves_nothing_behind() {
    let text: String = (0..40).flat_map(|d| (0..25).map(move |f| format!("d{d}/s/f{f} = {f}\n"))).collect();
    let u = union(&[&text, &text]);
    assert_eq!(u.tree().len(), 1000);
    assert_eq!(u.overlay.remembered(), 1 + 40 + 40 + 1000);
    u.close();
}

#[test]
fn descriptors_are_bounded_while_everything_is_remembered() {
    let layers = Layers::of(&["d/x = 1"]).volatile();
    for n in 0..5000 {
        fs::write(layers.lower(1, format!("d/f{n}")), "x").unwrap();
    }
    let u = layers.open();
    for n in 0..5000 {
        assert_eq!(u.read(format!("d/f{n}")).unwrap(), "x");
        if n % 2 == 0 {
            u.append(format!("d/f{n}"), "y").unwrap();
        }
    }
    // 2,048 each for readers and writers, and the directories.
    let open = descriptors_into(&u);
    assert!(open <= 2 * 2048 + 16, "{open} descriptors");
    assert!(u.overlay.remembered() > 5000);
    u.close();
}
