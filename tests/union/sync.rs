//! What is synced, by the system calls that a copy-up makes on the file system where the tests run.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use plyfs::errno::Errno;
use plyfs::overlay::config::Fsync;
use plyfs::sys::Journal;
use plyfs::sys::faults::{self, Fault};

use crate::fixture::{Layers, Union};

const SYNCS: [&str; 4] = ["fsync", "fdatasync", "sync_file_range", "syncfs"];

fn layers(fsync: Fsync) -> (Layers, Journal) {
    let mut layers = Layers::of(&["d/file = data\n d/other = data"]);
    layers.config.fsync = fsync;
    File::create(layers.lower(1, "d/empty")).unwrap();
    let hollow = File::create(layers.lower(1, "d/hollow")).unwrap();
    hollow.set_len(1 << 20).unwrap();
    let holed = File::create(layers.lower(1, "d/holed")).unwrap();
    holed.set_len(1 << 20).unwrap();
    holed.write_all_at(b"data", 1 << 18).unwrap();
    let journal = Journal::of(File::open(layers.root()).unwrap().as_fd());
    (layers, journal)
}

/// The syncs of one operation.
fn syncs(operation: impl FnOnce()) -> Vec<&'static str> {
    faults::arm(0, Fault::Frozen);
    operation();
    let mut calls = faults::disarm();
    calls.retain(|call| SYNCS.contains(call));
    calls
}

fn copy_up(u: &Union, name: &str) -> Vec<&'static str> {
    u.at(name).unwrap();
    syncs(|| {
        u.chmod(name, 0o640).unwrap();
    })
}

#[test]
fn a_copy_is_written_out_where_the_file_system_keeps_the_order_and_synced_elsewhere() {
    faults::deny(Some(("ficlone", Errno::ENOTSUP)));
    let (layers, journal) = layers(Fsync::Auto);
    let u = layers.open();
    assert!(copy_up(&u, "d").is_empty());
    // Begun with the data, and waited for in the end.
    let expected = if journal == Journal::Sequential { ["sync_file_range"; 2].as_slice() } else { &["fsync"] };
    assert_eq!(copy_up(&u, "d/file"), expected, "{journal:?}");
    assert_eq!(copy_up(&u, "d/holed"), expected, "{journal:?}");
    // Nothing that a name could show without.
    assert!(copy_up(&u, "d/empty").is_empty());
    assert!(copy_up(&u, "d/hollow").is_empty());
    faults::deny(Some(("sync_file_range", Errno::ENOSYS)));
    let calls = copy_up(&u, "d/other");
    faults::deny(None);
    // On a file system with clones it is one now.
    assert!(
        calls.is_empty() && journal != Journal::Unknown || calls.last() == Some(&"fsync"),
        "{journal:?}: {calls:?}"
    );
    assert_eq!(fs::read(u.upper_path("d/file")).unwrap(), b"data");
    assert_eq!(fs::metadata(u.upper_path("d/hollow")).unwrap().len(), 1 << 20);
    u.close();
}

#[test]
fn a_clone_is_committed_before_a_sync_that_could_tear_it_from_its_name() {
    let (layers, journal) = layers(Fsync::Auto);
    let can_clone = {
        let from = File::open(layers.lower(1, "d/file")).unwrap();
        rustix::fs::ioctl_ficlone(tempfile::tempfile_in(layers.root()).unwrap(), &from).is_ok()
    };
    let u = layers.open();
    let calls = copy_up(&u, "d/file");
    let torn = journal == Journal::Transactions && can_clone;
    assert_eq!(calls.is_empty(), can_clone && journal != Journal::Unknown, "{journal:?}: {calls:?}");
    let expected: &[&str] = if torn { &["syncfs", "fsync"] } else { &["fsync"] };
    let dir = u.at("d").unwrap();
    assert_eq!(syncs(|| u.overlay.fsync(dir, false).unwrap()), expected, "{journal:?}");
    assert_eq!(syncs(|| u.overlay.fsync(dir, false).unwrap()), ["fsync"], "committed already");
    assert_eq!(copy_up(&u, "d/other"), calls);
    let file = u.at("d/file").unwrap();
    let expected: &[&str] = if torn { &["syncfs", "fdatasync"] } else { &["fdatasync"] };
    assert_eq!(syncs(|| u.overlay.fsync(file, true).unwrap()), expected, "{journal:?}");
    u.close();
}

#[test]
fn strict_syncs_each_copy_and_volatile_none() {
    let u = layers(Fsync::Strict).0.open();
    for name in ["d", "d/file", "d/empty", "d/hollow"] {
        assert_eq!(copy_up(&u, name), ["fsync"], "{name}");
    }
    u.close();
    let u = layers(Fsync::Volatile).0.open();
    assert!(copy_up(&u, "d/file").is_empty());
    let file = u.at("d/file").unwrap();
    assert!(syncs(|| u.overlay.fsync(file, false).unwrap()).is_empty());
    u.close();
}
