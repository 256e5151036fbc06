//! Hard links: names of one upper inode are one node; names of one lower inode are a node each, and part on copy-up.

use std::fs;
use std::os::unix::fs::MetadataExt;

use plyfs::errno::Errno;

use crate::fixture::{Layers, mark, union};

#[test]
fn names_of_an_upper_inode_are_one_node() {
    let u = Layers::of(&["d/x = 1"]).upper("a = 1\n b == a").open();
    assert_eq!(u.at("a").unwrap(), u.at("b").unwrap());
    u.link("a", "d/c").unwrap();
    assert_eq!(u.at("d/c").unwrap(), u.at("a").unwrap());
    u.append("d/c", "2").unwrap();
    u.upper_holds("a = 12\n b = 12\n d/c = 12");
    assert_eq!(u.stat("a").unwrap().nlink, 3);
}

#[test]
fn a_link_to_a_lower_file_is_one_to_its_copy() {
    let u = union(&["a = 1\n d/x = 1"]);
    let number = u.stat("a").unwrap().ino;
    u.link("a", "d/b").unwrap();
    u.upper_holds("a = 1\n d/b = 1");
    assert_eq!(fs::metadata(u.upper_path("a")).unwrap().ino(), fs::metadata(u.upper_path("d/b")).unwrap().ino());
    assert_eq!((u.stat("a").unwrap().ino, u.stat("d/b").unwrap().ino), (number, number));
    assert_eq!(mark(&u.upper_path("d"), "impure").unwrap(), b"y");
    u.append("d/b", "2").unwrap();
    assert_eq!(u.read("a").unwrap(), "12");
    let u = u.reopen();
    assert_eq!((u.stat("a").unwrap().ino, u.stat("d/b").unwrap().ino), (number, number));
    u.shows("a = 12\n d/b = 12\n d/x = 1");
}

#[test]
fn names_of_a_lower_inode_are_two_nodes_that_part_on_copy_up() {
    let u = union(&["a = 1\n b == a"]);
    let (a, b) = (u.at("a").unwrap(), u.at("b").unwrap());
    assert_ne!(a, b);
    assert_eq!(u.stat("a").unwrap().nlink, 2);
    u.put(a, 0, b"A").unwrap();
    u.upper_holds("a = A");
    assert_eq!((u.read_node(a).unwrap(), u.read_node(b).unwrap()), ("A".to_owned(), "1".to_owned()));
    assert_eq!((u.at("a").unwrap(), u.at("b").unwrap()), (a, b));
    u.put(b, 0, b"B").unwrap();
    u.upper_holds("a = A\n b = B");
    assert_eq!(fs::read_to_string(u.lower(1, "a")).unwrap(), "1");
}

#[test]
fn a_link_goes_when_its_last_name_goes() {
    let u = union(&["x = 1"]);
    let id = u.create("a", "text").unwrap().id;
    u.link("a", "b").unwrap();
    u.unlink("b").unwrap();
    assert_eq!(u.overlay.getattr(id).unwrap().0.nlink, 1);
    assert_eq!(u.read_node(id).unwrap(), "text");
    u.put(id, 0, b"T").unwrap();
    assert_eq!((u.read("a").unwrap(), u.at("a").unwrap()), ("Text".to_owned(), id));
    u.unlink("a").unwrap();
    assert_eq!(u.overlay.getattr(id).unwrap().0.nlink, 0);
    assert_eq!(u.read_node(id).unwrap(), "Text");
    u.upper_holds("");
}

#[test]
fn the_name_that_was_met_last_may_go_first() {
    let u = union(&["x = 1"]);
    let id = u.create("a", "text").unwrap().id;
    u.link("a", "b").unwrap();
    u.at("a").unwrap();
    u.at("b").unwrap();
    u.unlink("b").unwrap();
    // The union met it as b last, and nobody has said a since.
    assert_eq!(u.read_node(id).unwrap(), "text");
    u.overlay.setxattr(id, "user.k".as_ref(), b"v", 0).unwrap();
    let (attr, _) = u.overlay.getattr(id).unwrap();
    assert_eq!((attr.nlink, attr.size), (1, 4));
    let root = u.overlay.root();
    u.met(u.overlay.link(&crate::vfs::caller(), id, root, "c".as_ref()).unwrap());
    u.shows("a = text\n c = text\n x = 1");
}

#[test]
fn links_of_lower_links_are_of_the_copy() {
    let u = union(&["a = 1\n b == a"]);
    u.link("a", "c").unwrap();
    u.upper_holds("a = 1\n c = 1");
    assert_eq!((u.stat("a").unwrap().nlink, u.stat("c").unwrap().nlink, u.stat("b").unwrap().nlink), (2, 2, 2));
    u.append("c", "2").unwrap();
    u.shows("a = 12\n b = 1\n c = 12");
}

#[test]
fn a_link_over_a_whiteout_and_a_link_that_is_refused() {
    let u = union(&["a = 1\n gone = 1\n d/"]);
    u.unlink("gone").unwrap();
    u.link("a", "gone").unwrap();
    u.upper_holds("a = 1\n gone = 1");
    assert_eq!(u.link("d", "d2").err(), Some(Errno::EPERM));
    assert_eq!(u.link("a", "gone").err(), Some(Errno::EEXIST));
    u.unlink("gone").unwrap();
    u.upper_holds("!gone\n a = 1");
}

#[test]
fn symlinks_have_links_too() {
    let u = union(&["l -> t"]);
    u.link("l", "m").unwrap();
    u.upper_holds("l -> t\n m -> t");
    assert_eq!(u.at("l").unwrap(), u.at("m").unwrap());
}

#[test]
fn removing_one_lower_link_leaves_the_other() {
    let u = union(&["a = 1\n b == a"]);
    let a = u.at("a").unwrap();
    u.unlink("a").unwrap();
    u.upper_holds("!a");
    assert_eq!(u.read_node(a).unwrap(), "1");
    u.append("b", "2").unwrap();
    assert_eq!(u.read_node(a).unwrap(), "1");
    u.shows("b = 12");
}
