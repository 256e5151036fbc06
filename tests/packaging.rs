//! What is packed: completions and manual agree with the command line, and the package installs and goes without a trace.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use clap_complete::Shell;
use plyfs::cli::low::LowArgs;

use crate::support::{PLYFS, have, is_root, run, skipped, text};

fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `PLYFS_WRITE_COMPLETIONS=1 cargo test --test packaging` writes them anew.
#[test]
fn the_completions_are_those_of_the_command_line() {
    for (shell, name) in [(Shell::Bash, "plyfs.bash"), (Shell::Zsh, "_plyfs"), (Shell::Fish, "plyfs.fish")] {
        let mut wanted = Vec::new();
        clap_complete::generate(shell, &mut LowArgs::command(), "plyfs", &mut wanted);
        let path = home().join("completions").join(name);
        if std::env::var_os("PLYFS_WRITE_COMPLETIONS").is_some() {
            fs::write(&path, &wanted).unwrap();
        }
        let found = fs::read(&path).unwrap_or_default();
        assert!(found == wanted, "{} is not what the command line gives; see above", path.display());
    }
}

#[test]
fn the_manual_has_every_flag_and_no_other() {
    let manual = fs::read_to_string(home().join("plyfs.1")).unwrap().replace("\\-", "-");
    let section = manual.split(".SH OPTIONS\n").nth(1).unwrap().split(".SS ").next().unwrap();
    // The paragraphs' headings: `.B -f`, `.BR -d ", " --debug`, `.BI -o " option..."`.
    let described: BTreeSet<&str> = section
        .split(".TP\n")
        .skip(1)
        .filter_map(|paragraph| paragraph.lines().next())
        .flat_map(|line| line.split([' ', ',', '"']))
        .filter(|word| word.starts_with('-'))
        .collect();
    let mut known = BTreeSet::new();
    for flag in LowArgs::command().get_arguments().filter(|flag| !flag.is_hide_set()) {
        known.extend(flag.get_short().map(|short| format!("-{short}")));
        known.extend(flag.get_long().map(|long| format!("--{long}")));
    }
    // `-o debug` is named beside `-d`.
    assert_eq!(described.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<_>>(), known);
}

/// The files of the package: source, destination, mode.
fn assets() -> Vec<(PathBuf, PathBuf, u32)> {
    let line = ["metadata", "--format-version=1", "--no-deps", "--offline"];
    let output = Command::new(env!("CARGO")).args(line).current_dir(home()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let assets = metadata["packages"][0]["metadata"]["deb"]["assets"].as_array().unwrap().clone();
    assets
        .iter()
        .map(|asset| {
            let word = |at: usize| asset[at].as_str().unwrap();
            let source = match word(0) {
                "target/release/plyfs" => PathBuf::from(PLYFS),
                other => home().join(other),
            };
            let to = match word(1) {
                dir if dir.ends_with('/') => Path::new(dir).join(source.file_name().unwrap()),
                file => PathBuf::from(file),
            };
            (source, to, u32::from_str_radix(word(2), 8).unwrap())
        })
        .collect()
}

#[test]
fn the_package_installs_mounts_by_type_and_is_removed_without_a_trace() {
    if !is_root() || !have("dpkg-deb") || !Path::new("/dev/fuse").exists() {
        return skipped("not root, no dpkg or no /dev/fuse");
    }
    let dir = tempfile::Builder::new().prefix("plyfs-package-").tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    // What `cargo deb` packs, packed with dpkg-deb: the same files under the same names.
    for (source, to, mode) in assets() {
        let to = dir.path().join("tree").join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&source, &to).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
        fs::set_permissions(&to, fs::Permissions::from_mode(mode)).unwrap();
    }
    let architecture = run("dpkg", &["--print-architecture"]);
    let control = format!(
        "Package: plyfs\nVersion: {}\nArchitecture: {architecture}Maintainer: nobody <nobody@localhost>\nDescription: test\n",
        env!("CARGO_PKG_VERSION")
    );
    crate::support::write(dir.path().join("tree/DEBIAN/control"), control);
    run("dpkg-deb", &["--root-owner-group", "-Znone", "--build", &path("tree"), &path("plyfs.deb")]);
    let root = dir.path().join("root");
    for made in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers"] {
        fs::create_dir_all(root.join(made)).unwrap();
    }
    crate::support::write(root.join("var/lib/dpkg/status"), "");
    let listing = || run("find", &[&path("root"), "-path", "*/var", "-prune", "-o", "-print"]);
    let before = listing();
    let dpkg = |words: &[&str]| {
        run("dpkg", &[&["--root", &path("root"), "--force-not-root", "--force-script-chrootless"], words].concat())
    };
    dpkg(&["-i", &path("plyfs.deb")]);
    for file in ["usr/bin/plyfs", "usr/sbin/mount.plyfs", "usr/share/man/man1/plyfs.1"] {
        assert!(root.join(file).exists(), "{file}");
    }
    // mount(8) looks for its helpers where they are installed; only this mount namespace sees them there.
    let script = format!(
        "for dir in bin sbin; do mkdir -p {0}/work-$dir; done
         mount -t overlay none /usr -o lowerdir={0}/root/usr:/usr
         cd {0}; mkdir low up work m; echo low >low/f
         for type in plyfs fuse.plyfs; do
             mount -t $type overlay {0}/m -o lowerdir={0}/low,upperdir={0}/up,workdir={0}/work
             cat m/f; grep -c ' {0}/m fuse.plyfs ' /proc/mounts; umount m
             for _ in $(seq 100); do mount -f -t $type overlay {0}/m -o lowerdir={0}/low && break; done
             ! grep ' {0}/m ' /proc/mounts
         done",
        dir.path().display()
    );
    let said = run("unshare", &["--mount", "--propagation", "private", "bash", "-euc", &script]);
    assert_eq!(said, "low\n1\nlow\n1\n");
    dpkg(&["--purge", "plyfs"]);
    assert_eq!(listing(), before);
}
