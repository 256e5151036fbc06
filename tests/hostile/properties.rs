//! What must hold of any input: here for what proptest makes up, and for the fuzzers in `fuzz/`, which include this file.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::Arc;

use plyfs::cli::high::{self, interpret};
use plyfs::cli::low::LowArgs;
use plyfs::cli::options;
use plyfs::fuse::adapter::{Adapter, Buffers, Policy};
use plyfs::fuse::wire::{Header, opcode};
use plyfs::overlay::config::{Config, Upper};
use plyfs::overlay::{NodeId, Overlay, Room, SetAttr};
use plyfs::sys::{self, At, Kind, SetTime, parse_entries};
use rustix::fs::CWD;

/// The words of options.
pub const WORDS: &[&str] = &[
    "lowerdir",
    "upperdir",
    "workdir",
    "=",
    ",",
    ":",
    "::",
    "\\",
    "\\,",
    "\\:",
    "+",
    "\"",
    "xino",
    "auto",
    "on",
    "off",
    "fsync",
    "volatile",
    "timeout",
    "threads",
    "uidmapping",
    "gidmapping",
    "squash_to_uid",
    "0",
    "1",
    "65536",
    "4294967295",
    "4294967296",
    "-1",
    "1.5",
    "1e400",
    "NaN",
    "redirect_dir",
    "metacopy",
    "index",
    "nfs_export",
    "follow",
    "nofollow",
    "verity",
    "xattr_permissions",
    "2",
    "context",
    "u:r:t:s0:c1,c2",
    "/tmp",
    "..",
    "a",
    "fsname",
    "max_write",
    "log",
    "ro",
    "rw",
    "allow_other",
    "userxattr",
    "noxattrs",
    "\0",
    "\u{ff}",
    "%s",
    "max_read",
    "private",
    "default_permissions",
];

/// A line of options is understood or refused.
pub fn option_line(line: &[u8]) {
    for option in options::split(line) {
        drop(option);
    }
    assert!(options::unescape(line).len() <= line.len());
    drop(options::lowers(line));
    let text = OsString::from_vec(line.to_vec());
    let args = ["plyfs".into(), "-o".into(), text, "/nonexistent".into()];
    let Ok(low) = LowArgs::parse_line(args) else { return };
    for (uid, whiteout_names) in [(0, false), (1000, true)] {
        let caller = high::Caller { uid, name: "plyfs".into(), whiteout_names };
        match interpret(&low, &caller) {
            Ok(args) => assert!(!format!("{args:?}").is_empty()),
            Err(error) => assert!(!error.to_string().contains('\n') || error.to_string().len() > 1),
        }
    }
}

/// A buffer of directory entries gives names, and no more than fit into it.
pub fn entries(buffer: &[u8]) {
    let mut names = Vec::new();
    let each = &mut |entry: sys::Dent<'_>| {
        names.push(entry.name.to_owned());
        Ok(())
    };
    parse_entries(buffer, each).ok();
    assert!(names.len() <= buffer.len() / 20);
    for name in names {
        assert!(!name.is_empty() && name != "." && name != "..");
        assert!(!name.as_encoded_bytes().iter().any(|byte| [0, b'/'].contains(byte)), "{name:?}");
    }
}

