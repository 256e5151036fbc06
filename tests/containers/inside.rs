//! What people do inside containers: databases, version control, Python, archives, many small files, packages.
//!
//! The container's root is a plyfs mount over the machine's own root directory, entered with bubblewrap, so nothing needs to
//! be fetched. What takes minutes runs with `PLYFS_CONTAINERS=all` only, in full size then; without it it is made smaller.

use crate::arena::{Arena, Who};
use crate::need_programs;
use crate::support::skipped;

/// `contained SCRIPT`: runs it in a container whose root is the mount; `$DIR/tmp` is there as it is outside.
const CONTAINER: &str = r#"
cd "$TMPDIR/c"; mkdir -p upper work root out
plyfs -o "lowerdir=lower:/,upperdir=upper,workdir=work" root
contained() {
    bwrap --bind root / --dev /dev --proc /proc --bind out /srv --unshare-user --uid 0 --gid 0 --unshare-ipc --unshare-net \
        --chdir /box env PATH=/usr/bin:/bin HOME=/box bash -euc "$1"
}
over() { umount root; no_servers; }
"#;

fn full() -> bool {
    std::env::var("PLYFS_CONTAINERS").is_ok_and(|value| value == "all")
}

fn inside(prepare: &str, script: &str) -> String {
    let files = if full() { 30_000 } else { 5000 };
    let prepare = format!("FILES={files}; mkdir -p $TMPDIR/c/lower/box; cd $TMPDIR/c/lower/box; {prepare}");
    // Only a server that may mount sees the machine's root directory without what is mounted in it.
    Arena::new().run(Who::Root, &format!("{prepare}\n{CONTAINER}{script}\nover"))
}

