//! Every operation, cut at every system call: the call fails, or the process dies there.
//!
//! What then shows, at once and after another mount, is the tree from before or the tree from after, never anything in
//! between. An operation that failed has changed nothing that shows, and the next try works. `cases` has the operations.
//!
//! Each point meets a death and an error, the kinds of which take turns; with `PLYFS_FAULTS=all` it meets all six.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use plyfs::errno::{Errno, Result};
use plyfs::overlay::{Dirent, Entry, NodeId, Room, SetAttr};
use plyfs::sys::faults::{self, Fault};
use plyfs::sys::{self, Kind, SetTime};

use crate::cases::{self, Between, Case};
use crate::fixture::{Layers, Union};
use crate::need;
use crate::vfs::{NOTHING, caller};
use crate::{cases_export, cases_options};

/// What a failing call may say.
const ERRORS: [Errno; 6] = [Errno::EIO, Errno::ENOSPC, Errno::EDQUOT, Errno::EACCES, Errno::EMFILE, Errno::ENOMEM];

/// Times before this are those of layers, and have to be kept; later ones are of the test's own run.
const LONG_AGO: i64 = 1_300_000_000;

/// All that shows of an object.
#[derive(Clone, Debug, PartialEq)]
struct Shown {
    mode: u32,
    owner: (u32, u32),
    rdev: u64,
    nlink: u32,
    mtime: Option<i64>,
    content: String,
    xattrs: BTreeMap<String, Vec<u8>>,
}

type Tree = BTreeMap<String, Shown>;

/// Every case there is, always in this order.
fn all() -> impl Iterator<Item = &'static Case> {
    cases::CASES.iter().chain(with_options())
}

/// Those with options that change the steps.
fn with_options() -> impl Iterator<Item = &'static Case> {
    cases_options::CASES.iter().chain(cases_export::CASES)
}

fn add(u: &Union, dir: NodeId, prefix: &str, tree: &mut Tree) {
    let mut names = Vec::new();
    let each = &mut |entry: &Dirent<'_>| {
        names.push(entry.name.to_owned());
        Room::Taken
    };
    u.overlay.readdir(dir, 0, each).unwrap();
    for name in names.into_iter().skip(2) {
        let path = format!("{prefix}{}", name.display());
        let Entry { id, attr: stat, .. } = u.lookup(dir, &name).unwrap();
        let content = match stat.kind() {
            Kind::File => u.read_node(id).unwrap(),
            Kind::Symlink => u.overlay.readlink(id).unwrap().into_string().unwrap(),
            _ => String::new(),
        };
        let list = u.overlay.listxattr(&caller(), id).unwrap();
        let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let xattrs = names.map(|name| {
            let value = u.overlay.getxattr(id, OsStr::from_bytes(name)).unwrap();
            (String::from_utf8_lossy(name).into_owned(), value)
        });
        let is_dir = stat.is_dir();
        let shown = Shown {
            mode: stat.mode,
            owner: (stat.uid, stat.gid),
            rdev: stat.rdev,
            // Of several links of a lower file each is copied up alone, whatever comes of the operation.
            nlink: if is_dir || stat.nlink > 1 && path.starts_with('h') { 1 } else { stat.nlink },
            mtime: (!is_dir && stat.mtime.sec < LONG_AGO).then_some(stat.mtime.sec),
            content,
            xattrs: xattrs.collect(),
        };
        tree.insert(path.clone(), shown);
        if is_dir {
            add(u, id, &format!("{path}/"), tree);
        }
    }
}

fn tree(u: &Union) -> Tree {
    let mut found = Tree::new();
    add(u, u.overlay.root(), "", &mut found);
    found
}

/// A tree as it has to be after a death. In an index a server without privilege does not find the lower file by its handle: if
/// it dies between a link and the count of it, one name too many is counted from then on.
fn counted(u: &Union, tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    if !crate::support::is_root() && u.layers.config.features.index {
        tree.values_mut().for_each(|shown| shown.nlink = 1);
    }
    tree
}

