//! The turns of a [crew](super): who reads next, who waits, and who wakes whom.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::sync::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Condvar, Instant, Mutex, Ordering};
use crate::sys::cpu;

/// A ride that is shorter than this was not worth it, and doubles the time to the next.
pub(super) const WORTH_IT: Duration = Duration::from_millis(50);
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// The least pause after others left the rider no processor: they are likely to go on. A ride that was as long as this paid
/// for some ticks of waiting, and the next comes no later than this.
pub(super) const STARVED_PAUSE: Duration = Duration::from_millis(100);

/// A request that its reader leaves to another thread, with the queue that its reply has to go through.
#[derive(Debug)]
pub struct Handed {
    pub message: Vec<u8>,
    pub device: Arc<OwnedFd>,
}

/// What came of waiting for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// A request of this caller.
    Request(u32),
    /// It was taken back, or was none.
    Nothing,
    /// The mount is gone.
    Over,
}

/// How a request suits the rider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// The rider answers it.
    Own,
    /// The rider answers it, but there are several callers.
    Crowd,
    /// It takes long: others had better answer it.
    Long,
}

/// Where a thread has its request: what the turns are made of, and all that they know of it.
pub trait Desk {
    /// Waits for a request, which takes the place of the one before.
    fn read(&mut self) -> Read;
    /// Whether the one who sent it has had the union for itself for a while.
    fn is_alone(&mut self) -> bool;
    /// How it suits the rider.
    fn fit(&mut self) -> Fit;
    /// Answers it.
    fn answer(&mut self);
    /// What another thread needs to answer it.
    fn hand(&self) -> Handed;
    /// Answers a request that another thread has read.
    fn answer_handed(&mut self, handed: &Handed);
    /// Goes where this caller is.
    fn join(&mut self, caller: u32);
}

/// What a regular thread is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Post {
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
    /// Others call.
    Crowd,
    /// A request takes long, or a large file is read: others answer that.
    Long,
    /// The rider does not get on with a request.
    Stuck,
    /// The rider gets no processor.
    Starved,
    /// There is nothing to do.
    Idle,
}

/// The number of no ride.
pub(super) const NONE: u64 = 0;

#[derive(Debug)]
pub(super) struct State {
    /// How many rides there were.
    pub(super) number: u64,
    pub(super) ended: bool,
    /// Regular threads that wait for the ride to end.
    pub(super) parked: usize,
    /// At some moment no regular thread was left to read, or it may have been so.
    pub(super) short: bool,
    pub(super) handed: VecDeque<Handed>,
    pub(super) began: Instant,
    pub(super) not_before: Instant,
    pub(super) pause: Duration,
}

/// The threads of a mount, and who of them reads.
#[derive(Debug)]
pub struct Crew {
    /// The number of the ride. Changes under the lock; may be looked at without.
    pub(super) riding: AtomicU64,
    pub(super) state: Mutex<State>,
    pub(super) regular: Condvar,
    rider: Condvar,
    pub(super) lookout: Condvar,
    /// Whether there is to be a rider at all.
    rides: bool,
    /// The rider's thread, once it is there.
    pub(super) thread: AtomicU32,
    /// How many regular threads there are for good.
    regulars: usize,
    /// How many regular threads wait for a request, and how many requests they have taken.
    pub(super) reading: AtomicUsize,
    pub(super) taken: AtomicU64,
    /// Whether the lookout looks every now and then, and needs no call.
    pub(super) watching: AtomicBool,
    /// Twice the number of requests that the rider has begun, less one while it is in one.
    pub(super) progress: AtomicU64,
    pub(super) caller: AtomicU32,
}

impl Crew {
    /// A crew of so many regular threads, and whether it is to have a rider.
    pub fn new(regulars: usize, rides: bool) -> Crew {
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
    pub fn rides(&self) -> bool {
        self.rides
    }

    /// The number of the ride, or [`NONE`].
    pub(super) fn ride(&self) -> u64 {
        self.riding.load(Ordering::Relaxed)
    }

    /// The calling thread is the rider.
    pub(super) fn enlist(&self) {
        self.thread.store(cpu::this_thread(), Ordering::Relaxed);
    }

    /// The life of a regular thread.
    pub fn serve(&self, post: Post, desk: &mut impl Desk) {
        loop {
            match self.turn() {
                Turn::Read if !self.begin_read(post) => return,
                Turn::Read => {
                    let read = desk.read();
                    self.end_read();
                    match read {
                        Read::Request(caller) => {
                            if desk.is_alone() {
                                self.offer(caller);
                            }
                            desk.answer();
                        }
                        Read::Nothing => {}
                        Read::Over => return self.dismiss(),
                    }
                }
                Turn::Answer(handed) => desk.answer_handed(&handed),
                Turn::End => return,
            }
        }
    }

    /// The life of the rider: the thread that stays with one caller.
    pub fn serve_one(&self, desk: &mut impl Desk) {
        self.enlist();
        let mut known = NONE;
        while let Some(number) = self.await_ride() {
            if number != known {
                known = number;
                desk.join(self.caller());
            }
            match desk.read() {
                Read::Request(caller) => {
                    self.begin(caller);
                    let handed = match desk.fit() {
                        Fit::Own => false,
                        Fit::Crowd => {
                            self.end_ride(Reason::Crowd);
                            false
                        }
                        Fit::Long => self.hand_over(|| desk.hand()),
                    };
                    if !handed {
                        desk.answer();
                    }
                    self.done();
                }
                Read::Nothing => {}
                Read::Over => return self.dismiss(),
            }
        }
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
        // Even if the ride is over before the lookout wakes: meanwhile whoever was the last to read saw no need to call.
        state.short = true;
        self.caller.store(caller, Ordering::Relaxed);
        self.riding.store(state.number, Ordering::Relaxed);
        self.rider.notify_one();
        self.lookout.notify_one();
    }

    /// The rider begins with a request.
    fn begin(&self, caller: u32) {
        self.caller.store(caller, Ordering::Relaxed);
        // Only the rider writes it.
        self.progress.store(self.progress.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The rider is done with it.
    fn done(&self) {
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
            Reason::Idle | Reason::Long => FIRST_PAUSE,
            Reason::Starved if lasted >= STARVED_PAUSE => STARVED_PAUSE,
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
    pub(super) fn hand_over(&self, request: impl FnOnce() -> Handed) -> bool {
        let mut state = self.state.lock();
        let waiting = self.ride() != NONE && state.parked > state.handed.len();
        if waiting {
            state.handed.push_back(request());
        }
        self.end(&mut state, Reason::Long);
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
