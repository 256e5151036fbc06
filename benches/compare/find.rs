//! Which unions this machine has. Programs are asked for their version and nothing else; nothing is installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;
use crate::args::{Args, Who};
use crate::plan::{Contender, Kind};

/// All that take part, the kernel's overlay first.
pub fn contenders(args: &Args) -> Result<Vec<Contender>> {
    let mut found = Vec::new();
    if args.who != Who::Plain {
        found.push(Contender { name: "kernel".into(), version: kernel_version(), kind: Kind::Kernel });
    }
    let plyfs = PathBuf::from(env!("CARGO_BIN_EXE_plyfs"));
    found.extend(overlay_program("plyfs", &plyfs));
    for program in on_path("fuse-overlayfs") {
        let Some(mut contender) = overlay_program("fuse-overlayfs", &program) else { continue };
        contender.name = format!("fuse-overlayfs {}", number(&contender.version));
        if found.iter().all(|other: &Contender| other.name != contender.name) {
            found.push(contender);
        }
    }
    if let Some(program) = on_path("unionfs-fuse").into_iter().chain(on_path("unionfs")).next() {
        let version = version(&program).unwrap_or_default();
        found.push(Contender { name: "unionfs-fuse".into(), version, kind: Kind::UnionfsFuse(program) });
    }
    for peer in &args.peer {
        found.push(given(peer)?);
    }
    found.retain(|contender| {
        let name = contender.name.as_str();
        args.contenders.is_empty()
            || contender.kind == Kind::Kernel
            || args.contenders.iter().any(|wanted| name.starts_with(wanted.as_str()))
    });
    Ok(found)
}

/// The contender that `--peer NAME=COMMAND` describes.
fn given(peer: &str) -> Result<Contender> {
    let wrong = || format!("--peer {peer}: not NAME=COMMAND");
    let (name, command) = peer.split_once('=').ok_or_else(wrong)?;
    let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    let program = words.first().ok_or_else(wrong)?;
    let program = if program.contains('/') {
        std::fs::canonicalize(program).map_err(|error| format!("--peer {name}: {program}: {error}"))?
    } else {
        on_path(program).into_iter().next().ok_or_else(|| format!("--peer {name}: {program}: not on PATH"))?
    };
    let version = version(&program).unwrap_or_default();
    let mut argv = vec![program.to_string_lossy().into_owned()];
    argv.extend_from_slice(&words[1..]);
    let kind = if command.contains("{merged}") { Kind::Template(argv) } else { Kind::OverlayProgram(argv) };
    Ok(Contender { name: name.to_owned(), version, kind })
}

/// A program that takes fuse-overlayfs's arguments, if it is there and runs.
fn overlay_program(name: &str, program: &Path) -> Option<Contender> {
    let version = version(program)?;
    let kind = Kind::OverlayProgram(vec![program.to_string_lossy().into_owned()]);
    Some(Contender { name: name.to_owned(), version, kind })
}

/// The first line of `PROGRAM --version` that has a number in it.
fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| line.contains(|c: char| c.is_ascii_digit()) && !line.contains("fusermount"))?;
    Some(line.trim().to_owned())
}

/// `2.0` of `fuse-overlayfs: version 2.0.0`.
fn number(version: &str) -> String {
    let digits = version.rsplit(' ').next().unwrap_or(version);
    digits.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// All programs of this name on PATH and in cargo's own directory, in that order.
fn on_path(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cargo = std::env::var_os("CARGO_HOME").map(|home| PathBuf::from(home).join("bin"));
    let mut programs: Vec<PathBuf> = Vec::new();
    for directory in std::env::split_paths(&path).chain(cargo) {
        match std::fs::canonicalize(directory.join(name)) {
            Ok(program) if !programs.contains(&program) => programs.push(program),
            _ => {}
        }
    }
    programs
}

fn kernel_version() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
