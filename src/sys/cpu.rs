//! Processors: which of them this thread may use, and on which one another thread was last.

use std::io;

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

/// The processor that a thread of any process is on, or was on last. `None` if that is not to be seen.
#[must_use]
pub fn processor_of(thread: u32) -> Option<usize> {
    let mut line = [0u8; 1024];
    let path = format!("/proc/{thread}/stat");
    let length = std::fs::File::open(path).and_then(|mut file| io::Read::read(&mut file, &mut line)).ok()?;
    let line = line.get(..length)?;
    // The name, in parentheses, may hold anything; "processor" is the 37th field after it (proc_pid_stat(5)).
    let end = line.iter().rposition(|byte| *byte == b')')?;
    std::str::from_utf8(line.get(end..)?).ok()?.split(' ').nth(37)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_kept_to_one_processor_is_seen_there() -> Result<()> {
        let allowed = Processors::allowed()?;
        let thread = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        for number in 0..CpuSet::MAX_CPU {
            let Some(one) = allowed.only(number) else { continue };
            assert_eq!(one.count(), 1);
            one.keep_to()?;
            assert_eq!(processor_of(thread), Some(number));
        }
        allowed.keep_to()
    }

    #[test]
    fn a_thread_that_does_not_exist_is_nowhere() {
        assert_eq!(processor_of(u32::MAX), None);
    }
}
