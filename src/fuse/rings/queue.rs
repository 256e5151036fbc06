//! The queues of the [rings](super): how many threads each has to spare, and who is told when it has none.

use std::sync::Arc;
use std::time::Duration;

use super::sync::{AtomicBool, AtomicU32, AtomicU64, Condvar, Mutex, Ordering};

/// How many threads each queue has from the start.
pub const EACH: u32 = 4;

/// The most threads of one queue.
pub const MOST: u32 = 16;

/// How long all of a queue may be busy before it gets one more.
const PATIENCE: Duration = Duration::from_millis(10);

/// The requests from one processor.
#[derive(Debug)]
pub struct Queue {
    number: u16,
    threads: AtomicU32,
    idle: AtomicU32,
    answered: AtomicU64,
    /// How many of its first threads may still offer the kernel a place, for as long as none has.
    hopes: AtomicU32,
    shared: Arc<Shortage>,
}

/// Whether there is a queue without an idle thread.
#[derive(Debug)]
pub struct Shortage {
    seen: AtomicBool,
    /// Whether the mount is gone.
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Queue {
    /// A queue without threads.
    pub fn new(number: u16, shared: Arc<Shortage>) -> Queue {
        let zero = || AtomicU32::new(0);
        let (answered, hopes) = (AtomicU64::new(0), AtomicU32::new(EACH));
        Queue { number, threads: zero(), idle: zero(), answered, hopes, shared }
    }

    /// A queue that always has a thread to spare: the one of all processors without callers.
    pub fn never_short(shared: Arc<Shortage>) -> Queue {
        let (threads, idle, hopes) = (AtomicU32::new(EACH), AtomicU32::new(MOST), AtomicU32::new(1));
        Queue { number: 0, threads, idle, answered: AtomicU64::new(0), hopes, shared }
    }

    /// Its processor's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// It has one thread more.
    pub fn join(&self) {
        self.threads.fetch_add(1, Ordering::Relaxed);
        self.idle.fetch_add(1, Ordering::Relaxed);
    }

    /// A thread has offered a place; the kernel takes it, or is the one that refuses.
    pub fn offer(&self) {
        self.hopes.store(0, Ordering::Relaxed);
    }

    /// A thread has got a request.
    pub fn take(&self) {
        if self.idle.fetch_sub(1, Ordering::SeqCst) == 1 && !self.shared.seen.swap(true, Ordering::SeqCst) {
            let _ended = self.shared.ended.lock();
            self.shared.changed.notify_one();
        }
    }

    /// A thread is about to offer its place again.
    pub fn give_back(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.idle.fetch_add(1, Ordering::Relaxed);
    }

    /// An idle thread is no more: there was no place, or the kernel has refused it. It counts as one of the most that there
    /// may be, so that others are tried, but not for ever. True if the kernel has not heard of this queue, and would wait
    /// for it: this was the last of the threads that the queue began with.
    pub fn leave(&self) -> bool {
        self.take();
        self.hopes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |hopes| hopes.checked_sub(1)) == Ok(1)
    }

    /// For a spare thread, which comes when requests wait already: a number for a message that gets them going. None of the
    /// kernel's own is that large, and no two are the same.
    pub fn stirs(&self) -> Option<u64> {
        let threads = self.threads.load(Ordering::Relaxed);
        (threads > EACH).then_some(1 << 63 | u64::from(self.number) << 32 | u64::from(threads) << 1)
    }

    /// What there is to be seen of it: how many it has answered, if it has no thread to spare.
    fn stuck_at(&self) -> Option<u64> {
        let short = self.idle.load(Ordering::SeqCst) == 0 && self.threads.load(Ordering::Relaxed) < MOST;
        short.then(|| self.answered.load(Ordering::Relaxed))
    }
}

impl Shortage {
    /// No shortage.
    pub fn new() -> Shortage {
        Shortage { seen: AtomicBool::new(false), ended: Mutex::new(false), changed: Condvar::new() }
    }

    /// Starts spare threads where all have been in their requests for a while, until all is over.
    pub fn look_out(&self, queues: &[Arc<Queue>], relieve: impl Fn(Arc<Queue>)) {
        let mut ended = self.ended.lock();
        while !*ended {
            if !self.seen.load(Ordering::Relaxed) {
                self.changed.wait(&mut ended);
                continue;
            }
            let before: Vec<_> = queues.iter().map(|queue| queue.stuck_at()).collect();
            self.changed.wait_for(&mut ended, PATIENCE);
            // Whoever takes the last idle thread after this says so again; what was taken before is looked at below.
            self.seen.store(false, Ordering::SeqCst);
            let mut short = false;
            for (queue, before) in queues.iter().zip(before) {
                let now = queue.stuck_at();
                short |= now.is_some();
                if now.is_some() && now == before && !*ended {
                    relieve(queue.clone());
                }
            }
            if short {
                self.seen.store(true, Ordering::Relaxed);
            }
        }
    }

    /// The mount is gone.
    pub fn dismiss(&self) {
        *self.ended.lock() = true;
        self.changed.notify_all();
    }
}
