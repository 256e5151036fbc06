//! Ids that differ between layers and callers: `uidmapping`, `gidmapping`, `squash_to_uid`, `squash_to_gid`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use plyfs::overlay::Caller;
use plyfs::overlay::SetAttr;
use plyfs::overlay::config::{IdMapping, IdRange};
use plyfs::sys::{ACL_ACCESS, ACL_DEFAULT};

use crate::fixture::{Layers, Union, disk_xattr, set_disk_xattr};
use crate::need;
use crate::support::is_root;
use crate::vfs::{NOTHING, caller};

const OVERFLOW: u32 = 65534;

/// As container stores ask for it: root on disk is the user, what follows are the user's subordinate ids.
fn mapped(layers: Layers) -> Layers {
    let ranges = vec![IdRange { disk: 0, shown: 1000, count: 1 }, IdRange { disk: 1, shown: 100_000, count: 60_000 }];
    with(layers, IdMapping { uids: ranges.clone(), gids: ranges, ..IdMapping::default() })
}

fn with(mut layers: Layers, ids: IdMapping) -> Layers {
    layers.config.ids = ids;
    layers
}

fn owner(u: &Union, path: &str) -> (u32, u32) {
    let stat = u.stat(path).unwrap();
    (stat.uid, stat.gid)
}

fn owner_on_disk(u: &Union, path: &str) -> (u32, u32) {
    let meta = fs::symlink_metadata(u.upper_path(path)).unwrap();
    (meta.uid(), meta.gid())
}

fn own(u: &Union, path: &str, uid: u32, gid: u32) {
    let changed = u.set(path, &SetAttr { uid: Some(uid), gid: Some(gid), ..NOTHING }).unwrap();
    assert_eq!((changed.uid, changed.gid), owner(u, path));
}

fn by(uid: u32, gid: u32) -> Caller {
    Caller { uid, gid, ..caller() }
}

/// An ACL with a named user and a named group.
fn acl(uid: u32, gid: u32) -> Vec<u8> {
    let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &6u16.to_le_bytes(), &id.to_le_bytes()].concat();
    let none = u32::MAX;
    let entries = [entry(1, none), entry(2, uid), entry(4, none), entry(8, gid), entry(16, none), entry(32, none)];
    [&2u32.to_le_bytes()[..], &entries.concat()].concat()
}

#[test]
fn owners_are_shown_mapped_and_what_no_triple_has_overflows() {
    need!(is_root(), "not root: files cannot be given away");
    let layers = mapped(Layers::of(&["root = 1\n user = 1\n other = 1\n dir/x = 1\n link -> x"]));
    for (name, uid, gid) in [("user", 1, 2), ("other", 61_000, 1), ("dir", 1000, 1000)] {
        chown(layers.lower(1, name), Some(uid), Some(gid)).unwrap();
    }
    let u = layers.open();
    assert_eq!(owner(&u, ""), (1000, 1000));
    assert_eq!(owner(&u, "root"), (1000, 1000));
    assert_eq!(owner(&u, "link"), (1000, 1000));
    assert_eq!(owner(&u, "user"), (100_000, 100_001));
    assert_eq!(owner(&u, "other"), (OVERFLOW, 100_000));
    assert_eq!(owner(&u, "dir"), (100_999, 100_999));
}

#[test]
fn a_copy_up_keeps_the_owner_on_disk() {
    need!(is_root(), "not root: files cannot be given away");
    let layers = mapped(Layers::of(&["f = 1\n stray = 1"]));
    chown(layers.lower(1, "f"), Some(5), Some(6)).unwrap();
    chown(layers.lower(1, "stray"), Some(99_999), Some(99_999)).unwrap();
    let u = layers.open();
    u.append("f", "2").unwrap();
    u.append("stray", "2").unwrap();
    assert_eq!((owner(&u, "f"), owner_on_disk(&u, "f")), ((100_004, 100_005), (5, 6)));
    assert_eq!((owner(&u, "stray"), owner_on_disk(&u, "stray")), ((OVERFLOW, OVERFLOW), (99_999, 99_999)));
}

