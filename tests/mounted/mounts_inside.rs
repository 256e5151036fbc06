//! What is mounted inside the union: a container's `/proc`, its volumes, its `/etc/resolv.conf`. It stays, whatever is told
//! to the kernel of the names around it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::support::*;
use crate::{need, need_root, plyfs_only};

/// Longer than events are gathered, and than it takes to tell what they mean.
const SETTLED: Duration = Duration::from_millis(400);
const LIMIT: Duration = Duration::from_secs(5);

/// Something mounted inside a union, gone before the union is.
struct Inside(PathBuf);

impl Inside {
    fn new(source: &Path, point: PathBuf) -> Inside {
        mount_bind(source, &point).unwrap();
        Inside(point)
    }

    /// Whether it is still mounted.
    fn stays(&self) -> bool {
        fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&format!(" {} ", self.0.display()))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if self.stays() {
            unmount(&self.0, UnmountFlags::DETACH).unwrap();
        }
    }
}

/// A layer's share of the tree in which something is mounted.
fn plant(at: impl Fn(&str) -> PathBuf) {
    for name in ["above/in/point/.keep", "above/in/left", "above/side", "above/in/gone", "aside"] {
        write(at(name), "old");
    }
}

/// Everything that may happen around a mount point and leaves it what it is.
fn stir(at: impl Fn(&str) -> PathBuf) {
    for name in ["", "above", "above/in", "above/in/point"] {
        chmod(at(name), 0o711);
        sh(&at(name), "touch .; touch made; mkdir made.d; mv made moved; rmdir made.d");
    }
    fs::rename(at("above/in/left"), at("above/in/right")).unwrap();
    fs::rename(at("above/side"), at("above/in/side")).unwrap();
    fs::remove_file(at("above/in/gone")).unwrap();
    write(at("above/in/new"), "new");
    write(at("aside"), "other");
}

#[test]
fn a_mount_inside_the_union_outlives_changes_behind_it() {
    plyfs_only!();
    need_root!();
    for stirred in ["l1", "upper"] {
        for only in [false, true] {
            let layers = Layers::new(1);
            write(layers.root().join("source/file"), "mounted");
            if !only || stirred == "l1" {
                plant(|name| layers.lower(name));
            }
            if !only || stirred == "upper" {
                plant(|name| layers.upper(name));
            }
            let union = layers.mount();
            let inside = Inside::new(&union.root().join("source"), union.merged("above/in/point"));
            assert_eq!(names(union.merged("above/in")), ["gone", "left", "point"]);
            assert!(!exists(union.merged("above/in/new")) && !exists(union.merged("above/in/right")));
            let held = fs::File::open(union.merged("above/in")).unwrap();
            stir(|name| union.root().join(stirred).join(name));
            let shown = || exists(union.merged("above/in/new")) && exists(union.merged("above/in/right"));
            assert!(eventually(LIMIT, shown), "{stirred} {only}: {:?}", names(union.merged("above/in")));
            sleep(SETTLED);
            assert!(inside.stays(), "{stirred} {only}: unmounted");
            assert_eq!(read(inside.0.join("file")), "mounted");
            assert!(exists(union.merged("above/in/side")), "{stirred} {only}");
            assert_eq!(exists(union.merged("above/side")), !only, "{stirred} {only}");
            assert_eq!(exists(union.merged("above/in/gone")), !only, "{stirred} {only}");
            if only || stirred == "upper" {
                assert_eq!(read(union.merged("aside")), "other");
                assert_eq!(mode(union.merged("above")), 0o711);
            }
            drop(held);
            drop(inside);
            assert!(exists(union.merged("above/in/point/moved")), "{stirred} {only}");
        }
    }
}

#[test]
fn a_file_that_is_mounted_on_a_file_outlives_changes_behind_it() {
    plyfs_only!();
    need_root!();
    let layers = Layers::new(1);
    write(layers.root().join("source"), "mounted");
    write(layers.lower("etc/hosts"), "old");
    let union = layers.mount();
    let inside = Inside::new(&union.root().join("source"), union.merged("etc/hosts"));
    append(union.lower("etc/hosts"), "+");
    chmod(union.lower("etc/hosts"), 0o600);
    write(union.lower("etc/passwd"), "new");
    assert!(eventually(LIMIT, || exists(union.merged("etc/passwd"))));
    sleep(SETTLED);
    assert!(inside.stays());
    assert_eq!(read(union.merged("etc/hosts")), "mounted");
    drop(inside);
    assert_eq!((read(union.merged("etc/hosts")), mode(union.merged("etc/hosts"))), ("old+".to_owned(), 0o600));
}

