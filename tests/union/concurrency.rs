//! Several threads at one file or directory. Each test has to end in time: whatever waits for ever is a deadlock.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use plyfs::errno::Errno;
use plyfs::overlay::{Room, SetAttr};

use crate::fixture::{Layers, union};
use crate::vfs::{NOTHING, caller};

const THREADS: usize = 8;

/// Runs a test's body, and fails if it has not come to its end within three minutes.
pub fn in_time(body: impl FnOnce() + Send + 'static) {
    let (done, ended) = channel();
    let thread = std::thread::Builder::new().name(std::thread::current().name().unwrap_or("test").to_owned());
    let thread = thread
        .spawn(move || {
            body();
            done.send(()).unwrap();
        })
        .unwrap();
    match ended.recv_timeout(Duration::from_secs(180)) {
        Err(RecvTimeoutError::Timeout) => panic!("a deadlock, or as good as one"),
        Ok(()) | Err(RecvTimeoutError::Disconnected) => {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// Runs the same in several threads at once, which get their numbers.
pub fn at_once(threads: usize, body: impl Fn(usize) + Sync) {
    let start = std::sync::Barrier::new(threads);
    std::thread::scope(|scope| {
        for n in 0..threads {
            let (start, body) = (&start, &body);
            scope.spawn(move || {
                start.wait();
                body(n);
            });
        }
    });
}

#[test]
fn a_file_that_all_write_to_is_copied_up_once() {
    in_time(|| {
        for _ in 0..10 {
            let layers = Layers::of(&["d/x = 1"]).volatile();
            fs::write(layers.lower(1, "d/f"), vec![b'.'; 1 << 20]).unwrap();
            let u = layers.open();
            let id = u.at("d/f").unwrap();
            at_once(THREADS, |n| {
                let mine = vec![b'0' + u8::try_from(n).unwrap(); 1000];
                u.put(id, (n * 100_000) as u64, &mine).unwrap();
                assert_eq!(u.at("d/f").unwrap(), id);
            });
            let content = fs::read(u.upper_path("d/f")).unwrap();
            assert_eq!(content.len(), 1 << 20);
            for n in 0..THREADS {
                let mine = &content[n * 100_000..n * 100_000 + 1000];
                assert!(mine.iter().all(|byte| usize::from(byte - b'0') == n), "what thread {n} wrote is lost");
            }
            assert_eq!(content.iter().filter(|byte| **byte == b'.').count(), (1 << 20) - THREADS * 1000);
            assert_eq!(u.read("d/f").unwrap().as_bytes(), content);
        }
    });
}

#[test]
fn a_reader_sees_a_file_whole_while_it_is_copied_up() {
    in_time(|| {
        let layers = Layers::of(&["x = 1"]).volatile();
        let text = "0123456789abcdef".repeat(64 << 10);
        for n in 0..20 {
            fs::write(layers.lower(1, format!("f{n}")), &text).unwrap();
        }
        let u = layers.open();
        for n in 0..20 {
            let id = u.at(format!("f{n}")).unwrap();
            let done = AtomicBool::new(false);
            at_once(4, |thread| {
                if thread == 0 {
                    u.overlay.setattr(&caller(), id, &SetAttr { mode: Some(0o600), ..NOTHING }).unwrap();
                    done.store(true, Relaxed);
                    return;
                }
                loop {
                    let last = done.load(Relaxed);
                    assert_eq!(u.overlay.getattr(id).unwrap().0.size, text.len() as u64);
                    assert!(u.read_node(id).unwrap() == text, "a reader saw something else");
                    if last {
                        break;
                    }
                }
            });
        }
    });
}

#[test]
fn a_name_is_the_old_file_or_the_new_one() {
    in_time(|| {
        let u = Layers::of(&["f = old-old-old"]).volatile().open();
        let done = AtomicBool::new(false);
        at_once(4, |thread| {
            if thread == 0 {
                for n in 0..200 {
                    u.create("tmp", &format!("new-{n:07}")).unwrap();
                    u.rename("tmp", "f").unwrap();
                }
                done.store(true, Relaxed);
            }
            while !done.load(Relaxed) {
                // Looked up and read: whatever was there at that moment, and never the lower one again after the first.
                let text = u.read("f").unwrap();
                assert!(text == "old-old-old" || (text.starts_with("new-") && text.len() == 11), "{text:?}");
            }
        });
        u.upper_holds("f = new-0000199");
    });
}

#[test]
fn nothing_of_a_lower_shows_once_its_name_was_taken() {
    in_time(|| {
        let u = Layers::of(&["f = lower\n d/x = 1"]).volatile().open();
        u.append("f", "-up").unwrap();
        let done = AtomicBool::new(false);
        at_once(3, |thread| {
            if thread == 0 {
                for n in 0..300 {
                    u.unlink("f").unwrap();
                    if n % 2 == 0 { u.create("f", "").map(drop) } else { u.mkdir("f").map(drop) }.unwrap();
                    if n % 2 == 1 {
                        u.rmdir("f").unwrap();
                        u.symlink("f", "x").unwrap();
                    }
                }
                done.store(true, Relaxed);
            }
            while !done.load(Relaxed) {
                match u.at("f").and_then(|id| u.read_node(id)) {
                    Ok(text) => assert!(text.is_empty() || text == "lower-up", "{text:?}"),
                    Err(errno) => {
                        assert!([Errno::ENOENT, Errno::EISDIR, Errno::EINVAL].contains(&errno), "{errno:?}");
                    }
                }
            }
        });
    });
}

#[test]
fn a_directory_that_all_need_is_copied_up_once() {
    in_time(|| {
        let text: String = (0..64).map(|n| format!("a/b/c/d/f{n} = {n}\n")).collect();
        for _ in 0..10 {
            let u = Layers::of(&[&text]).volatile().open();
            let dirs = ["a", "a/b", "a/b/c", "a/b/c/d"].map(|path| u.at(path).unwrap());
            at_once(THREADS, |thread| {
                for n in (0..64).filter(|n| n % THREADS == thread) {
                    u.append(format!("a/b/c/d/f{n}"), "+").unwrap();
                    u.create(format!("a/b/c/d/new{n}"), "").unwrap();
                }
            });
            assert_eq!(["a", "a/b", "a/b/c", "a/b/c/d"].map(|path| u.at(path).unwrap()), dirs);
            assert_eq!(u.list("a/b/c/d").len(), 128);
            for n in 0..64 {
                assert_eq!(u.read(format!("a/b/c/d/f{n}")).unwrap(), format!("{n}+"));
            }
        }
    });
}

#[test]
fn a_copy_up_and_a_rename_of_one_file_both_happen() {
    in_time(|| {
        let text: String = (0..60).map(|n| format!("d/f{n} = {n}\n")).collect();
        let u = Layers::of(&[&format!("{text}\n e/x = 1")]).volatile().open();
        for n in 0..60 {
            let id = u.at(format!("d/f{n}")).unwrap();
            at_once(3, |thread| match thread {
                0 => {
                    let size = u.overlay.getattr(id).unwrap().0.size;
                    u.put(id, size, b"+").unwrap();
                }
                1 => {
                    u.rename(format!("d/f{n}"), format!("e/g{n}")).unwrap();
                }
                _ => {
                    let met = u.at(format!("d/f{n}")).or_else(|_| u.at(format!("e/g{n}")));
                    assert_eq!(met.unwrap_or(id), id);
                }
            });
            assert_eq!(u.at(format!("e/g{n}")).unwrap(), id);
            assert_eq!(u.read(format!("e/g{n}")).unwrap(), format!("{n}+"));
            assert_eq!(u.at(format!("d/f{n}")), Err(Errno::ENOENT));
        }
        assert_eq!(u.list("d"), [""; 0]);
        assert_eq!(u.list("e").len(), 61);
    });
}

#[test]
fn a_copy_up_and_the_removal_of_one_file_both_happen() {
    in_time(|| {
        let text: String = (0..100).map(|n| format!("d/f{n} = {n}\n")).collect();
        let u = Layers::of(&[&text]).volatile().open();
        for n in 0..100 {
            let path = format!("d/f{n}");
            let id = u.at(&path).unwrap();
            at_once(2, |thread| match thread {
                0 => assert_eq!(u.put(id, 0, b"written").unwrap(), 7),
                _ => u.unlink(&path).unwrap(),
            });
            assert_eq!(u.read_node(id).unwrap(), "written");
            assert_eq!(u.overlay.getattr(id).unwrap().0.nlink, 0);
            assert_eq!(u.at(&path), Err(Errno::ENOENT));
        }
        u.rmdir("d").unwrap();
        u.upper_holds("!d");
    });
}

#[test]
fn lookups_during_a_copy_up_never_make_a_second_node() {
    in_time(|| {
        let text: String = (0..200).map(|n| format!("d/f{n} = {n}\n")).collect();
        let u = Layers::of(&[&format!("{text}\n e/x = 1")]).volatile().open();
        let dirs = [u.at("d").unwrap(), u.at("e").unwrap()];
        for n in 0..200 {
            let name = format!("f{n}");
            let id = u.lookup(dirs[0], &name).unwrap().id;
            at_once(4, |thread| match thread {
                0 => drop(u.overlay.setattr(&caller(), id, &SetAttr { mode: Some(0o600), ..NOTHING }).unwrap()),
                // Another name in another directory: found by its inode, as soon as there is one.
                1 => {
                    let made = u.overlay.link(&caller(), id, dirs[1], OsStr::new(&name)).unwrap();
                    assert_eq!(u.met(made).id, id, "the link is another node");
                }
                _ => {
                    for _ in 0..20 {
                        assert_eq!(u.lookup(dirs[0], &name).unwrap().id, id, "the file is another node");
                    }
                }
            });
            assert_eq!(u.lookup(dirs[1], &name).unwrap().id, id);
        }
        // The root, two directories, the files, and no more.
        assert_eq!(u.overlay.remembered(), 203);
    });
}

#[test]
fn what_stays_is_listed_once_while_all_around_comes_and_goes() {
    in_time(|| {
        let text: String = (0..100).map(|n| format!("d/stay{n} = {n}\n")).collect();
        let u = Layers::of(&[&text]).volatile().open();
        let dir = u.at("d").unwrap();
        let writers = AtomicUsize::new(2);
        at_once(4, |thread| {
            if thread < 2 {
                for n in 0..150 {
                    u.create(format!("d/t{thread}-{n}"), "").unwrap();
                    u.append(format!("d/stay{}", (n * 7 + thread) % 100), "").unwrap();
                    u.chmod(format!("d/stay{}", (n * 7 + thread) % 100), 0o600).unwrap();
                    u.unlink(format!("d/t{thread}-{n}")).unwrap();
                }
                writers.fetch_sub(1, Relaxed);
                return;
            }
            while writers.load(Relaxed) > 0 {
                let (mut seen, mut cookie) = (BTreeSet::new(), 0);
                loop {
                    let mut taken = 0;
                    u.overlay
                        .readdir(dir, cookie, &mut |entry| {
                            if taken == 10 {
                                return Room::Full;
                            }
                            taken += 1;
                            cookie = entry.cookie;
                            assert!(seen.insert(entry.name.to_owned()), "{} comes twice", entry.name.display());
                            Room::Taken
                        })
                        .unwrap();
                    if taken == 0 {
                        break;
                    }
                }
                for n in 0..100 {
                    assert!(seen.contains(OsStr::new(&format!("stay{n}"))), "stay{n} is missing");
                }
            }
        });
        assert_eq!(u.list("d").len(), 100);
    });
}

#[test]
fn lookups_and_forgets_from_all_sides_add_up() {
    in_time(|| {
        let text: String = (0..20).map(|n| format!("a/b{n}/f = {n}\n")).collect();
        let u = union(&[&text, &text]);
        let root = u.overlay.root();
        at_once(THREADS, |thread| {
            for n in 0..200 {
                let caller = caller();
                let a = u.overlay.lookup(&caller, root, OsStr::new("a")).unwrap().id;
                let name = format!("b{}", (n + thread) % 20);
                let b = u.overlay.lookup(&caller, a, OsStr::new(&name)).unwrap().id;
                u.overlay.forget(a, 1);
                let f = u.overlay.lookup(&caller, b, OsStr::new("f")).unwrap().id;
                u.overlay.forget(b, 1);
                assert_eq!(u.read_node(f).unwrap(), format!("{}", (n + thread) % 20));
                u.overlay.forget(f, 1);
            }
        });
        assert_eq!(u.overlay.remembered(), 1);
        u.close();
    });
}
