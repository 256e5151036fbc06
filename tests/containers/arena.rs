//! A machine within the machine: a plain user with subordinate ids, a device and cgroups as container engines want them,
//! and stores of their own, all of it in namespaces that end with the test.
//!
//! A script runs in private mount, process and network namespaces: what it has started, mounted or written to `/etc` is
//! gone when its first process ends. Only its directory stays until the arena is dropped.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::support::{PLYFS, have, is_root, sh, text};

/// The user of rootless engines: not one of the machine's.
const USER: u32 = 4242;

/// Who runs a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A plain user with 65536 subordinate ids.
    User,
    /// A plain user without any.
    UserWithoutSubids,
    Root,
}

/// What is missing to run a script with these programs, if anything.
pub fn missing(programs: &[&str]) -> Option<String> {
    if !is_root() {
        return Some("not root, so there is no other user to become".into());
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("no /dev/fuse".into());
    }
    let always = ["unshare", "setpriv", "busybox", "newuidmap", "fusermount3", "ip"];
    programs.iter().chain(&always).find(|program| !have(program)).map(|program| format!("no {program}"))
}

/// Ends the test, visibly, unless these programs are there.
#[macro_export]
macro_rules! need_programs {
    ($($program:expr),*) => {
        if let Some(why) = $crate::arena::missing(&[$($program),*]) {
            $crate::support::skipped(&why);
            return;
        }
    };
}

/// The outer half, run as root in the new namespaces: `$DIR` the arena, `$SCRIPT` the inner half.
const ENTER: &str = r#"
touch "$DIR/bin/plyfs"
mount --bind "$PLYFS" "$DIR/bin/plyfs"
# A /tmp of its own, with nothing but the arena: engines make directories there from processes to which they hand no TMPDIR on.
mount --rbind "$DIR" /mnt
mount -t tmpfs -o mode=1777 none /tmp
mkdir "$DIR"
mount --move /mnt "$DIR"
cd "$DIR"
mount --make-rshared /
ip link set lo up 2>/dev/null || true
mount -t tmpfs none "$DIR/private"
mkdir "$DIR/private/upper" "$DIR/private/work"
mknod -m 666 "$DIR/private/fuse" c 10 229
mount -t overlay none /etc -o "lowerdir=/etc,upperdir=$DIR/private/upper,workdir=$DIR/private/work"
echo "plyuser:x:4242:4242::$DIR/home:/bin/bash" >> /etc/passwd
echo "plyuser:x:4242:" >> /etc/group
for file in /etc/subuid /etc/subgid; do
    if [ "$SUBIDS" = 0 ]; then : > $file; else echo "plyuser:200000:$SUBIDS" > $file; fi
done
# A machine that has both hierarchies is refused by crun. With one of them it has no rights to anyway it gets on.
umount -l /sys/fs/cgroup/unified 2>/dev/null || true
mount -t tmpfs -o mode=1777 none /dev/shm
mount --bind "$DIR/private/fuse" /dev/fuse
cd "$DIR/home"
become=
[ "$WHO" = root ] || become="setpriv --reuid 4242 --regid 4242 --clear-groups"
# Not exec: the first process of the namespace has to wait for those who lose their parents.
$become env -i "PATH=$DIR/bin:/usr/bin:/bin:/usr/sbin:/sbin" "HOME=$DIR/home" "XDG_RUNTIME_DIR=$DIR/run" \
    "TMPDIR=$DIR/tmp" LANG=C.UTF-8 "DIR=$DIR" BUILDAH_ISOLATION=chroot "CONTAINERS_CONF=$DIR/containers.conf" \
    bash -euc "$SCRIPT"
"#;

