//! Works that show how a union grows: with the number of layers, and with the number of names that the kernel remembers.

use std::os::fd::AsFd;

use super::Run;
use crate::contender::resident;
use crate::tree;
use crate::{Result, event};

/// A cold and a warm walk; the rows of the work are in this order.
pub fn stacked(run: &mut Run<'_>) -> Result<()> {
    let [cold, warm] = run.rows else { return Err("a stacked work has two rows".into()) };
    let merged = run.merged.to_owned();
    let pass = || tree::walk(tree::open(&merged)?.as_fd(), &mut |_, _| {});
    run.time(cold.id, 1, pass)?;
    run.time(warm.id, 3, || (0..3).try_for_each(|_| pass().map(drop)))
}

/// Resident memory of the server: idle, per entry that the kernel remembers after a walk, and per entry once it forgot them.
pub fn memory(run: &mut Run<'_>) -> Result<()> {
    let Some(server) = run.server else { return Ok(()) };
    rustix::fs::stat(run.merged)?;
    let idle = resident(server)? as f64;
    run.sample("memory-idle", idle);
    let entries = tree::walk(run.root()?.as_fd(), &mut |_, _| {})? as f64;
    run.sample("memory-entry", (resident(server)? as f64 - idle) / entries);
    if run.plan.can_drop_caches {
        event::drop_caches()?;
        // Forgets are told without waiting for them.
        std::thread::sleep(std::time::Duration::from_secs(2));
        run.sample("memory-forgotten", ((resident(server)? as f64 - idle) / entries).max(0.0));
    }
    Ok(())
}
