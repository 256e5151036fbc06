//! The engine of the differential test: random layers, random operations, two sides, every answer compared.
//!
//! From below: `path`, `rng` and `tree` are plain data; `layers`, `op` and `generate` say what happens; `side`, `exec`
//! and `view` do it and look; `run` is one run of two unions, `shrink` makes a failing one small, `campaign` is many.

pub mod acceptance;
pub mod bench;
pub mod campaign;
pub mod exceptions;
pub mod exec;
pub mod generate;
pub mod index;
pub mod layers;
pub mod op;
pub mod options;
pub mod path;
pub mod regressions;
pub mod rng;
pub mod run;
pub mod shrink;
pub mod side;
pub mod tree;
pub mod view;
pub mod watch;
