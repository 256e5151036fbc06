//! Opening a union: every check that can refuse it, before anything is mounted or changed.
//!
//! Answers to the kernel's `ovl_fill_super`. Each refusal names the option and the path.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::cache::FdCache;
use super::config::{Config, Features, RedirectDir, SetupError, Upper, Whiteouts, XattrNamespace};
use super::idmap::Ids;
use super::in_use::{Relation, lock, overlay_using, relation};
use super::index::Index;
use super::ino::InodeNumbers;
use super::lasting_id::Searched;
use super::layer::{FileSystem, Layer, Layers};
use super::nlink::CountLocks;
use super::node::{LowerDir, Node, Place, ROOT_ID, RealId, UPPER};
use super::order::{Level, RwLock};
use super::override_stat::{check, find_sources};
use super::readdir::Listings;
use super::recent::Recent;
use super::superblock::Overlay;
use super::table::Table;
use super::uuid::settle;
use super::whiteout::WH_OPAQUE;
use super::workdir::{WorkDir, can_keep_wh_names, can_make_devices};
use super::xattr::{Mark, Namespace, Opacity};
use super::xattr_known::Epoch;
use crate::errno::Errno;
use crate::sys::{self, AsFd, At, Kind, Mode, OFlags};

type Setup<T> = Result<T, SetupError>;

/// The most directories, and the most files to read and as many to write, that are kept open for what comes again.
const MOST_DIRS: usize = 4096;
const MOST_FILES: usize = 2048;

/// The most descriptors that a union keeps open for what comes again.
pub const MOST_KEPT_OPEN: usize = MOST_DIRS + 2 * MOST_FILES;

impl Overlay {
    /// Opens the layers of a union and makes it ready to answer.
    ///
    /// # Errors
    /// When a layer is missing, is not a directory or cannot be read; when there is no lower or there are too many; when
    /// upper and work directory do not fit together, are in use, or lie on a file system that cannot hold the overlay's
    /// format. Nothing on disk has been changed then.
    pub fn new(config: &Config) -> Setup<Overlay> {
        if config.lowers.is_empty() {
            return Err(SetupError::option("lowerdir", "missing: a union needs at least one lower layer"));
        }
        let count = config.lowers.len() + config.data_lowers.len();
        if count > Config::MAX_LOWERS {
            let reason = format!("{count} layers are more than the {} that can be stacked", Config::MAX_LOWERS);
            return Err(SetupError::option("lowerdir", reason));
        }
        let mut filesystems = Vec::new();
        let upper = config.upper.as_ref().map(|upper| open_upper(upper, &mut filesystems)).transpose()?;
        let lowers =
            config.lowers.iter().map(|path| open_lower(path, &mut filesystems)).collect::<Setup<Vec<Layer>>>()?;
        let data =
            config.data_lowers.iter().map(|path| open_lower(path, &mut filesystems)).collect::<Setup<Vec<Layer>>>()?;
        let limit = sys::process::raise_descriptor_limit().map_or(1024, |limit| limit.unwrap_or(1 << 20));
        let limit = usize::try_from(limit).unwrap_or(1024);
        let writable = match (upper, &config.upper) {
            (Some((layer, work_root)), Some(paths)) => {
                let writable = Writable::prepare(config, paths, &layer, &work_root)?;
                Some((layer, writable))
            }
            _ => None,
        };
        let mut features = config.features;
        let mut index = None;
        let mut keeps_marks = false;
        let (upper, work, namespace, device_whiteouts) = match writable {
            Some((layer, w)) => {
                keeps_marks = w.keeps_marks;
                if !keeps_marks {
                    features = Features { redirect_dir: RedirectDir::NoFollow, ..Features::default() };
                }
                index = w.index;
                (Some(layer), Some(w.work), w.namespace, w.device_whiteouts)
            }
            None => (None, None, default_namespace(config.xattrs), true),
        };
        if features != config.features && config.features != Features::default() {
            log::warn!("upperdir: no extended attributes, falling back to redirect_dir=nofollow,metacopy=off");
        }
        let uuid = settle(config.uuid, upper.is_some(), &mut filesystems);
        let mut layers = Layers { upper, lowers, data, filesystems, roots: Vec::new() };
        layers.find_roots(work.as_ref().map(WorkDir::fd)).map_err(|errno| SetupError::option("lowerdir", errno))?;
        let overriding = find_sources(config, &mut layers)?;
        let numbers = InodeNumbers::new(&layers, config.narrow_inodes);
        let root = root_node(&layers, &numbers).map_err(|errno| SetupError::option("lowerdir", errno))?;
        let journal = work.as_ref().map_or(sys::Journal::Unknown, |work| sys::Journal::of(work.fd()));
        let handles = features.nfs_export.then(sys::random_uuid).transpose();
        let handles = handles.map_err(|errno| SetupError::option("nfs_export=on", errno))?;
        let overlay = Overlay {
            table: Table::new(root.clone(), handles.map(|[a, b, c, d, ..]| u32::from_ne_bytes([a, b, c, d]))),
            root,
            numbers,
            layers,
            work,
            namespace,
            device_whiteouts,
            fsync: config.fsync,
            journal,
            uncommitted: super::sync::Uncommitted::default(),
            ids: Ids::new(&config.ids),
            features,
            keeps_marks,
            uuid,
            index,
            overriding,
            server: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            dirs: FdCache::new((limit / 4).clamp(16, MOST_DIRS)),
            readers: FdCache::new((limit / 8).clamp(16, MOST_FILES)),
            writers: FdCache::new((limit / 8).clamp(16, MOST_FILES)),
            whiteouts: FdCache::new(1),
            listings: Listings::default(),
            recent: Recent::default(),
            count_locks: CountLocks::default(),
            crossing: RwLock::new(Level::Crossing, ()),
            renaming: RwLock::new(Level::Renaming, ()),
            capability_dropped: std::sync::atomic::AtomicU64::new(0),
            foreign_changes: Epoch::default(),
            searched: Searched::default(),
            counts: super::counts::Counts::default(),
            listener: std::sync::OnceLock::new(),
            watcher: std::sync::OnceLock::new(),
        };
        overlay.merge_root().map_err(|errno| SetupError::option("lowerdir", errno))?;
        overlay.verify_origin().map_err(|errno| match (errno, &config.upper) {
            (Errno::ESTALE, Some(upper)) => {
                SetupError::path("upperdir", &upper.dir, "was used with index=on over another lowerdir")
            }
            _ => SetupError::option("index=on", errno),
        })?;
        overlay.clean_index().map_err(|errno| SetupError::option("index=on", errno))?;
        Ok(overlay)
    }

