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
