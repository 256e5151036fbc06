//! New objects, over nothing, over whiteouts and over what was removed.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use plyfs::errno::Errno;
use plyfs::overlay::Caller;
use plyfs::sys;

use crate::fixture::{Layers, describe, mark, set_disk_xattr, union};
use crate::need;
use crate::support::is_root;
use crate::vfs::caller;

#[test]
fn new_objects_land_in_the_upper_with_their_parents() {
    let u = union(&["dir4/x = 1"]);
    u.create("dir4/new", "text").unwrap();
    u.mkdir("dir4/d").unwrap();
    u.symlink("dir4/l", "new").unwrap();
    u.mknod("dir4/p", libc::S_IFIFO | 0o600, 0).unwrap();
    u.mknod("dir4/s", libc::S_IFSOCK | 0o600, 0).unwrap();
    u.upper_holds("dir4/d/ opaque\n dir4/l -> new\n dir4/new = text\n dir4/p special\n dir4/s special");
    assert_eq!(u.create("dir4/x", "").err(), Some(Errno::EEXIST));
    assert_eq!(u.create("missing/x", "").err(), Some(Errno::ENOENT));
    assert_eq!(u.create("dir4/x/y", "").err(), Some(Errno::ENOTDIR));
}

#[test]
fn a_file_made_where_one_was_removed_replaces_the_whiteout() {
    let u = union(&["f = lower\n d/f = lower"]);
    u.unlink("f").unwrap();
    u.upper_holds("!f");
    u.create("f", "new").unwrap();
    u.upper_holds("f = new");
    u.shows("d/f = lower\n f = new");
    assert_eq!(u.stat("f").unwrap().size, 3);
}

#[test]
fn every_kind_can_replace_a_whiteout() {
    let u = union(&["a = 1\n b = 1\n c = 1\n d = 1\n e = 1"]);
    for name in ["a", "b", "c", "d"] {
        u.unlink(name).unwrap();
    }
    u.mkdir("a").unwrap();
    u.symlink("b", "x").unwrap();
    u.mknod("c", libc::S_IFIFO | 0o644, 0).unwrap();
    u.link("e", "d").unwrap();
    u.upper_holds("a/ opaque\n b -> x\n c special\n d = 1\n e = 1");
}

#[test]
fn a_directory_made_where_one_was_removed_is_opaque() {
    let u = union(&["d/a = 1\n d/s/b = 1", "d/c = 2"]);
    for path in ["d/a", "d/s/b", "d/c"] {
        u.unlink(path).unwrap();
    }
    u.rmdir("d/s").unwrap();
    u.rmdir("d").unwrap();
    u.upper_holds("!d");
    u.mkdir("d").unwrap();
    assert_eq!(mark(&u.upper_path("d"), "opaque").unwrap(), b"y");
    u.upper_holds("d/ opaque");
    u.shows("d/");
    let u = u.reopen();
    u.shows("d/");
}

#[test]
fn over_a_wh_name_of_a_lower_a_new_directory_shows_nothing_from_below() {
    let u = union(&[".wh.d = x\n .wh.f = x", "d/hidden = 2\n f = 2"]);
    u.mkdir("d").unwrap();
    u.create("f", "new").unwrap();
    u.shows("d/\n f = new");
    u.unlink("f").unwrap();
    u.rmdir("d").unwrap();
    u.shows("");
    u.upper_holds("");
}