#[test]
fn a_mount_inside_the_union_outlives_the_unions_own_changes() {
    plyfs_only!();
    need_root!();
    let layers = Layers::new(1);
    write(layers.lower("dir/file"), "old");
    let union = layers.mount();
    for round in ["new", "dir"] {
        let dir = union.merged(round);
        fs::create_dir_all(dir.join("from")).unwrap();
        fs::create_dir(dir.join("point")).unwrap();
        let inside = Inside::new(&dir.join("from"), dir.join("point"));
        sleep(SETTLED);
        chmod(&dir, 0o700);
        write(dir.join("later"), "");
        fs::create_dir(dir.join("d")).unwrap();
        fs::rename(dir.join("d"), union.merged("d")).unwrap();
        fs::remove_dir(union.merged("d")).unwrap();
        sleep(SETTLED);
        assert!(inside.stays(), "{round}");
        unmount(&inside.0, UnmountFlags::empty()).unwrap();
        fs::remove_dir(dir.join("point")).unwrap();
    }
}

#[test]
fn a_directory_that_gets_or_loses_a_part_behind_the_mount_shows_it_and_keeps_its_mounts() {
    plyfs_only!();
    need_root!();
    let layers = Layers::new(2);
    fs::create_dir_all(layers.root().join("source")).unwrap();
    write(layers.upper("top/dir/deep/own"), "");
    fs::create_dir(layers.upper("top/dir/point")).unwrap();
    write(layers.layer(2, "top/dir/deep/lower"), "");
    write(layers.layer(2, "top/dir/only/lower"), "");
    let union = layers.mount();
    let inside = Inside::new(&union.root().join("source"), union.merged("top/dir/point"));
    let all = "find merged/top/dir -mindepth 1 -printf '%P ' | tr ' ' '\\n' | sort | tr '\\n' ' '";
    let shows = |wanted: &str| {
        let found = || sh(union.root(), all).trim().to_owned();
        assert!(eventually(LIMIT, || found() == wanted), "found {} for {wanted}", found());
        let missing = |name: &&str| !exists(union.merged("top/dir").join(name));
        let absent: Vec<&str> = wanted.split(' ').filter(missing).collect();
        assert!(absent.is_empty(), "{absent:?} are listed and not found");
        sleep(SETTLED);
        assert!(inside.stays(), "unmounted when it came to {wanted}");
    };
    shows("deep deep/lower deep/own only only/lower point");
    for name in ["deep/middle", "middle", "only/middle"] {
        assert!(!exists(union.merged("top/dir").join(name)));
    }
    // Another part comes, made elsewhere so that it comes at once.
    write(union.root().join("made/dir/deep/middle"), "");
    write(union.root().join("made/dir/middle"), "");
    write(union.root().join("made/dir/only/middle"), "");
    fs::rename(union.root().join("made"), union.layer(1, "top")).unwrap();
    shows("deep deep/lower deep/middle deep/own middle only only/lower only/middle point");
    set_xattr(union.layer(1, "top/dir"), "trusted.overlay.opaque", b"y");
    shows("deep deep/middle deep/own middle only only/middle point");
    assert!(!exists(union.merged("top/dir/deep/lower")));
    fs::rename(union.layer(1, "top"), union.root().join("made")).unwrap();
    shows("deep deep/lower deep/own only only/lower point");
    set_xattr(union.upper("top/dir"), "trusted.overlay.opaque", b"y");
    shows("deep deep/own point");
    assert!(!exists(union.merged("top/dir/only")) && !exists(union.merged("top/dir/deep/lower")));
}

#[test]
fn a_part_that_is_replaced_by_another_directory_is_read_anew() {
    plyfs_only!();
    let layers = Layers::new(1);
    write(layers.upper("dir/upper"), "");
    write(layers.lower("dir/old"), "");
    write(layers.root().join("spare/new"), "");
    let union = layers.mount();
    let _held = fs::File::open(union.merged("dir")).unwrap();
    assert_eq!(names(union.merged("dir")), ["old", "upper"]);
    fs::rename(union.lower("dir"), union.root().join("was")).unwrap();
    fs::rename(union.root().join("spare"), union.lower("dir")).unwrap();
    assert!(eventually(LIMIT, || names(union.merged("dir")) == ["new", "upper"]), "{:?}", names(union.merged("dir")));
    assert!(exists(union.merged("dir/new")) && !exists(union.merged("dir/old")));
    // And it is watched where it is now.
    write(union.lower("dir/newer"), "");
    assert!(eventually(LIMIT, || names(union.merged("dir")) == ["new", "newer", "upper"]));
    write(union.root().join("was/older"), "");
    sleep(SETTLED);
    assert!(!exists(union.merged("dir/older")));
}

