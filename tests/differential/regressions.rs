//! What the differential test has found, as small as it was shrunk: each case by the name of what holds now.

use super::layers::pattern;
use super::op::{Call, Op, Special};
use super::path::p;
use super::run::{Layers, Scenario};
use super::tree::{Kind, Node, Tree};
use crate::common::caller::Caller;
use crate::common::mounts::Maker;
use rustix::fs::OFlags;

/// A scenario and its operations.
pub struct Case {
    /// What holds.
    pub name: &'static str,
    /// The layers.
    pub scenario: Scenario,
    /// The operations.
    pub calls: Vec<Call>,
}

const READ: u32 = 0;
const WRITE: u32 = OFlags::RDWR.bits();
const ROOT: Caller = Caller::Owner;

/// All cases.
pub fn cases() -> Vec<Case> {
    [open_files(), links(), privileges(), attributes(), numbers()].into_iter().flatten().collect()
}

fn case(name: &'static str, lower: &[(&str, Node)], upper: &[(&str, Node)], calls: Vec<(Caller, Op)>) -> Case {
    let tree = |nodes: &[(&str, Node)]| {
        let mut tree = Tree::empty();
        nodes.iter().for_each(|(path, node)| tree.put(p(path), node.clone()));
        tree
    };
    let scenario = Scenario {
        makers: [Maker::Kernel, Maker::Plyfs],
        layers: Layers { lowers: vec![tree(lower)], upper: tree(upper), data: Tree::empty() },
        names: vec![false],
        spread: false,
        options: String::new(),
        umasks: [0o022; 3],
        every: 1,
        settle: false,
        numbers: true,
        fault: None,
    };
    Case { name, scenario, calls: calls.into_iter().map(|(caller, op)| Call { caller, op }).collect() }
}

/// Nobody looks at the trees before the end, which would ask for attributes.
fn unwatched(mut case: Case) -> Case {
    case.scenario.every = 0;
    case
}

/// With these mount options on both sides.
fn with(options: &str, mut case: Case) -> Case {
    case.scenario.options += options;
    case
}

fn settled(mut case: Case) -> Case {
    case.scenario.settle = true;
    case
}

fn dir() -> Node {
    Node::new(Kind::Dir, 0o755)
}

