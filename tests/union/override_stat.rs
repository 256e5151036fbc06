//! Owners, modes and kinds in an attribute: `xattr_permissions=1|2`, as container stores and fuse-overlayfs write them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use plyfs::errno::Errno;
use plyfs::overlay::config::Permissions;
use plyfs::overlay::{Caller, Privileges, Room, SetAttr};
use plyfs::sys::{ACL_ACCESS, Kind, make_dev};

use crate::fixture::{Layers, Union, describe, disk_xattr, set_disk_xattr};
use crate::need;
use crate::support::is_root;
use crate::vfs::{NOTHING, caller};

const STORE: &str = "user.containers.override_stat";
const CAPABILITY: &str = "security.capability";
const KEPT: &str = "user.containers.override_security.capability";

/// Layers as a container store leaves them under `force_mask`: everything the user's own, the roots described.
fn store(lower: &str) -> Layers {
    let mut layers = Layers::of(&[lower]);
    layers.config.permissions = Permissions::User;
    set_disk_xattr(&layers.lower(1, ""), STORE, b"0:0:0555:dir");
    set_disk_xattr(&layers.upper_path(""), STORE, b"0:0:0555:dir");
    layers
}

fn say(path: &Path, text: &str) {
    set_disk_xattr(path, STORE, text.as_bytes());
}

/// Owner, group, permission bits and kind of what the union shows.
fn shown(u: &Union, path: &str) -> (u32, u32, u32, Kind) {
    let stat = u.stat(path).unwrap();
    (stat.uid, stat.gid, stat.mode & 0o7777, stat.kind())
}

/// What the upper says of an object.
fn said(u: &Union, path: &str) -> String {
    String::from_utf8(disk_xattr(&u.upper_path(path), STORE).unwrap()).unwrap()
}

/// What an object in the upper really is: permission bits, owner.
fn really(u: &Union, path: &str) -> (u32, u32) {
    let meta = fs::symlink_metadata(u.upper_path(path)).unwrap();
    (meta.mode() & 0o7777, meta.uid())
}

fn own(u: &Union, path: &str, uid: u32, gid: u32) {
    u.set(path, &SetAttr { uid: Some(uid), gid: Some(gid), ..NOTHING }).unwrap();
}

#[test]
fn what_a_store_wrote_is_shown() {
    let layers = store("f = 1\n d/x = 1\n null = x\n disk = x\n pipe = x\n sock = x\n plain = 1\n link -> f");
    for (name, text) in [
        ("f", "1:2:04755:file"),
        ("d", "3:4:01777:dir"),
        ("null", "0:0:0666:char-1-3"),
        ("disk", "0:6:0660:block-8-1"),
        ("pipe", "7:7:0600:pipe"),
        ("sock", "0:0:0755:socket"),
    ] {
        say(&layers.lower(1, name), text);
    }
    let u = layers.open();
    assert_eq!(shown(&u, ""), (0, 0, 0o555, Kind::Dir));
    assert_eq!(shown(&u, "f"), (1, 2, 0o4755, Kind::File));
    assert_eq!(shown(&u, "d"), (3, 4, 0o1777, Kind::Dir));
    assert_eq!(shown(&u, "null"), (0, 0, 0o666, Kind::Char));
    assert_eq!(u.stat("null").unwrap().rdev, make_dev(1, 3));
    assert_eq!((shown(&u, "disk"), u.stat("disk").unwrap().rdev), ((0, 6, 0o660, Kind::Block), make_dev(8, 1)));
    assert_eq!(
        (shown(&u, "pipe").3, shown(&u, "sock").3, shown(&u, "link").3),
        (Kind::Fifo, Kind::Socket, Kind::Symlink)
    );
    // Numbers and kinds are those of the lookup in every listing.
    assert_eq!(u.list(""), ["d", "disk", "f", "link", "null", "pipe", "plain", "sock"]);
    let own = fs::metadata(u.lower(1, "plain")).unwrap();
    assert_eq!((shown(&u, "plain").0, shown(&u, "plain").2), (own.uid(), own.mode() & 0o7777));
    assert_eq!(u.read("f").unwrap(), "1");
}

