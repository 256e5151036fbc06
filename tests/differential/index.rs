//! What an index holds, entry by entry. Entries are named after handles, which differ from place to place: here they have
//! the paths of the objects instead.

use crate::common::mounts::Stack;
use plyfs::sys::{At, file_handle};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a whiteout in an index says.
const GONE: &str = "gone";

/// The bytes of a mark before its handle.
const HEADER: usize = 21;

/// The entries of a union's index, and what each is; none where there is no index.
pub fn entries(stack: &Stack) -> BTreeMap<String, String> {
    let lowers: Vec<PathBuf> = stack.lowers.iter().filter(|lower| lower.is_dir()).cloned().collect();
    let mut below = BTreeMap::new();
    for (number, lower) in lowers.iter().enumerate() {
        note(lower, Path::new(&number.to_string()), &mut below);
    }
    let mut above = BTreeMap::new();
    note(&stack.upper, Path::new("upper"), &mut above);
    let Ok(dir) = std::fs::read_dir(stack.work.join("index")) else { return BTreeMap::new() };
    let paths = dir.map(|entry| entry.expect("root can list an index").path());
    // A name with a number sign is removed at the next mount.
    let named = paths.filter(|path| !name_of(path).starts_with('#'));
    let told = named.map(|path| {
        let place = place_of(&name_of(&path), &below);
        // The first component is the layer's number.
        let lower =
            place.split_once('/').and_then(|(layer, rest)| Some(lowers.get(layer.parse::<usize>().ok()?)?.join(rest)));
        let one_name = lower.is_some_and(|lower| links(&lower) == 1);
        // The kernel, which counts one name too many, may leave what lost its name for the next mount to find.
        let orphan = one_name && !path.is_dir() && links(&path) == 1;
        let what = if orphan { GONE.to_owned() } else { tell(&path, &above) };
        (place, what)
    });
    told.collect()
}

fn links(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |stat| stat.nlink())
}

fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

/// Notes the handles of a tree, each with the first path that it has.
fn note(dir: &Path, shown: &Path, handles: &mut BTreeMap<String, PathBuf>) {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).expect("root can list").map(|entry| entry.expect("a name")).collect();
    names.sort_by_key(std::fs::DirEntry::file_name);
    for entry in names {
        let (path, shown) = (entry.path(), shown.join(entry.file_name()));
        let handle = file_handle(At::Name(rustix::fs::CWD, path.as_os_str())).expect("layers have handles");
        handles.entry(hex(&handle.bytes)).or_insert_with(|| shown.clone());
        if entry.file_type().expect("a type").is_dir() {
            note(&path, &shown, handles);
        }
    }
}

/// The object whose handle is in a mark.
fn place_of(mark: &str, handles: &BTreeMap<String, PathBuf>) -> String {
    let found = mark.get(2 * HEADER..).and_then(|handle| handles.get(handle));
    found.map_or_else(|| format!("unknown {mark}"), |path| path.display().to_string())
}

fn tell(entry: &Path, above: &BTreeMap<String, PathBuf>) -> String {
    let stat = std::fs::symlink_metadata(entry).expect("root can look");
    let mark = |name: &str| {
        let mut value = [0; 256];
        ["trusted", "user"].iter().find_map(|namespace| {
            let length = rustix::fs::lgetxattr(entry, format!("{namespace}.overlay.{name}"), &mut value).ok()?;
            Some(hex(&value[..length]))
        })
    };
    if stat.file_type().is_char_device() && stat.rdev() == 0 {
        return GONE.to_owned();
    }
    if stat.is_dir() {
        let upper = mark("upper").unwrap_or_default();
        let flags = upper.get(6..8).unwrap_or_default().to_owned();
        return format!("directory {:o} {flags} at {}", stat.mode(), place_of(&upper, above));
    }
    let own = mark("origin").as_deref() == Some(name_of(entry).as_str());
    format!("{:o}, {}", stat.mode(), if own { "its copy" } else { "something else" })
}
