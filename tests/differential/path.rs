//! Names and paths as the bytes that they are, printed so that a log can be pasted into a test.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A path relative to a mount's root, or any other bytes that are printed like one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct P(Vec<u8>);

/// The path that these bytes spell.
pub fn p(bytes: impl AsRef<[u8]>) -> P {
    P(bytes.as_ref().to_vec())
}

impl P {
    /// Copies bytes.
    pub fn from(bytes: impl AsRef<[u8]>) -> P {
        p(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same for functions that take paths; the root is `.`.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(if self.0.is_empty() { b"." } else { &self.0 }))
    }

    /// Whether it is the root.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The last component.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }

    /// Whether it is `other` or lies below it.
    pub fn is_within(&self, other: &P) -> bool {
        other.is_empty() || self == other || (self.0.starts_with(&other.0) && self.0.get(other.0.len()) == Some(&b'/'))
    }

    /// How many components it has.
    pub fn depth(&self) -> usize {
        if self.is_empty() { 0 } else { self.0.split(|byte| *byte == b'/').count() }
    }
}

impl fmt::Debug for P {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            100.. if self.0.iter().all(|byte| *byte == self.0[0]) => {
                write!(f, "p([b'{}'; {}])", [self.0[0]].escape_ascii(), self.0.len())
            }
            _ => write!(f, "p(b\"{}\")", self.0.escape_ascii()),
        }
    }
}

/// The directory that holds a path; the root's is the root.
pub fn parent(path: &P) -> P {
    match path.0.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => P(path.0[..slash].to_vec()),
        None => P(Vec::new()),
    }
}

/// A name in a directory.
pub fn join(dir: &P, name: &[u8]) -> P {
    if dir.is_empty() { p(name) } else { P([dir.as_bytes(), b"/", name].concat()) }
}
