//! Listings: cookies that survive whatever happens between two calls.

use std::collections::BTreeSet;
use std::fs;

use plyfs::errno::Errno;
use plyfs::overlay::{Dirent, Entry, NodeId, Room};

use crate::fixture::{Layers, Union, union};
use crate::vfs::caller;

/// One call of a reader: at most so many names after a cookie. Returns them and the cookie to go on with.
fn chunk(u: &Union, dir: NodeId, cookie: u64, most: usize) -> (Vec<String>, u64) {
    let (mut names, mut last) = (Vec::new(), cookie);
    u.overlay
        .readdir(dir, cookie, &mut |entry| {
            if names.len() == most {
                return Room::Full;
            }
            names.push(entry.name.to_str().unwrap().to_owned());
            last = entry.cookie;
            Room::Taken
        })
        .unwrap();
    (names, last)
}

/// Reads to the end from a cookie on, with something happening after every call.
fn read_on(u: &Union, dir: NodeId, mut cookie: u64, most: usize, mut between: impl FnMut(&[String])) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let (names, next) = chunk(u, dir, cookie, most);
        if names.is_empty() {
            return all;
        }
        between(&names);
        all.extend(names);
        cookie = next;
    }
}

/// Layers with `count` names in `d`, half in each of two lowers.
fn big(count: usize) -> Layers {
    let half = |odd: usize| (0..count).filter(|n| n % 2 == odd).map(|n| format!("d/f{n} = {n}\n")).collect::<String>();
    Layers::of(&[&half(0), &half(1)])
}

fn dotless(names: Vec<String>) -> Vec<String> {
    names.into_iter().filter(|name| name != "." && name != "..").collect()
}

#[test]
fn a_listing_in_pieces_is_the_whole() {
    let u = big(100).open();
    let dir = u.at("d").unwrap();
    for most in [1, 3, 50, 1000] {
        let names = read_on(&u, dir, 0, most, |_| {});
        assert_eq!(names.len(), 102);
        assert_eq!(names[..2], [".", ".."]);
        assert_eq!(names.into_iter().collect::<BTreeSet<_>>().len(), 102);
    }
}

#[test]
fn removing_what_was_just_listed_loses_nothing() {
    let u = big(200).open();
    let dir = u.at("d").unwrap();
    let names = read_on(&u, dir, 0, 7, |names| {
        for name in names.iter().filter(|name| !name.starts_with('.')) {
            u.unlink(format!("d/{name}")).unwrap();
        }
    });
    assert_eq!(dotless(names).len(), 200);
    u.rmdir("d").unwrap();
    u.upper_holds("!d");
}

#[test]
fn removing_what_is_still_to_come_shows_nothing_twice() {
    let u = big(100).open();
    let dir = u.at("d").unwrap();
    let mut removed = BTreeSet::new();
    let mut seen = BTreeSet::new();
    read_on(&u, dir, 0, 5, |names| {
        for name in names {
            assert!(!removed.contains(name), "{name} was removed before");
            assert!(seen.insert(name.clone()), "{name} comes twice");
        }
        let next = (0..100).map(|n| format!("f{n}")).find(|name| !seen.contains(name) && !removed.contains(name));
        if let Some(name) = next {
            u.unlink(format!("d/{name}")).unwrap();
            removed.insert(name);
        }
    });
    assert_eq!(seen.len() - 2 + removed.len(), 100);
}

#[test]
fn what_comes_meanwhile_disturbs_nobody() {
    let u = big(60).open();
    let dir = u.at("d").unwrap();
    let mut n = 0;
    let names = read_on(&u, dir, 0, 4, |_| {
        if n < 40 {
            u.create(format!("d/new{n}"), "").unwrap();
        }
        n += 1;
    });
    let unique: BTreeSet<_> = names.iter().collect();
    assert_eq!(unique.len(), names.len(), "a name comes twice");
    for n in 0..60 {
        assert!(unique.contains(&format!("f{n}")), "f{n} was there all the time");
    }
}

#[test]
fn names_that_stay_are_listed_once_over_copy_ups_and_renames() {
    let u = big(60).open();
    let dir = u.at("d").unwrap();
    let mut n = 0;
    let names = read_on(&u, dir, 0, 4, |_| {
        u.append(format!("d/f{}", n % 60), "+").unwrap();
        u.create("d/tmp", "").unwrap();
        u.rename("d/tmp", format!("d/f{}", (n + 30) % 60)).unwrap();
        n += 1;
    });
    let stay: Vec<_> = dotless(names).into_iter().filter(|name| name != "tmp").collect();
    assert_eq!(stay.len(), 60);
}

#[test]
fn a_cookie_outlives_the_listing_it_came_from() {
    let u = big(100).open();
    let dir = u.at("d").unwrap();
    let (mut names, cookie) = chunk(&u, dir, 0, 50);
    // The reader is overtaken by more others than listings are kept for, and the directory is forgotten and met again.
    for n in 0..80 {
        let other = u.mkdir(format!("other{n}")).unwrap().id;
        u.create(format!("other{n}/a"), "").unwrap();
        u.create(format!("other{n}/b"), "").unwrap();
        chunk(&u, other, 0, 3);
    }
    u.forget_all();
    let dir = u.at("d").unwrap();
    names.extend(read_on(&u, dir, cookie, 50, |_| {}));
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 102);
    assert_eq!(names.len(), 102);
}

#[test]
fn several_readers_of_one_directory() {
    let u = big(50).open();
    let dir = u.at("d").unwrap();
    let mut cookies = [0_u64; 5];
    let mut read = vec![Vec::new(); 5];
    for _ in 0..60 {
        for (reader, (cookie, all)) in cookies.iter_mut().zip(&mut read).enumerate() {
            let (names, next) = chunk(&u, dir, *cookie, reader + 1);
            all.extend(names);
            *cookie = next;
        }
    }
    for all in read {
        assert_eq!(all.len(), 52);
    }
}

