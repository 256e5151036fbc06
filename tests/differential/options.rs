//! Sets of mount options: each option alone, and every pair of them that the kernel takes.

use super::bench::Bench;
use crate::common::mounts::{Maker, Mounted};

/// The values that an option can have; of each row a set has one at most.
const CHOICES: &[&[&str]] = &[
    &["redirect_dir=on", "redirect_dir=follow", "redirect_dir=nofollow", "redirect_dir=off"],
    // Not verity=require: what has no digest fails at open there, and when it is read here.
    &["metacopy=on", "verity=on,metacopy=on"],
    &["index=on"],
    &["nfs_export=on"],
    &["xino=on", "xino=off", "xino=auto"],
    &["uuid=on", "uuid=off", "uuid=null", "uuid=auto"],
    &["userxattr"],
    &["volatile", "fsync=strict"],
    &["default_permissions"],
    &["data", "data,metacopy=on"],
];

/// All sets, each option with a comma before it, whether or not anybody takes them.
pub fn all() -> Vec<String> {
    let mut sets = Vec::new();
    for (row, values) in CHOICES.iter().enumerate() {
        for value in *values {
            sets.push(format!(",{value}"));
            let others = CHOICES.iter().skip(row + 1).flat_map(|values| values.iter());
            let others = others.filter(|other| !other.contains(value));
            sets.extend(others.map(|other| format!(",{value},{other}")));
        }
    }
    sets
}

/// The sets that the kernel takes.
pub fn taken_by_the_kernel(bench: &Bench) -> Vec<String> {
    let taken = |set: &String| {
        let place = bench.place("o", false);
        let stack = place.stack_for(1, set);
        Mounted::new(Maker::Kernel, &stack, place.point(), set).is_ok_and(|mounted| mounted.unmount().is_ok())
    };
    // With the two together it cannot copy up what can hold no mark: symlinks and pipes.
    let works = |set: &String| !(set.contains("nfs_export=on") && set.contains("userxattr"));
    all().into_iter().filter(works).filter(taken).collect()
}
