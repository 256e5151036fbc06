//! Attributes and their changes.

use std::fs;
use std::os::unix::fs::MetadataExt;

use plyfs::errno::Errno;
use plyfs::overlay::{Privileges, SetAttr};
use plyfs::sys::{SetTime, Time};

use crate::fixture::{Layers, union};
use crate::need;
use crate::support::is_root;
use crate::vfs::{NOTHING, caller};

#[test]
fn times_are_set_to_the_nanosecond_and_left_alone_where_omitted() {
    let u = union(&["f = 1"]);
    let then = |sec, nsec| SetTime::At(Time { sec, nsec });
    let stat = u.set("f", &SetAttr { atime: then(10, 11), mtime: then(-12, 13), ..NOTHING }).unwrap();
    assert_eq!((stat.atime, stat.mtime), (Time { sec: 10, nsec: 11 }, Time { sec: -12, nsec: 13 }));
    let stat = u.set("f", &SetAttr { mtime: then(20, 999_999_999), ..NOTHING }).unwrap();
    assert_eq!((stat.atime, stat.mtime), (Time { sec: 10, nsec: 11 }, Time { sec: 20, nsec: 999_999_999 }));
    let stat = u.set("f", &SetAttr { atime: SetTime::Now, ..NOTHING }).unwrap();
    assert!(stat.atime.sec > 1_000_000_000 && stat.mtime.sec == 20);
    assert_eq!(fs::metadata(u.upper_path("f")).unwrap().mtime_nsec(), 999_999_999);
}

#[test]
fn modes_of_files_and_directories_change_in_the_upper_only() {
    let u = union(&["d/f = 1"]);
    let lower = fs::metadata(u.lower(1, "d/f")).unwrap().mode();
    assert_eq!(u.chmod("d/f", 0o4711).unwrap().mode, libc::S_IFREG | 0o4711);
    assert_eq!(u.chmod("d", 0o1700).unwrap().mode, libc::S_IFDIR | 0o1700);
    assert_eq!(fs::metadata(u.lower(1, "d/f")).unwrap().mode(), lower);
    assert_eq!(fs::metadata(u.upper_path("d/f")).unwrap().mode() & 0o7777, 0o4711);
    u.shows("d/f = 1");
}

#[test]
fn owners_change() {
    need!(is_root(), "only root gives files away");
    let u = union(&["d/f = 1\n l -> x"]);
    for path in ["d/f", "d", "l"] {
        let stat = u.set(path, &SetAttr { uid: Some(11), ..NOTHING }).unwrap();
        assert_eq!((stat.uid, stat.gid), (11, 0), "{path}");
        let stat = u.set(path, &SetAttr { gid: Some(12), ..NOTHING }).unwrap();
        assert_eq!((stat.uid, stat.gid), (11, 12), "{path}");
        assert_eq!(fs::symlink_metadata(u.upper_path(path)).unwrap().uid(), 11);
    }
}

#[test]
fn sizes_are_for_files() {
    let u = union(&["d/f = 1\n l -> x"]);
    assert_eq!(u.truncate("d", 0).err(), Some(Errno::EISDIR));
    assert_eq!(u.truncate("l", 0).err(), Some(Errno::EINVAL));
    u.upper_holds("");
    let stat = u.truncate("d/f", 1 << 20).unwrap();
    assert_eq!(stat.size, 1 << 20);
    assert!(stat.blocks < 64);
}

#[test]
fn a_write_or_cut_by_others_takes_privileges_away() {
    let u = union(&["w = 1\n t = 1\n kept = 1\n locking = 1"]);
    for name in ["w", "t", "kept"] {
        u.chmod(name, 0o6755).unwrap();
    }
    u.chmod("locking", 0o6645).unwrap();
    let mode = |name: &str| u.stat(name).unwrap().mode & 0o7777;
    for name in ["w", "locking"] {
        u.overlay.write(u.at(name).unwrap(), 0, b"x", Privileges::Kill(caller())).unwrap();
    }
    u.set("t", &SetAttr { size: Some(0), privileges: Privileges::Kill(caller()), ..NOTHING }).unwrap();
    u.put(u.at("kept").unwrap(), 0, b"x").unwrap();
    assert_eq!(mode("w"), 0o755);
    assert_eq!(mode("t"), 0o755);
    assert_eq!(mode("locking"), 0o2645, "sgid without group execution is a mark for locking");
    if is_root() {
        assert_eq!(mode("kept"), 0o6755);
    }
}

#[test]
fn a_write_drops_a_capability() {
    need!(is_root(), "only root sets capabilities");
    let layers = Layers::of(&["f = 1"]);
    let caps = [0x01, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    crate::fixture::set_disk_xattr(&layers.lower(1, "f"), "security.capability", &caps);
    let u = layers.open();
    let id = u.at("f").unwrap();
    let name = std::ffi::OsStr::new("security.capability");
    assert_eq!(u.overlay.getxattr(id, name).unwrap(), caps);
    u.chmod("f", 0o755).unwrap();
    assert_eq!(u.overlay.getxattr(id, name).unwrap(), caps);
    u.append("f", "2").unwrap();
    assert_eq!(u.overlay.getxattr(id, name), Err(Errno::ENODATA));
}

#[test]
fn a_forgotten_number_is_stale() {
    let u = union(&["f = 1"]);
    let id = u.at("f").unwrap();
    u.forget_all();
    assert_eq!(u.overlay.getattr(id).err(), Some(Errno::ESTALE));
    assert_eq!(u.overlay.read(id, 0, &mut [0; 1]), Err(Errno::ESTALE));
    assert_ne!(u.at("f").unwrap(), id, "a number is never used twice");
}

#[test]
fn what_was_replaced_behind_the_mount_is_stale_and_found_anew() {
    let u = union(&["f = old"]);
    let id = u.at("f").unwrap();
    fs::write(u.lower(1, "other"), "new").unwrap();
    fs::rename(u.lower(1, "other"), u.lower(1, "f")).unwrap();
    assert_eq!(u.overlay.getattr(id).err(), Some(Errno::ESTALE));
    assert_ne!(u.at("f").unwrap(), id);
    assert_eq!(u.read("f").unwrap(), "new");
}

/// A kernel that gathers writes sends the time of a file with each change of its names, too.
#[test]
fn a_time_that_was_kept_is_written_back_only_where_it_differs() {
    let u = Layers::of(&["low = l\ngone = g"]).upper("up = u").open();
    let then = SetTime::At(Time { sec: 1_000_000_000, nsec: 5 });
    let back = |mtime| SetAttr { mtime, from_cache: true, ..NOTHING };
    let same = |path: &str| SetTime::At(u.stat(path).unwrap().mtime);
    // Nothing is copied up for a time that is there already.
    u.set("low", &back(same("low"))).unwrap();
    assert!(!u.upper_path("low").exists());
    // A file that is open and has no name any more gets no copy.
    let gone = u.at("gone").unwrap();
    u.unlink("gone").unwrap();
    u.overlay.setattr(&caller(), gone, &back(then)).unwrap();
    assert!(u.overlay.getattr(gone).is_ok());
    // One that was written to gets its time.
    assert_eq!(u.set("up", &back(then)).unwrap().mtime.sec, 1_000_000_000);
    assert_eq!(u.set("low", &back(then)).unwrap().mtime.nsec, 5);
}
