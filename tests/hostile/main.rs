//! Bad input, made up by the thousand: options, marks on layers, names, requests. Never a panic, never a hang, nothing
//! outside of the layers touched.
//!
//! `PROPTEST_CASES=100000` tries longer; what fails is shrunk and printed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod dents;
mod layers;
mod options;
mod properties;
mod requests;

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use proptest::test_runner::{Config, TestRunner};

/// Tries a property on so many values, each in a time that a person would wait.
fn holds<S>(cases: u32, strategy: S, property: impl Fn(S::Value) + Send + 'static)
where
    S: proptest::strategy::Strategy + Send + 'static,
{
    let (done, ended) = channel();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(cases);
    let thread = std::thread::spawn(move || {
        let config = Config { cases, failure_persistence: None, ..Config::default() };
        let result = TestRunner::new(config).run(&strategy, |value| {
            property(value);
            Ok(())
        });
        done.send(()).unwrap();
        result.unwrap();
    });
    let patience = Duration::from_secs(60 + u64::from(cases) / 10);
    match ended.recv_timeout(patience) {
        Err(RecvTimeoutError::Timeout) => panic!("it hangs"),
        Ok(()) | Err(RecvTimeoutError::Disconnected) => thread.join().unwrap(),
    }
}
