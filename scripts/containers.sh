#!/usr/bin/env bash
# Times rootless podman with plyfs, fuse-overlayfs and the kernel's own overlay, in turn, and prints medians in seconds.
#
# Usage: scripts/containers.sh [ROUNDS [PLYFS]]     as root: a plain user is made in namespaces that end with the script
#        PROGRAMS="plyfs native" times these only, FILES=9000 makes the large image smaller, TIMES=FILE keeps each single time (ms)
#
# What is timed: starting a container, a build of eight steps, committing a small change on an image of 90,000 files, and
# copying and removing two ninths of them inside a container. Each program has a store of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
export ROUNDS=${1:-3} FILES=${FILES:-90000} PROGRAMS=${PROGRAMS:-plyfs fuse-overlayfs native}
PLYFS=$(realpath "${2:-target/release/plyfs}")
export PLYFS
[ "$(id -u)" = 0 ] || { echo "not root" >&2; exit 1; }
for program in podman crun busybox newuidmap python3; do
    command -v "$program" >/dev/null || { echo "no $program" >&2; exit 1; }
done

# Short: where a path of a socket has more than 108 bytes, podman waits 20 seconds for each container.
dir=$(mktemp -d /tmp/plyfs-c-XXXXXX)
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
export DIR=$dir
mkdir "$dir"/{home,run,tmp,private,context,bb,bb/bin,bb/etc,bb/proc,bb/sys,bb/dev,bb/tmp,bb/usr}
touch "$dir/plyfs"
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
    export HOME=$DIR/home/$1 XDG_RUNTIME_DIR=$DIR/run/$1
    mkdir -p "$HOME/.config/containers" "$XDG_RUNTIME_DIR"
    case $1 in
        native) program= ;;
        plyfs) program=$DIR/plyfs ;;
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
for NAME in $PROGRAMS; do
    store $NAME
    podman import -q "$DIR/bb.tar" bb >/dev/null 2>&1
    printf 'FROM localhost/bb\nADD tree.tar /\n' > Dockerfile
    podman build -q -t big -f Dockerfile "$DIR/big" >/dev/null 2>&1
    podman run --rm big true
done
for round in $(seq "$ROUNDS"); do
    for NAME in $PROGRAMS; do
        store $NAME
        for n in 1 2 3; do timed run podman run --rm bb true; done
        timed build podman build -q --no-cache --isolation=chroot -t built "$DIR/context"
        podman run --name small big sh -c 'echo changed >/tree/new; rm -r /tree/4/d1 2>/dev/null; mkdir /new; chmod 700 /tree/3' 
        timed commit podman commit -q small changed
        podman rm small >/dev/null
        podman rmi changed >/dev/null
        podman run -d --name work big sleep 100000 >/dev/null
        timed copy podman exec work cp -a /tree/1 /tree/2 /root
        timed remove podman exec work rm -rf /root/1 /root/2
        timed hide podman exec work rm -rf /tree/5 /tree/6
        podman rm -f -t0 work >/dev/null
    done
done
END
mkdir "$dir/big"
mv "$dir/tree.tar" "$dir/big/"
mkdir "$dir/bb/root"
tar -C "$dir/bb" --owner=0 --group=0 -cf "$dir/bb.tar" .
chown 4242:4242 "$dir/home" "$dir/run" "$dir/tmp"
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
    setpriv --reuid 4242 --regid 4242 --clear-groups env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin TMPDIR="$DIR/tmp" LANG=C.UTF-8 \
        DIR="$DIR" ROUNDS="$ROUNDS" PROGRAMS="$PROGRAMS" BUILDAH_ISOLATION=chroot CONTAINERS_CONF="$DIR/containers.conf" bash -eu "$DIR/inner.sh"
    true' < /dev/null 1>&2 || { echo "a program failed; see above" >&2; exit 1; }
[ -z "${TIMES:-}" ] || cp "$dir/tmp/times" "$TIMES"
printf 'large image: %s files; load when done: %s\n\n' "$FILES" "$(cut -d' ' -f1 /proc/loadavg)"
python3 - "$dir/tmp/times" <<'END'
import statistics, sys
times = {}
for line in open(sys.argv[1]):
    what, program, ms = line.split()
    times.setdefault(what, {}).setdefault(program, []).append(int(ms) / 1000)
words = {'run': 'podman run true', 'build': 'build of eight steps', 'commit': 'commit of a small change',
         'copy': 'cp -a of two ninths', 'remove': 'rm -rf of the copy', 'hide': 'rm -rf of two ninths'}
programs = [name for name in ('native', 'fuse-overlayfs', 'plyfs') if name in times['run']]
others = [name for name in programs if name != 'plyfs']
print('| seconds, median |', ' | '.join(programs + [f'plyfs / {name}' for name in others]), '|')
print('|---' * (1 + len(programs) + len(others)) + '|')
for what, row in times.items():
    median = {name: statistics.median(row[name]) for name in programs}
    cells = [f'{median[name]:.2f}' for name in programs] + [f"{median['plyfs'] / median[name]:.2f}" for name in others]
    print(f'| {words[what]} |', ' | '.join(cells), '|')
END