#[test]
fn a_listing_from_the_start_is_fresh() {
    let u = union(&["d/a = 1"]);
    let dir = u.at("d").unwrap();
    assert_eq!(chunk(&u, dir, 0, 1).0, ["."]);
    fs::write(u.lower(1, "d/b"), "").unwrap();
    assert_eq!(dotless(chunk(&u, dir, 0, 10).0).len(), 2);
}

#[test]
fn the_dots_have_the_numbers_of_the_directory_and_its_parent() {
    let u = union(&["d/e/x = 1", "d/e/y = 1"]);
    let (d, e) = (u.stat("d").unwrap().ino, u.stat("d/e").unwrap().ino);
    let mut dots = Vec::new();
    u.overlay
        .readdir(u.at("d/e").unwrap(), 0, &mut |entry| {
            dots.push(entry.ino);
            if dots.len() == 2 { Room::Full } else { Room::Taken }
        })
        .unwrap();
    assert_eq!(dots[..2], [e, d]);
}

#[test]
fn what_is_no_directory_cannot_be_listed() {
    let u = union(&["f = 1"]);
    let id = u.at("f").unwrap();
    assert_eq!(u.overlay.readdir(id, 0, &mut |_| Room::Taken), Err(Errno::ENOTDIR));
}

#[test]
fn a_lookup_is_counted_only_for_what_was_handed_out() {
    let u = big(20).open();
    let dir = u.at("d").unwrap();
    let before = u.overlay.remembered();
    let (mut asked, mut got) = (0, 0);
    u.overlay
        .readdirplus(
            &caller(),
            dir,
            0,
            &mut |_| {
                asked += 1;
                if asked > 7 { Room::Full } else { Room::Taken }
            },
            &mut |_, entry| {
                if let Some(entry) = entry {
                    u.met(entry.clone());
                    got += 1;
                }
            },
        )
        .unwrap();
    assert_eq!(got, 5, "seven, two of them dots");
    assert_eq!(u.overlay.remembered(), before + 5);
    // A plain listing counts none.
    u.create("d/new", "").unwrap();
    u.append("d/f1", "+").unwrap();
    let before = u.overlay.remembered();
    read_on(&u, dir, 0, 3, |_| {});
    assert_eq!(u.overlay.remembered(), before);
}

#[test]
fn a_hundred_thousand_names() {
    let layers = Layers::of(&["d/", "d/"]);
    for n in 0..100_000 {
        fs::hard_link(layers.lower(1 + n % 2, "d").join("f0"), layers.lower(1 + n % 2, format!("d/f{n}")))
            .or_else(|_| fs::write(layers.lower(1 + n % 2, format!("d/f{n}")), ""))
            .unwrap();
    }
    let u = layers.open();
    let dir = u.at("d").unwrap();
    let names = read_on(&u, dir, 0, 1000, |_| {});
    assert_eq!(names.len(), 100_002);
    assert_eq!(names.into_iter().collect::<BTreeSet<_>>().len(), 100_002);
    assert!(u.overlay.remembered() <= 2);
}

#[test]
fn what_a_directory_merges_is_the_same_by_listing_and_by_name() {
    for (layers, wh_names, expected) in [
        (["d/s/a = 1", "d/x = 1", "d/s/b = 1", "d/s/c = 1"].as_slice(), false, ["a", "b", "c"].as_slice()),
        (&["d/s/a = 1", "!d/s", "d/s/b = 1"], false, &["a"]),
        (&["d/s/a = 1", "d/s = file", "d/s/b = 1"], false, &["a"]),
        (&["d/s/a = 1", "d/s/ opaque\n d/s/b = 1", "d/s/c = 1"], false, &["a", "b"]),
        (&["d/s/a = 1", "d/x = 1", "d/.wh.s = 1\n d/y = 1", "d/s/b = 1"], true, &["a"]),
        (&["d/s/a = 1", "d/.wh.s = 1\n d/s/b = 1", "d/s/c = 1"], true, &["a", "b"]),
        (&["d/s/a = 1", "d/s/.wh..wh..opq = 1\n d/s/b = 1", "d/s/c = 1"], true, &["a", "b"]),
    ] {
        for listed in [false, true] {
            let mut of = Layers::of(layers).upper("d/u = 1\n d/s/z = 1");
            if wh_names {
                of = of.wh_names();
            }
            let u = of.open();
            let d = u.at("d").unwrap();
            let mut s = None;
            if listed {
                let mut each = |dirent: &Dirent<'_>, entry: Option<&Entry>| {
                    if let Some(entry) = entry {
                        u.met(entry.clone());
                        s = s.or((dirent.name == "s").then_some(entry.id));
                    }
                };
                u.overlay.readdirplus(&caller(), d, 0, &mut |_| Room::Taken, &mut each).unwrap();
                assert!(s.is_some());
            }
            let names = dotless(read_on(&u, s.unwrap_or_else(|| u.at("d/s").unwrap()), 0, 100, |_| {}));
            let expected = expected.iter().chain(&["z"]).map(|name| (*name).to_owned());
            assert_eq!(names.into_iter().collect::<BTreeSet<_>>(), expected.collect(), "{layers:?} listed: {listed}");
        }
    }
}

#[test]
fn a_whiteout_in_a_directory_of_one_lower_is_not_shown() {
    let u = union(&["d/f = 1\n !d/g", "e/f = 1"]);
    assert_eq!(u.list("d"), ["f"]);
    assert_eq!(u.at("d/g"), Err(Errno::ENOENT));
}
