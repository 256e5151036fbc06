//! The lookout of a [crew](super): whether the rider gets on, and whether anybody reads.

use std::time::Duration;

use super::sync::Ordering;
use super::turns::{Crew, NONE, Reason};
use crate::sys::cpu::{self, Waited};

/// How often the lookout looks while there is something to look at.
const TICK: Duration = Duration::from_millis(10);

/// After how many ticks in a row with nothing to look at it rests.
const QUIET_TICKS: u32 = 10;

/// After how many ticks without a request a ride ends.
const IDLE_TICKS: u32 = 4;

/// How long the rider may have been kept from running within a tick, beyond the time that its caller ran. Twice in a row,
/// for others may need the processor for a moment.
const KEPT_WAITING: Duration = Duration::from_millis(3);

/// So many requests in a tick, of callers that follow each other, show that the rider gets on. Beside a busy process it would
/// wait for milliseconds at each.
const MANY: u64 = 8;

impl Crew {
    /// The lookout's life. `waiting`: whether a request waits to be read; `relieve`: starts a spare thread.
    pub fn look_out(&self, waiting: impl Fn() -> bool, relieve: impl Fn()) {
        loop {
            let mut state = self.state.lock();
            while self.ride() == NONE && !state.short && !state.ended {
                self.lookout.wait(&mut state);
            }
            state.short = false;
            drop(state);
            if !self.watch(&waiting, &relieve) {
                return;
            }
        }
    }

    /// Looks until there is nothing to look at; false when all is over.
    fn watch(&self, waiting: &impl Fn() -> bool, relieve: &impl Fn()) -> bool {
        self.watching.store(true, Ordering::SeqCst);
        let mut ride: Option<(u64, Judge)> = None;
        let mut unread = None;
        let mut quiet = 0;
        loop {
            let mut state = self.state.lock();
            if !state.ended {
                self.lookout.wait_for(&mut state, TICK);
            }
            let (number, ended) = (self.ride(), state.ended);
            drop(state);
            if ended {
                return false;
            }
            match &mut ride {
                _ if number == NONE => {
                    ride = None;
                    let taken = self.taken.load(Ordering::Relaxed);
                    let nobody_reads = self.reading.load(Ordering::SeqCst) == 0;
                    quiet = if nobody_reads { 0 } else { quiet + 1 };
                    let now = (nobody_reads && waiting()).then_some(taken);
                    if now.is_some() && now == unread {
                        relieve();
                    }
                    unread = now;
                }
                Some((known, judge)) if *known == number => {
                    if let Some(reason) = judge.judge(self.sight(waiting)) {
                        self.end_ride(reason);
                    }
                }
                _ => (ride, quiet) = (Some((number, Judge::new(self.sight(waiting)))), 0),
            }
            if quiet >= QUIET_TICKS {
                self.watching.store(false, Ordering::SeqCst);
                // Whoever was the last to read before this saw no need to call.
                if self.reading.load(Ordering::SeqCst) > 0 {
                    return true;
                }
                self.watching.store(true, Ordering::SeqCst);
            }
        }
    }

    fn sight(&self, waiting: &impl Fn() -> bool) -> Sight {
        let (progress, caller) = (self.progress.load(Ordering::Relaxed), self.caller.load(Ordering::Relaxed));
        let rider = cpu::waited(self.thread.load(Ordering::Relaxed));
        Sight { progress, caller, rider, ran: cpu::waited(caller), waiting: waiting() }
    }
}

/// What the lookout sees at a tick.
#[derive(Clone, Copy, Debug)]
struct Sight {
    progress: u64,
    caller: u32,
    rider: Option<Waited>,
    ran: Option<Waited>,
    waiting: bool,
}

/// What follows from what is seen.
#[derive(Debug)]
struct Judge {
    last: Sight,
    idle: u32,
    kept_waiting: u32,
}

impl Judge {
    /// Begins with what is seen when a ride begins.
    fn new(first: Sight) -> Judge {
        Judge { last: first, idle: 0, kept_waiting: 0 }
    }

