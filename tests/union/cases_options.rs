//! What `faults` cuts with options that change the steps: `redirect_dir=on`, `metacopy=on`, `index=on`, `xattr_permissions`.

use std::ffi::OsStr;

use plyfs::errno::Result;
use plyfs::overlay::SetAttr;
use plyfs::overlay::config::{Permissions, RedirectDir};
use plyfs::sys::{SetTime, Time};

use crate::cases::*;
use crate::fixture::{Layers, Union, set_disk_xattr};
use crate::vfs::{NOTHING, caller};

use plyfs::overlay::Privileges::Keep;
use plyfs::overlay::Rename::{Exchange, Replace};

pub fn redirecting(mut layers: Layers) -> Layers {
    layers.config.features.redirect_dir = RedirectDir::On;
    layers
}

/// Directories of several lowers, of which some have a part in the upper.
fn parts() -> Layers {
    let layers = Layers::of(&["d/e/f = 1\n d/g = 2\n m/a = 3\n m/b = 4\n n/x = 5", "d/e/h = 6\n d/gone = 7\n d/i = 8"]);
    redirecting(layers.upper("!d/gone\n d/e/own = 9\n own/dir/x = 1\n !m/a\n !m/b"))
}

/// One of them has moved already.
fn moved() -> Layers {
    let u = parts().open();
    u.rename("d/e", "own/e").unwrap();
    u.close()
}

fn hollow() -> Layers {
    let mut layers = redirecting(lower());
    layers.config.features.metacopy = true;
    layers
}

/// A file whose attributes are in the upper, and whose data is not.
fn hollowed() -> Layers {
    let u = hollow().open();
    u.chmod("d/e/f", 0o644).unwrap();
    u.close()
}

/// One that has got another name since.
fn hollowed_twice() -> Layers {
    let u = hollowed().open();
    u.link("d/e/f", "new").unwrap();
    u.close()
}

fn hollowed_link() -> Layers {
    let u = hollow().open();
    u.chmod("h", 0o644).unwrap();
    u.close()
}

fn hollowed_entry() -> Layers {
    let mut layers = hollow();
    layers.config.features.index = true;
    let u = layers.open();
    u.chmod("h", 0o644).unwrap();
    u.close()
}

/// A file with several names in a lower, and others.
fn named() -> Layers {
    let mut layers = Layers::of(&["a = linked\n d/b == a\n d/c == a\n d/x = other\n e/y == d/x\n d/gone = 1"]);
    layers.config.features.index = true;
    layers.upper("!d/gone\n own/z = 1")
}

/// It has been copied up under one of them.
fn indexed() -> Layers {
    let u = named().open();
    u.chmod("a", 0o644).unwrap();
    u.close()
}

/// Two of its names are left, then one.
fn nearly_gone() -> Layers {
    without(indexed(), "a")
}

fn last() -> Layers {
    without(nearly_gone(), "d/b")
}

pub fn without(layers: Layers, path: &str) -> Layers {
    let u = layers.open();
    u.unlink(path).unwrap();
    u.close()
}

/// Owners, modes and kinds are in an attribute.
fn described() -> Layers {
    let mut layers = upper();
    layers.config.permissions = Permissions::User;
    for root in [layers.lower(1, ""), layers.lower(2, ""), layers.upper_path("")] {
        set_disk_xattr(&root, "user.containers.override_stat", b"0:0:0755:dir");
    }
    set_disk_xattr(&layers.lower(1, "d/e/f"), "user.containers.override_stat", b"5:6:04711:file");
    layers
}

pub fn chmod(u: &Union, go: &dyn Fn(), path: &str) -> Result<()> {
    set(u, go, path, &SetAttr { mode: Some(0o600), ..NOTHING })
}

fn chown(u: &Union, go: &dyn Fn(), path: &str) -> Result<()> {
    set(u, go, path, &SetAttr { uid: Some(1000), gid: Some(1000), ..NOTHING })
}

pub fn touch(u: &Union, go: &dyn Fn(), path: &str) -> Result<()> {
    let then = SetTime::At(Time { sec: 77, nsec: 7 });
    set(u, go, path, &SetAttr { atime: then, mtime: then, ..NOTHING })
}

pub fn cut_to(u: &Union, go: &dyn Fn(), path: &str, size: u64) -> Result<()> {
    set(u, go, path, &SetAttr { size: Some(size), ..NOTHING })
}

fn set_user_xattr(u: &Union, go: &dyn Fn(), path: &str, name: &str) -> Result<()> {
    let node = u.at(path)?;
    go();
    u.overlay.setxattr(node, OsStr::new(name), b"value", 0)
}