#[test]
fn an_owner_that_is_given_is_mapped_back() {
    need!(is_root(), "not root: files cannot be given away");
    let u = mapped(Layers::of(&["f = 1\n link -> x"])).open();
    own(&u, "f", 100_041, 1000);
    assert_eq!((owner(&u, "f"), owner_on_disk(&u, "f")), ((100_041, 1000), (42, 0)));
    own(&u, "link", 100_000, 100_000);
    assert_eq!(owner_on_disk(&u, "link"), (1, 1));
    // Nobody that the map knows.
    own(&u, "f", 5, 5);
    assert_eq!((owner(&u, "f"), owner_on_disk(&u, "f")), ((OVERFLOW, OVERFLOW), (OVERFLOW, OVERFLOW)));
    let one = u.set("f", &SetAttr { gid: Some(1000), ..NOTHING }).unwrap();
    assert_eq!((one.uid, one.gid), (OVERFLOW, 1000));
}

#[test]
fn what_a_caller_makes_is_the_callers() {
    need!(is_root(), "not root: files cannot be given away");
    let u = mapped(Layers::of(&["d/x = 1"])).open();
    let dir = u.at("d").unwrap();
    for (name, uid, disk) in [("a", 1000, 0), ("b", 100_041, 42), ("c", 7, OVERFLOW)] {
        let made = u.overlay.mknod(&by(uid, uid), dir, OsStr::new(name), libc::S_IFREG | 0o666, 0).unwrap();
        let shown = if disk == OVERFLOW { OVERFLOW } else { uid };
        assert_eq!((made.attr.uid, made.attr.gid), (shown, shown), "{name}");
        assert_eq!(owner_on_disk(&u, &format!("d/{name}")), (disk, disk));
        u.met(made);
    }
    for name in ["sub", "nod", "sym"] {
        let (who, name) = (by(100_041, 100_000), OsStr::new(name));
        let made = match name.to_str().unwrap() {
            "sub" => u.overlay.mkdir(&who, dir, name, 0o755),
            "nod" => u.overlay.mknod(&who, dir, name, libc::S_IFIFO | 0o644, 0),
            _ => u.overlay.symlink(&who, dir, name, OsStr::new("x")),
        };
        let made = u.met(made.unwrap());
        assert_eq!((made.attr.uid, made.attr.gid), (100_041, 100_000));
    }
    for name in ["sub", "nod", "sym"] {
        assert_eq!(owner_on_disk(&u, &format!("d/{name}")), (42, 1));
    }
    let nameless = u.met(u.overlay.tmpfile(&by(100_041, 100_041), dir, 0o600).unwrap());
    assert_eq!((nameless.attr.uid, nameless.attr.gid), (100_041, 100_041));
}

#[test]
fn a_directory_with_sgid_gives_its_group_as_it_is_on_disk() {
    need!(is_root(), "not root: files cannot be given away");
    let layers = mapped(Layers::of(&["d/x = 1"]));
    chown(layers.lower(1, "d"), Some(0), Some(42)).unwrap();
    fs::set_permissions(layers.lower(1, "d"), fs::Permissions::from_mode(0o2775)).unwrap();
    let u = layers.open();
    let dir = u.at("d").unwrap();
    let made = u.met(u.overlay.mkdir(&by(100_000, 100_000), dir, OsStr::new("sub"), 0o755).unwrap());
    assert_eq!((made.attr.uid, made.attr.gid), (100_000, 100_041));
    assert_eq!(owner_on_disk(&u, "d/sub"), (1, 42));
}

