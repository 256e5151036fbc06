//! Removal: what the upper holds afterwards, and that nothing of a lower ever shows in its place.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use plyfs::errno::Errno;
use plyfs::overlay::{Overlay, Privileges, Rename};
use plyfs::sys::faults;

use crate::fixture::{Layers, union};
use crate::vfs::caller;

#[test]
fn removing_a_lower_name_leaves_a_whiteout_and_nothing_else() {
    let u = union(&["hello = 1\n keep = 1"]);
    u.unlink("hello").unwrap();
    let meta = fs::symlink_metadata(u.upper_path("hello")).unwrap();
    assert!(meta.file_type().is_char_device());
    assert_eq!((meta.rdev(), meta.mode() & 0o7777, meta.size()), (0, 0, 0));
    u.upper_holds("!hello");
    u.shows("keep = 1");
    assert_eq!(u.unlink("hello"), Err(Errno::ENOENT));
    u.reopen().shows("keep = 1");
}

#[test]
fn removing_what_only_the_upper_has_leaves_nothing() {
    let u = Layers::of(&["d/x = 1"]).upper("f = 1\n d/g = 1").open();
    u.unlink("f").unwrap();
    u.unlink("d/g").unwrap();
    u.create("new", "").unwrap();
    u.unlink("new").unwrap();
    u.upper_holds("d/");
    u.shows("d/x = 1");
}

#[test]
fn removing_a_copy_leaves_a_whiteout_in_its_place() {
    let u = union(&["f = 1\n d/in = 1"]);
    u.append("f", "2").unwrap();
    u.unlink("f").unwrap();
    u.upper_holds("!f");
    u.append("d/in", "2").unwrap();
    u.unlink("d/in").unwrap();
    u.upper_holds("!d/in\n !f");
    u.rmdir("d").unwrap();
    u.upper_holds("!d\n !f");
    u.shows("");
}

#[test]
fn what_a_lower_hides_already_needs_no_whiteout() {
    let u = Layers::of(&["!f\n .wh.g = x", "f = 2\n g = 2"]).upper("f = 0\n g = 0").open();
    u.unlink("f").unwrap();
    u.unlink("g").unwrap();
    u.upper_holds("");
    u.shows("");
}

#[test]
fn the_whiteout_is_written_even_if_several_layers_have_the_name() {
    let u = union(&["f = 1", "f = 2", "f/in = 3"]);
    u.unlink("f").unwrap();
    u.upper_holds("!f");
    u.shows("");
}

#[test]
fn a_directory_in_which_nothing_shows_is_empty() {
    let u = Layers::of(&["d/a = 1\n d/b = 1\n e/a = 1"]).upper("!d/a").open();
    assert_eq!(u.rmdir("d"), Err(Errno::ENOTEMPTY));
    u.unlink("d/b").unwrap();
    u.rmdir("d").unwrap();
    u.upper_holds("!d");
    // Only whiteouts, and no lower has the directory: nothing is left at all.
    let u = Layers::of(&["x = 1"]).upper("d/ opaque\n !d/a\n !d/b").open();
    u.rmdir("d").unwrap();
    u.upper_holds("");
    u.shows("x = 1");
}

#[test]
fn an_upper_directory_full_of_whiteouts_over_a_lower_one() {
    let u = union(&["d/a = 1\n d/b/c = 1"]);
    u.unlink("d/a").unwrap();
    u.unlink("d/b/c").unwrap();
    u.rmdir("d/b").unwrap();
    u.upper_holds("!d/a\n !d/b");
    u.rmdir("d").unwrap();
    u.upper_holds("!d");
    u.reopen().shows("");
}

#[test]
fn whole_trees_can_be_removed() {
    let u = union(&["t/a/b/c = 1\n t/a/d = 1\n t/e -> f\n t/g/", "t/a/b/h = 2\n t/i/j = 2"]);
    u.append("t/a/b/c", "x").unwrap();
    for path in ["t/a/b/c", "t/a/b/h", "t/a/d", "t/e", "t/i/j"] {
        u.unlink(path).unwrap();
    }
    for path in ["t/a/b", "t/a", "t/g", "t/i", "t"] {
        u.rmdir(path).unwrap();
    }
    u.upper_holds("!t");
    u.shows("");
}

#[test]
fn the_kinds_are_told_apart() {
    let u = union(&["f = 1\n d/"]);
    assert_eq!(u.unlink("d"), Err(Errno::EISDIR));
    assert_eq!(u.rmdir("f"), Err(Errno::ENOTDIR));
    assert_eq!(u.rmdir("none"), Err(Errno::ENOENT));
    u.upper_holds("");
}