/// A tree in which nobody asks for the times.
fn untimed(tree: &Tree) -> Tree {
    tree.iter().map(|(path, shown)| (path.clone(), Shown { mtime: None, ..shown.clone() })).collect()
}

/// What differs, to be read.
fn difference(one: &Tree, other: &Tree) -> String {
    let paths: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let differing = paths.into_iter().filter(|path| one.get(*path) != other.get(*path));
    differing.map(|path| format!("{path}: {:?}\n    and {:?}\n", one.get(path), other.get(path))).collect()
}

fn open(case: &Case) -> Union {
    // A request leaves the thread with the umask of its caller, and the layers are made by the same thread.
    sys::set_umask(0o022).unwrap();
    faults::deny(case.without);
    let u = (case.layers)().open();
    if !case.parents && u.at("d/e").is_ok() {
        u.set("d/e", &SetAttr { atime: SetTime::Now, ..NOTHING }).unwrap();
    }
    u
}

/// Runs the operation with a fault at one of its calls; 0 is none. Returns the calls.
fn cut(case: &Case, u: &Union, at: usize, fault: Fault) -> (Result<()>, Vec<&'static str>) {
    let result = (case.operation)(u, &|| faults::arm(at, fault));
    (result, faults::disarm())
}

fn again(case: &Case, u: &Union) -> Result<()> {
    (case.operation)(u, &|| ())
}

/// The trees before and after, and the calls in between.
fn whole(case: &Case) -> (Tree, Tree, Vec<&'static str>) {
    let u = open(case);
    let before = tree(&u);
    let (result, calls) = cut(case, &u, 0, Fault::Frozen);
    assert_eq!(result, Ok(()), "{}", case.name);
    let after = tree(&u);
    assert!(before != after || case.invisible, "{}: nothing changed", case.name);
    let u = u.close().open();
    assert_eq!(difference(&tree(&u), &after), "", "{}: after another mount", case.name);
    u.close();
    (before, after, calls)
}

/// A call that fails: the operation fails and has changed nothing, or it does without.
fn fail(case: &Case, at: usize, errno: Errno, before: &Tree, after: &Tree) -> bool {
    let u = open(case);
    let (result, calls) = cut(case, &u, at, Fault::Fails(errno));
    let place = || format!("{}: {errno:?} at call {at}, {:?}, gave {result:?}", case.name, calls.get(at - 1));
    let live = tree(&u);
    if result.is_ok() {
        assert_eq!(difference(&live, after), "", "{}: done", place());
    } else {
        let first = difference(&live, before);
        assert!(first.is_empty() || case.between == Between::Names, "{}: not done: {first}", place());
        assert_eq!(again(case, &u), Ok(()), "{}: and then again", place());
        assert_eq!(difference(&tree(&u), after), "", "{}: and then again", place());
    }
    let u = u.close().open();
    assert_eq!(difference(&tree(&u), after), "", "{}: after another mount", place());
    u.close();
    result.is_err()
}

/// A death: the next mount shows one of the two trees, and goes on from there.
fn die(case: &Case, at: usize, before: &Tree, after: &Tree) -> bool {
    let u = open(case);
    let (_, calls) = cut(case, &u, at, Fault::Frozen);
    let u = u.close().open();
    resume(case, u, (at, calls.get(at - 1).copied()), before, after)
}

