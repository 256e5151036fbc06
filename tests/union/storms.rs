//! Storms: many threads make, remove and rename at once, and what is left adds up.

use std::ffi::OsStr;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use plyfs::errno::Errno;
use plyfs::overlay::Rename;

use crate::concurrency::{at_once, in_time};
use crate::fixture::{Layers, Union};
use crate::vfs::caller;

const THREADS: usize = 6;

#[test]
fn of_all_who_remove_a_name_one_has_removed_it() {
    in_time(|| {
        let text: String = (0..50).map(|n| format!("d/f{n} = {n}\n d/e{n}/\n")).collect();
        let u = Layers::of(&[&text]).volatile().open();
        for n in 0..50 {
            let (files, dirs) = (AtomicUsize::new(0), AtomicUsize::new(0));
            at_once(THREADS, |_| {
                for (path, count) in [(format!("d/f{n}"), &files), (format!("d/e{n}"), &dirs)] {
                    let removed = if path.starts_with("d/f") { u.unlink(&path) } else { u.rmdir(&path) };
                    match removed {
                        Ok(()) => drop(count.fetch_add(1, Relaxed)),
                        Err(errno) => assert_eq!(errno, Errno::ENOENT),
                    }
                }
            });
            assert_eq!((files.into_inner(), dirs.into_inner()), (1, 1));
        }
        u.rmdir("d").unwrap();
        u.upper_holds("!d");
    });
}

#[test]
fn of_all_who_make_a_name_one_has_made_it() {
    in_time(|| {
        let u = Layers::of(&["d/x = 1\n d/gone0 = 1\n d/gone1 = 1\n d/gone2 = 1"]).volatile().open();
        for n in 0..3 {
            u.unlink(format!("d/gone{n}")).unwrap();
        }
        let dir = u.at("d").unwrap();
        for n in 0..50 {
            let made = AtomicUsize::new(0);
            let name = if n < 3 { format!("gone{n}") } else { format!("new{n}") };
            at_once(THREADS, |thread| {
                let (caller, name) = (caller(), OsStr::new(&name));
                let entry = match thread % 3 {
                    0 => u.overlay.mknod(&caller, dir, name, libc::S_IFREG | 0o600, 0),
                    1 => u.overlay.mkdir(&caller, dir, name, 0o700),
                    _ => u.overlay.symlink(&caller, dir, name, OsStr::new("t")),
                };
                match entry {
                    Ok(entry) => {
                        u.met(entry);
                        made.fetch_add(1, Relaxed);
                    }
                    Err(errno) => assert_eq!(errno, Errno::EEXIST),
                }
            });
            assert_eq!(made.into_inner(), 1, "{name}");
        }
        assert_eq!(u.list("d").len(), 51);
        u.reopen();
    });
}

#[test]
fn everybody_makes_and_removes_in_one_directory() {
    in_time(|| {
        let text: String = (0..THREADS).map(|n| format!("d/low{n} = {n}\n d/keep{n} = {n}\n")).collect();
        let u = Layers::of(&[&text]).volatile().open();
        at_once(THREADS, |thread| {
            for n in 0..60 {
                let name = |what: &str| format!("d/{what}{thread}");
                u.create(name("f"), "1").unwrap();
                u.link(name("f"), name("l")).unwrap();
                u.mkdir(name("dir")).unwrap();
                u.rename(name("f"), format!("d/dir{thread}/in")).unwrap();
                u.append(name("l"), "2").unwrap();
                assert_eq!(u.read(format!("d/dir{thread}/in")).unwrap(), "12");
                u.rename(name("dir"), name("moved")).unwrap();
                u.unlink(format!("d/moved{thread}/in")).unwrap();
                u.rmdir(name("moved")).unwrap();
                u.rename(name("l"), name("low")).unwrap();
                assert_eq!(u.read(name("low")).unwrap(), "12");
                if n % 2 == 0 {
                    u.unlink(name("low")).unwrap();
                }
            }
        });
        let expected: Vec<String> =
            (0..THREADS).flat_map(|n| [format!("d/keep{n} = {n}"), format!("d/low{n} = 12")]).collect();
        u.shows(&expected.join("\n"));
        u.reopen().shows(&expected.join("\n"));
    });
}

#[test]
fn one_file_goes_round_between_many() {
    in_time(|| {
        let u = Layers::of(&["a/token = 1\n b/x = 1\n c/x = 1"]).volatile().open();
        let id = u.at("a/token").unwrap();
        let moves = AtomicUsize::new(0);
        at_once(THREADS, |thread| {
            let places = ["a/token", "b/token", "c/token"];
            for n in 0..150 {
                let (from, to) = (places[(n + thread) % 3], places[(n + thread + 1 + n % 2) % 3]);
                match u.rename_how(from, to, Rename::NoReplace) {
                    Ok(()) => drop(moves.fetch_add(1, Relaxed)),
                    Err(errno) => assert!([Errno::ENOENT, Errno::EEXIST].contains(&errno), "{errno:?}"),
                }
            }
        });
        assert!(moves.into_inner() > 0);
        let left: Vec<_> = ["a", "b", "c"].iter().filter(|dir| u.list(dir).contains(&"token".to_owned())).collect();
        assert_eq!(left.len(), 1);
        assert_eq!(u.at(format!("{}/token", left[0])).unwrap(), id);
        assert_eq!(u.read_node(id).unwrap(), "1");
    });
}

