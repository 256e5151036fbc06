//! The kernel's overlay and plyfs, driven with the same random operations on the same random layers, give the same
//! answers, show the same trees, and can mount what the other wrote.
//!
//! `cargo test --test differential` takes less than a minute. A long run: `PLYFS_DIFF_RUNS=1000 cargo test --release
//! --test differential -- --nocapture`; a replay: `PLYFS_DIFF_SEED=7 PLYFS_DIFF_FS=xfs`. See `campaign` for the rest.

// A test ends by panicking; helpers outside of `#[test]` functions are tests all the same.
#![allow(clippy::expect_used, clippy::panic)]

mod common;
#[path = "differential/mod.rs"]
mod engine;

use common::backing::Kind;
use common::mounts::{Maker, PASSTHROUGH};
use engine::bench::Bench;
use engine::campaign::{Campaign, scenario};
use engine::generate::Generator;
use engine::layers::Rights;
use engine::regressions::cases;
use engine::run::{Fault, Scenario, Source, run};
use engine::tree::Marks;

/// The umask belongs to the process: one test at a time.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn answers_as_the_kernels_overlay_does() {
    if !common::is_real_root() || !common::has_fuse() {
        return common::skip("answers_as_the_kernels_overlay_does", "needs root and /dev/fuse");
    }
    let _alone = ALONE.lock();
    if let Err(report) = Campaign::from_environment().go() {
        panic!("plyfs differs from the kernel's overlay:\n{report}");
    }
}

/// What was found once stays found.
#[test]
fn what_was_found_holds() {
    if !common::is_real_root() || !common::has_fuse() {
        return common::skip("what_was_found_holds", "needs root and /dev/fuse");
    }
    let _alone = ALONE.lock();
    let bench = Bench::new(Kind::Tmpfs).expect("root can mount a tmpfs");
    let passed = cases().into_iter().map(|mut case| {
        case.scenario.options += PASSTHROUGH;
        case
    });
    let failures: Vec<String> = cases()
        .into_iter()
        .chain(passed)
        .filter_map(|case| {
            let failure = run(&bench, &case.scenario, Source::Recorded(case.calls)).err()?;
            Some(format!(
                "{}{}: {}\n    {}",
                case.name,
                case.scenario.options,
                failure.sort,
                failure.lines.join("\n    ")
            ))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The same for a plain user, who has a plain directory as the model: no devices, owners or privileged attributes.
#[test]
fn answers_a_plain_user_as_a_plain_directory_does() {
    const NAME: &str = "answers_a_plain_user_as_a_plain_directory_does";
    if !common::has_fuse() {
        return common::skip(NAME, "needs /dev/fuse");
    }
    let _alone = ALONE.lock();
    let campaign = Campaign::for_user();
    let result = if common::is_real_root() {
        as_nobody(&campaign)
    } else {
        let scratch = common::scratch::Scratch::new("user");
        campaign.go_inside(scratch.path(), "here")
    };
    if let Err(report) = result {
        panic!("plyfs differs from a plain directory:\n{report}");
    }
}

/// Runs a campaign as a user without rights, in a directory of that user on each file system.
fn as_nobody(campaign: &Campaign) -> Result<(), String> {
    const NOBODY: u32 = 65534;
    let reachable = common::scratch::Scratch::new("bin");
    let _copied = common::mounts::Copied::to(reachable.path());
    for kind in &campaign.kinds {
        let backing = match common::backing::Backing::new(*kind) {
            Ok(backing) => backing,
            Err(reason) => {
                common::skip("as_nobody", &reason);
                continue;
            }
        };
        let own = backing.root().join("own");
        std::fs::create_dir(&own).expect("root can make a directory");
        std::os::unix::fs::chown(&own, Some(NOBODY), Some(NOBODY)).expect("root can give it away");
        let share = campaign.limit / campaign.kinds.len() as u32;
        let campaign = Campaign { limit: share, ..campaign.clone() };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                common::caller::share_fuse(reachable.path());
                common::caller::become_user(NOBODY);
                campaign.go_inside(&own, kind.name())
            });
            thread.join().unwrap_or_else(|_| Err("the run panicked".to_owned()))
        })?;
    }
    Ok(())
}

/// Two ordinary users on one mount, each as the kernel's overlay lets them: sticky and setgid directories, umasks, ACLs,
/// groups, files of the other.
#[test]
fn answers_two_users_as_the_kernels_overlay_does() {
    const NAME: &str = "answers_two_users_as_the_kernels_overlay_does";
    if !common::is_real_root() || !common::has_fuse() {
        return common::skip(NAME, "needs root and /dev/fuse");
    }
    let _alone = ALONE.lock();
    if let Err(report) = Campaign::for_two_users().go() {
        panic!("plyfs differs from the kernel's overlay:\n{report}");
    }
}