/// Two names of a file, of which the second lies in a directory below another.
fn two_names_apart() -> [(&'static str, Node); 5] {
    [
        ("d", dir()),
        ("d/f", file(0o644)),
        ("e", dir()),
        ("e/sub", dir()),
        ("e/sub/g", Node::new(Kind::Link(p("d/f")), 0o644)),
    ]
}

fn open_dir() -> Node {
    Node::new(Kind::Dir, 0o777)
}

fn file(mode: u32) -> Node {
    Node::new(Kind::File { size: 100, data: vec![(0, pattern(0, 100, 7))] }, mode)
}

fn owned(uid: u32, gid: u32, node: Node) -> Node {
    Node { uid, gid, ..node }
}

fn open(path: &str, flags: u32) -> Op {
    Op::Open { slot: 0, path: p(path), flags, mode: 0o644 }
}

fn open_files() -> Vec<Case> {
    let lower = [("d", dir()), ("d/f", file(0o644))];
    let write = Op::Write { slot: 0, offset: 5000, length: 300, tint: 1 };
    let set = Op::Fsetxattr { slot: 0, name: p("user.a"), value: p("value") };
    vec![
        case(
            "an open lower file that was removed still lists its attributes",
            &lower,
            &[],
            vec![(ROOT, open("d/f", READ)), (ROOT, Op::Unlink { path: p("d/f") }), (ROOT, Op::Flistxattr { slot: 0 })],
        ),
        case(
            "an open file that was removed still takes attributes",
            &lower,
            &[],
            vec![(ROOT, open("d/f", WRITE)), (ROOT, Op::Unlink { path: p("d/f") }), (ROOT, set)],
        ),
        case(
            "an open lower file whose directory was removed is written to",
            &lower,
            &[],
            vec![
                (ROOT, open("d/f", WRITE)),
                (ROOT, Op::RemoveTree { path: p("d") }),
                (ROOT, write),
                (ROOT, Op::Read { slot: 0, offset: 0, length: 6000 }),
            ],
        ),
    ]
}

fn links() -> Vec<Case> {
    let lower = [("d", dir()), ("e", dir()), ("d/f", file(0o644))];
    let link = Op::Link { from: p("d/f"), to: p("e/g") };
    let reads = [Op::Cat { path: p("d/f") }, Op::Listxattr { path: p("d/f") }, open("d/f", WRITE)];
    let then_read = |op: Op| [link.clone(), op].into_iter().chain(reads.clone()).map(|op| (ROOT, op)).collect();
    vec![
        case("a file with another name left is read on", &lower, &[], then_read(Op::Unlink { path: p("e/g") })),
        case(
            "a file whose other name went with its directory",
            &lower,
            &[],
            then_read(Op::RemoveTree { path: p("e") }),
        ),
        case(
            "a file whose other name was replaced",
            &[("d", dir()), ("e", dir()), ("d/f", file(0o644)), ("h", file(0o600))],
            &[],
            then_read(Op::Rename { from: p("h"), to: p("e/g"), flags: 0 }),
        ),
    ]
}

fn privileges() -> Vec<Case> {
    let nobody = Op::Chown { path: p("f"), uid: None, gid: None };
    let truncate = Op::Ftruncate { slot: 0, size: 10 };
    let write = Op::Write { slot: 0, offset: 0, length: 10, tint: 1 };
    let mut capable = owned(1001, 1001, file(0o6777));
    capable.xattrs.insert(p("security.capability"), p(b"\x01\0\0\x02\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"));
    vec![
        case(
            "a write by root takes the capability and leaves suid",
            &[("f", capable)],
            &[],
            vec![(ROOT, open("f", WRITE)), (ROOT, write.clone())],
        ),
        case("chown to nobody clears suid", &[("f", file(0o4755))], &[], vec![(ROOT, nobody.clone())]),
        case("chown to nobody clears sgid", &[("f", owned(1000, 0, file(0o2755)))], &[], vec![(ROOT, nobody.clone())]),
        case(
            "chown to nobody by a stranger does not clear suid",
            &[("f", owned(1001, 2000, file(0o4755)))],
            &[],
            vec![(Caller::Alice, nobody)],
        ),
        case(
            "an owner who is not in the group loses sgid with a change of group, even of what the group may not execute",
            &[("f", owned(1001, 0, file(0o2644))), ("g", owned(1000, 1001, file(0o2644)))],
            &[],
            vec![
                (Caller::Bob, Op::Chown { path: p("f"), uid: None, gid: Some(0) }),
                (Caller::Alice, Op::Chown { path: p("g"), uid: None, gid: Some(2000) }),
            ],
        ),
        case(
            "an owner who is in the group keeps the sgid of what the group may not execute when the group changes",
            &[("f", owned(1001, 1000, file(0o2644)))],
            &[],
            vec![(Caller::Bob, Op::Chown { path: p("f"), uid: None, gid: Some(2000) })],
        ),
        case(
            "a writer who is not in the group clears sgid even of what the group may not execute",
            &[("f", file(0o2666))],
            &[],
            vec![(Caller::Alice, open("f", WRITE)), (Caller::Alice, write.clone())],
        ),
        case(
            "a writer who is in the group keeps the sgid of what the group may not execute",
            &[("f", owned(0, 2000, file(0o2666)))],
            &[],
            vec![(Caller::Alice, open("f", WRITE)), (Caller::Alice, write)],
        ),
        case(
            "truncation by another clears suid and sgid",
            &[("f", owned(1000, 0, file(0o6777)))],
            &[],
            vec![(Caller::Bob, open("f", WRITE)), (Caller::Bob, truncate)],
        ),
        unwatched(case(
            "what lost suid to a write of another can be linked by who may write to it",
            &[("d", open_dir()), ("f", file(0o4666))],
            &[],
            vec![
                (ROOT, open("f", WRITE)),
                (Caller::Alice, Op::Link { from: p("f"), to: p("d/a") }),
                (Caller::Alice, Op::Write { slot: 0, offset: 0, length: 10, tint: 1 }),
                (Caller::Bob, Op::Link { from: p("f"), to: p("d/b") }),
            ],
        )),
    ]
}

fn attributes() -> Vec<Case> {
    let lower = [("f", file(0o644))];
    let name = || p("trusted.overlay.");
    let acl = || p("system.posix_acl_access");
    vec![
        case(
            "the private prefix alone is no attribute",
            &lower,
            &[],
            vec![
                (ROOT, Op::Getxattr { path: p("f"), name: name() }),
                (ROOT, Op::Removexattr { path: p("f"), name: name() }),
                (ROOT, Op::Setxattr { path: p("f"), name: name(), value: p("y"), flags: 0 }),
            ],
        ),
        case(
            "an ACL that is not there can be removed",
            &lower,
            &[],
            vec![(ROOT, Op::Removexattr { path: p("f"), name: acl() })],
        ),
        case(
            "the private names are kept apart",
            &[("d", dir())],
            &[],
            vec![
                (ROOT, Op::Setxattr { path: p("d"), name: p("trusted.overlay.opaque"), value: p("y"), flags: 0 }),
                (ROOT, Op::Getxattr { path: p("d"), name: p("trusted.overlay.opaque") }),
                (ROOT, Op::Listxattr { path: p("d") }),
            ],
        ),
        case(
            "a device that is a whiteout cannot be made",
            &lower,
            &[],
            vec![(ROOT, Op::Mknod { path: p("w"), kind: Special::Char(0), mode: 0o644 })],
        ),
    ]
}

fn numbers() -> Vec<Case> {
    let lower = [("a", file(0o644)), ("b", Node::new(Kind::Link(p("a")), 0o644)), ("d", dir())];
    let chmod = |path: &str| (ROOT, Op::Chmod { path: p(path), mode: 0o600 });
    vec![
        settled(case(
            "a lower hard link that is copied up has its new number at once and for good",
            &lower,
            &[],
            vec![chmod("b"), (ROOT, Op::Stat { path: p("b") }), (ROOT, Op::Remount), (ROOT, Op::Stat { path: p("b") })],
        )),
        settled(case(
            "a lower hard link that gets another name leaves the others",
            &lower,
            &[],
            vec![(ROOT, Op::Link { from: p("b"), to: p("d/c") }), chmod("a")],
        )),
        with(
            ",index=on",
            settled(case(
                "a copied-up file that is changed by another name is changed for both, if not in the same directories",
                &[("d", dir()), ("d/f", file(0o644)), ("e", dir()), ("e/g", Node::new(Kind::Link(p("d/f")), 0o644))],
                &[],
                vec![
                    chmod("d/f"),
                    (ROOT, Op::Chmod { path: p("e/g"), mode: 0o640 }),
                    (ROOT, Op::Stat { path: p("d/f") }),
                ],
            )),
        ),
        with(
            ",index=on",
            settled(case(
                "the directories above such a name differ also when it is the only one left",
                &two_names_apart(),
                &[],
                vec![chmod("d/f"), chmod("e/sub/g"), (ROOT, Op::Unlink { path: p("d/f") })],
            )),
        ),
        with(
            ",index=on",
            settled(case(
                "a file is copied up by the name that was looked up last",
                &two_names_apart(),
                &[],
                vec![
                    (ROOT, Op::Stat { path: p("d/f") }),
                    (ROOT, Op::Stat { path: p("e/sub/g") }),
                    chmod("d/f"),
                    (ROOT, Op::Stat { path: p("e/sub/g") }),
                ],
            )),
        ),
        with(
            ",metacopy=on",
            settled(case(
                "a file whose place is too long for a mark gets a name only with its data, and can be moved then",
                &[("d", dir()), ("e", dir()), ("d/f", file(0o644)), (&format!("d/{}", "n".repeat(255)), file(0o644))],
                &[],
                [
                    Op::Link { from: p(format!("d/{}", "n".repeat(255))), to: p("d/g") },
                    Op::Rename { from: p(format!("d/{}", "n".repeat(255))), to: p("e/h"), flags: 0 },
                    Op::Cat { path: p("e/h") },
                ]
                .into_iter()
                .map(|op| (ROOT, op))
                .collect(),
            )),
        ),
        with(
            ",redirect_dir=on",
            settled(case(
                "a directory that could be moved but for the names in what it is to replace is not copied up",
                &[("d", dir()), ("d/from", dir()), ("d/to", dir()), ("d/to/in", dir()), ("d/from/sub", dir())],
                &[],
                vec![
                    (ROOT, Op::Rename { from: p("d/from"), to: p("d/to"), flags: 0 }),
                    (ROOT, Op::Mkdir { path: p("d/new"), mode: 0o755 }),
                    (ROOT, Op::Rename { from: p("d/from"), to: p("d/to"), flags: 0 }),
                    (ROOT, Op::Mkdir { path: p("d/new/in"), mode: 0o755 }),
                    (ROOT, Op::Rename { from: p("d/from/sub"), to: p("d/new"), flags: 0 }),
                ],
            )),
        ),
        case(
            "an exchange that is refused copies nothing up",
            &[("d", dir()), ("d/i", dir()), ("a", file(0o644)), ("b", Node::new(Kind::Link(p("a")), 0o644))],
            &[],
            vec![(ROOT, Op::Rename { from: p("a"), to: p("d/i"), flags: 2 })],
        ),
        settled(case(
            "the directories above what was made count as merged, however often they were looked at before",
            &[("j", dir()), ("j/h", dir()), ("j/h/d", dir())],
            &[],
            vec![
                (ROOT, Op::Stat { path: p("j/h") }),
                (ROOT, Op::Stat { path: p("j/h/d") }),
                (ROOT, Op::Mkdir { path: p("j/h/d/f"), mode: 0o755 }),
            ],
        )),
        settled(case(
            "a directory that is only in a lower layer counts as merged once it is copied up",
            &[("d", dir()), ("d/e", dir()), ("d/e/f", dir())],
            &[],
            vec![(ROOT, Op::SyncDir { path: p("d/e/f") }), (ROOT, Op::Mkdir { path: p("d/e/g"), mode: 0o755 })],
        )),
        with(
            ",redirect_dir=on",
            case(
                "a directory that was moved is not empty while its lower part is not",
                &[("d", dir()), ("d/f", file(0o644)), ("n", dir())],
                &[],
                vec![
                    (ROOT, Op::Rename { from: p("d"), to: p("e"), flags: 0 }),
                    (ROOT, Op::Rmdir { path: p("e") }),
                    (ROOT, Op::Rename { from: p("n"), to: p("e"), flags: 0 }),
                    (ROOT, Op::Unlink { path: p("e/f") }),
                    (ROOT, Op::Rmdir { path: p("e") }),
                ],
            ),
        ),
    ]
}