/// The marks that layers can have, without their namespace.
pub const MARKS: &[&str] = &[
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

/// What the layers hold.
pub const OBJECTS: &[&str] = &["", "d", "d/e", "d/e/f", "d/f", "g", "d/link", "x", "x/f"];

/// Values of marks that are right, or nearly.
pub const VALUES: &[&[u8]] = &[
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

/// Sets of options, each with a comma before it.
pub const SETS: &[&str] = &[
    "",
    ",userxattr",
    ",redirect_dir=on",
    ",redirect_dir=follow",
    ",metacopy=on",
    ",index=on",
    ",xattr_permissions=2",
    ",redirect_dir=on,metacopy=on,index=on",
];

/// A mark on an object of a layer, all by their positions.
#[derive(Clone, Debug)]
pub struct Mark {
    pub mark: usize,
    pub object: usize,
    pub layer: usize,
    pub trusted: bool,
    pub value: Vec<u8>,
}

/// Layers with such marks can be worked on, twice, and nothing outside of them is shown.
pub fn marks(marks: &[Mark], options: &str) {
    let dir = tempfile::Builder::new().prefix("plyfs-hostile-").tempdir().unwrap();
    make_layers(dir.path());
    for mark in marks {
        let space = if mark.trusted && caller().uid == 0 { "trusted" } else { "user" };
        let path = dir.path().join(["l1", "l2", "upper"][mark.layer]).join(OBJECTS[mark.object]);
        let name = OsString::from(format!("{space}.{}", MARKS[mark.mark]));
        // A symlink holds none, and a value can be too long for a file system.
        sys::set_xattr(At::Name(CWD, path.as_os_str()), &name, &mark.value, 0).ok();
    }
    let Some(overlay) = open(dir.path(), options) else { return };
    walk(&overlay, overlay.root(), 0);
    drop(overlay);
    if let Some(again) = open(dir.path(), options) {
        walk(&again, again.root(), 0);
    }
}

/// Two lower layers, an upper and a work directory.
pub fn make_layers(dir: &Path) {
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

/// A union of the layers that [`make_layers`] makes.
pub fn open(dir: &Path, options: &str) -> Option<Overlay> {
    let path = dir.display();
    let options = format!("lowerdir={path}/l1:{path}/l2,upperdir={path}/upper,workdir={path}/work{options}");
    let low = LowArgs::parse_line(["plyfs", "-o", &options, "/nonexistent"].map(OsString::from)).unwrap();
    let caller = high::Caller { uid: 0, name: "plyfs".into(), whiteout_names: false };
    Overlay::new(&interpret(&low, &caller).ok()?.config).ok()
}

fn caller() -> plyfs::overlay::Caller {
    let (uid, gid) = sys::process::effective_ids();
    plyfs::overlay::Caller { uid, gid, pid: 1, umask: 0o022 }
}

/// Looks at everything, and changes something everywhere. Whatever it answers is right, as long as it answers.
pub fn walk(overlay: &Overlay, dir: NodeId, depth: usize) {
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

/// Requests (what for, about which node, and what follows) are answered, and change nothing but the upper.
pub fn requests(requests: &[(u32, u64, Vec<u8>)]) {
    let dir = tempfile::Builder::new().prefix("plyfs-hostile-").tempdir().unwrap();
    for name in ["inner/l/d", "inner/u", "inner/w", "outside"] {
        fs::create_dir_all(dir.path().join(name)).unwrap();
    }
    let inner = dir.path().join("inner");
    fs::write(inner.join("l/f"), "lower").unwrap();
    fs::write(inner.join("l/d/f"), "lower").unwrap();
    let upper = Upper { dir: inner.join("u"), work: inner.join("w") };
    let config = Config { lowers: vec![inner.join("l")], upper: Some(upper), ..Config::default() };
    let adapter = Adapter::new(Arc::new(Overlay::new(&config).unwrap()), Policy::default());
    let (uid, gid) = plyfs::sys::process::effective_ids();
    let mut buffers = Buffers::default();
    for (opcode, node, body) in requests {
        // Space that is asked for would be given, and files with flags cannot be removed.
        if ![opcode::FALLOCATE, opcode::IOCTL].contains(opcode) {
            let header = Header { opcode: *opcode, unique: 1, node: *node, uid, gid, pid: 1 };
            adapter.answer(&header, body, &mut buffers).ok();
        }
    }
    drop(adapter);
    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["inner", "outside"], "something got out");
    assert_eq!(fs::read_dir(&inner).unwrap().count(), 3, "something got out of a layer");
    assert_eq!(fs::read_to_string(inner.join("l/f")).unwrap(), "lower", "a lower was changed");
}
