//! `io_uring`: the second way by which requests come, where the machine allows it.
//!
//! All the other tests can be run this way, too: `PLYFS_TEST_OPTIONS=io_uring` where `fuse.enable_uring` is `Y`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use super::daemon::ran;
use super::staying_up::mount_over_a_layer_that_does_not_answer;
use super::support::front::InFront;
use super::support::{Layers, PLYFS, Union, eventually, exists, have, names, read, run, runs, write};
use crate::{need, plyfs_only};

/// Whether this kernel's FUSE takes rings from those that ask for it. It is asked when a mount begins, and never again.
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

/// Mounts with the machine's permission given or taken for just this moment; other mounts do not ask for rings.
pub fn mount(layers: Layers, options: &str, target: &Path, allowed: &str) -> Union {
    allowing(allowed, || layers.mount_with(&format!("{options},io_uring"), target))
}

fn allowing<T>(allowed: &str, what: impl FnOnce() -> T) -> T {
    let lock = File::open(PARAMETER).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let _before = Before(read(PARAMETER));
    write(PARAMETER, allowed);
    what()
}

/// Puts the parameter back, also after a panic.
struct Before(String);

impl Drop for Before {
    fn drop(&mut self) {
        write(PARAMETER, self.0.trim());
    }
}

pub fn can_allow() -> bool {
    super::support::is_root() && fs::OpenOptions::new().write(true).open(PARAMETER).is_ok()
}

#[test]
fn requests_come_through_rings_where_the_machine_allows_it() {
    plyfs_only!();
    need!(can_allow(), "fuse.enable_uring cannot be set here");
    let layers = Layers::new(2);
    for n in 0..300 {
        write(layers.layer(1 + n % 2, format!("d/{n}")), n.to_string());
    }
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    fs::write(layers.lower("large"), &large).unwrap();
    let (options, target) = (layers.options(), layers.merged(""));
    let union = mount(layers, &options, &target, "Y");
    // The caller is let go before all threads have been started.
    assert!(eventually(Duration::from_secs(10), || ran(union.daemon(), "plyfs-ring").is_some()));
    let through = || ran(union.daemon(), "plyfs-ring").unwrap();
    let before = through();
    assert!(names(union.merged("d")).len() == 300 && !exists(union.merged("nothing")));
    (0..300).for_each(|n| assert_eq!(read(union.merged(format!("d/{n}"))), n.to_string()));
    // More than one request each, at odd places.
    let file = fs::OpenOptions::new().read(true).write(true).open(union.merged("large")).unwrap();
    assert!(fs::read(union.merged("large")).unwrap() == large);
    file.write_all_at(&large, 1_234_567).unwrap();
    let expected = [&large[..1_234_567], &large[..]].concat();
    assert!(
        fs::read(union.merged("large")).unwrap() == expected && fs::read(union.upper("large")).unwrap() == expected
    );
    drop(file);
    // Names of every length, and callers on all processors at once.
    std::thread::scope(|scope| {
        for who in 0..8 {
            let dir = union.merged(format!("of-{who}"));
            scope.spawn(move || {
                fs::create_dir(&dir).unwrap();
                for length in 1..=255 {
                    let name = dir.join("n".repeat(length));
                    write(&name, format!("{who} {length}"));
                    fs::rename(&name, dir.join("other")).unwrap();
                    assert_eq!(read(dir.join("other")), format!("{who} {length}"));
                    assert!(fs::read(&name).is_err_and(|error| error.raw_os_error() == Some(libc::ENOENT)));
                }
            });
        }
    });
    let behind = union.lower("d/behind");
    write(behind, "");
    assert!(eventually(Duration::from_secs(5), || exists(union.merged("d/behind"))));
    assert!(through() > before, "the rings were not used");
    let daemon = union.daemon();
    union.unmount();
    assert!(!runs(daemon));
}

#[test]
fn a_layer_that_does_not_answer_holds_up_nobody_on_the_same_ring() {
    plyfs_only!();
    need!(can_allow(), "fuse.enable_uring cannot be set here");
    mount_over_a_layer_that_does_not_answer(|layers, options, target| {
        let union = mount(layers, options, target, "Y");
        // All callers on one processor, so that their requests come through one queue.
        let mut one = CpuSet::new();
        one.set(sched_getcpu());
        sched_setaffinity(None, &one).unwrap();
        union
    });
}

#[test]
fn without_the_machines_permission_requests_are_read_as_ever() {
    plyfs_only!();
    let layers = Layers::new(1);
    write(layers.lower("f"), "1");
    let (options, target) = (layers.options(), layers.merged(""));
    let union = if can_allow() {
        mount(layers, &options, &target, "N")
    } else {
        layers.mount_with(&format!("{options},io_uring"), &target)
    };
    assert_eq!(read(union.merged("f")), "1");
    need!(can_allow(), "whether the machine allows rings is not known");
    assert_eq!(ran(union.daemon(), "plyfs-ring"), None);
}

#[test]
fn without_descriptors_for_rings_requests_are_read_as_ever() {
    plyfs_only!();
    need!(can_allow() && have("prlimit"), "fuse.enable_uring cannot be set here, or no prlimit (util-linux)");
    let layers = Layers::new(1);
    let (merged, log) = (layers.root().canonicalize().unwrap().join("merged"), layers.root().join("log"));
    let (limit, soon) = (|most: u32| format!("--nofile={most}:{most}"), Duration::from_secs(10));
    let mut without_rings = 0;
    // One ring is tried before the kernel is asked for them; with some of these limits there cannot be one after it.
    for most in 10..=24 {
        allowing("Y", || {
            let mut command = Command::new("prlimit");
            command.args([&limit(most), PLYFS, "-f", "-o", &format!("{},io_uring,threads=2", layers.options())]);
            command.arg(&merged).current_dir(layers.root()).stderr(File::create(&log).unwrap());
            let mut server = InFront::new(command, &merged);
            assert!(
                eventually(soon, || server.is_mounted() || server.has_ended()),
                "{most}: neither mounted nor refused"
            );
            if server.is_mounted() {
                // Not by this thread: where the kernel waits for a ring, who asks for something waits with it. And nothing
                // for which the server needs a descriptor.
                run("timeout", &["-s", "KILL", "10", "stat", "-f", merged.to_str().unwrap()]);
                without_rings += usize::from(read(&log).contains("requests do not come through a ring"));
                run("umount", &[merged.to_str().unwrap()]);
            }
            assert!(eventually(soon, || server.has_ended()), "it stays with {most} descriptors");
        });
    }
    assert!(without_rings > 0, "there were always enough descriptors");
}