/// What every script can use.
const PRELUDE: &str = r#"
# store NAME PROGRAM: engines use a store of this name from now on, with this mount program, or with `native` overlay.
store() {
    export HOME=$DIR/home/$1 XDG_RUNTIME_DIR=$DIR/run/$1
    mkdir -p "$HOME/.config/containers" "$XDG_RUNTIME_DIR"
    chmod 700 "$XDG_RUNTIME_DIR"
    export CONTAINERS_STORAGE_CONF=
    unset CONTAINERS_STORAGE_CONF
    local conf=$HOME/.config/containers/storage.conf
    printf '[storage]\ndriver = "overlay"\n' > "$conf"
    if [ "$(id -u)" = 0 ]; then
        printf 'graphroot = "%s"\nrunroot = "%s"\n' "$HOME/root" "$XDG_RUNTIME_DIR" >> "$conf"
        export CONTAINERS_STORAGE_CONF=$conf
    fi
    [ "$2" = native ] || printf '[storage.options.overlay]\nmount_program = "%s"\n' "$2" >> "$conf"
    cd "$HOME"
}
# How many servers run; those that have ended and wait to be noticed do not count.
servers() { ps -eo stat=,comm= | grep -v '^Z' | grep -c ' plyfs' || true; }
no_servers() {
    for _ in $(seq 100); do [ "$(servers)" != 0 ] || return 0; sleep 0.05; done
    ps -eo pid,stat,args >&2
    return 1
}
"#;

const CONTAINERS_CONF: &str = r#"
[containers]
cgroups = "disabled"
netns = "none"
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
"#;

/// The directory of a test and what it starts from: `bb.tar`, a root file system of busybox.
pub struct Arena {
    dir: TempDir,
}

impl Arena {
    pub fn new() -> Arena {
        // Not below TMPDIR: the path of a socket has 108 bytes, and where podman's monitor gets a longer one, it leaves each
        // container to a timeout of 20 seconds. `scripts/test.sh` looks for what is left under this name, too.
        let run = std::env::var("PLYFS_TEST_RUN").unwrap_or_default();
        let dir = tempfile::Builder::new().prefix(&format!("plyfs-s{run}-")).tempdir_in("/tmp").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let arena = Arena { dir };
        for name in ["home", "run", "tmp", "bin", "private", "bb"] {
            fs::create_dir(arena.path(name)).unwrap();
        }
        std::os::unix::fs::symlink("plyfs", arena.path("bin/fuse-overlayfs")).unwrap();
        fs::write(arena.path("containers.conf"), CONTAINERS_CONF).unwrap();
        fs::write(arena.path("layers.py"), include_str!("layers.py")).unwrap();
        sh(
            arena.root(),
            "mkdir -p bb/bin bb/tmp bb/etc bb/usr bb/root bb/proc bb/sys bb/dev bb/run
             cp -L \"$(command -v busybox)\" bb/bin/busybox
             for applet in $(busybox --list); do [ -e bb/bin/$applet ] || ln -s busybox bb/bin/$applet; done
             echo root:x:0:0::/root:/bin/sh > bb/etc/passwd
             chmod 1777 bb/tmp
             find bb -exec touch -h -d @1500000000 {} +
             tar -C bb --owner=0 --group=0 -cf bb.tar .",
        );
        for name in ["home", "run", "tmp"] {
            chown(arena.path(name), Some(USER), Some(USER)).unwrap();
        }
        arena
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Writes a file that scripts can read, with the directories above it.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        crate::support::write(self.path(name), content);
    }

    /// Runs a script; its status is the caller's to judge.
    pub fn output(&self, who: Who, script: &str) -> Output {
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--net",
        ]);
        command.args(["bash", "-euc", ENTER]).current_dir(self.root());
        command.env("DIR", self.root()).env("PLYFS", PLYFS).env("SCRIPT", format!("{PRELUDE}{script}\n"));
        command.env("WHO", if who == Who::Root { "root" } else { "user" });
        command.env("SUBIDS", if who == Who::UserWithoutSubids { "0" } else { "65536" });
        if who == Who::Root {
            chown(self.path("home"), Some(0), Some(0)).unwrap();
        }
        command.output().unwrap()
    }

    /// Runs a script that must succeed, and returns what it printed to standard output.
    pub fn run(&self, who: Who, script: &str) -> String {
        let output = self.output(who, script);
        assert!(output.status.success(), "{script}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}
