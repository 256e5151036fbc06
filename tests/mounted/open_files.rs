//! Files that stay open while their name, mode or layer goes away under them.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;

use crate::support::map::Map;
use crate::support::*;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

#[test]
fn an_unlinked_open_file_is_still_a_file() {
    let layers = Layers::new(1);
    write(layers.lower("lower"), "0123456789");
    let union = layers.mount();
    write(union.merged("upper"), "0123456789");
    for name in ["lower", "upper"] {
        let mut file = open(union.merged(name));
        fs::remove_file(union.merged(name)).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0, "{name}");
        let mut data = String::new();
        file.read_to_string(&mut data).unwrap();
        assert_eq!(data, "0123456789", "{name}");
        // A lower file may have been copied up by its opening (the kernel) or not at all; both must take the write.
        file.write_all(b"more").unwrap();
        file.set_len(12).unwrap();
        file.rewind().unwrap();
        data.clear();
        file.read_to_string(&mut data).unwrap();
        assert_eq!(data, "0123456789mo", "{name}");
        assert_eq!(file.metadata().unwrap().len(), 12);
        assert!(!exists(union.merged(name)));
    }
    assert!(is_whiteout(union.upper("lower")) && !exists(union.upper("upper")));
}

#[test]
fn an_open_file_survives_being_renamed_over() {
    let layers = Layers::new(1);
    write(layers.lower("x"), "old");
    let union = layers.mount();
    let mut file = fs::File::open(union.merged("x")).unwrap();
    write(union.merged("y"), "new");
    fs::rename(union.merged("y"), union.merged("x")).unwrap();
    let mut data = String::new();
    file.read_to_string(&mut data).unwrap();
    assert_eq!((data.as_str(), read(union.merged("x")).as_str()), ("old", "new"));
}

#[test]
fn an_open_file_goes_on_under_its_new_name() {
    let layers = Layers::new(1);
    write(layers.lower("dir/x"), "old");
    let union = layers.mount();
    let mut file = OpenOptions::new().append(true).open(union.merged("dir/x")).unwrap();
    fs::rename(union.merged("dir/x"), union.merged("y")).unwrap();
    file.write_all(b"+").unwrap();
    assert_eq!(read(union.merged("y")), "old+");
}

#[test]
fn chmod_0_does_not_stop_an_open_descriptor() {
    let layers = Layers::new(1);
    write(layers.lower("lower"), "a");
    let union = layers.mount();
    write(union.merged("new"), "a");
    for name in ["lower", "new"] {
        let mut file = OpenOptions::new().append(true).read(true).open(union.merged(name)).unwrap();
        chmod(union.merged(name), 0);
        file.write_all(b"b").unwrap();
        file.sync_all().unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut data = String::new();
        file.read_to_string(&mut data).unwrap();
        assert_eq!((data.as_str(), mode(union.merged(name))), ("ab", 0));
    }
}

#[test]
fn shared_mappings_reach_the_file_and_live_through_copy_up() {
    let layers = Layers::new(1);
    write(layers.lower("file"), vec![b'.'; 4096]);
    let union = layers.mount();
    let file = open(union.merged("file"));
    let map = Map::new(&file);
    assert_eq!(map.get(0), b'.');
    map.set(0, b'm');
    map.sync();
    assert_eq!(fs::read(union.upper("file")).unwrap()[..2], *b"m.");
    assert_eq!(fs::read(union.lower("file")).unwrap()[..2], *b"..");
    rustix::io::pwrite(&file, b"w", 1).unwrap();
    assert_eq!(map.get(1), b'w');
    map.set(2, b'm');
    assert_eq!(fs::read(union.merged("file")).unwrap()[..4], *b"mwm.");
    drop((map, file));
    let union = union.remount();
    assert_eq!(fs::read(union.merged("file")).unwrap()[..4], *b"mwm.");
}

#[test]
fn a_directory_removed_while_open_is_empty() {
    let layers = Layers::new(1);
    write(layers.lower("dir/file"), "");
    let union = layers.mount();
    let dir = fs::File::open(union.merged("dir")).unwrap();
    fs::remove_dir_all(union.merged("dir")).unwrap();
    let made = rustix::fs::mkdirat(&dir, "sub", rustix::fs::Mode::RWXU);
    assert_eq!(made, Err(rustix::io::Errno::NOENT));
}

#[test]
fn a_file_without_a_name_can_be_given_one() {
    let layers = Layers::new(1);
    fs::create_dir(layers.lower("dir")).unwrap();
    let union = layers.mount();
    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o640)
        .custom_flags(libc::O_TMPFILE)
        .open(union.merged("dir"))
        .unwrap();
    file.write_all(b"hello").unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(fs::read_dir(union.merged("dir")).unwrap().count(), 0);
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
    rustix::fs::linkat(rustix::fs::CWD, open.as_str(), rustix::fs::CWD, union.merged("dir/named"), follow).unwrap();
    assert_eq!(fs::read(union.upper("dir/named")).unwrap(), b"hello");
    assert_eq!(file.metadata().unwrap().nlink(), 1);
    assert_eq!(fs::metadata(union.merged("dir/named")).unwrap().ino(), file.metadata().unwrap().ino());
}
