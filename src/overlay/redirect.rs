//! Redirects: a directory that was renamed says where its lower part still lies.
//!
//! Owns: the form of the mark, the search that goes on elsewhere because of one, and the writing of one at a rename.
//! Answers to the redirect half of the kernel's `namei.c` and to `ovl_set_redirect`.
//!
//! Must never trust a mark: names in it are looked up one at a time, from a layer's own root or directory, through no
//! symlink and never upwards. A redirect leads on in the layers below it only, so there are no loops.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use smallvec::SmallVec;

use super::config::RedirectDir;
use super::node::{LayerIndex, LayerPath, LowerDir, Nameless, Node, Place, UPPER};
use super::resolve::Found;
use super::superblock::Overlay;
use super::watch::is_large;
use super::whiteout::{WH_OPAQUE, exists, is_wh_name, wh_name};
use super::xattr::{DirMarks, Mark, Namespace, Opacity};
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, Kind, Stat};

/// The longest redirect (the kernel's `redirect_max`).
const LONGEST: usize = 256;

/// Where a search goes on in the layers below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Under a name in the lower directories of the same parent.
    Name(OsString),
    /// Under a path from the layers' roots.
    Path(Vec<OsString>),
}

impl Way {
    /// The way that a mark tells. `EINVAL` for what is neither one name nor an absolute path, `EACCES` for one that leads
    /// upwards: the kernel's errors.
    pub fn parse(mark: &[u8]) -> Result<Way> {
        let name = |name: &[u8]| match name {
            b"" => Err(Errno::EINVAL),
            b"." | b".." => Err(Errno::EACCES),
            name if name.contains(&0) => Err(Errno::EINVAL),
            name => Ok(OsStr::from_bytes(name).to_owned()),
        };
        match mark.strip_prefix(b"/") {
            Some(path) => {
                let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
                if names.iter().any(|name| name.is_empty()) {
                    return Err(Errno::EINVAL);
                }
                Ok(Way::Path(names.into_iter().map(name).collect::<Result<_>>()?))
            }
            None if mark.contains(&b'/') => Err(Errno::EINVAL),
            None => Ok(Way::Name(name(mark)?)),
        }
    }

    pub fn names(&self) -> &[OsString] {
        match self {
            Way::Name(name) => std::slice::from_ref(name),
            Way::Path(names) => names,
        }
    }

    /// The way on, once the name at a position turned out to be redirected itself. What comes after it stays.
    fn turned(&self, at: usize, redirect: Way) -> Way {
        let names = self.names();
        let rest = names.get(at + 1..).unwrap_or_default();
        match (redirect, self) {
            (Way::Name(name), Way::Name(_)) => Way::Name(name),
            (Way::Name(name), Way::Path(_)) => {
                let before = names.get(..at).unwrap_or_default();
                Way::Path(before.iter().cloned().chain([name]).chain(rest.iter().cloned()).collect())
            }
            (Way::Path(path), _) => Way::Path(path.into_iter().chain(rest.iter().cloned()).collect()),
        }
    }
}

/// What a layer has where a way leads.
pub(super) enum There {
    Nothing,
    /// An object: a directory with its marks, open; or something else, perhaps a file without data.
    Object {
        stat: Stat,
        marks: DirMarks,
        dir: Option<OwnedFd>,
        metacopy: bool,
    },
}

/// A search that goes on elsewhere.
pub(super) struct Trail {
    pub way: Way,
    /// Whether layers further below are not asked: a whiteout, an opaque directory or an object that is no directory
    /// was on the way.
    pub stop: bool,
    /// Whether the file without data that was met last told an absolute way to it.
    pub led: bool,
}

impl Trail {
    pub fn new(way: Way) -> Trail {
        Trail { way, stop: false, led: false }
    }

