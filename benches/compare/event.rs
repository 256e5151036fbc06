//! What the course tells the stage, one JSON object per line, and the one question it asks.

use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::Result;

/// One line from the course to the stage.
#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// How many runs (work, contender, round) there will be.
    Runs(u64),
    /// Something takes a while: what.
    Preparing(String),
    /// A run begins.
    Run { work: String, contender: String, round: u32 },
    /// A run is over.
    Done,
    /// A measured value, in the row's unit.
    Sample { row: String, contender: String, round: u32, value: f64 },
    /// A contender could not do a work.
    Failed { work: String, contender: String, reason: String },
    /// A fact about this run that belongs into the report.
    Note(String),
    /// Please drop the kernel's dentries and inodes, and answer with a line.
    DropCaches,
}

/// Tells the stage.
pub fn tell(event: &Event) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, event)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Has the stage drop the kernel's caches, and waits until it has.
pub fn drop_caches() -> Result<()> {
    tell(&Event::DropCaches)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "done" => Ok(()),
        other => Err(format!("the caches could not be dropped: {other}").into()),
    }
}
