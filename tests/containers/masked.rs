//! Stores whose file system cannot hold owners and modes: everything on disk is the user's own, of one mode.

use crate::arena::{Arena, Who};
use crate::need_programs;

/// Looks at what the image has, changes it, and looks at a commit of that. Stores lose suid, sgid and sticky when they
/// unpack a layer under a mask, say that the root is the owner's alone, and cannot unpack a fifo: these are not looked at.
const SCRIPT: &str = r#"
podman import -q $DIR/bb.tar bb >/dev/null 2>&1
podman run --name c bb sh -c 'stat -c "%u %g %a %F %n" /bin/busybox /etc /etc/passwd /root
    chown 5:6 /etc/passwd; chmod 4755 /etc/passwd; chmod 0 /root; mkdir /new; chmod 2770 /new; chown 7:8 /new; echo x >/new/x
    chmod 400 /new/x; ln -s x /new/link; rm /bin/yes; ln /new/x /new/y; mv /usr /elsewhere; mv /elsewhere /usr
    stat -c "%u %g %a %F %h %n" /etc/passwd /root /new /new/x' 2>&1
podman diff c 2>/dev/null | sort
podman commit -q c committed >/dev/null 2>&1
podman run --rm committed sh -c 'stat -c "%u %g %n" /etc/passwd /new; stat -c "%u %g %a %F %n" /root /new/x; readlink /new/link
    cat /new/y; ls /bin/yes || true' 2>&1
"#;

#[test]
fn a_store_with_a_forced_mask_shows_what_another_shows() {
    need_programs!("podman", "crun");
    let arena = Arena::new();
    let plain = arena.run(Who::User, &format!("store plain $DIR/bin/plyfs\n{SCRIPT}\nno_servers"));
    let masked = arena.run(
        Who::User,
        &format!(
            "store masked $DIR/bin/plyfs; echo 'force_mask = \"private\"' >> $HOME/.config/containers/storage.conf
             {SCRIPT}
             [ \"$(podman unshare stat -c '%u %a' $HOME/.local/share/containers/storage/overlay/*/diff/new | sort -u)\" = '0 700' ]
             no_servers"
        ),
    );
    assert_eq!(masked, plain);
    assert!(plain.contains("5 6 4755 regular file 1 /etc/passwd"), "{plain}");
}

#[test]
fn a_masked_layer_is_read_without_the_option_as_fuse_overlayfs_reads_it() {
    need_programs!("podman", "setfattr", "fuse-overlayfs");
    let arena = Arena::new();
    // The roots say that the layers are masked: of one lower, of the upper, of both, of none.
    let script = r#"
        mkdir low; echo 1 >low/f; mkdir low/d; echo 2 >low/d/g
        say() { setfattr -n user.containers.override_stat -v "$1" "$2"; }
        say 5:6:04755:file low/f; say 7:8:0710:dir low/d; say 9:9:0640:file low/d/g; chmod 644 low/*/g low/f
        for masked in low up 'low up' none; do
            rm -rf up work m; mkdir up work m; setfattr -x user.containers.override_stat low 2>/dev/null || true
            for root in $masked; do [ $root = none ] || say 0:0:0755:dir $root; done
            for program in $PROGRAMS; do
                $program -o lowerdir=low,upperdir=up,workdir=work m
                (cd m; stat -c '%u %g %a %F %n' f d d/g)
                umount m
            done
        done"#;
    let shown = |program: &str| {
        let enter = format!("cd $TMPDIR; export PROGRAMS={program}; podman unshare bash -euc \"$SCRIPT\"");
        arena.file("masked.sh", script);
        arena.run(Who::User, &format!("rm -rf $TMPDIR/*; export SCRIPT=\"$(cat $DIR/masked.sh)\"; {enter}"))
    };
    let theirs = shown("/usr/bin/fuse-overlayfs");
    assert!(theirs.contains("5 6 4755 regular file f\n7 8 710 directory d\n9 9 640 regular file d/g"), "{theirs}");
    assert_eq!(shown("plyfs"), theirs);
}