    /// The object under the name that has so many names left from it on is redirected. What is left counts from the end,
    /// which no turn changes.
    fn turn(&mut self, left: usize, redirect: Way) {
        // An absolute one goes on below whatever was opaque on the way.
        self.stop &= matches!(redirect, Way::Name(_));
        let at = self.way.names().len() - left;
        self.way = self.way.turned(at, redirect);
    }
}

impl Overlay {
    /// Whether redirects are followed.
    pub(super) fn follows_redirects(&self) -> bool {
        match self.features.redirect_dir {
            RedirectDir::On | RedirectDir::Follow => true,
            RedirectDir::NoFollow => false,
            RedirectDir::Off => self.namespace == Namespace::Trusted,
        }
    }

    /// The way that a redirect tells. `EPERM` where redirects are not followed.
    pub(super) fn way(&self, redirect: &[u8]) -> Result<Way> {
        let way = Way::parse(redirect)?;
        if !self.follows_redirects() {
            log::warn!("a redirect is not followed: mount with redirect_dir=follow or on");
            return Err(Errno::EPERM);
        }
        Ok(way)
    }

    /// Goes on with the search for a directory in the layers below `above`, where a redirect leads. `EPERM` where
    /// redirects are not followed.
    pub(super) fn follow(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        mut found: Found,
        redirect: &[u8],
        above: LayerIndex,
    ) -> Result<Found> {
        let mut trail = Trail::new(self.way(redirect)?);
        for layer in above + 1..=self.layers.last_merged() {
            let Some((base, mut place)) = self.base(parent, &trail.way, layer)? else { continue };
            place.extend(trail.way.names().iter().cloned());
            match self.walk(&base, &mut trail)? {
                There::Object { stat, marks, dir, .. } if stat.is_dir() => {
                    if let Some(dir) = &dir
                        && !self.is_origin(parent, name, &found, (At::Fd(dir.as_fd()), layer))?
                    {
                        break;
                    }
                    let xwhiteouts = marks.opacity == Opacity::Xwhiteouts;
                    let home = Some(LayerPath::from(place));
                    let large = is_large(&stat);
                    found.lowers.push(LowerDir {
                        layer,
                        ino: stat.ino,
                        xwhiteouts,
                        large,
                        home,
                        ..LowerDir::default()
                    });
                    found.fds.extend(dir.map(|fd| (layer, fd)));
                }
                // Below a directory, what is no directory does not show.
                There::Object { .. } => break,
                There::Nothing => {}
            }
            if trail.stop {
                break;
            }
        }
        Ok(found)
    }