    /// Finds out which layers' roots are merged: all but those below one with an opaque file of AUFS in it. An opaque mark
    /// on a root means nothing, as in the kernel.
    fn merge_root(&self) -> crate::errno::Result<()> {
        let mut lowers = Vec::new();
        if let Some(upper) = &self.layers.upper
            && is_opaque_by_name(upper)?
        {
            return Ok(());
        }
        for (layer, index) in self.layers.lowers.iter().zip(UPPER + 1..) {
            let at = At::Fd(layer.root.as_fd());
            let opacity = self.dir_marks(at)?.opacity;
            let xwhiteouts = opacity == Opacity::Xwhiteouts;
            lowers.push(LowerDir { layer: index, ino: sys::stat(at)?.ino, xwhiteouts, ..LowerDir::default() });
            if is_opaque_by_name(layer)? {
                break;
            }
        }
        if let Some(dir) = &self.root.dir {
            *dir.lowers.write() = lowers.into();
        }
        Ok(())
    }
}

/// Whether a layer's root holds the file of AUFS that makes it opaque.
fn is_opaque_by_name(layer: &Layer) -> crate::errno::Result<bool> {
    match sys::stat(At::Name(layer.root.as_fd(), OsStr::new(WH_OPAQUE))) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn root_node(layers: &Layers, numbers: &InodeNumbers) -> crate::errno::Result<Arc<Node>> {
    let topmost_lower = layers.lowers.first().ok_or(Errno::EINVAL)?;
    let (layer, top) = match &layers.upper {
        Some(upper) => (UPPER, upper),
        None => (UPPER + 1, topmost_lower),
    };
    let stat = sys::stat(At::Fd(top.root.as_fd()))?;
    let below = sys::stat(At::Fd(topmost_lower.root.as_fd()))?;
    let ino = numbers.persistent(layers, below.dev, below.ino).unwrap_or_else(|| numbers.made_up());
    Ok(Arc::new(Node::new(ROOT_ID, Kind::Dir, ino, Place::ROOT, layer, RealId::of(&stat))))
}

fn default_namespace(wanted: XattrNamespace) -> Namespace {
    match wanted {
        XattrNamespace::Trusted => Namespace::Trusted,
        XattrNamespace::Auto if is_root_of_the_machine() => Namespace::Trusted,
        XattrNamespace::Auto | XattrNamespace::User => Namespace::User,
    }
}

/// Whether we are root, and root here is root of the machine: only it can use the trusted namespace.
pub(super) fn is_root_of_the_machine() -> bool {
    // Asked for each layer; whom a namespace's ids stand for never changes.
    static WHOLE: OnceLock<bool> = OnceLock::new();
    rustix::process::geteuid().is_root()
        && *WHOLE.get_or_init(|| {
            std::fs::read_to_string("/proc/self/uid_map")
                .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
        })
}

fn open_layer(option: &str, path: &Path, filesystems: &mut Vec<FileSystem>) -> Setup<Layer> {
    let fail = |reason: &dyn std::fmt::Display| SetupError::path(option, path, reason);
    // The one path walk of a layer's life; the path itself may go through symlinks, as container stores have it.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        rustix::io::Errno::NOTDIR => fail(&"is not a directory"),
        rustix::io::Errno::NOENT => fail(&"does not exist"),
        rustix::io::Errno::ACCESS => fail(&"cannot be read: permission denied"),
        errno => fail(&Errno::from(errno)),
    })?;
    if sys::is_casefolded(root.as_fd()) {
        return Err(fail(&"finds its names whatever their case (chattr +F), which a union cannot have"));
    }
    layer_of(root, path, filesystems).map_err(|errno| fail(&errno))
}

