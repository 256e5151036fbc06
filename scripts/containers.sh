#!/usr/bin/env bash
# Times rootless podman with plyfs, fuse-overlayfs and the kernel's own overlay, in turn, and prints medians in seconds.
#
# Usage: scripts/containers.sh [ROUNDS [PLYFS [FUSE_OVERLAYFS_2]]]
#                       as root: a plain user is made in namespaces that end with the script
#   PROGRAMS="plyfs native"   times these only      FILES=9000   makes the large image smaller
#   UNDER="COMMAND..."        runs each program's part of a round under it: what waits for an idle machine, say
#   FIRST="COMMAND..."        runs each program's making of the images under it, which takes a minute or three
#   TIMES=FILE                keeps each single time (ms)
#
# What is timed: starting a container, a build of eight steps with a layer for each and with one for all (with a mount program
# podman waits after each layer until the second is full), committing a small change on an image of 90,000 files, and in
# a container of that image: copying a /usr and removing the copy, hiding two ninths of the files, making and removing a
# tree of 30,000 small files as npm does (a third of FILES), and git if the machine has it. Each program has its own store.
set -euo pipefail
cd "$(dirname "$0")/.."
export ROUNDS=${1:-3} FILES=${FILES:-90000}
PLYFS=$(realpath "${2:-target/release/plyfs}")
NEWER=${3:+$(realpath "$3")}
export PROGRAMS=${PROGRAMS:-native fuse-overlayfs ${NEWER:+fuse-overlayfs-2} plyfs}
export PLYFS NEWER
[ "$(id -u)" = 0 ] || { echo "not root" >&2; exit 1; }
for program in podman crun busybox newuidmap python3; do
    command -v "$program" >/dev/null || { echo "no $program" >&2; exit 1; }
done

# Short: where a path of a socket has more than 108 bytes, podman waits 20 seconds for each container.
dir=$(mktemp -d /tmp/plyfs-c-XXXXXX)
export UNDER=${UNDER:-} FIRST=${FIRST:-}
# Where podman keeps things of a user, whatever it is told; what was there before is somebody else's.
podmans=()
for theirs in /tmp/containers-user-4242 /tmp/podman-run-4242; do [ -e "$theirs" ] || podmans+=("$theirs"); done
clean() {
    # By its number, and then all in its namespace are gone: nobody makes files while they are removed.
    if [ -n "${inside:-}" ]; then
        kill -KILL "$inside" 2>/dev/null || true
        wait "$inside" 2>/dev/null || true
    fi
    for _ in 1 2 3 4 5; do rm -rf "$dir" "${podmans[@]}" && return; sleep 1; done
}
trap clean EXIT
trap 'exit 1' HUP INT TERM
chmod 755 "$dir"
export DIR=$dir
mkdir "$dir"/{home,run,tmp,private,context,bb,bb/bin,bb/etc,bb/proc,bb/sys,bb/dev,bb/tmp,bb/usr,bb/root}
touch "$dir/plyfs" "$dir/newer"
cp -L "$(command -v busybox)" "$dir/bb/bin/busybox"
for applet in $(busybox --list); do [ -e "$dir/bb/bin/$applet" ] || ln -s busybox "$dir/bb/bin/$applet"; done
echo root:x:0:0::/root:/bin/sh > "$dir/bb/etc/passwd"
tar -C "$dir/bb" --owner=0 --group=0 -cf "$dir/bb.tar" .
python3 - "$dir" "$FILES" <<'END'
import io, sys, tarfile
with tarfile.open(sys.argv[1] + '/tree.tar', 'w') as tar:
    files = int(sys.argv[2])
    for n in range(files):
        entry = tarfile.TarInfo(f'tree/{n * 9 // files}/d{n // 100 % 100}/f{n}')
        data = f'file {n}\n'.encode() * (n % 40 + 1)
        entry.size, entry.mtime, entry.mode = len(data), 1500000000, 0o644
        tar.addfile(entry, io.BytesIO(data))
