//! Servers that nobody needs any more leave, however their users went; as long as there are users they stay.

use crate::arena::{Arena, Who};
use crate::need_programs;

/// `union N`: mounts number N.
const UNIONS: &str = r#"
mkdir -p "$TMPDIR/place"; cd "$TMPDIR/place"; mkdir -p low; echo low >low/f
cat >union <<'END'
mkdir -p up$1 work$1 m$1
plyfs -o lowerdir=low,upperdir=up$1,workdir=work$1 m$1
END
"#;

fn run(who: Who, script: &str) -> String {
    Arena::new().run(who, &format!("{UNIONS}{script}"))
}

#[test]
fn a_server_leaves_with_the_namespace_of_its_mount() {
    need_programs!("mount");
    for (who, apart) in [(Who::User, "unshare -Urm"), (Who::Root, "unshare -m --propagation private")] {
        let script = format!(
            "{apart} bash -euc '. ./union 1; . ./union 2; cat m1/f m2/f; ps -eo comm= | grep -c plyfs'; no_servers
             # Killed, with all that is in it but the servers.
             {apart} bash -euc '. ./union 3; cat m3/f; touch ready; sleep 1000 & sleep 1000' &
             until [ -e ready ]; do sleep 0.05; done
             [ $(servers) = 1 ]
             pkill -KILL -x sleep; no_servers"
        );
        assert_eq!(run(who, &script), "low\nlow\n2\nlow\n", "{who:?}");
    }
}

#[test]
fn a_server_stays_for_a_copy_of_its_mount() {
    need_programs!("mount");
    let script = "unshare -Urm bash -euc '. ./union 1
            unshare -m bash -euc \"touch ready; until [ -e go ]; do sleep 0.05; done; cat m1/f; echo x >m1/x; touch done; sleep 1000\" &
            until [ -e ready ]; do sleep 0.05; done'
        sleep 0.3; [ $(servers) = 1 ]; touch go; until [ -e done ]; do sleep 0.05; done
        ls up1; pkill -KILL -x sleep; no_servers";
    assert_eq!(run(Who::User, script), "low\nx\n");
}

#[test]
fn a_server_in_another_namespace_unmounts_at_a_signal() {
    need_programs!("mount");
    for (who, apart) in [(Who::User, "unshare -Urm"), (Who::Root, "unshare -m --propagation private")] {
        let script = format!(
            "{apart} bash -euc '. ./union 1; . ./union 2; cat m1/f
                 pkill -TERM -f \"^plyfs .*work1\"
                 for _ in $(seq 100); do grep -q place/m1 /proc/mounts || break; sleep 0.05; done
                 ! grep place/m1 /proc/mounts
                 # Busy: pulled off, and what was written arrives.
                 cd m2; echo x >x; pkill -TERM -f \"^plyfs .*work2\"; cd ..
                 for _ in $(seq 100); do grep -q place/m2 /proc/mounts || break; sleep 0.05; done
                 ! grep place/m2 /proc/mounts; cat up2/x'
             no_servers"
        );
        assert_eq!(run(who, &script), "low\nx\n", "{who:?}");
    }
}

#[test]
fn a_server_keeps_no_other_mount_of_its_namespace() {
    need_programs!("mount");
    let script = "unshare -Urm bash -euc '. ./union 1; . ./union 2; mkdir t; mount -t tmpfs none t; touch t/f
            umount m1; for _ in $(seq 100); do [ $(ps -eo stat=,comm= | grep -v ^Z | grep -c plyfs) = 1 ] && break; sleep 0.05; done
            ps -eo stat=,comm= | grep -v ^Z | grep -c plyfs; umount t; umount m2'
        no_servers";
    assert_eq!(run(Who::User, script), "1\n");
}

#[test]
fn a_store_that_is_killed_leaves_no_server() {
    need_programs!("podman", "crun");
    let script = "store plyfs $DIR/bin/plyfs; podman import -q $DIR/bb.tar bb >/dev/null 2>&1
        podman run -d --name one bb sleep 1000 >/dev/null
        podman run -d --name two bb sleep 1000 >/dev/null
        podman exec one sh -c 'echo served'
        servers
        # The containers, their monitors, and the process that holds the namespace.
        pkill -KILL -x 'sleep|conmon|catatonit|podman pause' || true
        pkill -KILL -f '^[^ ]*(podman|catatonit|conmon)' || true
        no_servers";
    assert_eq!(run(Who::User, script), "served\n2\n");
}

#[test]
fn auto_unmount_takes_the_mount_of_a_killed_server_away() {
    need_programs!("mount");
    // With fusermount3, in a namespace of the user's own, and as root: killed, unmounted, ended by a signal.
    for (who, apart, unmount) in [
        (Who::User, "", "fusermount3 -u"),
        (Who::User, "unshare -Urm", "umount"),
        (Who::Root, "unshare -m --propagation private", "umount"),
    ] {
        let script = format!(
            "{apart} bash -euc '
                 gone() {{ for _ in $(seq 100); do grep -q place/m1 /proc/mounts || return 0; sleep 0.05; done; return 1; }}
                 idle() {{ for _ in $(seq 100); do [ $(ps -eo stat=,comm= | grep -v ^Z | grep -c plyfs) = 0 ] && return 0; sleep 0.05; done; return 1; }}
                 mkdir up work m1
                 for end in \"pkill -KILL -P 1 -x plyfs\" \"{unmount} m1\" \"pkill -TERM -P 1 -x plyfs\"; do
                     plyfs -o lowerdir=low,upperdir=up,workdir=work,auto_unmount m1 | cat; cat m1/f; $end; gone; idle; done'"
        );
        assert_eq!(run(who, &script), "low\nlow\nlow\n", "{who:?} {apart}");
    }
}

#[test]
fn the_log_goes_to_a_file_or_to_the_systems_log() {
    need_programs!("mount", "python3");
    let script = r#"export RUST_LOG=info
        plyfs -o lowerdir=low,log=here low; pkill -TERM -x plyfs; no_servers; grep -c 'signal 15' here
        ! plyfs -o lowerdir=low,log=none/there low 2>said; cat said
        mkdir dev; mount -t tmpfs none dev; cp -a /dev/null dev; mknod -m 666 dev/fuse c 10 229; mount --bind dev /dev
        ! plyfs -o lowerdir=low,log=syslog low 2>said; cat said
        python3 -c 'import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind("/dev/log"); print(s.recv(999).decode())' >heard &
        until [ -S /dev/log ]; do sleep 0.05; done
        plyfs -o lowerdir=low,log=syslog low; pkill -TERM -x plyfs; no_servers; wait; sed 's/\[[0-9]*\]/[N]/' heard"#;
    let expected = "1\nplyfs: log: No such file or directory\nplyfs: log: No such file or directory\n\
        <30>plyfs[N]: signal 15: unmounting\n";
    assert_eq!(run(Who::Root, script), expected);
}

#[test]
fn a_terminals_signals_do_not_reach_the_server() {
    need_programs!("script", "mount");
    // The terminal goes with its session: SIGINT from its keyboard before, SIGHUP at its end.
    let script = r#"cat >typed <<'END'
. ./union 1; trap 'cat m1/f; exit 0' INT; kill -INT 0; sleep 5
END
        script -qec 'bash typed' /dev/null | tr -d '\r'; sleep 0.3; cat m1/f; servers; umount m1; no_servers"#;
    assert_eq!(run(Who::Root, script), "low\nlow\n1\n");
}
