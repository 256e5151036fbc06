//! Who may use whom: the directions that `src/lib.rs` promises, read from the sources themselves.
//!
//! A module may use what stands above it and never what stands below: errno, sys, overlay, fuse, cli. Each foreign crate
//! has one owner. The reading is by words, with comments and strings taken out; it needs no compiler.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

/// The longest file that one reading can hold.
const LINES: usize = 500;

/// A module, and those of ours it may name.
const MAY_USE: &[(&str, &[&str])] = &[
    ("errno", &[]),
    ("sys", &["errno", "sys"]),
    ("overlay", &["errno", "sys", "overlay"]),
    ("fuse", &["errno", "sys", "overlay", "fuse"]),
    ("cli", &["errno", "sys", "overlay", "fuse", "cli"]),
];

/// A word, and the only places under `src` that may say it.
const OWNERS: &[(&str, &[&str])] =
    &[("fuser", &["fuse"]), ("clap", &["cli", "main"]), ("env_logger", &["cli", "main"]), ("unsafe", &["sys"])];

/// A source file: its path under `src`, the module it belongs to, and its text without comments and strings.
struct Source {
    path: PathBuf,
    module: String,
    lines: usize,
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut left = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(&root).unwrap().to_owned();
                let first = path.components().next().unwrap().as_os_str().to_str().unwrap();
                let module = first.strip_suffix(".rs").unwrap_or(first).to_owned();
                found.push(Source { path, module, lines: text.lines().count(), code: code_of(&text) });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 3, "no sources found");
    found
}

/// The text without comments, and with every string emptied.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        } else if rest.starts_with("/*") {
            rest = rest.split_once("*/").map_or("", |(_, after)| after);
        } else if rest.starts_with("r\"") || rest.starts_with("r#") {
            let fence = rest[1..].chars().take_while(|&c| c == '#').count();
            let body = &rest[1 + fence..];
            let end = format!("\"{}", "#".repeat(fence));
            rest = match body.strip_prefix('"') {
                Some(string) => string.split_once(end.as_str()).map_or("", |(_, after)| after),
                None => body, // a raw identifier
            };
        } else if first == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            rest = end.map_or("", |end| &rest[end + 2..]);
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            rest = rest[1..].trim_start_matches(['\\', '"']).trim_start_matches('\'');
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    code
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The modules that the code names after `crate::`, alone or as the heads of a `{...}` group.
fn own_modules(code: &str) -> Vec<String> {
    let dense = code.split_whitespace().collect::<Vec<_>>().join(" ").replace(":: ", "::").replace(" ::", "::");
    let mut named = Vec::new();
    for (at, found) in dense.match_indices("crate::") {
        if dense[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let after = &dense[at + found.len()..];
        let Some(group) = after.trim_start().strip_prefix('{') else {
            named.extend(words(after).next().map(str::to_owned));
            continue;
        };
        // The heads of a group are what stands at depth 0, up to its closing brace.
        let mut depth = 0;
        let mut heads = String::new();
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                _ if depth == 0 => heads.push(c),
                _ => {}
            }
        }
        named.extend(heads.split(',').filter_map(|head| words(head).next()).map(str::to_owned));
    }
    named
}

#[test]
fn modules_use_only_what_stands_above_them() {
    let mut wrong = Vec::new();
    for source in sources() {
        let Some((_, may)) = MAY_USE.iter().find(|(module, _)| *module == source.module) else { continue };
        for named in own_modules(&source.code) {
            let ours = MAY_USE.iter().any(|(module, _)| *module == named);
            if ours && !may.contains(&named.as_str()) {
                wrong.push(format!("src/{} uses {named}", source.path.display()));
            }
        }
        if source.code.contains("super::super::super") {
            wrong.push(format!("src/{} climbs out of its module with super::", source.path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_foreign_crate_and_unsafe_has_one_home() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (word, homes) in OWNERS {
            if !homes.contains(&source.module.as_str()) && words(&source.code).any(|found| found == *word) {
                wrong.push(format!("src/{} says {word}, which belongs to {}", source.path.display(), homes.join(", ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_stay_readable() {
    let long: Vec<String> = sources()
        .iter()
        .filter(|source| source.lines > LINES)
        .map(|source| format!("src/{}: {} lines", source.path.display(), source.lines))
        .collect();
    assert!(long.is_empty(), "over {LINES} lines:\n{}", long.join("\n"));
}

#[test]
fn the_reading_itself_is_right() {
    let code =
        code_of("use a; // fuser\n/* clap */ let s = \"unsafe \\\" x\"; let q = '\"'; let r = r#\"fuser \" \"#; end");
    assert_eq!(words(&code).collect::<Vec<_>>(), ["use", "a", "let", "s", "let", "q", "let", "r", "end"]);
    let named =
        own_modules("use crate::{\n    errno::{Errno, Result},\n    sys,\n}; crate::fuse::x(); mycrate::cli::y()");
    assert_eq!(named, ["errno", "sys", "fuse"]);
    assert_eq!(own_modules("fn f(x: crate::overlay::Node) {}"), ["overlay"]);
}
