//! `index=on`: hard links of a lower file stay one file over copy-up.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use plyfs::errno::Errno;
use plyfs::overlay::Rename;

use crate::fixture::{Layers, Union, describe, mark, set_mark};

fn indexing(lowers: &[&str]) -> Layers {
    let mut layers = Layers::of(lowers);
    layers.config.features.index = true;
    layers
}

fn entries(u: &Union) -> usize {
    fs::read_dir(u.layers.root().join("work/index")).unwrap().count()
}

#[test]
fn all_names_of_a_lower_file_change_together() {
    let u = indexing(&["a = 1\n b == a\n d/c == a\n other = 1"]).open();
    let before = u.stat("a").unwrap();
    assert_eq!((before.nlink, u.stat("d/c").unwrap().ino), (3, before.ino));
    assert_eq!(u.at("a").unwrap(), u.at("d/c").unwrap());
    u.append("b", "2").unwrap();
    u.shows("a = 12\n b = 12\n d/c = 12\n other = 1");
    for name in ["a", "b", "d/c"] {
        let stat = u.stat(name).unwrap();
        assert_eq!((stat.nlink, stat.ino), (3, before.ino), "{name}");
    }
    assert_eq!(entries(&u), 1);
    let u = u.reopen();
    u.shows("a = 12\n b = 12\n d/c = 12\n other = 1");
    assert_eq!((u.stat("d/c").unwrap().nlink, u.stat("a").unwrap().ino), (3, before.ino));
    u.append("d/c", "3").unwrap();
    u.shows("a = 123\n b = 123\n d/c = 123\n other = 1");
}

/// The kernel's overlay gives the upper the name by which it is changed; FUSE names the file only.
#[test]
fn a_change_by_another_name_of_a_copy_leaves_the_directories_above_it_alone() {
    let u = indexing(&["d/a = 1\n e/sub/b == d/a"]).open();
    u.chmod("d/a", 0o600).unwrap();
    u.chmod("e/sub/b", 0o640).unwrap();
    u.upper_holds("d/a = 1");
    let shown = |u: &Union, name: &str| u.stat(name).unwrap().mode & 0o777;
    assert_eq!((shown(&u, "d/a"), shown(&u, "e/sub/b"), u.stat("e/sub/b").unwrap().nlink), (0o640, 0o640, 2));
    let u = u.reopen();
    assert_eq!((shown(&u, "d/a"), shown(&u, "e/sub/b"), u.stat("e/sub/b").unwrap().nlink), (0o640, 0o640, 2));
}

#[test]
fn names_are_counted_as_they_come_and_go() {
    let u = indexing(&["a = 1\n b == a\n d/c == a"]).open();
    u.unlink("a").unwrap();
    assert_eq!((u.stat("b").unwrap().nlink, entries(&u)), (2, 1));
    u.link("b", "e").unwrap();
    assert_eq!(u.stat("d/c").unwrap().nlink, 3);
    u.rename("b", "d/f").unwrap();
    assert_eq!(u.stat("e").unwrap().nlink, 3);
    u.append("d/f", "2").unwrap();
    u.shows("d/c = 12\n d/f = 12\n e = 12");
    let u = u.reopen();
    u.shows("d/c = 12\n d/f = 12\n e = 12");
    assert_eq!(u.stat("d/c").unwrap().nlink, 3);
    u.create("new", "n").unwrap();
    u.rename("new", "d/c").unwrap();
    assert_eq!(u.stat("e").unwrap().nlink, 2);
    u.unlink("e").unwrap();
    let last = u.at("d/f").unwrap();
    assert_eq!((u.overlay.getattr(last).unwrap().0.nlink, entries(&u)), (1, 1));
    u.unlink("d/f").unwrap();
    // Nobody can come by it any more, but who has it open.
    assert_eq!((u.read_node(last).unwrap(), entries(&u)), ("12".to_owned(), 0));
    u.put(last, 2, b"3").unwrap();
    assert_eq!((u.read_node(last).unwrap(), u.overlay.getattr(last).unwrap().0.nlink), ("123".to_owned(), 0));
    u.reopen().shows("d/c = n");
}

#[test]
fn what_the_layers_lost_is_taken_out_of_the_index() {
    let u = indexing(&["a = 1\n b == a\n c = 1\n d == c"]).open();
    u.append("a", "2").unwrap();
    u.append("c", "2").unwrap();
    let layers = u.close();
    let index = layers.root().join("work/index");
    fs::write(index.join("#1"), "").unwrap();
    // Offline somebody removes all names of one.
    crate::fixture::whiteout(&layers.upper_path("x"));
    for name in ["a", "b"] {
        fs::remove_file(layers.lower(1, name)).unwrap();
    }
    let u = layers.open();
    // The name by which it was copied up is the upper's own.
    u.shows("a = 12\n c = 12\n d = 12");
    let left = if crate::support::is_root() { 1 } else { 2 };
    assert_eq!(entries(&u), left);
}

#[test]
fn an_upper_belongs_to_its_lower() {
    let u = indexing(&["a = 1\n b == a"]).open();
    let mut layers = u.close();
    assert!(mark(&layers.upper_path(""), "origin").is_some());
    fs::create_dir(layers.root().join("l2")).unwrap();
    describe(&layers.root().join("l2"), "a = 1\n b == a");
    let other = layers.root().join("l2");
    let first = std::mem::replace(&mut layers.config.lowers[0], other);
    let error = plyfs::overlay::Overlay::new(&layers.config).unwrap_err().to_string();
    assert!(error.ends_with("was used with index=on over another lowerdir"), "{error}");
    layers.config.features.index = false;
    drop(plyfs::overlay::Overlay::new(&layers.config).unwrap());
    layers.config.features.index = true;
    layers.config.lowers[0] = first;
    layers.open().shows("a = 1\n b = 1");
}

