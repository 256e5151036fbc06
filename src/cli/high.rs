//! The flags as meant: options by name, their values checked, the defaults of the caller filled in.
//!
//! Looks at no file and no directory. Which options there are: all of the kernel's overlay, all of fuse-overlayfs, the
//! generic ones of mount(8), and a few of our own. What is not implemented is accepted where the
//! mount then behaves as it would anyway, refused where accepting would promise something that is not kept, and warned
//! about where nobody knows what it is.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::features::Asked;
use crate::cli::logging::LogTo;
use crate::cli::low::LowArgs;
use crate::cli::options::{self, RawOption};
use crate::cli::values::{choice, name, number, one_path, refusal, seconds};
use crate::cli::{ids, known};
use crate::fuse::adapter::Xattrs;
use crate::fuse::mount::{MountOptions, Target};
use crate::fuse::passthrough::Wish;
use crate::fuse::server::MAX_DATA;
use crate::overlay::config::{Config, Fsync, Permissions, SetupError, Upper, Whiteouts, XattrNamespace};
use crate::sys::process::MountFlags;

/// Who calls, as far as it decides defaults.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The effective user id.
    pub uid: u32,
    /// The last component of the name that the program was called by.
    pub name: OsString,
    /// `FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT` is set: deletions become `.wh.` files.
    pub whiteout_names: bool,
}

/// What is to be done.
#[derive(Debug)]
pub struct HighArgs {
    /// The union.
    pub config: Config,
    /// Where and how it is mounted.
    pub mount: MountOptions,
    /// How it is served.
    pub serving: Serving,
    /// Stay in front.
    pub foreground: bool,
    /// Log every request.
    pub debug: bool,
    /// Where to log to.
    pub log: LogTo,
    /// What the caller should be told of how options were understood.
    pub notices: Vec<String>,
    /// Options that nobody knows, as typed.
    pub unknown: Vec<String>,
}

/// How the union is served: what the kernel is asked for, and how soon answers are given and forgotten.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Serving {
    /// Threads that read requests; our choice if absent.
    pub threads: Option<usize>,
    /// Each thread has its own descriptor of the device.
    pub clone_fd: bool,
    /// How long the kernel may keep names and attributes; our choice if absent.
    pub timeout: Option<Duration>,
    /// Whether the kernel may collect small writes; our choice if absent.
    pub writeback: Option<bool>,
    /// Which extended attributes there are for callers.
    pub xattrs: Xattrs,
    /// The largest write that the kernel sends, in bytes.
    pub max_write: u32,
    /// Whether the kernel reads and writes real files itself.
    pub passthrough: Wish,
    /// Whether requests come through `io_uring`, where that is allowed.
    pub rings: bool,
}

impl Default for Serving {
    fn default() -> Serving {
        Serving {
            threads: None,
            clone_fd: false,
            timeout: None,
            writeback: None,
            xattrs: Xattrs::All,
            max_write: MAX_DATA,
            passthrough: Wish::Auto,
            rings: false,
        }
    }
}

/// Gives the flags their meaning.
///
/// # Errors
/// The first option that cannot be honoured, by its name and, if it names one, its path.
pub fn interpret(low: &LowArgs, caller: &Caller) -> Result<HighArgs, SetupError> {
    let mut reading = Reading::new(caller);
    for string in &low.options {
        for option in options::split(string.as_bytes()) {
            reading.option(&option)?;
        }
    }
    let Some(target) = low.positionals.last() else {
        return Err(SetupError::option("mountpoint", "none given (see plyfs --help)"));
    };
    reading.finish(low, target)
}

/// Options read so far.
struct Reading {
    lowers: Vec<PathBuf>,
    data_lowers: Vec<PathBuf>,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
    config: Config,
    features: Asked,
    mount: MountOptions,
    serving: Serving,
    debug: bool,
    log: LogTo,
    unknown: Vec<String>,
}

