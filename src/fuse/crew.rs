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
//! Must never: leave a mount without a thread that reads. Every way out of [`Crew::may_read`] that is not a read parks the
//! thread under the lock that the mode is changed under, and whoever changes the mode wakes all.

mod lookout;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::sys::cpu;

/// A ride that is shorter than this was not worth it, and doubles the time to the next.
const WORTH_IT: Duration = Duration::from_millis(50);
const FIRST_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// The least pause after others left the rider no processor: they are likely to go on.
const STARVED_PAUSE: Duration = Duration::from_millis(100);

/// A request that its reader leaves to another thread, with the queue that its reply has to go through.
#[derive(Debug)]
pub(super) struct Handed {
    pub message: Vec<u8>,
    pub device: Arc<OwnedFd>,
}

/// What a regular thread is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Post {
    /// For good.
    Regular,
    /// Until the others are back from what keeps them.
    Spare,
}

/// What a regular thread is to do next.
#[derive(Debug)]
pub(super) enum Turn {
    /// Read a request.
    Read,
    /// Answer this one.
    Answer(Handed),
    /// End.
    End,
}

/// Why a ride ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Others call, or data is moved in large pieces.
    Crowd,
    /// A request takes long.
    Stuck,
    /// The rider gets no processor.
    Starved,
    /// There is nothing to do.
    Idle,
}

/// The number of no ride.
const NONE: u64 = 0;

#[derive(Debug)]
struct State {
    /// How many rides there were.
    number: u64,
    ended: bool,
    /// Regular threads that wait for the ride to end.
    parked: usize,
    /// At some moment no regular thread was left to read.
    short: bool,
    handed: VecDeque<Handed>,
    began: Instant,
    not_before: Instant,
    pause: Duration,
}

/// The threads of a mount, and who of them reads.
#[derive(Debug)]
pub(super) struct Crew {
    /// The number of the ride. Changes under the lock; may be looked at without.
    riding: AtomicU64,
    state: Mutex<State>,
    regular: Condvar,
    rider: Condvar,
    lookout: Condvar,
    /// Whether there is to be a rider at all.
    rides: bool,
    /// The rider's thread, once it is there.
    thread: AtomicU32,
    /// How many regular threads there are for good.
    regulars: usize,
    /// How many regular threads wait for a request, and how many requests they have taken.
    reading: AtomicUsize,
    taken: AtomicU64,
    /// Whether the lookout looks every now and then, and needs no call.
    watching: AtomicBool,
    /// Twice the number of requests that the rider has begun, less one while it is in one.
    progress: AtomicU64,
    caller: AtomicU32,
}

impl Crew {
    /// A crew of so many regular threads, and whether it is to have a rider.
    pub(super) fn new(regulars: usize, rides: bool) -> Crew {
        let now = Instant::now();
        let state = State {
            number: NONE,
            ended: false,
            parked: 0,
            short: false,
            handed: VecDeque::new(),
            began: now,
            not_before: now,
            pause: FIRST_PAUSE,
        };
        Crew {
            riding: AtomicU64::new(NONE),
            state: Mutex::new(state),
            regular: Condvar::new(),
            rider: Condvar::new(),
            lookout: Condvar::new(),
            rides,
            thread: AtomicU32::new(0),
            regulars,
            reading: AtomicUsize::new(0),
            taken: AtomicU64::new(0),
            watching: AtomicBool::new(false),
            progress: AtomicU64::new(0),
            caller: AtomicU32::new(0),
        }
    }

    /// Whether there is to be a rider.
    pub(super) fn rides(&self) -> bool {
        self.rides
    }

    /// The number of the ride, or [`NONE`].
    fn ride(&self) -> u64 {
        self.riding.load(Ordering::Relaxed)
    }

    /// The calling thread is the rider.
    pub(super) fn enlist(&self) {
        self.thread.store(cpu::this_thread(), Ordering::Relaxed);
    }

    /// A regular thread's turn; waits while there is a ride.
    pub(super) fn turn(&self) -> Turn {
        if self.ride() == NONE {
            return Turn::Read;
        }
        let mut state = self.state.lock();
        loop {
            if let Some(handed) = state.handed.pop_front() {
                return Turn::Answer(handed);
            }
            if state.ended {
                return Turn::End;
            }
            if self.ride() == NONE {
                return Turn::Read;
            }
            state.parked += 1;
            self.regular.wait(&mut state);
            state.parked -= 1;
        }
    }

