//! Containers: run, look into, copy from and to, export, volumes, read-only roots, users without subordinate ids.

use crate::arena::{Arena, Who};
use crate::need_programs;

const STORE: &str = "store plyfs $DIR/bin/plyfs; podman import -q $DIR/bb.tar bb >/dev/null 2>&1\n";

fn podman(who: Who, script: &str) -> String {
    Arena::new().run(who, &format!("{STORE}{script}\nno_servers"))
}

#[test]
fn podman_info_shows_which_program_it_is() {
    need_programs!("podman", "crun");
    let said = podman(Who::User, "podman info --format '{{index .Store.GraphOptions \"overlay.mount_program\"}}'");
    assert!(said.contains(concat!("plyfs ", env!("CARGO_PKG_VERSION"))), "{said}");
}

#[test]
fn a_running_container_is_worked_with_from_outside() {
    need_programs!("podman", "crun");
    let said = podman(
        Who::User,
        "mkdir vol; echo v >vol/f
         podman run -d --name worked bb sleep 1000 >/dev/null
         podman exec worked sh -c 'echo in >/e; rm /bin/ls; id -u'
         podman exec -u 1000 worked sh -c 'echo no 2>/dev/null >/e2 || echo refused; id -u' 2>/dev/null
         podman cp worked:/e e; cat e
         podman cp vol worked:/etc/vol
         podman exec worked find /etc/vol
         podman export worked | tar -t | grep -e vol -e '^bin/ls$' -e '^e$'
         podman diff worked | sort
         podman rm -f -t0 worked >/dev/null",
    );
    let expected = "0\nrefused\n1000\nin\n/etc/vol\n/etc/vol/f\ne\netc/vol/\netc/vol/f\n\
        A /e\nA /etc/vol\nA /etc/vol/f\nC /bin\nC /etc\nD /bin/ls\n";
    assert_eq!(said, expected);
}

#[test]
fn a_read_only_container_is_read_only() {
    need_programs!("podman", "crun");
    let script = "podman run --rm --read-only $option bb sh -c 'cat /etc/passwd; touch /x' 2>&1 || echo no";
    let said =
        podman(Who::User, &format!("for option in --read-only-tmpfs=true --read-only-tmpfs=false; do {script}; done"));
    assert_eq!(said, "root:x:0:0::/root:/bin/sh\ntouch: /x: Read-only file system\nno\n".repeat(2));
}

#[test]
fn an_overlay_volume_keeps_changes_from_its_source() {
    need_programs!("podman", "crun");
    let said = podman(
        Who::User,
        "mkdir 'a volume'; echo v >'a volume/f'
         podman run --rm -v \"$PWD/a volume:/v:O\" bb sh -c 'cat /v/f; echo w >/v/f; cat /v/f; echo n >/v/n; rm /v/f; ls /v'
         ls 'a volume'; cat 'a volume/f'",
    );
    assert_eq!(said, "v\nw\nn\nf\nv\n");
}

#[test]
fn a_user_without_subordinate_ids_runs_containers() {
    need_programs!("podman", "crun");
    let said = podman(
        Who::UserWithoutSubids,
        "podman run --name alone bb sh -c 'id -u; echo x >/x; rm /bin/yes; chmod 700 /root; cat /x' 2>/dev/null
         podman diff alone 2>/dev/null | sort
         podman commit -q alone committed >/dev/null 2>&1
         podman run --rm committed sh -c 'cat /x; ls /bin/yes || true' 2>&1",
    );
    let expected = "0\nx\nA /x\nC /bin\nC /etc\nC /root\nD /bin/yes\nx\nls: /bin/yes: No such file or directory\n";
    assert_eq!(said, expected);
}

#[test]
fn a_container_of_root_runs() {
    need_programs!("podman", "crun");
    let said = podman(
        Who::Root,
        "podman run --name rooted bb sh -c 'id -u; echo x >/x; rm /bin/yes; chown 5:6 /etc/passwd; mknod /dev2 c 1 3; cat /x'
         podman diff rooted | sort
         podman commit -q rooted committed >/dev/null
         podman run --rm committed sh -c 'cat /x; stat -c \"%u %g\" /etc/passwd; stat -c \"%F %t,%T\" /dev2'",
    );
    let expected =
        "0\nx\nA /dev2\nA /x\nC /bin\nC /etc\nC /etc/passwd\nD /bin/yes\nx\n5 6\ncharacter special file 1,3\n";
    assert_eq!(said, expected);
}

/// The lines of the README, as they stand there.
#[test]
fn podman_takes_plyfs_by_three_lines_and_fuse_overlayfs_again_after_it() {
    need_programs!("podman", "crun", "fuse-overlayfs");
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let start = readme.find("    [storage]\n").unwrap();
    let lines: Vec<&str> = readme[start..].lines().take_while(|line| line.starts_with("    ")).map(str::trim).collect();
    assert_eq!(lines.len(), 3);
    let arena = Arena::new();
    arena.file("three", lines.join("\n").replace("/usr/bin/plyfs", "PROGRAM"));
    let said = arena.run(
        Who::User,
        "store one \"$(PATH=/usr/bin:/bin command -v fuse-overlayfs)\"
         podman import -q $DIR/bb.tar bb >/dev/null 2>&1
         podman run --name kept bb sh -c 'echo kept >/kept; rm -f /bin/yes'
         conf=$HOME/.config/containers/storage.conf; cp $conf before
         sed \"s#PROGRAM#$DIR/bin/plyfs#\" $DIR/three >$conf
         podman start -a kept; podman commit -q kept committed >/dev/null
         podman run --rm committed sh -c 'cat /kept; ls /bin/yes || echo gone' 2>/dev/null
         podman info | grep -c 'Version: plyfs'
         cp before $conf
         podman run --rm committed sh -c 'cat /kept; ls /bin/yes || echo gone' 2>/dev/null
         podman diff kept | grep -v -e '^C'; no_servers",
    );
    let said: Vec<&str> = said.lines().collect();
    assert_eq!(said[..5], ["kept", "gone", "1", "kept", "gone"]);
    assert!(said.contains(&"A /kept") && said.contains(&"D /bin/yes"), "{said:?}");
}
