//! Renames: of every kind, over every kind, and what they leave in the upper.

use plyfs::errno::Errno;
use plyfs::overlay::Rename::{Exchange, NoReplace, Replace};

use crate::fixture::{Layers, mark, union};

#[test]
fn a_lower_file_is_copied_up_and_leaves_a_whiteout() {
    let u = union(&["a = 1\n d/x = 1"]);
    let id = u.at("a").unwrap();
    u.rename("a", "d/b").unwrap();
    u.upper_holds("!a\n d/b = 1");
    u.shows("d/b = 1\n d/x = 1");
    assert_eq!(u.at("d/b").unwrap(), id);
    u.rename("d/b", "a").unwrap();
    u.upper_holds("a = 1\n d/");
    assert_eq!(u.at("a").unwrap(), id);
}

#[test]
fn an_upper_file_leaves_nothing() {
    let u = Layers::of(&["d/x = 1"]).upper("a = up").open();
    u.rename("a", "b").unwrap();
    u.upper_holds("b = up");
    u.rename("b", "d/c").unwrap();
    u.upper_holds("d/c = up");
}

#[test]
fn what_is_replaced_does_not_show_again() {
    let u = union(&["a = 1\n b = 2\n c = 3", "b = below"]);
    u.rename("a", "b").unwrap();
    u.upper_holds("!a\n b = 1");
    u.unlink("b").unwrap();
    u.upper_holds("!a\n !b");
    u.create("n", "new").unwrap();
    u.rename("n", "c").unwrap();
    u.upper_holds("!a\n !b\n c = new");
    u.shows("c = new");
}

#[test]
fn a_replaced_node_goes_on_living_while_it_is_known() {
    let u = union(&["a = 1\n b = lower"]);
    u.create("c", "upper").unwrap();
    let (b, c) = (u.at("b").unwrap(), u.at("c").unwrap());
    u.rename("a", "b").unwrap();
    u.rename("b", "c").unwrap();
    assert_eq!((u.read_node(b).unwrap(), u.read_node(c).unwrap()), ("lower".to_owned(), "upper".to_owned()));
    assert_eq!(u.overlay.getattr(b).unwrap().0.nlink, 0);
    assert_eq!(u.overlay.getattr(c).unwrap().0.nlink, 0);
    u.shows("c = 1");
}

#[test]
fn a_directory_that_a_lower_has_cannot_be_moved() {
    let u = Layers::of(&["low/x = 1\n merged/y = 1\n other/"]).upper("merged/z = 0").open();
    for name in ["low", "merged"] {
        assert_eq!(u.rename(name, "new"), Err(Errno::EXDEV), "{name}");
        assert_eq!(u.rename(name, "other/new"), Err(Errno::EXDEV), "{name}");
    }
    u.create("f", "1").unwrap();
    assert_eq!(u.rename_how("f", "low", Exchange), Err(Errno::EXDEV));
    assert_eq!(u.rename_how("low", "f", Exchange), Err(Errno::EXDEV));
    u.shows("f = 1\n low/x = 1\n merged/y = 1\n merged/z = 0\n other/");
    u.reopen().shows("f = 1\n low/x = 1\n merged/y = 1\n merged/z = 0\n other/");
}

#[test]
fn a_directory_of_the_upper_moves_with_all_that_is_in_it() {
    let u = union(&["d/x = 1\n e/y = 1"]);
    u.mkdir("new").unwrap();
    u.create("new/f", "1").unwrap();
    let (dir, file) = (u.at("new").unwrap(), u.at("new/f").unwrap());
    u.rename("new", "d/moved").unwrap();
    assert_eq!((u.at("d/moved").unwrap(), u.at("d/moved/f").unwrap()), (dir, file));
    assert_eq!(u.read_node(file).unwrap(), "1");
    u.append("d/moved/f", "2").unwrap();
    u.upper_holds("d/moved/ opaque\n d/moved/f = 12");
    u.shows("d/moved/f = 12\n d/x = 1\n e/y = 1");
}

