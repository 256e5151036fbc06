//! Layers on file systems of all sorts: without xattrs, on an overlay, on another union, with deletions as names. The same
//! work as on a plain copy of the lower must give the same tree, and give it again after a new mount.

use std::process::Command;

use crate::support::{PLYFS, have, text};
use crate::{need, plyfs_only};

const WORK: &str = r#"
seed() { ( cd "$1"; mkdir -p a b/c c d e h/sub i k l p/q
    for name in a/f1 a/f2 b/c/d c/y d/x d/z e/gone h/sub/s h/keep i/keep k/only l/one m n p/q/r; do echo $name > $name; done ); }
work() { ( cd "$1"; echo new > newfile; echo changed > a/f1; rm a/f2; rm -r b; mkdir b; echo in > b/new; rm -r c; echo file > c
    mv d/x d/y; chmod 600 d/z; ln d/z d/zl; ln -s target sym; rm e/gone; echo again > e/gone; mkdir f; mv f g; rm -r h/sub
    mkdir h/sub; mkdir -p i/j; rm i/keep; rmdir i/j; rm k/only; rmdir k; mv l/one l/two; rm l/two; truncate -s 0 m
    printf x >> n; rm -r p; mkdir p; mkdir p/q; rm -r a; mkdir a; touch a/f2 ); }
show() { ( cd "$1"; find . -mindepth 1 \( -type f -printf '%P f %m ' -exec cat {} \; -printf '\n' \) -o -printf '%P %y %l\n' | sort ); }
union() { "$PLYFS" -o "lowerdir=$1,upperdir=$2/u,workdir=$2/w" merged; }
# Works in a union of a lower and an upper, and compares.
compare() {
    mkdir -p "$2/u" "$2/w"; seed plain; work plain; show plain > expected
    union "$1" "$2"; work merged; show merged > got; diff expected got
    umount merged; union "$1" "$2"; show merged > got; diff expected got
    umount merged
}
mount --make-rprivate /; mkdir low plain merged tmp far; seed low; mount -t tmpfs tmpfs tmp; mkdir tmp/u tmp/w
"#;

/// Runs a script in a directory and a mount namespace of its own.
fn script(script: &str) {
    let dir = tempfile::Builder::new().prefix("plyfs-test-").tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["-m", "bash", "-euc", &format!("{WORK}{script}\n")])
        .current_dir(dir.path())
        .env("PLYFS", PLYFS)
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}: {}", text(&output));
}

macro_rules! on {
    ($name:ident, $script:expr) => {
        #[test]
        fn $name() {
            plyfs_only!();
            need!(common_root() && have("unshare"), "not real root, or no unshare (util-linux)");
            script($script);
        }
    };
}

fn common_root() -> bool {
    rustix::process::geteuid().is_root()
        && std::fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
}

on!(
    an_upper_without_xattrs,
    "mount -t ramfs ramfs far; compare low far; [ -f far/u/.wh.k ] && [ -f far/u/b/.wh..wh..opq ]"
);

on!(
    an_upper_with_deletions_as_names,
    "export FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT=y; compare low tmp
    [ -f tmp/u/.wh.k ] && [ -f tmp/u/b/.wh..wh..opq ] && [ -z \"$(find tmp/u -type c)\" ]"
);

on!(
    an_upper_on_the_kernels_overlay,
    "mkdir empty; mount -t overlay overlay -o lowerdir=empty,upperdir=tmp/u,workdir=tmp/w far; compare low far"
);

on!(
    a_lower_on_the_kernels_overlay,
    "mkdir tmp/ou tmp/ow; mount -t overlay overlay -o lowerdir=low,upperdir=tmp/ou,workdir=tmp/ow far; compare far tmp"
);

on!(
    an_upper_on_another_union,
    "mkdir empty; \"$PLYFS\" -o lowerdir=empty,upperdir=tmp/u,workdir=tmp/w far; compare low far; umount -l far"
);

on!(
    a_lower_on_another_union,
    "mkdir tmp/ou tmp/ow; \"$PLYFS\" -o lowerdir=low,upperdir=tmp/ou,workdir=tmp/ow far; compare far tmp; umount -l far"
);

on!(a_read_only_lower_and_an_upper_far_away, "mount --bind low far; mount -o remount,ro,bind far; compare far tmp");

#[test]
fn an_upper_that_can_hold_no_whiteout_is_refused() {
    plyfs_only!();
    need!(common_root() && have("unshare"), "not real root, or no unshare (util-linux)");
    need!(have("fuse-overlayfs"), "no fuse-overlayfs, which keeps names and marks of others to itself");
    script(
        "mkdir empty; fuse-overlayfs -o lowerdir=empty,upperdir=tmp/u,workdir=tmp/w far 2>/dev/null; mkdir far/u far/w
        ! union low far 2>message; grep -q 'upperdir=far/u: its file system keeps neither' message
        [ \"$(wc -l < message)\" = 1 ]; umount -l far",
    );
}

#[test]
fn an_upper_without_xattrs_can_keep_no_owners_in_them() {
    plyfs_only!();
    need!(common_root() && have("unshare"), "not real root, or no unshare (util-linux)");
    script(
        "mount -t ramfs ramfs far; mkdir far/u far/w
        for mode in 1 2; do
            if \"$PLYFS\" -o lowerdir=low,upperdir=far/u,workdir=far/w,xattr_permissions=$mode merged 2>message; then exit 1; fi
            [ \"$(wc -l < message)\" = 1 ]; grep -q 'upperdir=far/u: xattr_permissions: .*override_stat cannot be set: ' message
        done; [ -z \"$(ls far/u)$(ls -A far/w)\" ]",
    );
}

#[test]
fn a_layer_whose_names_are_found_whatever_their_case_is_refused() {
    const MAKE: &str = "truncate -s 64M image; mkfs.ext4 -q -F -O casefold image; mkdir -p far; mount -o loop image far
        mkdir far/folded far/plain; chattr +F far/folded\n";
    plyfs_only!();
    need!(common_root() && have("unshare"), "not real root, or no unshare (util-linux)");
    let dir = tempfile::Builder::new().prefix("plyfs-test-").tempdir().unwrap();
    let made = Command::new("unshare").args(["-m", "sh", "-ec", MAKE]).current_dir(dir.path()).output().unwrap();
    need!(made.status.success(), &format!("no such layer can be made here: {}", text(&made).replace('\n', " ")));
    script(&format!(
        "{MAKE}! union far/folded tmp 2>message; grep -q 'lowerdir=far/folded: finds its names whatever' message
        [ \"$(wc -l < message)\" = 1 ]; union far/plain tmp; umount merged; umount far"
    ));
}