fn layer_of(root: OwnedFd, path: &Path, filesystems: &mut Vec<FileSystem>) -> crate::errno::Result<Layer> {
    let fs = register(root.as_fd(), filesystems)?;
    let mount = sys::stat(At::Fd(root.as_fd()))?.mount;
    Ok(Layer { root: Arc::new(root), _tree: None, fs, source: None, mount, path: path.to_owned() })
}

/// A lower layer: what is mounted inside it does not show, as in the kernel's overlay, and nothing in it can be changed.
/// Who may not have it so has what is mounted inside refused (`EXDEV`).
fn open_lower(path: &Path, filesystems: &mut Vec<FileSystem>) -> Setup<Layer> {
    let layer = open_layer("lowerdir", path, filesystems)?;
    match sys::private_tree(layer.root.as_fd()) {
        Ok((root, tree)) => {
            let layer = layer_of(root, path, filesystems).map_err(|errno| SetupError::path("lowerdir", path, errno))?;
            Ok(Layer { _tree: Some(tree), ..layer })
        }
        Err(errno) => {
            log::debug!("{}: no mount of its own: {errno}", path.display());
            Ok(layer)
        }
    }
}

fn register(root: sys::BorrowedFd<'_>, filesystems: &mut Vec<FileSystem>) -> crate::errno::Result<usize> {
    let dev = sys::stat(At::Fd(root))?.dev;
    if let Some(position) = filesystems.iter().position(|fs| fs.dev == dev) {
        return Ok(position);
    }
    let (magic, uuid) = (sys::fs_magic(root)?, sys::fs_uuid(root).unwrap_or_default());
    filesystems.push(FileSystem { dev, magic, uuid, handles: 0.into() });
    Ok(filesystems.len() - 1)
}

