//! Faults for tests: the n-th system call of a thread fails, or the process dies there.
//!
//! Every call that the union makes passes [`gate`] first. Debug builds count and fail there; a release build has an empty
//! function in its place and nothing else of this file.
//!
//! Must never: fail a call that nobody armed, or one of another thread.

#[cfg(debug_assertions)]
pub use armed::{Fault, arm, deny, disarm, fold, seal};

/// Where each system call passes before it is made, with its name.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(super) const fn gate(_call: &'static str) -> crate::errno::Result<()> {
    Ok(())
}

#[cfg(debug_assertions)]
pub(super) use armed::{gate, is_folded, sealed_with};

#[cfg(debug_assertions)]
mod armed {
    use std::cell::RefCell;

    use crate::errno::{Errno, Result};

    /// What happens at the chosen call.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Fault {
        /// It is not made and fails with this; the calls after it are made.
        Fails(Errno),
        /// From here on nothing is made any more, and all of it fails: what lies on disk is what a process that is killed
        /// at this moment leaves, without one to be started for it.
        Frozen,
        /// The process is killed.
        Killed,
        /// The thread panics, as it would by a mistake of ours.
        Panics,
    }

    #[derive(Default)]
    struct Plan {
        /// Which call, from 1; 0 for none.
        at: usize,
        fault: Option<Fault>,
        /// The calls so far.
        seen: Vec<&'static str>,
        counting: bool,
        /// Calls that a file system does not know.
        denied: Option<(&'static str, Errno)>,
        /// What fs-verity says of every file.
        sealed: Option<(u8, Vec<u8>)>,
        /// Whether directories find their names whatever the case.
        folded: bool,
    }

    thread_local! {
        static PLAN: RefCell<Plan> = RefCell::default();
    }

    /// From now on the calls of this thread are counted, and the `at`-th, from 1, meets its fault; with 0 none does.
    pub fn arm(at: usize, fault: Fault) {
        PLAN.with_borrow_mut(|plan| {
            (plan.at, plan.fault, plan.counting) = (at, Some(fault), true);
            plan.seen.clear();
        });
    }

    /// All calls are made again. Returns the names of those that were counted.
    pub fn disarm() -> Vec<&'static str> {
        PLAN.with_borrow_mut(|plan| {
            (plan.at, plan.fault, plan.counting) = (0, None, false);
            std::mem::take(&mut plan.seen)
        })
    }

    /// Every call of this name fails with this, in this thread, until `None` is given: a file system that lacks it.
    pub fn deny(call: Option<(&'static str, Errno)>) {
        PLAN.with_borrow_mut(|plan| plan.denied = call);
    }

    /// fs-verity says this of every file that this thread asks for, until `None` is given: few file systems have it, and
    /// not every kernel. The number of the algorithm, and the digest.
    pub fn seal(digest: Option<(u8, Vec<u8>)>) {
        PLAN.with_borrow_mut(|plan| plan.sealed = digest);
    }

    pub(in crate::sys) fn sealed_with() -> Option<(u8, Vec<u8>)> {
        PLAN.with_borrow(|plan| plan.sealed.clone())
    }

    /// Every directory that this thread asks of finds its names whatever their case, or not: few kernels can have one.
    pub fn fold(folded: bool) {
        PLAN.with_borrow_mut(|plan| plan.folded = folded);
    }

    pub(in crate::sys) fn is_folded() -> bool {
        PLAN.with_borrow(|plan| plan.folded)
    }

    pub(in crate::sys) fn gate(call: &'static str) -> Result<()> {
        PLAN.with_borrow_mut(|plan| {
            if plan.counting {
                plan.seen.push(call);
            }
            let count = plan.seen.len();
            match plan.fault {
                Some(Fault::Fails(errno)) if count == plan.at => return Err(Some(errno)),
                Some(Fault::Frozen) if plan.at > 0 && count >= plan.at => return Err(Some(Errno::EIO)),
                Some(Fault::Killed) if count == plan.at => {
                    let own = rustix::process::getpid();
                    rustix::process::kill_process(own, rustix::process::Signal::KILL)
                        .map_err(|errno| Some(errno.into()))?;
                }
                Some(Fault::Panics) if count == plan.at => return Err(None),
                _ => {}
            }
            match plan.denied {
                Some((denied, errno)) if denied == call => Err(Some(errno)),
                _ => Ok(()),
            }
        })
        .map_err(|errno: Option<Errno>| {
            errno.unwrap_or_else(|| std::panic::resume_unwind(Box::new("a fault was asked for")))
        })
    }
}

#[cfg(test)]
#[cfg(debug_assertions)]
mod tests {
    use super::*;
    use crate::errno::Errno;

    #[test]
    fn the_chosen_call_fails_and_no_other() {
        arm(2, Fault::Fails(Errno::ENOSPC));
        let outcomes = [gate("a"), gate("b"), gate("c")];
        assert_eq!(outcomes, [Ok(()), Err(Errno::ENOSPC), Ok(())]);
        assert_eq!(disarm(), ["a", "b", "c"]);
        assert_eq!(gate("d"), Ok(()));
    }

    #[test]
    fn what_is_frozen_stays_frozen() {
        arm(2, Fault::Frozen);
        assert_eq!([gate("a"), gate("b"), gate("c")], [Ok(()), Err(Errno::EIO), Err(Errno::EIO)]);
        assert_eq!(disarm().len(), 3);
    }

    #[test]
    fn a_denied_call_is_unknown_until_it_is_allowed() {
        deny(Some(("b", Errno::EINVAL)));
        assert_eq!([gate("a"), gate("b"), gate("b")], [Ok(()), Err(Errno::EINVAL), Err(Errno::EINVAL)]);
        deny(None);
        assert_eq!(gate("b"), Ok(()));
    }
}
