//! Who reads requests: any of the regular threads, or one rider alone.
//!
//! A caller that does one thing at a time waits for each answer, so the best place for the answer to be made is the caller's
//! own processor, where it costs no wake-up of another. [`follow`](super::follow) brings a thread there. But when the answer
//! is sent, the scheduler sees the server on that processor and wakes the caller on an idle one, and the two part again.
//! Not so if all that runs there has the policy `SCHED_IDLE`: such a processor counts as free, the caller is woken on it,
//! and takes it over at once (sched(7)). Hence the *rider*: a thread of that policy, on the caller's processor, which alone
//! reads requests while one caller has the union for itself. A miss then costs half, a creation a third less, as much as if
//! both were tied to one processor.
//!
//! ```text
//!               one caller for a while (offer)
//!   open  ------------------------------------------->  ride
//!   regular threads read        several callers, large data, a long request, nothing to do for a while;   the rider reads,
//!   (the rider waits)  <--------------------------------------------------------------------------------   the regular wait
//!                               the lookout sees the rider stuck, or kept from running (end)
//! ```
//!
//! The price of the policy: beside busy processes of the same scheduling group such a thread gets next to nothing, and a user
//! may give the policy up only by ending the thread. Therefore the *lookout*, a thread of the ordinary policy, looks every few
//! milliseconds while there is a ride, whether the rider gets on: if it has been in one request the whole time (a slow disk,
//! a long copy), if requests wait that it does not take, or if it waited for a processor while its caller did not run, the
//! ride ends and the regular threads read. What is known to take long is handed to a regular thread from the start.
//! The more often rides end soon, the longer it takes to the next one. Measured beside two endless loops of the same group:
//! rides of 20 to 30 ms that end as starved, within the first second six of them, then none; beside loops of another group
//! (each session has its own where the kernel has autogroups) riding costs nothing.
//!
//! The lookout has a second duty. When no regular thread is left to read because all are in requests that take long (a slow
//! or frozen disk, copies, syncs), and others wait, it calls a spare one, so that what is slow holds up nothing else. A spare
//! one leaves as soon as the others are back.
//!
//! `turns` is what happens between the threads, `lookout` what the lookout sees. Both know of waiting and waking only what
//! `fuse/sync` gives them, and of requests only what a [`Desk`] tells: `tests/model` has every thread here take its turns in
//! orders that no machine would come upon.
//!
//! Must never: leave a mount without a thread that reads. Every way out of [`Crew::turn`] that is not a read parks the
//! thread under the lock that the mode is changed under, and whoever changes the mode wakes all.

mod lookout;
#[cfg(test)]
mod tests;
mod turns;

use super::sync;

pub(super) use turns::{Crew, Desk, Fit, Handed, Post, Read};