#[test]
fn named_entries_of_acls_are_mapped_both_ways() {
    need!(is_root(), "not root: files cannot be given away");
    let layers = mapped(Layers::of(&["f = 1\n d/x = 1"]));
    set_disk_xattr(&layers.lower(1, "f"), ACL_ACCESS, &acl(42, 99_999));
    let u = layers.open();
    let get = |path: &str, name: &str| u.overlay.getxattr(u.at(path).unwrap(), OsStr::new(name)).unwrap();
    assert_eq!(get("f", ACL_ACCESS), acl(100_041, OVERFLOW));
    let dir = u.at("d").unwrap();
    u.overlay.setxattr(dir, OsStr::new(ACL_DEFAULT), &acl(100_000, 1000), 0).unwrap();
    assert_eq!(get("d", ACL_DEFAULT), acl(100_000, 1000));
    assert_eq!(disk_xattr(&u.upper_path("d"), ACL_DEFAULT).unwrap(), acl(1, 0));
    // Inherited as they are on disk.
    u.met(u.overlay.mknod(&by(100_041, 100_041), dir, OsStr::new("new"), libc::S_IFREG | 0o666, 0).unwrap());
    assert_eq!(get("d/new", ACL_ACCESS), acl(100_000, 1000));
    // Copied up as they are on disk.
    u.append("f", "2").unwrap();
    assert_eq!(disk_xattr(&u.upper_path("f"), ACL_ACCESS).unwrap(), acl(42, 99_999));
}

#[test]
fn a_capability_of_a_container_names_the_containers_root() {
    need!(is_root(), "not root: capabilities cannot be given");
    let capability = |root: u32| {
        let mut value = vec![0u8; 20];
        (value[0], value[3], value[4]) = (1, 3, 0x20);
        value.extend(root.to_le_bytes());
        value
    };
    let layers = mapped(Layers::of(&["f = 1"]));
    set_disk_xattr(&layers.lower(1, "f"), "security.capability", &capability(42));
    let u = layers.open();
    let id = u.at("f").unwrap();
    let name = OsStr::new("security.capability");
    assert_eq!(u.overlay.getxattr(id, name).unwrap(), capability(100_041));
    u.overlay.setxattr(id, name, &capability(100_000), 0).unwrap();
    assert_eq!(disk_xattr(&u.upper_path("f"), "security.capability").unwrap(), capability(1));
}

#[test]
fn bytes_that_are_no_acl_are_left_to_the_file_system() {
    let u = mapped(Layers::of(&["f = 1"])).open();
    let id = u.at("f").unwrap();
    for bytes in [&b""[..], b"\x02", b"\x02\0\0\0\x01", &[0xff; 64]] {
        let outcome = u.overlay.setxattr(id, OsStr::new(ACL_ACCESS), bytes, 0);
        assert!(bytes.is_empty() || outcome.is_err(), "{bytes:?}");
    }
}

#[test]
fn everything_shows_as_the_squashed_owners() {
    need!(is_root(), "not root: files cannot be given away");
    let layers = Layers::of(&["f = 1\n g = 1"]);
    chown(layers.lower(1, "f"), Some(5), Some(6)).unwrap();
    let u = with(layers, IdMapping { squash_uid: Some(7), squash_gid: Some(8), ..IdMapping::default() }).open();
    assert_eq!((owner(&u, "f"), owner(&u, "g"), owner(&u, "")), ((7, 8), (7, 8), (7, 8)));
    own(&u, "f", 20, 21);
    assert_eq!((owner(&u, "f"), owner_on_disk(&u, "f")), ((7, 8), (20, 21)));
    let made = u.met(u.overlay.mkdir(&by(30, 31), u.overlay.root(), OsStr::new("d"), 0o755).unwrap());
    assert_eq!((made.attr.uid, made.attr.gid, owner_on_disk(&u, "d")), (7, 8, (30, 31)));
}

#[test]
fn a_squashed_group_leaves_users_as_they_are() {
    need!(is_root(), "not root: files cannot be given away");
    let layers = Layers::of(&["f = 1"]);
    chown(layers.lower(1, "f"), Some(5), Some(6)).unwrap();
    let u = with(layers, IdMapping { squash_gid: Some(8), ..IdMapping::default() }).open();
    assert_eq!(owner(&u, "f"), (5, 8));
}
