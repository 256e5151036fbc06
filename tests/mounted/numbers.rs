//! Inode numbers: constant over copy-up and remount, the same in a listing and in stat.

use std::fs;
use std::os::unix::fs::DirEntryExt;
use std::path::Path;

use crate::need;
use crate::support::*;

/// The number that the listing of the directory gives for a name.
fn listed(dir: &Path, name: &str) -> u64 {
    fs::read_dir(dir).unwrap().map(Result::unwrap).find(|entry| entry.file_name() == name).unwrap().ino()
}

#[test]
fn st_ino_is_constant_over_copy_up_and_remount() {
    let layers = Layers::new(1);
    write(layers.lower("dir/file"), "data");
    let union = layers.mount();
    let (dir, file) = (ino(union.merged("dir")), ino(union.merged("dir/file")));
    append(union.merged("dir/file"), "+");
    assert_eq!((ino(union.merged("dir")), ino(union.merged("dir/file"))), (dir, file));
    let union = union.remount();
    assert_eq!((ino(union.merged("dir")), ino(union.merged("dir/file"))), (dir, file));
    fs::rename(union.merged("dir/file"), union.merged("moved")).unwrap();
    assert_eq!(ino(union.merged("moved")), file);
    assert_eq!(ino(union.remount().merged("moved")), file);
}

#[test]
fn d_ino_is_st_ino_over_copy_up_and_remount() {
    let layers = Layers::new(1);
    for name in ["copied", "lower", "linked"] {
        write(layers.lower("dir").join(name), "data");
    }
    let mut union = layers.mount();
    append(union.merged("dir/copied"), "+");
    write(union.merged("dir/new"), "");
    fs::hard_link(union.merged("dir/linked"), union.merged("dir/again")).unwrap();
    for _ in 0..2 {
        for name in ["copied", "lower", "linked", "again", "new"] {
            assert_eq!(listed(&union.merged("dir"), name), ino(union.merged("dir").join(name)), "{name}");
        }
        union = union.remount();
    }
}

#[test]
fn numbers_of_two_file_systems_stay_apart_and_constant() {
    need!(Path::new("/dev/shm").is_dir(), "no /dev/shm");
    let other = Layers::within(Path::new("/dev/shm"), 1);
    for i in 0..200 {
        write(other.lower(format!("dir/far{i}")), "");
    }
    let layers = Layers::new(1);
    for i in 0..200 {
        write(layers.lower(format!("dir/near{i}")), "");
    }
    let options = format!("lowerdir=l1:{},upperdir=upper,workdir=work,xino=on", other.lower("").display());
    let target = layers.merged("");
    let union = layers.mount_with(&options, &target);
    let numbers = |union: &Union| -> Vec<u64> {
        names(union.merged("dir")).iter().map(|name| ino(union.merged("dir").join(name))).collect()
    };
    let first = numbers(&union);
    let mut distinct = first.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 400);
    append(union.merged("dir/far7"), "+");
    assert_eq!(numbers(&union), first);
    assert_eq!(numbers(&union.remount()), first);
}
