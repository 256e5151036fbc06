//! The operations that `faults` cuts, each on layers where it takes the longest way.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::time::{Duration, SystemTime};

use plyfs::errno::{Errno, Result};
use plyfs::overlay::{Caller, Entry, NodeId, Privileges, Rename, SetAttr};
use plyfs::sys::{SetTime, Time};

use crate::fixture::{Layers, Union, set_disk_xattr};
use crate::vfs::{NOTHING, caller};

/// What may show between the steps of an operation, besides the tree from before and the tree from after.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Between {
    Nothing,
    /// The same names; what is said of them may be of either.
    Names,
    /// The tree from before, but for times of change: after a death only.
    Times,
    /// All of the one tree or all of the other, and more: nothing is lost.
    More,
}

/// An operation on layers of its own.
pub struct Case {
    pub name: &'static str,
    pub layers: fn() -> Layers,
    /// Finds what it works on, says when it begins, and begins.
    pub operation: fn(&Union, &dyn Fn()) -> Result<()>,
    /// Only root can do it.
    pub root_only: bool,
    /// A call that the upper's file system does not know, and what it says.
    pub without: Option<(&'static str, Errno)>,
    /// It changes nothing that shows.
    pub invisible: bool,
    /// The directories above are copied up in it, too; else they have been before.
    pub parents: bool,
    /// It takes more than one step on disk where the file system has no better.
    pub between: Between,
}

pub const fn case(name: &'static str, layers: fn() -> Layers, operation: fn(&Union, &dyn Fn()) -> Result<()>) -> Case {
    Case {
        name,
        layers,
        operation,
        root_only: false,
        without: None,
        invisible: false,
        parents: false,
        between: Between::Nothing,
    }
}

impl Case {
    pub const fn for_root(mut self) -> Case {
        self.root_only = true;
        self
    }

    pub const fn without_rename_whiteout(mut self) -> Case {
        self.without = Some(("rename whiteout", Errno::EINVAL));
        self
    }

    pub const fn invisible(mut self) -> Case {
        self.invisible = true;
        self
    }

    pub const fn with_parents(mut self) -> Case {
        self.parents = true;
        self
    }

    pub const fn between(mut self, between: Between) -> Case {
        self.between = between;
        self
    }
}

/// A lower with a bit of everything, all of it old, and nothing in the upper.
pub fn lower() -> Layers {
    let layers = Layers::of(&[
        "d/e/f = the text of a lower file\n d/e/g = another\n d/e/link -> f\n d/gone/in = 1\n empty/\n h = linked\n h2 == h",
        "d/below = 1\n empty2/\n d/e/f = hidden text\n d/e/only2 = two",
    ]);
    set_disk_xattr(&layers.lower(1, "d/e/f"), "user.kept", b"value");
    set_disk_xattr(&layers.lower(1, "d/e"), "user.of", b"e");
    age(&layers, 1, &["d/e/f", "d/e/g", "h"]);
    age(&layers, 2, &["d/e/only2", "d/below"]);
    layers
}

fn age(layers: &Layers, layer: usize, paths: &[&str]) {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_234_567_890);
    for path in paths {
        File::open(layers.lower(layer, path)).unwrap().set_times(FileTimes::new().set_modified(then)).unwrap();
    }
}

/// The same with whiteouts, copies and directories of its own in the upper.
pub fn upper() -> Layers {
    lower().upper("!d/gone\n d/e/f = copy\n own/a = 1\n own/b = 2\n own/dir/x = 3\n vacant/\n !own/was\n !d/e/only2")
}

fn lower_names() -> Layers {
    lower().wh_names()
}

fn upper_names() -> Layers {
    lower().upper("d/.wh.gone = x\n d/e/f = copy\n own/a = 1\n own/dir/x = 3\n vacant/").wh_names()
}

/// An upper directory over a lower one, in which everything is whited out.
fn emptied() -> Layers {
    Layers::of(&["m/a = 1\n m/b = 2"]).upper("!m/a\n !m/b\n own/x = 1")
}