pub const CASES: &[Case] = &[
    case("redirect: rename of a lower directory", parts, |u, go| rename(u, go, "n", "new", Replace)),
    case("redirect: rename of a lower directory to elsewhere", parts, |u, go| rename(u, go, "n", "own/n", Replace)),
    case("redirect: rename of a merged directory", parts, |u, go| rename(u, go, "d/e", "d/new", Replace)),
    case("redirect: rename of a merged directory to elsewhere", parts, |u, go| rename(u, go, "d/e", "own/e", Replace)),
    case("redirect: rename of a merged directory over a whiteout", parts, |u, go| {
        rename(u, go, "d/e", "d/gone", Replace)
    }),
    case("redirect: rename of a lower directory over an emptied one", parts, |u, go| rename(u, go, "n", "m", Replace)),
    case("redirect: rename without RENAME_WHITEOUT", parts, |u, go| rename(u, go, "d/e", "own/e", Replace))
        .without_rename_whiteout(),
    case("redirect: rename over an emptied one without RENAME_WHITEOUT", parts, |u, go| {
        rename(u, go, "d/e", "m", Replace)
    })
    .without_rename_whiteout()
    .between(Between::More),
    case("redirect: exchange of merged directories", parts, |u, go| rename(u, go, "d/e", "n", Exchange)),
    case("redirect: exchange of a merged directory and a file", parts, |u, go| rename(u, go, "d/e", "d/g", Exchange)),
    case("redirect: exchange of an upper and a lower directory", parts, |u, go| {
        rename(u, go, "own/dir", "n", Exchange)
    }),
    case("redirect: rename of what has moved", moved, |u, go| rename(u, go, "own/e", "own/f", Replace)),
    case("redirect: rename of what has moved back", moved, |u, go| rename(u, go, "own/e", "d/e", Replace)),
    case("redirect: create in what has moved", moved, |u, go| create(u, go, &caller(), "own/e/new")),
    case("redirect: unlink in what has moved", moved, |u, go| unlink(u, go, "own/e/h")),
    case("redirect: first write in what has moved", moved, |u, go| write(u, go, "own/e/f", Keep)),
    case("redirect: mkdir where it was", moved, |u, go| mkdir(u, go, &caller(), "d/e")),
    case("redirect: rmdir of an emptied directory", parts, |u, go| rmdir(u, go, "m")),
    case("metacopy: chmod", hollow, |u, go| chmod(u, go, "d/e/f")),
    case("metacopy: chmod below lower directories", hollow, |u, go| chmod(u, go, "d/e/f")).with_parents(),
    case("metacopy: chown", hollow, |u, go| chown(u, go, "d/e/f")).for_root(),
    case("metacopy: times", hollow, |u, go| touch(u, go, "d/e/f")),
    case("metacopy: setxattr", hollow, |u, go| set_user_xattr(u, go, "d/e/f", "user.new")),
    case("metacopy: rename of a lower file", hollow, |u, go| rename(u, go, "d/e/f", "d/new", Replace)),
    case("metacopy: rename of a lower file over another", hollow, |u, go| rename(u, go, "d/e/f", "d/below", Replace)),
    case("metacopy: exchange of lower files", hollow, |u, go| rename(u, go, "d/e/f", "d/below", Exchange)),
    case("metacopy: link of a lower file", hollow, |u, go| link(u, go, "d/e/f", "d/new")),
    case("metacopy: link of one of several lower links", hollow, |u, go| link(u, go, "h", "d/new")),
    case("metacopy: first write", hollow, |u, go| write(u, go, "d/e/f", Keep)),
    case("metacopy: data follows at a write", hollowed, |u, go| write(u, go, "d/e/f", Keep)),
    case("metacopy: data follows at a truncation", hollowed, |u, go| cut_to(u, go, "d/e/f", 3)),
    case("metacopy: data follows at a truncation to more", hollowed, |u, go| cut_to(u, go, "d/e/f", 99)),
    case("metacopy: data need not follow", hollowed, |u, go| cut_to(u, go, "d/e/f", 0)),
    // Of several names no other file can take the place in one step, and one whose number goes with the object must stay.
    // These are completed in place, as the kernel does it with all: a death leaves the old data, perhaps with a new time.
    case("metacopy: data follows to a file with two names", hollowed_twice, |u, go| write(u, go, "d/e/f", Keep))
        .between(Between::Times),
    case("metacopy: data follows to a file with two names, cut", hollowed_twice, |u, go| cut_to(u, go, "d/e/f", 3))
        .between(Between::Times),
    case("metacopy: data follows to one of several lower links", hollowed_link, |u, go| write(u, go, "h", Keep))
        .between(Between::Times),
    case("metacopy: data follows to an index entry", hollowed_entry, |u, go| write(u, go, "h2", Keep))
        .between(Between::Times),
    case("metacopy: rename of one without data", hollowed, |u, go| rename(u, go, "d/e/f", "d/e/new", Replace)),
    case("metacopy: rename of one without data to elsewhere", hollowed, |u, go| rename(u, go, "d/e/f", "new", Replace)),
    case("metacopy: rename over one without data", hollowed, |u, go| rename(u, go, "d/e/g", "d/e/f", Replace)),
    case("metacopy: link of one without data", hollowed, |u, go| link(u, go, "d/e/f", "d/new")),
    case("metacopy: unlink of one without data", hollowed, |u, go| unlink(u, go, "d/e/f")),
    case("metacopy: chmod of one without data", hollowed, |u, go| chmod(u, go, "d/e/f")),
    case("index: first write", named, |u, go| write(u, go, "d/b", Keep)),
    case("index: first write below lower directories", named, |u, go| write(u, go, "d/b", Keep)).with_parents(),
    case("index: truncate", named, |u, go| cut_to(u, go, "a", 2)),
    case("index: chmod", named, |u, go| chmod(u, go, "d/b")),
    case("index: link", named, |u, go| link(u, go, "a", "d/new")),
    case("index: link over a whiteout", named, |u, go| link(u, go, "a", "d/gone")),
    case("index: unlink", named, |u, go| unlink(u, go, "a")),
    case("index: rename", named, |u, go| rename(u, go, "d/b", "new", Replace)),
    case("index: rename over a name of another", named, |u, go| rename(u, go, "d/b", "e/y", Replace)),
    case("index: exchange with a name of another", named, |u, go| rename(u, go, "d/b", "e/y", Exchange)),
    case("index: write under another name", indexed, |u, go| write(u, go, "d/b", Keep)),
    case("index: link of a copy", indexed, |u, go| link(u, go, "d/c", "d/new")),
    case("index: unlink of the copied name", indexed, |u, go| unlink(u, go, "a")),
    case("index: unlink of another name", indexed, |u, go| unlink(u, go, "d/b")),
    case("index: unlink of the last name but one", nearly_gone, |u, go| unlink(u, go, "d/b")),
    case("index: unlink of the last name", last, |u, go| unlink(u, go, "d/c")),
    case("index: rename over the last name", last, |u, go| rename(u, go, "own/z", "d/c", Replace)),
    case("index: rename of a copy", indexed, |u, go| rename(u, go, "d/b", "new", Replace)),
    case("index: rename of an upper file over a copy", indexed, |u, go| rename(u, go, "own/z", "a", Replace)),
    case("override_stat: create", described, |u, go| create(u, go, &other(), "d/e/new")),
    case("override_stat: create over a whiteout", described, |u, go| create(u, go, &other(), "d/gone")),
    case("override_stat: mkdir", described, |u, go| mkdir(u, go, &other(), "d/e/new")),
    case("override_stat: mkdir over a whiteout", described, |u, go| mkdir(u, go, &other(), "d/gone")),
    case("override_stat: mknod of a device", described, |u, go| {
        let (dir, name) = place(u, "d/e/null")?;
        go();
        done(u, u.overlay.mknod(&caller(), dir, name, libc::S_IFCHR | 0o666, plyfs::sys::make_dev(1, 3)))
    }),
    case("override_stat: symlink", described, |u, go| symlink(u, go, &other(), "d/e/new")),
    case("override_stat: link", described, |u, go| link(u, go, "d/e/g", "d/new")),
    case("override_stat: chmod of a lower file", described, |u, go| chmod(u, go, "d/e/g")),
    case("override_stat: chmod of a lower directory", described, |u, go| chmod(u, go, "d/e")),
    case("override_stat: chmod of an upper file", described, |u, go| chmod(u, go, "own/a")),
    case("override_stat: chown of a lower file", described, |u, go| chown(u, go, "d/e/g")),
    case("override_stat: chown of an upper directory", described, |u, go| chown(u, go, "own")),
    case("override_stat: times of a lower file", described, |u, go| touch(u, go, "d/e/g")),
    case("override_stat: first write", described, |u, go| write(u, go, "d/e/g", Keep)),
    case("override_stat: first write below lower directories", described, |u, go| write(u, go, "d/e/g", Keep))
        .with_parents(),
    case("override_stat: truncate", described, |u, go| cut_to(u, go, "d/e/g", 2)),
    case("override_stat: a capability", described, |u, go| set_user_xattr(u, go, "d/e/g", "security.capability")),
    case("override_stat: rename of a lower file", described, |u, go| rename(u, go, "d/e/g", "d/new", Replace)),
    case("override_stat: unlink of a copy", described, |u, go| unlink(u, go, "d/e/f")),
    case("override_stat: tmpfile that is given a name", described, |u, go| {
        let dir = u.at("d/e")?;
        let file = u.met(u.overlay.tmpfile(&other(), dir, 0o600)?);
        go();
        done(u, u.overlay.link(&caller(), file.id, dir, OsStr::new("new")))
    }),
];
