//! buildah, umoci and bubblewrap over a plyfs mount.

use crate::arena::{Arena, Who};
use crate::build::same_as_native;
use crate::need_programs;

#[test]
fn buildah_makes_the_layers_of_native_overlay() {
    need_programs!("buildah", "crun", "python3");
    let arena = Arena::new();
    arena.file("context/Dockerfile", "FROM scratch\nADD bb.tar /\n");
    arena.file("context/file", "copied\n");
    crate::support::sh(arena.root(), "cp bb.tar context/");
    arena.file(
        "second/Dockerfile",
        "FROM localhost/first\nRUN rm -r /made && mkdir /made && echo 2 >/made/two\nCOPY Dockerfile /\n",
    );
    let script = "buildah bud -q -t bb $DIR/context >/dev/null
        container=$(buildah from --pull-never bb)
        buildah run $container -- sh -ec 'mkdir /made; echo 1 >/made/one; rm /bin/yes; mv /bin/cat /bin/dog; chmod 711 /root'
        buildah copy -q --chown 3:4 $container $DIR/context/file /copied >/dev/null
        buildah config --cmd /bin/sh $container
        buildah commit -q $container first >/dev/null
        buildah run $container -- ls /made /copied
        buildah rm $container >/dev/null
        buildah bud -q --layers -t second $DIR/second >/dev/null
        buildah push -q second oci-archive:$TMPDIR/second.tar
        python3 $DIR/layers.py oci $TMPDIR/second.tar; rm $TMPDIR/second.tar";
    same_as_native(&arena, Who::User, script);
}

/// `MOUNT`, the changes below, and what umoci puts into the layer.
const UMOCI: &str = r#"
mkdir work; cd work
umoci init --layout ../image; umoci new --image ../image:base
umoci unpack $ROOTLESS --image ../image:base made >/dev/null
tar --no-same-owner -C made/rootfs -xf $DIR/bb.tar; mkdir -p made/rootfs/srv/deep; echo deep >made/rootfs/srv/deep/f
umoci repack --image ../image:base made >/dev/null 2>&1
umoci unpack $ROOTLESS --image ../image:base bundle >/dev/null
mkdir upper overlay
plyfs -o lowerdir=bundle/rootfs,upperdir=upper,workdir=overlay bundle/rootfs
cd bundle/rootfs
echo new >new; ln new hard; rm bin/yes; mv bin/cat bin/dog; rm -r srv; mkdir srv; echo n >srv/n; chmod 711 root; echo more >>etc/passwd
touch -d @1000000000 etc/passwd
cd ../..
umoci repack --image ../image:changed bundle >/dev/null 2>&1
$UMOUNT bundle/rootfs
no_servers
cd ../image
# The newer tag alone, as the archive's only one.
umoci rm --image .:base
tar -cf $TMPDIR/umoci.tar index.json blobs oci-layout
python3 $DIR/layers.py oci $TMPDIR/umoci.tar | sed -n '/layer 1/,$p'
"#;

#[test]
fn umoci_repacks_exactly_the_changes() {
    need_programs!("umoci", "python3");
    let arena = Arena::new();
    for (who, settings) in
        [(Who::User, "ROOTLESS=--rootless UMOUNT='fusermount3 -u'"), (Who::Root, "ROOTLESS= UMOUNT=umount")]
    {
        let said = arena.run(who, &format!("cd $TMPDIR; rm -rf image work; {settings}\n{UMOCI}"));
        let said: Vec<String> = said
            .lines()
            .map(|line| line.split(' ').filter(|word| !word.is_empty()).take(2).collect::<Vec<_>>().join(" "))
            .collect();
        let expected: Vec<String> =
            ["layer 1", "D bin/cat", "A bin/dog", "D bin/yes", "C etc/passwd", "A hard", "A new", "C root"]
                .iter()
                .chain(&["D srv/deep", "A srv/n", "L hard", "repeated 0"])
                .map(|line| (*line).to_owned())
                .collect();
        assert_eq!(said, expected, "{who:?}");
    }
}

#[test]
fn bubblewrap_takes_a_plyfs_mount_as_its_root() {
    need_programs!("bwrap");
    let arena = Arena::new();
    let said = arena.run(
        Who::User,
        "mkdir upper work root bb; tar -C bb -xf $DIR/bb.tar
         plyfs -o lowerdir=bb,upperdir=upper,workdir=work root
         bwrap --bind root / --dev /dev --proc /proc --unshare-all sh -ec 'echo in >/in; rm /bin/yes; cat /in; ls -d /bin/sh'
         bwrap --ro-bind root / --tmpfs /tmp --unshare-user sh -c 'cat /in; echo x >/in || echo no' 2>/dev/null
         bwrap --unshare-user --uid 0 --gid 0 --bind root / --dev-bind /dev /dev sh -ec 'chmod 600 /in; stat -c %u:%a /in'
         fusermount3 -u root; no_servers
         cat upper/in; ls -A upper upper/bin | xargs",
    );
    assert_eq!(said, "in\n/bin/sh\nin\nno\n0:600\nin\nupper: bin in upper/bin: yes\n");
}

#[test]
fn the_machines_root_is_a_layer_but_for_what_is_mounted_in_it() {
    need_programs!("mount");
    // The kernel's overlay shows what lies under a mount. Where that must not be uncovered, it refuses the layer as a whole.
    let script = "mkdir up work m
        look() {
            plyfs -o lowerdir=/,upperdir=up,workdir=work m
            stat m/proc 2>&1 || true; [ -x m/usr/bin/env ]; $1 m; sleep 0.1
        }
        export -f look
        look 'fusermount3 -u'; no_servers
        unshare -Urm bash -euc '
            ! mount -t overlay none -o lowerdir=/,upperdir=up,workdir=work,userxattr m 2>/dev/null
            look umount'
        no_servers";
    let refused = "stat: cannot statx 'm/proc': Invalid cross-device link\n";
    assert_eq!(Arena::new().run(Who::User, script), refused.repeat(2));
}