fn with_acl() -> Layers {
    let layers = Layers::of(&["d/f = 1"]);
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, u32::MAX), (2, 7, 1000), (4, 5, u32::MAX), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        acl.extend([&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    set_disk_xattr(&layers.lower(1, "d"), "system.posix_acl_default", &acl);
    layers
}

fn suid() -> Layers {
    let layers = lower();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(layers.lower(1, "d/e/f"), fs::Permissions::from_mode(0o4755)).unwrap();
    layers
}

/// Somebody who is not the server.
pub fn other() -> Caller {
    Caller { uid: 1000, gid: 1000, pid: 1, umask: 0o022 }
}

pub fn done(u: &Union, made: Result<Entry>) -> Result<()> {
    made.map(|entry| {
        u.met(entry);
    })
}

pub fn place<'a>(u: &Union, path: &'a str) -> Result<(NodeId, &'a OsStr)> {
    let path = Path::new(path);
    Ok((u.at(path.parent().unwrap())?, path.file_name().unwrap()))
}

pub fn create(u: &Union, go: &dyn Fn(), who: &Caller, path: &str) -> Result<()> {
    let (dir, name) = place(u, path)?;
    go();
    done(u, u.overlay.mknod(who, dir, name, libc::S_IFREG | 0o640, 0))
}

pub fn mkdir(u: &Union, go: &dyn Fn(), who: &Caller, path: &str) -> Result<()> {
    let (dir, name) = place(u, path)?;
    go();
    done(u, u.overlay.mkdir(who, dir, name, 0o755))
}

pub fn symlink(u: &Union, go: &dyn Fn(), who: &Caller, path: &str) -> Result<()> {
    let (dir, name) = place(u, path)?;
    go();
    done(u, u.overlay.symlink(who, dir, name, OsStr::new("target")))
}

pub fn link(u: &Union, go: &dyn Fn(), old: &str, path: &str) -> Result<()> {
    let (node, (dir, name)) = (u.at(old)?, place(u, path)?);
    go();
    done(u, u.overlay.link(&caller(), node, dir, name))
}

pub fn unlink(u: &Union, go: &dyn Fn(), path: &str) -> Result<()> {
    let (dir, name) = place(u, path)?;
    go();
    u.overlay.unlink(&caller(), dir, name)
}

pub fn rmdir(u: &Union, go: &dyn Fn(), path: &str) -> Result<()> {
    let (dir, name) = place(u, path)?;
    go();
    u.overlay.rmdir(&caller(), dir, name)
}

pub fn rename(u: &Union, go: &dyn Fn(), old: &str, new: &str, how: Rename) -> Result<()> {
    let (from, to) = (place(u, old)?, place(u, new)?);
    go();
    u.overlay.rename(&caller(), from, to, how)
}

pub fn set(u: &Union, go: &dyn Fn(), path: &str, set: &SetAttr) -> Result<()> {
    let node = u.at(path)?;
    go();
    u.overlay.setattr(&caller(), node, set).map(drop)
}

pub fn write(u: &Union, go: &dyn Fn(), path: &str, privileges: Privileges) -> Result<()> {
    let node = u.at(path)?;
    go();
    u.overlay.write(node, 0, b"THE", privileges).map(|written| assert_eq!(written, 3))
}

use Rename::{Exchange, NoReplace, Replace};

