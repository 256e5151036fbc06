//! What the daemon holds: memory and descriptors stay bounded, and it goes when its mount goes.

use std::fs;
use std::time::Duration;

use super::names::roomy;
use crate::support::*;
use crate::{need, need_root, plyfs_only};

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn tree(layers: &Layers, directories: usize, files: usize) {
    for directory in 0..directories {
        let dir = layers.lower(format!("{directory}"));
        fs::create_dir(&dir).unwrap();
        for file in 0..files {
            fs::File::create(dir.join(format!("file-{file}"))).unwrap();
        }
    }
}

#[test]
fn memory_returns_when_the_kernel_forgets() {
    plyfs_only!();
    need_root!();
    let layers = Layers::within(roomy(), 1);
    tree(&layers, 200, 1000);
    let union = layers.mount();
    names(union.merged(""));
    let before = resident(union.daemon());
    let seen = sh(union.root(), "find merged -type f -printf '%s\\n' | wc -l");
    assert_eq!(seen.trim(), "200000");
    let full = resident(union.daemon());
    let back = eventually(Duration::from_secs(60), || {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        std::thread::sleep(Duration::from_millis(500));
        resident(union.daemon()) < before + 20 * 1024
    });
    let after = resident(union.daemon());
    assert!(back, "{before} KiB at first, {full} KiB after the walk, {after} KiB after dropping the caches");
}

#[test]
fn descriptors_are_bounded() {
    plyfs_only!();
    let layers = Layers::within(roomy(), 1);
    tree(&layers, 2000, 10);
    let union = layers.mount();
    let read_all = |union: &Union, from: usize, to: usize| {
        let script = format!("for d in $(seq {from} {to}); do cat merged/$d/* >/dev/null; done");
        sh(union.root(), &script);
        descriptors(union.daemon())
    };
    let some = read_all(&union, 0, 999);
    let more = read_all(&union, 1000, 1999);
    assert!(more < 4096 && more <= some + 1500, "{some} descriptors after 10,000 files, {more} after 20,000");
}

#[test]
fn the_table_of_descriptors_does_not_have_to_grow() {
    plyfs_only!();
    let layers = Layers::within(roomy(), 1);
    tree(&layers, 600, 1);
    let union = layers.mount();
    let room = || {
        let status = fs::read_to_string(format!("/proc/{}/status", union.daemon())).unwrap();
        let line = status.lines().find(|line| line.starts_with("FDSize:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = room();
    sh(union.root(), "find merged -size +1 | wc -l");
    assert!(descriptors(union.daemon()) > 256, "the walk left few directories open");
    assert_eq!(room(), before);
}

#[test]
fn the_daemon_leaves_on_a_signal_and_takes_its_mount_along() {
    plyfs_only!();
    need!(have("mountpoint"), "no mountpoint (util-linux)");
    for signal in ["-TERM", "-INT"] {
        let layers = Layers::new(1);
        fs::create_dir(layers.root().join("again")).unwrap();
        let command = format!(
            "'{PLYFS}' -f -o {} merged & for i in $(seq 100); do mountpoint -q merged && break; sleep 0.05; done
            kill {signal} $!; wait $! || true; ! mountpoint -q merged && ls merged",
            layers.options()
        );
        assert_eq!(sh(layers.root(), &command), "");
    }
}

#[test]
fn the_daemon_is_gone_after_unmounting() {
    plyfs_only!();
    let union = Layers::new(1).mount();
    let daemon = union.daemon();
    let layers = union.unmount();
    assert!(!runs(daemon));
    assert!(names(layers.merged("")).is_empty());
}

/// The nanoseconds that the threads of this name have run in a process, if it has any.
pub fn ran(pid: u32, name: &str) -> Option<u64> {
    let task = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path());
    let threads = task.filter(|task| fs::read_to_string(task.join("comm")).unwrap().trim() == name);
    let times =
        threads.map(|thread| fs::read_to_string(thread.join("schedstat")).ok()?.split(' ').next()?.parse().ok());
    times.reduce(|one, other| Some(one? + other?)).flatten()
}

/// Whether the machine has processors for the server to choose from, and says how long threads ran.
pub fn has_choice() -> bool {
    std::thread::available_parallelism().unwrap().get() > 1 && fs::exists("/proc/self/schedstat").unwrap()
}

#[test]
fn one_caller_alone_is_answered_by_a_thread_that_gives_way_to_it() {
    plyfs_only!();
    if !has_choice() {
        return skipped("one processor, or no /proc/PID/schedstat");
    }
    let layers = Layers::new(1);
    let union = layers.mount();
    let Some(before) = ran(union.daemon(), "plyfs-rider") else { return skipped("mounted with io_uring") };
    let asked = eventually(Duration::from_secs(60), || {
        (0..1000).for_each(|n| assert!(!exists(union.merged(format!("nothing-{n}")))));
        // A file that comes and goes is news each time.
        (0..1000).for_each(|_| {
            write(union.merged("file"), "");
            fs::remove_file(union.merged("file")).unwrap();
        });
        ran(union.daemon(), "plyfs-rider").unwrap() > before + 1_000_000
    });
    assert!(asked, "the rider never ran");
}

#[test]
fn callers_that_come_and_go_are_all_answered() {
    let layers = Layers::new(1);
    for n in 0..64 {
        write(layers.lower(format!("f{n}")), format!("{n}"));
    }
    let union = layers.mount();
    for round in 0..20 {
        // One alone for a while, then several, one of them with much data.
        for n in 0..100 {
            assert!(!exists(union.merged(format!("nothing-{round}-{n}"))));
        }
        std::thread::scope(|scope| {
            for client in 0..4 {
                let union = &union;
                scope.spawn(move || {
                    let own = union.merged(format!("own-{client}"));
                    let much = vec![b'0' + client; 1 << 20];
                    for n in 0..16 {
                        fs::write(&own, if client == 0 { &much } else { &much[..n] }).unwrap();
                        let file = client as usize * 16 + n;
                        assert_eq!(read(union.merged(format!("f{file}"))), format!("{file}"));
                        assert_eq!(fs::read(&own).unwrap().len(), if client == 0 { 1 << 20 } else { n });
                    }
                    fs::remove_file(&own).unwrap();
                });
            }
        });
    }
}
