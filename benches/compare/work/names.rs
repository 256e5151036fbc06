//! Works that make and remove names: archives, rm -rf, create, rename, unlink, mkdir, whiteouts.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, renameat, unlinkat};

use super::Run;
use crate::Result;
use crate::tree::{self, Random};

const NEW: OFlags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::CLOEXEC);

/// Runs a program to its end; its complaints are the error.
pub fn program(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name}: {}: {}", output.status, complaint.lines().last().unwrap_or_default()).into())
}

pub fn untar(run: &mut Run<'_>) -> Result<()> {
    let archive = archive(run)?;
    let merged = run.merged.to_owned();
    run.time("untar", 1, || program(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&merged)))?;
    run.time("rm-upper", 1, || program(Command::new("rm").arg("-rf").arg(merged.join("archive"))))
}

/// An archive of 8,000 files of 0.1 to 4 KiB in 200 directories, made once with tar itself.
fn archive(run: &Run<'_>) -> Result<PathBuf> {
    let archive = run.outside.join("archive.tar");
    if archive.exists() {
        return Ok(archive);
    }
    let tree = run.outside.join("archive");
    let mut random = Random::new(4);
    for n in 0..run.count(8_000) {
        let directory = tree.join(format!("part{:03}", n / 40));
        fs::create_dir_all(&directory)?;
        let length = 100 + random.below(4000) as usize;
        fs::write(directory.join(format!("member{:02}", n % 40)), random.bytes(length))?;
    }
    program(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&run.outside).arg("archive"))?;
    fs::remove_dir_all(tree)?;
    Ok(archive)
}

/// Removes lower directories that together hold about 6,000 files.
pub fn remove_lower(run: &mut Run<'_>) -> Result<()> {
    let mut inside: HashMap<&Path, usize> = HashMap::new();
    for file in &run.names.files {
        for directory in file.ancestors().skip(1) {
            *inside.entry(directory).or_default() += 1;
        }
    }
    let wanted = run.count(6_000);
    let mut covered = 0;
    let mut trees: Vec<&Path> = Vec::new();
    // Directories are sorted, parents first: one that holds too much is taken apart.
    for directory in &run.names.directories {
        let inside = inside.get(directory.as_path()).copied().unwrap_or(0);
        if inside <= wanted - covered && !trees.iter().any(|tree| directory.starts_with(tree)) {
            covered += inside;
            trees.push(directory);
        }
        if covered == wanted {
            break;
        }
    }
    if covered == 0 {
        return Err("the layers hold no directory of a fitting size to remove".into());
    }
    let mut command = Command::new("rm");
    command.arg("-rf").args(trees.iter().map(|tree| run.merged.join(tree)));
    run.time("rm-lower", 1, || program(&mut command))
}

fn create_files(directory: BorrowedFd<'_>, count: usize) -> Result<()> {
    for n in 0..count {
        openat(directory, format!("file{n}"), NEW, Mode::from(0o644))?;
    }
    Ok(())
}

fn new_directory(run: &Run<'_>, name: &str) -> Result<std::os::fd::OwnedFd> {
    let path: &Path = &run.merged.join(name);
    fs::create_dir(path)?;
    tree::open(path)
}

pub fn create(run: &mut Run<'_>) -> Result<()> {
    let directory = new_directory(run, "new")?;
    let count = run.count(4_000);
    run.time("create", count, || create_files(directory.as_fd(), count))?;
    run.time("rename", count, || {
        for n in 0..count {
            renameat(&directory, format!("file{n}"), &directory, format!("renamed{n}"))?;
        }
        Ok(())
    })?;
    run.time("unlink", count, || {
        for n in 0..count {
            unlinkat(&directory, format!("renamed{n}"), AtFlags::empty())?;
        }
        Ok(())
    })?;
    run.time("mkdir", count, || {
        for n in 0..count {
            mkdirat(&directory, format!("directory{n}"), Mode::from(0o755))?;
        }
        Ok(())
    })
}

pub fn create_two(run: &mut Run<'_>) -> Result<()> {
    let directories = [new_directory(run, "new1")?, new_directory(run, "new2")?];
    let count = run.count(4_000);
    run.time("create2", count * directories.len(), || {
        std::thread::scope(|scope| {
            let clients: Vec<_> = directories
                .iter()
                .map(|directory| scope.spawn(move || create_files(directory.as_fd(), count)))
                .collect();
            for client in clients {
                client.join().map_err(|_| "a client panicked")??;
            }
            Ok(())
        })
    })
}

/// Where the union cannot rename it, as `mv` does: copied, and the original removed.
pub fn rename_directory(run: &mut Run<'_>) -> Result<()> {
    let root = run.root()?;
    let merged = run.merged.to_owned();
    run.time("rename-dir", 1, || match renameat(&root, "top", &root, "moved") {
        Err(rustix::io::Errno::XDEV) => {
            let status = Command::new("mv").arg(merged.join("top")).arg(merged.join("moved")).status()?;
            if status.success() { Ok(()) } else { Err(format!("mv: {status}").into()) }
        }
        result => Ok(result?),
    })
}

pub fn whiteout(run: &mut Run<'_>) -> Result<()> {
    let root = run.root()?;
    let files = run.files(4_000)?;
    run.time("whiteout", files.len(), || {
        for file in &files {
            unlinkat(&root, file, AtFlags::empty())?;
        }
        Ok(())
    })
}
