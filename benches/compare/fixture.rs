//! The layers to measure on. Each set is made when first asked for, from fixed seeds, so every run has the same ones.
//!
//! Generated layers hold nothing but plain files and directories: what the unions differ in is how they find them.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::mount::MountFlags;

use crate::Result;
use crate::plan::Plan;
use crate::tree::{self, Names, Random};

/// Bytes of the one large file.
pub const BIG: u64 = 500_000_000;

/// A set of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layers {
    /// The user's own, or three that share directories and hold 60,000 files together.
    Tree,
    /// The generated three, on another file system than the upper.
    TreeElsewhere,
    /// One file of 500 MB, on the same file system as the upper.
    Big,
    /// The same on another file system, so that nothing can be shared.
    BigElsewhere,
    /// A source tree of 3,000 files, for git.
    Source,
    /// A C project with many include directories, for make.
    Project,
    /// 20,000 files spread over that many layers.
    Stacked(u32),
    /// One directory that holds 50,000 files in 500 others.
    Wide,
    /// As many empty files as the row of memory wants.
    Many,
}

/// All sets that were made so far.
#[derive(Debug)]
pub struct Fixtures {
    base: PathBuf,
    made: HashMap<Layers, Vec<PathBuf>>,
    names: HashMap<Layers, Rc<Names>>,
}

impl Fixtures {
    /// An empty collection below the stage directory.
    pub fn new(stage: &Path) -> Fixtures {
        Fixtures { base: stage.join("layers"), made: HashMap::new(), names: HashMap::new() }
    }

    /// The layers of a set, the topmost first.
    pub fn layers(&mut self, set: Layers, plan: &Plan) -> Result<Vec<PathBuf>> {
        if let Some(layers) = self.made.get(&set) {
            return Ok(layers.clone());
        }
        let layers = match set {
            Layers::Tree if !plan.lowers.is_empty() => {
                read_once(&plan.lowers)?;
                plan.lowers.clone()
            }
            Layers::Tree => tree_layers(&self.base, plan)?,
            Layers::TreeElsewhere => tree_layers(&self.elsewhere("tree")?, plan)?,
            Layers::Big => vec![big(&self.base, plan)?],
            Layers::BigElsewhere => vec![big(&self.elsewhere("big")?, plan)?],
            Layers::Source => vec![self.source(plan)?],
            Layers::Project => vec![self.project(plan)?],
            Layers::Stacked(depth) => self.stacked(depth, plan)?,
            Layers::Wide => vec![self.wide(plan)?],
            Layers::Many => vec![self.many(plan)?],
        };
        fs::create_dir_all(&self.base)?;
        rustix::fs::syncfs(fs::File::open(&self.base)?)?;
        self.made.insert(set, layers.clone());
        Ok(layers)
    }

    /// The names that a union of a set shows, if they were noted.
    pub fn names(&self, set: Layers) -> Option<Rc<Names>> {
        self.names.get(&set).cloned()
    }

    /// Notes what a union of a set shows.
    pub fn note_names(&mut self, set: Layers, names: Names) {
        self.names.insert(set, Rc::new(names));
    }

    /// A directory on a file system that shares nothing with the upper's.
    fn elsewhere(&self, name: &str) -> Result<PathBuf> {
        let place = self.base.join("elsewhere").join(name);
        fs::create_dir_all(&place)?;
        rustix::mount::mount("tmpfs", &place, "tmpfs", MountFlags::empty(), c"mode=755")
            .map_err(|error| format!("no tmpfs for layers on another file system: {error}"))?;
        Ok(place)
    }

    fn source(&self, plan: &Plan) -> Result<PathBuf> {
        let layer = self.base.join("source");
        let mut random = Random::new(3);
        for n in 0..plan.scaled(3_000) {
            let directory = layer.join(format!("src/part{:02}", n / 30));
            fs::create_dir_all(&directory)?;
            let lines: String = (0..30).map(|line| format!("line {line} of {n}: {:x}\n", random.next())).collect();
            write(&directory.join(format!("unit{:02}.txt", n % 30)), lines.as_bytes())?;
        }
        Ok(layer)
    }

