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
