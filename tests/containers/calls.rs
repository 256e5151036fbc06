//! The calls of engines that are not run here, replayed argument for argument.

use crate::arena::{Arena, Who};
use crate::need_programs;

/// `fuse-overlayfs` is plyfs; two lowers, and directories to write to.
const PLACE: &str = r#"
fuse-overlayfs --version | grep -q plyfs
mkdir -p "$TMPDIR/place"; cd "$TMPDIR/place"
mkdir -p A/diff B/diff C/diff C/work C/merged
echo a >A/diff/a; echo b >B/diff/b; echo hidden >B/diff/a
worked() { cat "$1/a" "$1/b"; rm "$1/b"; ! ls "$1/b" 2>/dev/null; [ -c C/diff/b ]; rm C/diff/b; }
"#;

fn call(who: Who, script: &str) -> String {
    Arena::new().run(who, &format!("{PLACE}{script}"))
}

#[test]
fn the_call_of_container_stores_with_links_that_go_away() {
    need_programs!("mount");
    let said = call(
        Who::User,
        r#"mkdir l; ln -s ../A/diff l/AAA; ln -s ../B/diff l/BBB
        unshare -Urm bash -euc 'fuse-overlayfs -o "lowerdir=l/AAA:l/BBB,upperdir=C/diff,workdir=C/work,,volatile,context=\"u:r:t:s0:c1,c2\"" C/merged 2>&1
            rm -r l; cat C/merged/a C/merged/b; rm C/merged/b; umount C/merged'
        ls C/work/work/incompat; no_servers"#,
    );
    assert_eq!(said, "a\nb\nvolatile\n");
}

#[test]
fn the_call_of_buildahs_overlay_volumes() {
    need_programs!("mount");
    let said = call(
        Who::Root,
        r#"mkdir 'x:y'; echo in >'x:y/f'
        plyfs -o 'lowerdir=x\:y,upperdir=C/diff,workdir=C/work,private,context="u:r:t:s0:c1,c2"' C/merged 2>&1
        cat C/merged/f; umount C/merged
        plyfs -o 'lowerdir=x\:y:A/diff,private' C/merged 2>&1
        cat C/merged/f; ! touch C/merged/x 2>/dev/null; umount C/merged; no_servers"#,
    );
    assert_eq!(said, "in\nin\n");
}

#[test]
fn the_call_of_docker() {
    need_programs!("mount");
    let said = call(
        Who::Root,
        r#"fuse-overlayfs -o lowerdir=A/diff:B/diff,upperdir=C/diff,workdir=C/work "$PWD/C/merged" 2>&1
        worked C/merged; fusermount3 -u C/merged
        fuse-overlayfs -o lowerdir=C/diff:A/diff:B/diff "$PWD/C/merged" 2>&1; cat C/merged/a; fusermount3 -u C/merged; no_servers"#,
    );
    assert_eq!(said, "a\nb\na\n");
}

#[test]
fn the_call_of_containerds_snapshotter() {
    need_programs!("mount.fuse3");
    // Its output is read to the end: nothing may hold the pipe once it has returned.
    let said = call(
        Who::Root,
        r#"for type in fuse-overlayfs plyfs; do
            mount.fuse3 overlay "$PWD/C/merged" -o workdir=C/work -o upperdir=C/diff -o lowerdir=A/diff:B/diff -t $type 2>&1 | cat
            worked C/merged
            grep "^$type $PWD/C/merged fuse.$type " /proc/mounts | cut -d' ' -f1,3
            umount C/merged
        done
        mount.fuse3 overlay "$PWD/C/merged" -o lowerdir=A/diff:B/diff -t fuse-overlayfs; cat C/merged/a; umount C/merged; no_servers"#,
    );
    assert_eq!(said, "a\nb\nfuse-overlayfs fuse.fuse-overlayfs\na\nb\nplyfs fuse.plyfs\na\n");
}

#[test]
fn the_call_of_apptainer() {
    need_programs!("mount");
    let said = call(
        Who::Root,
        r#"setpriv --reuid 4242 --regid 4242 --clear-groups --inh-caps +sys_admin,+sys_ptrace,+dac_override \
            --ambient-caps +sys_admin,+sys_ptrace,+dac_override true
        chown -R 4242:4242 .
        setpriv --reuid 4242 --regid 4242 --clear-groups --inh-caps +sys_admin,+sys_ptrace,+dac_override \
            --ambient-caps +sys_admin,+sys_ptrace,+dac_override setsid \
            fuse-overlayfs -f -o allow_other,lowerdir=A/diff:B/diff,upperdir=C/diff,workdir=C/work,noacl "$PWD/C/merged" 2>&1 &
        for _ in $(seq 200); do grep -q C/merged /proc/self/mountinfo && break; sleep 0.05; done
        worked C/merged
        umount C/merged; wait; no_servers
        fuse-overlayfs -f -o allow_other,ro,lowerdir=A/diff:B/diff,noacl "$PWD/C/merged" 2>&1 &
        for _ in $(seq 200); do grep -q C/merged /proc/self/mountinfo && break; sleep 0.05; done
        cat C/merged/a; umount C/merged; wait; no_servers"#,
    );
    assert_eq!(said, "a\nb\na\n");
}

#[test]
fn the_calls_of_singularity_and_enroot_mount_over_their_layers() {
    need_programs!("mount");
    let said = call(
        Who::User,
        r#"unshare -Urm bash -euc '
            fuse-overlayfs -o lowerdir=A/diff:B/diff,upperdir=C/diff,workdir=C/work B/diff
            cat B/diff/a B/diff/b; umount B/diff
            mkdir R R/lower R/upper R/work; echo low >R/lower/f; echo gone >R/lower/g
            FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT=y fuse-overlayfs -f -o lowerdir=R/lower,upperdir=R/upper,workdir=R/work R &
            for _ in $(seq 200); do grep -q place/R /proc/mounts && break; sleep 0.05; done
            cat R/f; rm R/g; ls -A R; umount R; wait; ls -A R/upper'
        no_servers"#,
    );
    assert_eq!(said, "a\nb\nlow\nf\n.wh.g\n");
}

#[test]
fn mount_and_fstab_know_the_type() {
    need_programs!("mount.fuse3");
    let said = call(
        Who::Root,
        r#"mount -t tmpfs none /usr/local/bin; touch /usr/local/bin/plyfs; mount --bind "$DIR/bin/plyfs" /usr/local/bin/plyfs
        mount -t fuse.plyfs overlay "$PWD/C/merged" -o lowerdir=A/diff:B/diff,upperdir=C/diff,workdir=C/work,noatime
        worked C/merged; umount C/merged
        echo "overlay $PWD/C/merged fuse.plyfs noauto,nofail,_netdev,user,x-systemd.automount,lowerdir=$PWD/A/diff:$PWD/B/diff 0 0" >>/etc/fstab
        mount "$PWD/C/merged"; cat C/merged/a; umount C/merged; no_servers"#,
    );
    assert_eq!(said, "a\nb\na\n");
}
