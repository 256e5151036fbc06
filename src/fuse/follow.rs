//! Where a server's thread runs: beside its caller.
//!
//! Most of a small request's time is two wake-ups: the server's, and then the caller's. Between two processors each costs
//! several times what it costs on one (an idle processor, above all a virtual one, must be kicked awake), and nothing is
//! gained by it, for the caller does nothing but wait. The scheduler does not know that and wakes a thread where it ran last.
//! So a thread that hears from one caller only moves to that caller's processor, and goes free again when others come, or
//! when a large file is read, for then the kernel reads ahead, and caller and server work side by side. A write it waits for.
//!
//! Measured on two busy processors, as a ratio to the same server without it: cold opens 0.5 to 0.6, small files written 0.85,
//! creations 0.65 to 0.85, renames 0.6 to 0.85, and warm work, which asks nothing, the same.
//! To look where the caller is every 16 requests, and not every 64, made a container store's commit of 27,000 files 0.77 of
//! what it was: its runtime moves the caller every few milliseconds, and 4 looks were no reason to let it go.
//! To go free at every piece of 64 KiB, and not for a row of them, made a copy of a `/usr/include` take 1.3 times as long, and
//! one of files of up to 900 KiB 1.6 times.
//! On idle processors the scheduler moves the caller away again unless the thread gives way: see [`crew`](super::crew).
//!
//! One caller need not be one process. A shell, `make`, a package's scripts make a process for each step and wait for it: a
//! walk through a tree of processes, one at a time, in which each is new once, and each way back up was a way down before.
//! Callers that run side by side come back again and again instead. So a caller that comes back counts as a stranger, and one
//! that was not there before makes up for it.
//!
//! No thread can be beside each of several callers, for which of them hears of whom is the kernel's choice: whoever has waited
//! longest. But if there are as many threads as processors, each on one of its own, then none waits for a processor behind
//! another while the next one rests. Two processes that create files side by side, on two processors: 0.74 of the time that it
//! takes with threads that run anywhere, and the same beside busy loops of others.

use std::sync::atomic::{AtomicU32, Ordering};

use super::wire::{Header, Reader, opcode};
use crate::sys::cpu::{Processors, Whereabouts};

/// After how many requests in a row of one caller its processor is looked up, and after how many more again. A look costs 5 us,
/// each request until the next one up to 20 if the caller has moved meanwhile, as those of large runtimes do every few ms.
const LOOK_EVERY: u32 = 16;

/// How many callers that came back, less those that were new, end the following; as long as no caller had [`LOOK_EVERY`]
/// requests in a row.
const STRANGERS: u32 = 4;

/// So many earlier callers are remembered.
const REMEMBERED: usize = 4;

/// What counts as a large piece that is read, in bytes, if it is not the first of its file: there the kernel has not begun to
/// read ahead.
const LARGE: u32 = 64 << 10;

/// How many large pieces in a row are a large file, and for how many requests it is remembered. Each other request between
/// them makes up for half a piece: whoever copies what he reads does not wait for two processors at once.
const ROW: u32 = 3;
const ROW_REMEMBERED: u32 = 32;

/// A caller that was elsewhere at so many looks in a row runs from us, and is let go for a while.
const FLIGHTS: u32 = 16;
const LET_GO: u32 = 4096;

/// What a request tells of the callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Company {
    /// Nothing new.
    AsBefore,
    /// One caller at a time for a while, and the processor of the last is known.
    One,
    /// Several callers, or one that runs away.
    Several,
    /// A large file is read.
    Large,
}

/// Whose the last request was that any thread of a mount has taken.
#[derive(Debug, Default)]
pub(super) struct LastCaller(AtomicU32);

impl LastCaller {
    /// Whose it was until now.
    fn replace(&self, caller: u32) -> u32 {
        match self.0.load(Ordering::Relaxed) {
            // Most often nothing changes, and nothing is taken from another processor's cache.
            last if last == caller => last,
            _ => self.0.swap(caller, Ordering::Relaxed),
        }
    }
}