/// Opens upper and work directory and checks that they belong together and to nobody else.
fn open_upper(upper: &Upper, filesystems: &mut Vec<FileSystem>) -> Setup<(Layer, OwnedFd)> {
    let layer = open_layer("upperdir", &upper.dir, filesystems)?;
    let work = open_layer("workdir", &upper.work, filesystems)?;
    let work_fail = |reason: &dyn std::fmt::Display| SetupError::path("workdir", &upper.work, reason);
    let stat_of = |layer: &Layer| sys::stat(At::Fd(layer.root.as_fd()));
    let up = stat_of(&layer).map_err(|errno| SetupError::path("upperdir", &upper.dir, errno))?;
    let wd = stat_of(&work).map_err(|errno| work_fail(&errno))?;
    if up.dev != wd.dev {
        return Err(work_fail(&"is not on the file system of upperdir"));
    }
    match relation(&layer, &up, &work, &wd) {
        Relation::Apart => {}
        Relation::WorkInUpper => return Err(work_fail(&"is upperdir or lies inside it")),
        Relation::UpperInWork => return Err(SetupError::path("upperdir", &upper.dir, "lies inside workdir")),
    }
    if let Some(user) = overlay_using(&up, &wd) {
        return Err(SetupError::path("upperdir", &upper.dir, format!("is in use by the overlay mounted at {user}")));
    }
    for (option, path, layer) in [("upperdir", &upper.dir, &layer), ("workdir", &upper.work, &work)] {
        lock(layer.root.as_fd()).map_err(|errno| match errno {
            Errno::EAGAIN => SetupError::path(option, path, "is in use by another mount"),
            errno => SetupError::path(option, path, errno),
        })?;
    }
    let Layer { root, .. } = work;
    let root = Arc::into_inner(root).ok_or_else(|| work_fail(&Errno::EIO))?;
    Ok((layer, root))
}

/// Whether the work directory carries a mark that refuses it: anything in `incompat`.
fn is_incompatible(work: &WorkDir) -> crate::errno::Result<bool> {
    let incompat = match sys::open_dir(work.fd(), OsStr::new("incompat")) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(false),
        result => result?,
    };
    let mut any = false;
    sys::read_dir(incompat.as_fd(), |_| {
        any = true;
        Ok(())
    })?;
    Ok(any)
}

/// What a writable union has that a read-only one has not.
struct Writable {
    work: WorkDir,
    index: Option<Index>,
    namespace: Namespace,
    /// Whether marks can be written at all.
    keeps_marks: bool,
    device_whiteouts: bool,
}