#[test]
fn only_layers_whose_root_says_so_are_read_so() {
    let mut layers = Layers::of(&["a = 1", "b = 1"]);
    layers.config.permissions = Permissions::User;
    say(&layers.lower(2, ""), "0:0:0755:dir");
    say(&layers.lower(1, "a"), "77:77:0700:file");
    say(&layers.lower(2, "b"), "77:77:0700:file");
    let u = layers.open();
    assert_ne!(shown(&u, "a").0, 77);
    assert_eq!(shown(&u, "b").0, 77);
    // The root of the union is the upper's, and looks as the lower's that says something.
    assert_eq!((said(&u, ""), shown(&u, "").2), ("0:0:0755:dir".into(), 0o755));
    let plain = Layers::of(&["f = 1"]);
    say(&plain.lower(1, ""), "77:77:0700:dir");
    say(&plain.lower(1, "f"), "77:77:0700:file");
    assert_ne!(shown(&plain.open(), "f").0, 77, "nothing is read without the option");
}

#[test]
fn owner_and_mode_are_changed_in_the_attribute_alone() {
    let layers = store("f = 1\n d/x = 1");
    say(&layers.lower(1, "f"), "1:2:0644:file");
    let u = layers.open();
    assert_eq!(u.chmod("f", 0o4755).unwrap().mode & 0o7777, 0o4755);
    assert_eq!((said(&u, "f"), really(&u, "f").0), ("1:2:4755:file".into(), 0o600));
    own(&u, "f", 100_000, 5);
    assert_eq!(shown(&u, "f"), (100_000, 5, 0o755, Kind::File), "suid goes with a change of owner");
    own(&u, "d", 9, 9);
    u.chmod("d", 0).unwrap();
    assert_eq!((said(&u, "d"), really(&u, "d").0), ("9:9:0000:dir".into(), 0o700));
    assert_eq!(u.read("d/x").unwrap(), "1");
    u.chmod("f", 0).unwrap();
    u.append("f", "2").unwrap();
    assert_eq!(u.read("f").unwrap(), "12", "a mode that shuts everybody out shuts the server out of nothing");
    let u = u.reopen();
    assert_eq!((shown(&u, "f"), shown(&u, "d")), ((100_000, 5, 0, Kind::File), (9, 9, 0, Kind::Dir)));
}

#[test]
fn what_is_made_says_what_it_is() {
    let u = store("d/x = 1").open();
    let dir = u.at("d").unwrap();
    let by = Caller { uid: 42, gid: 43, pid: 1, umask: 0o027 };
    for (name, mode, rdev) in [
        ("file", libc::S_IFREG | 0o6777, 0),
        ("null", libc::S_IFCHR | 0o666, make_dev(1, 3)),
        ("disk", libc::S_IFBLK | 0o660, make_dev(259, 70_000)),
        ("pipe", libc::S_IFIFO | 0o666, 0),
        ("sock", libc::S_IFSOCK | 0o777, 0),
    ] {
        let made = u.met(u.overlay.mknod(&by, dir, OsStr::new(name), mode, rdev).unwrap());
        assert_eq!((made.attr.uid, made.attr.gid, made.attr.rdev), (42, 43, rdev), "{name}");
        assert_eq!(made.attr.mode, mode & !0o027, "{name}");
        assert_eq!(really(&u, &format!("d/{name}")), (0o600, caller().uid), "{name}");
    }
    u.met(u.overlay.mkdir(&by, dir, OsStr::new("sub"), 0o1777).unwrap());
    u.met(u.overlay.symlink(&by, dir, OsStr::new("link"), OsStr::new("x")).unwrap());
    assert_eq!(said(&u, "d/file"), "42:43:6750:file");
    assert_eq!(said(&u, "d/null"), "42:43:0640:char-1-3");
    assert_eq!(said(&u, "d/disk"), "42:43:0640:block-259-70000");
    assert_eq!(said(&u, "d/pipe"), "42:43:0640:pipe");
    assert_eq!(said(&u, "d/sock"), "42:43:0750:socket");
    assert_eq!((said(&u, "d/sub"), really(&u, "d/sub").0), ("42:43:1750:dir".into(), 0o700));
    assert_eq!(u.overlay.mknod(&by, dir, OsStr::new("white"), libc::S_IFCHR, 0).err(), Some(Errno::EPERM));
    let nameless = u.met(u.overlay.tmpfile(&by, dir, 0o666).unwrap());
    assert_eq!((nameless.attr.uid, nameless.attr.mode & 0o7777), (42, 0o640));
    u.link("d/null", "d/other").unwrap();
    let u = u.reopen();
    assert_eq!((shown(&u, "d/other"), u.stat("d/other").unwrap().rdev), ((42, 43, 0o640, Kind::Char), make_dev(1, 3)));
    assert_eq!(u.list("d"), ["disk", "file", "link", "null", "other", "pipe", "sock", "sub", "x"]);
}

