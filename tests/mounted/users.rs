//! A union of a user without rights, over fusermount3 and in a user namespace.

use std::path::Path;

use crate::support::nobody::{Way, missing, script, script_among_others};
use crate::support::skipped;
use crate::{need, plyfs_only};

fn both_ways(prepare: &str, what: &str) {
    for way in [Way::Fusermount, Way::Namespace] {
        match missing(way) {
            Some(why) => skipped(why),
            None => drop(script(way, prepare, what)),
        }
    }
}

#[test]
fn a_plain_user_mounts_and_works() {
    both_ways(
        "",
        "mkdir lower/dir; echo old > lower/dir/file; echo gone > lower/dir/gone; ln -s file lower/dir/link
        union
        [ \"$(cat merged/dir/link)\" = old ]
        echo new >> merged/dir/file; [ \"$(cat upper/dir/file)\" = \"$(printf 'old\\nnew')\" ]
        rm merged/dir/gone; [ \"$(stat -c '%F %t %T' upper/dir/gone)\" = 'character special file 0 0' ]
        rm -r merged/dir; mkdir merged/dir; [ -z \"$(ls merged/dir)\" ]
        ln merged/dir/../dir/x merged/y 2>/dev/null && exit 1
        touch merged/dir/x; ln merged/dir/x merged/y; [ merged/y -ef merged/dir/x ]
        leave; union
        [ \"$(ls merged/dir)\" = x ]",
    );
}

#[test]
fn a_file_created_read_only_is_writable_through_its_descriptor() {
    both_ways(
        "",
        "union
        (umask 0377; exec 3> merged/new; echo one >&3; sync -f merged; echo two >&3)
        [ \"$(stat -c %a merged/new)\" = 400 ]
        [ \"$(cat merged/new)\" = \"$(printf 'one\\ntwo')\" ]
        leave; [ \"$(wc -l < upper/new)\" = 2 ]",
    );
}

#[test]
fn a_mode_taken_away_does_not_stop_an_open_descriptor() {
    both_ways(
        "",
        "echo one > lower/file; union
        exec 3>> merged/file; chmod 0 merged/file; echo two >&3; exec 3>&-
        chmod 600 merged/file; [ \"$(wc -l < merged/file)\" = 2 ]",
    );
}

#[test]
fn a_file_that_its_owner_may_not_read_keeps_its_data_where_only_attributes_are_copied() {
    plyfs_only!();
    both_ways(
        "",
        "echo one > lower/f; echo two > lower/g; LOWERS=lower,metacopy=on; union
        chmod 640 merged/f; chmod 0 merged/f; chmod 200 merged/g
        leave; union
        chmod 600 merged/f merged/g; [ \"$(cat merged/f merged/g)\" = \"$(printf 'one\\ntwo')\" ]",
    );
}

#[test]
fn an_unlinked_file_of_mode_0_stays_open() {
    both_ways(
        "",
        "echo one > lower/file; union
        exec 3<> merged/file; chmod 0 merged/file; rm -f merged/file; echo two >&3; exec 4< /proc/self/fd/3 || true
        exec 3>&-; [ ! -e merged/file ]",
    );
}

#[test]
fn a_read_only_file_can_be_changed_by_its_owner() {
    // sed -i and chmod a-rw as package builds do them.
    both_ways(
        "",
        "mkdir lower/dir; echo text > lower/dir/file; chmod 444 lower/dir/file; union
        sed -i s/text/other/ merged/dir/file; [ \"$(cat merged/dir/file)\" = other ]
        touch merged/dir/x; chmod a-rw merged/dir/x; rm -f merged/dir/x; [ ! -e merged/dir/x ]",
    );
}

#[test]
fn a_read_only_directory_can_be_made() {
    both_ways(
        "",
        "union; (umask 0222; mkdir merged/new); [ \"$(stat -c %a merged/new upper/new)\" = \"$(printf '555\\n555')\" ]
        chmod 755 merged/new; touch merged/new/x",
    );
}

#[test]
fn a_read_only_lower_directory_can_be_changed_by_its_owner() {
    both_ways(
        "",
        "mkdir -p lower/dir/sub; touch lower/dir/sub/file; chmod 555 lower/dir/sub lower/dir; union
        chmod 755 merged/dir; touch merged/dir/new; [ \"$(stat -c %a upper/dir)\" = 755 ]
        chmod 600 merged/dir/sub/file; [ \"$(stat -c %a upper/dir/sub)\" = 555 ]
        chmod 755 lower/dir lower/dir/sub merged/dir/sub",
    );
}

#[test]
fn a_lower_file_that_is_not_the_users_can_be_removed_and_replaced() {
    // In a namespace of one id the file's owner has no number there.
    both_ways(
        "mkdir -p system/dir; echo root > system/dir/file; chmod 755 system system/dir; chmod 444 system/dir/file
        chown 65534:65534 system/dir system",
        "LOWERS=system; union
        [ \"$(cat merged/dir/file)\" = root ]
        if [ \"$WAY\" = fusermount ]; then ! (echo x >> merged/dir/file) 2>/dev/null; fi
        echo mine > merged/dir/new; mv -f merged/dir/new merged/dir/file; [ \"$(cat merged/dir/file)\" = mine ]
        rm -f merged/dir/file; [ ! -e merged/dir/file ]",
    );
}

#[test]
fn a_lower_file_that_is_not_the_users_can_be_moved_and_written_as_its_mode_says() {
    plyfs_only!();
    both_ways(
        "mkdir -p system/dir; for name in moved open sub/x suid; do mkdir -p system/dir/$(dirname $name)
        echo root > system/dir/$name; done; chown 65534:65534 system/dir system; chmod 666 system/dir/open
        chmod 6755 system/dir/suid; chmod 755 system system/dir system/dir/sub; chmod 1777 system/dir/sub",
        "LOWERS=system; union
        mv merged/dir/moved merged/dir/elsewhere; [ \"$(cat merged/dir/elsewhere)\" = root ]
        echo more >> merged/dir/open; [ \"$(wc -l < merged/dir/open)\" = 2 ]
        touch merged/dir/sub/new; [ \"$(stat -c %U%a upper/dir/sub)\" = \"$(id -un)1777\" ]
        # The copy is the user's; it must not run as the user for whoever calls it.
        mv merged/dir/suid merged/dir/plain; [ \"$(stat -c %a upper/dir/plain)\" = 755 ]
        [ \"$(stat -c %u upper/dir/elsewhere)\" = \"$(id -u)\" ]",
    );
}

#[test]
fn a_user_to_whom_everything_is_squashed_changes_a_system() {
    plyfs_only!();
    match missing(Way::Fusermount) {
        Some(why) => skipped(why),
        None => drop(script(
            Way::Fusermount,
            "mkdir -p system/etc/sub system/bin; echo root > system/etc/conf; chmod 444 system/etc/conf
            echo s > system/bin/su; chmod 4755 system/bin/su; echo secret > system/etc/shadow; chmod 600 system/etc/shadow",
            "plyfs -o lowerdir=system,upperdir=upper,workdir=work,squash_to_uid=$(id -u),squash_to_gid=$(id -g) merged
            [ \"$(stat -c %u merged/etc/conf)\" = \"$(id -u)\" ]
            chmod 644 merged/etc/conf; echo mine >> merged/etc/conf; [ \"$(wc -l < merged/etc/conf)\" = 2 ]
            echo new > merged/etc/new; mv merged/bin/su merged/bin/other; [ \"$(stat -c %a upper/bin/other)\" = 755 ]
            rm -r merged/etc/sub; mv -f merged/etc/new merged/etc/conf; [ \"$(cat merged/etc/conf)\" = new ]
            # The server may not read it, so nobody does; it can be removed and replaced.
            ! cat merged/etc/shadow 2>/dev/null; ! (echo x >> merged/etc/shadow) 2>/dev/null
            rm -f merged/etc/shadow; echo x > merged/etc/shadow; [ \"$(cat merged/etc/shadow)\" = x ]",
        )),
    }
}

#[test]
fn in_a_namespace_of_one_id_every_owner_has_a_number() {
    plyfs_only!();
    match missing(Way::Namespace) {
        Some(why) => skipped(why),
        None => drop(script(
            Way::Namespace,
            "mkdir -p system/dir; echo root > system/dir/file; chmod 444 system/dir/file",
            "LOWERS=system; union
            [ \"$(stat -c %u:%g merged/dir merged/dir/file)\" = \"$(printf '0:0\\n0:0')\" ]
            chmod 600 merged/dir/file; echo x >> merged/dir/file; [ \"$(stat -c %u%a upper/dir/file)\" = 0600 ]
            rm -r merged/dir; [ ! -e merged/dir ]",
        )),
    }
}

#[test]
fn the_daemon_of_a_plain_user_leaves_with_its_mount() {
    plyfs_only!();
    match missing(Way::Fusermount) {
        Some(why) => skipped(why),
        None => drop(script(
            Way::Fusermount,
            "",
            "plyfs -o fsname=mine$$,lowerdir=lower,upperdir=upper,workdir=work merged
            pid=$(pgrep -f fsname=mine$$); readlink /proc/$pid/exe
            leave; for i in $(seq 50); do readlink /proc/$pid/exe || exit 0; sleep 0.1; done; exit 1",
        )),
    }
}

#[test]
fn a_file_that_its_owner_may_write_to_but_not_read_takes_writes() {
    both_ways(
        "",
        "echo up > upper/up; echo low > lower/low; chmod 200 upper/up; union
        chmod 200 merged/low; leave; union
        echo more >> merged/up; echo more >> merged/low
        leave; chmod 600 upper/*; [ \"$(cat upper/up upper/low | tr '\\n' ' ')\" = 'up more low more ' ]",
    );
}

#[test]
fn others_change_on_a_plain_users_mount_what_modes_let_them_and_make_nothing() {
    plyfs_only!();
    if let Some(why) = missing(Way::Fusermount) {
        return skipped(why);
    }
    need!(Path::new("/etc/fuse.conf").exists(), "no /etc/fuse.conf to put another in its place");
    script_among_others(
        "other='setpriv --reuid=4242 --regid=4242 --clear-groups env LC_ALL=C'
        $AS_NOBODY sh -euc '
            mkdir lower upper work merged; mkdir -m 777 lower/open lower/open/dir upper/open2; mkdir -m 755 lower/closed
            for name in low gone moved; do echo $name > lower/open/$name; done; chmod 666 lower/open/*
            chmod 777 lower/open/dir; echo closed > lower/closed/file
            plyfs -o allow_other,lowerdir=lower,upperdir=upper,workdir=work merged'
        trap '$AS_NOBODY fusermount3 -u merged' EXIT
        refused() {
            ! said=$(\"${@:2}\" 2>&1) || { echo \"$* went through\"; exit 1; }
            case $said in *\"$1\"*) ;; *) echo \"$*: $said\"; exit 1;; esac
        }
        cd merged
        [ \"$($other cat open/low)\" = low ]
        $other sh -c 'echo more >> open/low'; [ \"$(wc -l < ../upper/open/low)\" = 2 ]
        $other truncate -s 1 open/low; [ \"$(stat -c %s ../upper/open/low)\" = 1 ]
        $other rm open/gone; [ ! -e open/gone ]
        $other mv open/moved open/dir/elsewhere; [ \"$(cat open/dir/elsewhere)\" = moved ]
        refused 'Permission denied' $other sh -c 'echo x >> closed/file'
        refused 'Permission denied' $other rm -f closed/file
        for dir in open open/dir open2; do
            # Root is another user here, too.
            for who in \"$other\" 'env LC_ALL=C'; do
                refused 'Operation not permitted' $who touch $dir/new
                refused 'Operation not permitted' $who mkdir $dir/new
                refused 'Operation not permitted' $who ln -s x $dir/new
                refused 'Operation not permitted' $who mkfifo $dir/new
                # Not where it was made, either, before it was found out that it cannot be given away.
                [ ! -e $dir/new ]; [ ! -e ../upper/$dir/new ]; [ -z \"$(ls ../work/work)\" ]
                $AS_NOBODY touch $dir/new; rm $dir/new
            done
        done
        cd ..",
    );
}
