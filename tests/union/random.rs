//! Random operations on random layers, compared step by step with the model.
//!
//! A failure prints its seed and what was done; `SEED=n cargo test --test union random` runs that one again.

use std::collections::HashMap;

use plyfs::overlay::config::Permissions;
use plyfs::overlay::{NodeId, Rename};
use plyfs::sys::Kind;

use crate::concurrency::in_time;
use crate::fixture::{Layers, Union, description};
use crate::model::{InLayer, Layer, Model, What};

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn path(&mut self) -> String {
        let depth = [1, 1, 2, 2, 3][self.below(5)];
        let names: Vec<&str> = (0..depth).map(|_| ["a", "b", "c", "d"][self.below(4)]).collect();
        names.join("/")
    }

    fn layer(&mut self) -> (Layer, String) {
        let mut layer = Layer::new();
        for n in 0..self.below(16) {
            let path = self.path();
            let mut ancestors = path.match_indices('/').map(|(at, _)| &path[..at]);
            let is_dir = |dir: &str| matches!(layer.get(dir), None | Some(InLayer::Dir | InLayer::OpaqueDir));
            if layer.contains_key(&path) || !ancestors.all(is_dir) {
                continue;
            }
            for (at, _) in path.match_indices('/') {
                layer.entry(path[..at].to_owned()).or_insert(InLayer::Dir);
            }
            let what = match self.below(10) {
                0 => InLayer::Whiteout,
                1 => InLayer::WhName,
                2 => InLayer::OpaqueDir,
                3 | 4 => InLayer::Dir,
                5 => InLayer::Symlink(format!("target{n}")),
                _ => InLayer::File(format!("text {n} {}", self.below(1000))),
            };
            layer.insert(path, what);
        }
        let line = |(path, what): (&String, &InLayer)| match what {
            InLayer::File(text) => format!("{path} = {text}\n"),
            InLayer::Symlink(target) => format!("{path} -> {target}\n"),
            InLayer::Dir => format!("{path}/\n"),
            InLayer::OpaqueDir => format!("{path}/ opaque\n"),
            InLayer::Whiteout => format!("!{path}\n"),
            InLayer::WhName => match path.rsplit_once('/') {
                Some((dir, name)) => format!("{dir}/.wh.{name} = x\n"),
                None => format!(".wh.{path} = x\n"),
            },
        };
        let text = layer.iter().map(line).collect();
        (layer, text)
    }
}

