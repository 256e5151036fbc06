//! What the union shows: layers from the top down, whiteouts, opaque directories, and all forms of both.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use plyfs::errno::Errno;
use plyfs::sys::Kind;

use crate::fixture::{Layers, describe, mark, set_mark, union, whiteout};
use crate::vfs::caller;

#[test]
fn the_first_layer_that_has_a_name_wins() {
    let u = Layers::of(&["a = 1\n b = 1", "a = 2\n b = 2\n c = 2", "d = 3"]).upper("a = up").open();
    u.shows("a = up\n b = 1\n c = 2\n d = 3");
}

#[test]
fn directories_merge_and_each_name_is_listed_once() {
    let u = Layers::of(&[
        "dir1/file_a = a\n dir1/both = top\n link1 -> a",
        "dir1/file_b = b\n dir1/both = below\n link1 -> b",
    ])
    .upper("dir1/file_c = c")
    .open();
    assert_eq!(u.list("dir1"), ["both", "file_a", "file_b", "file_c"]);
    u.shows("dir1/both = top\n dir1/file_a = a\n dir1/file_b = b\n dir1/file_c = c\n link1 -> a");
}

#[test]
fn what_is_no_directory_hides_directories_below_and_ends_the_search() {
    let u = union(&["a = file\n l -> x", "a/in = no\n l/in = no", "a/deep = no"]);
    u.shows("a = file\n l -> x");
    assert_eq!(u.at("a/in"), Err(Errno::ENOTDIR));
    // A file between two directories: what is below it does not merge, either.
    let u = union(&["d/top = 1", "d = a file", "d/bottom = 3"]);
    u.shows("d/top = 1");
}

#[test]
fn a_whiteout_hides_every_layer_below_it() {
    let u = union(&["b = 1", "!a\n !b\n !d/c", "a = 3\n b = 3\n d/c = 3\n d/e = 3"]);
    u.shows("b = 1\n d/e = 3");
    assert_eq!(u.at("a"), Err(Errno::ENOENT));
    assert_eq!(u.at("d/c"), Err(Errno::ENOENT));
}

#[test]
fn a_whiteout_of_a_directory_below_a_directory_ends_the_merge() {
    let u = union(&["d/top = 1", "!d", "d/bottom = 3"]);
    u.shows("d/top = 1");
}

#[test]
fn an_opaque_directory_hides_what_is_below() {
    let u = union(&["d/top = 1", "d/ opaque\n d/mid = 2", "d/bottom = 3"]);
    u.shows("d/mid = 2\n d/top = 1");
    let u = Layers::of(&["d/low = 1"]).upper("d/ opaque").open();
    u.shows("d/");
}

#[test]
fn an_opaque_mark_of_another_value_means_nothing() {
    let layers = Layers::of(&["d/top = 1", "d/bottom = 2"]);
    set_mark(&layers.lower(1, "d"), "opaque", b"n");
    layers.open().shows("d/bottom = 2\n d/top = 1");
}

#[test]
fn opaque_marks_of_both_namespaces_and_of_fuse_overlayfs_are_read() {
    for name in ["user.overlay.opaque", "user.fuseoverlayfs.opaque"] {
        let layers = Layers::of(&["d/top = 1", "d/bottom = 2"]);
        crate::fixture::set_disk_xattr(&layers.lower(1, "d"), name, b"y");
        layers.open().shows("d/top = 1");
    }
}

#[test]
fn regular_files_with_a_mark_are_whiteouts_in_a_directory_that_says_so() {
    let layers = Layers::of(&["d/", "d/gone = 2\n d/plain = 2\n d/stays = 2"]);
    fs::write(layers.lower(1, "d/gone"), "").unwrap();
    fs::write(layers.lower(1, "d/plain"), "").unwrap();
    set_mark(&layers.lower(1, "d"), "opaque", b"x");
    set_mark(&layers.lower(1, "d/gone"), "whiteout", b"");
    let u = layers.open();
    assert_eq!(u.list("d"), ["plain", "stays"]);
    assert_eq!(u.read("d/plain").unwrap(), "");
    assert_eq!(u.at("d/gone"), Err(Errno::ENOENT));
}