#[test]
fn an_unlinked_node_goes_on_living_while_it_is_known() {
    let u = union(&["low = lower\n copied = lower"]);
    u.append("copied", "+").unwrap();
    u.create("new", "new").unwrap();
    let ids = ["low", "copied", "new"].map(|name| u.at(name).unwrap());
    for name in ["low", "copied", "new"] {
        u.unlink(name).unwrap();
    }
    let texts = ids.map(|id| u.read_node(id).unwrap());
    assert_eq!(texts, ["lower", "lower+", "new"]);
    for id in ids {
        assert_eq!(u.overlay.getattr(id).unwrap().0.nlink, 0);
    }
    // Written to: the lower one is copied up without getting its name back.
    for id in ids {
        u.put(id, 0, b"L").unwrap();
        assert!(u.read_node(id).unwrap().starts_with('L'));
    }
    u.upper_holds("!copied\n !low");
    u.shows("");
    assert_eq!(fs::read_to_string(u.lower(1, "low")).unwrap(), "lower");
    u.close();
}

#[test]
fn attributes_of_an_unlinked_node_can_be_read_and_changed() {
    let u = union(&["low = lower\n l -> target"]);
    let (file, link) = (u.at("low").unwrap(), u.at("l").unwrap());
    u.unlink("low").unwrap();
    u.unlink("l").unwrap();
    let mode = plyfs::overlay::SetAttr { mode: Some(0o600), ..crate::vfs::NOTHING };
    let (attr, _) = u.overlay.setattr(&crate::vfs::caller(), file, &mode).unwrap();
    assert_eq!((attr.mode & 0o777, attr.nlink, attr.size), (0o600, 0, 5));
    assert_eq!(u.overlay.readlink(link).unwrap(), "target");
    u.overlay.setxattr(file, "user.x".as_ref(), b"1", 0).unwrap();
    assert_eq!(u.overlay.getxattr(file, "user.x".as_ref()).unwrap(), b"1");
    u.overlay.fsync(file, false).unwrap();
    u.upper_holds("!l\n !low");
}

#[test]
fn a_removed_directory_can_still_be_asked() {
    let u = union(&["low/\n merged/", "merged/"]);
    u.mkdir("up").unwrap();
    u.chmod("merged", 0o755).unwrap();
    for name in ["low", "up", "merged"] {
        let id = u.at(name).unwrap();
        let ino = u.stat(name).unwrap().ino;
        u.rmdir(name).unwrap();
        assert_eq!(u.overlay.getattr(id).unwrap().0.ino, ino, "{name}");
    }
}

#[test]
fn a_name_made_anew_is_another_node() {
    let u = union(&["f = lower"]);
    let old = u.at("f").unwrap();
    u.unlink("f").unwrap();
    let new = u.create("f", "new").unwrap().id;
    assert_ne!(old, new);
    assert_eq!((u.read_node(old).unwrap(), u.read_node(new).unwrap()), ("lower".to_owned(), "new".to_owned()));
    u.unlink("f").unwrap();
    let third = u.create("f", "third").unwrap().id;
    assert!(third != new && third != old);
    assert_eq!(u.read_node(new).unwrap(), "new");
}

#[test]
fn where_whiteouts_are_names_nothing_shows_either() {
    let u = Layers::of(&["a = 1\n b = 1\n d/in = 1"]).wh_names().open();
    u.append("b", "2").unwrap();
    for path in ["a", "b", "d/in"] {
        u.unlink(path).unwrap();
    }
    assert!(u.upper_path(".wh.a").exists() && u.upper_path(".wh.b").exists() && u.upper_path("d/.wh.in").exists());
    u.rmdir("d").unwrap();
    u.shows("");
    assert!(u.upper_path(".wh.d").exists() && !u.upper_path("d").exists());
    u.reopen().shows("");
}

#[test]
fn who_has_a_file_open_whose_removal_failed_at_first_keeps_what_was_written_since() {
    let layers = Layers::of(&["f = lower\n g = lower"]).volatile();
    let u = Overlay::new(&layers.config).unwrap();
    let (f, g) = (OsStr::new("f"), OsStr::new("g"));
    u.mknod(&caller(), u.root(), OsStr::new("over"), libc::S_IFREG | 0o644, 0).unwrap();
    let unlink = || u.unlink(&caller(), u.root(), f);
    let rename = || u.rename(&caller(), (u.root(), OsStr::new("over")), (u.root(), g), Rename::Replace);
    let removals: [&dyn Fn() -> Result<(), Errno>; 2] = [&unlink, &rename];
    for ((name, call), remove) in [(f, "mknodat"), (g, "renameat2")].into_iter().zip(removals) {
        let node = u.lookup(&caller(), u.root(), name).unwrap().id;
        faults::deny(Some((call, Errno::ENOSPC)));
        let failed = remove();
        faults::deny(None);
        assert_eq!(failed, Err(Errno::ENOSPC));
        u.write(node, 0, b"upper", Privileges::Keep).unwrap();
        remove().unwrap();
        u.close_kept();
        let mut text = [0; 10];
        assert_eq!((u.read(node, 0, &mut text), &text[..5]), (Ok(5), &b"upper"[..]), "{}", name.display());
        u.write(node, 0, b"later", Privileges::Keep).unwrap();
        assert_eq!(fs::read_to_string(layers.lower(1, name)).unwrap(), "lower");
    }
}