/// Both sides of one run, and what was done so far.
struct Run {
    random: Random,
    seed: u64,
    union: Option<Union>,
    model: Model,
    /// Files that somebody has open: they go on when their names have gone.
    open: HashMap<NodeId, usize>,
    log: Vec<String>,
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SEED={}\n{}", self.seed, self.log.join("\n"));
        }
    }
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut random = Random(seed);
        let (layers, texts): (Vec<Layer>, Vec<String>) = (0..=random.below(3)).map(|_| random.layer()).unzip();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let log = texts.iter().map(|text| format!("layer:\n{text}")).collect();
        let mut made = Layers::of(&texts).volatile();
        if random.one_in(4) {
            made = made.wh_names();
        }
        if random.one_in(4) {
            made.config.permissions = Permissions::User;
        }
        let model = Model::of(&layers);
        Run { random, seed, union: Some(made.open()), model, open: HashMap::new(), log }
    }

    fn steps(mut self, count: usize) {
        let lowers = |run: &Run| -> Vec<_> {
            let layers = run.union.as_ref().unwrap();
            layers.config.lowers.iter().map(|lower| description(lower)).collect()
        };
        let before = lowers(&self);
        self.compare();
        for n in 0..count {
            self.step();
            if n % 10 == 9 {
                self.compare();
            }
            if self.random.one_in(30) {
                self.log.push("forget all".into());
                self.open.clear();
                self.union.as_ref().unwrap().forget_all();
            }
            if self.random.one_in(60) {
                self.log.push("reopen".into());
                self.open.clear();
                self.union = self.union.take().map(Union::reopen);
                self.compare();
            }
        }
        self.compare();
        assert_eq!(lowers(&self), before, "a lower was changed");
        self.union.take().map(Union::close);
    }

    fn compare(&self) {
        let union = self.union.as_ref().unwrap();
        assert_eq!(union.tree(), self.model.tree());
        for (path, object) in &self.model.names {
            let (object, stat) = (&self.model.objects[*object], union.stat(path).unwrap());
            if let Some(mode) = object.mode {
                assert_eq!(stat.mode & 0o7777, mode, "mode of {path}");
            }
            if stat.kind() != Kind::Symlink {
                let value = union.overlay.getxattr(union.at(path).unwrap(), "user.k".as_ref()).ok();
                assert_eq!(value, object.xattr.clone().map(String::into_bytes), "xattr of {path}");
            }
        }
        for (id, object) in &self.open {
            assert_eq!(union.read_node(*id).unwrap(), self.model.text(*object), "open file {id}");
        }
    }

    fn step(&mut self) {
        let (path, other) = (self.random.path(), self.random.path());
        let (number, choice) = (self.random.below(24), self.random.below(16));
        let text = format!("<{number}>");
        let (union, model) = (self.union.as_ref().unwrap(), &mut self.model);
        let offset = number;
        self.log.push(format!("{choice}: {path} {other} {number}"));
        let (ours, expected) = match choice {
            0 | 1 => (union.create(&path, &text).map(drop), model.make(&path, What::File(text.into_bytes()))),
            2 | 3 => (union.mkdir(&path).map(drop), model.make(&path, What::Dir { lower: false })),
            4 => (union.symlink(&path, &text).map(drop), model.make(&path, What::Symlink(text))),
            5 => (union.link(&path, &other).map(drop), model.link(&path, &other)),
            6 | 7 => (union.unlink(&path), model.unlink(&path)),
            8 => (union.rmdir(&path), model.rmdir(&path)),
            9 | 10 => {
                let how = [Rename::Replace, Rename::Replace, Rename::NoReplace, Rename::Exchange][number % 4];
                (union.rename_how(&path, &other, how), model.rename(&path, &other, how))
            }
            11 => {
                let expected = model.walk(&path).and_then(|object| model.write(object, offset, &text));
                (union.write(&path, offset as u64, &text), expected)
            }
            12 => (union.truncate(&path, offset as u64).map(drop), model.truncate(&path, offset)),
            13 => {
                let Ok(object) = model.walk(&path) else { return };
                if let What::Symlink(_) = model.objects[object].what {
                    return;
                }
                let mode = 0o700 | u32::try_from(number).unwrap();
                model.objects[object].mode = Some(mode);
                (union.chmod(&path, mode).map(drop), Ok(()))
            }
            14 => {
                let Ok(object) = model.walk(&path) else { return };
                if let What::Symlink(_) = model.objects[object].what {
                    return;
                }
                model.objects[object].xattr = Some(text.clone());
                let set = |id| union.overlay.setxattr(id, "user.k".as_ref(), text.as_bytes(), 0);
                (union.at(&path).and_then(set), Ok(()))
            }
            _ => {
                // Open, and write to something that was opened before.
                if let Some((id, object)) = self.open.iter().min_by_key(|(id, _)| **id % 7) {
                    let written = union.put(*id, offset as u64, text.as_bytes());
                    assert_eq!(written, Ok(text.len()));
                    model.write(*object, offset, &text).unwrap();
                }
                let Ok(object) = model.walk(&path) else { return };
                if matches!(model.objects[object].what, What::File(_)) {
                    self.open.insert(union.at(&path).unwrap(), object);
                }
                return;
            }
        };
        assert_eq!(ours, expected, "the outcome of {}", self.log.last().unwrap());
    }
}

#[test]
fn the_union_is_its_model_on_known_seeds() {
    if std::env::var_os("SEED").is_some() {
        return;
    }
    in_time(|| {
        for seed in 0..40 {
            Run::new(seed).steps(200);
        }
    });
}

#[test]
fn the_union_is_its_model_on_new_seeds() {
    if let Ok(seed) = std::env::var("SEED") {
        return in_time(move || Run::new(seed.parse().unwrap()).steps(200));
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let base = u64::try_from(now.as_nanos() % (1 << 48)).unwrap();
    println!("seeds {base} and on");
    in_time(move || {
        for seed in base..base + 40 {
            Run::new(seed).steps(200);
        }
    });
}
