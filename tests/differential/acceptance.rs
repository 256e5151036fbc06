//! Which options the kernel's overlay takes together, and whether plyfs takes the same.

use super::bench::Bench;
use super::options;
use crate::common::mounts::{Maker, Mounted, Stack};

/// A reason, and the sets that it is one for.
type Exception = (&'static str, fn(&str) -> bool);

/// Where plyfs takes what the kernel refuses, or the other way round, and why.
const EXCEPTIONS: &[Exception] = &[
    ("marks that plain users write may lead elsewhere, within the mount's own namespace", |set| {
        let leads = ["redirect_dir=on", "redirect_dir=follow", "redirect_dir=off", "metacopy=on", "verity="];
        set.contains("userxattr") && leads.iter().any(|option| set.contains(option))
    }),
    ("nfs_export=on is refused", |set| set.contains("nfs_export=on")),
    ("fsync= is of a later kernel, or of fuse-overlayfs", |set| set.contains("fsync=")),
];

/// Values beyond those that random runs are made with: defaults said aloud, and what needs fs-verity.
const MORE: &[&str] = &["metacopy=off", "index=off", "nfs_export=off", "verity=on", "verity=require", "verity=off"];

/// Every set, with an upper and without.
fn sets() -> Vec<String> {
    let mut sets = options::all();
    let singles: Vec<String> = sets.iter().filter(|set| set.matches(',').count() == 1).cloned().collect();
    for (at, more) in MORE.iter().enumerate() {
        sets.push(format!(",{more}"));
        sets.extend(singles.iter().map(|single| format!("{single},{more}")));
        sets.extend(MORE[at + 1..].iter().map(|other| format!(",{more},{other}")));
    }
    sets
}

/// What differs, a line each; and how many sets there were: one in `share`, others with another `turn`.
pub fn differences(bench: &Bench, turn: usize, share: usize) -> (Vec<String>, usize) {
    let mut found = Vec::new();
    let sets: Vec<String> = sets().into_iter().skip(turn % share).step_by(share).collect();
    for set in &sets {
        for upper in [true, false] {
            let [kernel, ours] = [Maker::Kernel, Maker::Plyfs].map(|maker| takes(bench, maker, set, upper));
            let excused = EXCEPTIONS.iter().any(|(_, applies)| applies(set));
            if kernel.is_ok() != ours.is_ok() && !excused {
                found.push(format!("{set} (upper: {upper}): kernel {kernel:?}, plyfs {ours:?}"));
            }
        }
    }
    (found, sets.len())
}

/// The reasons why some sets may differ.
pub fn reasons() -> impl Iterator<Item = &'static str> {
    EXCEPTIONS.iter().map(|(reason, _)| *reason)
}

fn takes(bench: &Bench, maker: Maker, set: &str, upper: bool) -> Result<(), String> {
    let place = bench.place("t", false);
    let whole = place.stack_for(2, set);
    let stack = if upper { whole } else { Stack { upper: "".into(), ..whole } };
    Mounted::new(maker, &stack, place.point(), set)?.unmount()
}
