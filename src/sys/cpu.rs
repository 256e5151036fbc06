//! Processors: which of them this thread may use, on which one another thread was last, and how it fares there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::errno::Result;

/// A set of processors.
#[derive(Clone, Copy, Debug)]
pub struct Processors(CpuSet);

impl Processors {
    /// Those that the calling thread may use.
    ///
    /// # Errors
    /// `EINVAL` on a machine with more processors than the set holds.
    pub fn allowed() -> Result<Processors> {
        Ok(Processors(sched_getaffinity(None)?))
    }

    /// One alone, if it is among these.
    #[must_use]
    pub fn only(&self, number: usize) -> Option<Processors> {
        let mut set = CpuSet::new();
        (number < CpuSet::MAX_CPU && self.0.is_set(number)).then(|| {
            set.set(number);
            Processors(set)
        })
    }

    /// Their numbers, ascending.
    pub fn numbers(&self) -> impl Iterator<Item = usize> {
        (0..CpuSet::MAX_CPU).filter(|number| self.0.is_set(*number))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.count()
    }

    /// Keeps the calling thread on these.
    ///
    /// # Errors
    /// `EINVAL` when none of them may be used any more.
    pub fn keep_to(&self) -> Result<()> {
        Ok(sched_setaffinity(None, &self.0)?)
    }
}

/// The number of the calling thread.
#[must_use]
pub fn this_thread() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()
}

/// Lets the calling thread run only where nobody else wants to (`SCHED_IDLE`, sched(7)). For a user there is no way back.
///
/// Its place in the queues of disks stays what it was: the policy alone would put it behind everybody else there, too
/// (`ioprio_set(2)`), where mq-deadline and bfq make each fsync wait for milliseconds.
///
/// # Errors
/// `EPERM` where a filter of system calls forbids it.
pub fn give_way() -> Result<()> {
    let disk = DiskPriority::of_this_thread()?;
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: a valid structure; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const priority) } {
        -1 => Err(io::Error::last_os_error().into()),
        _ => disk.keep(),
    }
}

/// A place in the queues of disks: class and level, as `ioprio_set(2)` takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DiskPriority(i32);

impl DiskPriority {
    /// The class is in the bits from here on.
    const CLASS: u32 = 13;
    const BEST_EFFORT: i32 = 2;
    /// The calling thread, as which of the things that can have a priority.
    const THREAD: i32 = 1;

    /// What the calling thread has: what was set, else what follows from its nice value.
    fn of_this_thread() -> Result<DiskPriority> {
        if let Some(set) = Self::set()? {
            return Ok(set);
        }
        let nice = rustix::process::getpriority_process(None)?;
        Ok(DiskPriority((Self::BEST_EFFORT << Self::CLASS) | ((nice + 20) / 5)))
    }

    /// What was set for the calling thread.
    fn set() -> Result<Option<DiskPriority>> {
        // SAFETY: takes two numbers; 0 is the calling thread.
        let set = unsafe { libc::syscall(libc::SYS_ioprio_get, Self::THREAD, 0) };
        let set = i32::try_from(set).ok().filter(|set| *set >= 0).ok_or_else(io::Error::last_os_error)?;
        Ok((set >> Self::CLASS != 0).then_some(DiskPriority(set)))
    }

    fn keep(self) -> Result<()> {
        // SAFETY: takes three numbers; 0 is the calling thread.
        match unsafe { libc::syscall(libc::SYS_ioprio_set, Self::THREAD, 0, self.0) } {
            -1 => Err(io::Error::last_os_error().into()),
            _ => Ok(()),
        }
    }
}

/// What a thread has had of the processors since it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waited {
    /// How long it ran.
    pub ran: Duration,
    /// How long it could have run and did not, because others did.
    pub waited: Duration,
}

/// What a thread of any process has had of the processors. `None` if that is not to be seen.
#[must_use]
pub fn waited(thread: u32) -> Option<Waited> {
    let mut line = [0u8; 128];
    let path = format!("/proc/{thread}/schedstat");
    let length = std::fs::File::open(path).and_then(|mut file| io::Read::read(&mut file, &mut line)).ok()?;
    let mut numbers = std::str::from_utf8(line.get(..length)?).ok()?.split_ascii_whitespace().map(str::parse);
    let (ran, waited) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(Waited { ran: Duration::from_nanos(ran), waited: Duration::from_nanos(waited) })
}

