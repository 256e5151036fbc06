//! `passthrough=on`: the kernel reads and writes the real files itself, and nothing but the speed is another.
//!
//! With the kernel's overlay as the subject these ask what it does, which is what passthrough must do.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, chown};
use std::time::Duration;

use crate::support::map::Map;
use crate::support::nobody::{self, NOBODY, Way, sh_as_nobody};
use crate::support::*;
use crate::{need, plyfs_only};

/// Why the kernel would not grant it here.
fn missing() -> Option<&'static str> {
    const FIRST_USER_NAMESPACE: u64 = 0xefff_fffd;
    let release = read("/proc/sys/kernel/osrelease");
    let version: Vec<u32> = release.split(['.', '-']).map_while(|part| part.parse().ok()).take(2).collect();
    if !is_root() {
        Some("not root, so the kernel grants no passthrough")
    } else if fs::metadata("/proc/self/ns/user").unwrap().ino() != FIRST_USER_NAMESPACE {
        Some("not in the first user namespace, so the kernel grants no passthrough")
    } else if version < vec![6, 9] {
        Some("passthrough needs Linux 6.9")
    } else {
        None
    }
}

macro_rules! need_passthrough {
    () => {
        need!(missing().is_none(), missing().unwrap_or_default())
    };
}

fn mount(layers: Layers) -> Union {
    let more = if subject() == Subject::Plyfs { ",passthrough=on" } else { "" };
    let options = format!("{}{more}", layers.options());
    let target = layers.merged("");
    layers.mount_with(&options, &target)
}

/// How many bytes the server has read and written so far.
fn moved_by_server(union: &Union) -> u64 {
    let io = read(format!("/proc/{}/io", union.daemon()));
    let of = |key: &str| io.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok()).unwrap();
    of("rchar:") + of("wchar:")
}

const SIZE: usize = 4 << 20;

#[test]
fn data_goes_past_the_server() {
    need_passthrough!();
    plyfs_only!();
    let layers = Layers::new(1);
    write(layers.lower("appended"), "old");
    let union = mount(layers);
    let before = moved_by_server(&union);
    write(union.merged("new"), vec![b'x'; SIZE]);
    assert_eq!(fs::read(union.merged("new")).unwrap().len(), SIZE);
    append(union.merged("appended"), &"y".repeat(SIZE));
    let moved = moved_by_server(&union) - before;
    assert!(moved < SIZE as u64 / 16, "{moved} bytes came by");
    assert_eq!(fs::metadata(union.upper("new")).unwrap().len(), SIZE as u64);
    assert_eq!(fs::metadata(union.upper("appended")).unwrap().len(), SIZE as u64 + 3);
}

#[test]
fn data_goes_past_the_server_in_a_read_only_union() {
    need_passthrough!();
    plyfs_only!();
    let layers = Layers::new(2).read_only();
    write(layers.layer(2, "file"), vec![b'x'; SIZE]);
    let before_reading = fs::metadata(layers.layer(2, "file")).unwrap().atime_nsec();
    let union = mount(layers);
    let before = moved_by_server(&union);
    assert_eq!(fs::read(union.merged("file")).unwrap().len(), SIZE);
    let moved = moved_by_server(&union) - before;
    assert!(moved < SIZE as u64 / 16, "{moved} bytes came by");
    assert_eq!(fs::metadata(union.layer(2, "file")).unwrap().atime_nsec(), before_reading, "a layer was changed");
}

#[test]
fn a_reader_sees_what_is_written_after_it_opened_a_lower_file() {
    need_passthrough!();
    let layers = Layers::new(1);
    write(layers.lower("file"), "0123456789");
    let union = mount(layers);
    let reader = File::open(union.merged("file")).unwrap();
    let mut data = [0; 10];
    reader.read_exact_at(&mut data, 0).unwrap();
    let writer = open(union.merged("file"));
    writer.write_all_at(b"new", 2).unwrap();
    reader.read_exact_at(&mut data, 0).unwrap();
    assert_eq!(&data, b"01new56789");
    // A later one joins them, and one after all of them goes another way.
    assert_eq!(read(union.merged("file")), "01new56789");
    drop((reader, writer));
    append(union.merged("file"), "+");
    assert_eq!(read(union.merged("file")), "01new56789+");
    fs::write(union.merged("file"), "cut").unwrap();
    assert_eq!((read(union.merged("file")), read(union.upper("file"))), ("cut".into(), "cut".into()));
    assert_eq!(read(union.lower("file")), "0123456789");
}