/// One thread's knowledge of its callers.
#[derive(Debug)]
pub(super) struct Follower {
    allowed: Processors,
    place: Option<usize>,
    /// Where the thread is while there are several callers, if that is anywhere in particular.
    home: Option<usize>,
    caller: u32,
    /// The callers before it, the last first.
    earlier: [u32; REMEMBERED],
    /// The caller's thread, once it was looked up.
    seen: Option<Whereabouts>,
    /// Requests of this caller since the last other one.
    in_a_row: u32,
    /// Requests since the last look, of one caller at a time.
    unseen: u32,
    strangers: u32,
    flights: u32,
    /// Twice the large pieces, less the other requests.
    pieces: u32,
    /// So many requests are answered before anything is decided again.
    pause: u32,
}

impl Follower {
    /// For the calling thread; none where there is no choice of processors.
    pub(super) fn new() -> Option<Follower> {
        let allowed = Processors::allowed().ok().filter(|allowed| allowed.count() > 1)?;
        Some(Follower::fresh(allowed, None, 0))
    }

    /// The same, with a processor to be on while there are several callers.
    pub(super) fn at_home(self, home: Option<usize>) -> Follower {
        Follower { home, ..self }
    }

    /// One that knows nothing but its caller.
    fn fresh(allowed: Processors, place: Option<usize>, caller: u32) -> Follower {
        Follower {
            allowed,
            place,
            home: None,
            caller,
            earlier: [0; REMEMBERED],
            seen: None,
            in_a_row: 0,
            unseen: 0,
            strangers: 0,
            flights: 0,
            pieces: 0,
            pause: 0,
        }
    }

    /// Notes a request that this thread is about to answer, and moves the thread if that is due.
    pub(super) fn note(&mut self, header: &Header, body: &[u8], last: &LastCaller) -> Company {
        if header.pid == 0 || matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET) {
            return Company::AsBefore;
        }
        let last = last.replace(header.pid);
        if is_large(header, body) {
            self.pieces = (self.pieces + 2).min(2 * ROW);
            if self.pieces == 2 * ROW {
                self.pause = self.pause.max(ROW_REMEMBERED);
                self.go(None);
                return Company::Large;
            }
        } else {
            self.pieces = self.pieces.saturating_sub(1);
        }
        if self.pause > 0 {
            self.pause -= 1;
        } else {
            // What other threads hear counts as well: of two callers this one may hear one only.
            let elsewhere = if last == 0 || last == self.caller { Company::AsBefore } else { self.meet(last) };
            if header.pid != self.caller {
                return self.meet(header.pid);
            }
            if elsewhere != Company::AsBefore {
                return elsewhere;
            }
            self.in_a_row += 1;
            if self.in_a_row >= LOOK_EVERY {
                self.strangers = 0;
            }
            self.unseen += 1;
            if self.unseen >= LOOK_EVERY {
                return self.look();
            }
        }
        Company::AsBefore
    }

    /// Another caller than that of the last request.
    fn meet(&mut self, caller: u32) -> Company {
        let back = self.earlier.contains(&caller);
        self.earlier.rotate_right(1);
        if let Some(last) = self.earlier.first_mut() {
            *last = self.caller;
        }
        (self.caller, self.in_a_row, self.seen) = (caller, 0, None);
        self.strangers = if back { self.strangers + 1 } else { self.strangers.saturating_sub(1) };
        if self.strangers > STRANGERS {
            self.unseen = 0;
            self.go(self.home);
            return Company::Several;
        }
        // It is not followed at once: a step of a script asks for little, and to go where it is costs as much as that.
        self.unseen += 1;
        Company::AsBefore
    }

    fn look(&mut self) -> Company {
        self.unseen = 0;
        let found = self.see();
        if self.place.is_some() && found != self.place {
            self.flights += 1;
            if self.flights >= FLIGHTS {
                self.flights = 0;
                self.pause = LET_GO;
                self.go(None);
                return Company::Several;
            }
        } else {
            self.flights = 0;
        }
        self.go(found);
        if self.place.is_some() { Company::One } else { Company::AsBefore }
    }

    /// Goes to a caller that another thread found alone. What was known of former callers is forgotten.
    pub(super) fn join(&mut self, caller: u32) {
        *self = Follower::fresh(self.allowed, self.place, caller).at_home(self.home);
        let found = self.see();
        self.go(found);
    }

    /// The caller's processor.
    fn see(&mut self) -> Option<usize> {
        if self.seen.is_none() {
            self.seen = Whereabouts::of(self.caller);
        }
        let found = self.seen.as_ref().and_then(Whereabouts::processor);
        if found.is_none() {
            // Another thread may get its number.
            self.seen = None;
        }
        found
    }

    fn go(&mut self, place: Option<usize>) {
        if place == self.place {
            return;
        }
        let kept = match place {
            Some(number) => match self.allowed.only(number) {
                Some(one) => one.keep_to(),
                None => return,
            },
            None => self.allowed.keep_to(),
        };
        match kept {
            Ok(()) => self.place = place,
            Err(errno) => log::debug!("a thread stays where it is: {errno}"),
        }
    }
}

