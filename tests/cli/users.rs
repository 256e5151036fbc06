//! Those who may not mount by themselves, and machines on which nobody can: fusermount3, user namespaces, no device.

use std::process::Command;

use crate::need;
use crate::support::*;

/// What is missing for tests as another user, if anything.
fn users_missing() -> Option<&'static str> {
    if !can_mount() {
        return Some("not root or no /dev/fuse");
    }
    if !have("unshare") || !have("setpriv") {
        return Some("no unshare or setpriv (util-linux)");
    }
    (!have("fusermount3")).then_some("no fusermount3 (package fuse3)")
}

#[test]
fn without_the_device_nothing_is_changed() {
    if let Some(why) = users_missing() {
        return skipped(why);
    }
    let place = Place::new();
    let before = place.listing();
    let script = format!("mount -t tmpfs none /dev; {}", place.words());
    let output = Command::new("unshare").args(["-m", "sh", "-euc", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let expected = "plyfs: /dev/fuse: No such file or directory; load the kernel module";
    assert!(said(&output).starts_with(expected), "{}", said(&output));
    assert_eq!(place.listing(), before);
}

const NOBODY_MOUNTS: &str = "$AS_NOBODY $PWD/plyfs -o lowerdir=lower,upperdir=upper,workdir=work $PWD/merged";

#[test]
fn without_fusermount3_nothing_is_changed() {
    if let Some(why) = users_missing() {
        return skipped(why);
    }
    let place = Place::new();
    place.give_away();
    let before = place.listing();
    let output = place.in_namespace(&format!(
        "for program in /usr/bin /bin /usr/local/bin; do
            for name in fusermount3 fusermount; do
                if [ -f $program/$name ]; then mount --bind /dev/null $program/$name; fi
            done
        done
        {NOBODY_MOUNTS}"
    ));
    let expected = "plyfs: fusermount3: not found, and mounting is not permitted without it; install `fuse3`\n";
    assert_eq!(said(&output), expected);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(place.listing(), before);
}

#[test]
fn what_fusermount3_would_refuse_changes_nothing() {
    if let Some(why) = users_missing() {
        return skipped(why);
    }
    let place = Place::new();
    place.give_away();
    sh(&format!("chown 0:0 '{}'", place.merged().display()));
    let before = place.listing();
    let output = place.in_namespace(NOBODY_MOUNTS);
    let expected = "merged: mounting without privilege needs a directory you may write to\n";
    assert!(said(&output).ends_with(expected), "{}", said(&output));
    let output = place.in_namespace("chmod 600 fuse; $AS_NOBODY $PWD/plyfs -o lowerdir=lower upper");
    let expected = "plyfs: /dev/fuse: Permission denied; reading and writing it must be permitted\n";
    assert_eq!(said(&output), expected);
    assert_eq!(place.listing(), before);
}

#[test]
fn a_plain_user_mounts_with_fusermount3() {
    if let Some(why) = users_missing() {
        return skipped(why);
    }
    let place = Place::new();
    place.give_away();
    let output = place.in_namespace(&format!(
        "{NOBODY_MOUNTS}
        grep $PWD/merged /proc/mounts | cut -d' ' -f1,3,4
        $AS_NOBODY ls -a merged >/dev/null
        $AS_NOBODY fusermount3 -u merged
        for i in $(seq 100); do pgrep -f \"^$PWD/plyfs\" >/dev/null || break; sleep 0.05; done
        ! pgrep -f \"^$PWD/plyfs\""
    ));
    assert!(output.status.success(), "{}", said(&output));
    let line = String::from_utf8(output.stdout).unwrap();
    let expected = "plyfs fuse.plyfs rw,nosuid,nodev,noatime,user_id=65534,group_id=65534,default_permissions";
    assert!(line.starts_with(expected), "{line}");
}

#[test]
fn a_plain_users_mount_ends_with_a_signal_too() {
    if let Some(why) = users_missing() {
        return skipped(why);
    }
    let place = Place::new();
    place.give_away();
    for busy in ["", "(cd merged; exec sleep 3) & sleep 0.1;"] {
        let output = place.in_namespace(&format!(
            "{NOBODY_MOUNTS} -f &
            for i in $(seq 100); do grep -q $PWD/merged /proc/mounts && break; sleep 0.05; done
            ls merged >/dev/null 2>&1 || true
            {busy} kill -TERM $(pgrep -f \"^$PWD/plyfs\")
            for i in $(seq 100); do grep -q $PWD/merged /proc/mounts || break; sleep 0.05; done
            ! grep $PWD/merged /proc/mounts
            wait"
        ));
        assert!(output.status.success(), "{busy}{}", said(&output));
    }
}

#[test]
fn in_a_user_namespace_nothing_else_is_needed() {
    if let Some(why) = users_missing() {
        return skipped(why);
    }
    let place = Place::new();
    place.give_away();
    let output = place.in_namespace(
        "$AS_NOBODY unshare -Urm true || exit 77
        $AS_NOBODY unshare -Urm sh -euc '
            PATH=/usr/sbin:/sbin:/bin ./plyfs -o lowerdir=lower,upperdir=upper,workdir=work merged
            grep $PWD/merged /proc/mounts | cut -d\" \" -f1,3,4
            ls -a merged >/dev/null
            umount merged'",
    );
    need!(output.status.code() != Some(77), "this machine gives no user namespaces to plain users");
    assert!(output.status.success(), "{}", said(&output));
    let line = String::from_utf8(output.stdout).unwrap();
    assert!(line.starts_with("plyfs fuse.plyfs rw,nodev,noatime,user_id=0,group_id=0,default_permissions"), "{line}");
}
