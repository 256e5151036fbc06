//! Copy-up: what it keeps, when it happens, and when it does not.

use std::fs::{self, FileTimes, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::time::{Duration, SystemTime};

use rustix::fs::SeekFrom;

use crate::support::*;
use crate::{need, need_root, plyfs_only};

#[test]
fn copy_up_keeps_data_and_leaves_the_lower_alone() {
    let layers = Layers::new(1);
    let data: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    write(layers.lower("dir/file"), &data);
    let union = layers.mount();
    append(union.merged("dir/file"), "more");
    let mut whole = data.clone();
    whole.extend_from_slice(b"more");
    assert_eq!(fs::read(union.merged("dir/file")).unwrap(), whole);
    assert_eq!(fs::read(union.upper("dir/file")).unwrap(), whole);
    assert_eq!(fs::read(union.lower("dir/file")).unwrap(), data);
}

#[test]
fn copy_up_happens_on_the_first_change_and_not_before() {
    let layers = Layers::new(1);
    for name in ["read", "touched", "chmodded", "appended"] {
        write(layers.lower(name), "data");
    }
    let union = layers.mount();
    read(union.merged("read"));
    assert_eq!(mode(union.merged("read")), mode(union.lower("read")));
    assert!(names(union.upper("")).is_empty(), "reading copied up");
    chmod(union.merged("chmodded"), 0o600);
    append(union.merged("appended"), "x");
    OpenOptions::new().write(true).open(union.merged("touched")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(names(union.upper("")), ["appended", "chmodded", "touched"]);
    assert_eq!(read(union.upper("chmodded")), "data");
}

#[test]
fn opening_for_writing_without_writing_copies_nothing() {
    plyfs_only!();
    let layers = Layers::new(1);
    write(layers.lower("file"), "data");
    let union = layers.mount();
    drop(open(union.merged("file")));
    assert!(names(union.upper("")).is_empty());
}

#[test]
fn a_descriptor_opened_before_the_copy_up_sees_the_data_after_it() {
    plyfs_only!();
    let layers = Layers::new(1);
    write(layers.lower("file"), "old");
    let union = layers.mount();
    let before = fs::File::open(union.merged("file")).unwrap();
    fs::write(union.merged("file"), "new").unwrap();
    let mut seen = [0; 3];
    rustix::io::pread(&before, &mut seen, 0).unwrap();
    assert_eq!(&seen, b"new");
}

#[test]
fn copy_up_keeps_holes() {
    let layers = Layers::new(1);
    write(layers.lower("sparse"), "head");
    let file = open(layers.lower("sparse"));
    file.set_len(64 << 20).unwrap();
    rustix::io::pwrite(&file, b"middle", 32 << 20).unwrap();
    let blocks = file.metadata().unwrap().blocks();
    let union = layers.mount();
    append(union.merged("sparse"), "tail");
    let copy = fs::metadata(union.upper("sparse")).unwrap();
    assert_eq!(copy.len(), (64 << 20) + 4);
    // The kernel looks for holes in steps of a MiB.
    assert!(copy.blocks() <= blocks + 8192, "{} blocks became {}", blocks, copy.blocks());
    let merged = fs::File::open(union.merged("sparse")).unwrap();
    let hole = rustix::fs::seek(&merged, SeekFrom::Hole(0)).unwrap();
    let data = rustix::fs::seek(&merged, SeekFrom::Data(hole)).unwrap();
    assert!(hole > 0 && hole <= 1 << 20 && data <= 32 << 20 && data > 31 << 20, "hole at {hole}, data at {data}");
}

#[test]
fn copy_up_keeps_owner_mode_and_times() {
    need_root!();
    let layers = Layers::new(1);
    write(layers.lower("file"), "data");
    chown(layers.lower("file"), Some(1234), Some(2345)).unwrap();
    chmod(layers.lower("file"), 0o4751);
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    open(layers.lower("file")).set_times(FileTimes::new().set_modified(then).set_accessed(then)).unwrap();
    let union = layers.mount();
    set_xattr(union.merged("file"), "user.changed", b"1");
    let copy = fs::metadata(union.upper("file")).unwrap();
    assert_eq!((copy.uid(), copy.gid(), copy.mode() & 0o7777), (1234, 2345, 0o4751));
    assert_eq!((copy.mtime(), copy.mtime_nsec()), (1_000_000_000, 123_456_789));
    assert_eq!((copy.atime(), copy.atime_nsec()), (1_000_000_000, 123_456_789));
}

#[test]
fn copy_up_keeps_xattrs_and_capabilities() {
    need_root!();
    need!(have("setcap"), "no setcap (package libcap2-bin)");
    let layers = Layers::new(1);
    write(layers.lower("file"), "data");
    set_xattr(layers.lower("file"), "user.one", b"1");
    set_xattr(layers.lower("file"), "trusted.two", b"\0\xff");
    run("setcap", &["cap_net_raw+ep", layers.lower("file").to_str().unwrap()]);
    let union = layers.mount();
    chmod(union.merged("file"), 0o755);
    for path in [union.upper("file"), union.merged("file")] {
        assert_eq!(xattr(&path, "user.one").unwrap(), b"1");
        assert_eq!(xattr(&path, "trusted.two").unwrap(), b"\0\xff");
        assert_eq!(xattr(&path, "security.capability"), xattr(union.lower("file"), "security.capability"));
        assert!(xattr(&path, "security.capability").is_some());
    }
}

#[test]
fn copy_up_keeps_acls() {
    need!(have("setfacl"), "no setfacl (package acl)");
    let layers = Layers::new(1);
    write(layers.lower("dir/file"), "data");
    let acls = sh(
        layers.root(),
        "setfacl -m u:1234:rw l1/dir/file && setfacl -d -m g:2345:rx l1/dir && getfacl -cn l1/dir l1/dir/file",
    );
    let union = layers.mount();
    append(union.merged("dir/file"), "x");
    assert_eq!(sh(union.root(), "cd upper && getfacl -cn dir dir/file"), acls);
    assert_eq!(sh(union.root(), "cd merged && getfacl -cn dir dir/file"), acls);
    write(union.merged("dir/new"), "");
    assert!(sh(union.root(), "getfacl -cn merged/dir/new").contains("group:2345:r-x"), "the default was not inherited");
}

#[test]
fn copy_up_makes_the_parents_as_they_were() {
    let layers = Layers::new(1);
    write(layers.lower("a/b/c/file"), "data");
    chmod(layers.lower("a/b"), 0o2750);
    set_xattr(layers.lower("a/b"), "user.kept", b"yes");
    let union = layers.mount();
    append(union.merged("a/b/c/file"), "x");
    assert_eq!(mode(union.upper("a/b")), 0o2750);
    assert_eq!(xattr(union.upper("a/b"), "user.kept").unwrap(), b"yes");
    assert_eq!(mark(union.upper("a/b"), "opaque"), None);
}

#[test]
fn copy_up_of_a_symlink_and_a_fifo() {
    need_root!();
    let layers = Layers::new(1);
    sh(layers.root(), "ln -s nowhere l1/link && mkfifo -m 640 l1/fifo");
    let union = layers.mount();
    sh(union.root(), "chown -h 7:8 merged/link merged/fifo");
    assert_eq!(sh(union.root(), "cd upper; stat -c '%F %u %g' link fifo"), "symbolic link 7 8\nfifo 7 8\n");
    assert_eq!(fs::read_link(union.upper("link")).unwrap().to_str(), Some("nowhere"));
}

#[test]
fn truncating_to_nothing_copies_no_data() {
    let layers = Layers::new(1);
    let big = fs::File::create(layers.lower("big")).unwrap();
    // More than any file system under the tests holds: copying it would fail or take minutes.
    big.set_len(1 << 40).unwrap();
    rustix::io::pwrite(&big, b"end", (1 << 40) - 3).unwrap();
    let union = layers.mount();
    OpenOptions::new().write(true).truncate(true).open(union.merged("big")).unwrap().write_all(b"small").unwrap();
    assert_eq!(read(union.merged("big")), "small");
    assert_eq!(read(union.upper("big")), "small");
    assert_eq!(fs::metadata(union.lower("big")).unwrap().len(), 1 << 40);
}

#[test]
fn a_lower_hard_link_parts_from_the_others_when_written() {
    let layers = Layers::new(1);
    write(layers.lower("one"), "data");
    fs::hard_link(layers.lower("one"), layers.lower("two")).unwrap();
    let union = layers.mount();
    assert_eq!(fs::metadata(union.merged("two")).unwrap().nlink(), 2);
    append(union.merged("one"), "+");
    assert_eq!((read(union.merged("one")), read(union.merged("two"))), ("data+".to_owned(), "data".to_owned()));
    assert_eq!(fs::metadata(union.merged("one")).unwrap().nlink(), 1);
}

#[test]
fn a_linked_lower_file_is_copied_up_once_and_both_names_are_one_file() {
    let layers = Layers::new(1);
    write(layers.lower("one"), "data");
    let union = layers.mount();
    fs::hard_link(union.merged("one"), union.merged("two")).unwrap();
    assert_eq!(ino(union.merged("one")), ino(union.merged("two")));
    assert_eq!(fs::metadata(union.merged("one")).unwrap().nlink(), 2);
    append(union.merged("one"), "+");
    assert_eq!(read(union.merged("two")), "data+");
    assert_eq!(ino(union.upper("one")), ino(union.upper("two")));
}

#[test]
fn a_change_through_one_hard_link_is_read_through_the_other() {
    let layers = Layers::new(1);
    let union = layers.mount();
    write(union.merged("one"), "first");
    fs::create_dir(union.merged("dir")).unwrap();
    fs::hard_link(union.merged("one"), union.merged("dir/two")).unwrap();
    let reader = fs::File::open(union.merged("dir/two")).unwrap();
    let mut seen = [0; 5];
    rustix::io::pread(&reader, &mut seen, 0).unwrap();
    fs::write(union.merged("one"), "other").unwrap();
    rustix::io::pread(&reader, &mut seen, 0).unwrap();
    assert_eq!(&seen, b"other");
    drop(reader);
    let union = union.remount();
    read(union.merged("one"));
    append(union.merged("dir/two"), "!");
    assert_eq!(read(union.merged("one")), "other!");
}

#[test]
fn nothing_is_left_in_the_workdir() {
    let layers = Layers::new(1);
    for i in 0..20 {
        write(layers.lower(format!("dir/file{i}")), "data");
    }
    let union = layers.mount();
    for i in 0..10 {
        append(union.merged(format!("dir/file{i}")), "x");
        fs::remove_file(union.merged(format!("dir/file{}", i + 10))).unwrap();
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(union.merged("new")).unwrap();
    let layers = union.unmount();
    // The kernel keeps a spare whiteout there, to be linked into place; the next mount clears it.
    let left = sh(layers.root(), "cd work && find work -mindepth 1 ! -path 'work/incompat*' ! -type c");
    assert_eq!(left, "");
}