    /// A regular thread is about to read. False for a spare one of which there is no need any more.
    pub(super) fn begin_read(&self, post: Post) -> bool {
        if post == Post::Spare && self.reading.load(Ordering::SeqCst) >= self.regulars {
            return false;
        }
        self.reading.fetch_add(1, Ordering::SeqCst);
        true
    }

    /// A regular thread has read.
    pub(super) fn end_read(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
        let last = self.reading.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.ride() == NONE && !self.watching.swap(true, Ordering::SeqCst) {
            self.state.lock().short = true;
            self.lookout.notify_one();
        }
    }

    /// Waits until the rider may read; gives the number of the ride, and none when all is over.
    pub(super) fn await_ride(&self) -> Option<u64> {
        let mut number = self.ride();
        if number == NONE {
            let mut state = self.state.lock();
            while self.ride() == NONE && !state.ended {
                self.rider.wait(&mut state);
            }
            number = self.ride();
        }
        (number != NONE).then_some(number)
    }

    /// For whom the rider reads.
    pub(super) fn caller(&self) -> u32 {
        self.caller.load(Ordering::Relaxed)
    }

    /// This caller has had the union for itself for a while.
    pub(super) fn offer(&self, caller: u32) {
        if self.thread.load(Ordering::Relaxed) == 0 || self.ride() != NONE {
            return;
        }
        let now = Instant::now();
        let mut state = self.state.lock();
        if self.ride() != NONE || state.ended || now < state.not_before {
            return;
        }
        (state.began, state.number) = (now, state.number + 1);
        self.caller.store(caller, Ordering::Relaxed);
        self.riding.store(state.number, Ordering::Relaxed);
        self.rider.notify_one();
        self.lookout.notify_one();
    }