/// Looks at what a death has left. Returns whether it was the tree from before.
fn resume(case: &Case, u: Union, (at, call): (usize, Option<&str>), before: &Tree, after: &Tree) -> bool {
    let place = || format!("{}: dead at call {at}, {call:?}", case.name);
    let [found, before, after] = &[&tree(&u), before, after].map(|tree| counted(&u, tree));
    let only_times = || case.between == Between::Times && untimed(found) == untimed(before);
    let undone = before != after && (found == before || (found != after && only_times()));
    if found != after && !undone {
        let between = match case.between {
            Between::Nothing | Between::Times => false,
            Between::Names => found.keys().eq(before.keys()) || found.keys().eq(after.keys()),
            Between::More => {
                [before, after].iter().any(|tree| tree.iter().all(|(path, it)| found.get(path) == Some(it)))
            }
        };
        let (from_before, from_after) = (difference(found, before), difference(found, after));
        assert!(between, "{}:\nfrom before:\n{from_before}from after:\n{from_after}", place());
    }
    assert_eq!(crate::fixture::description(&u.work_path()), [""; 0], "{}: left in the work directory", place());
    assert_eq!(temporary_entries(&u), [""; 0], "{}: left in the index", place());
    if undone {
        assert_eq!(again(case, &u), Ok(()), "{}: and then again", place());
        assert_eq!(difference(&counted(&u, &tree(&u)), after), "", "{}: and then again", place());
    }
    u.close();
    undone
}

/// The entries of the index that have not got their names.
fn temporary_entries(u: &Union) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(u.layers.root().join("work/index")) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('#')).collect()
}

/// Makes each call of one name fail in one case. There has to be one.
pub fn at_each(case: &str, call: &str, errno: Errno) {
    let case = all().find(|known| known.name == case).unwrap();
    let (before, after, calls) = whole(case);
    let mut met = calls.iter().zip(1..).filter(|(name, _)| **name == call).peekable();
    assert!(met.peek().is_some(), "{} makes no call of {call}: {calls:?}", case.name);
    for (_, at) in met {
        fail(case, at, errno, &before, &after);
    }
}

/// The union of a case in which every call after the first of one name has failed, and none fails any more.
pub fn frozen_after(case: &str, call: &str) -> Union {
    let case = all().find(|known| known.name == case).unwrap();
    let (_, _, calls) = whole(case);
    let at = calls.iter().position(|name| *name == call).unwrap() + 2;
    let u = open(case);
    let (result, _) = cut(case, &u, at, Fault::Frozen);
    assert_eq!(result, Err(Errno::EIO));
    u
}

/// Cuts one case everywhere. Returns how many points there were, and how many faults.
fn everywhere(case: &Case) -> (usize, usize) {
    let all = std::env::var("PLYFS_FAULTS").is_ok_and(|value| value == "all");
    let (before, after, calls) = whole(case);
    let mut faults = 0;
    let mut wrong = 0;
    let mut attempt = |attempt: &dyn Fn() -> bool| {
        faults += 1;
        // The panic has said what is wrong; the other points are wanted, too.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(attempt)).is_err() {
            wrong += 1;
            faults::disarm();
        }
    };
    let with_options = with_options().any(|known| known.name == case.name);
    for at in 1..=calls.len() {
        // Most points of these are met without options, too: deaths and errors take turns.
        let turn = if with_options { at / 2 } else { at };
        let (may_die, may_fail) = (all || !with_options || at % 2 == 0, all || !with_options || at % 2 == 1);
        if may_die {
            attempt(&|| die(case, at, &before, &after));
        }
        for (n, errno) in ERRORS.iter().enumerate().filter(|_| may_fail) {
            if all || (turn + n).is_multiple_of(ERRORS.len()) {
                attempt(&|| fail(case, at, *errno, &before, &after));
            }
        }
    }
    faults::deny(None);
    assert_eq!(wrong, 0, "{}: faults that left something in between", case.name);
    (calls.len(), faults)
}

/// Cuts a part of the cases: one test each, so that they share the machine's processors.
fn part(number: usize) {
    let (mut points, mut faults) = (0, 0);
    let mut wrong = Vec::new();
    let only_with_options = std::env::var_os(WITH_OPTIONS).is_some();
    for case in all().skip(number).step_by(PARTS) {
        let with_options = || with_options().any(|known| known.name == case.name);
        if only_with_options && !with_options() {
            continue;
        }
        if case.root_only && !crate::support::is_root() {
            continue;
        }
        let Ok((more_points, more_faults)) = std::panic::catch_unwind(|| everywhere(case)) else {
            wrong.push(case.name);
            continue;
        };
        println!("{more_points:>4} points {more_faults:>5} faults  {}", case.name);
        (points, faults) = (points + more_points, faults + more_faults);
    }
    println!("{points} fault points, {faults} faults");
    assert_eq!(wrong, [""; 0]);
}

