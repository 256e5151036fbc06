//! Extended attributes: the overlay's own are hidden, those of an overlay inside are kept under other names.

use std::ffi::OsStr;

use plyfs::errno::Errno;
use plyfs::overlay::Caller;

use crate::fixture::{Layers, Union, disk_xattr, mark, set_disk_xattr, set_mark, union};
use crate::need;
use crate::support::is_root;
use crate::vfs::caller;

fn get(u: &Union, path: &str, name: &str) -> Result<String, Errno> {
    u.overlay.getxattr(u.at(path).unwrap(), OsStr::new(name)).map(|value| String::from_utf8(value).unwrap())
}

fn set(u: &Union, path: &str, name: &str, value: &str) -> Result<(), Errno> {
    u.overlay.setxattr(u.at(path).unwrap(), OsStr::new(name), value.as_bytes(), 0)
}

fn list(u: &Union, path: &str, caller: &Caller) -> Vec<String> {
    let list = u.overlay.listxattr(caller, u.at(path).unwrap()).unwrap();
    let mut names: Vec<String> = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .filter(|name| !name.starts_with("security."))
        .collect();
    names.sort();
    names
}

#[test]
fn attributes_are_read_from_the_lower_and_written_to_the_upper() {
    let layers = Layers::of(&["f = 1"]);
    set_disk_xattr(&layers.lower(1, "f"), "user.a", b"lower");
    let u = layers.open();
    assert_eq!(get(&u, "f", "user.a").unwrap(), "lower");
    assert_eq!(list(&u, "f", &caller()), ["user.a"]);
    assert_eq!(get(&u, "f", "user.b"), Err(Errno::ENODATA));
    u.upper_holds("");
    set(&u, "f", "user.b", "new").unwrap();
    assert_eq!(list(&u, "f", &caller()), ["user.a", "user.b"]);
    assert_eq!(disk_xattr(&u.upper_path("f"), "user.b").unwrap(), b"new");
    assert_eq!(disk_xattr(&u.lower(1, "f"), "user.b"), None);
    u.upper_holds("f = 1");
}

#[test]
fn removing_one_that_is_not_there_copies_nothing_up() {
    let layers = Layers::of(&["f = 1"]);
    set_disk_xattr(&layers.lower(1, "f"), "user.a", b"lower");
    let u = layers.open();
    let id = u.at("f").unwrap();
    assert_eq!(u.overlay.removexattr(&caller(), id, OsStr::new("user.none")), Err(Errno::ENODATA));
    u.upper_holds("");
    u.overlay.removexattr(&caller(), id, OsStr::new("user.a")).unwrap();
    u.upper_holds("f = 1");
    assert_eq!(list(&u, "f", &caller()), [""; 0]);
    assert_eq!(disk_xattr(&u.lower(1, "f"), "user.a").unwrap(), b"lower");
}

#[test]
fn create_and_replace_are_heeded() {
    let u = union(&["f = 1"]);
    let id = u.at("f").unwrap();
    let name = OsStr::new("user.a");
    assert_eq!(u.overlay.setxattr(id, name, b"1", libc::XATTR_REPLACE), Err(Errno::ENODATA));
    u.overlay.setxattr(id, name, b"1", libc::XATTR_CREATE).unwrap();
    assert_eq!(u.overlay.setxattr(id, name, b"2", libc::XATTR_CREATE), Err(Errno::EEXIST));
    u.overlay.setxattr(id, name, b"2", libc::XATTR_REPLACE).unwrap();
    assert_eq!(get(&u, "f", "user.a").unwrap(), "2");
}

#[test]
fn the_overlays_own_marks_are_shown_to_nobody() {
    let layers = Layers::of(&["d/f = 1\n e/x = 1"]);
    set_disk_xattr(&layers.lower(1, "e"), "user.fuseoverlayfs.opaque", b"y");
    set_disk_xattr(&layers.lower(1, "e"), "user.overlay.opaque", b"y");
    let u = layers.open();
    u.append("d/f", "2").unwrap();
    u.mkdir("d/n").unwrap();
    for path in ["", "d", "d/f", "d/n", "e"] {
        assert_eq!(list(&u, path, &caller()), [""; 0], "{path}");
    }
    let own = if is_root() { "trusted.overlay.origin" } else { "user.overlay.origin" };
    assert!(mark(&u.upper_path("d/f"), "origin").is_some());
    assert_eq!(get(&u, "d/f", own), Err(Errno::ENODATA));
}

