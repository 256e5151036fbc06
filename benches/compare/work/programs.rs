//! Works that real programs do: a database, version control, a compiler.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::Run;
use super::names::program;
use crate::Result;

/// Single inserts and updates, each a transaction of its own, with SQLite's default journal and synchronous=FULL.
pub fn sqlite(run: &mut Run<'_>) -> Result<()> {
    let count = run.count(300);
    let database = run.merged.join("new.db");
    let mut script = String::from("CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, body BLOB);\n");
    for n in 0..count {
        script.push_str(&match n % 3 {
            2 => format!("UPDATE t SET name = 'changed {n}' WHERE id = {};\n", n / 2),
            _ => format!("INSERT INTO t(name, body) VALUES ('row {n}', randomblob(500));\n"),
        });
    }
    run.time("sqlite", count, || {
        let mut command = Command::new("sqlite3");
        command.arg(&database).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut sqlite = command.spawn().map_err(|error| format!("sqlite3: {error}"))?;
        if let Some(mut input) = sqlite.stdin.take() {
            input.write_all(script.as_bytes())?;
        }
        let status = sqlite.wait()?;
        if status.success() { Ok(()) } else { Err(format!("sqlite3: {status}").into()) }
    })
}

/// A repository is made of a lower source tree; then some files change, and an older state is checked out.
pub fn git(run: &mut Run<'_>) -> Result<()> {
    let tree = run.merged.to_owned();
    git_command(&tree, &["init", "-q"])?;
    let begin = Instant::now();
    let mut sum = 0.0;
    let mut measure = |run: &mut Run<'_>, row: &'static str, arguments: &[&str]| -> Result<()> {
        let begin = Instant::now();
        run.time(row, 1, || git_command(&tree, arguments))?;
        sum += begin.elapsed().as_secs_f64();
        Ok(())
    };
    measure(run, "git-add", &["add", "-A"])?;
    measure(run, "git-commit", &["commit", "-q", "-m", "first"])?;
    for file in run.files(300)? {
        fs::write(tree.join(file), format!("changed after {:?}\n", begin.elapsed()))?;
    }
    measure(run, "git-status", &["status", "--porcelain"])?;
    git_command(&tree, &["commit", "-q", "-a", "-m", "second"])?;
    measure(run, "git-checkout", &["checkout", "-q", "HEAD~1"])?;
    run.sample("git", sum);
    Ok(())
}

fn git_command(tree: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "gc.auto=0"]);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    program(command.arg("-C").arg(tree).args(arguments))
}

pub fn compile(run: &mut Run<'_>) -> Result<()> {
    let merged = run.merged.to_owned();
    run.time("compile", 1, || program(Command::new("make").args(["-s", "-j2", "-C"]).arg(&merged)))
}
