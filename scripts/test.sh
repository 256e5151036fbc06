#!/usr/bin/env bash
# Checks everything on a fresh Debian or Ubuntu: installs what is missing, then format, lints, third-party suites and tests.
#
# Not root: sudo is used where it asks for no password; without it the tests that need root say "skipped: why".
# FSX_SECONDS and STRESS_SECONDS are handed on to suites.sh. The last lines are the test runner's own summary.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need fusermount3 fuse3
need cc gcc
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
need getfattr attr
need setfacl acl
need setcap libcap2-bin
need mkfs.ext4 e2fsprogs
need mkfs.xfs xfsprogs
need mkfs.btrfs btrfs-progs
need mksquashfs squashfs-tools
need setpriv util-linux
need mountpoint util-linux
need mount mount
need pgrep procps
need sqlite3 sqlite3
need python3 python3
need stress-ng stress-ng
need podman podman
need crun crun
need buildah buildah
need umoci umoci
need skopeo skopeo
need fuse-overlayfs fuse-overlayfs
need dpkg-deb dpkg
need script bsdutils
need bwrap bubblewrap
need git git
need newuidmap uidmap
need ip iproute2
need busybox busybox-static
install_missing
need_rust cargo-fmt cargo-clippy
[ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
[ -e /dev/fuse ] || echo "no /dev/fuse: nothing can be mounted here" >&2

# Everything the tests make stands below one directory, which other users can enter, so that what is left can be told.
scratch=$(mktemp -d "${TMPDIR:-/tmp}/plyfs-check-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
mkdir -m 1777 "$scratch/tmp"
chmod 755 "$scratch"
export TMPDIR=$scratch/tmp PLYFS_TEST_SKIPPED=$scratch/skipped PLYFS_TEST_RUN=$$
failed=()
step() { # NAME COMMAND...
    local name=$1
    shift
    say "$name"
    "$@" || failed+=("$name")
}

# What this run has left: files, mounts and loop devices of its own, and processes that carry its mark.
left_behind() {
    local suites=/tmp/plyfs-s$PLYFS_TEST_RUN-
    find "$TMPDIR" -mindepth 1 -maxdepth 1
    find /tmp -maxdepth 1 -path "$suites*"
    # The plain user of the container tests is none of the machine's, so whatever is theirs is left.
    find /tmp -maxdepth 1 -user 4242
    { findmnt -rno TARGET; losetup -l -n -O BACK-FILE 2>/dev/null; } | grep -e "^$scratch/" -e "^$suites" || true
    local process
    for process in /proc/[0-9]*; do
        [[ $(readlink "$process/exe" 2>/dev/null) == */plyfs* ]] || continue
        grep -qsz "^PLYFS_TEST_RUN=$PLYFS_TEST_RUN$" "$process/environ" && tr '\0' ' ' < "$process/cmdline" && echo
    done
    return 0
}

if [ "$(id -u)" != 0 ] && have sudo && sudo -n true 2>/dev/null; then
    host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${host}_RUNNER=sudo -E"
fi

# One run of everything; what was skipped and the runner's summary come last.
tests() {
    local status=0
    if cargo nextest --version >/dev/null 2>&1; then
        cargo test --quiet --doc || status=$?
        cargo nextest run --no-fail-fast --status-level retry --final-status-level flaky 2>&1 | tee "$scratch/log" || status=$?
    else
        cargo test --no-fail-fast 2>&1 | tee "$scratch/log" || status=$?
    fi
    [ ! -s "$PLYFS_TEST_SKIPPED" ] || { say "skipped"; sort -u "$PLYFS_TEST_SKIPPED"; }
    return $status
}

step "format" cargo fmt --check
step "lints" cargo clippy --quiet --all-targets -- -D warnings
step "build" cargo build --release --quiet
install() {
    cargo install --quiet --locked --path . --root "$scratch/installed" && "$scratch/installed/bin/plyfs" --version
}
step "install" install
step "third-party suites" scripts/suites.sh
step "tests" tests
left_behind > "$scratch/left"
if [ -s "$scratch/left" ]; then
    say "left behind"
    cat "$scratch/left"
    failed+=("cleanliness")
fi
say "summary"
grep -E '^ *Summary|^test result' "$scratch/log" || true
[ ${#failed[@]} = 0 ] || { printf 'failed: %s\n' "${failed[@]}"; exit 1; }
