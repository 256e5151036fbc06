//! Copy-up: what is copied, when, and what is left as it was.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use plyfs::errno::Errno;
use plyfs::overlay::SetAttr;
use plyfs::sys::{self, At};
use rustix::fs::CWD;

use crate::fixture::{Layers, disk_xattr, mark, set_disk_xattr, union};
use crate::need;
use crate::support::is_root;
use crate::vfs::NOTHING;

/// Puts a file's or directory's times into the past, and returns them.
fn age(path: &std::path::Path) -> SystemTime {
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 987_654_321);
    File::open(path).unwrap().set_times(FileTimes::new().set_accessed(then).set_modified(then)).unwrap();
    then
}

#[test]
fn the_first_write_copies_and_the_lower_stays_as_it_was() {
    let u = union(&["dir1/file = lower"]);
    u.read("dir1/file").unwrap();
    u.list("dir1");
    u.upper_holds("");
    u.append("dir1/file", " and more").unwrap();
    u.upper_holds("dir1/file = lower and more");
    assert_eq!(fs::read_to_string(u.lower(1, "dir1/file")).unwrap(), "lower");
    u.shows("dir1/file = lower and more");
}

#[test]
fn every_change_of_metadata_copies_the_data_too() {
    let u = union(&["a = data\n b = data\n c = data\n d = data\n dir/in = 1"]);
    u.chmod("a", 0o600).unwrap();
    u.set("b", &SetAttr { mtime: sys::SetTime::At(sys::Time { sec: 5, nsec: 6 }), ..NOTHING }).unwrap();
    let c = u.at("c").unwrap();
    u.overlay.setxattr(c, OsStr::new("user.note"), b"n", 0).unwrap();
    u.link("d", "e").unwrap();
    u.chmod("dir", 0o700).unwrap();
    u.upper_holds("a = data\n b = data\n c = data\n d = data\n dir/\n e = data");
    assert_eq!(fs::metadata(u.upper_path("b")).unwrap().mtime_nsec(), 6);
}

#[test]
fn cutting_a_file_copies_only_what_stays() {
    let u = union(&["a = 0123456789\n b = 0123456789\n c = 0123456789"]);
    u.truncate("a", 0).unwrap();
    u.truncate("b", 4).unwrap();
    assert_eq!(u.truncate("c", 12).unwrap().size, 12);
    let copy = |name: &str| fs::read_to_string(u.upper_path(name)).unwrap();
    assert_eq!([copy("a"), copy("b"), copy("c")], ["", "0123", "0123456789\0\0"]);
}

#[test]
fn owner_mode_times_and_xattrs_come_along() {
    let layers = Layers::of(&["d/f = data"]);
    let file = layers.lower(1, "d/f");
    set_disk_xattr(&file, "user.one", b"1");
    set_disk_xattr(&file, "user.empty", b"");
    fs::set_permissions(&file, Permissions::from_mode(0o4751)).unwrap();
    let then = age(&file);
    let u = layers.open();
    u.overlay.setxattr(u.at("d/f").unwrap(), OsStr::new("user.two"), b"2", 0).unwrap();
    let copy = u.upper_path("d/f");
    let meta = fs::metadata(&copy).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o4751);
    assert_eq!(meta.modified().unwrap(), then);
    assert_eq!(meta.accessed().unwrap(), then);
    for (name, value) in [("user.one", "1"), ("user.empty", ""), ("user.two", "2")] {
        assert_eq!(disk_xattr(&copy, name).unwrap(), value.as_bytes(), "{name}");
    }
}

#[test]
fn capabilities_acls_and_foreign_owners_come_along() {
    need!(is_root(), "only root sets capabilities and owners");
    let layers = Layers::of(&["f = data"]);
    let file = layers.lower(1, "f");
    std::os::unix::fs::chown(&file, Some(1234), Some(2345)).unwrap();
    let acl: Vec<u8> = [2u32.to_le_bytes().to_vec(), acl_entries()].concat();
    set_disk_xattr(&file, "system.posix_acl_access", &acl);
    let caps = [0x01, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set_disk_xattr(&file, "security.capability", &caps);
    let u = layers.open();
    u.set("f", &SetAttr { atime: sys::SetTime::Now, ..NOTHING }).unwrap();
    let copy = u.upper_path("f");
    let meta = fs::metadata(&copy).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (1234, 2345));
    assert_eq!(disk_xattr(&copy, "security.capability").unwrap(), caps);
    assert_eq!(disk_xattr(&copy, "system.posix_acl_access").unwrap(), acl);
    assert_eq!(meta.permissions().mode(), fs::metadata(file).unwrap().permissions().mode());
}

