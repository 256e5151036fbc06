//! Removing and replacing: whiteouts, opaque directories, renames.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::need;
use crate::support::*;

#[test]
fn removing_a_lower_file_leaves_a_whiteout() {
    let layers = Layers::new(1);
    write(layers.lower("hello"), "");
    let union = layers.mount();
    fs::remove_file(union.merged("hello")).unwrap();
    assert!(!exists(union.merged("hello")));
    assert!(is_whiteout(union.upper("hello")));
    assert!(exists(union.lower("hello")));
    assert!(names(union.merged("")).is_empty());
    assert!(!exists(union.remount().merged("hello")));
}

#[test]
fn removing_an_upper_file_leaves_nothing() {
    let layers = Layers::new(1);
    let union = layers.mount();
    write(union.merged("new"), "");
    fs::remove_file(union.merged("new")).unwrap();
    assert!(names(union.upper("")).is_empty());
}

#[test]
fn a_directory_of_nothing_but_whiteouts_can_be_removed() {
    let layers = Layers::new(1);
    write(layers.lower("dir/a"), "");
    write(layers.lower("dir/b"), "");
    let union = layers.mount();
    assert_eq!(errno(fs::remove_dir(union.merged("dir"))), libc::ENOTEMPTY);
    fs::remove_file(union.merged("dir/a")).unwrap();
    fs::remove_file(union.merged("dir/b")).unwrap();
    assert_eq!(names(union.upper("dir")), ["a", "b"]);
    fs::remove_dir(union.merged("dir")).unwrap();
    assert!(is_whiteout(union.upper("dir")));
    assert!(!exists(union.merged("dir")));
}

#[test]
fn a_directory_made_where_one_was_removed_is_opaque() {
    let layers = Layers::new(1);
    write(layers.lower("dir/old"), "");
    let union = layers.mount();
    fs::remove_dir_all(union.merged("dir")).unwrap();
    fs::create_dir(union.merged("dir")).unwrap();
    assert!(names(union.merged("dir")).is_empty());
    assert_eq!(mark(union.upper("dir"), "opaque").as_deref(), Some(&b"y"[..]));
    write(union.merged("dir/new"), "");
    assert_eq!(names(union.remount().merged("dir")), ["new"]);
}

#[test]
fn a_file_made_where_one_was_removed_takes_its_place() {
    let layers = Layers::new(1);
    write(layers.lower("x"), "old");
    let union = layers.mount();
    fs::remove_file(union.merged("x")).unwrap();
    write(union.merged("x"), "new");
    assert_eq!(read(union.merged("x")), "new");
    assert_eq!(read(union.remount().merged("x")), "new");
}

#[test]
fn renaming_a_lower_directory_gives_exdev_and_mv_copies_it() {
    let layers = Layers::new(1);
    write(layers.lower("dir/sub/file"), "data");
    let union = layers.mount();
    assert_eq!(errno(fs::rename(union.merged("dir"), union.merged("moved"))), libc::EXDEV);
    sh(union.root(), "mv merged/dir merged/moved");
    assert_eq!(read(union.merged("moved/sub/file")), "data");
    assert!(is_whiteout(union.upper("dir")));
    assert_eq!(names(union.merged("")), ["moved"]);
}

#[test]
fn a_directory_of_the_upper_is_renamed() {
    let layers = Layers::new(1);
    write(layers.lower("lower/file"), "lower");
    let union = layers.mount();
    write(union.merged("dir/file"), "data");
    fs::rename(union.merged("dir"), union.merged("lower/moved")).unwrap();
    assert_eq!(read(union.merged("lower/moved/file")), "data");
    assert!(!exists(union.merged("dir")));
    assert_eq!(names(union.merged("lower")), ["file", "moved"]);
}

#[test]
fn renaming_a_lower_file_moves_a_copy_and_leaves_a_whiteout() {
    let layers = Layers::new(1);
    write(layers.lower("from"), "data");
    write(layers.lower("over"), "gone");
    let union = layers.mount();
    fs::rename(union.merged("from"), union.merged("over")).unwrap();
    assert_eq!(read(union.merged("over")), "data");
    assert!(is_whiteout(union.upper("from")));
    assert_eq!(names(union.merged("")), ["over"]);
}

#[test]
fn rename_flags_are_honoured() {
    let layers = Layers::new(1);
    write(layers.lower("a"), "a");
    write(layers.lower("b"), "b");
    let union = layers.mount();
    let (a, b) = (union.merged("a"), union.merged("b"));
    let refused = renameat_with(CWD, &a, CWD, &b, RenameFlags::NOREPLACE);
    assert_eq!(refused, Err(rustix::io::Errno::EXIST));
    renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
    assert_eq!((read(&a), read(&b)), ("b".to_owned(), "a".to_owned()));
}

#[test]
fn the_lower_never_shines_through_while_a_file_is_replaced() {
    let layers = Layers::new(1);
    write(layers.lower("x"), "lower");
    let union = layers.mount();
    fs::write(union.merged("x"), "upper").unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..300 {
                write(union.merged("new"), "upper");
                fs::rename(union.merged("new"), union.merged("x")).unwrap();
            }
            for _ in 0..100 {
                fs::remove_file(union.merged("x")).unwrap();
                write(union.merged("new"), "upper");
                fs::rename(union.merged("new"), union.merged("x")).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            assert_ne!(fs::read_to_string(union.merged("x")).unwrap_or_default(), "lower");
        }
    });
}

#[test]
fn own_xattrs_are_hidden_and_refused() {
    let layers = Layers::new(1);
    write(layers.lower("file"), "");
    write(layers.lower("dir/file"), "");
    let union = layers.mount();
    append(union.merged("file"), "x");
    append(union.merged("dir/file"), "x");
    for path in ["", "file", "dir"] {
        let shown = xattr_names(union.merged(path));
        assert!(!shown.iter().any(|name| name.contains(".overlay.")), "{path}: {shown:?}");
    }
    need!(is_root(), "not root, so trusted xattrs are out of reach anyway");
    assert_eq!(xattr(union.merged("file"), "trusted.overlay.origin"), None);
}