#[test]
fn groups_are_inherited_from_what_a_directory_says() {
    let layers = store("d/x = 1");
    say(&layers.lower(1, "d"), "0:50:2775:dir");
    let u = layers.open();
    let by = Caller { uid: 42, gid: 43, pid: 1, umask: 0o022 };
    let dir = u.at("d").unwrap();
    u.met(u.overlay.mkdir(&by, dir, OsStr::new("sub"), 0o777).unwrap());
    u.met(u.overlay.mknod(&by, dir, OsStr::new("f"), libc::S_IFREG | 0o666, 0).unwrap());
    let nameless = u.met(u.overlay.tmpfile(&by, dir, 0o600).unwrap());
    assert_eq!((said(&u, "d/sub"), said(&u, "d/f")), ("42:50:2755:dir".into(), "42:50:0644:file".into()));
    assert_eq!(nameless.attr.gid, 50);
}

#[test]
fn a_copy_up_takes_along_what_was_said() {
    let layers = store("d/f = 1\n null = x\n pipe = x\n link -> f\n plain = 1");
    for (name, text) in
        [("d", "3:4:0700:dir"), ("d/f", "1:2:4755:file"), ("null", "0:0:0666:char-1-3"), ("pipe", "7:7:0600:pipe")]
    {
        say(&layers.lower(1, name), text);
    }
    let u = layers.open();
    u.append("d/f", "2").unwrap();
    u.set("null", &SetAttr { gid: Some(9), ..NOTHING }).unwrap();
    u.rename("pipe", "d/pipe").unwrap();
    u.rename("link", "d/link").unwrap();
    u.chmod("plain", 0o640).unwrap();
    assert_eq!((said(&u, "d"), said(&u, "d/f")), ("3:4:0700:dir".into(), "1:2:4755:file".into()));
    assert_eq!((said(&u, "null"), said(&u, "d/pipe")), ("0:9:0666:char-1-3".into(), "7:7:0600:pipe".into()));
    let (uid, gid) = (caller().uid, caller().gid);
    assert_eq!(said(&u, "plain"), format!("{uid}:{gid}:0640:file"));
    let u = u.reopen();
    assert_eq!(shown(&u, "null"), (0, 9, 0o666, Kind::Char));
    assert_eq!(shown(&u, "d/f"), (1, 2, 0o4755, Kind::File));
    assert_eq!(u.read("d/f").unwrap(), "12");
}

#[test]
fn a_directory_that_is_replaced_by_an_empty_one_stays_what_it_said() {
    let layers = store("a/x = 1\n b/y = 1");
    say(&layers.lower(1, "b"), "5:6:0711:dir");
    let u = layers.open();
    u.unlink("b/y").unwrap();
    u.mkdir("new").unwrap();
    own(&u, "new", 8, 8);
    u.rename("new", "b").unwrap();
    assert_eq!(shown(&u, "b").0, 8);
}

