//! How layers stack: who is seen, what merges, what hides what.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::*;
use crate::{need, need_root, plyfs_only};

#[test]
fn the_first_layer_wins() {
    let layers = Layers::new(2);
    symlink("first", layers.layer(1, "link")).unwrap();
    symlink("second", layers.layer(2, "link")).unwrap();
    write(layers.layer(1, "dir/file"), "1");
    write(layers.layer(2, "dir/file"), "2");
    write(layers.layer(2, "dir/other"), "2");
    let union = layers.mount();
    assert_eq!(fs::read_link(union.merged("link")).unwrap(), Path::new("first"));
    assert_eq!(read(union.merged("dir/file")), "1");
    assert_eq!(names(union.merged("dir")), ["file", "other"]);
}

#[test]
fn an_upper_file_hides_a_lower_directory_and_the_reverse() {
    let layers = Layers::new(1);
    write(layers.upper("a"), "file");
    write(layers.lower("a/inner"), "");
    write(layers.upper("b/inner"), "upper");
    write(layers.lower("b"), "file");
    let union = layers.mount();
    assert_eq!(read(union.merged("a")), "file");
    assert_eq!(names(union.merged("b")), ["inner"]);
    assert_eq!(names(union.merged("")), ["a", "b"]);
    fs::remove_file(union.merged("a")).unwrap();
    assert!(!exists(union.merged("a")), "the lower directory shone through");
}

#[test]
fn a_file_between_two_directories_ends_the_merge() {
    let layers = Layers::new(3);
    write(layers.layer(1, "x/top"), "");
    write(layers.layer(2, "x"), "a file");
    write(layers.layer(3, "x/bottom"), "");
    let union = layers.mount();
    assert_eq!(names(union.merged("x")), ["top"]);
}

#[test]
fn whiteouts_and_opaque_directories_of_the_kernel_are_read() {
    need_root!();
    let layers = Layers::new(2);
    write(layers.layer(2, "dir/hidden"), "");
    write(layers.layer(2, "dir/shown"), "");
    write(layers.layer(2, "opaque/hidden"), "");
    write(layers.layer(1, "opaque/shown"), "");
    sh(
        layers.root(),
        "mkdir -p l1/dir && mknod l1/dir/hidden c 0 0 && setfattr -n trusted.overlay.opaque -v y l1/opaque",
    );
    let union = layers.mount();
    assert_eq!(names(union.merged("dir")), ["shown"]);
    assert!(!exists(union.merged("dir/hidden")));
    assert_eq!(names(union.merged("opaque")), ["shown"]);
    assert!(!xattr_names(union.merged("opaque")).iter().any(|name| name.contains("overlay")), "an own xattr shows");
}

#[test]
fn whiteouts_by_name_are_read() {
    plyfs_only!();
    let layers = Layers::new(2);
    write(layers.layer(2, "dir/gone"), "");
    write(layers.layer(2, "dir/here"), "");
    write(layers.layer(1, "dir/.wh.gone"), "");
    write(layers.layer(2, "opaque/gone"), "");
    write(layers.layer(1, "opaque/.wh..wh..opq"), "");
    write(layers.layer(1, "opaque/here"), "");
    let union = layers.mount();
    // Lookups first and listings first must agree.
    assert!(!exists(union.merged("dir/gone")) && !exists(union.merged("opaque/gone")));
    assert!(!exists(union.merged("dir/.wh.gone")) && !exists(union.merged("opaque/.wh..wh..opq")));
    assert_eq!(names(union.merged("dir")), ["here"]);
    assert_eq!(names(union.merged("opaque")), ["here"]);
    let union = union.remount();
    assert_eq!(names(union.merged("opaque")), ["here"]);
    assert!(!exists(union.merged("opaque/gone")));
    write(union.merged("dir/gone"), "back");
    assert_eq!(names(union.merged("dir")), ["gone", "here"]);
}

#[test]
fn five_hundred_lowers() {
    let layers = Layers::new(500);
    for lower in 1..=500 {
        write(layers.layer(lower, format!("dir/file{lower:03}")), "");
        write(layers.layer(lower, "who"), lower.to_string());
    }
    write(layers.layer(500, "deep/only"), "bottom");
    let union = layers.mount();
    assert_eq!(names(union.merged("dir")).len(), 500);
    assert_eq!(read(union.merged("who")), "1");
    append(union.merged("deep/only"), "!");
    assert_eq!(read(union.upper("deep/only")), "bottom!");
}

#[test]
fn layers_on_two_file_systems() {
    need!(Path::new("/dev/shm").is_dir(), "no /dev/shm");
    let other = Layers::within(Path::new("/dev/shm"), 1);
    let layers = Layers::new(1);
    write(layers.lower("dir/near"), "near");
    write(other.lower("dir/far"), "far");
    let options = format!("lowerdir=l1:{},upperdir=upper,workdir=work", other.lower("").display());
    let target = layers.merged("");
    let union = layers.mount_with(&options, &target);
    assert_eq!(names(union.merged("dir")), ["far", "near"]);
    append(union.merged("dir/far"), "+");
    assert_eq!((read(union.merged("dir/far")), read(other.lower("dir/far"))), ("far+".to_owned(), "far".to_owned()));
    let (near, far) = (ino(union.merged("dir/near")), ino(union.merged("dir/far")));
    assert_ne!(near, far);
}

#[test]
fn changes_made_in_the_layers_show_within_a_second() {
    plyfs_only!();
    let layers = Layers::new(1);
    for name in ["changed", "removed", "deep/er/changed"] {
        write(layers.lower(name), "old");
    }
    write(layers.upper("up/removed"), "old");
    let union = layers.mount();
    // Everything is cached, the absence of the new names too.
    sh(union.root(), "find merged -type f -exec cat {} + >/dev/null; find merged >/dev/null");
    for name in ["new", "deep/new", "up/new"] {
        assert!(!exists(union.merged(name)));
    }
    write(union.lower("new"), "lower");
    write(union.lower("deep/new"), "lower");
    write(union.upper("up/new"), "upper");
    write(union.lower("changed"), "changed!");
    write(union.lower("deep/er/changed"), "changed!");
    fs::remove_file(union.lower("removed")).unwrap();
    fs::remove_file(union.upper("up/removed")).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(read(union.merged("new")), "lower");
    assert_eq!(read(union.merged("deep/new")), "lower");
    assert_eq!(read(union.merged("up/new")), "upper");
    assert_eq!(read(union.merged("changed")), "changed!");
    assert_eq!(read(union.merged("deep/er/changed")), "changed!");
    assert!(!exists(union.merged("removed")) && !exists(union.merged("up/removed")));
    assert_eq!(names(union.merged("")), ["changed", "deep", "new", "up"]);
    assert_eq!(names(union.merged("up")), ["new"]);
}
