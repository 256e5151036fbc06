//! `metacopy=on`: a change of attributes copies attributes, and the data follows when it is written.

use std::fs;

use plyfs::errno::Errno;
use plyfs::overlay::config::RedirectDir;

use crate::fixture::{Layers, Union, mark, set_mark};

fn metacopying(lowers: &[&str]) -> Layers {
    let mut layers = Layers::of(lowers);
    layers.config.features.redirect_dir = RedirectDir::On;
    layers.config.features.metacopy = true;
    layers
}

fn marks(u: &Union, name: &str) -> (Option<Vec<u8>>, Option<String>) {
    let path = u.layers.upper_path(name);
    (mark(&path, "metacopy"), mark(&path, "redirect").map(|value| String::from_utf8(value).unwrap()))
}

const EMPTY: Option<Vec<u8>> = Some(Vec::new());

#[test]
fn a_change_of_attributes_copies_no_data() {
    let layers = metacopying(&["f = hello"]);
    fs::write(layers.lower(1, "empty"), "").unwrap();
    let u = layers.open();
    let (before, id) = (u.stat("f").unwrap(), u.at("f").unwrap());
    assert_eq!(u.chmod("f", 0o600).unwrap().mode & 0o7777, 0o600);
    u.chmod("empty", 0o600).unwrap();
    assert_eq!(fs::read(u.layers.upper_path("f")).unwrap(), [0; 5]);
    assert_eq!((marks(&u, "f").0, marks(&u, "empty").0), (EMPTY, EMPTY));
    let after = u.stat("f").unwrap();
    assert_eq!((after.ino, after.size, after.blocks), (before.ino, before.size, before.blocks));
    assert_eq!((u.at("f").unwrap(), u.read("f").unwrap()), (id, "hello".to_owned()));
    let u = u.reopen();
    assert_eq!((u.read("empty").unwrap(), u.read("f").unwrap()), (String::new(), "hello".to_owned()));
    let again = u.stat("f").unwrap();
    assert_eq!((again.ino, again.blocks, again.mode & 0o7777), (before.ino, before.blocks, 0o600));
}

#[test]
fn the_data_follows_at_the_first_write() {
    let u = metacopying(&["f = hello\n g = hello\n h = hello"]).open();
    for name in ["f", "g", "h"] {
        u.chmod(name, 0o600).unwrap();
    }
    let mtime = u.stat("f").unwrap().mtime;
    assert_eq!(u.read("f").unwrap(), "hello");
    u.append("f", " world").unwrap();
    u.truncate("g", 2).unwrap();
    u.truncate("h", 8).unwrap();
    assert!(u.stat("f").unwrap().mtime != mtime);
    for name in ["f", "g", "h"] {
        assert_eq!(marks(&u, name).0, None, "{name}");
    }
    u.upper_holds("f = hello world\n g = he\n h = hello\0\0\0");
    u.reopen().shows("f = hello world\n g = he\n h = hello\0\0\0");
}

#[test]
fn renamed_files_without_data_find_it() {
    let u = metacopying(&["f = 1\n g = 2\n d/h = 3\n d/i == d/h"]).open();
    for name in ["f", "g", "d/h"] {
        u.chmod(name, 0o600).unwrap();
    }
    u.rename("f", "f2").unwrap();
    u.rename("g", "d/g").unwrap();
    u.rename("d/h", "d/h2").unwrap();
    assert_eq!(marks(&u, "f2"), (EMPTY, Some("f".to_owned())));
    assert_eq!(marks(&u, "d/g"), (EMPTY, Some("/g".to_owned())));
    // One of several names in the lower: always the whole path, as the kernel writes it.
    assert_eq!(marks(&u, "d/h2"), (EMPTY, Some("/d/h".to_owned())));
    u.shows("d/g = 2\n d/h2 = 3\n d/i = 3\n f2 = 1");
    let u = u.reopen();
    u.rename("f2", "d/f3").unwrap();
    assert_eq!(marks(&u, "d/f3"), (EMPTY, Some("/f".to_owned())));
    u.rename("d", "e").unwrap();
    let u = u.reopen();
    u.shows("e/f3 = 1\n e/g = 2\n e/h2 = 3\n e/i = 3");
    u.append("e/f3", "1").unwrap();
    u.reopen().shows("e/f3 = 11\n e/g = 2\n e/h2 = 3\n e/i = 3");
}

