//! The flags as typed: what clap makes of the command line, before anything is given a meaning.

use std::ffi::OsString;

use clap::{Parser, ValueHint};

/// What the command line holds, in its own words.
#[derive(Debug, Parser)]
#[command(name = "plyfs", disable_help_flag = true, disable_version_flag = true)]
pub struct LowArgs {
    /// Mount options, separated by commas; may be repeated.
    #[arg(short = 'o', value_name = "OPTIONS", allow_hyphen_values = true, value_hint = ValueHint::Other)]
    pub options: Vec<OsString>,
    /// Stay in front.
    #[arg(short = 'f')]
    pub foreground: bool,
    /// Log every request; stays in front too.
    #[arg(short = 'd', long = "debug")]
    pub debug: bool,
    /// Show the version.
    #[arg(short = 'V', long = "version")]
    pub version: bool,
    /// Show the help.
    #[arg(short = 'h', long = "help")]
    pub help: bool,
    /// Print the options of the union that is mounted there.
    #[arg(long = "show")]
    pub show: bool,
    /// What mount(8) hands to the program of a type (`-t`), and its `-n`, `-s`, `-v`: no meaning here.
    #[arg(short = 't', value_name = "TYPE", hide = true)]
    pub mount_type: Option<OsString>,
    #[arg(short = 'n', hide = true)]
    no_mtab: bool,
    #[arg(short = 's', hide = true)]
    sloppy: bool,
    #[arg(short = 'v', hide = true)]
    verbose: bool,
    /// `[SOURCE] MOUNTPOINT`.
    #[arg(value_hint = ValueHint::DirPath)]
    pub positionals: Vec<OsString>,
}

impl LowArgs {
    /// Reads a command line, the program's name first.
    ///
    /// # Errors
    /// One line that says what is wrong with it.
    pub fn parse_line(line: impl IntoIterator<Item = OsString>) -> Result<LowArgs, String> {
        LowArgs::try_parse_from(line).map_err(|error| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            format!("{} (see plyfs --help)", first.strip_prefix("error: ").unwrap_or(first))
        })
    }
}

/// What `--help` prints.
pub const HELP: &str = "\
plyfs shows a stack of directories as one, as Linux's overlay file system does.

Usage: plyfs [-f] [-d] -o OPTION[,OPTION...] MOUNTPOINT
       plyfs -o lowerdir=TOP:...:BOTTOM,upperdir=UPPER,workdir=WORK MERGED
       fusermount3 -u MERGED            (or umount) ends it

  -o OPTIONS      mount options, comma separated; may be repeated
  -f              stay in the foreground
  -d, --debug     log every request (stays in the foreground)
  --show MERGED   print the options of a union, as the kernel shows its own
  -V, --version   show the version;  -h, --help  show this help

Layers:           lowerdir=A:B:C   read-only directories, the topmost first
                  upperdir=DIR     takes every change; without it read-only
                  workdir=DIR      empty directory on upperdir's file system
Behaviour:        userxattr  volatile  fsync=auto|strict|volatile
                  xino=auto|on|off  timeout=SECONDS  threads=N
Mount:            allow_other ro [no]suid [no]dev [no]exec [no]atime sync
                  fsname=NAME subtype=NAME max_read=BYTES
A colon in a name is written \\:  a comma \\,   All options: man plyfs
";

/// What `--version` prints, under the name that the program was called by.
#[must_use]
pub fn version(called: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    match called {
        // Clients show or match the first words of this; the rest says what really answers.
        "fuse-overlayfs" => format!(
            "fuse-overlayfs: version 1.14-compatible (plyfs {version})\n\
             FUSE library version fuser 0.18\n\
             using FUSE kernel interface version 7.40\n"
        ),
        _ => format!("plyfs {version}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(words: &[&str]) -> Result<LowArgs, String> {
        LowArgs::parse_line(std::iter::once("plyfs").chain(words.iter().copied()).map(OsString::from))
    }

    #[test]
    fn the_target_may_stand_before_or_after_the_options() {
        for words in [
            &["-o", "a", "src", "m", "-o", "b"][..],
            &["src", "-oa", "-ob", "m"],
            &["-f", "-o", "a", "-o", "b", "--", "src", "m"],
            &["-d", "src", "m", "-n", "-t", "fuse.plyfs", "-o", "a", "-o", "b"],
        ] {
            let args = parse(words).unwrap();
            assert_eq!(args.options, ["a", "b"], "{words:?}");
            assert_eq!(args.positionals, ["src", "m"], "{words:?}");
        }
    }

    #[test]
    fn a_wrong_flag_is_one_line() {
        let error = parse(&["--colour", "m"]).unwrap_err();
        assert_eq!(error.lines().count(), 1);
        assert!(error.contains("--colour"), "{error}");
        assert!(parse(&["-o"]).unwrap_err().contains("-o"));
    }

    #[test]
    fn the_help_fits_a_screen_and_names_every_flag() {
        assert!(HELP.lines().count() <= 24);
        assert!(HELP.lines().all(|line| line.len() <= 80));
        for flag in LowArgs::command().get_arguments().filter(|flag| !flag.is_hide_set()) {
            if let Some(short) = flag.get_short() {
                assert!(HELP.contains(&format!("-{short}")), "-{short}");
            }
            if let Some(long) = flag.get_long() {
                assert!(HELP.contains(&format!("--{long}")), "--{long}");
            }
        }
    }
}
