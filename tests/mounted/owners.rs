//! Owners that differ between layers and callers, as the kernel's permission checks see them.

use crate::support::{Layers, have, is_root, sh, write};
use crate::{need, plyfs_only};

#[test]
fn a_mapped_user_owns_what_root_owns_on_disk() {
    plyfs_only!();
    need!(is_root() && have("setpriv"), "not root, or no setpriv (util-linux): there is no other user to become");
    let layers = Layers::new(1);
    write(layers.lower("dir/file"), "one\n");
    let (options, target) = (layers.options(), layers.merged(""));
    let map = "0:1000:1:1:100000:1000";
    let union = layers.mount_with(&format!("{options},allow_other,uidmapping=:{map},gidmapping=:{map}"), &target);
    sh(union.root(), "chmod 755 . lower upper merged 2>/dev/null || chmod 755 . merged");
    sh(
        union.root(),
        "as() { id=$1; shift; setpriv --reuid=$id --regid=$id --clear-groups bash -euc \"$*\"; }
        [ \"$(stat -c %u:%g merged/dir/file)\" = 1000:1000 ]
        as 1000 'echo two >> merged/dir/file; mkdir merged/dir/sub; chmod 1777 merged/dir/sub'
        [ \"$(stat -c %u:%g%a upper/dir/sub)\" = 0:01777 ]
        ! as 100000 'echo three >> merged/dir/file' 2>/dev/null
        as 100000 'echo mine > merged/dir/sub/mine; ln -s x merged/dir/sub/link'
        [ \"$(stat -c %u:%g merged/dir/sub/mine upper/dir/sub/mine)\" = \"$(printf '100000:100000\\n1:1')\" ]
        [ \"$(stat -c %u:%g upper/dir/sub/link)\" = 1:1 ]
        ! as 100001 'rm -f merged/dir/sub/mine' 2>/dev/null
        chown 100009:100010 merged/dir/sub/mine; [ \"$(stat -c %u:%g upper/dir/sub/mine)\" = 10:11 ]
        as 100009 'rm merged/dir/sub/mine'",
    );
}

#[test]
fn squashed_owners_are_everybodys_alike() {
    plyfs_only!();
    need!(is_root(), "not root: files cannot be given away");
    let layers = Layers::new(1);
    write(layers.lower("file"), "one\n");
    let (options, target) = (layers.options(), layers.merged(""));
    let union = layers.mount_with(&format!("{options},squash_to_uid=0,squash_to_gid=5"), &target);
    sh(
        union.root(),
        "chown 42:43 merged/file; touch merged/new
        [ \"$(stat -c %u:%g merged/file merged/new | sort -u)\" = 0:5 ]
        [ \"$(stat -c %u:%g upper/file)\" = 42:43 ]",
    );
}

#[test]
fn owners_and_devices_lie_in_attributes_where_the_layers_cannot_hold_them() {
    plyfs_only!();
    need!(is_root() && have("setpriv"), "not root, or no setpriv (util-linux): there is no other user to become");
    let layers = Layers::new(1);
    write(layers.lower("dir/file"), "one\n");
    let (options, target) = (layers.options(), layers.merged(""));
    let union = layers.mount_with(&format!("{options},xattr_permissions=2,allow_other,dev"), &target);
    let name = "user.containers.override_stat";
    sh(
        union.root(),
        "chmod 755 . merged; cd merged
        mknod null c 1 3; echo into > null; [ \"$(stat -c '%F %t %T' null)\" = 'character special file 1 3' ]
        mkfifo pipe; (echo through > pipe &); [ \"$(cat pipe)\" = through ]
        chown 42:43 dir/file; chmod 640 dir/file; mkdir own; chown 1000:1000 own
        setpriv --reuid=1000 --regid=1000 --clear-groups bash -euc '
            ! cat dir/file 2>/dev/null; echo mine > own/mine; chmod 400 own/mine; ln -s mine own/link'
        [ \"$(stat -c %u:%g:%a dir/file own/mine)\" = \"$(printf '42:43:640\\n1000:1000:400')\" ]
        [ \"$(stat -c '%F %u %a' ../upper/null ../upper/pipe ../upper/own/mine | sort -u)\" = \\
            \"$(printf 'regular empty file 0 600\\nregular file 0 600')\" ]",
    );
    let said = |path: &str| String::from_utf8(crate::support::xattr(union.upper(path), name).unwrap()).unwrap();
    assert_eq!((said("null"), said("own/mine")), ("0:0:0644:char-1-3".into(), "1000:1000:0400:file".into()));
    let union = union.unmount();
    assert_eq!(crate::support::xattr(union.lower("dir/file"), name), None);
}
