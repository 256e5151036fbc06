//! Works that change nothing: walks, stat, open, missing names, xattrs, reading data.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};
use rustix::io::{Errno, pread, read};

use super::Run;
use crate::Result;
use crate::tree::{self, Random};

/// Passes of a warm measurement whose cold pass came first.
const WARM_PASSES: usize = 3;

pub fn walk(run: &mut Run<'_>) -> Result<()> {
    let root = run.root()?;
    let merged = run.merged.to_owned();
    let cold = run.time("walk-cold", 1, || tree::walk(root.as_fd(), &mut |_, _| {}))?;
    run.time("walk-warm", WARM_PASSES, || {
        for _ in 0..WARM_PASSES {
            // Each pass opens the root anew: an open directory would go on at its end.
            let root = tree::open(&merged)?;
            if tree::walk(root.as_fd(), &mut |_, _| {})? != cold {
                return Err("a warm walk saw another number of entries than the cold one".into());
            }
        }
        Ok(())
    })
}

pub fn walk_twice_at_once(run: &mut Run<'_>) -> Result<()> {
    let merged = run.merged.to_owned();
    run.time("walk2-cold", 1, || {
        std::thread::scope(|scope| {
            let walkers: Vec<_> = (0..2)
                .map(|_| scope.spawn(|| tree::open(&merged).and_then(|root| tree::walk(root.as_fd(), &mut |_, _| {}))))
                .collect();
            for walker in walkers {
                walker.join().map_err(|_| "a walker panicked")??;
            }
            Ok(())
        })
    })
}

pub fn stat(run: &mut Run<'_>) -> Result<()> {
    let root = run.root()?;
    let files = run.files(20_000)?;
    let pass = || {
        for file in &files {
            statat(&root, file, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    };
    run.time("stat-cold", files.len(), pass)?;
    run.time("stat-warm", files.len() * WARM_PASSES, || (0..WARM_PASSES).try_for_each(|_| pass()))
}

pub fn open(run: &mut Run<'_>) -> Result<()> {
    let root = run.root()?;
    let files = run.files(10_000)?;
    let mut buffer = vec![0; 128 * 1024];
    let mut pass = || {
        for file in &files {
            let fd = openat(&root, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            while read(&fd, &mut buffer)? > 0 {}
        }
        Ok(())
    };
    run.time("open-cold", files.len(), &mut pass)?;
    run.time("open-warm", files.len() * WARM_PASSES, || (0..WARM_PASSES).try_for_each(|_| pass()))
}

pub fn miss(run: &mut Run<'_>) -> Result<()> {
    let root = run.root()?;
    let count = run.count(20_000);
    let directories = &run.names.directories;
    let mut names = Vec::with_capacity(count);
    for n in 0..count {
        let directory = directories.get(n % directories.len().max(1)).map(|path| path.as_os_str());
        let mut name = directory.unwrap_or(".".as_ref()).as_encoded_bytes().to_vec();
        name.extend_from_slice(format!("/missing-{n}.h").as_bytes());
        names.push(CString::new(name)?);
    }
    let pass = || {
        for name in &names {
            match statat(&root, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Err("a name that nobody made is there".into()),
            }
        }
        Ok(())
    };
    run.time("miss-cold", names.len(), pass)?;
    run.time("miss-warm", names.len() * WARM_PASSES, || (0..WARM_PASSES).try_for_each(|_| pass()))
}

/// What containers/storage asks about every entry when it compares two mounts for a commit.
pub fn xattr(run: &mut Run<'_>) -> Result<()> {
    let mut files: Vec<PathBuf> = run.files(10_000)?.iter().map(|file| run.merged.join(file)).collect();
    files.sort();
    let mut value = [0; 256];
    let mut list = [0; 4096];
    let mut pass = || {
        for file in &files {
            rustix::fs::lstat(file)?;
            match rustix::fs::lgetxattr(file, c"security.capability", &mut value) {
                Ok(_) | Err(Errno::NODATA | Errno::NOTSUP) => {}
                Err(error) => return Err(error.into()),
            }
            match rustix::fs::llistxattr(file, &mut list) {
                Ok(_) | Err(Errno::NOTSUP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    };
    run.time("xattr-cold", files.len(), &mut pass)?;
    run.time("xattr-warm", files.len(), &mut pass)
}

/// Reads as cat does, 128 KiB at a time.
pub fn sequential(run: &mut Run<'_>) -> Result<()> {
    let root = run.root()?;
    let mut buffer = vec![0; 128 * 1024];
    let mut pass = || {
        let file = openat(&root, "big.bin", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut sum = 0;
        loop {
            match read(&file, &mut buffer)? {
                0 => return Ok(sum),
                n => sum += n,
            }
        }
    };
    let cold = run.time("read-cold", 1, &mut pass)?;
    let warm = run.time("read-warm", 1, &mut pass)?;
    if cold == warm { Ok(()) } else { Err("two reads gave different lengths".into()) }
}

pub fn random(run: &mut Run<'_>) -> Result<()> {
    let root = run.root()?;
    let file = openat(&root, "big.bin", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let pages = rustix::fs::fstat(&file)?.st_size as u64 / 4096;
    let count = run.count(20_000);
    run.time("randread-cold", count, || read_pages(file.as_fd(), pages, count))?;
    run.time("randread-warm", count, || read_pages(file.as_fd(), pages, count))
}

fn read_pages(file: BorrowedFd<'_>, pages: u64, count: usize) -> Result<()> {
    let mut random = Random::new(11);
    let mut page = [0; 4096];
    for _ in 0..count {
        if pread(file, &mut page, random.below(pages) * 4096)? != page.len() {
            return Err("a short read inside the file".into());
        }
    }
    Ok(())
}