impl Reading {
    fn new(caller: &Caller) -> Reading {
        let root = caller.uid == 0;
        // As fuse-overlayfs has it: root shares the mount and honours suid programs; devices only if asked for.
        let flags = MountFlags::NOATIME | MountFlags::NODEV;
        let name = if caller.name == "fuse-overlayfs" { caller.name.clone() } else { "plyfs".into() };
        Reading {
            lowers: Vec::new(),
            data_lowers: Vec::new(),
            upper: None,
            work: None,
            config: Config {
                whiteouts: if caller.whiteout_names { Whiteouts::Names } else { Whiteouts::Auto },
                ..Config::default()
            },
            features: Asked::default(),
            mount: MountOptions {
                target: Target::Directory(PathBuf::new()),
                flags: if root { flags } else { flags | MountFlags::NOSUID },
                allow_other: root,
                auto_unmount: false,
                max_read: None,
                fsname: name.clone(),
                subtype: name,
            },
            serving: Serving::default(),
            debug: false,
            log: LogTo::default(),
            unknown: Vec::new(),
        }
    }

    fn option(&mut self, option: &RawOption) -> Result<(), SetupError> {
        let key = option.key.as_str();
        if known::is_without_effect(key) {
            return Ok(());
        }
        match &option.value {
            None => self.word(key, option),
            Some(value) => self.assignment(key, value, option),
        }
    }

    /// An option without a value.
    fn word(&mut self, key: &str, option: &RawOption) -> Result<(), SetupError> {
        if let Some((flag, set)) = known::flag(key) {
            self.mount.flags.set(flag, set);
            return Ok(());
        }
        match key {
            "allow_other" => self.mount.allow_other = true,
            "auto_unmount" => self.mount.auto_unmount = true,
            "userxattr" => self.config.xattrs = XattrNamespace::User,
            "volatile" => self.config.fsync = Fsync::Volatile,
            "clone_fd" => self.serving.clone_fd = true,
            "io_uring" => self.serving.rings = true,
            "noacl" => self.serving.xattrs = self.serving.xattrs.max(Xattrs::NoAcls),
            "acl" => self.serving.xattrs = Xattrs::All,
            "noxattrs" => self.serving.xattrs = Xattrs::Nothing,
            "ino32_t" => self.config.narrow_inodes = true,
            "debug" => self.debug = true,
            "allow_root" => return Err(refusal(option, "not supported: only allow_other is enforced by the kernel")),
            "nooverride_creds" => {
                return Err(refusal(option, "not supported: layers are accessed as the user who mounts"));
            }
            "squash_to_root" => ids::squash_to_root(&mut self.config.ids),
            "remount" | "bind" | "rbind" | "move" => return Err(refusal(option, "not supported: unmount and mount")),
            "lowerdir" | "lowerdir+" | "datadir+" | "upperdir" | "workdir" | "redirect_dir" | "index" | "uuid"
            | "nfs_export" | "xino" | "metacopy" | "verity" | "fsync" | "timeout" | "threads" | "writeback"
            | "passthrough" | "fsname" | "subtype" | "max_read" | "uidmapping" | "gidmapping" | "squash_to_uid"
            | "squash_to_gid" | "xattr_permissions" | "log" => return Err(refusal(option, "needs a value")),
            _ => self.unknown.push(option.typed.clone()),
        }
        Ok(())
    }

