//! The union as it should be: a map from paths to objects.
//!
//! The model knows what is visible and nothing of how: no upper, no whiteouts, no copies.

use std::collections::{BTreeMap, BTreeSet};

use plyfs::errno::Errno;
use plyfs::overlay::Rename;

/// What a layer has under a path.
#[derive(Clone, Debug, PartialEq)]
pub enum InLayer {
    File(String),
    Symlink(String),
    Dir,
    OpaqueDir,
    Whiteout,
    /// `.wh.NAME` beside it, and nothing under the name itself.
    WhName,
}

pub type Layer = BTreeMap<String, InLayer>;

#[derive(Clone, Debug)]
pub struct Object {
    pub what: What,
    pub mode: Option<u32>,
    pub xattr: Option<String>,
}

#[derive(Clone, Debug)]
pub enum What {
    File(Vec<u8>),
    Symlink(String),
    /// Whether a lower shares in it, so that it cannot be renamed.
    Dir {
        lower: bool,
    },
}

/// The visible names and what they stand for.
#[derive(Default)]
pub struct Model {
    pub names: BTreeMap<String, usize>,
    pub objects: Vec<Object>,
}

pub type Outcome = Result<(), Errno>;

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn is_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

impl Model {
    /// What layers show, by the rules and nothing else.
    pub fn of(layers: &[Layer]) -> Model {
        let mut model = Model::default();
        let all: Vec<&Layer> = layers.iter().collect();
        model.merge("", &all);
        model
    }

    fn merge(&mut self, dir: &str, layers: &[&Layer]) {
        let names: BTreeSet<&String> = layers
            .iter()
            .flat_map(|layer| layer.keys())
            .filter(|path| !path.is_empty() && parent(path) == dir)
            .collect();
        for path in names {
            let mut dirs: Vec<&Layer> = Vec::new();
            for layer in layers {
                match layer.get(path) {
                    None => continue,
                    Some(InLayer::Whiteout | InLayer::WhName) => break,
                    Some(InLayer::Dir) => {
                        dirs.push(layer);
                        continue;
                    }
                    Some(InLayer::OpaqueDir) => dirs.push(layer),
                    Some(InLayer::File(text)) if dirs.is_empty() => {
                        self.add(path, What::File(text.clone().into_bytes()));
                    }
                    Some(InLayer::Symlink(target)) if dirs.is_empty() => {
                        self.add(path, What::Symlink(target.clone()));
                    }
                    Some(_) => {}
                }
                break;
            }
            if !dirs.is_empty() {
                self.add(path, What::Dir { lower: true });
                self.merge(path, &dirs);
            }
        }
    }

    fn add(&mut self, path: &str, what: What) -> usize {
        self.objects.push(Object { what, mode: None, xattr: None });
        self.names.insert(path.to_owned(), self.objects.len() - 1);
        self.objects.len() - 1
    }

    fn dir(&self, path: &str) -> Outcome {
        if path.is_empty() || matches!(self.objects[self.walk(path)?].what, What::Dir { .. }) {
            return Ok(());
        }
        Err(Errno::ENOTDIR)
    }

    pub fn walk(&self, path: &str) -> Result<usize, Errno> {
        self.dir(parent(path))?;
        self.names.get(path).copied().ok_or(Errno::ENOENT)
    }

    fn vacant(&self, path: &str) -> Outcome {
        match self.walk(path) {
            Ok(_) => Err(Errno::EEXIST),
            Err(Errno::ENOENT) => self.dir(parent(path)),
            Err(errno) => Err(errno),
        }
    }

    pub fn make(&mut self, path: &str, what: What) -> Outcome {
        self.vacant(path)?;
        self.add(path, what);
        Ok(())
    }

    pub fn link(&mut self, old: &str, new: &str) -> Outcome {
        let object = self.walk(old)?;
        self.vacant(new)?;
        if matches!(self.objects[object].what, What::Dir { .. }) {
            return Err(Errno::EPERM);
        }
        self.names.insert(new.to_owned(), object);
        Ok(())
    }

    fn is_dir(&self, object: usize) -> bool {
        matches!(self.objects[object].what, What::Dir { .. })
    }

