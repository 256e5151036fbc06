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