#[test]
fn a_lower_file_that_is_renamed_is_not_copied() {
    let u = metacopying(&["f = data\n d/"]).open();
    u.rename("f", "d/g").unwrap();
    assert_eq!(marks(&u, "d/g"), (EMPTY, Some("/f".to_owned())));
    u.create("f", "other").unwrap();
    u.reopen().shows("d/g = data\n f = other");
}

#[test]
fn both_names_of_a_linked_file_find_the_data() {
    let u = metacopying(&["d/f = data"]).open();
    u.link("d/f", "g").unwrap();
    assert_eq!(marks(&u, "g"), (EMPTY, Some("/d/f".to_owned())));
    let u = u.reopen();
    u.shows("d/f = data\n g = data");
    u.append("g", "!").unwrap();
    assert_eq!(marks(&u, "d/f").0, None);
    u.shows("d/f = data!\n g = data!");
    u.reopen().shows("d/f = data!\n g = data!");
}

#[test]
fn layers_in_the_middle_have_attributes_only_too() {
    let layers = metacopying(&["a = ....\n d/b = ....", "x = ....", "d/y = data"]);
    for (layer, name, redirect) in [(1, "a", "x"), (1, "d/b", "/x"), (2, "x", "/d/y")] {
        set_mark(&layers.lower(layer, name), "metacopy", b"");
        set_mark(&layers.lower(layer, name), "redirect", redirect.as_bytes());
    }
    let u = layers.open();
    u.shows("a = data\n d/b = data\n d/y = data\n x = data");
    // A copy of the attributes of one that has attributes only.
    u.chmod("a", 0o600).unwrap();
    assert_eq!(marks(&u, "a"), (EMPTY, None));
    let u = u.reopen();
    assert_eq!(u.read("a").unwrap(), "data");
    u.rename("a", "d/a").unwrap();
    let u = u.reopen();
    assert_eq!(u.read("d/a").unwrap(), "data");
    u.append("d/b", "!").unwrap();
    u.append("d/a", "?").unwrap();
    u.reopen().shows("d/a = data?\n d/b = data!\n d/y = data\n x = data");
}

#[test]
fn marks_that_lead_nowhere_are_refused() {
    let lower = "f = data\n dir/x = 1\n link -> f";
    type Row<'a> = (&'a [u8], Option<&'a [u8]>, Result<&'a str, Errno>);
    let table: &[Row<'_>] = &[
        (b"", None, Ok("data")),
        (&[0, 4, 0, 0], None, Ok("data")),
        (&[0], None, Err(Errno::EIO)),
        (&[0, 4, 0], None, Err(Errno::EIO)),
        (b"", Some(b"/dir/x"), Ok("1")),
        (b"", Some(b"f"), Ok("data")),
        (b"", Some(b".."), Err(Errno::EACCES)),
        (b"", Some(b"/dir/../f"), Err(Errno::EACCES)),
        (b"", Some(b"a/b"), Err(Errno::EINVAL)),
        (b"", Some(b"nowhere"), Err(Errno::EIO)),
        (b"", Some(b"dir"), Err(Errno::EIO)),
        (b"", Some(b"/dir"), Err(Errno::EIO)),
        (b"", Some(b"link"), Err(Errno::EIO)),
        (b"", Some(b"/link/x"), Err(Errno::EIO)),
    ];
    for (value, redirect, expected) in table {
        let layers = metacopying(&[lower]).upper("f = ....");
        set_mark(&layers.upper_path("f"), "metacopy", value);
        if let Some(redirect) = redirect {
            set_mark(&layers.upper_path("f"), "redirect", redirect);
        }
        let u = layers.open();
        let found = u.read("f");
        assert_eq!(found.as_deref().map_err(|errno| *errno), *expected, "{value:?} {redirect:?}");
    }
}