#[test]
fn bytes_that_make_no_sense_overrule_nothing() {
    let names: Vec<String> = (0..12).map(|n| format!("f{n}")).collect();
    let text: String = names.iter().map(|name| format!("{name} = 1\n")).collect();
    let layers = store(&format!("{text} d/x = 1"));
    let hostile: [&[u8]; 12] = [
        b"",
        b":::",
        b"0:0",
        b"-1:0:0755",
        b"0:0:99999999999:file",
        b"0:0:0755:dir",
        b"0:0:0755:symlink",
        b"0:0:0755:char-0-0",
        b"\xff\xfe",
        &[b'0'; 1024],
        b"0:0:0755:file\n",
        b"%n:%n:%n",
    ];
    for (name, bytes) in names.iter().zip(hostile) {
        set_disk_xattr(&layers.lower(1, name), STORE, bytes);
        fs::set_permissions(layers.lower(1, name), fs::Permissions::from_mode(0o640)).unwrap();
    }
    set_disk_xattr(&layers.lower(1, "d"), STORE, b"0:0:0755:file");
    let u = layers.open();
    for name in &names {
        assert_eq!((shown(&u, name).2, shown(&u, name).3), (0o640, Kind::File), "{name}");
        assert_eq!(u.read(name).unwrap(), "1");
        // And the copy says what was shown.
        u.chmod(name, 0o600).unwrap();
        assert_eq!(shown(&u, name).2, 0o600, "{name}");
    }
    assert_eq!(shown(&u, "d").3, Kind::Dir);
    u.create("d/y", "").unwrap();
    assert_eq!(u.list("d"), ["x", "y"]);
}

#[test]
fn callers_can_neither_read_nor_write_what_overrules() {
    let layers = store("f = 1");
    say(&layers.lower(1, "f"), "1:2:0644:file");
    let u = layers.open();
    let id = u.at("f").unwrap();
    let names = [STORE, "user.fuseoverlayfs.override_stat", "user.containers.override_stat2", KEPT];
    for upper in [false, true] {
        if upper {
            u.append("f", "2").unwrap();
        }
        for name in names.map(OsStr::new) {
            assert_eq!(u.overlay.setxattr(id, name, b"0:0:4755:file", 0), Err(Errno::EPERM), "{name:?}");
            assert_eq!(u.overlay.getxattr(id, name), Err(Errno::ENODATA), "{name:?}");
            assert_eq!(u.overlay.removexattr(&caller(), id, name), Err(Errno::ENODATA), "{name:?}");
        }
        assert_eq!(u.overlay.listxattr(&caller(), id).unwrap(), b"", "upper: {upper}");
        assert_eq!(shown(&u, "f"), (1, 2, 0o644, Kind::File));
    }
    let acl = OsStr::new(ACL_ACCESS);
    assert_eq!(u.overlay.setxattr(id, acl, &[2, 0, 0, 0], 0), Err(Errno::ENOTSUP));
    assert_eq!(u.overlay.getxattr(id, acl), Err(Errno::ENODATA));
}

#[test]
fn security_attributes_are_kept_under_a_name_that_a_user_can_write() {
    let layers = store("f = 1\n g = 1\n h = 1\n w = 1");
    let value = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for name in ["f", "h", "w"] {
        set_disk_xattr(&layers.lower(1, name), KEPT, value);
    }
    let u = layers.open();
    let name = OsStr::new(CAPABILITY);
    let get = |path: &str| u.overlay.getxattr(u.at(path).unwrap(), name);
    let list = |path: &str| u.overlay.listxattr(&caller(), u.at(path).unwrap()).unwrap();
    assert_eq!((get("f").unwrap(), get("g")), (value.to_vec(), Err(Errno::ENODATA)));
    assert_eq!(list("f"), [CAPABILITY.as_bytes(), b"\0"].concat());
    // Copied up with the rest; gone with a write and with a change of owner, as the kernel has it.
    u.chmod("f", 0o755).unwrap();
    assert_eq!(disk_xattr(&u.upper_path("f"), KEPT).unwrap(), value);
    u.append("f", "2").unwrap();
    assert_eq!((get("f"), disk_xattr(&u.upper_path("f"), KEPT)), (Err(Errno::ENODATA), None));
    own(&u, "h", 1, 1);
    u.truncate("w", 0).unwrap();
    assert_eq!((get("h"), get("w")), (Err(Errno::ENODATA), Err(Errno::ENODATA)));
    let id = u.at("g").unwrap();
    u.overlay.setxattr(id, name, value, 0).unwrap();
    assert_eq!((get("g").unwrap(), disk_xattr(&u.upper_path("g"), CAPABILITY)), (value.to_vec(), None));
    u.overlay.removexattr(&caller(), id, name).unwrap();
    assert_eq!((list("g"), disk_xattr(&u.upper_path("g"), KEPT)), (Vec::new(), None));
}