    /// Why the ride has to end, if it has to.
    fn judge(&mut self, now: Sight) -> Option<Reason> {
        let last = std::mem::replace(&mut self.last, now);
        if now.progress == last.progress {
            if now.progress % 2 == 1 {
                return Some(Reason::Stuck);
            }
            if now.waiting && last.waiting {
                return Some(Reason::Starved);
            }
            self.idle += 1;
            return (self.idle >= IDLE_TICKS).then_some(Reason::Idle);
        }
        self.idle = 0;
        // Where the waiting cannot be seen nobody rides.
        let (Some(rider), Some(before)) = (now.rider, last.rider) else { return Some(Reason::Starved) };
        let ran = if now.caller == last.caller {
            now.ran.zip(last.ran).map_or(Duration::ZERO, |(now, last)| now.ran.saturating_sub(last.ran))
        } else if now.progress.wrapping_sub(last.progress) >= 2 * MANY {
            return None;
        } else {
            // How long others ran between them is not to be seen. With so few requests not much is lost.
            Duration::ZERO
        };
        let kept = rider.waited.saturating_sub(before.waited);
        if kept > ran + KEPT_WAITING {
            self.kept_waiting += 1;
            return (self.kept_waiting > 1).then_some(Reason::Starved);
        }
        self.kept_waiting = 0;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: u32 = 1000;

    fn ms(ran: u64, waited: u64) -> Option<Waited> {
        Some(Waited { ran: Duration::from_millis(ran), waited: Duration::from_millis(waited) })
    }

    const FIRST: Sight = Sight { progress: 0, caller: CALLER, rider: None, ran: None, waiting: false };

    #[test]
    fn a_request_that_lasts_from_tick_to_tick_is_stuck() {
        let mut judge = Judge::new(Sight { progress: 4, rider: ms(0, 0), ..FIRST });
        assert_eq!(judge.judge(Sight { progress: 5, rider: ms(0, 0), ..FIRST }), None);
        assert_eq!(judge.judge(Sight { progress: 5, rider: ms(0, 0), ..FIRST }), Some(Reason::Stuck));
    }

    #[test]
    fn requests_that_nobody_takes_show_that_the_rider_starves() {
        let mut judge = Judge::new(Sight { progress: 4, ..FIRST });
        assert_eq!(judge.judge(Sight { progress: 4, waiting: true, ..FIRST }), None);
        assert_eq!(judge.judge(Sight { progress: 4, waiting: true, ..FIRST }), Some(Reason::Starved));
    }

    #[test]
    fn to_wait_while_the_caller_runs_is_no_starving() {
        let mut judge = Judge::new(Sight { progress: 0, rider: ms(0, 0), ran: ms(0, 0), ..FIRST });
        for n in 1..10 {
            let now = Sight { progress: 2 * n, rider: ms(2 * n, 8 * n), ran: ms(8 * n, 0), ..FIRST };
            assert_eq!(judge.judge(now), None);
        }
        for n in 10..12 {
            let now = Sight { progress: 2 * n, rider: ms(20, 8 * n), ran: ms(72, 0), ..FIRST };
            assert_eq!(judge.judge(now), (n == 11).then_some(Reason::Starved));
        }
    }

    #[test]
    fn a_rider_of_callers_that_follow_each_other_starves_if_it_waits_and_answers_little() {
        for (requests, starves) in [(MANY - 1, true), (MANY, false)] {
            let mut judge = Judge::new(Sight { progress: 0, rider: ms(0, 0), ran: ms(0, 0), ..FIRST });
            for n in 1..3 {
                let now = Sight { progress: 2 * requests * n, rider: ms(n, 8 * n), ran: ms(1, 0), ..FIRST };
                let now = Sight { caller: CALLER + u32::try_from(n).unwrap(), ..now };
                assert_eq!(judge.judge(now), (starves && n == 2).then_some(Reason::Starved), "{requests}");
            }
        }
    }

    #[test]
    fn where_the_waiting_is_not_shown_nobody_rides() {
        let mut judge = Judge::new(FIRST);
        assert_eq!(judge.judge(Sight { progress: 2, ..FIRST }), Some(Reason::Starved));
    }
}