#[test]
fn a_directory_that_comes_to_where_a_lower_one_was_is_opaque() {
    let u = union(&["d/x = 1\n x = 1"]);
    u.unlink("d/x").unwrap();
    u.rmdir("d").unwrap();
    u.mkdir("new").unwrap();
    u.create("new/in", "1").unwrap();
    u.rename("new", "d").unwrap();
    u.upper_holds("d/ opaque\n d/in = 1");
    u.shows("d/in = 1\n x = 1");
    // And away again: the lower directory must not come back.
    u.rename("d", "e").unwrap();
    u.upper_holds("!d\n e/ opaque\n e/in = 1");
    u.shows("e/in = 1\n x = 1");
}

#[test]
fn a_directory_replaces_an_empty_one_only() {
    let u = union(&["low/x = 1\n bare/"]);
    u.mkdir("new").unwrap();
    u.create("new/in", "1").unwrap();
    assert_eq!(u.rename("new", "low"), Err(Errno::ENOTEMPTY));
    u.unlink("low/x").unwrap();
    u.upper_holds("!low/x\n new/ opaque\n new/in = 1");
    u.rename("new", "low").unwrap();
    u.upper_holds("low/ opaque\n low/in = 1");
    u.shows("bare/\n low/in = 1");
    u.rename("low", "bare").unwrap();
    u.upper_holds("!low\n bare/ opaque\n bare/in = 1");
    u.reopen().shows("bare/in = 1");
}

#[test]
fn a_directory_that_was_replaced_can_still_be_asked() {
    let u = union(&["old/x = 1\n y = 1"]);
    u.unlink("old/x").unwrap();
    let old = u.at("old").unwrap();
    u.mkdir("new").unwrap();
    u.rename("new", "old").unwrap();
    // Full of whiteouts, it was cleared out of the way; whoever is in it must get an answer all the same.
    let (attr, _) = u.overlay.getattr(old).unwrap();
    assert!(attr.is_dir());
    // And nothing that is made later may be taken for it, whatever numbers the file system uses again.
    for n in 0..50 {
        let made = u.mkdir(format!("n{n}")).unwrap();
        assert_ne!(made.id, old, "a new directory is a removed one");
    }
    assert_ne!(u.at("old").unwrap(), old);
}

#[test]
fn the_kinds_have_to_fit() {
    let u = union(&["f = 1\n d/x = 1\n l -> f"]);
    u.mkdir("n").unwrap();
    assert_eq!(u.rename("f", "d"), Err(Errno::EISDIR));
    assert_eq!(u.rename("n", "f"), Err(Errno::ENOTDIR));
    assert_eq!(u.rename("none", "f"), Err(Errno::ENOENT));
    assert_eq!(u.rename("f", "none/f"), Err(Errno::ENOENT));
    u.rename("l", "f").unwrap();
    u.shows("d/x = 1\n f -> f\n n/");
}

#[test]
fn noreplace_replaces_nothing() {
    let u = union(&["a = 1\n b = 2\n gone = 3"]);
    assert_eq!(u.rename_how("a", "b", NoReplace), Err(Errno::EEXIST));
    u.upper_holds("");
    u.unlink("gone").unwrap();
    u.rename_how("a", "gone", NoReplace).unwrap();
    u.upper_holds("!a\n gone = 1");
    u.shows("b = 2\n gone = 1");
}

#[test]
fn two_names_change_places() {
    let u = union(&["a = 1\n d/b = 2\n x = 0"]);
    let (a, b) = (u.at("a").unwrap(), u.at("d/b").unwrap());
    u.rename_how("a", "d/b", Exchange).unwrap();
    u.upper_holds("a = 2\n d/b = 1");
    assert_eq!((u.at("a").unwrap(), u.at("d/b").unwrap()), (b, a));
    u.mkdir("n").unwrap();
    u.create("n/in", "i").unwrap();
    u.rename_how("n", "a", Exchange).unwrap();
    u.upper_holds("a/ opaque\n a/in = i\n d/b = 1\n n = 2");
    u.shows("a/in = i\n d/b = 1\n n = 2\n x = 0");
    assert_eq!(u.rename_how("a", "none", Exchange), Err(Errno::ENOENT));
    u.reopen().shows("a/in = i\n d/b = 1\n n = 2\n x = 0");
}