    /// The rider begins with a request.
    pub(super) fn begin(&self, caller: u32) {
        self.caller.store(caller, Ordering::Relaxed);
        // Only the rider writes it.
        self.progress.store(self.progress.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The rider is done with it.
    pub(super) fn done(&self) {
        self.progress.store(self.progress.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Ends the ride, if there is one.
    pub(super) fn end_ride(&self, reason: Reason) {
        let mut state = self.state.lock();
        self.end(&mut state, reason);
    }

    fn end(&self, state: &mut State, reason: Reason) {
        if self.ride() == NONE {
            return;
        }
        let now = Instant::now();
        let lasted = now.duration_since(state.began);
        state.pause = match reason {
            Reason::Idle => FIRST_PAUSE,
            Reason::Starved => (state.pause * 8).clamp(STARVED_PAUSE, LONGEST_PAUSE),
            _ if lasted >= WORTH_IT => FIRST_PAUSE,
            _ => (state.pause * 2).min(LONGEST_PAUSE),
        };
        state.not_before = now + state.pause;
        self.riding.store(NONE, Ordering::Relaxed);
        self.regular.notify_all();
        log::debug!("a ride of {lasted:?} ends: {reason:?}; no other for {:?}", state.pause);
    }

    /// Leaves a request to a regular thread, and the reading as well. Gives it back if none of them is waiting: those that
    /// are not wait for a request already.
    pub(super) fn hand_over(&self, message: &[u8], device: &Arc<OwnedFd>) -> bool {
        let mut state = self.state.lock();
        let waiting = self.ride() != NONE && state.parked > state.handed.len();
        if waiting {
            state.handed.push_back(Handed { message: message.to_vec(), device: device.clone() });
        }
        self.end(&mut state, Reason::Crowd);
        waiting
    }

    /// The mount is gone: all threads end.
    pub(super) fn dismiss(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        self.riding.store(NONE, Ordering::Relaxed);
        self.regular.notify_all();
        self.rider.notify_all();
        self.lookout.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::thread;

    use super::*;

    const CALLER: u32 = 1000;

    fn device() -> Arc<OwnedFd> {
        Arc::new(std::fs::File::open("/dev/null").unwrap().as_fd().try_clone_to_owned().unwrap())
    }

    /// A crew with a rider, and a ride.
    fn riding() -> Crew {
        let crew = Crew::new(1, true);
        crew.enlist();
        crew.offer(CALLER);
        assert_ne!(crew.ride(), NONE);
        crew
    }

    fn wait_for(what: impl Fn() -> bool) {
        let begin = Instant::now();
        while !what() {
            assert!(begin.elapsed() < Duration::from_secs(60));
            thread::yield_now();
        }
    }

    #[test]
    fn nobody_rides_before_the_rider_is_there() {
        let crew = Crew::new(1, true);
        crew.offer(CALLER);
        assert!(matches!(crew.turn(), Turn::Read));
    }

    #[test]
    fn a_regular_thread_waits_for_the_end_of_a_ride_and_the_rider_for_its_beginning() {
        let crew = Crew::new(1, true);
        crew.enlist();
        thread::scope(|scope| {
            let rider = scope.spawn(|| crew.await_ride());
            crew.offer(CALLER);
            assert_eq!((rider.join().unwrap(), crew.caller()), (Some(1), CALLER));
            let regular = scope.spawn(|| crew.turn());
            wait_for(|| crew.state.lock().parked == 1);
            crew.end_ride(Reason::Stuck);
            assert!(matches!(regular.join().unwrap(), Turn::Read));
        });
    }

    #[test]
    fn all_end_when_the_mount_goes() {
        let crew = riding();
        thread::scope(|scope| {
            let regular = scope.spawn(|| crew.turn());
            let lookout = scope.spawn(|| crew.look_out(|| false, || {}));
            wait_for(|| crew.state.lock().parked == 1);
            crew.dismiss();
            assert!(matches!(regular.join().unwrap(), Turn::End | Turn::Read));
            lookout.join().unwrap();
            assert_eq!(crew.await_ride(), None);
            crew.offer(CALLER);
            assert_eq!(crew.ride(), NONE);
        });
    }

    #[test]
    fn a_request_is_handed_to_a_thread_that_waits_and_to_no_other() {
        let (crew, device) = (riding(), device());
        assert!(!crew.hand_over(b"request", &device), "nobody waits");
        assert_eq!(crew.ride(), NONE, "and yet others read now");
        let crew = riding();
        thread::scope(|scope| {
            let regular = scope.spawn(|| crew.turn());
            wait_for(|| crew.state.lock().parked == 1);
            assert!(crew.hand_over(b"request", &device));
            match regular.join().unwrap() {
                Turn::Answer(handed) => assert_eq!(handed.message, b"request"),
                other => panic!("{other:?}"),
            }
            assert!(matches!(crew.turn(), Turn::Read));
        });
    }

    #[test]
    fn a_spare_thread_comes_when_requests_wait_and_nobody_reads_and_leaves_when_somebody_does() {
        let crew = Crew::new(1, true);
        let called = &AtomicUsize::new(0);
        thread::scope(|scope| {
            let relieve = || {
                called.fetch_add(1, Ordering::SeqCst);
            };
            let lookout = scope.spawn({
                let crew = &crew;
                move || crew.look_out(|| true, relieve)
            });
            assert!(crew.begin_read(Post::Regular));
            thread::sleep(Duration::from_millis(50));
            assert_eq!(called.load(Ordering::SeqCst), 0, "somebody reads");
            crew.end_read();
            wait_for(|| called.load(Ordering::SeqCst) > 0);
            assert!(crew.begin_read(Post::Spare), "nobody else reads");
            crew.end_read();
            assert!(crew.begin_read(Post::Regular));
            assert!(!crew.begin_read(Post::Spare), "the regular one is back");
            wait_for(|| !crew.watching.load(Ordering::SeqCst));
            crew.dismiss();
            lookout.join().unwrap();
        });
    }

    #[test]
    fn rides_that_end_soon_keep_away_the_next() {
        let crew = riding();
        let mut pause = Duration::ZERO;
        for _ in 0..3 {
            crew.end_ride(Reason::Crowd);
            crew.offer(CALLER);
            let mut state = crew.state.lock();
            assert!(crew.ride() == NONE && state.pause > pause, "{state:?}");
            pause = state.pause;
            state.not_before = Instant::now();
            drop(state);
            crew.offer(CALLER);
        }
        crew.state.lock().began -= WORTH_IT;
        crew.end_ride(Reason::Crowd);
        assert_eq!(crew.state.lock().pause, FIRST_PAUSE);
    }

    #[test]
    fn a_ride_without_requests_ends_by_itself() {
        let crew = riding();
        thread::scope(|scope| {
            let lookout = scope.spawn(|| crew.look_out(|| false, || {}));
            wait_for(|| crew.ride() == NONE);
            crew.dismiss();
            lookout.join().unwrap();
        });
    }
}