#[test]
fn attributes_follow_writes_that_go_past_the_server() {
    need_passthrough!();
    let union = mount(Layers::new(1));
    let path = union.merged("file");
    let mut file = File::create(&path).unwrap();
    let mut before = fs::metadata(&path).unwrap();
    for round in 1..=50 {
        if round % 10 == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        file.write_all(b"0123456789").unwrap();
        let now = fs::metadata(&path).unwrap();
        assert_eq!((now.len(), file.metadata().unwrap().len()), (round * 10, round * 10));
        let real = fs::metadata(union.upper("file")).unwrap();
        assert_eq!(
            (now.mtime(), now.mtime_nsec(), now.ctime_nsec()),
            (real.mtime(), real.mtime_nsec(), real.ctime_nsec())
        );
        before = now;
    }
    file.set_len(3).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 3);
    assert!(fs::metadata(&path).unwrap().mtime_nsec() != before.mtime_nsec());
}

#[test]
fn a_mapping_of_the_real_file_shows_in_data_and_times() {
    need_passthrough!();
    let union = mount(Layers::new(1));
    let path = union.merged("file");
    write(&path, vec![b'.'; 4096]);
    let mtime =
        |path: &std::path::Path| (fs::metadata(path).unwrap().mtime(), fs::metadata(path).unwrap().mtime_nsec());
    let before = mtime(&path);
    let file = open(&path);
    let map = Map::new(&file);
    // The mapping outlives the descriptor.
    drop(file);
    assert_eq!(mtime(&path), before);
    std::thread::sleep(Duration::from_millis(20));
    map.set(0, b'm');
    assert_eq!(&fs::read(&path).unwrap()[..2], b"m.");
    assert_eq!(mtime(&path), mtime(&union.upper("file")));
    assert_ne!(mtime(&path), before);
    open(&path).write_all_at(b"w", 1).unwrap();
    assert_eq!(map.get(1), b'w');
}

#[test]
fn writing_past_the_server_clears_suid_and_capabilities() {
    need_passthrough!();
    let layers = Layers::new(1);
    write(layers.lower("file"), "data");
    let union = mount(layers);
    let file = union.merged("file");
    let reset = || {
        chown(&file, Some(0), Some(NOBODY)).unwrap();
        chmod(&file, 0o6777);
    };
    // By who is not the owner, in the upper and out of a lower.
    for script in ["echo x >> merged/file", "echo y >> merged/file", "echo z > merged/file"] {
        reset();
        sh_as_nobody(union.root(), script);
        assert_eq!((mode(&file), mode(union.upper("file"))), (0o777, 0o777), "{script}");
    }
    reset();
    append(&file, "root's");
    assert_eq!(mode(&file), 0o6777);
    need!(have("setcap"), "no setcap (package libcap2-bin)");
    run("setcap", &["cap_net_raw+ep", file.to_str().unwrap()]);
    assert!(xattr(&file, "security.capability").is_some());
    append(&file, "root's");
    assert_eq!((xattr(&file, "security.capability"), xattr(union.upper("file"), "security.capability")), (None, None));
}

#[test]
fn an_open_file_that_loses_its_name_or_mode_goes_on() {
    need_passthrough!();
    let layers = Layers::new(1);
    write(layers.lower("dir/lower"), "0123456789");
    let union = mount(layers);
    write(union.merged("dir/upper"), "0123456789");
    for name in ["dir/lower", "dir/upper"] {
        let mut file = open(union.merged(name));
        fs::rename(union.merged(name), union.merged("moved")).unwrap();
        chmod(union.merged("moved"), 0);
        file.write_all(b"ab").unwrap();
        assert_eq!(read(union.merged("moved")), "ab23456789");
        fs::remove_file(union.merged("moved")).unwrap();
        file.write_all(b"c").unwrap();
        file.set_len(4).unwrap();
        file.sync_all().unwrap();
        let mut data = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut data).unwrap();
        assert_eq!((data.as_str(), file.metadata().unwrap().nlink(), file.metadata().unwrap().len()), ("abc3", 0, 4));
    }
}

