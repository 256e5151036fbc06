//! Works that change what a lower layer holds, so that the union has to copy it up first.
//!
//! The kernel's overlay syncs a copy before it shows it, unless the file system could share the data (a reflink): then it does not
//! sync. So layers on the upper's own file system and layers elsewhere are two different rows.

use rustix::fs::{AtFlags, Mode, OFlags, chmodat, openat};
use rustix::io::{pwrite, write};

use super::Run;
use crate::Result;

pub fn chmod(run: &mut Run<'_>) -> Result<()> {
    let root = run.root()?;
    let files = run.files(4_000)?;
    let [row] = run.rows else { return Err("one row".into()) };
    run.time(row.id, files.len(), || {
        for file in &files {
            chmodat(&root, file, Mode::from(0o600), AtFlags::empty())?;
        }
        Ok(())
    })
}

pub fn chmod_many(run: &mut Run<'_>) -> Result<()> {
    let root = run.root()?;
    let files = run.files(8_000)?;
    let [row] = run.rows else { return Err("one row".into()) };
    run.time(row.id, 1, || {
        for file in &files {
            chmodat(&root, file, Mode::from(0o600), AtFlags::empty())?;
        }
        Ok(())
    })
}

pub fn append(run: &mut Run<'_>) -> Result<()> {
    let root = run.root()?;
    let files = run.files(4_000)?;
    let [row] = run.rows else { return Err("one row".into()) };
    run.time(row.id, files.len(), || {
        for file in &files {
            let fd = openat(&root, file, OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC, Mode::empty())?;
            write(&fd, b"one more line\n")?;
        }
        Ok(())
    })
}

pub fn one_byte(run: &mut Run<'_>) -> Result<()> {
    if !reflinks(run)? {
        return Err("the file system cannot share data between files (no reflink)".into());
    }
    poke(run, "onebyte")
}

pub fn one_byte_copied(run: &mut Run<'_>) -> Result<()> {
    poke(run, "onebyte-copy")
}

fn poke(run: &mut Run<'_>, row: &'static str) -> Result<()> {
    let root = run.root()?;
    run.time(row, 1, || {
        let file = openat(&root, "big.bin", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        pwrite(&file, b"!", 4096)?;
        Ok(())
    })
}

fn reflinks(run: &Run<'_>) -> Result<bool> {
    let (from, to) = (run.outside.join("reflink1"), run.outside.join("reflink2"));
    std::fs::write(&from, [1; 4096])?;
    let source = std::fs::File::open(&from)?;
    let target = std::fs::File::create(&to)?;
    Ok(rustix::fs::ioctl_ficlone(&target, &source).is_ok())
}
