//! The marks: what plyfs has promised itself for each row, and what fuse-overlayfs 2.0 took when the marks were set.
//!
//! Both are ratios to the kernel's rootless overlay in the same run, everything as an ordinary user in a user namespace,
//! layers of 60,000 files on xfs, an otherwise idle machine.

/// The most that a row may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// Times the kernel's overlay.
    Ratio(f64),
    /// Bytes.
    Bytes(f64),
}

/// A mark for a row.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// The row.
    pub row: &'static str,
    /// What it may take.
    pub limit: Limit,
    /// What fuse-overlayfs 2.0 took when the mark was set.
    pub rival: Option<f64>,
}

const fn ratio(row: &'static str, limit: f64, rival: f64) -> Mark {
    Mark { row, limit: Limit::Ratio(limit), rival: Some(rival) }
}

const fn bytes(row: &'static str, limit: f64) -> Mark {
    Mark { row, limit: Limit::Bytes(limit), rival: None }
}

/// All marks.
pub static MARKS: &[Mark] = &[
    ratio("walk-cold", 1.6, 3.7),
    ratio("walk-warm", 0.95, 4.8),
    ratio("walk2-cold", 2.2, 4.7),
    ratio("stat-warm", 0.95, 0.8),
    ratio("open-cold", 6.0, 9.9),
    ratio("open-warm", 0.95, 5.7),
    ratio("miss-cold", 2.5, 4.2),
    ratio("miss-warm", 0.95, 15.0),
    ratio("read-cold", 2.5, 3.1),
    ratio("read-warm", 1.2, 1.2),
    ratio("untar", 4.0, 7.6),
    ratio("rm-upper", 3.5, 5.0),
    ratio("rm-lower", 3.5, 7.0),
    ratio("create", 4.0, 6.2),
    ratio("rename", 4.0, 9.3),
    ratio("unlink", 3.5, 3.8),
    ratio("mkdir", 4.0, 6.2),
    ratio("create2", 3.5, 7.0),
    ratio("whiteout", 3.5, 11.0),
    // Set where the kernel syncs each copy, so not for the rows in which it clones.
    ratio("chmod", 0.3, 0.6),
    ratio("append", 0.8, 1.4),
    ratio("onebyte", 2.0, 2.7),
    ratio("write", 2.5, 7.3),
    ratio("write-4k", 1.2, 15.0),
    ratio("overwrite", 1.5, 3.2),
    ratio("fsync", 1.6, 1.7),
    ratio("sqlite", 1.6, 2.6),
    ratio("git", 2.0, 3.4),
    Mark { row: "compile", limit: Limit::Ratio(1.3), rival: None },
    bytes("memory-idle", 8.0 * 1024.0 * 1024.0),
    bytes("memory-entry", 300.0),
    // "Nothing": less than an allocator's free lists may keep.
    bytes("memory-forgotten", 16.0),
];

/// The most that the geometric mean over all rows with a ratio may be.
pub const MEAN: f64 = 1.9;

/// "Equal" for a warm walk of 128 layers against one of 1 layer: what repeated runs of the same differ by.
pub const EQUAL: f64 = 1.1;

/// The mark of a row.
pub fn of(row: &str) -> Option<&'static Mark> {
    MARKS.iter().find(|mark| mark.row == row)
}
