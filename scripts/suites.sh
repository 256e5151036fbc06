#!/usr/bin/env bash
# Third-party conformance suites on a mounted union: pjdfstest and fsx (crates.io) and stress-ng (Debian).
#
#   scripts/suites.sh [pjdfstest] [fsx] [stress]          all three when none is named; needs root
#
# SUBJECT=kernel runs them on the kernel's overlay instead. FSX_SECONDS (60) is the time for each of fsx's three files,
# STRESS_SECONDS (5) for each stressor. The suites are built once, into target/suites.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

subject=${SUBJECT:-plyfs}
target=${CARGO_TARGET_DIR:-$PWD/target}
plyfs=${PLYFS:-$target/release/plyfs}
suites=$target/suites
crate() { # NAME VERSION
    [ -x "$suites/bin/$1" ] || cargo install --quiet --locked --root "$suites" --target-dir "$suites/build" "$1@$2"
}
crate pjdfstest 0.2.2
crate fsx 0.3.2

if [ "$(id -u)" != 0 ]; then
    if have sudo && sudo -n true 2>/dev/null; then exec sudo -E env "PATH=$PATH" "$0" "$@"; fi
    echo "skipped: the conformance suites: not root"
    exit 0
fi

# Not below TMPDIR: the path of a socket has 108 bytes, and pjdfstest needs 60 of them for itself. Where it has fewer, its
# socket tests fail on both sides alike and compare nothing.
dir=$(mktemp -d "/tmp/plyfs-s${PLYFS_TEST_RUN:-}-XXXXXX")
log=$dir/log
unmount_below() {
    local mount try
    for mount in $(findmnt -rno TARGET | grep "^$1" | sort -r); do
        # A daemon whose mount just went holds its layers for a moment longer.
        for try in 1 2 3 4 5; do umount "$mount" 2>/dev/null && continue 2; sleep 0.2; done
        umount -l "$mount"
    done
}
clean_up() {
    status=$?
    cd /
    unmount_below "$dir/"
    rm -rf "$dir"
    exit $status
}
trap clean_up EXIT

# The layers live on an ext4 of their own, so that every machine asks the same.
prepare_disk() {
    mkdir "$dir/disk"
    truncate -s 4G "$dir/image"
    mkfs.ext4 -q "$dir/image"
    if ! mount -o loop "$dir/image" "$dir/disk" 2>"$log"; then
        echo "skipped: the conformance suites: no loop device here ($(tail -n 1 "$log"))"
        exit 0
    fi
}

