//! Unions of a user without rights: a shell script as user 65534 with plyfs on its path.
//!
//! `union` mounts `lower` (or `$LOWERS`), `upper` and `work` on `merged`, and `leave` unmounts it. There are two ways in:
//! with fusermount3, and with plain mount(2) in a user namespace of the user's own. The kernel's overlay as the subject
//! always needs the second.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use super::{PLYFS, Subject, have, is_root, run, sh, subject, text};

/// The user and group of nobody on every Linux.
pub const NOBODY: u32 = 65534;

/// How the user gets to mount.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The setuid helper of fuse3.
    Fusermount,
    /// A user and a mount namespace of the user's own.
    Namespace,
}

/// What is missing for it, if anything.
pub fn missing(way: Way) -> Option<&'static str> {
    if !is_root() {
        return Some("not root, so there is no other user to become");
    }
    if !have("setpriv") || !have("unshare") {
        return Some("no setpriv or unshare (util-linux)");
    }
    if way == Way::Fusermount && !have("fusermount3") {
        return Some("no fusermount3 (package fuse3)");
    }
    let namespaces = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Urm", "true"])
        .output()
        .unwrap();
    if (way == Way::Namespace || subject() == Subject::Kernel) && !namespaces.status.success() {
        return Some("this machine gives no user namespaces to plain users");
    }
    None
}

/// A new mount namespace has a copy of every mount, and a copy keeps its server alive when the mount itself is gone: those of
/// tests that run at the same time are let go.
pub const FORGET_MOUNTS: &str =
    "while read -r _ on kind _; do case $kind in fuse*) umount -l $on || true;; esac; done < /proc/self/mounts";

const UNION: &str = r#"
union() {
    if [ "$SUBJECT" = kernel ]; then
        mount -t overlay overlay -o "userxattr,lowerdir=${LOWERS:-lower},upperdir=upper,workdir=work" merged
    else
        plyfs -o "lowerdir=${LOWERS:-lower},upperdir=upper,workdir=work" merged
    fi
}
leave() {
    if [ "$SUBJECT" = kernel ] || [ "$WAY" = namespace ]; then umount merged; else fusermount3 -u merged; fi
}
give_up() { cd "$HOME"; leave 2>/dev/null || true; }
trap give_up EXIT
mkdir lower upper work merged
"#;

/// Runs a script as nobody in a directory of its own, and returns what it printed. `prepare` runs as root before it, in
/// that directory. The script runs with `bash -eu`.
pub fn script(way: Way, prepare: &str, script: &str) -> String {
    let namespaced = way == Way::Namespace || subject() == Subject::Kernel;
    let enter = if namespaced { "unshare -Urm" } else { "" };
    run_script(way, prepare, &format!("exec {AS_NOBODY} {enter} bash -euc \"$SCRIPT\""), &format!("{UNION}{script}\n"))
}

/// The same as root, in a mount namespace where plain users may let others in (`user_allow_other`). `$AS_NOBODY` begins a
/// command that is to run as nobody.
pub fn script_among_others(script: &str) -> String {
    let allow = "echo user_allow_other > ../fuse.conf && mount --bind ../fuse.conf /etc/fuse.conf";
    let outer = format!("{allow} && AS_NOBODY='{AS_NOBODY}' exec bash -euc \"$SCRIPT\"");
    run_script(Way::Fusermount, "", &outer, script)
}

const AS_NOBODY: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups";

fn run_script(way: Way, prepare: &str, last: &str, script: &str) -> String {
    let dir = tempfile::Builder::new().prefix("plyfs-test-").tempdir().unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::copy(PLYFS, dir.path().join("plyfs")).unwrap();
    sh(&home, prepare);
    let namespaced = way == Way::Namespace || subject() == Subject::Kernel;
    let mut command = Command::new("unshare");
    command.arg("-m").args(["bash", "-euc"]);
    // A device node for everybody, as distributions have it; only this mount namespace sees it.
    let outer = format!(
        "{FORGET_MOUNTS}
         mknod ../fuse c 10 229 && chmod 666 ../fuse && mount --bind ../fuse /dev/fuse
         {last}"
    );
    command.arg(outer).current_dir(&home).env("SCRIPT", script);
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    command.env("PATH", path).env("HOME", &home).env("WAY", if namespaced { "namespace" } else { "fusermount" });
    command.env("SUBJECT", if subject() == Subject::Kernel { "kernel" } else { "plyfs" });
    let output = command.output().unwrap();
    assert!(output.status.success(), "{script}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a script as nobody in somebody else's directory; it must succeed.
pub fn sh_as_nobody(dir: &Path, script: &str) -> String {
    let script = format!("cd '{}' && {script}", dir.display());
    run("setpriv", &["--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-euc", &script])
}
