//! `fuse/crew`: regular threads, spare ones, a rider and a lookout, with callers that send quick, slow and large requests.

#[path = "../../src/fuse/crew/lookout.rs"]
mod lookout;
#[path = "../../src/fuse/crew/turns.rs"]
#[allow(dead_code)]
mod turns;

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use crate::sync::{self, AtomicUsize, Condvar, Mutex, Ordering};
use crate::{fails, in_many_orders};
use turns::{Crew, Desk, Fit, Handed, Post, Read};

/// A caller's request.
#[derive(Clone, Copy, Debug)]
struct Request {
    caller: u32,
    sort: Sort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Quick,
    /// Is answered only after the quick ones of all callers.
    Slow,
    /// What the rider knows to take long.
    Large,
}

/// What the kernel has of a mount.
struct Kernel {
    state: Mutex<Waiting>,
    /// There is a request, or the mount is gone.
    readable: Condvar,
    /// Something was answered.
    answered: Condvar,
}

#[derive(Default)]
struct Waiting {
    queue: VecDeque<Request>,
    gone: bool,
    /// The answers that each caller has had.
    answers: Vec<usize>,
    /// How many quick requests are still to be answered.
    quick: usize,
}

impl Kernel {
    fn new(callers: &[Vec<Sort>]) -> Kernel {
        let quick = callers.iter().flatten().filter(|sort| **sort != Sort::Slow).count();
        let state = Waiting { answers: vec![0; callers.len()], quick, ..Waiting::default() };
        Kernel { state: Mutex::new(state), readable: Condvar::new(), answered: Condvar::new() }
    }

    /// A caller sends one request after the other and waits for each answer.
    fn call(&self, caller: usize, sorts: &[Sort]) {
        for (count, sort) in sorts.iter().enumerate() {
            let mut state = self.state.lock();
            state.queue.push_back(Request { caller: u32::try_from(caller).unwrap(), sort: *sort });
            self.readable.notify_one();
            while state.answers[caller] == count {
                self.answered.wait(&mut state);
            }
        }
    }

    fn read(&self) -> Option<Request> {
        let mut state = self.state.lock();
        loop {
            if state.gone {
                return None;
            }
            if let Some(request) = state.queue.pop_front() {
                return Some(request);
            }
            self.readable.wait(&mut state);
        }
    }

    fn answer(&self, request: Request) {
        let mut state = self.state.lock();
        while request.sort == Sort::Slow && state.quick > 0 {
            self.answered.wait(&mut state);
        }
        if request.sort != Sort::Slow {
            state.quick -= 1;
        }
        state.answers[request.caller as usize] += 1;
        self.answered.notify_all();
    }

    fn unmount(&self) {
        self.state.lock().gone = true;
        self.readable.notify_all();
    }
}

/// Where a thread of the model has its request.
struct Place {
    kernel: Arc<Kernel>,
    device: Arc<OwnedFd>,
    request: Option<Request>,
    riders: Option<Arc<AtomicUsize>>,
}

impl Desk for Place {
    fn read(&mut self) -> Read {
        if self.riders.as_ref().is_some_and(|riders| riders.load(Ordering::SeqCst) != 1) {
            panic!("there are two riders");
        }
        if thread_rng().gen_ratio(1, 16) {
            return Read::Nothing;
        }
        self.request = self.kernel.read();
        self.request.map_or(Read::Over, |request| Read::Request(request.caller))
    }

    fn is_alone(&mut self) -> bool {
        thread_rng().gen_bool(0.5)
    }

    fn fit(&mut self) -> Fit {
        match self.request.unwrap().sort {
            Sort::Large => Fit::Long,
            _ if thread_rng().gen_ratio(1, 4) => Fit::Crowd,
            _ => Fit::Own,
        }
    }

    fn answer(&mut self) {
        self.kernel.answer(self.request.take().unwrap());
    }

    fn hand(&self) -> Handed {
        let Request { caller, sort } = self.request.unwrap();
        let message = [caller.to_ne_bytes().as_slice(), &[u8::from(sort == Sort::Slow)]].concat();
        Handed { message, device: self.device.clone() }
    }

