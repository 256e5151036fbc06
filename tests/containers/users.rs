//! User namespaces of containers: what is inside shows the ids that native overlay shows.

use crate::arena::{Arena, Who};
use crate::need_programs;

/// Shows ids of the image and of what is made, and changes both.
const INSIDE: &str = r#"id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map
    stat -c "%u %g %a %n" /bin/busybox /etc /etc/passwd /tmp
    touch /tmp/made; mkdir /tmp/dir; ln -s x /tmp/link; stat -c "%u %g %a %n" /tmp/made /tmp/dir /tmp/link
    echo more >>/etc/passwd && stat -c "%u %g %s" /etc/passwd; rm /bin/yes && echo removed
    chown 1:2 /tmp/made && stat -c "%u %g" /tmp/made"#;

fn same_as_native(options: &[&str]) {
    let arena = Arena::new();
    let mut script = String::from("podman import -q $DIR/bb.tar bb >/dev/null 2>&1\n");
    for option in options {
        script += &format!("echo '{option}'; podman run --name c {option} bb sh -c '{INSIDE}' 2>/dev/null || true\n");
        // The store of native overlay keeps a copy of the image with other owners, and compares with that.
        script += "podman diff c | sort; podman rm c >/dev/null\n";
    }
    let native = arena.run(Who::User, &format!("store native native\n{script}"));
    let ours = arena.run(Who::User, &format!("store plyfs $DIR/bin/plyfs\n{script}\nno_servers"));
    for (native_line, our_line) in native.lines().zip(ours.lines()) {
        assert_eq!(our_line, native_line, "\nours:\n{ours}\nnative:\n{native}");
    }
    assert_eq!(ours.lines().count(), native.lines().count(), "\nours:\n{ours}\nnative:\n{native}");
    assert!(ours.matches("removed").count() + 1 >= options.len(), "{ours}");
}

#[test]
fn the_user_namespaces_of_podman_show_the_ids_of_native_overlay() {
    need_programs!("podman", "crun");
    same_as_native(&["--userns=keep-id", "--userns=nomap", "--userns=auto", "--userns=auto:size=3000"]);
}

#[test]
fn odd_maps_show_the_ids_of_native_overlay() {
    need_programs!("podman", "crun");
    same_as_native(&[
        "--uidmap 0:1:1000 --uidmap 1000:0:1 --uidmap 1001:1001:5000",
        "--uidmap 0:100:500 --gidmap 0:200:300 --gidmap 300:600:5",
        "--uidmap 0:100:500 --gidmap 0:100:500",
        "--uidmap 0:5:2000 --uidmap 5000:3000:7",
    ]);
}

#[test]
fn in_a_namespace_of_one_user_others_files_show_as_his_and_can_be_replaced() {
    need_programs!("mount");
    let arena = Arena::new();
    // root's, which nobody is in there
    crate::support::sh(
        arena.root(),
        "mkdir -p foreign/open; cd foreign; echo 1 >a; echo 2 >b; echo 3 >c; chmod 777 open",
    );
    let script = "mkdir up work m; ln -s $DIR/foreign theirs
        unshare -Urm bash -euc '
            [ $(stat -c %u theirs/a) = 65534 ]
            plyfs -o lowerdir=theirs,upperdir=up,workdir=work m
            # fuse-overlayfs shows 65534, too; the kernel then refuses to remove or rename (EOVERFLOW), which it does not
            # refuse in its own overlay.
            stat -c %u:%g m/a m/open; rm m/a; mv m/b m/b2; echo more >>m/c; chmod 600 m/c; touch m/open/new
            ls m m/open | xargs; stat -c %u:%a m/c; cat m/b2 m/c; umount m'
        no_servers; stat -c %u up/c; stat -c %F up/a";
    let said = arena.run(Who::User, script);
    assert_eq!(said, "0:0\n0:0\nm: b2 c open m/open: new\n0:600\n2\n3\nmore\n4242\ncharacter special file\n");
}
