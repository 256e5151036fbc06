//! Images: many layers, whiteouts in AUFS form, both archive formats, image mounts.

use crate::arena::{Arena, Who};
use crate::build::same_as_native;
use crate::need_programs;

#[test]
fn an_image_is_saved_and_loaded_in_both_archive_formats() {
    need_programs!("podman", "crun");
    let arena = Arena::new();
    arena.file(
        "context/Dockerfile",
        "FROM bb\nRUN rm /bin/yes && echo 1 >/one\nRUN rm /one && mkdir /one && echo 2 >/one/two\n",
    );
    let said = arena.run(
        Who::User,
        "store plyfs $DIR/bin/plyfs
         podman import -q $DIR/bb.tar bb >/dev/null 2>&1
         podman build -q -t built $DIR/context >/dev/null
         for format in oci-archive docker-archive; do podman save -q --format $format -o $TMPDIR/$format.tar built; done
         for format in oci-archive docker-archive; do
             store $format $DIR/bin/plyfs
             podman load -q -i $TMPDIR/$format.tar >/dev/null
             podman run --rm built sh -c 'cat /one/two; ls /bin/yes 2>&1 || true'
         done
         no_servers",
    );
    assert_eq!(said, "2\nls: /bin/yes: No such file or directory\n".repeat(2));
}

#[test]
fn an_image_of_forty_layers_runs() {
    need_programs!("podman", "crun");
    let arena = Arena::new();
    let steps: String = (1..=40).map(|n| format!("COPY f /layers/f{n}\n")).collect();
    arena.file("context/Dockerfile", format!("FROM bb\n{steps}RUN rm /layers/f7 && echo up >/layers/f9\n"));
    arena.file("context/f", "f\n");
    let said = arena.run(
        Who::User,
        "store plyfs $DIR/bin/plyfs
         podman import -q $DIR/bb.tar bb >/dev/null 2>&1
         podman build -q -t built $DIR/context >/dev/null
         podman run --rm built sh -c 'ls /layers | wc -l; cat /layers/f9 /layers/f40; ls /layers/f7 2>&1 || true'
         no_servers",
    );
    assert_eq!(said, "39\nup\nf\nls: /layers/f7: No such file or directory\n");
}

/// Writes `$TMPDIR/image.tar`, a docker archive of three layers: busybox, a tree, and what hides parts of it.
const WHITEOUT_IMAGE: &str = r#"
import hashlib, io, json, os, tarfile
def layer(names):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as tar:
        for name in names:
            entry = tarfile.TarInfo(name.rstrip('/'))
            entry.mode = 0o755
            if name.endswith('/'):
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            else:
                entry.size = 0 if '.wh.' in name else 2
                tar.addfile(entry, io.BytesIO(b'x\n'))
    return out.getvalue()
layers = [open(os.environ['DIR'] + '/bb.tar', 'rb').read(),
          layer(['t/', 't/gone', 't/kept', 't/dir/', 't/dir/in', 't/opaque/', 't/opaque/below']),
          layer(['t/', 't/.wh.gone', 't/.wh.dir', 't/opaque/', 't/opaque/.wh..wh..opq', 't/opaque/top'])]
config = json.dumps({'architecture': 'amd64', 'os': 'linux', 'config': {}, 'rootfs': {'type': 'layers',
    'diff_ids': ['sha256:' + hashlib.sha256(l).hexdigest() for l in layers]}}).encode()
manifest = json.dumps([{'Config': 'config.json', 'RepoTags': ['localhost/wh:latest'],
    'Layers': [f'{n}.tar' for n in range(len(layers))]}]).encode()
with tarfile.open(os.environ['TMPDIR'] + '/image.tar', 'w') as tar:
    for name, data in [('config.json', config), ('manifest.json', manifest)] + [(f'{n}.tar', l) for n, l in enumerate(layers)]:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
"#;

#[test]
fn whiteouts_of_an_image_hide_what_they_hide_in_native_overlay() {
    need_programs!("podman", "crun", "python3");
    let arena = Arena::new();
    arena.file("image.py", WHITEOUT_IMAGE);
    let script = "python3 $DIR/image.py
        podman load -q -i $TMPDIR/image.tar >/dev/null
        podman run --name c wh sh -c 'cd t; find . | sort; rm kept; echo n >gone; mkdir dir; ls -a . dir opaque'
        podman diff c > $TMPDIR/diff; python3 $DIR/layers.py diff $TMPDIR/diff
        podman commit -q c committed >/dev/null
        podman run --rm committed sh -c 'cd t; find . | sort'";
    let native = arena.run(Who::User, &format!("store native native\n{script}"));
    // Native overlay lists an opaque directory as removed and made again.
    let diff = "podman diff wh | sort; no_servers";
    let ours = arena.run(Who::User, &format!("store plyfs $DIR/bin/plyfs\n{script}\n{diff}"));
    let removed = "A /t/opaque/top\nC /t\nC /t/opaque\nD /t/dir\nD /t/gone\nD /t/opaque/below\n";
    assert_eq!(ours, native + removed);
    assert!(ours.starts_with(".\n./kept\n./opaque\n./opaque/top\n"), "{ours}");
}

#[test]
fn an_image_is_mounted_as_a_volume() {
    need_programs!("podman", "crun");
    let arena = Arena::new();
    let said = arena.run(
        Who::User,
        "store plyfs $DIR/bin/plyfs
         podman import -q $DIR/bb.tar bb >/dev/null 2>&1
         podman run --rm --mount type=image,source=bb,destination=/img,rw=true bb sh -c 'echo x >/img/y; cat /img/y /img/etc/passwd'
         podman run --rm --mount type=image,source=bb,destination=/img bb sh -c 'ls /img/y || echo no; echo x >/img/y || echo no' 2>/dev/null
         no_servers",
    );
    assert_eq!(said, "x\nroot:x:0:0::/root:/bin/sh\nno\nno\n");
}

#[test]
fn skopeo_copies_what_was_committed() {
    need_programs!("podman", "crun", "skopeo", "python3");
    let script = "podman import -q $DIR/bb.tar bb >/dev/null 2>&1
        podman run --name c bb sh -c 'rm /bin/yes; mkdir /new; echo x >/new/x; chmod 700 /root; ln /new/x /new/y'
        podman commit -q c committed >/dev/null 2>&1
        for to in oci-archive docker-archive; do
            podman unshare skopeo copy -q containers-storage:localhost/committed $to:$TMPDIR/$to.tar:committed
        done
        python3 $DIR/layers.py oci $TMPDIR/oci-archive.tar
        skopeo copy -q --insecure-policy docker-archive:$TMPDIR/docker-archive.tar dir:$TMPDIR/dir && ls $TMPDIR/dir | wc -l
        rm -r $TMPDIR/dir $TMPDIR/*.tar";
    same_as_native(&Arena::new(), Who::User, script);
}