/// A thread of any process, to be seen again and again for a third of what it costs to find it each time.
#[derive(Debug)]
pub struct Whereabouts(File);

impl Whereabouts {
    /// Finds a thread. `None` if it is not to be seen.
    #[must_use]
    pub fn of(thread: u32) -> Option<Whereabouts> {
        File::open(format!("/proc/{thread}/stat")).ok().map(Whereabouts)
    }

    /// The processor that the thread is on, or was on last. `None` once it has ended.
    #[must_use]
    pub fn processor(&self) -> Option<usize> {
        let mut line = [0u8; 1024];
        let length = self.0.read_at(&mut line, 0).ok()?;
        let line = line.get(..length)?;
        // The name, in parentheses, may hold anything; "processor" is the 37th field after it (proc_pid_stat(5)).
        let end = line.iter().rposition(|byte| *byte == b')')?;
        std::str::from_utf8(line.get(end..)?).ok()?.split(' ').nth(37)?.parse().ok()
    }
}

/// The processor that a thread of any process is on, or was on last. `None` if that is not to be seen.
#[must_use]
pub fn processor_of(thread: u32) -> Option<usize> {
    Whereabouts::of(thread)?.processor()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_kept_to_one_processor_is_seen_there() -> Result<()> {
        let allowed = Processors::allowed()?;
        let thread = this_thread();
        for number in allowed.numbers() {
            let one = allowed.only(number).expect("one of them");
            assert_eq!(one.count(), 1);
            one.keep_to()?;
            assert_eq!(processor_of(thread), Some(number));
        }
        allowed.keep_to()
    }

    #[test]
    fn a_thread_is_seen_where_it_went_until_it_ends() -> Result<()> {
        let allowed = Processors::allowed()?;
        let (go, gone) = (std::sync::mpsc::channel::<Processors>(), std::sync::mpsc::channel());
        let thread = std::thread::spawn(move || {
            gone.0.send((this_thread(), Processors::allowed())).unwrap();
            while let Ok(place) = go.1.recv() {
                gone.0.send((this_thread(), place.keep_to().map(|()| place))).unwrap();
            }
        });
        let seen = Whereabouts::of(gone.1.recv().unwrap().0).expect("it runs");
        for number in allowed.numbers() {
            let one = allowed.only(number).expect("one of them");
            go.0.send(one).unwrap();
            gone.1.recv().unwrap().1?;
            assert_eq!(seen.processor(), Some(number));
        }
        drop(go.0);
        thread.join().unwrap();
        let begin = std::time::Instant::now();
        while seen.processor().is_some() {
            assert!(begin.elapsed() < Duration::from_secs(60));
        }
        Ok(())
    }

    #[test]
    fn a_thread_that_does_not_exist_is_nowhere() {
        assert_eq!(processor_of(u32::MAX), None);
        assert_eq!(waited(u32::MAX), None);
    }

    #[test]
    fn a_thread_that_runs_is_seen_to_run() {
        let thread = this_thread();
        let Some(before) = waited(thread) else { return eprintln!("skipped: the kernel does not say") };
        let begin = std::time::Instant::now();
        while waited(thread).is_some_and(|now| now.ran < before.ran + Duration::from_millis(5)) {
            assert!(begin.elapsed() < Duration::from_secs(60), "{before:?}");
        }
    }

    #[test]
    fn a_thread_that_gives_way_runs_on_and_keeps_its_place_at_the_disk() {
        // In a thread of its own: there is no way back.
        std::thread::spawn(|| {
            let before = DiskPriority::of_this_thread().unwrap();
            assert_eq!(before.0 >> DiskPriority::CLASS, DiskPriority::BEST_EFFORT, "{before:?}");
            give_way().unwrap();
            assert_eq!(DiskPriority::set().unwrap(), Some(before));
            // SAFETY: 0 is the calling thread.
            assert_eq!(unsafe { libc::sched_getscheduler(0) }, libc::SCHED_IDLE);
        })
        .join()
        .unwrap();
    }
}
