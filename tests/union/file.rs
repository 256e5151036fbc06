//! The contents of files.

use std::fs;
use std::os::unix::fs::MetadataExt;

use plyfs::errno::Errno;
use plyfs::overlay::Privileges;

use crate::fixture::{Layers, union};

#[test]
fn reading_neither_copies_up_nor_touches_the_lower() {
    let layers = Layers::of(&["f = 0123456789"]);
    let path = layers.lower(1, "f");
    let old = std::time::SystemTime::UNIX_EPOCH;
    fs::File::open(&path).unwrap().set_times(fs::FileTimes::new().set_accessed(old)).unwrap();
    let u = layers.open();
    let id = u.at("f").unwrap();
    let mut buffer = [0; 4];
    assert_eq!(u.overlay.read(id, 3, &mut buffer).unwrap(), 4);
    assert_eq!(&buffer, b"3456");
    assert_eq!(u.overlay.read(id, 8, &mut buffer).unwrap(), 2);
    assert_eq!(u.overlay.read(id, 100, &mut buffer).unwrap(), 0);
    u.upper_holds("");
    assert_eq!(fs::metadata(path).unwrap().atime(), 0);
}

#[test]
fn who_read_the_lower_reads_the_copy_after_a_write() {
    let u = union(&["f = 0123456789"]);
    let id = u.at("f").unwrap();
    assert_eq!(u.read_node(id).unwrap(), "0123456789");
    u.put(id, 2, b"XX").unwrap();
    assert_eq!(u.read_node(id).unwrap(), "01XX456789");
    u.put(id, 12, b"end").unwrap();
    assert_eq!(u.read_node(id).unwrap(), "01XX456789\0\0end");
    assert_eq!(fs::read_to_string(u.lower(1, "f")).unwrap(), "0123456789");
}

#[test]
fn only_files_have_contents() {
    let u = union(&["d/x = 1\n l -> x"]);
    let (dir, link) = (u.at("d").unwrap(), u.at("l").unwrap());
    assert_eq!(u.overlay.read(dir, 0, &mut [0; 1]), Err(Errno::EISDIR));
    assert_eq!(u.put(dir, 0, b"x"), Err(Errno::EISDIR));
    assert_eq!(u.put(link, 0, b"x"), Err(Errno::EINVAL));
    assert_eq!(u.overlay.readlink(dir).err(), Some(Errno::EINVAL));
    u.upper_holds("");
}

#[test]
fn syncing_what_was_never_written_does_nothing() {
    let u = union(&["d/f = 1"]);
    for path in ["d/f", "d", ""] {
        let id = u.at(path).unwrap();
        u.overlay.fsync(id, true).unwrap();
        u.overlay.fsync(id, false).unwrap();
    }
    u.upper_holds("");
    u.append("d/f", "2").unwrap();
    for path in ["d/f", "d"] {
        u.overlay.fsync(u.at(path).unwrap(), false).unwrap();
    }
}

#[test]
fn space_is_reserved_and_punched_in_the_copy() {
    let u = union(&["f = 0123456789"]);
    let id = u.at("f").unwrap();
    u.overlay.fallocate(id, 0, 0, 20, Privileges::Keep).unwrap();
    assert_eq!(u.stat("f").unwrap().size, 20);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    u.overlay.fallocate(id, punch, 2, 3, Privileges::Keep).unwrap();
    assert!(u.read_node(id).unwrap().starts_with("01\x00\x00\x0056789"));
    assert_eq!(fs::read_to_string(u.lower(1, "f")).unwrap(), "0123456789");
}

#[test]
fn data_and_holes_are_found_in_the_lower_without_a_copy_up() {
    let layers = Layers::of(&["x = 1"]);
    let file = fs::File::create(layers.lower(1, "f")).unwrap();
    file.set_len(4 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"data", 2 << 20).unwrap();
    let u = layers.open();
    let id = u.at("f").unwrap();
    assert_eq!(u.overlay.seek(id, 0, libc::SEEK_DATA).unwrap(), 2 << 20);
    assert_eq!(u.overlay.seek(id, 0, libc::SEEK_HOLE).unwrap(), 0);
    assert_eq!(u.overlay.seek(id, 4 << 20, libc::SEEK_DATA), Err(Errno::ENXIO));
    u.upper_holds("");
}

#[test]
fn ranges_are_copied_between_files_and_within_one() {
    let u = union(&["a = 0123456789\n b = abcdefghij"]);
    let (a, b) = (u.at("a").unwrap(), u.at("b").unwrap());
    assert_eq!(u.overlay.copy_file_range((a, 2), (b, 4), 3, Privileges::Keep).unwrap(), 3);
    u.upper_holds("b = abcd234hij");
    assert_eq!(u.overlay.copy_file_range((a, 0), (a, 5), 5, Privileges::Keep).unwrap(), 5);
    u.upper_holds("a = 0123401234\n b = abcd234hij");
}

#[test]
fn many_small_writes_after_a_copy_up_all_arrive() {
    let layers = Layers::of(&["x = 1"]).volatile();
    let mut expected: Vec<u8> = (0..1_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    fs::write(layers.lower(1, "db"), &expected).unwrap();
    let u = layers.open();
    let id = u.at("db").unwrap();
    let mut at = 12_345_usize;
    for n in 0..5000_usize {
        at = (at * 1_103_515_245 + 12_345) % 990_000;
        let page = vec![u8::try_from(n % 256).unwrap(); 1 + n % 4096];
        u.put(id, at as u64, &page).unwrap();
        let end = at + page.len();
        expected[at..end].copy_from_slice(&page);
        if n % 100 == 0 {
            let mut back = vec![0; page.len()];
            assert_eq!(u.overlay.read(id, at as u64, &mut back).unwrap(), page.len());
            assert_eq!(back, page);
        }
    }
    assert!(fs::read(u.upper_path("db")).unwrap() == expected, "the file on disk differs");
}

#[test]
fn the_file_systems_size_is_that_of_the_upper() {
    let u = union(&["x = 1"]);
    let size = u.overlay.statfs().unwrap();
    assert!(size.blocks >= size.bfree && size.bfree >= size.bavail);
    assert_eq!(size.namelen, 255);
}