/// Whether it is a large piece in the midst of a file that is read.
fn is_large(header: &Header, body: &[u8]) -> bool {
    let asked = || {
        let mut body = Reader(body);
        let (_handle, offset, size) = (body.u64().ok()?, body.u64().ok()?, body.u32().ok()?);
        Some((offset, size))
    };
    header.opcode == opcode::READ && asked().is_some_and(|(offset, size)| offset > 0 && size >= LARGE)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::sys::cpu::processor_of;

    fn request(opcode: u32, pid: u32) -> Header {
        Header { opcode, pid, ..Header::default() }
    }

    /// A request that the only thread there is hears.
    fn note(follower: &mut Follower, header: &Header, body: &[u8]) -> Company {
        let last = LastCaller::default();
        last.replace(if follower.caller == 0 { header.pid } else { follower.caller });
        follower.note(header, body, &last)
    }

    fn own_thread() -> u32 {
        rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()
    }

    /// A follower that has heard of this very thread long enough to have looked where it is.
    fn settled() -> Option<Follower> {
        let mut follower = Follower::new()?;
        for _ in 0..=LOOK_EVERY {
            note(&mut follower, &request(opcode::LOOKUP, own_thread()), b"name\0");
        }
        Some(follower)
    }

    #[test]
    fn one_caller_is_followed_and_several_are_not() {
        let Some(mut follower) = settled() else { return eprintln!("skipped: one processor") };
        assert_eq!(follower.place, processor_of(own_thread()));
        assert_eq!(Processors::allowed().map(|now| now.count()), Ok(1));
        // They run side by side: each comes back after the other.
        for n in 0..STRANGERS + 3 {
            note(&mut follower, &request(opcode::LOOKUP, u32::MAX - n % 2), b"name\0");
        }
        assert_eq!(follower.place, None);
        assert_eq!(Processors::allowed().map(|now| now.count()), Ok(follower.allowed.count()));
    }

    #[test]
    fn of_several_callers_a_thread_goes_home_even_if_it_hears_of_one_only() {
        let Some(follower) = settled() else { return eprintln!("skipped: one processor") };
        let elsewhere = follower.allowed.numbers().find(|number| Some(*number) != follower.place);
        let mut follower = follower.at_home(elsewhere);
        let last = LastCaller::default();
        for n in 0..4 * LOOK_EVERY {
            // What another thread takes between its own.
            last.replace(u32::MAX);
            let told = follower.note(&request(opcode::LOOKUP, own_thread()), b"name\0", &last);
            assert_eq!(told == Company::Several, n >= STRANGERS / 2, "{n}");
        }
        assert_eq!(follower.place, elsewhere);
        assert_eq!(Processors::allowed().map(|now| now.count()), Ok(1));
        // The other one has ended.
        let own = request(opcode::LOOKUP, own_thread());
        let told: Vec<Company> = (0..2 * LOOK_EVERY).map(|_| follower.note(&own, b"name\0", &last)).collect();
        assert!(told.contains(&Company::One) && !told.contains(&Company::Several));
    }

    #[test]
    fn processes_that_follow_each_other_are_one_caller() {
        let Some(mut follower) = settled() else { return eprintln!("skipped: one processor") };
        // A script, whose steps are processes that make processes of their own.
        for n in (0..100).map(|n| u32::MAX - 3 * n) {
            for caller in [own_thread(), n, n - 1, n, n - 2, n, own_thread()] {
                assert_ne!(note(&mut follower, &request(opcode::LOOKUP, caller), b"name\0"), Company::Several);
            }
            assert!(follower.place.is_some());
        }
    }

    #[test]
    fn one_caller_at_a_time_is_company_of_one() {
        let Some(mut follower) = Follower::new() else { return eprintln!("skipped: one processor") };
        // Each second step is a process of its own, that asks once. The last to ask is one that is there.
        let steps =
            (0..2 * LOOK_EVERY).flat_map(|n| [own_thread(), if n % 2 == 0 { u32::MAX - n } else { own_thread() }]);
        let mut told = steps.map(|caller| note(&mut follower, &request(opcode::LOOKUP, caller), b"name\0"));
        let told = told.any(|company| company == Company::One);
        assert!(told);
    }

    #[test]
    fn two_scripts_side_by_side_are_several() {
        let Some(mut follower) = settled() else { return eprintln!("skipped: one processor") };
        let told = (0..100).any(|n: u32| {
            let (one, other) = (u32::MAX - 2 * n, u32::MAX - 2 * n - 1);
            // Each step asks for a few things, in turn with those of the other.
            [one, other, one, other, one, other]
                .iter()
                .any(|caller| note(&mut follower, &request(opcode::LOOKUP, *caller), b"name\0") == Company::Several)
        });
        assert!(told);
    }

    #[test]
    fn a_caller_that_moves_again_and_again_is_followed_soon_and_not_given_up() {
        let Some(mut follower) = Follower::new() else { return eprintln!("skipped: one processor") };
        let places: Vec<Processors> = (0..1024).filter_map(|number| follower.allowed.only(number)).take(2).collect();
        let ((go, orders), (moved, reports)) = (mpsc::channel::<Processors>(), mpsc::channel());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for place in orders {
                    moved.send((own_thread(), place.keep_to())).unwrap();
                }
            });
            for place in places.iter().cycle().take(LOOK_EVERY as usize / 2) {
                go.send(*place).unwrap();
                let (caller, there) = reports.recv().unwrap();
                assert_eq!(there, Ok(()));
                for _ in 0..=LOOK_EVERY {
                    assert_ne!(note(&mut follower, &request(opcode::LOOKUP, caller), b"name\0"), Company::Several);
                }
                assert!(follower.place.is_some());
                assert_eq!(follower.place, processor_of(caller));
            }
            drop(go);
        });
    }

    /// What a READ asks for: handle, offset, size.
    fn piece(offset: u64, size: u32) -> Vec<u8> {
        [&[0; 8], offset.to_ne_bytes().as_slice(), &size.to_ne_bytes()].concat()
    }

    #[test]
    fn a_large_file_sets_a_thread_free_for_a_while() {
        let Some(mut follower) = settled() else { return eprintln!("skipped: one processor") };
        let read = |n: u32| piece(u64::from(n) * u64::from(LARGE), LARGE);
        let told = (0..=ROW).map(|n| note(&mut follower, &request(opcode::READ, own_thread()), &read(n))).last();
        assert_eq!((told, follower.place), (Some(Company::Large), None));
        for _ in 0..ROW_REMEMBERED {
            note(&mut follower, &request(opcode::LOOKUP, own_thread()), b"name\0");
        }
        assert_eq!(follower.place, None);
        for _ in 0..4 * LOOK_EVERY {
            note(&mut follower, &request(opcode::LOOKUP, own_thread()), b"name\0");
        }
        assert!(follower.place.is_some());
    }

    #[test]
    fn files_that_are_not_large_and_writes_keep_a_thread_where_it_is() {
        let Some(mut follower) = settled() else { return eprintln!("skipped: one processor") };
        let read = [piece(0, 2 * LARGE), piece(1 << 20, LARGE - 1), piece(1 << 20, 2 * LARGE)];
        for n in 0..100 {
            for asked in read.iter().chain([&piece(0, LARGE)]) {
                assert_ne!(note(&mut follower, &request(opcode::READ, own_thread()), asked), Company::Large, "{n}");
            }
            for _ in 0..2 * ROW {
                let data = vec![0; LARGE as usize];
                assert_ne!(note(&mut follower, &request(opcode::WRITE, own_thread()), &data), Company::Large, "{n}");
            }
        }
        assert!(follower.place.is_some());
    }

    #[test]
    fn what_nobody_waits_for_is_no_caller() {
        let Some(mut follower) = settled() else { return eprintln!("skipped: one processor") };
        let place = follower.place;
        for pid in 1..100 {
            note(&mut follower, &request(opcode::FORGET, pid), &[]);
            note(&mut follower, &request(opcode::WRITE, 0), &[]);
        }
        assert_eq!(follower.place, place);
    }
}
