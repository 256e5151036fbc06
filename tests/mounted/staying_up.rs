//! Staying up: what runs out or goes away degrades an answer, and comes back when it does.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use super::names::roomy;
use crate::support::nobody::{self, Way};
use crate::support::*;
use crate::{need, need_root, plyfs_only};

/// A file system of its own for layers, for as long as this lives.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(kind: &str, data: &std::ffi::CStr) -> Disk {
        let dir = tempfile::Builder::new().prefix("plyfs-disk-").tempdir().unwrap();
        mount(kind, dir.path(), kind, MountFlags::empty(), Some(data)).unwrap();
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Disk(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(self.path(), UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_refuses_a_copy_up_and_nothing_else() {
    need_root!();
    let disk = Disk::new("tmpfs", c"size=4m");
    let layers = Layers::within(disk.path(), 0);
    let lower = tempfile::tempdir_in(roomy()).unwrap();
    write(lower.path().join("big"), vec![b'x'; 8 << 20]);
    write(lower.path().join("small"), "small");
    let options = format!("lowerdir={},upperdir=upper,workdir=work", lower.path().display());
    let target = layers.merged("");
    let union = layers.mount_with(&options, &target);
    let before = fs::read(union.merged("big")).unwrap();
    for _ in 0..3 {
        let file = fs::OpenOptions::new().append(true).open(union.merged("big"));
        let refused = file.and_then(|mut file| {
            std::io::Write::write_all(&mut file, b"more")?;
            file.sync_all()
        });
        assert_eq!(errno(refused), libc::ENOSPC);
    }
    assert!(fs::read(union.merged("big")).unwrap() == before, "the file was changed");
    assert!(!exists(union.upper("big")) && names(union.root().join("work/work")).is_empty());
    append(union.merged("small"), "er");
    assert_eq!(read(union.merged("small")), "smaller");
}

#[test]
fn a_disk_that_becomes_read_only_refuses_changes_until_it_is_writable_again() {
    need_root!();
    let disk = Disk::new("tmpfs", c"size=16m");
    let layers = Layers::within(disk.path(), 1);
    write(layers.lower("d/f"), "lower");
    let union = layers.mount();
    assert_eq!(read(union.merged("d/f")), "lower");
    if mount_remount(disk.path(), MountFlags::RDONLY, "").is_err() {
        // Open for writing: the superblock cannot be, but the mount may be made so.
        mount_remount(disk.path(), MountFlags::RDONLY | MountFlags::BIND, "").unwrap();
    }
    let refused = errno(fs::write(union.merged("new"), "x"));
    assert!([libc::EROFS, 0].contains(&refused), "{refused}");
    assert_eq!(read(union.merged("d/f")), "lower");
    mount_remount(disk.path(), MountFlags::empty(), "").unwrap();
    mount_remount(disk.path(), MountFlags::BIND, "").unwrap();
    write(union.merged("d/new"), "x");
    append(union.merged("d/f"), "+");
    assert_eq!(read(union.merged("d/f")), "lower+");
}

#[test]
fn a_lower_that_is_unmounted_or_emptied_takes_nothing_else_along() {
    plyfs_only!();
    need_root!();
    let disk = Disk::new("tmpfs", c"size=16m");
    let layers = Layers::new(1);
    write(layers.lower("stays"), "1");
    write(disk.path().join("d/on-disk"), "2");
    for n in 0..50 {
        write(layers.lower(format!("goes/{n}")), "3");
    }
    let options = format!("lowerdir={}:l1,upperdir=upper,workdir=work", disk.path().display());
    let target = layers.merged("");
    let union = layers.mount_with(&options, &target);
    let held = fs::File::open(union.merged("goes/0")).unwrap();
    assert_eq!(names(union.merged("goes")).len(), 50);
    unmount(disk.path(), UnmountFlags::DETACH).unwrap();
    fs::remove_dir_all(union.lower("goes")).unwrap();
    // The tests' own disk is unmounted again when it is dropped.
    mount("tmpfs", disk.path(), "tmpfs", MountFlags::empty(), Some(c"size=1m")).unwrap();
    assert_eq!(read(union.merged("stays")), "1");
    assert_eq!(read(union.merged("d/on-disk")), "2");
    drop(held);
    assert!(eventually(Duration::from_secs(5), || !exists(union.merged("goes/7"))));
    write(union.merged("goes-on"), "x");
    assert_eq!(read(union.merged("goes-on")), "x");
}

#[test]
fn few_descriptors_are_enough() {
    plyfs_only!();
    need!(have("prlimit"), "no prlimit (util-linux)");
    let layers = Layers::within(roomy(), 2);
    for dir in 0..60 {
        for file in 0..5 {
            write(layers.layer(1 + dir % 2, format!("{dir}/{file}")), format!("{dir} {file}"));
        }
    }
    let union = layers.mount();
    let daemon = union.daemon();
    let open = fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().count();
    run("prlimit", &["--pid", &daemon.to_string(), &format!("--nofile={0}:{0}", open + 12)]);
    for round in 0..2 {
        for dir in 0..60 {
            for file in 0..5 {
                let path = union.merged(format!("{dir}/{file}"));
                let expected = if round == 0 { format!("{dir} {file}") } else { format!("{dir} {file}+") };
                assert_eq!(read(&path), expected);
                if round == 0 {
                    append(&path, "+");
                }
            }
        }
    }
    assert_eq!(names(union.merged("")).len(), 60);
}

#[test]
fn a_stopped_server_goes_on_where_it_was() {
    plyfs_only!();
    let layers = Layers::new(1);
    write(layers.lower("f"), "1");
    let union = layers.mount();
    let stopped = Stopped::new(union.daemon());
    let mut reader = Command::new("cat").arg(union.merged("f")).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(reader.try_wait().unwrap().is_none());
    drop(stopped);
    assert_eq!(reader.wait_with_output().unwrap().stdout, b"1");
    write(union.merged("g"), "2");
}

#[test]
fn mounts_in_sequence_leave_nothing() {
    plyfs_only!();
    let count = std::env::var("PLYFS_MOUNTS").map_or(40, |count| count.parse().unwrap());
    let mut layers = Layers::new(1);
    write(layers.lower("f"), "1");
    for n in 0..count {
        let union = layers.mount();
        append(union.merged("f"), "+");
        layers = union.unmount();
        assert_eq!(read(layers.upper("f")).len(), n + 2);
    }
    println!("{count} mounts");
}

#[test]
fn a_hundred_mounts_at_once_all_answer() {
    plyfs_only!();
    let begun = Instant::now();
    let unions: Vec<_> = (0..100)
        .map(|n| {
            let layers = Layers::new(1);
            write(layers.lower("f"), n.to_string());
            layers.mount()
        })
        .collect();
    for (n, union) in unions.iter().enumerate() {
        append(union.merged("f"), "!");
        assert_eq!(read(union.merged("f")), format!("{n}!"));
    }
    println!("100 mounts after {:?}", begun.elapsed());
}

#[test]
fn more_events_than_a_queue_holds_lose_no_change() {
    plyfs_only!();
    let most: usize = read("/proc/sys/fs/inotify/max_queued_events").trim().parse().unwrap();
    need!(most <= 20_000, "the queue of events is too long to be filled quickly");
    let layers = Layers::within(roomy(), 1);
    write(layers.lower("d/seen"), "1");
    let union = layers.mount();
    assert_eq!(names(union.merged("d")), ["seen"]);
    assert!(!exists(union.merged("d/last")));
    let stopped = Stopped::new(union.daemon());
    for n in 0..=most {
        fs::write(union.lower(format!("d/{}", n % 2)), "").unwrap();
        fs::remove_file(union.lower(format!("d/{}", n % 2))).unwrap();
    }
    fs::remove_file(union.lower("d/seen")).unwrap();
    write(union.lower("d/last"), "2");
    drop(stopped);
    let coherent = eventually(Duration::from_secs(5), || names(union.merged("d")) == ["last"]);
    assert!(coherent, "{:?}", names(union.merged("d")));
    assert!(!exists(union.merged("d/seen")) && exists(union.merged("d/last")));
}

#[test]
fn without_watches_changes_are_seen_all_the_same() {
    plyfs_only!();
    if let Some(why) = nobody::missing(Way::Namespace) {
        return skipped(why);
    }
    let script = r#"
        for n in $(seq 30); do mkdir lower/$n; echo old > lower/$n/f; done
        echo 5 > /proc/sys/user/max_inotify_watches
        union
        cat merged/*/f > /dev/null
        for n in $(seq 30); do echo new > lower/$n/f; echo x > lower/$n/g; rm -f lower/$n/h; done
        sleep 2
        cat merged/*/f | sort | uniq -c
        ls merged/*/g | wc -l
        echo y >> merged/7/f; cat merged/7/f
        leave
    "#;
    assert_eq!(
        nobody::script(Way::Namespace, "", script).split_whitespace().collect::<Vec<_>>(),
        ["30", "new", "30", "new", "y"]
    );
}

/// ramfs holds no xattrs and does not know `RENAME_WHITEOUT`.
#[test]
fn an_upper_without_xattrs_and_without_rename_whiteout_will_do() {
    plyfs_only!();
    need_root!();
    let disk = Disk::new("ramfs", c"");
    let layers = Layers::within(disk.path(), 1);
    for path in ["d/f", "d/g", "gone/in", "dir/x"] {
        write(layers.lower(path), path);
    }
    let mut union = layers.mount();
    fs::remove_file(union.merged("d/f")).unwrap();
    append(union.merged("d/g"), "+");
    fs::rename(union.merged("d/g"), union.merged("d/h")).unwrap();
    fs::remove_dir_all(union.merged("gone")).unwrap();
    fs::create_dir(union.merged("gone")).unwrap();
    for _ in 0..2 {
        assert_eq!(names(union.merged("d")), ["h"]);
        assert_eq!(read(union.merged("d/h")), "d/g+");
        assert!(names(union.merged("gone")).is_empty());
        assert_eq!(fs::metadata(union.merged("dir/x")).unwrap().size(), 5);
        union = union.remount();
    }
}

#[test]
fn an_error_names_the_layer_and_the_path() {
    plyfs_only!();
    need_root!();
    let disk = Disk::new("tmpfs", c"size=1m");
    let layers = Layers::within(disk.path(), 0);
    let lower = tempfile::tempdir_in(roomy()).unwrap();
    write(lower.path().join("dir/big"), vec![b'x'; 8 << 20]);
    let command = format!(
        "'{PLYFS}' -f -o lowerdir={},upperdir=upper,workdir=work merged 2> log & daemon=$!
        for i in $(seq 100); do mountpoint -q merged && break; sleep 0.05; done
        echo more >> merged/dir/big || true; sync merged/dir/big || true
        umount merged; wait $daemon; cat log",
        lower.path().display()
    );
    let log = sh(layers.root(), &command);
    let expected = format!("{}: /dir/big: No space left on device", lower.path().display());
    assert!(log.contains(&expected), "{expected} in {log}");
}

#[test]
fn sigusr1_reports_what_was_done_and_what_is_held() {
    plyfs_only!();
    let layers = Layers::new(1);
    write(layers.lower("f"), "12345");
    let command = format!(
        "'{PLYFS}' -f -o {} merged 2> log & daemon=$!
        for i in $(seq 100); do mountpoint -q merged && break; sleep 0.05; done
        echo 6 >> merged/f; sync merged/f
        kill -USR1 $daemon; for i in $(seq 100); do grep -q copy-ups log && break; sleep 0.05; done
        umount merged 2>/dev/null || fusermount3 -u merged; wait $daemon; cat log",
        layers.options()
    );
    let log = sh(layers.root(), &command);
    for expected in
        [" errors ", " faults 0 ", " LOOKUP ", " WRITE 1", "; nodes ", " copy-ups 1 bytes 5 ", " watch budget "]
    {
        assert!(log.contains(expected), "{expected} in {log}");
    }
}

#[test]
fn a_layer_that_does_not_answer_holds_up_nobody_who_needs_no_answer_of_it() {
    plyfs_only!();
    mount_over_a_layer_that_does_not_answer(|layers, options, target| layers.mount_with(options, target));
}

/// Mounts a union in the given way and stops one of its layers; checks that others are answered.
pub fn mount_over_a_layer_that_does_not_answer(mount: impl FnOnce(Layers, &str, &Path) -> Union) {
    let below = Layers::new(1);
    write(below.lower("below"), "below");
    let slow = below.mount();
    let layers = Layers::new(1);
    (0..100).for_each(|n| write(layers.lower(format!("f{n}")), format!("{n}")));
    let options = format!("lowerdir=l1:{},upperdir=upper,workdir=work", slow.merged("").display());
    let target = layers.merged("");
    let union = mount(layers, &options, &target);
    assert_eq!(read(union.merged("below")), "below");
    let stopped = Stopped::new(slow.daemon());
    std::thread::scope(|scope| {
        // More than there are threads: each waits for the stopped layer.
        for n in 0..12 {
            let name = union.merged(format!("nothing-{n}"));
            scope.spawn(move || assert!(!exists(name)));
        }
        std::thread::sleep(Duration::from_millis(100));
        let (sender, answers) = std::sync::mpsc::channel();
        let names: Vec<_> = (0..100).map(|n| union.merged(format!("f{n}"))).collect();
        scope.spawn(move || sender.send(names.iter().map(read).collect::<Vec<_>>()));
        let answered = answers.recv_timeout(Duration::from_secs(60));
        drop(stopped);
        assert_eq!(answered.unwrap(), (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
    });
}
