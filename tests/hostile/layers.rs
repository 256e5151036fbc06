//! Layers that somebody has made to do harm: marks with any bytes, names with any byte, whiteouts of odd kinds.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use plyfs::cli::high::{Caller, interpret};
use plyfs::cli::low::LowArgs;
use plyfs::overlay::{NodeId, Overlay, Room, SetAttr};
use plyfs::sys::{self, At, Kind, SetTime};
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::fs::CWD;

use crate::holds;
use crate::support::is_root;

const MARKS: &[&str] = &[
    "overlay.opaque",
    "overlay.redirect",
    "overlay.origin",
    "overlay.metacopy",
    "overlay.nlink",
    "overlay.impure",
    "overlay.whiteout",
    "overlay.upper",
    "overlay.uuid",
    "overlay.protattr",
    "overlay.plain",
    "overlay.overlay.opaque",
    "containers.override_stat",
    "fuseoverlayfs.override_stat",
    "fuseoverlayfs.opaque",
    "overlay.verity",
];

const OBJECTS: &[&str] = &["", "d", "d/e", "d/e/f", "d/f", "g", "d/link", "x", "x/f"];

/// What a mark may hold: what is right, nearly right, or anything.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let known: &[&[u8]] = &[
        b"y",
        b"x",
        b"",
        b"/",
        b"/d",
        b"/x",
        b"d",
        b"x",
        b"..",
        b"../..",
        b"/../x",
        b"/d/../x",
        b"/d//e",
        b"/etc",
        b"a/b",
        b"/d/link",
        b"/d/e/f",
        b"\0",
        b"U+1",
        b"L-9999999999",
        b"L+",
        b"0:0:755",
        b"0:0:0104755:file",
        b"4294967295:0:40755:dir",
        b"-1:-1:-1",
        b"0:0:20000:block-1-1",
        b"0:0:755:symlink",
        b"99999999999999999999:0:7777777777",
    ];
    let origin = (any::<[u8; 21]>(), vec(any::<u8>(), 0..40)).prop_map(|(mut head, tail)| {
        (head[0], head[1], head[2], head[3]) = (0, 0xfb, u8::try_from(21 + tail.len()).unwrap(), head[3] & 7);
        [head.as_slice(), &tail].concat()
    });
    prop_oneof![
        4 => proptest::sample::select(known).prop_map(<[u8]>::to_vec),
        2 => origin,
        2 => vec(any::<u8>(), 0..300),
        1 => vec(any::<u8>(), 4).prop_map(|bytes| [&[0, 4, 0, 0][..], &bytes].concat()),
        1 => (1..400usize).prop_map(|n| b"/d".repeat(n)),
    ]
}

fn make_layers(dir: &Path) {
    for layer in ["l1", "l2", "upper", "work"] {
        fs::create_dir(dir.join(layer)).unwrap();
    }
    for layer in ["l1", "l2", "upper"] {
        let layer = dir.join(layer);
        fs::create_dir_all(layer.join("d/e")).unwrap();
        fs::create_dir_all(layer.join("x")).unwrap();
        for file in ["d/e/f", "d/f", "g", "x/f"] {
            fs::write(layer.join(file), if file == "g" { "" } else { "text" }).unwrap();
        }
        std::os::unix::fs::symlink("/etc", layer.join("d/link")).unwrap();
    }
}

fn open(dir: &Path, options: &str) -> Option<Overlay> {
    let path = dir.display();
    let options = format!("lowerdir={path}/l1:{path}/l2,upperdir={path}/upper,workdir={path}/work{options}");
    let low = LowArgs::parse_line(["plyfs", "-o", &options, "/nonexistent"].map(OsString::from)).unwrap();
    let caller = Caller { uid: 0, name: "plyfs".into(), whiteout_names: false };
    Overlay::new(&interpret(&low, &caller).ok()?.config).ok()
}

fn caller() -> plyfs::overlay::Caller {
    let (uid, gid) = sys::process::effective_ids();
    plyfs::overlay::Caller { uid, gid, pid: 1, umask: 0o022 }
}