    fn answer_handed(&mut self, handed: &Handed) {
        let (caller, slow) = handed.message.split_first_chunk().unwrap();
        let sort = if slow == [1] { Sort::Slow } else { Sort::Large };
        self.kernel.answer(Request { caller: u32::from_ne_bytes(*caller), sort });
    }

    fn join(&mut self, _caller: u32) {}
}

/// How a mount is served.
#[derive(Clone, Copy)]
struct Staff {
    regulars: usize,
    rider: bool,
    lookout: bool,
}

/// A mount from its beginning to its end: all requests are answered, then all threads end.
fn mount(staff: Staff, callers: &[&[Sort]]) {
    let callers: Vec<Vec<Sort>> = callers.iter().map(|sorts| sorts.to_vec()).collect();
    let kernel = Arc::new(Kernel::new(&callers));
    let crew = Arc::new(Crew::new(staff.regulars, staff.rider));
    let device: Arc<OwnedFd> = Arc::new(File::open("/dev/null").unwrap().into());
    let place = {
        let kernel = kernel.clone();
        move || Place { kernel: kernel.clone(), device: device.clone(), request: None, riders: None }
    };
    let mut threads = Vec::new();
    for _ in 0..staff.regulars {
        let (crew, mut place) = (crew.clone(), place());
        threads.push(thread::spawn(move || crew.serve(Post::Regular, &mut place)));
    }
    if crew.rides() {
        let (crew, mut place, riders) = (crew.clone(), place(), Arc::new(AtomicUsize::new(0)));
        place.riders = Some(riders.clone());
        threads.push(thread::spawn(move || {
            riders.fetch_add(1, Ordering::SeqCst);
            crew.serve_one(&mut place);
        }));
    }
    let spares = Arc::new(Mutex::new(Vec::new()));
    if staff.lookout {
        let (crew, kernel, spares) = (crew.clone(), kernel.clone(), spares.clone());
        threads.push(thread::spawn(move || {
            let relieve = || {
                let (crew, mut place) = (crew.clone(), place());
                spares.lock().push(thread::spawn(move || crew.serve(Post::Spare, &mut place)));
            };
            crew.look_out(|| !kernel.state.lock().queue.is_empty(), relieve);
        }));
    }
    let calling: Vec<_> = callers
        .into_iter()
        .enumerate()
        .map(|(caller, sorts)| {
            let kernel = kernel.clone();
            thread::spawn(move || kernel.call(caller, &sorts))
        })
        .collect();
    calling.into_iter().for_each(|caller| caller.join().unwrap());
    kernel.unmount();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let spares = std::mem::take(&mut *spares.lock());
    spares.into_iter().for_each(|thread| thread.join().unwrap());
}

const ALL: Staff = Staff { regulars: 2, rider: true, lookout: true };

use Sort::{Large, Quick, Slow};

#[test]
fn every_request_is_answered_and_every_thread_ends() {
    in_many_orders(3000, || mount(ALL, &[&[Quick, Large, Quick], &[Large, Quick]]));
    in_many_orders(1000, || mount(Staff { regulars: 1, ..ALL }, &[&[Quick, Quick, Large], &[Quick]]));
    in_many_orders(1000, || mount(Staff { rider: false, ..ALL }, &[&[Quick, Quick], &[Quick]]));
}

#[test]
fn what_is_slow_holds_up_nothing_else() {
    in_many_orders(3000, || mount(ALL, &[&[Slow], &[Slow], &[Quick, Quick], &[Large, Quick]]));
    in_many_orders(3000, || mount(ALL, &[&[Quick, Slow], &[Quick, Slow], &[Quick, Slow], &[Quick, Large, Quick]]));
    in_many_orders(1000, || mount(Staff { rider: false, ..ALL }, &[&[Quick, Slow], &[Slow], &[Slow], &[Quick, Quick]]));
}

/// The model is worth something only if it finds what is there to be found.
#[test]
fn a_crew_without_a_lookout_is_found_to_get_stuck() {
    let found = |staff: Staff| fails(move || in_many_orders(1000, move || mount(staff, &[&[Slow], &[Slow], &[Quick]])));
    assert!(found(Staff { lookout: false, ..ALL }));
    assert!(found(Staff { lookout: false, rider: false, ..ALL }));
}