#[test]
fn without_metacopy_nobody_takes_holes_for_data() {
    let layers = metacopying(&["f = data"]);
    fs::write(layers.lower(1, "empty"), "").unwrap();
    let u = layers.open();
    u.chmod("f", 0o600).unwrap();
    u.chmod("empty", 0o600).unwrap();
    let mut layers = u.close();
    layers.config.features.metacopy = false;
    let u = layers.open();
    assert_eq!((u.at("f"), u.at("empty")), (Err(Errno::EPERM), Err(Errno::EPERM)));
}

#[test]
fn what_another_could_have_marked_is_not_followed() {
    if !crate::support::is_root() {
        return;
    }
    let layers = metacopying(&["f = secret"]).upper("mine = mine\n dir/");
    for (name, mark) in [("mine", "metacopy"), ("mine", "redirect"), ("dir", "redirect")] {
        let value: &[u8] = if mark == "metacopy" { b"" } else { b"f" };
        crate::fixture::set_disk_xattr(&layers.upper_path(name), &format!("user.overlay.{mark}"), value);
    }
    layers.open().shows("dir/\n f = secret\n mine = mine");
}

#[test]
fn an_open_file_without_data_survives_its_removal() {
    let u = metacopying(&["f = data\n g = data"]).open();
    for name in ["f", "g"] {
        let id = u.at(name).unwrap();
        u.chmod(name, 0o600).unwrap();
        assert_eq!(u.read_node(id).unwrap(), "data");
        u.unlink(name).unwrap();
        assert_eq!(u.read_node(id).unwrap(), "data");
        if name == "g" {
            u.put(id, 4, b"!").unwrap();
            assert_eq!(u.read_node(id).unwrap(), "data!");
        }
    }
    u.upper_holds("!f\n !g");
}

#[test]
fn a_copy_of_a_capable_file_keeps_all_when_the_data_comes() {
    let u = metacopying(&["f = data"]).open();
    u.chmod("f", 0o4755).unwrap();
    let id = u.at("f").unwrap();
    // The owner's own write, which leaves both.
    u.put(id, 4, b"!").unwrap();
    assert_eq!(u.stat("f").unwrap().mode & 0o7777, 0o4755);
    u.chmod("f", 0o400).unwrap();
    u.put(id, 5, b"!").unwrap();
    assert_eq!(u.read("f").unwrap(), "data!!");
}

#[test]
fn where_the_path_is_too_long_for_a_mark_a_link_takes_the_data_along() {
    let long = "n".repeat(130);
    let name = format!("{long}/{long}/f");
    let u = metacopying(&[&format!("{name} = hello\n near = hello")]).open();
    for name in [&name, "near"] {
        u.chmod(name, 0o600).unwrap();
        u.link(name, format!("{name}2")).unwrap();
    }
    assert_eq!(marks(&u, "near"), (EMPTY, Some("/near".to_owned())));
    assert_eq!(marks(&u, &name), (None, None));
    assert_eq!(fs::read(u.layers.upper_path(&name)).unwrap(), b"hello");
    let u = u.reopen();
    u.shows(&format!("{name} = hello\n {name}2 = hello\n near = hello\n near2 = hello"));
    assert_eq!(u.stat(&name).unwrap().nlink, 2);
}

#[test]
fn with_an_index_the_data_is_that_of_the_file_that_was_copied_up() {
    crate::need!(crate::support::is_root(), "not root, so nobody can tell whether that file is elsewhere");
    for index in [true, false] {
        let mut layers = Layers::of(&["f = old text"]);
        layers.config.features.metacopy = true;
        layers.config.features.redirect_dir = RedirectDir::On;
        layers.config.features.index = index;
        let u = layers.open();
        u.chmod("f", 0o600).unwrap();
        let layers = u.close();
        std::fs::rename(layers.lower(1, "f"), layers.lower(1, "g")).unwrap();
        std::fs::write(layers.lower(1, "f"), "new text").unwrap();
        let found = layers.open().read("f");
        assert_eq!(found, if index { Err(Errno::ESTALE) } else { Ok("new text".to_owned()) });
    }
}