#[test]
fn a_write_by_another_takes_suid_from_what_is_said() {
    let layers = store("f = 1");
    say(&layers.lower(1, "f"), "0:0:6755:file");
    let u = layers.open();
    let other = Caller { uid: 42, gid: 42, pid: 1, umask: 0 };
    u.overlay.write(u.at("f").unwrap(), 0, b"2", Privileges::Kill(other)).unwrap();
    assert_eq!((said(&u, "f"), really(&u, "f").0), ("0:0:0755:file".into(), 0o600));
}

#[test]
fn the_older_name_of_fuse_overlayfs_is_read_and_written_where_it_is_in_use() {
    let old = "user.fuseoverlayfs.override_stat";
    let mut layers = Layers::of(&["f = 1"]);
    layers.config.permissions = Permissions::User;
    for path in [layers.upper_path(""), layers.lower(1, "")] {
        set_disk_xattr(&path, old, b"0:0:755");
    }
    set_disk_xattr(&layers.lower(1, "f"), old, b"1:2:644");
    let u = layers.open();
    assert_eq!(shown(&u, "f"), (1, 2, 0o644, Kind::File));
    u.chmod("f", 0o600).unwrap();
    assert_eq!(disk_xattr(&u.upper_path("f"), old).unwrap(), b"1:2:0600:file");
    assert_eq!(disk_xattr(&u.upper_path("f"), STORE), None);
}

#[test]
fn the_privileged_form_lies_in_the_security_namespace() {
    need!(is_root(), "not root: security attributes cannot be set");
    let name = "security.fuseoverlayfs.override_stat";
    let mut layers = Layers::of(&["f = 1"]);
    layers.config.permissions = Permissions::Privileged;
    set_disk_xattr(&layers.lower(1, ""), name, b"0:0:0755:dir");
    set_disk_xattr(&layers.lower(1, "f"), name, b"1:2:0644:file");
    set_disk_xattr(&layers.lower(1, "f"), CAPABILITY, b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let u = layers.open();
    let id = u.at("f").unwrap();
    assert_eq!(shown(&u, "f"), (1, 2, 0o644, Kind::File));
    assert_eq!(u.overlay.listxattr(&caller(), id).unwrap(), b"security.capability\0");
    assert_eq!(u.overlay.setxattr(id, OsStr::new(name), b"0:0:4755", 0), Err(Errno::EPERM));
    u.chmod("f", 0o600).unwrap();
    assert_eq!(disk_xattr(&u.upper_path("f"), name).unwrap(), b"1:2:0600:file");
    assert!(disk_xattr(&u.upper_path("f"), CAPABILITY).is_some());
    u.append("f", "2").unwrap();
    assert_eq!(disk_xattr(&u.upper_path("f"), CAPABILITY), None);
}

#[test]
fn plain_listings_tell_kinds_as_lookups_do() {
    let layers = store("d/null = x\n d/f = 1");
    say(&layers.lower(1, "d/null"), "0:0:0666:char-1-3");
    let u = layers.open();
    describe(&u.upper_path(""), "other = 1");
    let mut kinds = Vec::new();
    u.overlay
        .readdir(u.at("d").unwrap(), 0, &mut |entry| {
            kinds.push((entry.name.to_owned(), entry.kind));
            Room::Taken
        })
        .unwrap();
    assert!(kinds.contains(&("null".into(), Kind::Char)) && kinds.contains(&("f".into(), Kind::File)));
}

#[test]
fn without_the_option_a_layer_is_what_its_root_says_as_far_as_that_may_be_believed() {
    let asked = |name: &str| {
        let layers = Layers::of(&["f = 1"]);
        set_disk_xattr(&layers.lower(1, ""), name, b"0:0:0755:dir");
        set_disk_xattr(&layers.lower(1, "f"), name, b"1:2:0604:file");
        let u = layers.open();
        assert_eq!(u.overlay.overrides_owners(), shown(&u, "f") == (1, 2, 0o604, Kind::File), "{name}");
        u.overlay.overrides_owners()
    };
    // Whoever owns a layer could otherwise make programs of root's in a mount that root makes.
    assert_eq!((asked(STORE), asked("user.fuseoverlayfs.override_stat")), (!is_root(), !is_root()));
    if is_root() {
        assert!(asked("security.fuseoverlayfs.override_stat"));
    }
}