    /// An option with a value.
    fn assignment(&mut self, key: &str, value: &[u8], option: &RawOption) -> Result<(), SetupError> {
        match key {
            // Each of these replaces what was said before, as in the kernel.
            "lowerdir" => {
                (self.lowers, self.data_lowers) = options::lowers(value)
                    .map_err(|reason| SetupError::path("lowerdir", Path::new(OsStr::from_bytes(value)), reason))?;
            }
            "lowerdir+" if !self.data_lowers.is_empty() => {
                return Err(refusal(option, "a merged layer follows a data-only layer"));
            }
            "lowerdir+" => self.lowers.push(one_path("lowerdir+", value)?),
            "upperdir" => self.upper = Some(one_path("upperdir", value)?),
            "workdir" => self.work = Some(one_path("workdir", value)?),
            "log" => self.log = LogTo::named(&one_path("log", value)?),
            "datadir+" => self.data_lowers.push(one_path("datadir+", value)?),
            "xino" => {
                // One device shows all file systems, so their numbers are always made unique.
                choice(option, value, &[("auto", ()), ("on", ()), ("off", ())])?;
            }
            "fsync" => {
                // 0 and 1 are fuse-overlayfs's words.
                let words = [
                    ("auto", Fsync::Auto),
                    ("strict", Fsync::Strict),
                    ("volatile", Fsync::Volatile),
                    ("1", Fsync::Auto),
                    ("0", Fsync::Volatile),
                ];
                self.config.fsync = choice(option, value, &words)?;
            }
            "xattr_permissions" => {
                let words = [("0", Permissions::OnDisk), ("1", Permissions::Privileged), ("2", Permissions::User)];
                self.config.permissions = choice(option, value, &words)?;
            }
            // 1 and 0 are fuse-overlayfs's words.
            "noxattrs" => {
                self.serving.xattrs = choice(option, value, &[("1", Xattrs::Nothing), ("0", Xattrs::All)])?;
            }
            "max_write" => self.serving.max_write = number(option, value, 0, u32::MAX)?.clamp(4096, MAX_DATA),
            "writeback" => self.serving.writeback = Some(choice(option, value, &[("1", true), ("0", false)])?),
            "passthrough" => {
                let words = [("on", Wish::On), ("off", Wish::Off), ("auto", Wish::Auto)];
                self.serving.passthrough = choice(option, value, &words)?;
            }
            "io_uring" => self.serving.rings = choice(option, value, &[("1", true), ("0", false)])?,
            "timeout" => self.serving.timeout = Some(seconds(option, value)?),
            "threads" => self.serving.threads = Some(number(option, value, 1, 1024)?),
            "max_read" => self.mount.max_read = Some(number(option, value, 4096, u32::MAX)?),
            "fsname" => self.mount.fsname = name(option, value)?,
            "subtype" => self.mount.subtype = name(option, value)?,
            _ if self.features.take(key, value, option)? => {}
            _ => match ids::assign(&mut self.config.ids, key, value) {
                Some(result) => result.map_err(|reason| refusal(option, reason))?,
                None => self.unknown.push(option.typed.clone()),
            },
        }
        Ok(())
    }

    fn finish(mut self, low: &LowArgs, target: &OsStr) -> Result<HighArgs, SetupError> {
        if self.lowers.is_empty() {
            return Err(SetupError::option("lowerdir", "missing; at least one directory is needed"));
        }
        let count = self.lowers.len() + self.data_lowers.len();
        if count > Config::MAX_LOWERS {
            let reason = format!("{count} directories; at most {} are possible", Config::MAX_LOWERS);
            return Err(SetupError::option("lowerdir", reason));
        }
        let resolved = self.features.resolve(self.upper.is_some())?;
        self.config.features = resolved.features;
        self.config.uuid = resolved.uuid;
        self.config.lowers = self.lowers;
        self.config.data_lowers = self.data_lowers;
        self.config.upper = match (self.upper, self.work) {
            (Some(dir), Some(work)) => Some(Upper { dir, work }),
            (Some(dir), None) => return Err(SetupError::path("upperdir", &dir, "needs a workdir= as well")),
            // The kernel ignores a work directory without an upper one, too.
            (None, _) => None,
        };
        if self.config.upper.is_none() {
            // So that opening for writing fails at once; the server would only hear of the first write.
            self.mount.flags |= MountFlags::RDONLY;
        }
        self.mount.target = match descriptor(target) {
            Some(number) => Target::Descriptor(number),
            None => Target::Directory(PathBuf::from(target)),
        };
        if self.config.permissions != Permissions::OnDisk {
            // An ACL would say otherwise than the attribute.
            self.serving.xattrs = self.serving.xattrs.max(Xattrs::NoAcls);
        }
        let debug = self.debug || low.debug;
        Ok(HighArgs {
            config: self.config,
            mount: self.mount,
            serving: self.serving,
            foreground: low.foreground || debug,
            debug,
            log: self.log,
            notices: resolved.notices,
            unknown: self.unknown,
        })
    }
}

