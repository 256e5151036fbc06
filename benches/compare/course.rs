//! The inner half: does the works with each contender in turn, in the namespaces that the stage made, and tells the stage.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::Result;
use crate::event::{self, Event};
use crate::fixture::{Fixtures, Layers};
use crate::plan::{Contender, Kind, Plan};
use crate::tree::Names;
use crate::work::{WORKS, Work};

/// The argument that says: be the course of this stage directory.
pub const FLAG: &str = "--course";

/// The stage directory, if this process is to be the course.
pub fn requested() -> Option<PathBuf> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == FLAG).then(|| arguments.next().map(PathBuf::from)).flatten()
}

/// Runs all wanted works.
pub fn run(stage: &Path) -> Result<()> {
    let plan = Plan::load(stage)?;
    let works: Vec<&Work> = WORKS.iter().filter(|work| work.wanted(&plan)).collect();
    let count = works.len() as u64 * u64::from(plan.rounds) * plan.contenders.len() as u64;
    event::tell(&Event::Runs(count))?;
    let outside = stage.join("outside");
    std::fs::create_dir_all(&outside)?;
    let course = Course { stage, plan: &plan, outside };
    let mut fixtures = Fixtures::new(stage);
    for work in works {
        event::tell(&Event::Preparing(work.id.to_owned()))?;
        match course.prepare(work, &mut fixtures) {
            Ok((lowers, names)) => course.rounds(work, &lowers, &names)?,
            Err(error) => event::tell(&Event::Note(format!("{}: left out: {error}", work.id)))?,
        }
    }
    Ok(())
}

struct Course<'a> {
    stage: &'a Path,
    plan: &'a Plan,
    outside: PathBuf,
}

impl Course<'_> {
    /// The layers of a work, and the names that their union shows.
    fn prepare(&self, work: &Work, fixtures: &mut Fixtures) -> Result<(Vec<PathBuf>, Rc<Names>)> {
        let lowers = fixtures.layers(work.layers, self.plan)?;
        if let Some(names) = fixtures.names(work.layers) {
            return Ok((lowers, names));
        }
        // Only a union knows what it shows, whiteouts and all. Any will do; the large sets are never asked by name.
        let names = match work.layers {
            Layers::Many | Layers::Wide | Layers::Stacked(_) => Names::default(),
            _ => self.shown(&lowers)?,
        };
        fixtures.note_names(work.layers, names);
        Ok((lowers, fixtures.names(work.layers).unwrap_or_default()))
    }

    fn shown(&self, lowers: &[PathBuf]) -> Result<Names> {
        let mut last = "no contender".into();
        for contender in &self.plan.contenders {
            match contender.mount(self.plan.who, self.stage, lowers, &[]) {
                Ok(mounted) => {
                    let names = Names::of(mounted.merged());
                    mounted.unmount()?;
                    return names;
                }
                Err(error) => last = format!("{}: {error}", contender.name),
            }
        }
        Err(last.into())
    }

    fn rounds(&self, work: &Work, lowers: &[PathBuf], names: &Rc<Names>) -> Result<()> {
        let contenders = &self.plan.contenders;
        let mut failed = HashSet::new();
        for round in 0..self.plan.rounds {
            for turn in 0..contenders.len() {
                let contender = &contenders[(turn + round as usize) % contenders.len()];
                if !failed.contains(&contender.name) {
                    let name = contender.name.clone();
                    event::tell(&Event::Run { work: work.id.to_owned(), contender: name.clone(), round })?;
                    if let Err(error) = self.once(work, contender, round, lowers, names) {
                        let (work, reason) = (work.id.to_owned(), error.to_string());
                        event::tell(&Event::Failed { work, contender: name.clone(), reason })?;
                        failed.insert(name);
                    }
                }
                event::tell(&Event::Done)?;
            }
        }
        Ok(())
    }

    fn once(
        &self,
        work: &Work,
        contender: &Contender,
        round: u32,
        lowers: &[PathBuf],
        names: &Rc<Names>,
    ) -> Result<()> {
        let mounted = contender.mount(self.plan.who, self.stage, lowers, work.options)?;
        let server = mounted.server();
        let (finish, finished) = mpsc::channel::<()>();
        let timeout = Duration::from_secs(self.plan.timeout);
        // A server that hangs would hang the work as well: killing it makes every call on the mount fail.
        let watchdog = std::thread::spawn(move || match (finished.recv_timeout(timeout), server) {
            (Err(RecvTimeoutError::Timeout), Some(server)) => kill_process(server, Signal::KILL).is_ok(),
            _ => false,
        });
        let result = work.run(mounted.merged(), Rc::clone(names), self.outside.clone(), server, self.plan);
        drop(finish);
        let killed = watchdog.join().unwrap_or(false);
        let unmounted = mounted.unmount();
        if killed {
            return Err(format!("not done after {} s", self.plan.timeout).into());
        }
        let samples = result?;
        if contender.kind == Kind::Kernel || server.is_some() {
            unmounted?;
        }
        for (row, value) in samples {
            if self.plan.wants(work.id, row) {
                let (row, contender) = (row.to_owned(), contender.name.clone());
                event::tell(&Event::Sample { row, contender, round, value })?;
            }
        }
        Ok(())
    }
}
