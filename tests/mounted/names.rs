//! Names at the limits: long ones, odd ones, deep ones, many.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

use crate::support::*;

#[test]
fn names_of_255_bytes() {
    let layers = Layers::new(1);
    let lower = "l".repeat(255);
    let new = "ü".repeat(127) + "x";
    write(layers.lower(&lower), "data");
    let union = layers.mount();
    append(union.merged(&lower), "+");
    assert_eq!(read(union.merged(&lower)), "data+");
    write(union.merged(&new), "new");
    fs::remove_file(union.merged(&lower)).unwrap();
    assert!(is_whiteout(union.upper(&lower)));
    fs::rename(union.merged(&new), union.merged(&lower)).unwrap();
    assert_eq!(names(union.merged("")), [lower.as_str()]);
    assert_eq!(errno(fs::write(union.merged("x".repeat(256)), "")), libc::ENAMETOOLONG);
}

#[test]
fn names_that_are_not_utf8() {
    let layers = Layers::new(1);
    let odd = OsStr::from_bytes(b"\xff\xfe name\n\x01:,\\");
    write(layers.lower(odd), "data");
    let union = layers.mount();
    let listed: Vec<_> = fs::read_dir(union.merged("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(listed, [odd]);
    append(union.merged(odd), "+");
    assert_eq!(fs::read(union.upper(odd)).unwrap(), b"data+");
    fs::remove_file(union.merged(odd)).unwrap();
    assert!(is_whiteout(union.upper(odd)));
}

const DEEP: usize = 40;

/// Goes down `DEEP` directories of 200 bytes each, twice as deep as one path can say.
fn descend(from: &Path, make: bool) -> OwnedFd {
    let name = "d".repeat(200);
    let mut dir = openat(CWD, from, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    for _ in 0..DEEP {
        if make {
            mkdirat(&dir, &name, Mode::RWXU).unwrap();
        }
        dir = openat(&dir, &name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    }
    dir
}

#[test]
fn paths_deeper_than_path_max() {
    let layers = Layers::new(1);
    let bottom = descend(&layers.lower(""), true);
    let file = openat(&bottom, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
    rustix::io::write(&file, b"data").unwrap();
    let union = layers.mount();
    let merged = descend(&union.merged(""), false);
    let file = openat(&merged, "file", OFlags::RDWR | OFlags::APPEND, Mode::empty()).unwrap();
    rustix::io::write(&file, b"+").unwrap();
    drop(file);
    mkdirat(&merged, "new", Mode::RWXU).unwrap();
    rustix::fs::unlinkat(&merged, "file", rustix::fs::AtFlags::empty()).unwrap();
    let upper = descend(&union.upper(""), false);
    let whiteout = rustix::fs::statat(&upper, "file", rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    assert_eq!((whiteout.st_mode & libc::S_IFMT, whiteout.st_rdev), (libc::S_IFCHR, 0));
    let made = rustix::fs::statat(&upper, "new", rustix::fs::AtFlags::empty()).unwrap();
    assert_eq!(made.st_mode & libc::S_IFMT, libc::S_IFDIR);
}

#[test]
fn a_hundred_thousand_names_in_a_directory() {
    let layers = Layers::within(roomy(), 1);
    fs::create_dir(layers.lower("dir")).unwrap();
    for i in 0..100_000 {
        std::os::unix::fs::symlink("x", layers.lower(format!("dir/{i:06}"))).unwrap();
    }
    let union = layers.mount();
    write(union.merged("dir/new"), "");
    fs::remove_file(union.merged("dir/000007")).unwrap();
    let listed = names(union.merged("dir"));
    assert_eq!(listed.len(), 100_000);
    assert!(listed.windows(2).all(|pair| pair[0] < pair[1]), "a name came twice");
    assert_eq!((listed[6].as_str(), listed[7].as_str()), ("000006", "000008"));
}

/// A directory in memory if there is one: these tests make many files.
pub fn roomy() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory } else { Path::new("/tmp") }
}
