//! Nothing leads out of the layers: not what is mounted inside one, not a symlink that takes the place of a directory while
//! an operation is under way, not a mark that a caller sets.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use plyfs::errno::Errno;
use plyfs::overlay::{NodeId, Rename, Room, SetAttr};
use plyfs::sys::{self, RenameFlags};
use rustix::fs::CWD;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::concurrency::in_time;
use crate::fixture::{Layers, description, set_disk_xattr};
use crate::need;
use crate::support::{is_root, skipped};
use crate::vfs::{NOTHING, caller};

/// One object mounted on another, until it is dropped.
struct Bind(PathBuf);

impl Bind {
    fn new(what: &Path, on: &Path) -> Option<Bind> {
        match mount_bind(what, on) {
            Ok(()) => Some(Bind(on.to_owned())),
            Err(errno) => {
                skipped(&format!("nothing can be mounted here: {errno}"));
                None
            }
        }
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

fn outside() -> tempfile::TempDir {
    let outside = tempfile::Builder::new().prefix("plyfs-outside-").tempdir().unwrap();
    fs::write(outside.path().join("f"), "secret").unwrap();
    fs::create_dir(outside.path().join("sub")).unwrap();
    fs::write(outside.path().join("sub/f"), "secret").unwrap();
    outside
}

#[test]
fn what_is_mounted_inside_a_lower_does_not_show() {
    need!(is_root(), "not root");
    let outside = outside();
    let layers = Layers::of(&["d/under = 1\n f = own\n late/under = 2"]);
    let Some(dir) = Bind::new(outside.path(), &layers.lower(1, "d")) else { return };
    let Some(file) = Bind::new(&outside.path().join("f"), &layers.lower(1, "f")) else { return };
    let u = layers.open();
    let Some(_late) = Bind::new(outside.path(), &u.lower(1, "late")) else { return };
    u.shows("d/under = 1\n f = own\n late/under = 2");
    u.append("d/under", "+").unwrap();
    u.append("f", "+").unwrap();
    u.upper_holds("d/under = 1+\n f = own+");
    // Before the layers, which could not be removed under them.
    drop((dir, file));
}

#[cfg(debug_assertions)]
#[test]
fn what_is_mounted_inside_a_layer_is_refused_where_it_cannot_be_looked_under() {
    need!(is_root(), "not root");
    let outside = outside();
    let layers = Layers::of(&["d/under = 1\n f = own\n g = 1"]).upper("up/under = 1");
    let Some(dir) = Bind::new(outside.path(), &layers.lower(1, "d")) else { return };
    let Some(file) = Bind::new(&outside.path().join("f"), &layers.lower(1, "f")) else { return };
    let Some(upper) = Bind::new(outside.path(), &layers.upper_path("up")) else { return };
    sys::faults::deny(Some(("open_tree", Errno::EPERM)));
    let u = layers.open();
    sys::faults::deny(None);
    for name in ["d", "f", "up"] {
        assert_eq!(u.lookup(u.overlay.root(), name).map(drop), Err(Errno::EXDEV), "{name}");
        assert_eq!(
            u.overlay.rename(&caller(), (1, name.as_ref()), (1, "n".as_ref()), Rename::Replace),
            Err(Errno::EXDEV)
        );
    }
    assert_eq!(u.read("g").unwrap(), "1");
    let mut names = Vec::new();
    u.overlay
        .readdir(u.overlay.root(), 0, &mut |entry| {
            names.push(entry.name.to_owned());
            Room::Taken
        })
        .unwrap();
    assert_eq!(names.len(), 6, "{names:?}");
    drop((dir, file, upper));
}

#[test]
fn a_lower_layer_cannot_be_written_to_even_by_mistake() {
    need!(is_root(), "not root");
    let u = Layers::of(&["d/f = 1"]).open();
    u.read("d/f").unwrap();
    let held = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| {
        let fd = fd.ok()?.path();
        let real = fs::metadata(u.lower(1, "d")).unwrap();
        use std::os::unix::fs::MetadataExt;
        let is_d = fs::metadata(&fd).is_ok_and(|found| (found.dev(), found.ino()) == (real.dev(), real.ino()));
        is_d.then_some(fd)
    });
    let tries: Vec<_> = held.map(|dir| fs::write(dir.join("new"), "x").unwrap_err().raw_os_error()).collect();
    assert!(!tries.is_empty() && tries.iter().all(|errno| *errno == Some(libc::EROFS)), "{tries:?}");
}

/// Somebody with the right to write to the layers puts symlinks that lead outside in the place of files and directories, and
/// moves directories about, while everything is asked of the union that it can do.
#[test]
fn a_racing_attacker_in_the_layers_leads_nobody_outside() {
    in_time(race);
}

fn race() {
    let outside = outside();
    let before = description(outside.path());
    let layers = Layers::of(&["d/f = own\n d/sub/f = own\n e/f = own\n e/sub/f = own"])
        .upper("d/up = own\n x/f = own\n x/sub/f = own\n")
        .volatile();
    for layer in [layers.lower(1, ""), layers.upper_path("")] {
        for (link, target) in [("l", ""), ("lf", "f"), ("ls", "sub")] {
            symlink(outside.path().join(target), layer.join(link)).unwrap();
        }
    }
    let u = layers.open();
    let (over, attacks, tries) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let end = Instant::now() + Duration::from_secs(3);
    std::thread::scope(|scope| {
        for layer in [u.lower(1, ""), u.upper_path("")] {
            let (over, attacks) = (&over, &attacks);
            scope.spawn(move || {
                let pairs = [
                    ("d", "l"),
                    ("d/f", "lf"),
                    ("x", "l"),
                    ("x/f", "lf"),
                    ("d/sub", "ls"),
                    ("d", "e"),
                    ("e/sub", "ls"),
                ];
                while !over.load(Relaxed) {
                    for (one, other) in pairs {
                        let (one, other) = (layer.join(one), layer.join(other));
                        let swap = || {
                            let flags = RenameFlags::EXCHANGE;
                            rustix::fs::renameat_with(CWD, &one, CWD, &other, flags).is_ok()
                        };
                        if swap() {
                            attacks.fetch_add(1, Relaxed);
                            std::thread::yield_now();
                            swap();
                        }
                    }
                }
            });
        }
        for n in 0..3 {
            let (u, over, tries) = (&u, &over, &tries);
            scope.spawn(move || {
                let mut step = n;
                while !over.load(Relaxed) {
                    step += 1;
                    victim(u, step);
                    tries.fetch_add(1, Relaxed);
                }
            });
        }
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        over.store(true, Relaxed);
    });
    println!("{} attacks, {} operations", attacks.load(Relaxed), tries.load(Relaxed));
    assert_eq!(description(outside.path()), before, "something outside was changed");
    // What the attacker did behind the union's back is undone by no rule: only the lookups are given back.
    u.forget_all();
}

/// One operation of each kind by names, which may fail in any way but must not reach what is outside.
fn victim(u: &crate::fixture::Union, step: usize) {
    let dirs = ["d", "x", "e", "d/sub", "e/sub", "l"];
    let dir = dirs[step % dirs.len()];
    let name = OsStr::new(["f", "new", "sub", "up"][step / dirs.len() % 4]);
    let Ok(parent) = u.at(dir) else { return };
    let file: Option<NodeId> = u.lookup(parent, name).ok().map(|entry| entry.id);
    if let Some(file) = file {
        if let Ok(text) = u.read_node(file) {
            assert!(!text.contains("secret"), "{dir}/{} was read outside", name.display());
        }
        u.put(file, 0, b"own").ok();
        u.overlay.setattr(&caller(), file, &SetAttr { mode: Some(0o644), ..NOTHING }).ok();
        u.overlay.setxattr(file, OsStr::new("user.k"), b"v", 0).ok();
    }
    u.overlay.readdir(parent, 0, &mut |_| Room::Taken).ok();
    match step % 5 {
        0 => drop(u.overlay.mknod(&caller(), parent, name, libc::S_IFREG | 0o644, 0).map(|entry| u.met(entry))),
        1 => drop(u.overlay.mkdir(&caller(), parent, name, 0o755).map(|entry| u.met(entry))),
        2 => drop(u.overlay.unlink(&caller(), parent, name)),
        3 => drop(u.overlay.rename(&caller(), (parent, name), (parent, OsStr::new("new")), Rename::Replace)),
        _ => drop(u.overlay.link(&caller(), file.unwrap_or(1), parent, OsStr::new("up")).map(|entry| u.met(entry))),
    }
}

#[test]
fn no_mark_can_be_set_through_the_union() {
    for mark in ["opaque", "redirect", "metacopy", "whiteout", "plain", "origin"] {
        for prefix in ["trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."] {
            if prefix.starts_with("trusted") && !is_root() {
                continue;
            }
            let u = Layers::of(&["d/f = lower\n secret/f = secret"]).upper("d/g = upper").open();
            let (d, name) = (u.at("d").unwrap(), format!("{prefix}{mark}"));
            let value: &[u8] = if mark == "redirect" { b"/secret" } else { b"y" };
            u.overlay.setxattr(d, name.as_ref(), value, 0).unwrap();
            assert_eq!(u.overlay.getxattr(d, name.as_ref()).unwrap(), value);
            let listed = u.overlay.listxattr(&caller(), d).unwrap();
            assert!(listed.split(|byte| *byte == 0).any(|one| one == name.as_bytes()), "{name}");
            let u = u.reopen();
            u.shows("d/f = lower\n d/g = upper\n secret/f = secret");
        }
    }
}

#[test]
fn a_redirect_that_any_user_could_have_written_leads_nowhere() {
    need!(is_root(), "only root's unions know a namespace that others cannot write");
    let layers = Layers::of(&["d/f = lower\n secret/f = secret"]).upper("d/g = upper");
    set_disk_xattr(&layers.upper_path("d"), "user.overlay.redirect", b"/secret");
    layers.open().shows("d/f = lower\n d/g = upper\n secret/f = secret");
}
