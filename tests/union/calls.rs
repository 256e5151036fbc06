//! Which system calls an operation on names makes: those that do it, and those that tell what the reply says. Each more is
//! paid by every caller.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::sync::Arc;
use std::time::Duration;

use plyfs::errno::Errno;
use plyfs::overlay::{Caller, Dirent, Entry, Listener, NodeId, Overlay, Privileges, Rename, Room, SetAttr};
use plyfs::sys::faults::{self, Fault};

use crate::fixture::Layers;
use crate::vfs::{NOTHING, caller};

struct Nobody;

impl Listener for Nobody {
    fn name_changed(&self, _parent: NodeId, _name: &OsStr) {}
    fn object_changed(&self, _node: NodeId) {}
    fn attributes_changed(&self, _node: NodeId) {}
}

/// A union that is watched, as a mounted one is.
fn watched(layers: &Layers) -> Arc<Overlay> {
    let overlay = Arc::new(Overlay::new(&layers.config).unwrap());
    overlay.watch(Nobody).unwrap();
    overlay
}

fn calls<T>(operation: impl FnOnce() -> T) -> (T, Vec<&'static str>) {
    faults::arm(0, Fault::Frozen);
    let result = operation();
    (result, faults::disarm())
}

fn named(name: &str) -> &OsStr {
    OsStr::new(name)
}

const FILE: u32 = libc::S_IFREG | 0o644;

#[test]
fn names_come_and_go_with_no_look_at_their_directory() {
    let layers = Layers::of(&["l = 1"]).volatile();
    let u = watched(&layers);
    let above = u.mkdir(&caller(), u.root(), named("above"), 0o755).unwrap().id;
    // New, of the upper alone, and watched as one is that is worked in.
    let dir = u.mkdir(&caller(), above, named("dir"), 0o755).unwrap().id;
    u.lookup(&caller(), dir, named("none")).unwrap_err();
    u.mknod(&caller(), dir, named("first"), FILE, 0).unwrap();
    u.rename(&caller(), (dir, named("first")), (dir, named("second")), Rename::Replace).unwrap();
    let made = |name: &str| calls(|| u.mknod(&caller(), dir, named(name), FILE, 0).unwrap().id);
    let (file, seen) = made("a");
    assert_eq!(seen, ["openat", "statx"]);
    let (_, seen) = calls(|| u.rename(&caller(), (dir, named("a")), (dir, named("b")), Rename::Replace).unwrap());
    assert_eq!(seen, ["statx", "statx", "renameat2"]);
    let (_, seen) = calls(|| u.unlink(&caller(), dir, named("b")).unwrap());
    assert_eq!(seen, ["statx", "unlinkat"]);
    u.forget(file, 1);
    let (_, seen) = calls(|| u.mkdir(&caller(), dir, named("d"), 0o755).unwrap());
    assert_eq!(seen, ["mkdirat", "statx"]);
    // Opened, for whoever is in it.
    let (_, seen) = calls(|| u.rmdir(&caller(), dir, named("d")).unwrap());
    assert_eq!(seen, ["statx", "openat", "rmdir"]);
}

#[test]
fn a_new_file_is_known_to_have_no_capability() {
    let layers = Layers::of(&["l = 1"]).volatile();
    let u = watched(&layers);
    u.lookup(&caller(), u.root(), named("none")).unwrap_err();
    let file = u.mknod(&caller(), u.root(), named("new"), FILE, 0).unwrap().id;
    let capability = named("security.capability");
    let (answer, seen) = calls(|| u.getxattr(file, capability));
    assert_eq!((answer.unwrap_err(), seen.len()), (Errno::ENODATA, 0));
    // That it has no others is not known.
    assert_eq!(calls(|| u.getxattr(file, named("user.a"))).1, ["listxattr"]);
}