# mount_union SUBJECT: fresh layers, mounted on $merged.
mount_union() {
    root=$dir/disk/$1
    merged=$root/merged
    mkdir -p "$root"/{lower,upper,work,merged}
    chmod 755 "$dir" "$dir/disk" "$root" "$root"/*
    head -c 262144 /dev/urandom > "$root/lower/blocks"
    head -c 262144 /dev/urandom > "$root/lower/file"
    local options="lowerdir=$root/lower,upperdir=$root/upper,workdir=$root/work"
    case $1 in
        kernel) mount -t overlay overlay -o "$options" "$merged" ;;
        *) "$plyfs" -o "$options" "$merged" ;;
    esac
}

unmount_union() {
    umount "$merged"
    rm -rf "$root"
}

# Users that every machine has, so that none is made.
pjdfstest_settings() {
    cat <<SETTINGS
[features]
posix_fallocate = {}
utime_now = {}
utimensat = {}
rename_ctime = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "$(id -gn nobody)"], ["daemon", "daemon"]]
SETTINGS
}

# The names of the tests that fail on a subject, sorted, on standard output.
pjdfstest_failures() {
    mount_union "$1"
    NO_COLOR=1 "$suites/bin/pjdfstest" -c "$dir/pjdfstest.toml" -p "$merged" > "$dir/pjdfstest.$1" 2>&1 || true
    unmount_union
    grep -q '^Summary' "$dir/pjdfstest.$1" || { cp "$dir/pjdfstest.$1" "$log"; return 1; }
    awk '$NF == "FAILED" { print $1 }' "$dir/pjdfstest.$1" | sort
}

run_pjdfstest() {
    local longest=$dir/disk/kernel/merged
    [ ${#longest} -le 48 ] || { echo "$longest is too long a path for pjdfstest's sockets"; return 1; }
    pjdfstest_settings > "$dir/pjdfstest.toml"
    pjdfstest_failures kernel > "$dir/failed.kernel"
    pjdfstest_failures "$subject" > "$dir/failed.$subject"
    for side in kernel "$subject"; do
        printf '%-8s %s\n' "$side" "$(grep '^Summary' "$dir/pjdfstest.$side")"
    done
    comm -13 "$dir/failed.kernel" "$dir/failed.$subject" > "$dir/worse"
    comm -23 "$dir/failed.kernel" "$dir/failed.$subject" | sed "s/^/passes on $subject only: /"
    if [ -s "$dir/worse" ]; then
        echo "fails on $subject and passes on the kernel's overlay:"
        grep -F -A 3 -f "$dir/worse" "$dir/pjdfstest.$subject"
        return 1
    fi
}

# fsx_on FILE SETTINGS...: until its time is over, which is not an error.
fsx_on() {
    local file=$1 status end=$((SECONDS + ${FSX_SECONDS:-60}))
    shift
    printf '%s\n' "$@" > "$dir/fsx.toml"
    while :; do
        status=0
        timeout $((end > SECONDS ? end - SECONDS : 1)) "$suites/bin/fsx" -f "$dir/fsx.toml" -P "$dir" "$file" > "$log" 2>&1 || status=$?
        # Now and then this fsx asks posix_fallocate(3) for no bytes, which is EINVAL everywhere: it begins again.
        grep '^.*ERROR' "$log" | tail -n 1 | grep -q 'POSIX_FALLOCATE.*( *0x0 bytes)' && [ $SECONDS -lt $end ] || break
    done
    if [ $status != 124 ] && [ $SECONDS -lt $end ]; then
        echo "fsx on $file: exit status $status"
        return 1
    fi
    echo "fsx on ${file##*/}: ${FSX_SECONDS:-60} s, no error"
}

run_fsx() {
    local common=('[weights]' 'read = 10' 'write = 10' 'mapread = 10' 'mapwrite = 10' 'invalidate = 1' 'fsync = 1'
        'fdatasync = 1' 'sendfile = 5' 'posix_fadvise = 1' 'punch_hole = 3' 'copy_file_range = 5')
    local resizing=('truncate = 10' 'close_open = 1' 'posix_fallocate = 3')
    mount_union "$subject"
    fsx_on "$merged/blocks" 'blockmode = true' "${common[@]}" 'truncate = 0'  # a lower file, size kept
    fsx_on "$merged/file" "${common[@]}" "${resizing[@]}"                             # a lower file
    fsx_on "$merged/fresh" "${common[@]}" "${resizing[@]}"
    unmount_union
}

run_stress() {
    have stress-ng || { echo "skipped: stress-ng is not installed"; return 0; }
    mount_union "$subject"
    local stressor status
    for stressor in dir dentry rename link symlink xattr chmod fallocate mmap; do
        local more=()
        [ $stressor != fallocate ] || more=(--fallocate-bytes 64m)
        [ $stressor != mmap ] || more=(--mmap-bytes 32m --mmap-file)
        status=0
        stress-ng --temp-path "$merged" --verify --oomable "--$stressor" 2 "${more[@]}" \
            --timeout "${STRESS_SECONDS:-5}" > "$log" 2>&1 || status=$?
        [ $status = 0 ] || { echo "stress-ng --$stressor: exit status $status"; return 1; }
        echo "stress-ng --$stressor: ${STRESS_SECONDS:-5} s, no error"
    done
    unmount_union
}

prepare_disk
[ $# -gt 0 ] || set -- pjdfstest fsx stress
failed=()
for suite; do
    say "$suite on $subject"
    set +e
    (set -e; "run_$suite")
    status=$?
    set -e
    [ $status = 0 ] || { failed+=("$suite"); [ ! -s "$log" ] || tail -n 40 "$log"; }
    unmount_below "$dir/disk/"
    rm -rf "${dir:?}"/disk/{kernel,"$subject"} "$log"
done
[ ${#failed[@]} = 0 ] || { echo "failed on $subject: ${failed[*]}"; exit 1; }
