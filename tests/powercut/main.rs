//! Power cuts: a disk that keeps what was synced and of the rest what it likes, under the upper of a union.
//!
//! A workload runs on a union whose upper (and half of whose lowers) lies on a recorded disk. Then the power is cut: at many
//! points of the record the disk is made as it may be there, with all that was written up to the last flush and any part of
//! what was written after it; it is mounted, the union on it too, and must show what the union showed at some moment between the
//! last sync and the cut, with every copied-up file whole.
//!
//! `PLYFS_POWERCUT=3000` is for how many cuts of each kind (a few dozen if not given), `PLYFS_POWERCUT_SEED` for the first
//! workload; `PLYFS_POWERCUT_MKFS`, `_MOUNT` (`data=writeback`) and `_UNION` (`,index=on`) are further options. Needs root, FUSE and loop devices.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod check;
#[path = "../common/mod.rs"]
mod common;
mod disk;
mod model;
mod record;
#[path = "../differential/rng.rs"]
#[allow(dead_code)]
mod rng;
mod script;

use common::backing::Kind;
use common::mounts::Maker;
use record::{Area, Subject};

/// What a variable says, if anything.
fn words(variable: &str) -> String {
    std::env::var(variable).unwrap_or_default()
}

/// Cuts of one workload.
const PER_WORKLOAD: usize = 150;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}

fn can_record() -> bool {
    let losetup = || disk::run(std::process::Command::new("losetup").arg("-f")).is_ok();
    common::is_real_root() && common::has_fuse() && losetup()
}

/// Cuts the power `cuts` times, or as often as asked. Returns what was found wrong, or `None` where nothing can be told.
fn cut(test: &str, subject: Subject, cuts: usize) -> Option<(usize, Vec<String>)> {
    let mkfs = format!("mkfs.{}", subject.kind.name());
    if !can_record()
        || !["/usr/sbin", "/sbin", "/usr/bin"].iter().any(|dir| std::path::Path::new(dir).join(&mkfs).exists())
    {
        common::skip(test, &format!("not real root, or no FUSE, no loop devices or no {mkfs}"));
        return None;
    }
    let cuts = number("PLYFS_POWERCUT").map_or(cuts, |cuts| usize::try_from(cuts).unwrap());
    let mut seed = number("PLYFS_POWERCUT_SEED").unwrap_or(1);
    let (mut done, mut wrong) = (0, Vec::new());
    while done < cuts {
        let area = Area::new(subject).unwrap_or_else(|error| panic!("{test}: {error}"));
        let more = (cuts - done).min(PER_WORKLOAD);
        wrong.extend(area.workload(seed, more).unwrap_or_else(|error| panic!("{test}, seed {seed}: {error}")));
        done += more;
        seed += 1;
    }
    println!("{test}: {done} cuts, {} wrong", wrong.len());
    Some((done, wrong))
}

fn holds(test: &str, subject: Subject, cuts: usize) {
    let Some((done, wrong)) = cut(test, subject, cuts) else { return };
    let few: Vec<_> = wrong.iter().take(8).map(String::as_str).collect();
    assert!(wrong.is_empty(), "{} of {done} cuts:\n{}", wrong.len(), few.join("\n"));
}

fn plyfs(kind: Kind) -> Subject {
    Subject { kind, maker: Maker::Plyfs, volatile: false, near: true, extra: "" }
}

#[test]
fn a_power_cut_on_ext4_leaves_what_was_synced_and_whole_copies() {
    holds("ext4", plyfs(Kind::Ext4), 24);
}

#[test]
fn a_power_cut_on_xfs_leaves_what_was_synced_and_whole_copies() {
    holds("xfs", plyfs(Kind::Xfs), 24);
}

/// Data that comes later than its file, and is put into place in the upper.
#[test]
fn a_power_cut_leaves_what_was_synced_and_whole_copies_with_metacopy() {
    holds("metacopy on ext4", Subject { extra: ",metacopy=on,redirect_dir=on", ..plyfs(Kind::Ext4) }, 12);
}

