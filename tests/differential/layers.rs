//! Random layers: what people, tools and package managers leave in directories, and the overlay's own marks.
//!
//! A whiteout is only put where the kernel's overlay could have put it: in a directory that is merged with one below.

use super::path::{P, join, p, parent};
use super::rng::Rng;
use super::tree::{Kind, Node, OPAQUE, Tree};

/// Who will work on the layers, and so what they may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Devices, owners, `trusted.` and `security.` attributes.
    Root,
    /// Only what a plain user can make and a plain directory can model.
    User,
}

/// Names that collide often, and a few that are hard to handle.
pub const NAMES: [&[u8]; 10] = [b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h", b"i", b"j"];
const ODD: [&[u8]; 9] =
    [b"\xff\xfe\x80", b"x y", b"new\nline", b".hidden", "caf\u{e9}".as_bytes(), b",:=\\", b"..x", b"#1", b"*?[]"];

/// A name, now and then an odd one.
pub fn name(rng: &mut Rng) -> Vec<u8> {
    match rng.below(20) {
        0 => rng.pick(&ODD).to_vec(),
        1 if rng.chance(30) => vec![b'n'; 255],
        _ => rng.pick(&NAMES).to_vec(),
    }
}

/// Bytes that differ at every offset, so that misplaced data is seen.
pub fn pattern(start: u64, length: usize, tint: u8) -> Vec<u8> {
    (start..).take(length).map(|at| tint.wrapping_add((at ^ (at >> 8)) as u8)).collect()
}

/// A random layer that goes on top of `below` (the topmost first).
pub fn layer(rng: &mut Rng, below: &[&Tree], rights: Rights, entries: u64) -> Tree {
    let union = flatten(below);
    let mut tree = Tree::empty();
    if rng.chance(20) {
        tree.put(p(b""), Node { mtime: time(rng), ..Node::new(Kind::Dir, *rng.pick(&[0o755, 0o1777, 0o2777])) });
    }
    for _ in 0..entries {
        let dirs: Vec<P> = paths(&tree, |node| node.is_dir());
        let dir = rng.pick(&dirs).clone();
        let path = join(&dir, &name(rng));
        if tree.nodes.contains_key(&path) {
            continue;
        }
        let node = node(rng, &tree, &path, rights);
        tree.put(path, node);
    }
    if !below.is_empty() {
        put_marks(rng, &mut tree, &union, entries, rights);
    }
    tree
}

/// Whiteouts over names that lie below, and directories that hide what lies below.
fn put_marks(rng: &mut Rng, tree: &mut Tree, union: &Tree, entries: u64, rights: Rights) {
    let merged = |tree: &Tree, path: &P| {
        let mut dir = path.clone();
        while !dir.is_empty() {
            if tree.nodes.get(&dir).is_some_and(Node::is_opaque) {
                return false;
            }
            dir = parent(&dir);
        }
        union.nodes.get(path).is_some_and(Node::is_dir)
    };
    if rights == Rights::Root {
        for path in paths(tree, |node| node.is_dir()) {
            if !path.is_empty()
                && rng.chance(12)
                && merged(tree, &path)
                && let Some(node) = tree.nodes.get_mut(&path)
            {
                node.xattrs.insert(p(OPAQUE), p(b"y"));
            }
        }
    }
    for _ in 0..entries / 3 {
        let dirs: Vec<P> = paths(tree, |node| node.is_dir()).into_iter().filter(|path| merged(tree, path)).collect();
        if dirs.is_empty() {
            return;
        }
        let dir = rng.pick(&dirs).clone();
        let inside: Vec<P> =
            union.nodes.keys().filter(|path| !path.is_empty() && parent(path) == dir).cloned().collect();
        let path = if inside.is_empty() || rng.chance(10) { join(&dir, &name(rng)) } else { rng.pick(&inside).clone() };
        if !tree.nodes.contains_key(&path) {
            tree.put(path, Node::whiteout());
        }
    }
}

/// Makes a layer one that two users of a group work on: directories of one or of both, sticky, setgid, with a default ACL.
pub fn share(rng: &mut Rng, tree: &mut Tree) {
    for (path, node) in tree.nodes.iter_mut().filter(|(_, node)| node.is_dir()) {
        if !path.is_empty() && rng.chance(40) {
            continue;
        }
        (node.uid, node.gid) = (*rng.pick(&[0, 1000, 1001]), 2000);
        node.mode = *rng.pick(&[0o777, 0o1777, 0o775, 0o1775, 0o2775, 0o2770, 0o3777]);
        if rng.chance(25) {
            node.xattrs.insert(p(b"system.posix_acl_default"), p(acl(rng, Rights::Root)));
        }
    }
}

/// Makes a layer one that Alice has let others of her group into.
pub fn let_in(rng: &mut Rng, tree: &mut Tree) {
    for (path, node) in &mut tree.nodes {
        (node.uid, node.gid) = (1000, *rng.pick(&[1000, 2000]));
        if !node.is_dir() || (!path.is_empty() && rng.chance(40)) {
            continue;
        }
        node.mode = *rng.pick(&[0o777, 0o1777, 0o775, 0o1775, 0o2775, 0o2770, 0o3777]);
        if rng.chance(25) {
            node.xattrs.insert(p(b"system.posix_acl_default"), p(acl(rng, Rights::User)));
        }
    }
}

/// Moves the data of some files of a layer into a layer of data: what stays says where it is, as composefs has it.
pub fn split_data(rng: &mut Rng, tree: &mut Tree, data: &mut Tree) {
    for node in tree.nodes.values_mut() {
        let Kind::File { size, .. } = node.kind else { continue };
        let marked = node.xattrs.keys().any(|name| name.as_bytes().starts_with(b"trusted.overlay."));
        if marked || rng.chance(50) {
            continue;
        }
        let mut path = format!("{}", data.nodes.len());
        if rng.chance(30) {
            data.put(p(b"dir"), Node::new(Kind::Dir, 0o755));
            path = format!("dir/{path}");
        }
        let kind = std::mem::replace(&mut node.kind, Kind::File { size, data: Vec::new() });
        data.put(p(path.as_bytes()), Node::new(kind, 0o644));
        node.xattrs.insert(p(b"trusted.overlay.metacopy"), p(b""));
        node.xattrs.insert(p(b"trusted.overlay.redirect"), p(format!("/{path}")));
    }
}

fn node(rng: &mut Rng, tree: &Tree, path: &P, rights: Rights) -> Node {
    let root = rights == Rights::Root;
    let files: Vec<P> = paths(tree, |node| matches!(node.kind, Kind::File { .. }));
    let link = rng.chance(7) && root && files.iter().any(|other| other < path);
    let kind = match rng.below(100) {
        _ if link => {
            let earlier: Vec<P> = files.into_iter().filter(|other| other < path).collect();
            Kind::Link(rng.pick(&earlier).clone())
        }
        0..35 if path.depth() < 4 => Kind::Dir,
        0..82 => file(rng),
        82..91 => Kind::Symlink(target(rng)),
        91..95 => Kind::Fifo,
        95..97 => Kind::Socket,
        97..99 if root => Kind::Char(*rng.pick(&[0x103, 0x501])),
        99 if root => Kind::Block(0x700),
        _ => file(rng),
    };
    let mode = mode(rng, kind == Kind::Dir, rights);
    let mut node = Node { mtime: time(rng), ..Node::new(kind, mode) };
    if root {
        node.uid = *rng.pick(&[0, 0, 1000, 1000, 1001]);
        node.gid = *rng.pick(&[0, 1000, 1001, 2000]);
    }
    let may_have_xattrs = match node.kind {
        Kind::Link(_) => false,
        Kind::File { .. } | Kind::Dir => true,
        _ => root,
    };
    if rng.chance(25) && may_have_xattrs {
        for _ in 0..=rng.below(2) {
            let (name, value) = xattr(rng, &node.kind, rights);
            node.xattrs.insert(p(name), p(value));
        }
    }
    node
}

fn file(rng: &mut Rng) -> Kind {
    let tint = rng.bits() as u8;
    let piece = |start: u64, length: u64| (start, pattern(start, length as usize, tint));
    let (size, data) = match rng.below(20) {
        0..3 => (0, vec![]),
        3..10 => {
            let size = 1 + rng.below(100);
            (size, vec![piece(0, size)])
        }
        10..14 => {
            let size = 4094 + rng.below(5);
            (size, vec![piece(0, size)])
        }
        14..18 => {
            let size = rng.below(20_000);
            (size, vec![piece(0, size)])
        }
        _ => {
            let size = 50_000 + rng.below(250_000);
            let pieces = 1 + rng.below(3);
            let starts: Vec<u64> = (0..pieces).map(|_| rng.below(size - 5000)).collect();
            (size, starts.into_iter().map(|start| piece(start, 5000)).collect())
        }
    };
    Kind::File { size, data }
}

/// Where symbolic links lead: never out of the tree, to anything that exists.
pub fn target(rng: &mut Rng) -> P {
    match rng.below(10) {
        0..6 => p(name(rng)),
        6..8 => join(&p(name(rng)), &name(rng)),
        8 => p(b"../../../../nowhere/at/all"),
        _ => p(vec![b't'; 700]),
    }
}

/// Permission bits of all kinds.
pub fn mode(rng: &mut Rng, dir: bool, rights: Rights) -> u32 {
    let common: &[u32] = if dir { &[0o755, 0o777, 0o775] } else { &[0o644, 0o666, 0o755] };
    let rare: &[u32] = match (dir, rights) {
        (true, Rights::Root) => &[0o1777, 0o2775, 0o2777, 0o700, 0o555, 0o000, 0o711, 0o3777],
        (false, Rights::Root) => &[0o4755, 0o2755, 0o6777, 0o444, 0o000, 0o600, 0o222, 0o2644, 0o1644, 0o640],
        (true, Rights::User) => &[0o700, 0o1777, 0o711],
        (false, Rights::User) => &[0o600, 0o4755, 0o444, 0o640],
    };
    if rng.chance(60) { *rng.pick(common) } else { *rng.pick(rare) }
}

/// Times that are not now: old, new, odd.
pub fn time(rng: &mut Rng) -> (i64, i64) {
    let seconds = match rng.below(12) {
        0 => 0,
        1 => 1,
        2 => -1_000_000,
        3 => 4_102_444_800,
        _ => 900_000_000 + i64::try_from(rng.below(600_000_000)).unwrap_or(0),
    };
    (seconds, if rng.chance(20) { 0 } else { i64::try_from(rng.below(1_000_000_000)).unwrap_or(0) })
}

/// An extended attribute that fits a node of this kind.
pub fn xattr(rng: &mut Rng, kind: &Kind, rights: Rights) -> (&'static [u8], Vec<u8>) {
    let tint = rng.bits() as u8;
    let length = *rng.pick(&[0, 1, 10, 60, 300]);
    let plain = pattern(0, length, tint);
    let is_file = matches!(kind, Kind::File { .. });
    match rng.below(10) {
        0..4 if is_file || *kind == Kind::Dir => {
            (*rng.pick(&[b"user.a".as_slice(), b"user.b", b"user.long.name"]), plain)
        }
        4..6 if rights == Rights::Root && is_file => (b"security.capability", capability(rng)),
        6..8 if !matches!(kind, Kind::Symlink(_)) => (b"system.posix_acl_access", acl(rng, rights)),
        8 if *kind == Kind::Dir => (b"system.posix_acl_default", acl(rng, rights)),
        _ if rights == Rights::Root => (*rng.pick(&[b"trusted.a".as_slice(), b"trusted.b"]), plain),
        _ if is_file || *kind == Kind::Dir => (b"user.a", plain),
        _ if !matches!(kind, Kind::Symlink(_)) => (b"system.posix_acl_access", acl(rng, rights)),
        _ => (b"user.a", Vec::new()),
    }
}

/// A file capability in the kernel's second format.
pub fn capability(rng: &mut Rng) -> Vec<u8> {
    let words: [u32; 5] = [0x0200_0001, rng.below(1 << 20) as u32, 0, 0, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A valid ACL as the xattr holds it.
pub fn acl(rng: &mut Rng, rights: Rights) -> Vec<u8> {
    const NONE: u32 = u32::MAX;
    let mut entries: Vec<(u16, u32)> = vec![(0x01, NONE)];
    if rng.chance(70) {
        entries.push((0x02, *rng.pick(&[1000, 1001])));
    }
    entries.push((0x04, NONE));
    if rng.chance(50) {
        entries.push((0x08, *rng.pick(&[1000, 2000])));
    }
    if entries.len() > 2 {
        entries.push((0x10, NONE));
    }
    entries.push((0x20, NONE));
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, id) in entries {
        bytes.extend(tag.to_le_bytes());
        // A plain user's server needs its user's own permissions.
        let permissions = if tag == 0x01 && rights == Rights::User { 7 } else { rng.below(8) as u16 };
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// The paths of the nodes that `wanted` holds for.
pub fn paths(tree: &Tree, wanted: impl Fn(&Node) -> bool) -> Vec<P> {
    tree.nodes.iter().filter(|(_, node)| wanted(node)).map(|(path, _)| path.clone()).collect()
}

/// The union of layers (the topmost first), by the rules of the overlay's documentation.
pub fn flatten(layers: &[&Tree]) -> Tree {
    let mut union = Tree { nodes: Default::default() };
    merge(layers, &p(b""), &mut union);
    union
}

/// Adds what `layers` (all having a directory at `dir`) show there.
fn merge(layers: &[&Tree], dir: &P, union: &mut Tree) {
    let Some(top) = layers.first().and_then(|layer| layer.nodes.get(dir)) else { return };
    union.put(dir.clone(), top.clone());
    let mut names: Vec<&[u8]> = layers
        .iter()
        .flat_map(|layer| layer.nodes.keys())
        .filter(|path| !path.is_empty() && parent(path) == *dir)
        .map(P::name)
        .collect();
    names.sort();
    names.dedup();
    for name in names {
        let path = join(dir, name);
        let mut stack = Vec::new();
        for layer in layers {
            match layer.nodes.get(&path) {
                None => continue,
                Some(node) if node.is_dir() => {
                    stack.push(*layer);
                    if node.is_opaque() {
                        break;
                    }
                }
                Some(node) => {
                    if stack.is_empty() && !node.is_whiteout() {
                        union.put(path.clone(), node.clone());
                    }
                    break;
                }
            }
        }
        merge(&stack, &path, union);
    }
}