#[test]
fn calls_that_the_server_answers_meet_those_that_it_does_not() {
    need_passthrough!();
    let layers = Layers::new(1);
    write(layers.lower("source"), "0123456789");
    let union = mount(layers);
    let source = File::open(union.merged("source")).unwrap();
    let target =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(union.merged("target")).unwrap();
    target.write_all_at(b"abc", 0).unwrap();
    let copied = rustix::fs::copy_file_range(&source, Some(&mut 2), &target, Some(&mut 1), 5).unwrap();
    assert_eq!((copied, read(union.merged("target")).as_str()), (5, "a23456"));
    target.write_all_at(b"X", 6).unwrap();
    rustix::fs::fallocate(&target, rustix::fs::FallocateFlags::empty(), 0, 20).unwrap();
    assert_eq!(target.metadata().unwrap().len(), 20);
    let mut appending = OpenOptions::new().append(true).open(union.merged("target")).unwrap();
    appending.write_all(b"end").unwrap();
    target.write_all_at(b"!", 23).unwrap();
    appending.write_all(b"?").unwrap();
    target.sync_data().unwrap();
    assert_eq!(&fs::read(union.upper("target")).unwrap()[..7], b"a23456X");
    assert_eq!(&fs::read(union.merged("target")).unwrap()[20..], b"end!?");
}

#[test]
fn a_file_without_a_name_is_passed_through() {
    need_passthrough!();
    let union = mount(Layers::new(1));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(union.merged(""))
        .unwrap();
    file.write_all(b"hello").unwrap();
    let mut data = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut data).unwrap();
    assert_eq!((data.as_str(), file.metadata().unwrap().len()), ("hello", 5));
}

#[test]
fn a_change_of_the_upper_behind_a_passed_file_shows() {
    need_passthrough!();
    plyfs_only!();
    let union = mount(Layers::new(1));
    write(union.merged("file"), "0123456789");
    let reader = File::open(union.merged("file")).unwrap();
    let writer = OpenOptions::new().write(true).open(union.merged("file")).unwrap();
    assert_eq!(fs::metadata(union.merged("file")).unwrap().len(), 10);
    append(union.upper("file"), "+");
    let mut data = [0; 11];
    reader.read_exact_at(&mut data, 0).unwrap();
    assert_eq!(&data, b"0123456789+");
    let shows = || fs::metadata(union.merged("file")).unwrap().len() == 11;
    assert!(eventually(Duration::from_secs(1), shows));
    drop((reader, writer));
}

#[test]
fn direct_io_goes_past_the_server_or_fails_as_the_file_system_says() {
    need_passthrough!();
    let union = mount(Layers::new(1));
    write(union.merged("file"), vec![b'x'; 8192]);
    let direct = |path| OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).map(drop);
    assert_eq!(errno(direct(union.merged("file"))), errno(direct(union.upper("file"))));
}

#[test]
fn passthrough_that_is_not_granted_is_done_without() {
    let way = if have("fusermount3") { Way::Fusermount } else { Way::Namespace };
    plyfs_only!();
    match nobody::missing(way) {
        Some(why) => skipped(why),
        None => {
            let prepare = "mkdir -p x";
            let told = nobody::script(
                way,
                prepare,
                "echo old > lower/file
                 plyfs -o lowerdir=lower,upperdir=upper,workdir=work,passthrough=on merged 2> said
                 echo new >> merged/file; cat merged/file; cat said; leave; trap - EXIT",
            );
            assert_eq!(told, "old\nnew\n");
        }
    }
}

#[test]
fn o_append_cannot_be_taken_from_a_passed_descriptor() {
    need_passthrough!();
    plyfs_only!();
    let union = mount(Layers::new(1));
    write(union.merged("file"), "0123456789");
    let file = OpenOptions::new().append(true).open(union.merged("file")).unwrap();
    rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty()).unwrap();
    rustix::io::pwrite(&file, b"x", 0).unwrap();
    assert_eq!(read(union.merged("file")), "0123456789x");
}