/// The N of `/dev/fd/N`.
fn descriptor(target: &OsStr) -> Option<i32> {
    target.to_str()?.strip_prefix("/dev/fd/")?.parse().ok().filter(|number| *number >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(uid: u32) -> Caller {
        Caller { uid, name: "plyfs".into(), whiteout_names: false }
    }

    fn read(uid: u32, options: &str) -> Result<HighArgs, String> {
        let line = ["plyfs", "-o", options, "m"].map(OsString::from);
        interpret(&LowArgs::parse_line(line).unwrap(), &caller(uid)).map_err(|error| error.to_string())
    }

    fn union(more: &str) -> HighArgs {
        read(0, &format!("lowerdir=a,upperdir=u,workdir=w,{more}")).unwrap()
    }

    #[test]
    fn layers_arrive_in_order() {
        let args = read(0, r"lowerdir=a:b\:c:d\,e,upperdir=u\:v,workdir=w").unwrap();
        assert_eq!(args.config.lowers, ["a", "b:c", "d,e"].map(PathBuf::from));
        let upper = args.config.upper.unwrap();
        assert_eq!((upper.dir, upper.work), ("u:v".into(), "w".into()));
        assert_eq!(args.mount.target, Target::Directory("m".into()));
        assert!(!args.mount.flags.contains(MountFlags::RDONLY));
        assert_eq!(read(0, "lowerdir+=a:b,lowerdir+=c").unwrap().config.lowers, ["a:b", "c"].map(PathBuf::from));
        assert_eq!(read(0, "lowerdir=a,lowerdir=b").unwrap().config.lowers, [PathBuf::from("b")]);
    }

    #[test]
    fn without_an_upper_the_mount_is_read_only() {
        assert!(read(0, "lowerdir=a,rw").unwrap().mount.flags.contains(MountFlags::RDONLY));
        let args = read(0, "lowerdir=a,workdir=w,volatile").unwrap();
        assert!(args.config.upper.is_none() && args.mount.flags.contains(MountFlags::RDONLY));
    }

    #[test]
    fn defaults_depend_on_the_caller() {
        let (root, user) = (read(0, "lowerdir=a").unwrap().mount, read(1000, "lowerdir=a").unwrap().mount);
        let always = MountFlags::RDONLY | MountFlags::NOATIME | MountFlags::NODEV;
        assert_eq!((root.flags, root.allow_other), (always, true));
        assert_eq!((user.flags, user.allow_other), (always | MountFlags::NOSUID, false));
        assert_eq!((root.fsname, root.subtype), ("plyfs".into(), "plyfs".into()));
        let line = ["fuse-overlayfs", "-o", "lowerdir=a", "m"].map(OsString::from);
        let called = Caller { name: "fuse-overlayfs".into(), ..caller(0) };
        let high = interpret(&LowArgs::parse_line(line).unwrap(), &called).unwrap();
        assert_eq!(high.mount.subtype, "fuse-overlayfs");
    }

    #[test]
    fn the_last_word_of_a_pair_wins() {
        assert!(!union("nosuid,suid").mount.flags.contains(MountFlags::NOSUID));
        assert!(union("suid,nosuid").mount.flags.contains(MountFlags::NOSUID));
        assert!(!union("dev").mount.flags.contains(MountFlags::NODEV));
        assert!(!union("atime").mount.flags.contains(MountFlags::NOATIME));
        assert!(union("ro").mount.flags.contains(MountFlags::RDONLY));
        let all = union("noexec,sync,dirsync,nodiratime,relatime").mount.flags;
        let flags = MountFlags::NOEXEC | MountFlags::SYNCHRONOUS | MountFlags::DIRSYNC;
        assert!(all.contains(flags | MountFlags::NODIRATIME | MountFlags::RELATIME));
    }

    #[test]
    fn values_take_effect() {
        assert_eq!(union("userxattr").config.xattrs, XattrNamespace::User);
        assert_eq!(union("volatile").config.fsync, Fsync::Volatile);
        assert_eq!(union("fsync=volatile").config.fsync, Fsync::Volatile);
        assert_eq!(union("fsync=0").config.fsync, Fsync::Volatile);
        assert_eq!(union("fsync=strict").config.fsync, Fsync::Strict);
        assert_eq!(union("threads=3").serving.threads, Some(3));
        assert_eq!(union("timeout=1000000000").serving.timeout, Some(Duration::from_secs(1_000_000_000)));
        assert_eq!(union("timeout=0.5").serving.timeout, Some(Duration::from_millis(500)));
        assert_eq!(union("writeback=0").serving.writeback, Some(false));
        let wishes = [union("passthrough=on"), union("passthrough=off"), union("passthrough=auto"), union("ro")];
        assert_eq!(wishes.map(|args| args.serving.passthrough), [Wish::On, Wish::Off, Wish::Auto, Wish::Auto]);
        assert_eq!(union("max_read=65536").mount.max_read, Some(65536));
        assert_eq!(union(r"fsname=a\,b").mount.fsname, "a,b");
        assert!(union("debug").foreground);
        assert_eq!(union("log=syslog").log, LogTo::Syslog);
        assert!(union("auto_unmount").mount.auto_unmount);
        assert_eq!([union("ro"), union("noacl")].map(|args| args.serving.xattrs), [Xattrs::All, Xattrs::NoAcls]);
        assert_eq!(union("noxattrs=1").serving.xattrs, Xattrs::Nothing);
        assert_eq!(union("xattr_permissions=2").serving.xattrs, Xattrs::NoAcls);
        assert_eq!(
            [union("max_write=1"), union("max_write=99999999")].map(|args| args.serving.max_write),
            [4096, MAX_DATA]
        );
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let table = [
            ("redirect_dir=maybe", "redirect_dir=maybe: must be on or follow or nofollow or off"),
            ("nfs_export=maybe", "nfs_export=maybe: must be on or off"),
            ("uidmapping=:0:1000", "uidmapping=:0:1000: must be triples DISK:SHOWN:COUNT"),
            ("squash_to_uid=x", "squash_to_uid=x: must be a number from 0 to 4294967294"),
            ("xattr_permissions=3", "xattr_permissions=3: must be 0 or 1 or 2"),
            ("datadir+=d,lowerdir+=e", "lowerdir+=e: a merged layer follows a data-only layer"),
            ("allow_root", "allow_root: not supported: only allow_other is enforced by the kernel"),
            ("remount", "remount: not supported: unmount and mount"),
            ("xino=maybe", "xino=maybe: must be auto or on or off"),
            ("threads=0", "threads=0: must be a number from 1 to 1024"),
            ("threads", "threads: needs a value"),
            ("passthrough=maybe", "passthrough=maybe: must be on or off or auto"),
            ("passthrough", "passthrough: needs a value"),
            ("timeout=-1", "timeout=-1: must be a number of seconds, not negative"),
            ("timeout=nan", "timeout=nan: must be a number of seconds, not negative"),
            ("fsname=", "fsname=: needs a value"),
            ("upperdir=", "upperdir: empty; a directory is needed"),
            ("lowerdir=", "lowerdir=: empty; at least one directory is needed"),
            ("lowerdir=:a", "lowerdir=:a: begins with a colon"),
            ("lowerdir=a:", "lowerdir=a:: ends with a colon"),
        ];
        for (option, expected) in table {
            let error = read(0, &format!("lowerdir=a,upperdir=u,workdir=w,{option}")).unwrap_err();
            assert_eq!(error, expected);
        }
        assert_eq!(read(0, "upperdir=u,workdir=w").unwrap_err(), "lowerdir: missing; at least one directory is needed");
        assert_eq!(read(0, "lowerdir=a,upperdir=u").unwrap_err(), "upperdir=u: needs a workdir= as well");
    }

    #[test]
    fn five_hundred_lowers_and_no_more() {
        let many = |count: usize| format!("lowerdir={}", vec!["l"; count].join(":"));
        assert_eq!(read(0, &many(500)).unwrap().config.lowers.len(), 500);
        assert_eq!(read(0, &many(501)).unwrap_err(), "lowerdir: 501 directories; at most 500 are possible");
    }

    #[test]
    fn what_clients_pass_along_is_no_noise() {
        let silent = r#"private,dev,suid,noacl,xino=auto,index=off,metacopy=off,redirect_dir=off,nfs_export=off,uuid=on,
            context="u:r:t:s0:c1,c2",default_permissions,max_write=131072,x-systemd.automount,xattr_permissions=0"#;
        assert_eq!(union(&silent.replace("\n            ", "")).unknown, Vec::<String>::new());
        assert_eq!(union("frobnicate,colour=red").unknown, ["frobnicate", "colour=red"]);
    }

    #[test]
    fn the_last_positional_is_the_target() {
        let table = [
            (&["overlay", "t"][..], Target::Directory("t".into())),
            (&["/dev/fd/7"], Target::Descriptor(7)),
            (&["/dev/fd/x"], Target::Directory("/dev/fd/x".into())),
        ];
        for (positionals, expected) in table {
            let words = ["plyfs", "-o", "lowerdir=a"].iter().chain(positionals).map(OsString::from);
            let high = interpret(&LowArgs::parse_line(words).unwrap(), &caller(0)).unwrap();
            assert_eq!(high.mount.target, expected);
        }
        let words = ["plyfs", "-o", "lowerdir=a"].map(OsString::from);
        let error = interpret(&LowArgs::parse_line(words).unwrap(), &caller(0)).unwrap_err();
        assert_eq!(error.to_string(), "mountpoint: none given (see plyfs --help)");
    }
}
