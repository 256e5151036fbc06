//! `plyfs`: parse, run, exit code.

fn main() {}
