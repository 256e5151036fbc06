//! `fuse/rings/queue`: the threads of two queues, with requests that are slow, and the one that looks for more threads.

#[path = "../../src/fuse/rings/queue.rs"]
#[allow(dead_code)]
mod queue;

use std::collections::VecDeque;
use std::sync::Arc;

use shuttle::thread;

use crate::in_many_orders;
use crate::sync::{self, Condvar, Mutex};
use queue::{EACH, MOST, Queue, Shortage};

/// The requests of each queue: true for a slow one, which is answered only after all quick ones.
struct Kernel {
    state: Mutex<Waiting>,
    changed: Condvar,
}

struct Waiting {
    queues: [VecDeque<bool>; 2],
    quick: usize,
    left: usize,
}

impl Kernel {
    fn next(&self, queue: &Queue) -> Option<bool> {
        let mut state = self.state.lock();
        loop {
            if state.left == 0 {
                return None;
            }
            if let Some(slow) = state.queues[usize::from(queue.number())].pop_front() {
                return Some(slow);
            }
            self.changed.wait(&mut state);
        }
    }

    fn answer(&self, slow: bool) {
        let mut state = self.state.lock();
        while slow && state.quick > 0 {
            self.changed.wait(&mut state);
        }
        state.quick -= usize::from(!slow);
        state.left -= 1;
        self.changed.notify_all();
    }

    fn serve(&self, queue: &Queue) {
        while let Some(slow) = self.next(queue) {
            queue.take();
            self.answer(slow);
            queue.give_back();
        }
    }
}

/// Each queue has so many slow requests and so many quick ones after them, which some other processor's callers send at
/// the same time. The places of so many of the first threads of each are refused.
fn mount(sent: [(usize, usize); 2], refused: usize) {
    let requests = sent.map(|(slow, quick)| [vec![true; slow], vec![false; quick]].concat());
    let count = |slow: bool| requests.iter().flatten().filter(|other| **other == slow).count();
    let state = Waiting { queues: Default::default(), quick: count(false), left: count(true) + count(false) };
    let kernel = Arc::new(Kernel { state: Mutex::new(state), changed: Condvar::new() });
    let shared = Arc::new(Shortage::new());
    let queues: Vec<Arc<Queue>> = (0..2).map(|number| Arc::new(Queue::new(number, shared.clone()))).collect();
    let threads = Arc::new(Mutex::new(Vec::new()));
    let begin = {
        let (kernel, threads, begun) = (kernel.clone(), threads.clone(), Arc::new(Mutex::new([0; 2])));
        move |queue: Arc<Queue>| {
            let kernel = kernel.clone();
            let mut begun = begun.lock();
            begun[usize::from(queue.number())] += 1;
            assert!(begun[usize::from(queue.number())] <= MOST, "there are more threads than there may be");
            queue.join();
            if begun[usize::from(queue.number())] as usize <= refused {
                // Whether the kernel has to be told that it waits for nothing: once, when all of the first have gone.
                assert_eq!(queue.leave(), begun[usize::from(queue.number())] == EACH);
                return;
            }
            threads.lock().push(thread::spawn(move || kernel.serve(&queue)));
        }
    };
    for queue in queues.iter().flat_map(|queue| std::iter::repeat_n(queue, EACH as usize)) {
        begin(queue.clone());
    }
    let looking = {
        let (shared, queues) = (shared.clone(), queues.clone());
        thread::spawn(move || shared.look_out(&queues, begin))
    };
    let calling: Vec<_> = requests
        .into_iter()
        .enumerate()
        .map(|(number, requests)| {
            let kernel = kernel.clone();
            thread::spawn(move || {
                for request in requests {
                    kernel.state.lock().queues[number].push_back(request);
                    kernel.changed.notify_all();
                }
            })
        })
        .collect();
    calling.into_iter().for_each(|caller| caller.join().unwrap());
    let mut state = kernel.state.lock();
    while state.left > 0 {
        kernel.changed.wait(&mut state);
    }
    drop(state);
    shared.dismiss();
    looking.join().unwrap();
    let threads = std::mem::take(&mut *threads.lock());
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

const ALL: usize = EACH as usize;

#[test]
fn a_queue_whose_threads_are_all_in_slow_requests_gets_another() {
    in_many_orders(2000, || mount([(ALL, 2), (1, 2)], 0));
    in_many_orders(2000, || mount([(ALL + 1, 2), (ALL, 2)], 0));
}

#[test]
fn a_thread_whose_place_is_refused_is_not_counted_on() {
    in_many_orders(1000, || mount([(ALL, 2), (1, 2)], 1));
    in_many_orders(1000, || mount([(ALL, 1), (0, 1)], ALL));
}

/// No thread is left that could take what is quick in that queue, and none comes: it waits, and others do not.
#[test]
fn a_queue_with_as_many_threads_as_there_may_be_holds_up_no_other() {
    in_many_orders(600, || mount([(MOST as usize + 2, 0), (0, 3)], 0));
}
