//! The second way to the kernel, `io_uring`: a request is answered on the processor of its caller by a thread that is kept there.
//!
//! Each processor has a queue of its own, and each queue has threads that hold one place each: a thread that is in a slow
//! request has no place to offer, so the next request goes to another thread. When all of a queue have been in their
//! requests for a while, it gets a spare one, which stays.
//!
//! ```text
//!   caller on processor 1 --> queue 1 --> a thread kept on processor 1 --> adapter
//! ```
//!
//! A reply and the wait for the next request are one system call instead of two, and no other processor is woken. Measured
//! beside the rider (see [`crew`](super::crew), which is not needed then): `rm -rf` three quarters, two callers at once and
//! removals four fifths, creations nine tenths; large reads take half as much again, for they are copied twice more. A
//! thread of policy `SCHED_IDLE`, as the rider is, gains nothing here.
//!
//! Requests without a reply (FORGET) come as ever, so the ordinary threads are there, too; and they go on alone where the
//! kernel turns out not to take the rings. Whoever runs the machine has to allow them (`fuse.enable_uring`), and whoever mounts
//! has to ask.
//!
//! Requests that wait when a spare thread comes are handed out only after a reply from their queue: the spare one makes for
//! one itself (`Worker::stir`), if the kernel remembers any file.
//!
//! Must never: begin with fewer places than there are queues, for the kernel waits until each has one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::server::MAX_DATA;
use super::worker::Worker;
use crate::errno::{Errno, Result};
use crate::sys::cpu::Processors;
use crate::sys::uring::{self, Ring};

/// How many threads each queue has from the start.
const EACH: u32 = 4;

/// The most threads of one queue.
const MOST: u32 = 16;

/// How long all of a queue may be busy before it gets one more.
const PATIENCE: Duration = Duration::from_millis(10);

/// The requests from one processor.
#[derive(Debug)]
pub(super) struct Queue {
    number: u16,
    threads: AtomicU32,
    idle: AtomicU32,
    answered: AtomicU64,
    shared: Arc<Shortage>,
}

/// Whether there is a queue without an idle thread.
#[derive(Debug, Default)]
struct Shortage {
    seen: AtomicBool,
    /// Whether the mount is gone.
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Queue {
    /// A thread has got a request.
    pub(super) fn take(&self) {
        if self.idle.fetch_sub(1, Ordering::Relaxed) == 1 && !self.shared.seen.swap(true, Ordering::Relaxed) {
            let _ended = self.shared.ended.lock();
            self.shared.changed.notify_one();
        }
    }

    /// A thread is about to offer its place again.
    pub(super) fn give_back(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.idle.fetch_add(1, Ordering::Relaxed);
    }

    /// For a spare thread, which comes when requests wait already: a number for a message that gets them going. None of the
    /// kernel's own is that large, and no two are the same.
    pub(super) fn stirs(&self) -> Option<u64> {
        let threads = self.threads.load(Ordering::Relaxed);
        (threads > EACH).then_some(1 << 63 | u64::from(self.number) << 32 | u64::from(threads) << 1)
    }

    /// What there is to be seen of it: how many it has answered, if it has no thread to spare.
    fn stuck_at(&self) -> Option<u64> {
        let short = self.idle.load(Ordering::Relaxed) == 0 && self.threads.load(Ordering::Relaxed) < MOST;
        short.then(|| self.answered.load(Ordering::Relaxed))
    }
}

/// The queues of a connection.
#[derive(Debug)]
pub(super) struct Rings {
    queues: Vec<Arc<Queue>>,
    /// Those of processors on which no thread may run now. Requests come from them only after that has changed.
    others: Vec<u16>,
    processors: Processors,
    shared: Arc<Shortage>,
}

impl Rings {
    /// Looks whether rings can be made here, before the kernel is asked to use them.
    ///
    /// # Errors
    /// Those of [`Ring::new`] and [`uring::queues`].
    pub(super) fn new() -> Result<Rings> {
        let (processors, count) = (Processors::allowed()?, uring::queues()?);
        drop(Ring::new(&[0], MAX_DATA as usize)?);
        let shared = Arc::new(Shortage::default());
        let (own, others): (Vec<u16>, Vec<u16>) = (0..count).partition(|n| processors.only(usize::from(*n)).is_some());
        let queue = |number| {
            let zero = || AtomicU32::new(0);
            Arc::new(Queue {
                number,
                threads: zero(),
                idle: zero(),
                answered: AtomicU64::new(0),
                shared: shared.clone(),
            })
        };
        Ok(Rings { queues: own.into_iter().map(queue).collect(), others, processors, shared: shared.clone() })
    }

    /// For whom threads are to be started: each queue as often as it has threads from the start.
    pub(super) fn posts(&self) -> Vec<Arc<Queue>> {
        self.queues.iter().flat_map(|queue| std::iter::repeat_n(queue.clone(), EACH as usize)).collect()
    }

    /// The life of a thread of one queue.
    pub(super) fn serve(&self, queue: &Queue, worker: &Worker<'_>) {
        queue.threads.fetch_add(1, Ordering::Relaxed);
        queue.idle.fetch_add(1, Ordering::Relaxed);
        if let Some(processor) = self.processors.only(usize::from(queue.number)) {
            // Elsewhere it works, too, only slower.
            processor.keep_to().unwrap_or_else(|errno| log::debug!("queue {}: {errno}", queue.number));
        }
        self.end(Ring::new(&[queue.number], MAX_DATA as usize).and_then(|mut ring| worker.circle(&mut ring, queue)));
    }

    /// The life of the thread that stands by for all other queues.
    pub(super) fn serve_others(&self, worker: &Worker<'_>) {
        if self.others.is_empty() {
            return;
        }
        let (threads, idle) = (AtomicU32::new(EACH), AtomicU32::new(MOST));
        let any = Queue { number: 0, threads, idle, answered: AtomicU64::new(0), shared: self.shared.clone() };
        self.end(Ring::new(&self.others, MAX_DATA as usize).and_then(|mut ring| worker.circle(&mut ring, &any)));
    }

    /// A thread ends.
    fn end(&self, result: Result<()>) {
        match result {
            Ok(()) | Err(Errno::ENOTCONN | Errno::ECONNABORTED | Errno::ECANCELED) => {}
            Err(errno) => log::warn!("requests do not come through a ring: {errno}"),
        }
    }

    /// Starts spare threads where all have been in their requests for a while, until all is over.
    pub(super) fn look_out(&self, relieve: impl Fn(Arc<Queue>)) {
        let mut ended = self.shared.ended.lock();
        while !*ended {
            if !self.shared.seen.load(Ordering::Relaxed) {
                self.shared.changed.wait(&mut ended);
                continue;
            }
            let before: Vec<_> = self.queues.iter().map(|queue| queue.stuck_at()).collect();
            self.shared.changed.wait_for(&mut ended, PATIENCE);
            let mut short = false;
            for (queue, before) in self.queues.iter().zip(before) {
                let now = queue.stuck_at();
                short |= now.is_some();
                if now.is_some() && now == before && !*ended {
                    relieve(queue.clone());
                }
            }
            // Whoever takes the last idle thread after this says so again.
            self.shared.seen.store(short, Ordering::Relaxed);
        }
    }

    /// The mount is gone.
    pub(super) fn dismiss(&self) {
        *self.shared.ended.lock() = true;
        self.shared.changed.notify_all();
    }
}
