//! Which options the kernel's overlay takes together, whether plyfs takes the same, and whether both then show the same.

use super::bench::Bench;
use super::options;
use crate::common::mounts::{Maker, Mounted, Stack};
use std::path::Path;

/// A reason, and the sets that it is one for.
type Exception = (&'static str, fn(&str) -> bool);

/// Where plyfs takes what the kernel refuses, or the other way round, and why.
const EXCEPTIONS: &[Exception] =
    &[("marks that plain users write may lead elsewhere, within the mount's own namespace", |set| {
        let leads = ["redirect_dir=on", "redirect_dir=follow", "redirect_dir=off", "metacopy=on", "verity="];
        set.contains("userxattr") && leads.iter().any(|option| set.contains(option))
    })];

/// Values beyond those that random runs are made with: defaults said aloud, and what needs fs-verity.
const MORE: &[&str] = &[
    "metacopy=off",
    "index=off",
    "nfs_export=off",
    "verity=on",
    "verity=require",
    "verity=off",
    "fsync=auto",
    "fsync=volatile",
];

/// What only one of the two shows: FUSE shows it for itself.
const UNSHOWN: &[&str] = &["default_permissions"];

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
            let differ = match (&kernel, &ours) {
                (Ok(kernel), Ok(ours)) => kernel != ours && !excused,
                (kernel, ours) => kernel.is_ok() != ours.is_ok() && !excused,
            };
            if differ {
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

/// What a mount with this set shows of itself, if it is taken.
fn takes(bench: &Bench, maker: Maker, set: &str, upper: bool) -> Result<Vec<String>, String> {
    let place = bench.place("t", false);
    let whole = place.stack_for(2, set);
    let stack = if upper { whole } else { Stack { upper: "".into(), ..whole } };
    let mounted = Mounted::new(maker, &stack, place.point(), set)?;
    let shown = shown(maker, mounted.point())?;
    mounted.unmount()?;
    Ok(shown)
}

/// The options of a mount but for its layers: of the kernel's as the table of mounts has them, of ours as its root does.
fn shown(maker: Maker, point: &Path) -> Result<Vec<String>, String> {
    let line = if maker == Maker::Kernel {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
        let ours = |line: &&str| line.split(' ').nth(4) == point.to_str();
        mounts.lines().rfind(ours).and_then(|line| line.rsplit(' ').next()).unwrap_or_default().to_owned()
    } else {
        let mut value = [0_u8; 4096];
        let length = rustix::fs::getxattr(point, "user.plyfs.options", &mut value)
            .map_err(|errno| format!("user.plyfs.options: {errno}"))?;
        String::from_utf8_lossy(&value[..length]).into_owned()
    };
    let behaviour = |option: &&str| {
        let ways = ["lowerdir=", "upperdir=", "workdir=", "rw", "ro"];
        !ways.iter().any(|way| option.starts_with(way)) && !UNSHOWN.contains(option)
    };
    Ok(line.split(',').filter(behaviour).map(str::to_owned).collect())
}
