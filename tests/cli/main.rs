//! The program as its callers meet it: what it prints and answers, when it lets go of them, and every way a mount ends.
//!
//! What the union shows is for other tests; here a mount only has to be there or not. Each test has a directory of its own
//! and leaves nothing behind, mounted or running.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod ending;
mod line;
mod support;
mod users;