#[test]
fn a_write_of_another_than_root_asks_once_whether_there_is_suid() {
    let layers = Layers::of(&["l = 1"]).volatile();
    let u = watched(&layers);
    u.lookup(&caller(), u.root(), named("none")).unwrap_err();
    let file = u.mknod(&caller(), u.root(), named("new"), FILE | 0o111, 0).unwrap().id;
    let write = |kill| calls(|| u.write(file, 0, b"text", kill).unwrap()).1;
    let kill = || Privileges::Kill(Caller { uid: 12345, gid: 12345, pid: 1, umask: 0 });
    let on_disk = || fs::metadata(layers.upper_path("new")).unwrap();
    assert_eq!(write(kill()), ["pwrite", "statx"]);
    // It comes through the mount, and goes with the next write, before it.
    u.setattr(&caller(), file, &SetAttr { mode: Some(0o4755), ..NOTHING }).unwrap();
    let seen = write(kill());
    assert_eq!(seen, ["statx", "fchmodat2", "pwrite", "statx"]);
    assert_eq!(on_disk().mode() & 0o7777, 0o755);
    // What was found out is known the next time, and the one after.
    assert_eq!(write(kill()), ["statx", "pwrite", "statx"]);
    assert_eq!(write(kill()), ["pwrite", "statx"]);
    // It comes behind the mount, so that nobody has heard of it yet.
    fs::set_permissions(layers.upper_path("new"), fs::Permissions::from_mode(0o6755)).unwrap();
    write(kill());
    assert_eq!(on_disk().mode() & 0o7777, 0o755);
    write(kill());
    assert_eq!(write(kill()), ["pwrite", "statx"]);
    // Another name may be changed where nobody looks.
    u.link(&caller(), file, u.root(), named("other")).unwrap();
    assert_eq!(write(kill()), ["statx", "pwrite", "statx"]);
    assert_eq!(write(kill()), ["statx", "pwrite", "statx"]);
    assert_eq!(write(Privileges::Keep), ["pwrite", "statx"]);
}

#[test]
fn whiteouts_are_names_of_one_inode() {
    let layers = Layers::of(&["d/a = 1\n d/b = 1\n d/c = 1\n d/d = 1"]).volatile();
    let u = watched(&layers);
    let d = u.lookup(&caller(), u.root(), named("d")).unwrap().id;
    u.unlink(&caller(), d, named("a")).unwrap();
    let (_, seen) = calls(|| u.unlink(&caller(), d, named("b")).unwrap());
    assert_eq!(seen, ["statx", "statx", "linkat"]);
    let inode = |name: &str| fs::symlink_metadata(layers.upper_path("d").join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("b"));
    // Where no name is left of it there is another.
    for name in ["a", "b"] {
        u.mknod(&caller(), d, named(name), FILE, 0).unwrap();
    }
    u.unlink(&caller(), d, named("c")).unwrap();
    u.unlink(&caller(), d, named("d")).unwrap();
    assert_eq!(inode("c"), inode("d"));
}

#[test]
fn a_known_lower_file_is_not_looked_for_when_it_goes() {
    let layers = Layers::of(&["d/x = 1", "d/x = 1", "d/a = 1\n d/b = 1\n d/c = 1\n d/e = 1"]).volatile();
    let u = watched(&layers);
    let d = u.lookup(&caller(), u.root(), named("d")).unwrap().id;
    u.unlink(&caller(), d, named("a")).unwrap();
    for name in ["b", "c", "e"] {
        u.lookup(&caller(), d, named(name)).unwrap();
    }
    // It is kept open, for whoever has it open.
    let (_, seen) = calls(|| u.unlink(&caller(), d, named("b")).unwrap());
    assert_eq!(seen, ["openat", "linkat"]);
    assert_eq!(u.unlink(&caller(), d, named("b")), Err(Errno::ENOENT));
    // What came to the upper behind the mount goes, too, and no lower shows for it.
    let upper = |name: &str| layers.upper_path("d").join(name);
    let is_whiteout = |name: &str| fs::symlink_metadata(upper(name)).unwrap().file_type().is_char_device();
    fs::write(upper("c"), "new").unwrap();
    u.unlink(&caller(), d, named("c")).unwrap();
    assert!(is_whiteout("c"));
    fs::hard_link(upper("b"), upper("e")).unwrap();
    assert_eq!(u.unlink(&caller(), d, named("e")), Err(Errno::ENOENT));
    assert!(is_whiteout("e"));
}

#[test]
fn a_copy_is_looked_at_once() {
    let layers = Layers::of(&["d/a = 1\n d/b = 1"]).volatile();
    let u = watched(&layers);
    let d = u.lookup(&caller(), u.root(), named("d")).unwrap().id;
    let change = |name: &str| {
        let file = u.lookup(&caller(), d, named(name)).unwrap().id;
        calls(|| u.setattr(&caller(), file, &SetAttr { mode: Some(0o600), ..NOTHING }).unwrap()).1
    };
    change("a");
    let count = |seen: &[&str], call: &str| seen.iter().filter(|name| **name == call).count();
    let seen = change("b");
    // The lower file, the copy, its directory before and after, and the result.
    assert_eq!(count(&seen, "statx"), 5, "{seen:?}");
    assert_eq!((count(&seen, "fchmodat2"), count(&seen, "open_by_handle_at")), (2, 0), "{seen:?}");
}