    /// The directory of a layer from which a way begins, with its place; `None` for a layer that takes no part.
    pub(super) fn base(
        &self,
        parent: &Arc<Node>,
        way: &Way,
        layer: LayerIndex,
    ) -> Result<Option<(Arc<OwnedFd>, Vec<OsString>)>> {
        let (from, place) = match way {
            Way::Name(_) => (parent, self.place_in(parent, layer)),
            Way::Path(_) => (&self.root, Some(Vec::new())),
        };
        if !from.lowers().iter().any(|lower| lower.layer == layer) {
            return Ok(None);
        }
        let Some(place) = place else { return Ok(None) };
        match self.dir_fd(from, layer) {
            Ok(fd) => Ok(Some((fd, place))),
            // The layer changed behind the mount.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ESTALE) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Walks down one layer, a name at a time, and turns the way for the layers below where a directory is redirected.
    pub(super) fn walk(&self, base: &Arc<OwnedFd>, trail: &mut Trail) -> Result<There> {
        let names = trail.way.clone();
        let names = names.names();
        let mut inside: Option<OwnedFd> = None;
        let mut xwhiteouts = false;
        for (at, name) in names.iter().enumerate() {
            let last = at + 1 == names.len();
            let dir = inside.as_ref().map_or(base.as_fd(), |fd| fd.as_fd());
            let object = At::Name(dir, name);
            let hidden = || exists(At::Name(dir, &wh_name(name)));
            let stat = match sys::stat(object) {
                Ok(_) if is_wh_name(name) => return Ok(There::Nothing),
                Ok(stat) => stat,
                Err(Errno::ENOENT | Errno::ENAMETOOLONG) => {
                    trail.stop |= hidden()?;
                    return Ok(There::Nothing);
                }
                Err(errno) => return Err(errno),
            };
            if self.is_whiteout(object, &stat, xwhiteouts)? {
                trail.stop = true;
                return Ok(There::Nothing);
            }
            if !stat.is_dir() {
                let metacopy = last && stat.kind() == Kind::File && self.has_metacopy(object)?;
                trail.stop = !metacopy;
                trail.led = false;
                if metacopy && let Some(redirect) = self.own_mark(object, Mark::Redirect)? {
                    let redirect = self.way(&redirect)?;
                    trail.led = matches!(redirect, Way::Path(_));
                    trail.turn(names.len() - at, redirect);
                }
                let marks = DirMarks::default();
                return Ok(if last { There::Object { stat, marks, dir: None, metacopy } } else { There::Nothing });
            }
            let fd = sys::open_dir(dir, name)?;
            let marks = self.dir_marks(At::Fd(fd.as_fd()))?;
            xwhiteouts = marks.opacity == Opacity::Xwhiteouts;
            if marks.opacity == Opacity::Opaque || hidden()? || exists(At::Name(fd.as_fd(), OsStr::new(WH_OPAQUE)))? {
                trail.stop = true;
            } else if let Some(redirect) = &marks.redirect {
                trail.turn(names.len() - at, self.way(redirect)?);
            }
            if last {
                return Ok(There::Object { stat, marks, dir: Some(fd), metacopy: false });
            }
            inside = Some(fd);
        }
        Ok(There::Nothing)
    }

    /// Where a directory lies in a layer that has it, from the layer's root: by the names of the union up to the nearest
    /// one that a redirect put elsewhere.
    pub(super) fn place_in(&self, node: &Arc<Node>, layer: LayerIndex) -> Option<Vec<OsString>> {
        let mut names: Vec<OsString> = Vec::new();
        let mut current = node.clone();
        loop {
            if let Some(home) = current.home(layer) {
                let home = home.iter().cloned();
                return Some(home.chain(names.into_iter().rev()).collect());
            }
            let parent = match current.place() {
                Place::Nowhere(Nameless::Root) => {
                    names.reverse();
                    return Some(names);
                }
                Place::Nowhere(Nameless::Gone) => return None,
                Place::In { parent, name } => {
                    names.push(name.as_ref().to_owned());
                    parent
                }
            };
            current = parent;
        }
    }

    /// Opens a directory of a layer by its place. `ESTALE` if another one is there by now.
    pub(super) fn open_home(&self, layer: LayerIndex, home: &LayerPath, ino: u64) -> Result<OwnedFd> {
        let root = &self.layers.get(layer).ok_or(Errno::ESTALE)?.root;
        let mut inside: Option<OwnedFd> = None;
        for name in home.iter() {
            inside = Some(sys::open_dir(inside.as_ref().map_or(root.as_fd(), |fd| fd.as_fd()), name)?);
        }
        let fd = inside.ok_or(Errno::ESTALE)?;
        if sys::stat(At::Fd(fd.as_fd()))?.ino == ino { Ok(fd) } else { Err(Errno::ESTALE) }
    }

    /// Whether a rename can leave the lower part of a directory where it is.
    pub(super) fn writes_redirects(&self) -> bool {
        self.features.redirect_dir == RedirectDir::On
    }

    /// Marks what is about to be renamed with where its lower part lies. `EXDEV` if that cannot be said.
    pub(super) fn set_redirect(&self, at: At<'_>, (parent, name): (&Arc<Node>, &OsStr), absolute: bool) -> Result<()> {
        let known = self.own_mark(at, Mark::Redirect)?;
        if known.as_ref().is_some_and(|known| !absolute || known.starts_with(b"/")) {
            return Ok(());
        }
        let name = known.unwrap_or_else(|| name.as_bytes().to_vec());
        let redirect = if absolute { self.redirect_to(parent, name)? } else { name };
        if redirect.len() > LONGEST {
            return Err(Errno::EXDEV);
        }
        self.set_mark_in_place(at, Mark::Redirect, &redirect).map_err(|errno| {
            log::warn!("a redirect cannot be kept: {errno}");
            Errno::EXDEV
        })
    }

    /// The absolute redirect to a name in a directory, as the upper sees it: what the directories above are redirected to
    /// takes the place of their names.
    fn redirect_to(&self, parent: &Arc<Node>, name: Vec<u8>) -> Result<Vec<u8>> {
        let mut names = vec![name];
        let mut current = parent.clone();
        while let Some((above, name)) = current.named() {
            let redirect = if current.in_upper() && !current.lowers().is_empty() {
                self.with_real(&current, |at, _| self.own_mark(at, Mark::Redirect))?
            } else {
                None
            };
            match redirect {
                Some(path) if path.starts_with(b"/") => {
                    names.push(path.get(1..).unwrap_or_default().to_vec());
                    break;
                }
                Some(name) => names.push(name),
                None => names.push(name.as_bytes().to_vec()),
            }
            current = above;
        }
        names.push(Vec::new());
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// The lower parts of a directory that is about to be renamed, each with the place where it stays.
    pub(super) fn homes(&self, node: &Arc<Node>) -> Option<Arc<[LowerDir]>> {
        let lowers = node.lowers();
        if lowers.is_empty() {
            return None;
        }
        let at_home = |lower: &LowerDir| {
            let place = self.place_in(node, lower.layer)?;
            Some(LowerDir { home: Some(LayerPath::from(place)), ..lower.clone() })
        };
        let homes: SmallVec<[LowerDir; 2]> = lowers.iter().filter_map(at_home).collect();
        Some(homes.into_iter().collect())
    }

    /// The redirect of a directory whose parent lies in no layer further down: only an absolute one leads anywhere.
    pub(super) fn redirect_of_last(
        &self,
        parent: &Arc<Node>,
        at: At<'_>,
        layer: LayerIndex,
    ) -> Result<Option<Vec<u8>>> {
        if !self.follows_redirects() || layer >= self.layers.last_merged() {
            return Ok(None);
        }
        // Who did not ask for redirects shall not pay for them: what was moved here made the parent impure.
        if self.features.redirect_dir == RedirectDir::Off && (layer != UPPER || !self.is_impure(parent)?) {
            return Ok(None);
        }
        self.own_mark(at, Mark::Redirect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &[&str]) -> Way {
        Way::Path(path.iter().map(OsString::from).collect())
    }

    #[test]
    fn only_one_name_or_an_absolute_path_is_a_way() {
        assert_eq!(Way::parse(b"a"), Ok(Way::Name("a".into())));
        assert_eq!(Way::parse(b"/a/b"), Ok(path(&["a", "b"])));
        for bad in ["", "/", "//", "/a/", "//a", "/a//b", "a/b", "a/", "a\0", "/a\0b"] {
            assert_eq!(Way::parse(bad.as_bytes()), Err(Errno::EINVAL), "{bad:?}");
        }
        for upwards in ["..", ".", "/..", "/a/../b", "/a/./b"] {
            assert_eq!(Way::parse(upwards.as_bytes()), Err(Errno::EACCES), "{upwards:?}");
        }
    }

    #[test]
    fn a_redirect_on_the_way_turns_what_comes_before_the_rest() {
        let way = path(&["a", "b", "c"]);
        assert_eq!(way.turned(1, Way::Name("x".into())), path(&["a", "x", "c"]));
        assert_eq!(way.turned(1, path(&["x", "y"])), path(&["x", "y", "c"]));
        assert_eq!(Way::Name("a".into()).turned(0, Way::Name("b".into())), Way::Name("b".into()));
        assert_eq!(Way::Name("a".into()).turned(0, path(&["x"])), path(&["x"]));
    }
}
