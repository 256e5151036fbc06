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
//! kernel turns out not to take the rings, or where none can be made when it comes to that (no descriptors, no memory): the
//! kernel, which would wait for them, is then given one to refuse. Whoever runs the machine has to allow them
//! (`fuse.enable_uring`), and whoever mounts has to ask.
//!
//! Requests that wait when a spare thread comes are handed out only after a reply from their queue: the spare one makes for
//! one itself (`Worker::stir`), if the kernel remembers any file.
//!
//! Must never: begin with fewer places than there are queues, for the kernel waits until each has one.

mod queue;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::server::MAX_DATA;
use super::sync::{self, Mutex};
use super::worker::Worker;
use crate::errno::{Errno, Result};
use crate::sys::cpu::Processors;
use crate::sys::uring::{self, Refusal, Ring};

pub(super) use queue::{EACH, Queue, Shortage};

/// The queues of a connection.
#[derive(Debug)]
pub(super) struct Rings {
    queues: Vec<Arc<Queue>>,
    /// Those of processors on which no thread may run now. Requests come from them only after that has changed.
    others: Vec<u16>,
    processors: Processors,
    shared: Arc<Shortage>,
    /// Whether it was said that the kernel refuses a place.
    refused: AtomicBool,
    /// What is left where no place can be had: to make the kernel refuse one.
    last_resort: Mutex<Refusal>,
}

impl Rings {
    /// Looks whether rings can be made here, before the kernel is asked to use them.
    ///
    /// # Errors
    /// Those of [`Ring::new`] and [`uring::queues`].
    pub(super) fn new() -> Result<Rings> {
        let (processors, count) = (Processors::allowed()?, uring::queues()?);
        // Once the kernel was asked for rings it holds back all requests until it has them, or has refused one itself.
        Ring::new(&[0], MAX_DATA as usize)?.can_be_entered()?;
        let last_resort = Mutex::new(Refusal::new()?);
        let shared = Arc::new(Shortage::new());
        let (own, others): (Vec<u16>, Vec<u16>) = (0..count).partition(|n| processors.only(usize::from(*n)).is_some());
        let queue = |number| Arc::new(Queue::new(number, shared.clone()));
        let queues = own.into_iter().map(queue).collect();
        Ok(Rings { queues, others, processors, shared, refused: AtomicBool::new(false), last_resort })
    }

    /// For whom threads are to be started: each queue as often as it has threads from the start.
    pub(super) fn posts(&self) -> Vec<Arc<Queue>> {
        self.queues.iter().flat_map(|queue| std::iter::repeat_n(queue.clone(), EACH as usize)).collect()
    }

    /// The life of a thread of one queue.
    pub(super) fn serve(&self, queue: &Queue, worker: &Worker<'_>) {
        queue.join();
        if let Some(processor) = self.processors.only(usize::from(queue.number())) {
            // Elsewhere it works, too, only slower.
            processor.keep_to().unwrap_or_else(|errno| log::debug!("queue {}: {errno}", queue.number()));
        }
        let made = Ring::new(&[queue.number()], MAX_DATA as usize);
        self.end(queue, worker, made.and_then(|mut ring| worker.circle(&mut ring, queue)));
    }

    /// The life of the thread that stands by for all other queues.
    pub(super) fn serve_others(&self, worker: &Worker<'_>) {
        if self.others.is_empty() {
            return;
        }
        let any = Queue::never_short(self.shared.clone());
        let made = Ring::new(&self.others, MAX_DATA as usize);
        self.end(&any, worker, made.and_then(|mut ring| worker.circle(&mut ring, &any)));
    }

    /// A thread of this queue ends.
    fn end(&self, queue: &Queue, worker: &Worker<'_>, result: Result<()>) {
        match result {
            Ok(()) | Err(Errno::ENOTCONN | Errno::ECONNABORTED | Errno::ECANCELED) => {}
            Err(errno) => {
                let level =
                    if self.refused.swap(true, Ordering::Relaxed) { log::Level::Debug } else { log::Level::Warn };
                log::log!(level, "requests do not come through a ring: {errno}");
                if queue.leave() {
                    self.give_up(worker);
                }
            }
        }
    }

    /// The kernel would wait for a place that nobody can offer, and all callers with it.
    fn give_up(&self, worker: &Worker<'_>) {
        match self.last_resort.lock().provoke(worker.device().clone()) {
            Ok(()) => log::debug!("requests are read as ever"),
            Err(errno) => log::error!("the kernel waits for a ring that cannot be made: {errno}"),
        }
    }

    /// Starts spare threads where all have been in their requests for a while, until all is over.
    pub(super) fn look_out(&self, relieve: impl Fn(Arc<Queue>)) {
        self.shared.look_out(&self.queues, relieve);
    }

    /// The mount is gone.
    pub(super) fn dismiss(&self) {
        self.shared.dismiss();
    }
}