END
cp "$dir/bb/bin/busybox" "$dir/context/data"
cat > "$dir/context/Dockerfile" <<'END'
FROM localhost/bb
RUN mkdir -p /srv/a/b /opt/old/deep && echo one >/srv/a/one && echo two >/srv/a/b/two && echo keep >/opt/old/deep/f
COPY data /tmp/data
RUN for n in $(seq 500); do mkdir -p /usr/share/p$((n / 50)); echo $n >/usr/share/p$((n / 50))/f$n; done && rm /tmp/data
RUN rm -r /opt/old /srv/a/one && rm /bin/yes
RUN mv /srv/a/b/two /srv/a/b/renamed && chmod 4750 /bin/busybox && chown 12:34 /etc/passwd && chmod 1777 /srv
RUN ln /etc/passwd /etc/passwd.hard && ln /srv/a/b/renamed /srv/hard
RUN rm -r /srv/a && mkdir /srv/a && echo new >/srv/a/new && rm -r /usr/share/p1 && echo file >/usr/share/p1
RUN echo more >> /etc/passwd && touch -d @1000000000 /etc/passwd /srv
END
cat > "$dir/containers.conf" <<'END'
[containers]
cgroups = "disabled"
netns = "none"
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
END
cat > "$dir/inner.sh" <<'END'
store() {
    # The length of the name tells them apart: a path of a socket in there must stay below 108 bytes.
    export HOME=$DIR/home/$1 XDG_RUNTIME_DIR=$DIR/run/${#1}
    mkdir -p "$HOME/.config/containers" "$XDG_RUNTIME_DIR"
    case $1 in
        native) program= ;;
        plyfs) program=$DIR/plyfs ;;
        fuse-overlayfs-2) program=$DIR/newer ;;
        *) program=$(command -v "$1") ;;
    esac
    printf '[storage]\ndriver = "overlay"\n' > "$HOME/.config/containers/storage.conf"
    [ -z "$program" ] || printf 'options.overlay.mount_program = "%s"\n' "$program" >> "$HOME/.config/containers/storage.conf"
    cd "$HOME"
}
timed() { # WHAT COMMAND...
    local what=$1 start
    shift
    start=$EPOCHREALTIME
    "$@" >"$DIR/tmp/said" 2>&1 || { cat "$DIR/tmp/said" >&2; exit 1; }
    echo "$what $NAME $(( (${EPOCHREALTIME/./} - ${start/./}) / 1000 ))" >> "$DIR/tmp/times"
    tail -n 1 "$DIR/tmp/times" >&2
}
prepare() {
    podman import -q "$DIR/bb.tar" bb >/dev/null 2>&1
    printf 'FROM localhost/bb\nADD tree.tar usr.tar /\n' > Dockerfile
    podman build -q -t big -f Dockerfile "$DIR/big" >/dev/null 2>&1
    podman run --rm big true
}
measure() {
    for n in 1 2 3 4 5; do timed run podman run --rm bb true; done
    timed build podman build -q --no-cache --isolation=chroot -t built "$DIR/context"
    podman rmi built >/dev/null
    timed once podman build -q --no-cache --layers=false --isolation=chroot -t built "$DIR/context"
    podman rmi built >/dev/null
    podman run --name small big sh -c 'echo changed >/tree/new; rm -r /tree/4/d1 2>/dev/null; mkdir /new; chmod 700 /tree/3'
    timed commit podman commit -q small changed
    podman rm small >/dev/null
    podman rmi changed >/dev/null
    podman run -d --name work big sleep 100000 >/dev/null
    timed copy podman exec work cp -a /usr /root/usr
    timed remove podman exec work rm -rf /root/usr
    timed hide podman exec work rm -rf /tree/5 /tree/6
    timed npm podman exec work sh -c "for p in \$(seq $((FILES / 180))); do mkdir -p /srv/node_modules/p\$p/lib
        for n in \$(seq 60); do echo module \$p.\$n >/srv/node_modules/p\$p/lib/f\$n.js; done; done"
    timed unnpm podman exec work rm -rf /srv/node_modules
    if [ -e "$DIR/with-git" ]; then
        timed git podman exec -e HOME=/root -e GIT_AUTHOR_NAME=a -e GIT_AUTHOR_EMAIL=b -e GIT_COMMITTER_NAME=a \
            -e GIT_COMMITTER_EMAIL=b work sh -ec 'cp -a /tree/7 /srv/repo; cd /srv/repo; git init -q; git add -A
                git commit -qm one; git checkout -q -b side; rm -r "$(ls -d d* | head -n 1)"; git commit -qam two
                git checkout -q -; git status --porcelain'
    fi
    podman rm -f -t0 work >/dev/null
}
for NAME in $PROGRAMS; do
    store $NAME
    "$1"