#[test]
fn a_marked_file_is_a_file_where_the_directory_does_not_say_so() {
    let layers = Layers::of(&["d/marked = x", "d/marked = 2"]);
    fs::write(layers.lower(1, "d/marked"), "").unwrap();
    set_mark(&layers.lower(1, "d/marked"), "whiteout", b"");
    let u = layers.open();
    assert_eq!(u.read("d/marked").unwrap(), "");
    assert_eq!(u.list("d"), ["marked"]);
}

#[test]
fn wh_names_in_lowers_hide_and_are_hidden() {
    let u = union(&[".wh.a = x\n d/.wh.b = x\n d/top = 1", "a = 2\n d/b = 2\n d/c = 2"]);
    u.shows("d/c = 2\n d/top = 1");
    for name in ["a", ".wh.a", "d/b", "d/.wh.b"] {
        assert_eq!(u.at(name), Err(Errno::ENOENT), "{name}");
    }
}

#[test]
fn a_wh_name_does_not_hide_what_its_own_layer_has() {
    // In whichever order names are looked up: the answer must not depend on it.
    for first in ["a", "d"] {
        let u = union(&["a = 1\n .wh.a = x\n d/in = 1\n .wh.d = x", "a = 2\n d/below = 2"]);
        u.at(first).unwrap();
        u.shows("a = 1\n d/in = 1");
    }
}

#[test]
fn the_opaque_file_of_aufs_hides_what_is_below() {
    let u = union(&["d/.wh..wh..opq = x\n d/top = 1", "d/bottom = 2"]);
    assert_eq!(u.at("d/bottom"), Err(Errno::ENOENT));
    u.shows("d/top = 1");
}

#[test]
fn the_opaque_file_of_aufs_works_in_a_layers_root() {
    let u = union(&[".wh..wh..opq = x\n top = 1", "bottom = 2"]);
    assert_eq!(u.list(""), ["top"]);
    assert_eq!(u.at("bottom"), Err(Errno::ENOENT), "a listing and a lookup must agree");
}

#[test]
fn an_opaque_mark_on_a_layers_root_means_nothing() {
    let layers = Layers::of(&["top = 1", "bottom = 2"]);
    set_mark(&layers.lower(1, ""), "opaque", b"y");
    set_mark(&layers.upper_path(""), "opaque", b"y");
    layers.open().shows("bottom = 2\n top = 1");
}

#[test]
fn wh_names_in_the_upper_are_whiteouts_as_container_stores_write_them() {
    let lower = "a = 1\n b = 1\n d/in = 1\n o/below = 1\n r/below = 1";
    let upper = ".wh.a = x\n sub/.wh.x = x\n .wh.d = x\n o/.wh..wh..opq = x\n o/top = 2\n .wh.r = x\n r/top = 2";
    let u = Layers::of(&[lower]).upper(upper).open();
    u.shows("b = 1\n o/top = 2\n r/top = 2\n sub/");
    for name in ["a", ".wh.a", "d", "sub/.wh.x", "o/below"] {
        assert_eq!(u.stat(name).err(), Some(Errno::ENOENT), "{name}");
    }
    // What takes a hidden name shows, and the whiteout goes.
    u.create("a", "new").unwrap();
    u.rename("b", "d").unwrap();
    assert!(!u.upper_path(".wh.a").exists() && !u.upper_path(".wh.d").exists());
    assert_eq!(u.create(".wh.z", "").err(), Some(Errno::EINVAL), "it would hide z");
    let u = u.reopen();
    u.shows("a = new\n d = 1\n o/top = 2\n r/top = 2\n sub/");
    let u = Layers::of(&["a = 1"]).upper(".wh..wh..opq = x\n b = 2").open();
    u.shows("b = 2");
}