pub const CASES: &[Case] = &[
    case("create", lower, |u, go| create(u, go, &caller(), "d/e/new")),
    case("create below lower directories", lower, |u, go| create(u, go, &caller(), "d/e/new")).with_parents(),
    case("create over a whiteout", upper, |u, go| create(u, go, &caller(), "d/gone")),
    case("create for another", lower, |u, go| create(u, go, &other(), "d/e/new")).for_root(),
    case("create for another over a whiteout", upper, |u, go| create(u, go, &other(), "d/gone")).for_root(),
    case("create for another under a default ACL", with_acl, |u, go| create(u, go, &other(), "d/new")).for_root(),
    case("create under a default ACL", with_acl, |u, go| create(u, go, &caller(), "d/new")),
    case("create over a .wh. name", upper_names, |u, go| create(u, go, &caller(), "d/gone")),
    case("create for another over a .wh. name", upper_names, |u, go| create(u, go, &other(), "d/gone")).for_root(),
    case("mkdir", lower, |u, go| mkdir(u, go, &caller(), "d/e/new")),
    case("mkdir over a whiteout", upper, |u, go| mkdir(u, go, &caller(), "d/gone")),
    case("mkdir for another over a whiteout", upper, |u, go| mkdir(u, go, &other(), "d/gone")).for_root(),
    case("mkdir for another", lower, |u, go| mkdir(u, go, &other(), "d/e/new")).for_root(),
    case("mkdir under a default ACL", with_acl, |u, go| mkdir(u, go, &other(), "d/new")).for_root(),
    case("mkdir over a .wh. name", upper_names, |u, go| mkdir(u, go, &caller(), "d/gone")),
    case("mknod", lower, |u, go| {
        let (dir, name) = place(u, "d/e/pipe")?;
        go();
        done(u, u.overlay.mknod(&caller(), dir, name, libc::S_IFIFO | 0o644, 0))
    }),
    case("symlink", lower, |u, go| symlink(u, go, &caller(), "d/e/new")),
    case("symlink over a whiteout", upper, |u, go| symlink(u, go, &caller(), "d/gone")),
    case("symlink for another", upper, |u, go| symlink(u, go, &other(), "d/gone")).for_root(),
    case("link of a lower file", lower, |u, go| link(u, go, "d/e/f", "d/new")),
    case("link of one of several lower links", lower, |u, go| link(u, go, "h", "d/e/new")),
    case("link of an upper file over a whiteout", upper, |u, go| link(u, go, "own/a", "d/gone")),
    case("link of a lower symlink", lower, |u, go| link(u, go, "d/e/link", "d/new")),
    case("link over a .wh. name", upper_names, |u, go| link(u, go, "own/a", "d/gone")),
    case("unlink of a lower file", lower, |u, go| unlink(u, go, "d/e/f")),
    case("unlink below lower directories", lower, |u, go| unlink(u, go, "d/e/f")).with_parents(),
    case("unlink of an upper file", upper, |u, go| unlink(u, go, "own/a")),
    case("unlink of a copy", upper, |u, go| unlink(u, go, "d/e/f")),
    case("unlink of a lower file by a .wh. name", lower_names, |u, go| unlink(u, go, "d/e/f")),
    case("unlink of a copy by a .wh. name", upper_names, |u, go| unlink(u, go, "d/e/f")),
    case("unlink of a copy without RENAME_WHITEOUT", upper, |u, go| unlink(u, go, "d/e/f")).without_rename_whiteout(),
    case("rmdir of a lower directory", lower, |u, go| rmdir(u, go, "empty")),
    case("rmdir of an upper directory", upper, |u, go| rmdir(u, go, "vacant")),
    case("rmdir of an emptied directory", emptied, |u, go| rmdir(u, go, "m")),
    case("rmdir by a .wh. name", lower_names, |u, go| rmdir(u, go, "empty")),
    case("rename of a lower file", lower, |u, go| rename(u, go, "d/e/f", "d/new", Replace)),
    case("rename of a lower file over another", lower, |u, go| rename(u, go, "d/e/f", "d/below", Replace)),
    case("rename of an upper file", upper, |u, go| rename(u, go, "own/a", "own/new", NoReplace)),
    case("rename of an upper file over a copy", upper, |u, go| rename(u, go, "own/a", "d/e/f", Replace)),
    case("rename of a copy over an upper file", upper, |u, go| rename(u, go, "d/e/f", "own/a", Replace)),
    case("rename of a copy onto a whiteout", upper, |u, go| rename(u, go, "d/e/f", "d/gone", Replace)),
    case("exchange of lower files", lower, |u, go| rename(u, go, "d/e/f", "d/below", Exchange)),
    case("exchange of an upper directory and a lower file", upper, |u, go| rename(u, go, "own/dir", "d/e/g", Exchange)),
    case("rename of a directory", upper, |u, go| rename(u, go, "own/dir", "d/e/dir", Replace)),
    case("rename of a directory over a whiteout", upper, |u, go| rename(u, go, "own/dir", "d/gone", Replace)),
    case("rename of a directory over a lower one", upper, |u, go| rename(u, go, "own", "empty", Replace)),
    case("rename of a directory over an emptied one", emptied, |u, go| rename(u, go, "own", "m", Replace)),
    case("rename of a lower file by .wh. names", lower_names, |u, go| rename(u, go, "d/e/f", "d/new", Replace)),
    case("rename of a copy onto a .wh. name", upper_names, |u, go| rename(u, go, "d/e/f", "d/gone", Replace)),
    case("rename of a directory onto a .wh. name", upper_names, |u, go| rename(u, go, "own/dir", "d/gone", Replace)),
    case("rename of a copy without RENAME_WHITEOUT", upper, |u, go| rename(u, go, "d/e/f", "own/new", Replace))
        .without_rename_whiteout(),
    case("rename of a copy over another without RENAME_WHITEOUT", upper, |u, go| {
        rename(u, go, "d/e/f", "own/a", Replace)
    })
    .without_rename_whiteout()
    .between(Between::More),
    case("rename of a copy over a lower file without RENAME_WHITEOUT", upper, |u, go| {
        rename(u, go, "d/e/f", "d/e/g", Replace)
    })
    .without_rename_whiteout()
    .between(Between::More),
    case("rename of a copy onto a whiteout without RENAME_WHITEOUT", upper, |u, go| {
        rename(u, go, "d/e/f", "d/gone", Replace)
    })
    .without_rename_whiteout(),
    case("chmod of a lower file", lower, |u, go| set(u, go, "d/e/f", &SetAttr { mode: Some(0o600), ..NOTHING })),
    case("chmod of a lower directory", lower, |u, go| set(u, go, "d/e", &SetAttr { mode: Some(0o700), ..NOTHING })),
    case("chown of a lower file", suid, |u, go| {
        set(u, go, "d/e/f", &SetAttr { uid: Some(1000), gid: Some(1000), ..NOTHING })
    })
    .for_root(),
    case("times of a lower file", lower, |u, go| {
        let then = SetTime::At(Time { sec: 77, nsec: 7 });
        set(u, go, "d/e/f", &SetAttr { atime: then, mtime: then, ..NOTHING })
    }),
    case("times of a lower symlink", lower, |u, go| {
        let then = SetTime::At(Time { sec: 77, nsec: 7 });
        set(u, go, "d/e/link", &SetAttr { atime: then, mtime: then, ..NOTHING })
    }),
    case("truncate to nothing", lower, |u, go| set(u, go, "d/e/f", &SetAttr { size: Some(0), ..NOTHING })),
    case("truncate to less", lower, |u, go| set(u, go, "d/e/f", &SetAttr { size: Some(3), ..NOTHING })),
    case("truncate to more", lower, |u, go| set(u, go, "d/e/f", &SetAttr { size: Some(99), ..NOTHING })),
    case("truncate of an upper file", upper, |u, go| set(u, go, "own/a", &SetAttr { size: Some(0), ..NOTHING })),
    case("truncate of a suid file", suid, |u, go| {
        set(u, go, "d/e/f", &SetAttr { size: Some(3), privileges: Privileges::Kill(other()), ..NOTHING })
    }),
    case("truncate of a longer suid file", suid, |u, go| {
        set(u, go, "d/e/f", &SetAttr { size: Some(300), privileges: Privileges::Kill(other()), ..NOTHING })
    }),
    case("first write", lower, |u, go| write(u, go, "d/e/f", Privileges::Keep)),
    case("first write below lower directories", lower, |u, go| write(u, go, "d/e/f", Privileges::Keep)).with_parents(),
    case("first write to one of several links", lower, |u, go| write(u, go, "h", Privileges::Keep)),
    case("write to an upper file", upper, |u, go| write(u, go, "own/a", Privileges::Keep)),
    case("first write to a suid file", suid, |u, go| write(u, go, "d/e/f", Privileges::Kill(other())))
        .between(Between::Names),
    case("setxattr", lower, |u, go| {
        let node = u.at("d/e/f")?;
        go();
        u.overlay.setxattr(node, OsStr::new("user.new"), b"value", 0)
    }),
    case("setxattr of a directory", lower, |u, go| {
        let node = u.at("d/e")?;
        go();
        u.overlay.setxattr(node, OsStr::new("user.new"), b"value", 0)
    }),
    case("removexattr", lower, |u, go| {
        let node = u.at("d/e/f")?;
        go();
        u.overlay.removexattr(&caller(), node, OsStr::new("user.kept"))
    }),
    case("tmpfile", lower, |u, go| {
        let dir = u.at("d/e")?;
        go();
        done(u, u.overlay.tmpfile(&caller(), dir, 0o600))
    })
    .invisible(),
    case("tmpfile that is given a name", lower, |u, go| {
        let dir = u.at("d/e")?;
        let file = u.met(u.overlay.tmpfile(&caller(), dir, 0o600)?);
        go();
        done(u, u.overlay.link(&caller(), file.id, dir, OsStr::new("new")))
    }),
    case("copy_file_range", lower, |u, go| {
        let (from, to) = (u.at("d/below")?, u.at("d/e/f")?);
        go();
        u.overlay.copy_file_range((from, 0), (to, 2), 1, Privileges::Keep).map(drop)
    }),
    case("fallocate", lower, |u, go| {
        let node = u.at("d/e/f")?;
        go();
        u.overlay.fallocate(node, 0, 0, 4096, Privileges::Keep)
    }),
];