#[test]
fn two_names_of_one_file_stay_as_they_are() {
    let u = union(&["a = 1"]);
    u.link("a", "b").unwrap();
    u.rename("a", "b").unwrap();
    u.rename_how("a", "b", Exchange).unwrap();
    u.upper_holds("a = 1\n b = 1");
    u.rename("a", "a").unwrap();
    u.shows("a = 1\n b = 1");
}

#[test]
fn a_directory_cannot_go_below_itself() {
    let u = union(&["x = 1"]);
    u.mkdir("d").unwrap();
    u.mkdir("d/e").unwrap();
    assert_eq!(u.rename("d", "d/e/f"), Err(Errno::EINVAL));
    u.shows("d/e/\n x = 1");
}

#[test]
fn a_directory_cannot_take_the_place_of_one_above_it() {
    crate::concurrency::in_time(|| {
        let u = union(&["x = 1"]);
        for dir in ["d", "d/e", "d/e/f"] {
            u.mkdir(dir).unwrap();
        }
        assert_eq!(u.rename_unchecked("d/e", "d", Replace), Err(Errno::ENOTEMPTY));
        assert_eq!(u.rename_unchecked("d/e/f", "d", Replace), Err(Errno::ENOTEMPTY));
        assert_eq!(u.rename_unchecked("d/e", "d", Exchange), Err(Errno::EINVAL));
        assert_eq!(u.rename_unchecked("d", "d/e", Exchange), Err(Errno::EINVAL));
        u.shows("d/e/f/\n x = 1");
    });
}

#[test]
fn a_directory_that_cannot_go_below_itself_destroys_nothing_there() {
    let u = union(&["gone = 1"]);
    u.unlink("gone").unwrap();
    u.mkdir("gone").unwrap();
    u.mkdir("gone/in").unwrap();
    // The lower has the old name, so a whiteout is to stay behind: more than one step on some file systems.
    assert_eq!(u.rename_unchecked("gone", "gone/in", Replace), Err(Errno::EINVAL));
    u.shows("gone/in/");
}

#[test]
fn a_directory_gets_impure_with_what_moves_into_it() {
    let u = union(&["f = 1\n x = 1"]);
    u.mkdir("d").unwrap();
    u.create("plain", "").unwrap();
    u.rename("plain", "d/plain").unwrap();
    assert_eq!(mark(&u.upper_path("d"), "impure"), None);
    let number = u.stat("f").unwrap().ino;
    u.rename("f", "d/f").unwrap();
    assert_eq!(mark(&u.upper_path("d"), "impure").unwrap(), b"y");
    assert_eq!(u.stat("d/f").unwrap().ino, number);
    u.list("d");
    let u = u.reopen();
    assert_eq!(u.stat("d/f").unwrap().ino, number, "in a new mount");
    u.list("d");
}

#[test]
fn where_whiteouts_are_names_renames_hide_what_they_leave() {
    let u = Layers::of(&["a = 1\n b = 2\n d/x = 1"]).wh_names().open();
    u.rename("a", "b").unwrap();
    u.shows("b = 1\n d/x = 1");
    u.rename("d/x", "a").unwrap();
    u.shows("a = 1\n b = 1\n d/");
    assert!(!u.upper_path(".wh.a").exists() && u.upper_path("d/.wh.x").exists());
    u.reopen().shows("a = 1\n b = 1\n d/");
}

#[test]
fn the_nodes_below_a_moved_directory_are_found_again() {
    let u = union(&["x = 1"]);
    for dir in ["a", "a/b", "a/b/c"] {
        u.mkdir(dir).unwrap();
    }
    let file = u.create("a/b/c/f", "deep").unwrap().id;
    u.rename("a", "z").unwrap();
    u.rename("z/b", "y").unwrap();
    assert_eq!(u.read_node(file).unwrap(), "deep");
    u.put(file, 0, b"D").unwrap();
    assert_eq!(u.at("y/c/f").unwrap(), file);
    u.shows("x = 1\n y/c/f = Deep\n z/");
}
