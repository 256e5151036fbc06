#!/usr/bin/env bash
# Shows plyfs at work: installs what is missing, builds it, and runs the README's first screen in a temporary directory.
#
#   scripts/demo.sh                                       the README's union, layer by layer, then everything is cleaned up
#   scripts/demo.sh -o lowerdir=A:B,upperdir=U,workdir=W MERGED    mounts yours, and leaves it mounted
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
. scripts/lib.sh

need fusermount3 fuse3
need cc gcc
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
install_missing
need_rust
say "building"
cargo build --release --quiet
plyfs=${CARGO_TARGET_DIR:-$PWD/target}/release/plyfs
[ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
[ -e /dev/fuse ] || { echo "no /dev/fuse: this kernel or container has no FUSE" >&2; exit 1; }

if [ $# -gt 0 ]; then
    cd "$here"
    "$plyfs" "$@"
    for target; do :; done
    echo "mounted; unmount it with: fusermount3 -u $target"
    exit
fi

dir=$(mktemp -d)
clean_up() {
    cd /
    if mountpoint -q "$dir/merged"; then fusermount3 -u "$dir/merged" || as_root umount -l "$dir/merged"; fi
    rm -rf "$dir"
}
trap clean_up EXIT
PATH=$(dirname "$plyfs"):$PATH
screen=$(sed -n '/^```console$/,/^```$/ s/^\$ //p' README.md)
cd "$dir"
say "the README's union, in $dir"
bold= plain=
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
while IFS= read -r command <&3; do
    if [[ $command == fusermount3* ]]; then
        say "the layers at the end: the lowers as they were, every change in the upper"
        ls -l lower1 lower1/dir1 lower2 lower2/dir1 lower2/dir4 upper upper/dir1 upper/dir4
        say "unmounting"
    fi
    printf '%s$ %s%s\n' "$bold" "$command" "$plain"
    eval "$command"
    # What is put into a layer shows within a second.
    if [[ $command == *"> upper"* || $command == *"> lower"* ]] && mountpoint -q merged; then sleep 1; fi
done 3<<<"$screen"
say "done; the same on directories of yours: scripts/demo.sh -o lowerdir=A:B,upperdir=U,workdir=W MERGED"