const PARTS: usize = 4;

/// The variable that makes a run of this program leave the cases without options out.
const WITH_OPTIONS: &str = "PLYFS_FAULTS_WITH_OPTIONS";

/// Marks are in the namespace that everybody may write to, owners are not given away, and handles are not opened.
#[test]
fn operations_with_options_are_done_or_not_done_by_a_user_without_rights() {
    need!(crate::support::is_root(), "not root, so there is no other user to become");
    need!(crate::support::have("setpriv"), "no setpriv (util-linux)");
    let dir = tempfile::Builder::new().prefix("plyfs-union-").tempdir().unwrap();
    let program = dir.path().join("union");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for path in [dir.path(), &program] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, open).unwrap();
    }
    let nobody = crate::support::nobody::NOBODY;
    let mut run = std::process::Command::new("setpriv");
    run.args([format!("--reuid={nobody}"), format!("--regid={nobody}"), "--clear-groups".to_owned()]);
    run.arg(&program).args(["faults::each_operation", "--nocapture"]).env(WITH_OPTIONS, "1").current_dir(dir.path());
    let output = run.output().unwrap();
    assert!(output.status.success(), "{}", crate::support::text(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let sums = said.lines().filter(|line| line.contains(" fault points, "));
    assert_eq!(sums.inspect(|line| println!("{line}")).count(), PARTS);
}

#[test]
fn each_operation_cut_at_each_call_is_done_or_not_done_1() {
    part(0);
}

#[test]
fn each_operation_cut_at_each_call_is_done_or_not_done_2() {
    part(1);
}

#[test]
fn each_operation_cut_at_each_call_is_done_or_not_done_3() {
    part(2);
}

#[test]
fn each_operation_cut_at_each_call_is_done_or_not_done_4() {
    part(3);
}

/// The variable that makes a run of this program the victim: the number of a case, a call, and the layers' directory.
const VICTIM: &str = "PLYFS_FAULTS_VICTIM";

/// A process that really dies, for each point of a few cases: what it leaves is what the frozen ones leave.
#[test]
fn a_killed_process_leaves_the_tree_before_or_after() {
    if let Ok(victim) = std::env::var(VICTIM) {
        return be_killed(&victim);
    }
    let mut deaths = 0;
    for (number, case) in all().enumerate().filter(|(_, case)| KILLED.contains(&case.name)) {
        let (before, after, calls) = whole(case);
        for at in 1..=calls.len() {
            let layers = open(case).close();
            let dir = layers.root().to_str().unwrap().to_owned();
            let name = "faults::a_killed_process_leaves_the_tree_before_or_after";
            let mut run = std::process::Command::new(std::env::current_exe().unwrap());
            let run = run.args(["--exact", name, "--nocapture"]).env(VICTIM, format!("{number} {at} {dir}"));
            let output = run.output().unwrap();
            let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
            assert_eq!(signal, Some(libc::SIGKILL), "{}", crate::support::text(&output));
            resume(case, layers.open(), (at, calls.get(at - 1).copied()), &before, &after);
            deaths += 1;
        }
    }
    println!("{deaths} processes killed");
}

/// The cases in which processes are killed: those that have the most to lose.
const KILLED: [&str; 5] = [
    "first write below lower directories",
    "truncate to less",
    "rename of a lower file over another",
    "unlink of a copy",
    "mkdir over a whiteout",
];

fn be_killed(victim: &str) {
    let mut words = victim.splitn(3, ' ');
    let case = all().nth(words.next().unwrap().parse().unwrap()).unwrap();
    let at = words.next().unwrap().parse().unwrap();
    let layers = Layers::at(std::path::Path::new(words.next().unwrap()));
    let u = layers.open();
    let (survived, _) = cut(case, &u, at, Fault::Killed);
    panic!("it survived: {survived:?}");
}
