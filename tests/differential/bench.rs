//! Where runs take place: directories on the backing file systems, made for one run and removed after it.

use crate::common::backing::{Backing, Kind};
use crate::common::mounts::{DATA, Stack};
use crate::common::scratch::{remove_tree, unmount_below};
use std::cell::Cell;
use std::fs::create_dir_all;
use std::path::{Path, PathBuf};

/// More lower layers than any run has.
const LOWERS: usize = 8;

/// Where runs take place.
pub struct Bench {
    name: String,
    roots: [PathBuf; 2],
    count: Cell<u64>,
    _backings: Vec<Backing>,
}

impl Bench {
    /// Runs on a file system of its own, and on a tmpfs for lower layers that are to be elsewhere.
    pub fn new(kind: Kind) -> Result<Bench, String> {
        let backings = vec![Backing::new(kind)?, Backing::new(Kind::Tmpfs)?];
        let roots = [0, 1].map(|index: usize| backings[index].root().to_owned());
        Ok(Bench { name: kind.name().to_owned(), roots, count: Cell::new(0), _backings: backings })
    }

    /// Runs in a directory that is there.
    pub fn inside(dir: &Path, name: &str) -> Bench {
        let roots = ["main", "other"].map(|part| dir.join(part));
        Bench { name: name.to_owned(), roots, count: Cell::new(0), _backings: Vec::new() }
    }

    /// What the upper layers are on.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its position among the kinds of file system.
    pub fn turn(&self) -> u64 {
        Kind::parse(&self.name).map_or(0, |kind| kind as u64)
    }

    /// Empty layers and a mount point; every second lower layer elsewhere if `spread`.
    pub fn place(&self, name: &str, spread: bool) -> Place {
        self.count.set(self.count.get() + 1);
        let name = format!("{name}{}", self.count.get());
        Place::new([0, 1].map(|index: usize| self.roots[index].join(&name)), spread)
    }
}

/// The directories of one union.
pub struct Place {
    roots: [PathBuf; 2],
    lowers: Vec<PathBuf>,
    data: PathBuf,
    upper: PathBuf,
    work: PathBuf,
    point: PathBuf,
}

impl Place {
    /// Makes the directories below the first of `roots`, and some lower layers below the second if `spread`.
    pub fn new(roots: [PathBuf; 2], spread: bool) -> Place {
        let on = |index: usize| &roots[if spread && index.is_multiple_of(2) { 1 } else { 0 }];
        let lowers: Vec<PathBuf> = (0..LOWERS).map(|index| on(index).join(format!("l{index}"))).collect();
        let [upper, work, point, data] = ["u", "w", "m", "d"].map(|name| roots[0].join(name));
        for dir in lowers.iter().chain([&upper, &work, &point, &data]) {
            create_dir_all(dir).expect("directories can be made on a backing file system");
        }
        Place { roots, lowers, data, upper, work, point }
    }

    /// A lower layer; 0 is the topmost.
    pub fn lower(&self, index: usize) -> PathBuf {
        self.lowers[index].clone()
    }

    /// The upper layer.
    pub fn upper(&self) -> &Path {
        &self.upper
    }

    /// The mount point.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Makes a user the owner of what a mount writes to besides its layers.
    pub fn give_to(&self, id: u32) {
        for dir in [&self.work, &self.point] {
            std::os::unix::fs::chown(dir, Some(id), Some(id)).expect("root can give directories away");
        }
    }

    /// The layer of data.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A union of the first `count` lower layers, and of the layer of data if a set of options says so.
    pub fn stack_for(&self, count: usize, options: &str) -> Stack {
        let mut lowers = self.lowers[..count].to_vec();
        if options.contains(DATA) {
            // Two colons, together with the one between all.
            lowers.push(PathBuf::from(format!(":{}", self.data.display())));
        }
        Stack { lowers, upper: self.upper.clone(), work: self.work.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for root in &self.roots {
            unmount_below(root);
            if let Err(error) = remove_tree(root) {
                eprintln!("{} stays: {error}", root.display());
            }
        }
    }
}
