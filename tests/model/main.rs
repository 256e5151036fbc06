//! The threads of a mount take their turns in orders that no machine would come upon: `fuse/crew` and `fuse/rings/queue`, as
//! they are, on locks and conditions of which `shuttle` decides who goes on.
//!
//! What is slow is modelled as what waits for something quick: a request that is answered only once another has been. So
//! a wake-up that is lost, or a request that no thread reads while others are in slow ones, ends as a deadlock or goes on
//! for ever, and both are found. Every run also has to end: the mount goes, and all threads with it.
//!
//! `PLYFS_MODEL=100000` has so many orders tried of each case (`scripts/checks.sh model`). What fails prints the order, which
//! `shuttle::replay` repeats.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod crew;
mod rings;
mod sync;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, MaxSteps, Runner};

/// What the modules that are included here need of `plyfs::sys`: what other threads have had of the processors is anything.
mod sys {
    pub mod cpu {
        use std::time::Duration;

        use shuttle::rand::{Rng, thread_rng};

        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Waited {
            pub ran: Duration,
            pub waited: Duration,
        }

        pub fn waited(_thread: u32) -> Option<Waited> {
            let some = || Duration::from_millis(thread_rng().gen_range(0..20));
            Some(Waited { ran: some(), waited: some() })
        }

        pub fn this_thread() -> u32 {
            1
        }
    }
}

/// More steps than any run needs that comes to an end.
const MOST_STEPS: usize = 200_000;

/// Tries many orders: at each step any thread, and then threads of which one has precedence until it has to wait.
fn in_many_orders(share: usize, run: impl Fn() + Send + Sync + 'static) {
    let tries = std::env::var("PLYFS_MODEL").ok().and_then(|tries| tries.parse().ok()).unwrap_or(share);
    let run = std::sync::Arc::new(run);
    let check = |scheduler: Box<dyn Scheduler + Send>| {
        let mut config = Config::new();
        config.max_steps = MaxSteps::FailAfter(MOST_STEPS);
        config.silence_warnings = true;
        let run = run.clone();
        Runner::new(scheduler, config).run(move || run());
    };
    check(Box::new(RandomScheduler::new(tries / 2)));
    for depth in 2..5 {
        check(Box::new(PctScheduler::new(depth, tries / 6)));
    }
}

/// Whether it fails.
fn fails(run: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err()
}