/// The same changes of pages and parts of pages, by pwrite and through a mapping, to a file named on the command line.
const PAGES: &str = r#"
import mmap, os, random, sys
file = os.open(sys.argv[1], os.O_RDWR)
size = os.fstat(file).st_size
chance = random.Random(7)
for step in range(6000):
    at = chance.randrange(size // 4096) * 4096 + (chance.randrange(4096) if step % 3 == 0 else 0)
    data = chance.randbytes(min(chance.choice([1, 100, 4096]), size - at))
    os.pwrite(file, data, at)
    if step % 1000 == 999:
        os.fsync(file)
with mmap.mmap(file, size) as window:
    for _ in range(2000):
        at = chance.randrange(size)
        window[at] = chance.randrange(256)
    window.flush()
os.close(file)
"#;

#[test]
fn a_copied_up_database_holds_what_was_written() {
    need_programs!("bwrap", "sqlite3", "python3");
    let prepare = format!(
        r#"sqlite3 db "pragma page_size=4096; create table t(id integer primary key, a text, b int);
            with recursive n(i) as (select 1 union all select i+1 from n where i < 1000000)
            insert into t select i, printf('row %d of the table, and then some text to fill the page: %d', i, i*7), i % 1000 from n;
            create index tb on t(b);"
        [ $(stat -c %s db) -gt 90000000 ]
        cp db "$TMPDIR/db"
        cat >pages.py <<'END'
{PAGES}
END
        python3 -c 'for i in range(400):
            print(f"begin; update t set a = printf(\"changed %d\", id), b = b + {{i}} where id in ({{i * 977 % 900000 + 1}}, {{i * 31337 % 900000 + 1}});")
            print(f"insert into t(a, b) values(\"new {{i}}\", {{i}}); delete from t where id = {{i * 1234 % 900000 + 1}}; commit;")' >changes.sql
        cp pages.py changes.sql "$TMPDIR""#
    );
    let script = r#"
        contained 'sqlite3 db "pragma synchronous=normal" ".read changes.sql"; sqlite3 db "pragma integrity_check"'
        sqlite3 "$TMPDIR/db" "pragma synchronous=off" ".read $TMPDIR/changes.sql" >/dev/null
        cmp root/box/db "$TMPDIR/db" && echo same
        contained 'python3 pages.py db'
        python3 "$TMPDIR/pages.py" "$TMPDIR/db"
        cmp root/box/db "$TMPDIR/db" && echo same
        over
        cmp upper/box/db "$TMPDIR/db" && echo same on disk
        over() { :; }"#;
    assert_eq!(inside(&prepare, script), "ok\nsame\nsame\nsame on disk\n");
}

#[test]
fn git_clones_checks_out_and_collects() {
    need_programs!("bwrap", "git");
    let prepare = r#"export GIT_CONFIG_GLOBAL=$TMPDIR/gitconfig
        git config --global user.email a@b; git config --global user.name c; git config --global init.defaultBranch main
        git init -q repo; cd repo; mkdir -p a/b
        for n in $(seq 300); do echo $n >a/f$n; echo $n >a/b/g$n; done
        git add -A; git commit -qm one; git checkout -q -b side; git mv a/b c; echo x >>a/f1; git rm -q a/f2; git commit -qam two; git checkout -q main; cd .."#;
    let script = r#"
        cp $TMPDIR/gitconfig out/
        contained 'export GIT_CONFIG_GLOBAL=/srv/gitconfig
            cd repo; git status --porcelain; git checkout -q side; git status --porcelain; ls c | wc -l; git gc -q --prune=now
            git fsck --no-dangling; git checkout -q main; ls a/b | wc -l; git status --porcelain
            cd ..; git clone -q repo copy; cd copy; git checkout -q -b more origin/side; git fsck; git status --porcelain
            git log --oneline | wc -l; rm -rf ../repo/a; cd ../repo; git checkout -q .; git status --porcelain; git stash list'"#;
    assert_eq!(inside(prepare, script), "300\n300\n2\n");
}

#[test]
fn python_makes_an_environment_and_compiles() {
    need_programs!("bwrap", "python3");
    let prepare =
        "mkdir pkg; for n in $(seq 200); do echo \"def f(): return $n\" >pkg/m$n.py; done; touch pkg/__init__.py";
    let script = r#"
        contained 'python3 -m venv --without-pip env; env/bin/python -m compileall -q pkg; ls pkg/__pycache__ | wc -l
            env/bin/python -c "import pkg.m7, sys; print(pkg.m7.f(), pkg.m7.__cached__ is not None, sys.prefix)"
            rm -rf env pkg/__pycache__; ls -A'"#;
    assert_eq!(inside(prepare, script), "201\n7 True /box/env\npkg\n");
}

#[test]
fn many_small_files_are_made_packed_unpacked_and_removed() {
    need_programs!("bwrap", "tar", "python3");
    let prepare = r#"cat >tree.py <<'END'
import os, sys
for n in range(int(sys.argv[2])):
    dir = f"{sys.argv[1]}/node_modules/p{n // 60}/lib{n // 10 % 6}"
    os.makedirs(dir, exist_ok=True)
    with open(f"{dir}/f{n}.js", "w") as file:
        file.write(f"module.exports = {n};\n" * (n % 20 + 1))
END
        python3 tree.py low $FILES; (cd low; tar -cf ../low.tar node_modules); find low -type f | wc -l >count"#;
    let script = r#"
        export FILES; digest="find node_modules -type f -print0 | sort -z | xargs -0 cat | sha256sum"
        wanted=$(cd lower/box/low; bash -c "$digest")
        contained "python3 tree.py made $FILES; cd made; $digest" >out/made
        contained "mkdir unpacked; cd unpacked; tar -xf ../low.tar; $digest" >out/unpacked
        contained "cd low; tar -cf /srv/packed.tar node_modules; mkdir ../again; cd ../again; tar -xf /srv/packed.tar; $digest" >out/again
        contained "cp -a low copied; cd copied; $digest" >out/copied
        for name in made unpacked again copied; do [ "$(cat out/$name)" = "$wanted" ] || echo "$name differs"; done
        contained "rm -rf made unpacked again copied low; ls"
        contained "mkdir low; touch low/new; ls low; rm -r low; ls""#;
    assert_eq!(inside(prepare, script), "count\nlow.tar\ntree.py\nnew\ncount\nlow.tar\ntree.py\n");
}

/// A Debian of its own, with packages installed in it, twenty of them and what they need.
#[test]
fn packages_are_installed_as_dpkg_has_noted() {
    if !full() {
        return skipped("takes minutes and a Debian mirror; PLYFS_CONTAINERS=all runs it");
    }
    need_programs!("podman", "crun", "mmdebstrap");
    let arena = Arena::new();
    // In the machine's own namespaces: the arena has no network.
    crate::support::sh(
        arena.root(),
        "mmdebstrap --quiet --variant=apt bookworm debian.tar
         mkdir -p debs/partial
         apt-get -qq update || true
         tar -xOf debian.tar ./var/lib/dpkg/status > status
         apt-get -qq -o Dir::State::status=$PWD/status -o Dir::Cache::archives=$PWD/debs -o APT::Sandbox::User=root \
             --download-only --no-install-recommends -y install git python3 perl vim-tiny sqlite3 less man-db file gcc libc6-dev curl rsync
         rm -rf debs/partial debs/lock; chmod -R a+rX debs",
    );
    let said = arena.run(
        Who::User,
        "store plyfs $DIR/bin/plyfs
         podman import -q $DIR/debian.tar debian >/dev/null 2>&1
         podman run --name installed -v $DIR/debs:/debs:ro debian sh -ec 'export DEBIAN_FRONTEND=noninteractive
             dpkg -i /debs/*.deb >/tmp/log 2>&1 || dpkg --configure -a >>/tmp/log 2>&1 || { tail -20 /tmp/log; exit 1; }
             dpkg -V; dpkg --audit; apt-get check -qq; git --version | cut -c1-3; dpkg -l | grep -c ^ii'
         podman commit -q installed committed >/dev/null
         podman run --rm committed sh -c 'dpkg -V; dpkg -l | grep -c ^ii; echo \"int main(){return 7;}\" >/t.c; gcc /t.c -o /t; /t || echo $?
             apt-get purge -y -qq gcc git >/dev/null 2>&1; dpkg -V; apt-get autoremove -y -qq >/dev/null 2>&1; dpkg -V; echo clean'
         no_servers",
    );
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 5, "{said}");
    assert_eq!((lines[0], lines[1], lines[3], lines[4]), ("git", lines[2], "7", "clean"), "{said}");
}
