//! The README's first screen, run to the letter: each command of its `console` block, and the output it shows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::time::Duration;

use support::{PLYFS, Subject, eventually, have, is_root, subject};

/// One command of the block and what it shows.
struct Step {
    command: String,
    shown: String,
}

fn first_screen() -> Vec<Step> {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, block) = readme.split_once("```console\n").expect("README.md has a console block");
    let (block, _) = block.split_once("```\n").unwrap();
    let mut steps: Vec<Step> = Vec::new();
    for line in block.lines() {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => steps.push(Step { command: command.to_owned(), shown: String::new() }),
            (None, Some(step)) => step.shown += &format!("{line}\n"),
            (None, None) => panic!("output before the first command: {line}"),
        }
    }
    steps
}

#[test]
fn the_first_screen_of_the_readme_is_true() {
    need!(have("fusermount3"), "no fusermount3 (package fuse3)");
    need!(is_root() || subject() == Subject::Plyfs, "not root, so the kernel's overlay cannot be mounted");
    let dir = tempfile::Builder::new().prefix("plyfs-test-").tempdir().unwrap();
    let (bin, home) = (dir.path().join("bin"), dir.path().join("home"));
    fs::create_dir(&bin).unwrap();
    fs::create_dir(&home).unwrap();
    match subject() {
        Subject::Plyfs => symlink(PLYFS, bin.join("plyfs")).unwrap(),
        Subject::Kernel => {
            for (name, command) in [("plyfs", "mount -t overlay overlay \"$@\""), ("fusermount3", "umount \"$2\"")] {
                fs::write(bin.join(name), format!("#!/bin/sh\n{command}\n")).unwrap();
                fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
    }
    // One shell runs all of it; each command writes to a file of its own.
    let steps = first_screen();
    assert!(steps.iter().any(|step| step.command.starts_with("plyfs ")));
    let mut script =
        "trap 'cd ../home; umount merged 2>/dev/null || fusermount3 -u merged 2>/dev/null' EXIT\n".to_owned();
    for (number, step) in steps.iter().enumerate() {
        script += &format!("{{ {}\n}} > ../{number}.out 2>&1 || exit 1\n", step.command);
        if step.command.contains("> lower") || step.command.contains("> upper") {
            script += "[ -z \"$(findmnt -n -M merged 2>/dev/null)\" ] || sleep 1\n"; // shown within a second
        }
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output =
        Command::new("bash").args(["-c", &script]).current_dir(&home).env("PATH", path).env("LC_ALL", "C").output();
    let output = output.unwrap();
    for (number, step) in steps.iter().enumerate() {
        let shown = fs::read_to_string(dir.path().join(format!("{number}.out"))).unwrap_or_default();
        assert_eq!(shown, step.shown, "$ {}", step.command);
    }
    assert!(output.status.success(), "{}", support::text(&output));
    let merged = home.join("merged");
    assert!(eventually(Duration::from_secs(5), || fs::read_dir(&merged).unwrap().next().is_none()), "still mounted");
}
