//! What stands around each request: a fault of ours becomes an `EIO`, a lack of descriptors a second try, and all is counted.
//!
//! Must never: let a panic end a thread that serves, or cost more than a store into memory of the thread's own.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::adapter::{Adapter, Answer, Buffers};
use super::wire::{Header, opcode, operation};
use crate::errno::{Errno, Result};

/// How often a request for which there are no descriptors is tried again.
const TRIES: u64 = 8;

/// What is no answer to a caller's mistake, but trouble with a layer or of the server's own.
const TROUBLE: [Errno; 6] = [Errno::EIO, Errno::ENOSPC, Errno::EDQUOT, Errno::ENOMEM, Errno::EMFILE, Errno::ENFILE];

/// As many kinds of requests as are told apart; all others are kind 0.
const KINDS: usize = 64;

/// What one thread has answered. Only that thread writes; the cells of two threads share no line of the cache.
#[derive(Debug)]
#[repr(align(128))]
pub struct Tally {
    requests: [AtomicU64; KINDS],
    errors: AtomicU64,
    faults: AtomicU64,
    retries: AtomicU64,
}

impl Tally {
    fn add(cell: &AtomicU64) {
        // Nobody else writes it: no locked addition.
        cell.store(cell.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Answers one request, whatever happens.
    pub(super) fn answer(
        &self,
        adapter: &Adapter,
        header: &Header,
        body: &[u8],
        buffers: &mut Buffers,
    ) -> Result<Answer> {
        let kind = usize::try_from(header.opcode).ok().filter(|code| *code < KINDS).unwrap_or_default();
        if let Some(cell) = self.requests.get(kind) {
            Tally::add(cell);
        }
        let mut answer = self.guarded(adapter, header, body, buffers);
        for tried in 0..TRIES {
            let Err(Errno::EMFILE | Errno::ENFILE) = answer else { break };
            // What failed has changed nothing. What is only kept because it may be wanted again is in the way now. Other
            // threads keep descriptors meanwhile, so that one more try may be too few, and too soon.
            std::thread::sleep(Duration::from_millis(tried));
            log::warn!("no more descriptors: those that are only kept are closed");
            Tally::add(&self.retries);
            adapter.overlay().close_kept();
            answer = self.guarded(adapter, header, body, buffers);
        }
        if let Err(errno) = answer {
            Tally::add(&self.errors);
            if TROUBLE.contains(&errno) {
                let what = adapter.overlay().whereabouts(header.node);
                log::warn!("{} of {what}: {errno}", operation(header.opcode));
            }
            if header.opcode == opcode::LOOKUP {
                return Err(adapter.unknown(header, body, errno));
            }
        }
        answer
    }

    fn guarded(&self, adapter: &Adapter, header: &Header, body: &[u8], buffers: &mut Buffers) -> Result<Answer> {
        catch_unwind(AssertUnwindSafe(|| adapter.answer(header, body, buffers))).unwrap_or_else(|_| {
            Tally::add(&self.faults);
            log::error!("{} of node {} failed by a fault of plyfs", operation(header.opcode), header.node);
            Err(Errno::EIO)
        })
    }
}

/// The tallies of all threads.
#[derive(Clone, Debug, Default)]
pub struct Tallies(Arc<Mutex<Vec<Arc<Tally>>>>);

impl Tallies {
    /// One for a thread that begins.
    #[must_use]
    pub fn begin(&self) -> Arc<Tally> {
        let mut tallies = self.0.lock();
        // One that a thread which has ended left behind goes on counting.
        if let Some(free) = tallies.iter().find(|tally| Arc::strong_count(tally) == 1) {
            return free.clone();
        }
        let zero = || AtomicU64::new(0);
        let requests = std::array::from_fn(|_| zero());
        let tally = Arc::new(Tally { requests, errors: zero(), faults: zero(), retries: zero() });
        tallies.push(tally.clone());
        tally
    }

    /// What there was so far, and what is held now, in one line.
    #[must_use]
    pub fn report(&self, adapter: &Adapter) -> String {
        let tallies = self.0.lock();
        let sum = |cell: &dyn Fn(&Tally) -> u64| tallies.iter().map(|tally| cell(tally)).sum::<u64>();
        let of = |kind: usize| sum(&|tally| tally.requests.get(kind).map_or(0, |cell| cell.load(Ordering::Relaxed)));
        let kinds: Vec<(u64, &str)> = (0u32..).zip((0..KINDS).map(of)).map(|(code, n)| (n, operation(code))).collect();
        let mut report = format!(
            "requests {} errors {} faults {} descriptor shortages {}",
            kinds.iter().map(|(count, _)| count).sum::<u64>(),
            sum(&|tally| tally.errors.load(Ordering::Relaxed)),
            sum(&|tally| tally.faults.load(Ordering::Relaxed)),
            sum(&|tally| tally.retries.load(Ordering::Relaxed)),
        );
        for (count, name) in kinds.into_iter().filter(|(count, _)| *count > 0) {
            // Writing to a string cannot fail.
            write!(report, " {name} {count}").unwrap_or_default();
        }
        let held = adapter.overlay().held();
        write!(
            report,
            "; nodes {} descriptors {} copy-ups {} bytes {} watches {} watch budget {}",
            held.nodes, held.descriptors, held.copy_ups, held.copied_bytes, held.watches, held.watch_budget
        )
        .unwrap_or_default();
        report
    }
}

#[cfg(test)]
#[cfg(debug_assertions)]
mod tests {
    use super::*;
    use crate::fuse::adapter::Policy;
    use crate::overlay::Overlay;
    use crate::overlay::config::Config;
    use crate::sys::faults::{Fault, arm, disarm};

    /// Looks up `f` in a union that has it, with a fault at a call.
    fn look_up(tallies: &Tallies, at: usize, fault: Fault) -> (Adapter, Result<Answer>) {
        let layer = tempfile::tempdir().unwrap();
        std::fs::write(layer.path().join("f"), "").unwrap();
        let config = Config { lowers: vec![layer.path().to_owned()], ..Config::default() };
        let adapter = Adapter::new(Arc::new(Overlay::new(&config).unwrap()), Policy::default());
        let header = Header { opcode: opcode::LOOKUP, unique: 1, node: 1, uid: 0, gid: 0, pid: 1 };
        let tally = tallies.begin();
        arm(at, fault);
        let answer = tally.answer(&adapter, &header, b"f\0", &mut Buffers::default());
        disarm();
        (adapter, answer)
    }

    #[test]
    fn a_panic_in_a_request_is_an_error_of_that_request_alone() {
        let tallies = Tallies::default();
        let (_, failed) = look_up(&tallies, 1, Fault::Panics);
        assert_eq!(failed, Err(Errno::EIO));
        let (adapter, answered) = look_up(&tallies, 0, Fault::Panics);
        assert_eq!(answered, Ok(Answer::Out));
        let report = tallies.report(&adapter);
        assert!(
            report.starts_with("requests 2 errors 1 faults 1 descriptor shortages 0 LOOKUP 2; nodes 2 "),
            "{report}"
        );
    }

    #[test]
    fn a_lack_of_descriptors_is_made_up_for() {
        let tallies = Tallies::default();
        let (adapter, answered) = look_up(&tallies, 1, Fault::Fails(Errno::EMFILE));
        assert_eq!(answered, Ok(Answer::Out));
        assert!(tallies.report(&adapter).contains("errors 0 faults 0 descriptor shortages 1"));
    }

    #[test]
    fn a_name_that_the_kernel_knows_is_never_denied_for_trouble_with_a_layer() {
        let layer = tempfile::tempdir().unwrap();
        std::fs::write(layer.path().join("f"), "").unwrap();
        let config = Config { lowers: vec![layer.path().to_owned()], ..Config::default() };
        let adapter = Adapter::new(Arc::new(Overlay::new(&config).unwrap()), Policy::default());
        let tallies = Tallies::default();
        let header = Header { opcode: opcode::LOOKUP, unique: 1, node: 1, uid: 0, gid: 0, pid: 1 };
        let tally = tallies.begin();
        let again = |name: &[u8], errno| {
            arm(1, Fault::Fails(errno));
            let answer = tally.answer(&adapter, &header, name, &mut Buffers::default());
            disarm();
            answer
        };
        assert_eq!(again(b"f\0", Errno::EIO), Err(Errno::EIO));
        assert_eq!(tallies.begin().answer(&adapter, &header, b"f\0", &mut Buffers::default()), Ok(Answer::Out));
        for errno in [Errno::EIO, Errno::ENOTCONN] {
            assert_eq!(again(b"f\0", errno), Err(Errno::ENOMEM));
            assert_eq!(again(b"other\0", errno), Err(errno));
        }
        assert_eq!(again(b"f\0", Errno::EACCES), Err(Errno::EACCES));
    }
}