/// user::rw-, user:1000:rwx, group::r--, mask::rwx, other::---
fn acl_entries() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 7, 1000), (4, 4, u32::MAX), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)];
    let bytes = |(tag, perm, id): (u16, u16, u32)| {
        [tag.to_le_bytes().to_vec(), perm.to_le_bytes().to_vec(), id.to_le_bytes().to_vec()].concat()
    };
    entries.into_iter().flat_map(bytes).collect()
}

#[test]
fn holes_stay_holes() {
    let layers = Layers::of(&["x = 1"]);
    let path = layers.lower(1, "sparse");
    let file = File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"middle", 20 << 20).unwrap();
    file.write_all_at(b"later", 40 << 20).unwrap();
    let blocks = file.metadata().unwrap().blocks();
    let u = layers.open();
    u.write("sparse", 0, "start").unwrap();
    let copy = File::open(u.upper_path("sparse")).unwrap();
    let meta = copy.metadata().unwrap();
    assert_eq!(meta.len(), 64 << 20);
    assert!(meta.blocks() < blocks + 64, "{} blocks of {blocks}", meta.blocks());
    for (at, text) in [(0u64, "start"), (20 << 20, "middle"), (40 << 20, "later")] {
        let mut buffer = vec![0; text.len()];
        copy.read_exact_at(&mut buffer, at).unwrap();
        assert_eq!(buffer, text.as_bytes());
    }
}

#[test]
fn parents_come_along_with_all_their_attributes() {
    let layers = Layers::of(&["a/b/c/f = 1"]);
    let dir = layers.lower(1, "a/b");
    fs::set_permissions(&dir, Permissions::from_mode(0o2711)).unwrap();
    set_disk_xattr(&dir, "user.of", b"b");
    let then = age(&dir);
    let u = layers.open();
    u.append("a/b/c/f", "2").unwrap();
    let meta = fs::metadata(u.upper_path("a/b")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o2711);
    assert_eq!(disk_xattr(&u.upper_path("a/b"), "user.of").unwrap(), b"b");
    assert_eq!(meta.modified().unwrap(), then, "a copy-up is no change of the directory");
    u.upper_holds("a/b/c/f = 12");
    u.shows("a/b/c/f = 12");
}

#[test]
fn a_copy_up_leaves_the_parents_time_alone_and_a_change_does_not() {
    let layers = Layers::of(&["d/f = 1"]).upper("d/own = 1");
    let then = age(&layers.upper_path("d"));
    let u = layers.open();
    u.append("d/f", "2").unwrap();
    assert_eq!(fs::metadata(u.upper_path("d")).unwrap().modified().unwrap(), then);
    u.create("d/new", "").unwrap();
    assert_ne!(fs::metadata(u.upper_path("d")).unwrap().modified().unwrap(), then);
}

#[test]
fn the_origin_of_a_copy_is_kept_in_the_kernels_form() {
    let u = union(&["d/f = 1\n h = 2\n h2 == h"]);
    u.append("d/f", "+").unwrap();
    u.append("h", "+").unwrap();
    for (path, lower) in [("d", "d"), ("d/f", "d/f")] {
        let origin = mark(&u.upper_path(path), "origin").unwrap();
        let (expected_type, handle) = handle_of(&u.lower(1, lower));
        assert_eq!(origin[0], 0, "version");
        assert_eq!(origin[1], 0xfb, "magic");
        assert_eq!(usize::from(origin[2]), origin.len(), "length");
        assert_eq!(origin[3], u8::from(cfg!(target_endian = "big")), "flags");
        assert_eq!(i32::from(origin[4]), expected_type, "handle type");
        assert_eq!(origin[21..], handle, "handle");
    }
    assert_eq!(mark(&u.upper_path("d"), "impure").unwrap(), b"y");
    assert_eq!(mark(&u.upper_path(""), "impure").unwrap(), b"y");
    assert_eq!(mark(&u.upper_path("h"), "origin"), None, "one of several links parts from the others");
    assert_eq!(mark(&u.upper_path("d"), "opaque"), None);
}

