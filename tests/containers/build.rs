//! Builds: what their layers hold, and what `podman diff` and `podman commit` find changed, is what native overlay gives.

use crate::arena::{Arena, Who};
use crate::need_programs;

/// Eight steps: create, install a package, remove, rename and change modes and owners, link, replace directories, change
/// times, and a file of another kind.
const DOCKERFILE: &str = r#"FROM localhost/bb
RUN mkdir -p /srv/a/b /opt/old/deep && echo one >/srv/a/one && echo two >/srv/a/b/two && echo keep >/opt/old/deep/f && ln -s one /srv/a/link && mkfifo /srv/pipe
COPY pkg.tar /tmp/pkg.tar
RUN tar -C / -xf /tmp/pkg.tar && rm /tmp/pkg.tar
RUN rm -r /opt/old /srv/a/one && rm /bin/yes
RUN mv /srv/a/b/two /srv/a/b/renamed && chmod 4750 /bin/busybox && chown 12:34 /etc/passwd && chmod 1777 /srv
RUN ln /etc/passwd /etc/passwd.hard && ln /srv/a/b/renamed /srv/hard && echo a >/srv/l1 && ln /srv/l1 /srv/l2
RUN rm -r /srv/a && mkdir /srv/a && echo new >/srv/a/new && rm -r /usr/share/pkg && echo file >/usr/share/pkg && mkdir /opt/old && echo x > /opt/old/x
RUN mv /srv/pipe /srv/pipe2 && echo more >> /etc/passwd && touch -d @1000000000 /etc/passwd /srv /usr/share/pkg
"#;

/// What a container does before it is compared and committed.
const CHANGES: &str =
    "cat /etc/passwd >/dev/null; rm /bin/ls; mkdir /n; echo x >/n/x; mv /bin/cat /bin/dog; chmod 700 /root;
    chown 5:6 /etc/passwd; ln -s x /root/link; rm -r /opt/old; echo s >/opt/some; touch -d @1000000000 /srv/a/new";

fn context(arena: &Arena) {
    arena.file("context/Dockerfile", DOCKERFILE);
    crate::support::sh(
        arena.root(),
        "mkdir -p pkg/usr/share/pkg/doc pkg/usr/share/pkg/data pkg/etc/pkg
         for i in $(seq 30); do echo $i > pkg/usr/share/pkg/data/f$i; done
         echo conf > pkg/etc/pkg/conf; ln pkg/etc/pkg/conf pkg/usr/share/pkg/doc/hard
         tar -C pkg --owner=0 --group=0 -cf context/pkg.tar usr etc",
    );
}

/// What of the last layer `podman diff` lists.
const DIFF: &str = "podman diff built > $TMPDIR/diff; python3 $DIR/layers.py diff $TMPDIR/diff";

/// Where the first difference between two texts is.
fn compare(native: &str, ours: &str) {
    for (native_line, our_line) in native.lines().zip(ours.lines()) {
        assert_eq!(our_line, native_line, "\nours:\n{ours}\nnative:\n{native}");
    }
    assert_eq!(ours.lines().count(), native.lines().count(), "\nours:\n{ours}\nnative:\n{native}");
}

/// Runs the same with native overlay and with plyfs; what is printed must be the same but for `repeated`.
pub fn same_as_native(arena: &Arena, who: Who, script: &str) {
    let native = arena.run(who, &format!("store native native\n{script}"));
    let ours = arena.run(who, &format!("store plyfs \"$DIR/bin/plyfs\"\n{script}\nno_servers"));
    let without = |text: &str| -> String {
        text.lines().filter(|line| !line.starts_with("repeated")).map(|line| format!("{line}\n")).collect()
    };
    compare(&without(&native), &without(&ours));
    assert!(ours.lines().filter(|line| line.starts_with("repeated")).all(|line| line == "repeated 0"), "{ours}");
}

fn build_script(options: &str) -> String {
    format!(
        "podman import -q $DIR/bb.tar bb >/dev/null 2>&1
         podman build -q {options} -t built $DIR/context >/dev/null
         podman save -q --format oci-archive -o $TMPDIR/built.tar built
         python3 $DIR/layers.py oci $TMPDIR/built.tar
         rm $TMPDIR/built.tar"
    )
}

#[test]
fn a_build_of_eight_steps_gives_the_layers_of_native_overlay() {
    need_programs!("podman", "crun", "python3");
    let arena = Arena::new();
    context(&arena);
    same_as_native(&arena, Who::User, &format!("{}; {DIFF}", build_script("--isolation=oci --network=none")));
}

#[test]
fn a_build_in_one_layer_gives_the_layer_of_native_overlay() {
    need_programs!("podman", "crun", "python3");
    let arena = Arena::new();
    context(&arena);
    same_as_native(&arena, Who::User, &build_script("--layers=false"));
}

#[test]
fn what_podman_diff_and_commit_find_is_what_native_overlay_has() {
    need_programs!("podman", "crun", "python3");
    let arena = Arena::new();
    context(&arena);
    let script = format!(
        "podman import -q $DIR/bb.tar bb >/dev/null 2>&1
         podman build -q -t built $DIR/context >/dev/null
         podman run --name changed built sh -ec '{CHANGES}'
         podman diff changed > $TMPDIR/diff
         python3 $DIR/layers.py diff $TMPDIR/diff
         podman commit -q changed committed >/dev/null
         podman save -q --format oci-archive -o $TMPDIR/committed.tar committed
         python3 $DIR/layers.py oci $TMPDIR/committed.tar
         rm $TMPDIR/committed.tar
         podman run --rm committed sh -ec 'ls /opt /n /bin/dog; ls -ln /etc/passwd | cut -c1-40; ! ls /bin/ls'"
    );
    same_as_native(&arena, Who::User, &script);
}
