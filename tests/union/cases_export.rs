//! What `faults` cuts with `nfs_export=on`, where everything that is copied up gets an entry in the index, and everything that
//! goes a whiteout there.

use crate::cases::*;
use crate::cases_options::{chmod, cut_to, redirecting, touch, without};
use crate::fixture::Layers;
use crate::vfs::{NOTHING, caller};
use plyfs::overlay::SetAttr;

use plyfs::overlay::Privileges::Keep;
use plyfs::overlay::Rename::{Exchange, Replace};

/// Directories and files that only a lower has, one of them with several names, and an upper with things of its own.
fn exported() -> Layers {
    let mut layers = Layers::of(&[
        "d/e/f = text of a lower file\n d/g = another\n d/link -> g\n a = linked\n d/b == a\n empty/\n m/x = 3\n d/gone = 1",
    ]);
    layers.config.features.index = true;
    layers.config.features.nfs_export = true;
    layers.upper("!d/gone\n own/z = 1\n own/dir/x = 2")
}

/// A file has been copied up, and the directories above it.
fn copied() -> Layers {
    let u = exported().open();
    u.chmod("d/e/f", 0o640).unwrap();
    u.close()
}

/// A directory of which both layers have a part, and that shows nothing.
fn emptied() -> Layers {
    without(exported(), "m/x")
}

fn redirected() -> Layers {
    redirecting(copied())
}

pub const CASES: &[Case] = &[
    case("export: create", exported, |u, go| create(u, go, &caller(), "d/e/new")),
    case("export: create below lower directories", exported, |u, go| create(u, go, &caller(), "d/e/new"))
        .with_parents(),
    case("export: create over a whiteout", exported, |u, go| create(u, go, &caller(), "d/gone")),
    case("export: mkdir over a whiteout", exported, |u, go| mkdir(u, go, &caller(), "d/gone")),
    case("export: chmod of a lower file", exported, |u, go| chmod(u, go, "d/e/f")),
    case("export: chmod of a lower directory", exported, |u, go| {
        set(u, go, "m", &SetAttr { mode: Some(0o700), ..NOTHING })
    }),
    case("export: first write below lower directories", exported, |u, go| write(u, go, "d/e/f", Keep)).with_parents(),
    case("export: truncate", exported, |u, go| cut_to(u, go, "d/e/f", 3)),
    case("export: times of a lower symlink", exported, |u, go| touch(u, go, "d/link")),
    case("export: first write to one of several links", exported, |u, go| write(u, go, "d/b", Keep)),
    case("export: unlink of a lower file", exported, |u, go| unlink(u, go, "d/e/f")),
    case("export: unlink below lower directories", exported, |u, go| unlink(u, go, "d/e/f")).with_parents(),
    case("export: unlink of a lower symlink", exported, |u, go| unlink(u, go, "d/link")),
    case("export: unlink of one of several links", exported, |u, go| unlink(u, go, "d/b")),
    case("export: unlink of a copy", copied, |u, go| unlink(u, go, "d/e/f")),
    case("export: unlink of an upper file", exported, |u, go| unlink(u, go, "own/z")),
    case("export: rmdir of a lower directory", exported, |u, go| rmdir(u, go, "empty")),
    case("export: rmdir of an emptied directory", emptied, |u, go| rmdir(u, go, "m")),
    case("export: rename of a lower file", exported, |u, go| rename(u, go, "d/e/f", "d/new", Replace)),
    case("export: rename of a lower file over another", exported, |u, go| rename(u, go, "d/e/f", "d/g", Replace)),
    case("export: rename of an upper file over a copy", copied, |u, go| rename(u, go, "own/z", "d/e/f", Replace)),
    case("export: rename of a copy onto a whiteout", copied, |u, go| rename(u, go, "d/e/f", "d/gone", Replace)),
    case("export: exchange of lower files", exported, |u, go| rename(u, go, "d/e/f", "d/g", Exchange)),
    case("export: rename of a directory over an emptied one", emptied, |u, go| rename(u, go, "own/dir", "m", Replace)),
    case("export: rename of a directory over a lower one", exported, |u, go| {
        rename(u, go, "own/dir", "empty", Replace)
    }),
    case("export: rename of a merged directory", redirected, |u, go| rename(u, go, "d/e", "own/e", Replace)),
    case("export: rename of a lower directory", redirected, |u, go| rename(u, go, "m", "own/m", Replace)),
    case("export: link of a lower file", exported, |u, go| link(u, go, "d/e/f", "d/new")),
    case("export: link of a lower file over a whiteout", exported, |u, go| link(u, go, "d/e/f", "d/gone")),
    case("export: link of an upper file over a whiteout", exported, |u, go| link(u, go, "own/z", "d/gone")),
    case("export: link of a copy over a whiteout", copied, |u, go| link(u, go, "d/e/f", "d/gone")),
];