fn handle_of(path: &std::path::Path) -> (i32, Vec<u8>) {
    let handle = sys::file_handle(At::Name(CWD, path.as_os_str())).unwrap();
    (handle.kind, handle.bytes)
}

#[test]
fn what_is_new_has_no_origin_and_makes_nothing_impure() {
    let u = union(&["d/f = 1"]);
    u.create("new", "n").unwrap();
    u.mkdir("newdir").unwrap();
    u.create("newdir/in", "").unwrap();
    for path in ["new", "newdir", "newdir/in"] {
        assert_eq!(mark(&u.upper_path(path), "origin"), None, "{path}");
    }
    assert_eq!(mark(&u.upper_path("newdir"), "impure"), None);
    assert_eq!(mark(&u.upper_path(""), "impure"), None);
}

#[test]
fn symlinks_and_special_files_are_copied_as_what_they_are() {
    let layers = Layers::of(&["l -> target\n d/x = 1"]);
    sys::mknod(CWD, layers.lower(1, "p").as_os_str(), sys::Kind::Fifo, 0o640, 0).unwrap();
    sys::mknod(CWD, layers.lower(1, "s").as_os_str(), sys::Kind::Socket, 0o640, 0).unwrap();
    let u = layers.open();
    let times = SetAttr { mtime: sys::SetTime::At(sys::Time { sec: 7, nsec: 8 }), ..NOTHING };
    for path in ["l", "p", "s"] {
        u.set(path, &times).unwrap();
        assert_eq!(fs::symlink_metadata(u.upper_path(path)).unwrap().mtime(), 7, "{path}");
    }
    u.upper_holds("l -> target\n p special\n s special");
}

#[test]
fn a_device_is_copied_with_its_number() {
    need!(is_root(), "only root makes devices");
    let layers = Layers::of(&["x = 1"]);
    let dev = sys::make_dev(1, 3);
    sys::mknod(CWD, layers.lower(1, "null").as_os_str(), sys::Kind::Char, 0o666, dev).unwrap();
    let u = layers.open();
    u.chmod("null", 0o600).unwrap();
    assert_eq!(fs::symlink_metadata(u.upper_path("null")).unwrap().rdev(), dev);
    assert_eq!(u.stat("null").unwrap().rdev, dev);
}

#[test]
fn marks_of_the_lower_are_not_copied_and_those_of_nested_overlays_are() {
    let layers = Layers::of(&["d/in = 1", "d/below = 2"]);
    crate::fixture::set_mark(&layers.lower(1, "d"), "opaque", b"y");
    crate::fixture::set_mark(&layers.lower(1, "d"), "overlay.opaque", b"y");
    let u = layers.open();
    u.shows("d/in = 1");
    u.chmod("d", 0o700).unwrap();
    assert_eq!(mark(&u.upper_path("d"), "opaque"), None, "the lower directory is still there, and still opaque");
    assert_eq!(mark(&u.upper_path("d"), "overlay.opaque").unwrap(), b"y");
    u.shows("d/in = 1");
}

#[test]
fn a_node_stays_the_same_over_copy_up() {
    let u = union(&["d/f = 1"]);
    let (dir, file) = (u.at("d").unwrap(), u.at("d/f").unwrap());
    u.append("d/f", "2").unwrap();
    assert_eq!((u.at("d").unwrap(), u.at("d/f").unwrap()), (dir, file));
    assert_eq!(u.read_node(file).unwrap(), "12", "whoever had it open reads the new data");
}

#[test]
fn an_object_put_into_the_upper_behind_the_mount_is_not_overwritten() {
    let u = union(&["f = lower"]);
    let id = u.at("f").unwrap();
    fs::write(u.upper_path("f"), "mine").unwrap();
    assert_eq!(u.put(id, 0, b"x").err(), Some(Errno::ESTALE));
    assert_eq!(fs::read_to_string(u.upper_path("f")).unwrap(), "mine");
    u.shows("f = mine");
}