#[test]
fn another_object_behind_the_mount_takes_the_place_of_the_old_one() {
    plyfs_only!();
    need_root!();
    let layers = Layers::new(1);
    fs::create_dir_all(layers.root().join("source")).unwrap();
    fs::create_dir_all(layers.lower("dir/point")).unwrap();
    symlink("first", layers.lower("link")).unwrap();
    let union = layers.mount();
    let inside = Inside::new(&union.root().join("source"), union.merged("dir/point"));
    assert_eq!(fs::read_link(union.merged("link")).unwrap(), Path::new("first"));
    fs::remove_dir(union.lower("dir/point")).unwrap();
    write(union.lower("dir/point"), "a file now");
    // Its inode number is used again at once, on most file systems.
    fs::remove_file(union.lower("link")).unwrap();
    symlink("again", union.lower("link")).unwrap();
    assert!(eventually(LIMIT, || union.merged("dir/point").is_file()));
    assert_eq!(read(union.merged("dir/point")), "a file now");
    assert!(eventually(LIMIT, || fs::read_link(union.merged("link")).unwrap() == Path::new("again")));
    assert!(!inside.stays(), "a directory is mounted on a file");
}

#[test]
fn events_that_were_lost_cost_no_mount_and_no_name() {
    plyfs_only!();
    need_root!();
    let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let queue: usize = queue.trim().parse().unwrap();
    need!(queue <= 20_000, "the queue of events is too long to fill it");
    let layers = Layers::within(super::names::roomy(), 1);
    fs::create_dir_all(layers.root().join("source")).unwrap();
    write(layers.lower("dir/point/.keep"), "");
    write(layers.lower("dir/gone"), "");
    fs::create_dir(layers.lower("flood")).unwrap();
    let union = layers.mount();
    let inside = Inside::new(&union.root().join("source"), union.merged("dir/point"));
    assert_eq!(names(union.merged("dir")), ["gone", "point"]);
    assert!(!exists(union.merged("dir/new")) && names(union.merged("flood")).is_empty());
    let stopped = Stopped::new(union.daemon());
    for n in 0..queue {
        symlink("x", union.lower(format!("flood/{n}"))).unwrap();
    }
    fs::remove_file(union.lower("dir/gone")).unwrap();
    write(union.lower("dir/new"), "");
    drop(stopped);
    assert!(eventually(LIMIT, || exists(union.merged("dir/new")) && !exists(union.merged("dir/gone"))));
    assert_eq!(names(union.merged("dir")), ["new", "point"]);
    sleep(SETTLED);
    assert!(inside.stays());
}

#[test]
fn a_mount_inside_the_union_outlives_a_lack_of_descriptors() {
    plyfs_only!();
    need_root!();
    need!(have("prlimit"), "no prlimit (util-linux)");
    let layers = Layers::new(1);
    write(layers.root().join("source/file"), "mounted");
    for name in ["above/in/point/.keep", "above/in/right"] {
        write(layers.lower(name), "lower");
        write(layers.upper(name), "upper");
    }
    write(layers.lower("other/file"), "other");
    let union = layers.mount();
    let source = union.root().join("source");
    let dir = Inside::new(&source, union.merged("above/in/point"));
    let file = Inside::new(&source.join("file"), union.merged("above/in/right"));
    let limit = |count: &str| {
        run("prlimit", &["--pid", &union.daemon().to_string(), &format!("--nofile={count}:4096")]);
    };
    limit("3");
    // What is only kept is closed for this, in vain.
    assert_eq!(errno(fs::read(union.merged("other/file"))), libc::ENOMEM);
    // All that was told of the names above the mounts is taken back.
    for _ in 0..3 {
        for name in ["", "above", "above/in", "above/in/point"] {
            chmod(union.upper(name), 0o711);
            write(union.upper(name).join("made"), "");
            fs::remove_file(union.upper(name).join("made")).unwrap();
        }
        sleep(SETTLED / 2);
        for path in ["above", "above/in", "above/in/right", "above/in/point/file"] {
            let error = fs::metadata(union.merged(path)).err().and_then(|error| error.raw_os_error());
            assert!([None, Some(libc::ENOMEM), Some(libc::EMFILE)].contains(&error), "{path}: {error:?}");
        }
    }
    assert_eq!(errno(fs::metadata(dir.0.join("file"))), libc::ENOMEM);
    assert!(dir.stays() && file.stays(), "unmounted: {} {}", dir.stays(), file.stays());
    limit("4096");
    assert_eq!((read(dir.0.join("file")), read(&file.0)), ("mounted".to_owned(), "mounted".to_owned()));
}
