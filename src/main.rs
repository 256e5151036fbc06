//! `plyfs`: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    plyfs::cli::run(std::env::args_os().collect())
}
