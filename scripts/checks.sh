#!/usr/bin/env bash
# What takes longer than continuous integration has: orders of the threads that a model makes up (shuttle); and what only a
# nightly toolchain can check: undefined behaviour (Miri), data races (ThreadSanitizer), and input that fuzzers make up.
#
#   scripts/checks.sh [SECONDS] [model] [miri] [tsan] [fuzz]      each for so long (60), all four when none is named
#
# Everything is built into target/checks. What a fuzzer finds lies in fuzz/artifacts; `cargo +nightly fuzz run TARGET FILE` in the
# package's directory repeats it.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

seconds=60
case ${1:-} in [0-9]*) seconds=$1; shift ;; esac
[ $# -gt 0 ] || set -- model miri tsan fuzz
checks=$PWD/target/checks
failed=0

component() { [ -d "$(rustc +nightly --print sysroot 2>/dev/null)/$1" ]; }
skip() { echo "skipped: $1: $2"; }

# for_a_while COMMAND...: whoever has not ended in time has found nothing so far.
for_a_while() {
    local status=0
    timeout --kill-after=10 "$seconds" "$@" || status=$?
    case $status in
    0) ;;
    124) echo "cut off after $seconds s, with nothing found" ;;
    *) failed=1 ;;
    esac
}

model() {
    say "the threads' turns, in a million orders of each case"
    cargo test --quiet --release --test model --no-run
    PLYFS_MODEL=1000000 for_a_while cargo test --quiet --release --test model
}

miri() {
    cargo +nightly miri --version >/dev/null 2>&1 || { skip miri "no nightly toolchain with the component miri"; return; }
    say "Miri"
    export MIRIFLAGS=-Zmiri-disable-isolation
    cargo +nightly miri test --quiet --target-dir "$checks/miri" --lib --no-run
    # All but what makes a system call that Miri does not know, or has no whole answer to.
    local unknown=(fuse::boundary fuse::data overlay::readdir sys::errand sys::journal sys::pipe sys::process::tests::a_descriptor_crosses
        sys::process::tests::mounts_are sys::cpu::tests::a_thread_is_seen sys::cpu::tests::a_thread_that_gives_way)
    for_a_while cargo +nightly miri test --quiet --target-dir "$checks/miri" --lib -- "${unknown[@]/#/--skip=}"
}

tsan() {
    component lib/rustlib/src/rust/library || { skip tsan "no nightly toolchain with the component rust-src"; return; }
    say "ThreadSanitizer"
    local target build
    target=$(rustc +nightly -vV | sed -n 's/^host: //p')
    build=(cargo +nightly test --quiet -Zbuild-std --target "$target" --target-dir "$checks/tsan")
    export RUSTFLAGS=-Zsanitizer=thread
    "${build[@]}" --lib --test union --test load --no-run
    for_a_while "${build[@]}" --lib
    for_a_while "${build[@]}" --test union -- concurrency storms
    # The server is built so, too: eight processes at one mount. Not cut off, for that would leave the mount behind.
    PLYFS_LOAD=$seconds "${build[@]}" --test load || failed=1
    unset RUSTFLAGS
}

fuzz() {
    cargo +nightly fuzz --version >/dev/null 2>&1 || { skip fuzz "no nightly toolchain with cargo-fuzz"; return; }
    local target
    # Layers are made for each input: in memory, if that is possible.
    [ ! -w /dev/shm ] || export TMPDIR=/dev/shm
    for target in options entries marks requests; do
        say "fuzzing $target"
        cargo +nightly fuzz run --target-dir "$checks/fuzz" "$target" -- \
            -max_total_time="$seconds" -timeout=20 -len_control=0 -max_len=4096 -rss_limit_mb=4096 \
            -verbosity=0 -print_final_stats=1 || failed=1
    done
}

for check in "$@"; do
    case $check in
    model | miri | tsan | fuzz) "$check" ;;
    *) echo "no such check: $check" >&2; exit 2 ;;
    esac
done
exit "$failed"