#[test]
fn wh_names_made_in_the_mount_are_plain_names_for_good() {
    let u = Layers::of(&["a = 1\n x = 1\n d/b = 1\n d/c = 1"]).open();
    u.create(".wh.a", "just a name").unwrap();
    u.create("d/moved", "too").unwrap();
    u.rename("d/moved", "d/.wh.b").unwrap();
    u.mkdir("sub").unwrap();
    u.create("sub/.wh..wh..opq", "x").unwrap();
    let expected = ".wh.a = just a name\n a = 1\n d/.wh.b = too\n d/b = 1\n d/c = 1\n sub/.wh..wh..opq = x\n x = 1";
    u.shows(expected);
    let u = u.reopen();
    u.shows(expected);
    u.unlink(".wh.a").unwrap();
    u.unlink("x").unwrap();
    u.reopen().shows("a = 1\n d/.wh.b = too\n d/b = 1\n d/c = 1\n sub/.wh..wh..opq = x");
}

#[test]
fn a_null_device_in_the_lowest_layer_is_a_whiteout_too() {
    let layers = Layers::of(&["d/x = 1"]);
    whiteout(&layers.lower(1, "d/w"));
    let u = layers.open();
    u.shows("d/x = 1");
    assert_eq!(u.at("d/w"), Err(Errno::ENOENT));
}

#[test]
fn names_of_255_bytes_and_names_that_are_no_text() {
    let long = "n".repeat(255);
    let u = union(&[&format!("{long} = long"), "other = 1"]);
    assert_eq!(u.read(&long).unwrap(), "long");
    u.append(&long, "er").unwrap();
    u.upper_holds(&format!("{long} = longer"));
    assert_eq!(u.at("n".repeat(256)), Err(Errno::ENAMETOOLONG));
    u.unlink(&long).unwrap();
    u.upper_holds(&format!("!{long}"));

    let raw = OsStr::from_bytes(b"\xff\xfe caf\xe9\n");
    let layers = Layers::of(&["x = 1"]);
    fs::write(layers.lower(1, raw), "raw").unwrap();
    let u = layers.open();
    let found = u.lookup(u.overlay.root(), raw).unwrap();
    assert_eq!(u.read_node(found.id).unwrap(), "raw");
    u.rename(raw, "y").unwrap();
    u.rename("y", raw).unwrap();
    assert_eq!(fs::read(u.upper_path(raw)).unwrap(), b"raw");
    u.unlink(raw).unwrap();
    u.shows("x = 1");
}

#[test]
fn wh_names_of_names_of_255_bytes_do_not_matter() {
    let long = "n".repeat(255);
    let u = union(&[".wh.x = x", &format!("{long} = long")]);
    assert_eq!(u.read(&long).unwrap(), "long");
}

#[test]
fn a_path_deeper_than_path_max() {
    let layers = Layers::of(&["x = 1"]);
    let u = layers.open();
    let name = "d".repeat(200);
    let mut dir = u.overlay.root();
    for _ in 0..30 {
        dir = u.met(u.overlay.mkdir(&caller(), dir, OsStr::new(&name), 0o755).unwrap()).id;
    }
    let file = u.overlay.mknod(&caller(), dir, OsStr::new("f"), libc::S_IFREG | 0o600, 0).unwrap();
    u.met(file);
    u.forget_all();
    let mut dir = u.overlay.root();
    for _ in 0..30 {
        dir = u.lookup(dir, &name).unwrap().id;
    }
    assert!(u.lookup(dir, "f").is_ok());
}