#[test]
fn where_whiteouts_are_names_they_go_when_something_takes_the_place() {
    let u = Layers::of(&["f = 1\n d/in = 1"]).wh_names().open();
    u.unlink("f").unwrap();
    u.unlink("d/in").unwrap();
    u.rmdir("d").unwrap();
    let names = |u: &crate::fixture::Union| {
        let mut names: Vec<_> =
            fs::read_dir(u.upper_path("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&u), [".wh.d", ".wh.f"]);
    u.shows("");
    u.create("f", "new").unwrap();
    u.mkdir("d").unwrap();
    assert_eq!(names(&u), ["d", "f"]);
    u.shows("d/\n f = new");
    u.reopen().shows("d/\n f = new");
}

#[test]
fn a_null_device_cannot_be_made() {
    let u = union(&["x = 1"]);
    assert_eq!(u.mknod("w", libc::S_IFCHR | 0o600, 0).err(), Some(Errno::EPERM));
    u.upper_holds("");
}

#[test]
fn the_umask_and_the_callers_ids_apply() {
    need!(is_root(), "only root makes files for others");
    let u = union(&["gone = 1\n x = 1"]);
    u.unlink("gone").unwrap();
    let other = Caller { uid: 1234, gid: 2345, pid: 1, umask: 0o027 };
    let root = u.overlay.root();
    for name in ["new", "gone"] {
        u.met(u.overlay.mknod(&other, root, OsStr::new(name), libc::S_IFREG | 0o666, 0).unwrap());
        let meta = fs::metadata(u.upper_path(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1234, 2345, 0o640), "{name}");
    }
    u.met(u.overlay.mkdir(&other, root, OsStr::new("d"), 0o777).unwrap());
    let meta = fs::metadata(u.upper_path("d")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1234, 2345, 0o750));
    u.met(u.overlay.symlink(&other, root, OsStr::new("l"), OsStr::new("t")).unwrap());
    assert_eq!(fs::symlink_metadata(u.upper_path("l")).unwrap().uid(), 1234);
}

#[test]
fn a_group_is_inherited_from_a_directory_with_the_bit() {
    need!(is_root(), "only root gives files to other groups");
    let layers = Layers::of(&["d/x = 1\n d/gone = 1"]);
    std::os::unix::fs::chown(layers.lower(1, "d"), None, Some(4321)).unwrap();
    fs::set_permissions(layers.lower(1, "d"), Permissions::from_mode(0o2775)).unwrap();
    let u = layers.open();
    u.unlink("d/gone").unwrap();
    u.create("d/f", "").unwrap();
    u.create("d/gone", "").unwrap();
    u.mkdir("d/s").unwrap();
    for name in ["f", "gone", "s"] {
        assert_eq!(fs::metadata(u.upper_path("d").join(name)).unwrap().gid(), 4321, "{name}");
    }
    assert_eq!(fs::metadata(u.upper_path("d/s")).unwrap().mode() & 0o2000, 0o2000);
}

#[test]
fn a_default_acl_is_inherited_and_takes_the_place_of_the_umask() {
    // user::rwx, group::r-x, other::---, and user:1000:rwx with a mask
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, u32::MAX), (2, 7, 1000), (4, 7, u32::MAX), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&perm.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    let layers = Layers::of(&["d/gone = 1"]);
    set_disk_xattr(&layers.lower(1, "d"), sys::ACL_DEFAULT, &acl);
    let u = layers.open();
    u.unlink("d/gone").unwrap();
    let dir = u.at("d").unwrap();
    for name in ["new", "gone"] {
        u.met(u.overlay.mknod(&caller(), dir, OsStr::new(name), libc::S_IFREG | 0o664, 0).unwrap());
        let path = u.upper_path("d").join(name);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660, "{name}");
        assert!(crate::fixture::disk_xattr(&path, sys::ACL_ACCESS).is_some(), "{name}");
    }
    u.mkdir("d/s").unwrap();
    assert_eq!(crate::fixture::disk_xattr(&u.upper_path("d/s"), sys::ACL_DEFAULT).unwrap(), acl);
}

#[test]
fn a_file_without_a_name_can_be_written_read_and_named() {
    let u = union(&["d/x = 1"]);
    let dir = u.at("d").unwrap();
    let file = u.met(u.overlay.tmpfile(&caller(), dir, 0o600).unwrap());
    assert_eq!(file.attr.nlink, 0);
    u.put(file.id, 0, b"hidden").unwrap();
    assert_eq!(u.read_node(file.id).unwrap(), "hidden");
    u.shows("d/x = 1");
    u.met(u.overlay.link(&caller(), file.id, dir, OsStr::new("named")).unwrap());
    u.shows("d/named = hidden\n d/x = 1");
    assert_eq!(u.at("d/named").unwrap(), file.id);
}

#[test]
fn nothing_can_be_made_in_a_directory_that_is_gone() {
    let u = union(&["low/\n x = 1"]);
    u.mkdir("up").unwrap();
    for name in ["low", "up"] {
        let id = u.at(name).unwrap();
        u.rmdir(name).unwrap();
        let made = u.overlay.mknod(&caller(), id, OsStr::new("f"), libc::S_IFREG | 0o600, 0);
        assert_eq!(made.err(), Some(Errno::ENOENT), "{name}");
    }
}

#[test]
fn a_name_the_upper_got_behind_the_mount_is_not_overwritten() {
    let u = union(&["x = 1"]);
    assert_eq!(u.at("f"), Err(Errno::ENOENT));
    describe(&u.upper_path(""), "f = mine");
    let root = u.overlay.root();
    let made = u.overlay.mknod(&caller(), root, OsStr::new("f"), libc::S_IFREG | 0o600, 0);
    assert_eq!(made.err(), Some(Errno::EEXIST));
    u.shows("f = mine\n x = 1");
}

#[test]
fn a_file_without_a_name_is_made_in_a_directory_only() {
    let u = union(&["f = 1"]);
    let file = u.at("f").unwrap();
    assert_eq!(u.overlay.tmpfile(&caller(), file, 0o600).unwrap_err(), Errno::ENOTDIR);
    assert!(!u.upper_path("f").exists());
}
