//! What the threads of a mount wait on and look at: locks, conditions, numbers, the time.
//!
//! `crew` and `rings` take them from here and from nowhere else, so that a test can put others in their place, of which it
//! decides who goes on and when (`tests/model`).

pub(super) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
pub(super) use std::time::Instant;

pub(super) use parking_lot::{Condvar, Mutex};
