//! What one thread of the crew after the other does. What all do at once: `tests/model`.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::turns::{Crew, FIRST_PAUSE, Handed, NONE, Post, Reason, STARVED_PAUSE, Turn, WORTH_IT};

const CALLER: u32 = 1000;

fn device() -> Arc<OwnedFd> {
    Arc::new(std::fs::File::open("/dev/null").unwrap().as_fd().try_clone_to_owned().unwrap())
}

fn request(device: &Arc<OwnedFd>) -> Handed {
    Handed { message: b"request".to_vec(), device: device.clone() }
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
    assert!(!crew.hand_over(|| request(&device)), "nobody waits");
    assert_eq!(crew.ride(), NONE, "and yet others read now");
    let crew = riding();
    thread::scope(|scope| {
        let regular = scope.spawn(|| crew.turn());
        wait_for(|| crew.state.lock().parked == 1);
        assert!(crew.hand_over(|| request(&device)));
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
fn what_others_had_better_answer_keeps_no_ride_away() {
    let crew = riding();
    for _ in 0..3 {
        crew.end_ride(Reason::Long);
        let mut state = crew.state.lock();
        assert_eq!(state.pause, FIRST_PAUSE);
        state.not_before = Instant::now();
        drop(state);
        crew.offer(CALLER);
        assert_ne!(crew.ride(), NONE);
    }
}

#[test]
fn a_rider_that_starves_again_and_again_stays_away_longer_if_it_was_of_no_use() {
    let crew = riding();
    for (lasted, pause) in [(0, 1), (0, 8), (0, 40), (1, 1), (0, 8)] {
        crew.state.lock().began -= STARVED_PAUSE * lasted;
        crew.end_ride(Reason::Starved);
        let mut state = crew.state.lock();
        assert_eq!(state.pause, STARVED_PAUSE * pause);
        state.not_before = Instant::now();
        drop(state);
        crew.offer(CALLER);
    }
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
