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
