//! What the stage asks the course to measure. Plain data, handed over as a JSON file in the stage directory.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::args::Who;

/// What is measured, on what, and by whom.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Who mounts and works.
    pub who: Who,
    /// All that take part; the kernel's overlay is the first if it takes part.
    pub contenders: Vec<Contender>,
    /// The user's own layers, the topmost first; empty for generated ones.
    pub lowers: Vec<PathBuf>,
    /// How often every contender does every work.
    pub rounds: u32,
    /// Only these works and rows; empty for all.
    pub only: Vec<String>,
    /// Not these works and rows.
    pub skip: Vec<String>,
    /// Factor on sizes and counts.
    pub scale: f64,
    /// Entries for the row of memory.
    pub entries: u64,
    /// Seconds until a contender's work is given up.
    pub timeout: u64,
    /// Whether the stage can drop the kernel's caches on request.
    pub can_drop_caches: bool,
}

/// One union to measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contender {
    /// As the reports name it.
    pub name: String,
    /// What it says of its own version.
    pub version: String,
    /// How it is mounted.
    pub kind: Kind,
}

/// How a contender is mounted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Kind {
    /// With mount(2).
    Kernel,
    /// `PROGRAM -f -o lowerdir=..,upperdir=..,workdir=.. MERGED`.
    OverlayProgram(Vec<String>),
    /// `PROGRAM -f -o cow UPPER=RW:LOWER=RO:.. MERGED`.
    UnionfsFuse(PathBuf),
    /// A command line with places for the directories.
    Template(Vec<String>),
}

impl Plan {
    /// Where the plan lies in a stage directory.
    pub fn path(stage: &Path) -> PathBuf {
        stage.join("plan.json")
    }

    /// Reads what the stage wrote.
    pub fn load(stage: &Path) -> Result<Plan> {
        Ok(serde_json::from_slice(&std::fs::read(Plan::path(stage))?)?)
    }

    /// Leaves the plan for the course.
    pub fn store(&self, stage: &Path) -> Result<()> {
        Ok(std::fs::write(Plan::path(stage), serde_json::to_vec_pretty(self)?)?)
    }

    /// Whether a row of a work was asked for, by the name of either.
    pub fn wants(&self, work: &str, row: &str) -> bool {
        let among = |list: &[String], name: &str| list.iter().any(|prefix| name.starts_with(prefix.as_str()));
        let named = |list: &[String]| among(list, work) || among(list, row);
        (self.only.is_empty() || named(&self.only)) && !named(&self.skip)
    }

    /// `count` scaled, at least 1.
    pub fn scaled(&self, count: u64) -> u64 {
        ((count as f64 * self.scale) as u64).max(1)
    }
}