impl Writable {
    /// Makes `WORKDIR/work` and finds out what the upper's file system can hold. On a refusal what was made is removed.
    fn prepare(config: &Config, paths: &Upper, upper: &Layer, work_root: &OwnedFd) -> Setup<Writable> {
        let fail = |reason: &dyn std::fmt::Display| SetupError::path("workdir", &paths.work, reason);
        let name = OsStr::new("work");
        let made = match sys::mkdir(work_root.as_fd(), name, 0o700) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(Errno::EACCES | Errno::EROFS) => return Err(fail(&"cannot be written to")),
            Err(errno) => return Err(fail(&errno)),
        };
        let prepared = Writable::probe(config, paths, upper, work_root);
        if prepared.is_err() && made {
            let removed = sys::rmdir(work_root.as_fd(), name);
            log::debug!("work directory removed again: {removed:?}");
        }
        prepared
    }

    fn probe(config: &Config, paths: &Upper, upper: &Layer, work_root: &OwnedFd) -> Setup<Writable> {
        let fail = |reason: &dyn std::fmt::Display| SetupError::path("workdir", &paths.work, reason);
        let dir = sys::open_dir(work_root.as_fd(), OsStr::new("work")).map_err(|errno| fail(&errno))?;
        // Its own lock, besides the one on its parent: the parent's descriptor is let go.
        lock(dir.as_fd()).map_err(|errno| match errno {
            Errno::EAGAIN => fail(&"is in use by another mount"),
            Errno::EBADF => fail(&"its directory work cannot be read: permission denied"),
            errno => fail(&errno),
        })?;
        let work = WorkDir::new(dir, paths.work.clone());
        if is_incompatible(&work).map_err(|errno| fail(&errno))? {
            return Err(fail(
                &"was used by a volatile mount: after a crash remove upperdir and workdir; else remove work/incompat/volatile in it",
            ));
        }
        work.clear().map_err(|errno| fail(&format_args!("cannot be cleared: {errno}")))?;
        let marks = Writable::namespace(config, paths, &work)?;
        let keeps_marks = marks.is_some();
        // An opaque directory needs a mark or a name: without marks, deletions are names, too.
        let device_whiteouts = config.whiteouts == Whiteouts::Auto && keeps_marks && can_make_devices(&work);
        let namespace = marks.unwrap_or(Namespace::User);
        check(config.permissions, &work).map_err(|reason| SetupError::path("upperdir", &paths.dir, reason))?;
        if !device_whiteouts {
            if !can_keep_wh_names(&work).map_err(|errno| fail(&errno))? {
                let reason = "its file system keeps neither the overlay's attributes nor files named .wh.";
                return Err(SetupError::path("upperdir", &paths.dir, reason));
            }
            if marks.is_none() {
                log::warn!("upperdir={}: the file system has no extended attributes", paths.dir.display());
            }
            log::info!("{}: deletions are written as .wh. names", upper.path.display());
        }
        let index = if config.features.index && keeps_marks {
            Some(open_index(work_root, &work).map_err(|errno| fail(&errno))?)
        } else {
            None
        };
        Ok(Writable { work, index, namespace, keeps_marks, device_whiteouts })
    }

    /// The namespace in which marks can be written, found out by writing one; `None` if the file system holds none.
    fn namespace(config: &Config, paths: &Upper, work: &WorkDir) -> Setup<Option<Namespace>> {
        let candidates: &[Namespace] = match config.xattrs {
            XattrNamespace::Auto => &[Namespace::Trusted, Namespace::User],
            XattrNamespace::Trusted => &[Namespace::Trusted],
            XattrNamespace::User => &[Namespace::User],
        };
        // On the work directory, as the kernel does it. It may be somebody else's: one of ours then tells, which is made
        // and removed in ten times the time.
        if let Ok(namespace) = first_that_keeps(At::Fd(work.fd()), candidates) {
            let removed = sys::remove_xattr(At::Fd(work.fd()), OsStr::new(&Mark::Opaque.name(namespace)));
            removed.map_err(|errno| SetupError::path("workdir", &paths.work, errno))?;
            return Ok(Some(namespace));
        }
        let probe = work.temporary();
        let made = sys::mkdir(work.fd(), probe.name(), 0o700);
        made.map_err(|errno| SetupError::path("workdir", &paths.work, errno))?;
        match first_that_keeps(probe.at(), candidates) {
            Ok(namespace) => Ok(Some(namespace)),
            // Marks that cannot be kept have other forms (`.wh..wh..opq`), or only tell where a file came from.
            Err(Errno::ENOTSUP) if config.xattrs == XattrNamespace::Auto => Ok(None),
            Err(errno) => Err(SetupError::path(
                "upperdir",
                &paths.dir,
                format!("the overlay's extended attributes cannot be set: {errno}"),
            )),
        }
    }
}

/// The first namespace in which a directory keeps a mark, which it has then; else what the last one answers.
fn first_that_keeps(at: At<'_>, candidates: &[Namespace]) -> crate::errno::Result<Namespace> {
    let mut last = Errno::ENOTSUP;
    for namespace in candidates {
        let mark = Mark::Opaque.name(*namespace);
        match sys::set_xattr(at, OsStr::new(&mark), b"y", 0) {
            Ok(()) if is_listed(at, &mark) => return Ok(*namespace),
            Ok(()) => {
                // Another union below may keep such a mark to itself. It is not to stay there; if it has to, it means nothing.
                sys::remove_xattr(at, OsStr::new(&mark)).unwrap_or_default();
                last = Errno::ENOTSUP;
            }
            Err(errno) => last = errno,
        }
    }
    Err(last)
}

/// Whether an attribute is found where directories' marks are looked for.
fn is_listed(at: At<'_>, name: &str) -> bool {
    sys::list_xattr(at).is_ok_and(|list| list.split(|byte| *byte == 0).any(|one| one == name.as_bytes()))
}

/// Opens `WORKDIR/index`, and makes it if it is not there. Where files have no handles nothing could be named in it.
fn open_index(work_root: &OwnedFd, work: &WorkDir) -> crate::errno::Result<Index> {
    let name = OsStr::new("index");
    sys::file_handle(At::Fd(work.fd()))?;
    match sys::mkdir(work_root.as_fd(), name, 0o700) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    Ok(Index { dir: sys::open_dir(work_root.as_fd(), name)? })
}