    /// 120 units of C. Each includes 10 headers that are found in the last of 10 include directories.
    fn project(&self, plan: &Plan) -> Result<PathBuf> {
        let layer = self.base.join("project");
        let units = plan.scaled(120);
        for n in 0..10 {
            fs::create_dir_all(layer.join(format!("include{n}")))?;
        }
        fs::create_dir_all(layer.join("src"))?;
        for n in 0..40 {
            let text = format!(
                "#ifndef H{n}\n#define H{n}\nstatic inline int h{n}(int x) {{ return x * {n} + 1; }}\n#endif\n"
            );
            write(&layer.join(format!("include9/header{n}.h")), text.as_bytes())?;
        }
        for n in 0..units {
            let mut text = String::new();
            for h in 0..10 {
                text.push_str(&format!("#include <header{}.h>\n", (n * 7 + h * 3) % 40));
            }
            for f in 0..20 {
                text.push_str(&format!(
                    "int u{n}_{f}(int x) {{ while (x > {f}) x -= h{}(x) + 1; return x; }}\n",
                    n * 7 % 40
                ));
            }
            write(&layer.join(format!("src/unit{n}.c")), text.as_bytes())?;
        }
        write(&layer.join("src/main.c"), b"int main(void) { return 0; }\n")?;
        let include: String = (0..10).map(|n| format!(" -Iinclude{n}")).collect();
        let makefile = format!(
            "objects := $(patsubst src/%.c,build/%.o,$(wildcard src/*.c))\nbuild/program: $(objects)\n\tcc -o $@ $^\n\
             build/%.o: src/%.c | build\n\tcc -O1{include} -MMD -c -o $@ $<\nbuild:\n\tmkdir -p build\n"
        );
        write(&layer.join("Makefile"), makefile.as_bytes())?;
        Ok(layer)
    }

    /// 200 directories of 100 files; each directory is in up to 8 of the layers, as directories of images are.
    fn stacked(&self, depth: u32, plan: &Plan) -> Result<Vec<PathBuf>> {
        let place = self.base.join(format!("stack{depth}"));
        let layers: Vec<PathBuf> = (0..depth).map(|n| place.join(n.to_string())).collect();
        for layer in &layers {
            fs::create_dir_all(layer)?;
        }
        for group in 0..plan.scaled(200) {
            for n in 0..100 {
                let layer = (group * 37 + n % 8 * 61) % u64::from(depth);
                let directory = layers[layer as usize].join(format!("d{}/s{}", group / 20, group % 20));
                fs::create_dir_all(&directory)?;
                write(&directory.join(format!("file{n}")), b"a small file\n")?;
            }
        }
        Ok(layers)
    }

    fn wide(&self, plan: &Plan) -> Result<PathBuf> {
        let layer = self.base.join("wide");
        for n in 0..plan.scaled(500) {
            let directory = layer.join(format!("top/d{n}"));
            fs::create_dir_all(&directory)?;
            for n in 0..100 {
                write(&directory.join(format!("file{n}")), b"")?;
            }
        }
        Ok(layer)
    }

    fn many(&self, plan: &Plan) -> Result<PathBuf> {
        let layer = self.base.join("many");
        for n in 0..plan.entries {
            let directory = layer.join(format!("d{}", n / 1000));
            if n % 1000 == 0 {
                fs::create_dir_all(&directory)?;
            }
            write(&directory.join(format!("entry-{n}")), b"")?;
        }
        Ok(layer)
    }
}

/// 20 x 30 directories with 100 files of 0.2 to 8 KiB each: two thirds in the lowest layer, the rest above it.
fn tree_layers(base: &Path, plan: &Plan) -> Result<Vec<PathBuf>> {
    let layers: Vec<PathBuf> = (0..3).map(|n| base.join(format!("tree{n}"))).collect();
    let mut random = Random::new(1);
    for n in 0..plan.scaled(60_000) {
        let layer = [2, 2, 2, 2, 1, 0][(n % 6) as usize];
        let group = n / 100;
        let directory = layers[layer].join(format!("d{:02}/s{:02}", group / 30, group % 30));
        if n % 100 < 6 {
            fs::create_dir_all(&directory)?;
        }
        let length = 200 + random.below(8000) as usize;
        write(&directory.join(format!("file{:02}.dat", n % 100)), &random.bytes(length))?;
    }
    Ok(layers)
}

fn big(base: &Path, plan: &Plan) -> Result<PathBuf> {
    let layer = base.join("big");
    fs::create_dir_all(&layer)?;
    let path = layer.join("big.bin");
    let mut file = fs::File::create(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    // In the pieces in which unpackers of images write: the page cache keeps the size of the writes.
    for piece in Random::new(2).bytes(plan.scaled(BIG) as usize).chunks(32 * 1024) {
        file.write_all(piece)?;
    }
    Ok(layer)
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// Brings the user's layers into the caches of the file system that they lie on (files above 16 MiB excepted).
fn read_once(layers: &[PathBuf]) -> Result<()> {
    for layer in layers {
        let names = Names::of(layer)?;
        tree::walk(std::os::fd::AsFd::as_fd(&tree::open(layer)?), &mut |_, _| {})?;
        for file in &names.files {
            let path = layer.join(file);
            if fs::metadata(&path).is_ok_and(|meta| meta.len() <= 16 << 20) {
                drop(fs::read(&path));
            }
        }
    }
    Ok(())
}