done
END
mkdir "$dir/big"
mv "$dir/tree.tar" "$dir/big/"
# A /usr of some thousand files: headers of no great size, and git with all that it needs.
find /usr/include -type f -size -64k | sort > "$dir/parts"
if command -v git >/dev/null; then
    touch "$dir/with-git"
    git=$(realpath "$(command -v git)")
    { echo "$git"; ldd "$git" | grep -o '/[^ ]*'; } >> "$dir/parts"
fi
tar -C / -chPf "$dir/big/usr.tar" --owner=0 --group=0 -T "$dir/parts"
chown 4242:4242 "$dir/home" "$dir/run" "$dir/tmp"
cat > "$dir/as-user" <<'END'
setpriv --reuid 4242 --regid 4242 --clear-groups env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin TMPDIR="$DIR/tmp" LANG=C.UTF-8 \
    DIR="$DIR" FILES="$FILES" PROGRAMS="$PROGRAMS" BUILDAH_ISOLATION=chroot CONTAINERS_CONF="$DIR/containers.conf" \
    bash -eu "$DIR/inner.sh" "$1"
END
unshare --mount --propagation private --pid --fork --kill-child --mount-proc --net bash -euc '
    mount --make-rshared /
    ip link set lo up 2>/dev/null || true
    mount -t tmpfs none "$DIR/private"
    mkdir "$DIR/private/upper" "$DIR/private/work"
    mknod -m 666 "$DIR/private/fuse" c 10 229
    mount -t overlay none /etc -o "lowerdir=/etc,upperdir=$DIR/private/upper,workdir=$DIR/private/work"
    echo "plyuser:x:4242:4242::$DIR/home:/bin/bash" >> /etc/passwd
    echo "plyuser:x:4242:" >> /etc/group
    echo plyuser:200000:65536 | tee /etc/subuid > /etc/subgid
    umount -l /sys/fs/cgroup/unified 2>/dev/null || true
    mount -t tmpfs -o mode=1777 none /dev/shm
    mount --bind "$DIR/private/fuse" /dev/fuse
    mount --bind "$PLYFS" "$DIR/plyfs"
    [ -z "$NEWER" ] || mount --bind "$NEWER" "$DIR/newer"
    # Unquoted: they may have arguments.
    for program in $PROGRAMS; do PROGRAMS=$program $FIRST bash "$DIR/as-user" prepare; done
    for round in $(seq "$ROUNDS"); do
        for program in $PROGRAMS; do PROGRAMS=$program $UNDER bash "$DIR/as-user" measure; done
    done' < /dev/null 1>&2 &
inside=$!
wait "$inside" && failed= || failed=yes
inside=
[ -z "$failed" ] || { echo "a program failed; see above" >&2; exit 1; }
[ -z "${TIMES:-}" ] || cp "$dir/tmp/times" "$TIMES"
printf 'large image: %s files; load when done: %s\n\n' "$FILES" "$(cut -d' ' -f1 /proc/loadavg)"
python3 - "$dir/tmp/times" <<'END'
import statistics, sys
times = {}
for line in open(sys.argv[1]):
    what, program, ms = line.split()
    times.setdefault(what, {}).setdefault(program, []).append(int(ms) / 1000)
words = {'run': 'podman run true', 'build': 'build of eight steps', 'once': 'the same as one layer',
         'commit': 'commit of a small change', 'copy': 'cp -a /usr', 'remove': 'rm -rf of the copy', 'hide': 'rm -rf of two ninths of the image', 'npm': 'small files made',
         'unnpm': 'small files removed', 'git': 'git add, commit, checkout'}
programs = [name for name in ('native', 'fuse-overlayfs', 'fuse-overlayfs-2', 'plyfs') if name in times['run']]
others = [name for name in programs if name != 'plyfs' and 'plyfs' in programs]
print('| seconds, median |', ' | '.join(programs + [f'plyfs / {name}' for name in others]), '|')
print('|---' * (1 + len(programs) + len(others)) + '|')
for what, row in times.items():
    median = {name: statistics.median(row[name]) for name in programs}
    cells = [f'{median[name]:.2f}' for name in programs] + [f"{median['plyfs'] / median[name]:.2f}" for name in others]
    print(f'| {words[what]} |', ' | '.join(cells), '|')
END