#[test]
fn an_entry_of_something_else_is_refused() {
    let u = indexing(&["a = 1\n b == a"]).open();
    u.append("a", "2").unwrap();
    let layers = u.close();
    let entry = fs::read_dir(layers.root().join("work/index")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(&entry).unwrap();
    fs::write(&entry, "secret").unwrap();
    let u = layers.open();
    assert_eq!(u.at("b"), Err(Errno::EIO));
}

#[test]
fn a_file_that_lost_its_last_name_can_still_be_asked() {
    for replaced in [false, true] {
        let u = indexing(&["a = 1\n b == a"]).open();
        u.append("a", "2").unwrap();
        let layers = u.close();
        let u = layers.open();
        // Found by the index, and by no name of the upper.
        let id = u.at("b").unwrap();
        u.unlink("a").unwrap();
        assert_eq!((u.overlay.getattr(id).unwrap().0.nlink, entries(&u)), (1, 1));
        if replaced {
            u.create("new", "n").unwrap();
            u.rename("new", "b").unwrap();
        } else {
            u.unlink("b").unwrap();
        }
        assert_eq!((u.overlay.getattr(id).unwrap().0.nlink, entries(&u)), (0, 0));
        assert_eq!(u.read_node(id).unwrap(), "12");
        u.put(id, 2, b"3").unwrap();
        assert_eq!(u.read_node(id).unwrap(), "123");
    }
}

#[test]
fn a_rename_that_is_refused_gives_no_name_and_changes_no_time() {
    let u = indexing(&["d/a = 1\n d/b == d/a\n lower/x = 1"]).open();
    // In the upper, both of them.
    u.create("d/new", "n").unwrap();
    u.append("d/a", "2").unwrap();
    let upper = u.upper_path("d/b");
    let time = |name: &str| u.stat(name).unwrap().mtime;
    let before = time("d");
    for (old, new) in [("d/b", "lower"), ("lower", "d/b")] {
        assert_eq!(u.rename_unchecked(old, new, Rename::Exchange), Err(Errno::EXDEV));
    }
    assert_eq!((time("d"), fs::symlink_metadata(&upper).is_err()), (before, true));
    // What is refused later has its name, but nobody can see that.
    assert_eq!(u.rename_unchecked("d/b", "lower", Rename::Replace), Err(Errno::EISDIR));
    assert_eq!((time("d"), fs::symlink_metadata(&upper).is_ok()), (before, true));
    u.shows("d/a = 12\n d/b = 12\n d/new = n\n lower/x = 1");
}

#[test]
fn names_that_nobody_counted_do_not_take_the_entry_away() {
    let u = indexing(&["a = 1\n b == a"]).open();
    u.append("a", "2").unwrap();
    u.link("a", "c").unwrap();
    let layers = u.close();
    let entry = fs::read_dir(layers.root().join("work/index")).unwrap().next().unwrap().unwrap().path();
    // As if the layer had got them behind the mount: three are known of one.
    set_mark(&entry, "nlink", b"U-2");
    let u = layers.open();
    u.unlink("a").unwrap();
    assert_eq!((u.stat("c").unwrap().nlink, entries(&u)), (1, 1));
    u.append("b", "3").unwrap();
    u.reopen().shows("b = 123\n c = 123");
}

#[test]
fn a_count_from_the_lower_holds_for_a_file_whose_mode_refuses_its_owner() {
    for mode in [0o400, 0] {
        let u = indexing(&["a = 1\n b == a\n d/c == a"]).open();
        u.append("a", "2").unwrap();
        u.chmod("a", mode).unwrap();
        let layers = u.close();
        let entry = fs::read_dir(layers.root().join("work/index")).unwrap().next().unwrap().unwrap().path();
        // What a death in the middle of a link leaves.
        let marked = fs::metadata(&entry).unwrap().permissions();
        fs::set_permissions(&entry, fs::Permissions::from_mode(0o600)).unwrap();
        set_mark(&entry, "nlink", b"L+0");
        fs::set_permissions(&entry, marked).unwrap();
        let u = layers.open();
        assert_eq!((u.stat("b").unwrap().ino, u.stat("a").unwrap().mode & 0o777), (u.stat("d/c").unwrap().ino, mode));
        let kept = fs::metadata(&entry).unwrap().permissions().mode() & 0o777;
        assert_eq!(kept, mode);
        if crate::support::is_root() {
            // From here on names come and go, which the lower's number does not tell.
            assert_eq!(mark(&entry, "nlink").unwrap(), b"U+1");
            assert_eq!((u.stat("a").unwrap().nlink, u.stat("d/c").unwrap().nlink), (3, 3));
        }
        // Who has no privilege does not find the lower by its handle: its mark and its entry stay as they are.
        u.unlink("b").unwrap();
        u.unlink("a").unwrap();
        let u = u.reopen();
        u.chmod("d/c", 0o600).unwrap();
        assert_eq!(u.read("d/c").unwrap(), "12");
    }
}