#[test]
fn where_a_listing_found_nothing_nobody_looks() {
    let looks = |between: usize| {
        let mut texts = vec!["d/sub/a = 1"];
        texts.extend(vec!["d/other = 1"; between]);
        texts.push("d/sub/b = 1");
        let layers = Layers::of(&texts).volatile();
        let u = watched(&layers);
        let d = u.lookup(&caller(), u.root(), named("d")).unwrap().id;
        let mut entered = Vec::new();
        let (_, seen) = calls(|| {
            let mut each = |dirent: &Dirent<'_>, entry: Option<&Entry>| {
                entered.extend(entry.map(|entry| (dirent.name.to_owned(), entry.id)));
            };
            u.readdirplus(&caller(), d, 0, &mut |_| Room::Taken, &mut each).unwrap();
        });
        let sub = entered.iter().find(|(name, _)| name == "sub").unwrap().1;
        for name in ["a", "b"] {
            u.lookup(&caller(), sub, named(name)).unwrap();
        }
        seen.iter().filter(|call| **call == "statx").count()
    };
    assert_eq!(looks(1), looks(20));
}

/// What `benches/README.md` says that an operation takes in system calls.
fn told(operation: &str) -> usize {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/README.md")).unwrap();
    let text = text.replace('`', "");
    let row = text.lines().find(|line| line.starts_with(&format!("| {operation} |"))).expect(operation);
    row.trim_end_matches(" |").rsplit("| ").next().unwrap().parse().expect(row)
}

#[test]
fn operations_take_as_many_system_calls_as_is_told() {
    let layers = Layers::of(&["d/a = 1\n d/b = 1\n d/c = 1"]).volatile();
    let u = watched(&layers);
    let d = u.lookup(&caller(), u.root(), named("d")).unwrap().id;
    // What comes once: the copy of the directory, its watches, the first whiteout.
    u.unlink(&caller(), d, named("a")).unwrap();
    u.lookup(&caller(), d, named("none")).unwrap_err();
    let look_up = |name: &str| u.lookup(&caller(), d, named(name)).map(|entry| entry.id);
    // The kernel asks whether the name is free, and for the attributes of a directory in which names were changed.
    let names = |name: Option<&str>, change: &dyn Fn()| {
        name.map(look_up).inspect(|found| assert_eq!(*found, Err(Errno::ENOENT)));
        change();
        u.getattr(d).unwrap();
    };
    let make = |name: &str| u.mknod(&caller(), d, named(name), FILE, 0).unwrap().id;
    let write = |id| {
        u.getxattr(id, named("security.capability")).unwrap_err();
        u.write(id, 0, b"text", Privileges::Kill(Caller { uid: 12345, ..caller() })).unwrap();
    };
    let chmod = |id| _ = u.setattr(&caller(), id, &SetAttr { mode: Some(0o600), ..NOTHING }).unwrap();
    let unlink = |name: &str| u.unlink(&caller(), d, named(name)).unwrap();
    let rename = |old: &str, new: &str| {
        u.rename(&caller(), (d, named(old)), (d, named(new)), Rename::Replace).unwrap();
    };
    let [b, c] = ["b", "c"].map(|name| look_up(name).unwrap());
    // Until the events of all that have been looked at, a directory that is changed is looked at, too.
    let settled = (0..100).any(|n| {
        std::thread::sleep(Duration::from_millis(20));
        calls(|| make(&format!("at{n}"))).1.len() == 2
    });
    assert!(settled);
    make("older");
    rename("older", "old");
    let file = make("file");

    // Each message is read and answered; of one that is forgotten the kernel only tells, and what was kept is closed.
    let count = |operation, messages: usize, forgotten: usize, done: &dyn Fn()| {
        let (_, seen) = calls(done);
        assert_eq!(2 * (messages + forgotten) + seen.len(), told(operation), "{operation}: {seen:?}");
    };
    count("open, read, close, for the first time", 1, 0, &|| assert_eq!(u.read(b, 0, &mut [0; 8]), Ok(1)));
    count("stat of a file that was just read", 1, 0, &|| _ = u.getattr(b).unwrap());
    count("create", 3, 0, &|| names(Some("m"), &|| _ = make("m")));
    count("create and write", 5, 0, &|| names(Some("w"), &|| write(make("w"))));
    count("mkdir", 3, 0, &|| names(Some("n"), &|| _ = u.mkdir(&caller(), d, named("n"), 0o755).unwrap()));
    count("chmod", 1, 0, &|| chmod(file));
    count("rename", 3, 0, &|| names(Some("new"), &|| rename("old", "new")));
    count("unlink", 2, 1, &|| names(None, &|| unlink("new")));
    count("unlink of a lower file", 2, 1, &|| names(None, &|| unlink("c")));
    u.forget(c, 1);
}
