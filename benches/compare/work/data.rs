//! Works that write data into new files of the upper. Each is over when the last descriptor is closed; what the kernel
//! writes to disk later belongs to nobody, only fsync waits for the disk.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fsync as sync_file, openat};
use rustix::io::{pwrite, write};

use super::Run;
use crate::Result;
use crate::tree::Random;

const LENGTH: u64 = 512 << 20;
const NEW: OFlags = OFlags::RDWR.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::CLOEXEC);

fn new(root: &impl AsFd, name: &str) -> Result<OwnedFd> {
    Ok(openat(root, name, NEW, Mode::from(0o644))?)
}

fn fill(file: BorrowedFd<'_>, length: usize, chunk: &[u8]) -> Result<()> {
    let mut written = 0;
    while written < length {
        written += write(file, &chunk[..chunk.len().min(length - written)])?;
    }
    Ok(())
}

fn written(run: &mut Run<'_>, row: &'static str, chunk: usize) -> Result<()> {
    let root = run.root()?;
    let length = run.count(LENGTH);
    let chunk = Random::new(5).bytes(chunk);
    run.time(row, 1, || {
        let file = new(&root, "written")?;
        fill(file.as_fd(), length, &chunk)
    })
}

pub fn write_large(run: &mut Run<'_>) -> Result<()> {
    written(run, "write", 1 << 20)
}

pub fn write_small(run: &mut Run<'_>) -> Result<()> {
    written(run, "write-4k", 4096)
}

/// Overwrites pages of a 128 MiB file in random order, as databases and virtual disks do; the close is part of it.
pub fn overwrite(run: &mut Run<'_>) -> Result<()> {
    let root = run.root()?;
    let length = run.count(128 << 20);
    fill(new(&root, "image")?.as_fd(), length, &Random::new(5).bytes(1 << 20))?;
    let count = run.count(32_768);
    let page = Random::new(6).bytes(4096);
    run.time("overwrite", count, || {
        let mut random = Random::new(12);
        let file = openat(&root, "image", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        for _ in 0..count {
            pwrite(&file, &page, random.below(length as u64 / 4096) * 4096)?;
        }
        Ok(())
    })
}

pub fn fsync(run: &mut Run<'_>) -> Result<()> {
    let root = run.root()?;
    let count = run.count(500);
    let page = Random::new(6).bytes(4096);
    run.time("fsync", count, || {
        for n in 0..count {
            let file = new(&root, &format!("synced{n}"))?;
            write(&file, &page)?;
            sync_file(&file)?;
        }
        Ok(())
    })
}