/// Looks at everything, and changes something everywhere. Whatever it answers is right, as long as it answers.
fn walk(overlay: &Overlay, dir: NodeId, depth: usize) {
    let mut names = Vec::new();
    let each = &mut |entry: &plyfs::overlay::Dirent<'_>| {
        names.push(entry.name.to_owned());
        Room::Taken
    };
    if overlay.readdir(dir, 0, each).is_err() || depth > 6 {
        return;
    }
    for name in names.iter().filter(|name| ![".", ".."].iter().any(|dot| *name == dot)) {
        let Ok(entry) = overlay.lookup(&caller(), dir, name) else { continue };
        let (id, kind) = (entry.id, entry.attr.kind());
        let list = overlay.listxattr(&caller(), id).unwrap_or_default();
        for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            overlay.getxattr(id, &OsString::from_vec(name.to_vec())).ok();
        }
        overlay.readlink(id).ok();
        let text = &mut [0; 64];
        if let Ok(length) = overlay.read(id, 0, text) {
            assert!(!text[..length].starts_with(b"root:"), "read outside");
        }
        if kind == Kind::Dir {
            walk(overlay, id, depth + 1);
        }
        overlay.write(id, 1, b"w", plyfs::overlay::Privileges::Keep).ok();
        let set = SetAttr {
            mode: Some(0o700),
            uid: None,
            gid: None,
            size: None,
            atime: SetTime::Omit,
            mtime: SetTime::Now,
            privileges: plyfs::overlay::Privileges::Keep,
            from_cache: false,
        };
        overlay.setattr(&caller(), id, &set).ok();
        let renamed = OsStr::new("renamed");
        if overlay.rename(&caller(), (dir, name), (dir, renamed), plyfs::overlay::Rename::NoReplace).is_ok() {
            overlay.rmdir(&caller(), dir, renamed).ok();
            overlay.unlink(&caller(), dir, renamed).ok();
        }
        overlay.forget(id, 1);
    }
    overlay.mkdir(&caller(), dir, OsStr::new("new"), 0o755).map(|entry| overlay.forget(entry.id, 1)).ok();
}

#[test]
fn marks_of_any_kind_are_read_or_passed_over() {
    let mark = (0..MARKS.len(), 0..OBJECTS.len(), 0..3usize, any::<bool>(), value());
    let options = proptest::sample::select(
        &[
            "",
            ",userxattr",
            ",redirect_dir=on",
            ",redirect_dir=follow",
            ",metacopy=on",
            ",index=on",
            ",xattr_permissions=2",
            ",redirect_dir=on,metacopy=on,index=on",
        ][..],
    );
    holds(60, (vec(mark, 1..12), options), |(marks, options)| {
        let dir = tempfile::Builder::new().prefix("plyfs-hostile-").tempdir().unwrap();
        make_layers(dir.path());
        for (mark, object, layer, trusted, value) in marks {
            let space = if trusted && is_root() { "trusted" } else { "user" };
            let path = dir.path().join(["l1", "l2", "upper"][layer]).join(OBJECTS[object]);
            let name = OsString::from(format!("{space}.{}", MARKS[mark]));
            // A symlink holds none, and a value can be too long for a file system.
            sys::set_xattr(At::Name(CWD, path.as_os_str()), &name, &value, 0).ok();
        }
        let Some(overlay) = open(dir.path(), options) else { return };
        walk(&overlay, overlay.root(), 0);
        drop(overlay);
        if let Some(again) = open(dir.path(), options) {
            walk(&again, again.root(), 0);
        }
    });
}

#[test]
fn names_of_any_bytes_are_names() {
    let byte = any::<u8>().prop_filter("no name has it", |byte| !b"/\0".contains(byte));
    let name = prop_oneof![
        vec(byte, 1..60),
        proptest::sample::select(
            &[".wh.", ".wh..wh..opq", ".wh..wh.a", "...", "#1", ".wh.d", ".wh..wh..wh.", "\\", "\n", "incompat"][..]
        )
        .prop_map(|name| name.as_bytes().to_vec()),
    ];
    let object = (name, 0..3usize, 0..6usize);
    holds(60, vec(object, 1..10), |objects| {
        let dir = tempfile::Builder::new().prefix("plyfs-hostile-").tempdir().unwrap();
        make_layers(dir.path());
        for (name, layer, kind) in objects {
            let name = OsString::from_vec(name);
            if name == "." || name == ".." {
                continue;
            }
            let path = dir.path().join(["l1", "l2", "upper"][layer]).join("d").join(&name);
            let place = (CWD, path.as_os_str());
            match kind {
                // Over nothing only: a fifo that has the name already would wait for a reader.
                0 => drop(fs::File::create_new(&path)),
                1 => drop(fs::create_dir(&path)),
                2 => drop(std::os::unix::fs::symlink("../../..", &path)),
                3 => drop(sys::mknod(place.0, place.1, Kind::Char, 0o600, 0)),
                4 => drop(sys::mknod(place.0, place.1, Kind::Fifo, 0o600, 0)),
                _ => drop(sys::mknod(place.0, place.1, Kind::Block, 0o600, 0)),
            }
        }
        let Some(overlay) = open(dir.path(), "") else { return };
        walk(&overlay, overlay.root(), 0);
    });
}
