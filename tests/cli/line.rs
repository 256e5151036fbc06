//! The command line: what is refused, what is ignored, and what the mount table shows for it.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use crate::need_mounts;
use crate::support::*;

#[test]
fn version_and_help() {
    for flag in ["-V", "--version"] {
        let output = Command::new(PLYFS).arg(flag).output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("plyfs {}\n", env!("CARGO_PKG_VERSION")));
    }
    let output = Command::new(PLYFS).arg0("/usr/bin/fuse-overlayfs").arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("fuse-overlayfs: version 1."));
    for flag in ["-h", "--help"] {
        let output = Command::new(PLYFS).arg(flag).output().unwrap();
        assert!(output.status.success());
        assert!(output.stdout.split(|byte| *byte == b'\n').count() <= 25, "the help fits a screen");
    }
}

#[test]
fn a_refusal_is_one_line_that_names_the_option_and_status_1() {
    let place = Place::new();
    let (merged, file) = (place.merged(), place.path("lower/file"));
    let (merged, file) = (merged.to_str().unwrap(), file.to_str().unwrap());
    let many = format!("lowerdir={}", vec!["l"; 501].join(":"));
    let not_a_directory = format!("mountpoint={file}: Not a directory");
    let data_only = "lowerdir=a::b:c: a merged layer follows a data-only layer";
    let table: &[(&[&str], &str)] = &[
        (&[], "mountpoint: none given (see plyfs --help)"),
        (&["--colour"], "unexpected argument '--colour' found (see plyfs --help)"),
        (&[merged], "lowerdir: missing; at least one directory is needed"),
        (&["-o", "lowerdir=", merged], "lowerdir=: empty; at least one directory is needed"),
        (&["-o", "lowerdir=:a", merged], "lowerdir=:a: begins with a colon"),
        (&["-o", "lowerdir=a:", merged], "lowerdir=a:: ends with a colon"),
        (&["-o", "lowerdir=a:::b", merged], "lowerdir=a:::b: three colons in a row"),
        (&["-o", "lowerdir=a::b:c", merged], data_only),
        (&["-o", &many, merged], "lowerdir: 501 directories; at most 500 are possible"),
        (&["-o", "lowerdir=l,upperdir=u", merged], "upperdir=u: needs a workdir= as well"),
        (
            &["-o", "lowerdir=l,redirect_dir=maybe", merged],
            "redirect_dir=maybe: must be on or follow or nofollow or off",
        ),
        (
            &["-o", "lowerdir=l,metacopy=on,redirect_dir=nofollow", merged],
            "conflicting options: metacopy=on,redirect_dir=nofollow",
        ),
        (&["-o", "lowerdir=l,uidmapping=0:1", merged], "uidmapping=0:1: must be triples DISK:SHOWN:COUNT"),
        (&["-o", "lowerdir=l,threads=many", merged], "threads=many: must be a number from 1 to 1024"),
        (&["-o", "lowerdir=l", "/nonexistent"], "mountpoint=/nonexistent: No such file or directory"),
        (&["-o", "lowerdir=l", file], &not_a_directory),
        (&["-o", "lowerdir=l", "/dev/fd/77"], "mountpoint=/dev/fd/77: Bad file descriptor"),
        (&["-o", "lowerdir=l", "/non\nexistent"], r"mountpoint=/non\nexistent: No such file or directory"),
    ];
    for (arguments, expected) in table {
        for front in [&[][..], &["-f"]] {
            let output = Command::new(PLYFS).args(front).args(*arguments).output().unwrap();
            assert_eq!(said(&output), format!("plyfs: {expected}\n"));
            assert_eq!(output.status.code(), Some(1), "{expected}");
            assert!(output.stdout.is_empty());
        }
    }
}

#[test]
fn a_descriptor_of_something_else_is_refused() {
    let script = format!("exec '{PLYFS}' -o lowerdir=/ /dev/fd/7 7</dev/null");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(said(&output), "plyfs: mountpoint=/dev/fd/7: not a descriptor of /dev/fuse\n");
}

#[test]
fn a_missing_layer_is_refused_before_mounting() {
    need_mounts!();
    let place = Place::new();
    let missing = place.path("missing").display().to_string();
    for option in ["lowerdir", "upperdir", "workdir"] {
        let options: Vec<String> = place
            .options()
            .split(',')
            .map(|layer| if layer.starts_with(option) { format!("{option}={missing}") } else { layer.to_owned() })
            .collect();
        let output = Command::new(PLYFS).args(["-o", &options.join(",")]).arg(place.merged()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{option}");
        assert!(said(&output).starts_with(&format!("plyfs: {option}={missing}: ")), "{}", said(&output));
        assert_eq!(said(&output).lines().count(), 1);
        assert!(place.is_gone());
    }
}

#[test]
fn unknown_options_are_named_and_ignored() {
    need_mounts!();
    let place = Place::new();
    let output = place.command("private,frobnicate,,colour=red,context=\"u:r:t:s0:c1,c2\"").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(said(&output), "unknown argument ignored: frobnicate\nunknown argument ignored: colour=red\n");
    assert!(place.line().is_some());
}

#[test]
fn the_mount_table_shows_what_was_asked_for() {
    need_mounts!();
    let place = Place::new();
    place.mount("");
    let line = place.line().unwrap();
    assert!(line.starts_with("plyfs ") && line.contains(" fuse.plyfs rw,nodev,noatime,"), "{line}");
    assert!(line.contains("default_permissions,allow_other"), "{line}");
    let place = Place::new();
    place.mount(r"ro,nosuid,noexec,dev,sync,dirsync,atime,fsname=a\,b,subtype=c,max_read=65536");
    let line = place.line().unwrap();
    assert!(line.starts_with("a,b ") && line.contains(" fuse.c ro,sync,dirsync,nosuid,noexec,"), "{line}");
    assert!(line.contains("max_read=65536") && !line.contains("nodev") && !line.contains("noatime"), "{line}");
}

#[test]
fn source_and_target_may_stand_before_the_options_and_layers_be_relative() {
    need_mounts!();
    let place = Place::new();
    let output = Command::new(PLYFS)
        .current_dir(place.0.path())
        .args(["overlay", place.merged().to_str().unwrap()])
        .args(["-o", "workdir=work,upperdir=upper", "-o", "lowerdir=lower,dev,suid"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(place.line().is_some());
}

#[test]
fn without_an_upper_the_mount_is_read_only() {
    need_mounts!();
    let place = Place::new();
    let options = format!("lowerdir={}", place.path("lower").display());
    let output = Command::new(PLYFS).args(["-o", &options]).arg(place.merged()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(place.line().unwrap().contains(" ro,"));
    let error = fs::write(place.merged().join("new"), "").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
}

#[test]
fn five_hundred_lowers_are_mounted() {
    need_mounts!();
    let place = Place::new();
    let lowers: Vec<PathBuf> = (0..500).map(|number| place.path(&format!("lower/{number}"))).collect();
    for lower in &lowers {
        fs::create_dir(lower).unwrap();
    }
    let lowers: Vec<String> = lowers.iter().map(|lower| lower.display().to_string()).collect();
    let options = format!("lowerdir={}", lowers.join(":"));
    let output = Command::new(PLYFS).args(["-o", &options]).arg(place.merged()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(place.line().is_some());
}