/// The same two on the mount that one of them made, over fusermount3 and with `allow_other`: what the server may do as her, the
/// other may do as far as modes and ACLs let him.
#[test]
fn answers_the_guest_of_a_plain_user_as_the_kernels_overlay_does() {
    const NAME: &str = "answers_the_guest_of_a_plain_user_as_the_kernels_overlay_does";
    if !common::is_real_root() || !common::has_fuse() {
        return common::skip(NAME, "needs root and /dev/fuse");
    }
    if std::process::Command::new("fusermount3").arg("-V").output().is_err() {
        return common::skip(NAME, "needs fusermount3");
    }
    let _alone = ALONE.lock();
    let reachable = common::scratch::Scratch::new("bin");
    let _copied = common::mounts::Copied::to(reachable.path());
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            common::caller::own_mounts();
            common::caller::share_fuse(reachable.path());
            common::caller::let_others_in(reachable.path());
            Campaign::for_guest().go()
        });
        thread.join().unwrap_or_else(|_| Err("the run panicked".to_owned()))
    });
    if let Err(report) = result {
        panic!("plyfs differs from the kernel's overlay:\n{report}");
    }
}

/// The harness is worth something only if it finds what is there to be found.
#[test]
fn a_difference_is_noticed() {
    if !common::is_real_root() {
        return common::skip("a_difference_is_noticed", "needs root");
    }
    let _alone = ALONE.lock();
    let bench = Bench::new(Kind::Tmpfs).expect("root can mount a tmpfs");
    let plain = scenario(&bench, 1, [Maker::Kernel; 2], "");
    let generator = || Box::new(Generator::new(1, Rights::Root, Marks::Kernel));
    let calls = run(&bench, &plain, Source::Random { generator: generator(), count: 60 })
        .expect("the kernel does not differ from itself");

    let wrong_mode = Scenario { fault: Some(Fault::Mode), ..plain.clone() };
    let failure = run(&bench, &wrong_mode, Source::Recorded(calls.clone())).expect_err("the mode differs");
    assert_eq!(failure.sort, "tree: mode of Directory");

    let lost: Vec<usize> = (0..calls.len())
        .filter(|step| {
            let fault = Scenario { fault: Some(Fault::LostOperation(*step)), ..plain.clone() };
            run(&bench, &fault, Source::Recorded(calls.clone())).is_err()
        })
        .collect();
    assert!(lost.len() > 5, "only the loss of {lost:?} was noticed");
}

/// Options that change the on-disk format, the same on both sides.
#[test]
fn answers_with_options_as_the_kernels_overlay_does() {
    const NAME: &str = "answers_with_options_as_the_kernels_overlay_does";
    if !common::is_real_root() || !common::has_fuse() {
        return common::skip(NAME, "needs root and /dev/fuse");
    }
    let _alone = ALONE.lock();
    if let Err(report) = Campaign::with_options().go() {
        panic!("plyfs differs from the kernel's overlay:\n{report}");
    }
}

/// Each pair of options is taken or refused as the kernel does: a sixth of the pairs, others each time, or with
/// `PLYFS_DIFF_OPTIONS=all` all of them.
#[test]
fn takes_the_options_that_the_kernels_overlay_takes() {
    const NAME: &str = "takes_the_options_that_the_kernels_overlay_takes";
    if !common::is_real_root() || !common::has_fuse() {
        return common::skip(NAME, "needs root and /dev/fuse");
    }
    let _alone = ALONE.lock();
    let bench = Bench::new(Kind::Tmpfs).expect("root can mount a tmpfs");
    let share = if std::env::var("PLYFS_DIFF_OPTIONS").is_ok_and(|sets| sets == "all") { 1 } else { 6 };
    let turn = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs() as usize);
    let (found, count) = engine::acceptance::differences(&bench, turn, share);
    eprintln!("{count} sets of options (turn {}), but for:", turn % share);
    engine::acceptance::reasons().for_each(|reason| eprintln!("  {reason}"));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// With files that the kernel reads and writes past the server.
#[test]
fn answers_with_passthrough_as_the_kernels_overlay_does() {
    const NAME: &str = "answers_with_passthrough_as_the_kernels_overlay_does";
    if !common::is_real_root() || !common::has_fuse() {
        return common::skip(NAME, "needs root and /dev/fuse");
    }
    let _alone = ALONE.lock();
    if let Err(report) = Campaign::with_passthrough().go() {
        panic!("plyfs differs from the kernel's overlay:\n{report}");
    }
}
