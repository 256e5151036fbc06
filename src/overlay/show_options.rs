//! What a union was made of and how it behaves, in the words in which the kernel's overlay shows its own in the table of
//! mounts: which FUSE gives no way to, so that it is an attribute of the root.
//!
//! Answers to the kernel's `ovl_show_options`: its order, its spelling, its escapes, and only what differs from the default.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::config::{Fsync, RedirectDir, Uuid, Verity};
use super::node::{NodeId, ROOT_ID};
use super::superblock::Overlay;
use super::xattr::{Mark, Namespace};
use crate::errno::Result;
use crate::sys::{AsFd, At};

/// The attribute of the root. It is not listed, cannot be set, and hides one of that name in a layer.
pub const OPTIONS: &str = "user.plyfs.options";

/// Whether this is that attribute of the root.
pub(super) fn is_options(id: NodeId, name: &OsStr) -> bool {
    id == ROOT_ID && name == OPTIONS
}

/// Adds what the kernel shows of a path that was typed as an option: first as it is typed, with a backslash before what
/// would end it, and then with octal escapes, as all of the table.
fn add_path(line: &mut Vec<u8>, path: &Path, special: &[u8]) {
    for byte in path.as_os_str().as_bytes() {
        if special.contains(byte) {
            add_byte(line, b'\\');
        }
        add_byte(line, *byte);
    }
}

fn add_byte(line: &mut Vec<u8>, byte: u8) {
    if b" ,\t\n\\".contains(&byte) {
        line.extend_from_slice(format!("\\{byte:03o}").as_bytes());
    } else {
        line.push(byte);
    }
}

impl Overlay {
    /// The options as one line: `lowerdir=A:B,upperdir=U,workdir=W,redirect_dir=on`.
    ///
    /// # Errors
    /// What reading the upper's identity gives.
    pub fn show_options(&self) -> Result<Vec<u8>> {
        let mut line = self.show_layers();
        for (name, value) in self.show_features()? {
            line.push(b',');
            line.extend_from_slice(name.as_bytes());
            if let Some(value) = value {
                line.push(b'=');
                line.extend_from_slice(value.as_bytes());
            }
        }
        Ok(line)
    }

    fn show_layers(&self) -> Vec<u8> {
        let mut line = b"lowerdir=".to_vec();
        let merged = self.layers.lowers.iter().map(|layer| (":", layer));
        let data = self.layers.data.iter().map(|layer| ("::", layer));
        for (at, (colons, layer)) in merged.chain(data).enumerate() {
            line.extend_from_slice(if at == 0 { b"" } else { colons.as_bytes() });
            add_path(&mut line, &layer.path, b":,\\");
        }
        if let (Some(upper), Some(work)) = (&self.layers.upper, &self.work) {
            for (option, path) in [("upperdir", &upper.path), ("workdir", &work.root)] {
                line.extend_from_slice(format!(",{option}=").as_bytes());
                add_path(&mut line, path, b",\\");
            }
        }
        line
    }

    fn show_features(&self) -> Result<Vec<(&'static str, Option<&'static str>)>> {
        let user = self.namespace == Namespace::User;
        let redirect_dir = match self.features.redirect_dir {
            RedirectDir::On => Some("on"),
            RedirectDir::NoFollow => Some("nofollow"),
            RedirectDir::Off if user => Some("nofollow"),
            // Nothing is written, so the two are the same.
            RedirectDir::Off | RedirectDir::Follow if self.work.is_none() => Some("on"),
            RedirectDir::Follow if user => Some("follow"),
            RedirectDir::Off | RedirectDir::Follow => None,
        };
        let verity = match self.features.verity {
            Verity::Off => None,
            Verity::On => Some("on"),
            Verity::Require => Some("require"),
        };
        let fsync = match self.fsync {
            Fsync::Auto => None,
            Fsync::Strict => Some("strict"),
            Fsync::Volatile => self.work.is_some().then_some("volatile"),
        };
        let switched = |on: bool| on.then_some("on");
        let valued = [
            ("redirect_dir", redirect_dir),
            ("index", switched(self.index.is_some())),
            ("uuid", self.show_uuid()?),
            ("nfs_export", switched(self.features.nfs_export)),
            ("xino", switched(self.layers.filesystems.len() > 1)),
            ("metacopy", switched(self.features.metacopy)),
            ("fsync", fsync),
        ];
        let mut shown: Vec<_> = valued.into_iter().filter(|(_, value)| value.is_some()).collect();
        if user {
            shown.push(("userxattr", None));
        }
        shown.extend(verity.map(|word| ("verity", Some(word))));
        Ok(shown)
    }

    /// Which identity the kernel's overlay has with this upper.
    fn show_uuid(&self) -> Result<Option<&'static str>> {
        Ok(match (self.uuid, &self.layers.upper) {
            (Uuid::Auto, None) => None,
            (Uuid::Off, _) => Some("off"),
            (Uuid::Auto | Uuid::On, Some(upper)) => {
                Some(self.own_mark(At::Fd(upper.root.as_fd()), Mark::Uuid)?.map_or("null", |_| "on"))
            }
            (Uuid::Null | Uuid::On, _) => Some("null"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_shown_as_the_kernel_shows_what_was_typed() {
        let shown = |path: &str| {
            let mut line = Vec::new();
            add_path(&mut line, Path::new(path), b":,\\");
            String::from_utf8(line).unwrap()
        };
        assert_eq!(shown("/a/b"), "/a/b");
        assert_eq!(shown("x,y"), r"x\134\054y");
        assert_eq!(shown("x y"), r"x\040y");
        assert_eq!(shown("a:b"), r"a\134:b");
        assert_eq!(shown(r"p\q"), r"p\134\134q");
    }
}