    fn is_empty(&self, path: &str) -> bool {
        !self.names.keys().any(|name| is_below(name, path))
    }

    pub fn unlink(&mut self, path: &str) -> Outcome {
        if self.is_dir(self.walk(path)?) {
            return Err(Errno::EISDIR);
        }
        self.names.remove(path);
        Ok(())
    }

    pub fn rmdir(&mut self, path: &str) -> Outcome {
        if !self.is_dir(self.walk(path)?) {
            return Err(Errno::ENOTDIR);
        }
        if !self.is_empty(path) {
            return Err(Errno::ENOTEMPTY);
        }
        self.names.remove(path);
        Ok(())
    }

    pub fn rename(&mut self, old: &str, new: &str, how: Rename) -> Outcome {
        self.dir(parent(old))?;
        self.dir(parent(new))?;
        let moving = self.walk(old)?;
        let target = self.names.get(new).copied();
        match (target, how) {
            (Some(_), Rename::NoReplace) => return Err(Errno::EEXIST),
            (None, Rename::Exchange) => return Err(Errno::ENOENT),
            (Some(target), _) if target == moving => return Ok(()),
            _ => {}
        }
        if is_below(new, old) || (how == Rename::Exchange && is_below(old, new)) {
            return Err(Errno::EINVAL);
        }
        if is_below(old, new) {
            return Err(Errno::ENOTEMPTY);
        }
        for object in [Some(moving), target.filter(|_| how == Rename::Exchange)].into_iter().flatten() {
            if matches!(self.objects[object].what, What::Dir { lower: true }) {
                return Err(Errno::EXDEV);
            }
        }
        if let Some(target) = target.filter(|_| how != Rename::Exchange) {
            match (self.is_dir(moving), self.is_dir(target)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !self.is_empty(new) => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
        }
        let from = self.take(old);
        let back = self.take(new);
        self.put(new, from);
        if how == Rename::Exchange {
            self.put(old, back);
        }
        Ok(())
    }

    /// Takes a name and all below it away: what is left of each path, and the object.
    fn take(&mut self, path: &str) -> Vec<(String, usize)> {
        let below: Vec<String> =
            self.names.keys().filter(|name| *name == path || is_below(name, path)).cloned().collect();
        below.into_iter().map(|name| (name[path.len()..].to_owned(), self.names.remove(&name).unwrap())).collect()
    }

    fn put(&mut self, path: &str, taken: Vec<(String, usize)>) {
        self.names.extend(taken.into_iter().map(|(rest, object)| (format!("{path}{rest}"), object)));
    }

    pub fn write(&mut self, object: usize, offset: usize, data: &str) -> Outcome {
        match &mut self.objects[object].what {
            What::File(content) => {
                let end = offset + data.len();
                content.resize(content.len().max(end), 0);
                content[offset..end].copy_from_slice(data.as_bytes());
                Ok(())
            }
            What::Dir { .. } => Err(Errno::EISDIR),
            What::Symlink(_) => Err(Errno::EINVAL),
        }
    }

    pub fn truncate(&mut self, path: &str, size: usize) -> Outcome {
        let object = self.walk(path)?;
        self.write(object, 0, "")?;
        if let What::File(content) = &mut self.objects[object].what {
            content.resize(size, 0);
        }
        Ok(())
    }

    pub fn text(&self, object: usize) -> String {
        match &self.objects[object].what {
            What::File(content) => String::from_utf8_lossy(content).into_owned(),
            What::Symlink(target) => target.clone(),
            What::Dir { .. } => String::new(),
        }
    }

    /// As [`Union::tree`].
    pub fn tree(&self) -> Vec<String> {
        let line = |(path, object): (&String, &usize)| match &self.objects[*object].what {
            What::File(_) => Some(format!("{path} = {}", self.text(*object))),
            What::Symlink(target) => Some(format!("{path} -> {target}")),
            What::Dir { .. } => self.is_empty(path).then(|| format!("{path}/")),
        };
        let mut lines: Vec<String> = self.names.iter().filter_map(line).collect();
        lines.sort();
        lines
    }
}