/// Without shared extents, as below: a cut while the transaction is written can leave an empty copy, though rarely.
#[test]
fn a_power_cut_on_btrfs_leaves_what_was_synced_and_whole_copies() {
    holds("btrfs", Subject { near: false, ..plyfs(Kind::Btrfs) }, 24);
}

/// The control: what is asked is what the kernel gives.
#[test]
fn the_kernels_overlay_keeps_the_same_on_ext4() {
    holds("kernel on ext4", Subject { maker: Maker::Kernel, ..plyfs(Kind::Ext4) }, 10);
}

#[test]
fn the_kernels_overlay_keeps_the_same_on_xfs() {
    holds("kernel on xfs", Subject { maker: Maker::Kernel, ..plyfs(Kind::Xfs) }, 10);
}

/// Without shared extents: of those the kernel leaves empty files when a directory is synced before the transaction ends.
#[test]
fn the_kernels_overlay_keeps_the_same_on_btrfs() {
    holds("kernel on btrfs", Subject { maker: Maker::Kernel, near: false, ..plyfs(Kind::Btrfs) }, 10);
}

/// The other control: copies that nobody syncs are found broken, so the check can fail.
#[test]
fn a_volatile_union_is_caught() {
    for (test, kind) in [("volatile on ext4", Kind::Ext4), ("volatile on xfs", Kind::Xfs)] {
        let Some((done, wrong)) = cut(test, Subject { volatile: true, ..plyfs(kind) }, 8) else { continue };
        assert!(
            wrong.iter().any(|what| what.contains("has 0 bytes and not")),
            "{test}: {done} cuts did no harm: {wrong:?}"
        );
    }
}

/// What all of this rests on: the disk learns of writes and flushes in the order of the calls, and nothing is held back.
#[test]
fn the_disk_notes_writes_and_flushes_in_their_order() {
    use disk::{Disk, Event};
    use rustix::fs::{Mode, OFlags, open};
    use std::os::unix::fs::FileExt;
    if !can_record() {
        return common::skip(
            "the_disk_notes_writes_and_flushes_in_their_order",
            "not real root, no FUSE or no loop devices",
        );
    }
    common::caller::own_mounts();
    let scratch = common::scratch::Scratch::new("powercut");
    let disk = Disk::new(&scratch.path().join("disk"), 1 << 20).unwrap();
    let device = disk.attach().unwrap();
    let direct = |flags| std::fs::File::from(open(&device, OFlags::RDWR | flags, Mode::empty()).unwrap());
    disk.state().recording = true;
    let noted = || {
        let log = std::mem::take(&mut disk.state().log);
        let word = |event: &Event| match event {
            Event::Write(offset, data) => format!("{offset}:{}", data[0]),
            Event::Flush => "flush".to_owned(),
        };
        log.iter().map(word).collect::<Vec<_>>().join(" ")
    };
    let buffered = direct(OFlags::empty());
    // Gone when the last descriptor is closed.
    disk::run(std::process::Command::new("losetup").arg("-d").arg(&device)).unwrap();
    buffered.write_all_at(&[1; 4096], 8192).unwrap();
    buffered.sync_all().unwrap();
    assert_eq!(noted(), "8192:1 flush");
    // A write that is to be on disk when it is answered, as those of journals are.
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let forced = direct(OFlags::DIRECT | OFlags::DSYNC);
    forced.write_all_at(&Page([2; 4096]).0, 4096).unwrap();
    forced.write_all_at(&Page([3; 4096]).0, 0).unwrap();
    assert_eq!(noted().replace("flush flush", "flush"), "4096:2 flush 0:3 flush");
    // Discarding, and zeroing without writing: nothing that the disk does unnoticed.
    let blkdiscard =
        |arguments: &[&str]| disk::run(std::process::Command::new("blkdiscard").args(arguments).arg(&device));
    blkdiscard(&["-f"]).unwrap();
    assert_eq!((noted().as_str(), disk.state().image.read(4094, 4)), ("", vec![3, 3, 2, 2]));
    blkdiscard(&["-f", "-z", "-l", "4096"]).unwrap();
    assert!(noted().starts_with("0:0"));
    assert_eq!(disk.state().image.read(4094, 4), [0, 0, 2, 2]);
}