#[test]
fn many_layers() {
    let texts: Vec<String> = (0..200).map(|n| format!("d/f{n} = {n}\n same = {n}")).collect();
    let u = union(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(u.read("same").unwrap(), "0");
    assert_eq!(u.read("d/f199").unwrap(), "199");
    assert_eq!(u.list("d").len(), 200);
}

#[test]
fn a_number_is_the_same_over_copy_up_and_a_new_mount() {
    let u = union(&["d/f = 1\n l -> f", "d/g = 2\n e/h = 3"]);
    let paths = ["", "d", "d/f", "d/g", "e", "e/h"];
    let numbers = |u: &crate::fixture::Union| paths.map(|path| u.stat(path).unwrap().ino);
    let before = numbers(&u);
    for path in ["d/f", "d/g", "e/h"] {
        u.append(path, "!").unwrap();
    }
    assert_eq!(numbers(&u), before, "after the copy-up");
    u.list("d");
    let u = u.reopen();
    assert_eq!(numbers(&u), before, "in a new mount");
    u.list("d");
}

#[test]
fn a_merged_directory_counts_one_link() {
    let u = union(&["d/a/x = 1\n only/s/x = 1", "d/b/x = 2"]);
    assert_eq!(u.stat("d").unwrap().nlink, 1);
    assert_eq!(u.stat("only").unwrap().nlink, 3);
    assert_eq!(u.stat("d").unwrap().kind(), Kind::Dir);
    assert!(mark(&u.upper_path(""), "opaque").is_none());
}

#[test]
fn what_is_put_into_a_layer_while_it_is_open_shows() {
    let u = union(&["d/a = 1", "d/b = 2"]);
    u.shows("d/a = 1\n d/b = 2");
    fs::write(u.lower(2, "d/new"), "2").unwrap();
    fs::remove_file(u.lower(1, "d/a")).unwrap();
    describe(&u.upper_path(""), "d/up = 0");
    u.shows("d/b = 2\n d/new = 2\n d/up = 0");
}

#[test]
fn no_upper_means_no_changes() {
    let u = Layers::of(&["f = 1\n d/", "g = 2"]).read_only().open();
    u.shows("d/\n f = 1\n g = 2");
    assert!(!u.overlay.is_writable());
    let rofs = Some(Errno::EROFS);
    assert_eq!(u.append("f", "x").err(), rofs);
    assert_eq!(u.create("n", "").err(), rofs);
    assert_eq!(u.mkdir("n").err(), rofs);
    assert_eq!(u.symlink("n", "f").err(), rofs);
    assert_eq!(u.link("f", "n").err(), rofs);
    assert_eq!(u.unlink("f").err(), rofs);
    assert_eq!(u.rmdir("d").err(), rofs);
    assert_eq!(u.rename("f", "g").err(), rofs);
    assert_eq!(u.chmod("f", 0o600).err(), rofs);
    assert_eq!(u.truncate("f", 0).err(), rofs);
    u.shows("d/\n f = 1\n g = 2");
}

#[test]
fn a_layer_that_lies_within_another_is_not_entered_from_there() {
    let mut layers = Layers::of(&["in/f = 1\n in/below/g = 1\n other = 2"]);
    layers.config.lowers = vec![layers.lower(1, "in"), layers.root().to_owned()];
    let u = layers.open();
    let mut names = Vec::new();
    let mut each = |entry: &plyfs::overlay::Dirent<'_>| {
        names.push(entry.name.to_owned());
        plyfs::overlay::Room::Taken
    };
    u.overlay.readdir(u.overlay.root(), 0, &mut each).unwrap();
    assert!(names.iter().any(|name| name == "upper"), "it is listed, as in the kernel");
    for name in ["l1/in", "l1/in/below", "upper", "work/work"] {
        assert_eq!(u.stat(name).err(), Some(Errno::ELOOP), "{name}");
    }
    u.write("below/g", 0, "2").unwrap();
    assert_eq!(u.read("below/g"), Ok("2".to_owned()));
    assert_eq!(u.read("l1/other"), Ok("2".to_owned()));
}
