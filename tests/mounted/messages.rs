//! What an operation costs: the requests that the kernel sends for it. One more is most of what a small operation takes.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use crate::support::front::Counted;
use crate::support::*;
use crate::{need, plyfs_only};

/// Enough that what happens once, such as the look at a directory, is less than one of each.
const TIMES: u64 = 32;

/// The name of an operation, itself, and the requests that it may take.
type Case = (&'static str, fn(&Path, u64), &'static [&'static str]);

fn make(path: impl AsRef<Path>) -> File {
    OpenOptions::new().write(true).create_new(true).open(path).unwrap()
}

fn look(path: impl AsRef<Path>) {
    let mut text = Vec::new();
    File::open(path).unwrap().read_to_end(&mut text).unwrap();
    assert_eq!(text.len(), 1000);
}

/// `l` is a directory of a lower with files a0, b0, ..., `u` one of the upper. Those that build on one another stand in order.
const CASES: &[Case] = &[
    ("stat", |m, n| assert!(fs::metadata(m.join(format!("l/a{n}"))).unwrap().is_file()), &[]),
    ("list", |m, _| assert!(fs::read_dir(m.join("l")).unwrap().count() > 0), &[]),
    ("open, read, close, cold", |m, n| look(m.join(format!("l/a{n}"))), &["READ"]),
    // The read has changed the access time, for all that the kernel knows.
    ("stat after that", |m, n| assert!(fs::metadata(m.join(format!("l/a{n}"))).unwrap().is_file()), &["GETATTR"]),
    ("open, read, close, warm", |m, n| look(m.join(format!("l/a{n}"))), &[]),
    ("missing, cold", |m, n| assert!(!m.join(format!("l/z{n}")).exists()), &["LOOKUP"]),
    ("missing, warm", |m, n| assert!(!m.join(format!("l/z{n}")).exists()), &[]),
    // The kernel forgets the attributes of a directory in which it makes or removes a name.
    ("create", |m, n| drop(make(m.join(format!("u/f{n}")))), &["GETATTR", "LOOKUP", "MKNOD"]),
    ("first write", |m, n| m.join(format!("u/f{n}")).append(), &["GETATTR", "GETXATTR", "WRITE"]),
    ("mkdir", |m, n| fs::create_dir(m.join(format!("u/d{n}"))).unwrap(), &["GETATTR", "LOOKUP", "MKDIR"]),
    (
        "rename",
        |m, n| fs::rename(m.join(format!("u/f{n}")), m.join(format!("u/g{n}"))).unwrap(),
        &["GETATTR", "LOOKUP", "RENAME"],
    ),
    ("unlink, upper", |m, n| fs::remove_file(m.join(format!("u/g{n}"))).unwrap(), &["GETATTR", "UNLINK"]),
    ("unlink, lower", |m, n| fs::remove_file(m.join(format!("l/a{n}"))).unwrap(), &["GETATTR", "UNLINK"]),
    ("chmod, copies up", |m, n| m.join(format!("l/b{n}")).mode(0o600), &["SETATTR"]),
    ("chmod, upper", |m, n| m.join(format!("l/b{n}")).mode(0o640), &["SETATTR"]),
    ("append, copies up", |m, n| m.join(format!("l/c{n}")).append(), &["GETXATTR", "WRITE"]),
];

/// Changes of a file by its path.
trait Change {
    fn mode(&self, mode: u32);
    fn append(&self);
}

impl<P: AsRef<Path>> Change for P {
    fn mode(&self, mode: u32) {
        fs::set_permissions(self, Permissions::from_mode(mode)).unwrap();
    }

    fn append(&self) {
        OpenOptions::new().append(true).open(self).unwrap().write_all(b"more").unwrap();
    }
}

#[test]
fn operations_take_no_more_messages_than_the_kernel_needs_to_ask() {
    plyfs_only!();
    need!(std::env::var_os("PLYFS_TEST_OPTIONS").is_none(), "with further options there may be more of them");
    let layers = Layers::new(1);
    for n in 0..TIMES {
        for letter in ["a", "b", "c"] {
            write(layers.lower(format!("l/{letter}{n}")), [b'x'; 1000]);
        }
    }
    fs::create_dir(layers.upper("u")).unwrap();
    let union = Counted::new(layers);
    let root = union.merged("");
    // What the kernel asks once in a mount's life, and the attributes of everything.
    drop(make(root.join("u/first")));
    look_at_all(&root);
    for (what, operation, expected) in CASES {
        let before = union.requests();
        (0..TIMES).for_each(|n| operation(&root, n));
        let taken: Vec<(String, u64)> = union
            .requests()
            .into_iter()
            .map(|(kind, count)| (kind.replace("STATX", "GETATTR"), count - before.get(&kind).copied().unwrap_or(0)))
            // What nobody waits for, and what comes once and not each time.
            .filter(|(kind, count)| !kind.ends_with("FORGET") && *count >= TIMES / 2)
            .collect();
        let kinds: Vec<&str> = taken.iter().map(|(kind, _)| kind.as_str()).collect();
        assert!(taken.iter().all(|(_, count)| *count <= TIMES + 2), "{what}: {taken:?}");
        assert!(kinds.iter().all(|kind| expected.contains(kind)), "{what}: {taken:?}");
        // It was counted at all: what changes something cannot do without.
        assert!(expected.last().is_none_or(|needed| kinds.contains(needed)), "{what}: {taken:?}");
    }
}

#[test]
fn a_write_is_one_message_however_small_and_however_large() {
    plyfs_only!();
    let union = Counted::new(Layers::new(1));
    let file = make(union.merged("file"));
    file.write_all_at(b"the first one", 0).unwrap();
    for (size, each) in [(1, 1), (4096, 1), (1 << 20, 1), (4 << 20, 4)] {
        let before = union.requests()["WRITE"];
        (0..8).for_each(|_| file.write_all_at(&vec![b'x'; size], 0).unwrap());
        // Where pages are scarce the kernel sends fewer at once.
        let taken = union.requests()["WRITE"] - before;
        assert!((8 * each..8 * each + 8).contains(&taken), "{size}: {taken}");
    }
    assert_eq!(fs::metadata(union.layers().upper("file")).unwrap().len(), 4 << 20);
}

/// Lists a tree, with all attributes.
fn look_at_all(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if fs::symlink_metadata(&entry).unwrap().is_dir() {
            look_at_all(&entry);
        }
    }
}