#[test]
fn an_overlay_inside_keeps_its_marks_under_escaped_names() {
    let own = if is_root() { "trusted.overlay." } else { "user.overlay." };
    let u = union(&["d/f = 1", "d/g = 1"]);
    let inner = format!("{own}opaque");
    set(&u, "d", &inner, "y").unwrap();
    // Theirs, not ours: the directory is no more opaque than before.
    assert_eq!(u.list("d"), ["f", "g"]);
    assert_eq!(get(&u, "d", &inner).unwrap(), "y");
    assert_eq!(list(&u, "d", &caller()), [inner.as_str()]);
    assert_eq!(disk_xattr(&u.upper_path("d"), &format!("{own}overlay.opaque")).unwrap(), b"y");
    assert_eq!(disk_xattr(&u.upper_path("d"), &inner), None);
    // One overlay deeper still.
    set(&u, "d", &format!("{own}overlay.opaque"), "z").unwrap();
    assert_eq!(disk_xattr(&u.upper_path("d"), &format!("{own}overlay.overlay.opaque")).unwrap(), b"z");
    assert_eq!(get(&u, "d", &inner).unwrap(), "y");
    let id = u.at("d").unwrap();
    u.overlay.removexattr(&caller(), id, OsStr::new(&inner)).unwrap();
    assert_eq!(get(&u, "d", &inner), Err(Errno::ENODATA));
    let u = u.reopen();
    assert_eq!(u.list("d"), ["f", "g"]);
}

#[test]
fn escaped_marks_of_a_lower_are_shown_without_the_escape() {
    let own = if is_root() { "trusted.overlay." } else { "user.overlay." };
    let layers = Layers::of(&["d/f = 1", "d/g = 1"]);
    set_mark(&layers.lower(1, "d"), "overlay.opaque", b"y");
    let u = layers.open();
    assert_eq!(u.list("d"), ["f", "g"]);
    assert_eq!(get(&u, "d", &format!("{own}opaque")).unwrap(), "y");
}

#[test]
fn trusted_names_are_listed_for_the_privileged_only() {
    need!(is_root(), "only root sets trusted attributes");
    let u = union(&["f = 1"]);
    set(&u, "f", "trusted.x", "1").unwrap();
    set(&u, "f", "user.x", "1").unwrap();
    assert_eq!(list(&u, "f", &caller()), ["trusted.x", "user.x"]);
    let other = Caller { uid: 1000, gid: 1000, pid: 1, umask: 0 };
    assert_eq!(list(&u, "f", &other), ["user.x"]);
}

#[test]
fn attributes_of_directories_and_big_values() {
    let u = union(&["d/x = 1"]);
    let big = "v".repeat(3000);
    set(&u, "d", "user.big", &big).unwrap();
    assert_eq!(get(&u, "d", "user.big").unwrap(), big);
    set(&u, "d", "user.empty", "").unwrap();
    assert_eq!(get(&u, "d", "user.empty").unwrap(), "");
    u.upper_holds("d/");
    u.shows("d/x = 1");
    assert_eq!(set(&u, "d", "nonsense", "1"), Err(Errno::ENOTSUP));
}

#[test]
fn a_stranger_to_the_group_takes_sgid_away_with_the_acl() {
    need!(is_root(), "gives files away");
    let acl = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x06\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
    for (uid, expected) in [(1000, 0o755), (0, 0o2755)] {
        let u = union(&["f = 1"]);
        let id = u.at("f").unwrap();
        let own = plyfs::overlay::SetAttr { uid: Some(1000), gid: Some(1001), mode: None, ..crate::vfs::NOTHING };
        u.overlay.setattr(&caller(), id, &own).unwrap();
        u.chmod("f", 0o2755).unwrap();
        u.overlay.setxattr(id, plyfs::sys::ACL_ACCESS.as_ref(), acl, 0).unwrap();
        u.chmod("f", 0o2755).unwrap();
        // A process without number is in no further group.
        let who = Caller { uid, gid: uid, pid: 0, ..caller() };
        let removed = u.overlay.removexattr(&who, id, plyfs::sys::ACL_ACCESS.as_ref());
        assert!(matches!(removed, Ok(()) | Err(Errno::ENODATA | Errno::ENOTSUP)), "{removed:?}");
        assert_eq!(u.stat("f").unwrap().mode & 0o7777, expected, "{uid}");
    }
}
