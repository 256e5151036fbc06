//! The differences from the kernel's overlay that are deliberate or that FUSE does not allow to close, by name.
//!
//! Each needs a row in the README's "Differences from the kernel". What is not named here is a bug.

use super::exec::{Outcome, Value};
use super::op::Op;
use super::view::{Entry, Order, Terms};
use rustix::fs::FileType;
use rustix::io::Errno;

/// A difference in a field of a name.
pub struct Finding<'a> {
    /// Which field.
    pub field: &'a str,
    /// On the kernel's side, or the model's.
    pub a: &'a Entry,
    /// On ours.
    pub b: &'a Entry,
    /// What the two have in common.
    pub terms: Terms,
}

/// A difference that is no bug.
pub struct Exception {
    /// What to call it, and why it is no bug; printed with the result.
    pub reason: &'static str,
    applies: fn(&Finding<'_>) -> bool,
}

/// Differences between trees that are no bugs.
pub const EXCEPTIONS: &[Exception] = &[
    Exception {
        reason: "copy-up at the first write: the kernel copies up at open, and the parents become merged (nlink 1) then",
        applies: |finding| {
            let merged = |entry: &Entry| entry.kind == FileType::Directory && entry.nlink == 1;
            finding.field == "nlink" && !finding.terms.settled && (merged(finding.a) || merged(finding.b))
        },
    },
    Exception {
        reason: "sparse files stay as sparse as they are: the kernel fills holes within a mebibyte of data at copy-up",
        applies: |finding| {
            finding.field == "holes"
                && (finding.terms.order == Order::Either
                    || within(&finding.b.fields["holes"], &finding.a.fields["holes"]))
        },
    },
    Exception {
        reason: "with userxattr symlinks and special files hold no mark: after a new link the kernel shows one of their names with the \
                 lower file's number and the other with the copy's",
        applies: |finding| {
            finding.field == "first name" && finding.terms.userxattr && finding.a.kind != FileType::RegularFile
        },
    },
    Exception {
        reason: "with nfs_export=on the kernel counts the entry in the index among the names of a copied-up file, once it is looked \
                 up anew",
        applies: |finding| {
            let one_more = finding.a.nlink.abs_diff(finding.b.nlink) == 1;
            let of_file = finding.a.kind != FileType::Directory;
            matches!(finding.field, "nlink" | "first name") && of_file && finding.terms.nfs_export && one_more
        },
    },
    Exception {
        reason: "with an index, a change of a file with several names gives the upper, in the kernel, the name by which it was \
                 made, and here one name, that which was looked up last, for FUSE does not say by which; the directories above \
                 become merged (nlink 1)",
        applies: |finding| {
            // Only by such names: what else is in the upper has come there on both sides.
            let by_names = |merged: &Entry, other: &Entry| merged.nlink == 1 && merged.only_links && other.nlink != 1;
            let either = by_names(finding.a, finding.b) || by_names(finding.b, finding.a);
            finding.field == "nlink" && finding.terms.index && either
        },
    },
    Exception {
        reason: "a copy without data and without an origin (in a layer that was copied by hand) has its own number: the kernel's has \
                 the lower one's, until the data comes, and its names can differ then",
        applies: |finding| finding.field == "first name" && finding.terms.metacopy,
    },
    Exception {
        reason: "a plain directory as model: it counts its subdirectories, notes when it was read, and a fallocate that it does not \
                 know leaves suid; holes are its own",
        applies: |finding| {
            let of_dir = finding.field == "nlink" && finding.a.kind == FileType::Directory;
            // The kernel's overlay takes suid and sgid away before it asks the file system for space, as ours does.
            let bits = |entry: &Entry| u32::from_str_radix(&entry.fields["mode"], 8).unwrap_or(0);
            let killed = finding.field == "mode" && bits(finding.a) & !0o6000 == bits(finding.b);
            finding.terms.plain && (of_dir || killed || finding.field == "atime" || finding.field == "holes")
        },
    },
];

/// What the generator leaves out, and why.
pub const NOT_GENERATED: &[(&str, &str)] = &[
    ("O_TMPFILE", "the FUSE library hands no TMPFILE request on"),
    ("fallocate COLLAPSE_RANGE, INSERT_RANGE", "the kernel's FUSE client refuses them before asking us"),
    ("user.overlay.* attributes", "both namespaces are private to us on reading, one only to the kernel"),
    (".wh.* names", "they are whiteouts to us and plain names to the kernel"),
    ("mmap of a descriptor opened before a copy-up", "the kernel's overlay goes on showing the lower file's pages"),
    ("truncate(2) to the size that a file has", "FUSE does not tell it from ftruncate(2), which sets mtime even then"),
    ("trusted.SGI_ACL_* attributes", "xfs lists its ACLs a second time under these names"),
    ("a plain user's directories without own rwx", "the server runs as that user and cannot enter them either"),
    ("lower hard links without settling", "what becomes of them shows at open there and at the first write here"),
];

/// Whether a difference is one of the exceptions.
pub fn excused(finding: &Finding<'_>) -> bool {
    EXCEPTIONS.iter().any(|exception| (exception.applies)(finding))
}

/// Whether two answers that are not equal are as good as each other.
pub fn tolerated(op: &Op, a: &Outcome, b: &Outcome) -> bool {
    match (op, a, b) {
        // POSIX allows both for a target that is not empty; the kernel's overlay passes on what the upper layer says.
        (Op::Rename { .. } | Op::Rmdir { .. }, Err(Errno::EXIST), Err(Errno::NOTEMPTY)) => true,
        // A lower file that was removed while open: the kernel still shows the lower layer's count, we show none.
        (Op::Fstat { .. }, Ok(Value::Lines(a)), Ok(Value::Lines(b))) => {
            let without = |lines: &[String]| {
                let text = lines.concat();
                let (before, links) = text.split_once("nlink ").unwrap_or((&text, ""));
                format!("{before}{}", links.trim_start_matches(|c: char| c.is_ascii_digit()))
            };
            b.concat().contains("nlink 0 ") && without(a) == without(b)
        }
        // A lower file that was removed while open cannot be changed any more in the kernel's overlay: its copy-up finds
        // that the name was taken, by its own whiteout, or that the directory is gone. Ours can.
        (_, Err(Errno::EXIST | Errno::NOENT | Errno::STALE), Ok(_)) => changes_descriptor(op),
        // A source opened before its copy-up: the kernel's is still on the lower's file system, ours is the copy.
        (Op::CopyRange { .. }, Err(Errno::XDEV), Ok(_)) => true,
        // With metacopy=on two names of a file must both say where its data is; where the place is too long for the mark, the
        // kernel refuses the link, and ours copies the data.
        (Op::Link { .. }, Err(Errno::XDEV), Ok(_)) => true,
        // The kernel lists the whiteouts of a directory that one lower alone has, and then finds nothing under their names.
        (Op::RemoveTree { .. }, Ok(Value::Lines(a)), Ok(Value::Lines(b))) => {
            a.iter().filter(|line| !line.ends_with(": ENOENT")).eq(b.iter())
        }
        // A change to no owner and no group, by who is not the owner, of what has suid: FUSE tells it from nothing else, so
        // ours does nothing, and says so.
        (Op::Chown { uid: None, gid: None, .. } | Op::Fchown { uid: None, gid: None, .. }, Err(Errno::PERM), Ok(_)) => {
            true
        }
        _ => false,
    }
}

fn changes_descriptor(op: &Op) -> bool {
    matches!(
        op,
        Op::Futimens { .. }
            | Op::Fchmod { .. }
            | Op::Fchown { .. }
            | Op::Ftruncate { .. }
            | Op::Fallocate { .. }
            | Op::Fsetxattr { .. }
    )
}

/// Whether no more than a few pages of data in `inner` (`start..end` and blanks) lie outside of `outer`: file systems
/// allocate ahead as they like.
fn within(inner: &str, outer: &str) -> bool {
    const AHEAD: u64 = 256 << 10;
    let pieces = |text: &str| -> Vec<(u64, u64)> {
        let ends = text.split(' ').filter_map(|piece| piece.split_once(".."));
        ends.filter_map(|(start, end)| Some((start.parse().ok()?, end.parse().ok()?))).collect()
    };
    let outer = pieces(outer);
    let covered = |start: u64, end: u64| -> u64 {
        outer.iter().map(|(from, to)| end.min(*to).saturating_sub(start.max(*from))).sum()
    };
    pieces(inner).iter().map(|(start, end)| end - start - covered(*start, *end)).sum::<u64>() <= AHEAD
}