#[test]
fn directories_are_renamed_while_others_work_below_them() {
    in_time(|| {
        let u = Layers::of(&["x = 1"]).volatile().open();
        u.mkdir("a").unwrap();
        u.mkdir("a/b").unwrap();
        let below = u.at("a/b").unwrap();
        at_once(THREADS, |thread| {
            for n in 0..100 {
                if thread == 0 {
                    u.rename("a", "z").unwrap();
                    u.rename("z", "a").unwrap();
                    continue;
                }
                let (caller, name) = (caller(), format!("f{thread}-{n}"));
                let made = u.overlay.mknod(&caller, below, OsStr::new(&name), libc::S_IFREG | 0o600, 0).unwrap();
                let id = u.met(made).id;
                u.put(id, 0, name.as_bytes()).unwrap();
                assert_eq!(u.lookup(below, &name).unwrap().id, id);
                assert_eq!(u.read_node(id).unwrap(), name);
                if n % 2 == 0 {
                    u.overlay.unlink(&caller, below, OsStr::new(&name)).unwrap();
                }
            }
        });
        assert_eq!(u.list("a/b").len(), (THREADS - 1) * 50);
    });
}

#[test]
fn a_removal_and_a_rename_do_not_wait_for_each_other() {
    in_time(|| {
        let u = Layers::of(&["x = 1"]).volatile().open();
        // The inner directory is the older node: what orders two locks by number takes the inner one first.
        let inner = u.mkdir("inner").unwrap().id;
        let outer = u.mkdir("outer").unwrap().id;
        u.rename("inner", "outer/inner").unwrap();
        u.create("outer/inner/f", "1").unwrap();
        at_once(THREADS, |thread| {
            let (caller, f) = (caller(), OsStr::new("f"));
            for _ in 0..300 {
                match thread % 3 {
                    0 => may_fail(u.overlay.rmdir(&caller, outer, OsStr::new("inner"))),
                    1 => {
                        may_fail(u.overlay.rename(&caller, (inner, f), (outer, f), Rename::Replace));
                        may_fail(u.overlay.rename(&caller, (outer, f), (inner, f), Rename::Replace));
                    }
                    _ => {
                        if let Ok(made) = u.overlay.mkdir(&caller, outer, OsStr::new("new"), 0o700) {
                            u.met(made);
                        }
                        let to = (outer, OsStr::new("inner"));
                        may_fail(u.overlay.rename(&caller, (outer, OsStr::new("new")), to, Rename::Replace));
                    }
                }
            }
        });
        let found = ["outer/f", "outer/inner/f"].iter().filter(|path| u.at(path).is_ok()).count();
        assert!(found <= 1);
    });
}

/// A lower file with two names in each of the directories, copied up into the index.
fn file_of_many_names() -> Union {
    let more: String = (1..THREADS).map(|n| format!("d{n}/f == d0/f\n d{n}/g == d0/f\n")).collect();
    let mut layers = Layers::of(&[&format!("d0/f = 1\n d0/g == d0/f\n {more}")]).volatile();
    layers.config.features.index = true;
    let u = layers.open();
    u.append("d0/f", "2").unwrap();
    u
}

fn entries_in_index(u: &Union) -> usize {
    fs::read_dir(u.layers.root().join("work/index")).unwrap().count()
}

#[test]
fn names_of_one_file_are_counted_however_many_come_and_go_at_once() {
    in_time(|| {
        for _ in 0..30 {
            let u = file_of_many_names();
            at_once(THREADS, |thread| {
                let name = |what: &str| format!("d{thread}/{what}");
                u.rename(name("f"), name("moved")).unwrap();
                u.link(name("moved"), name("new")).unwrap();
                u.create(name("over"), "x").unwrap();
                u.rename(name("over"), name("g")).unwrap();
            });
            for thread in 0..THREADS {
                let nlink = |name: &str| u.stat(format!("d{thread}/{name}")).unwrap().nlink as usize;
                assert_eq!((nlink("moved"), nlink("new"), nlink("g")), (2 * THREADS, 2 * THREADS, 1));
            }
            at_once(THREADS, |thread| {
                for name in ["moved", "new"] {
                    u.unlink(format!("d{thread}/{name}")).unwrap();
                }
            });
            assert_eq!(entries_in_index(&u), 0, "the last name takes the entry with it");
        }
    });
}

#[test]
fn names_are_never_seen_miscounted_while_they_become_the_uppers_own() {
    in_time(|| {
        for _ in 0..150 {
            let u = file_of_many_names();
            let id = u.at("d0/f").unwrap();
            let moved = AtomicUsize::new(1);
            at_once(THREADS, |thread| {
                if thread > 0 {
                    let _done = Done(&moved);
                    for name in ["f", "g"] {
                        u.rename(format!("d{thread}/{name}"), format!("d{thread}/{name}-moved")).unwrap();
                    }
                    return;
                }
                while moved.load(Relaxed) < THREADS {
                    assert_eq!(u.overlay.getattr(id).unwrap().0.nlink as usize, 2 * THREADS);
                    assert_eq!(u.stat("d0/g").unwrap().nlink as usize, 2 * THREADS);
                }
            });
        }
    });
}

/// Counts who has come to the end, in whatever way.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Which of those at once comes first decides what the others find.
fn may_fail(result: Result<(), Errno>) {
    if let Err(errno) = result {
        assert!([Errno::ENOENT, Errno::ENOTEMPTY, Errno::EEXIST].contains(&errno), "{errno:?}");
    }
}
