//! The `-o` strings, as text: where one option ends and the next begins, and which characters mean themselves.
//!
//! Follows the kernel's overlay (fs/overlayfs/params.c) for backslashes and colons, and mount(8) for double quotes. Knows
//! no option by name.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// One option, in the words of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawOption {
    /// What stands before the `=`, or everything.
    pub key: String,
    /// What stands after it, without quotes around it but with every backslash.
    pub value: Option<Vec<u8>>,
    /// The whole of it as it was typed.
    pub typed: String,
}

/// Splits an option string at its commas. A backslash takes the meaning from the character after it; a value that
/// stands in double quotes keeps its commas. Empty options are left out.
#[must_use]
pub fn split(string: &[u8]) -> Vec<RawOption> {
    let mut found = Vec::new();
    let mut rest = string;
    while !rest.is_empty() {
        let end = end_of_option(rest);
        let (option, after) = rest.split_at(end);
        if !option.is_empty() {
            found.push(parse(option));
        }
        rest = after.get(1..).unwrap_or_default();
    }
    found
}

/// The length of the option that a string begins with.
fn end_of_option(string: &[u8]) -> usize {
    let value = string.iter().position(|byte| matches!(byte, b'=' | b',')).map_or(string.len(), |at| at + 1);
    if string.get(value - 1) == Some(&b'=')
        && let Some(quoted) = string.get(value..).and_then(quoted_length)
    {
        return value + quoted;
    }
    unescaped(string, b',').unwrap_or(string.len())
}

/// The length of a value in double quotes, quotes included; `None` if it has none around the whole of it.
fn quoted_length(value: &[u8]) -> Option<usize> {
    let inside = value.strip_prefix(b"\"")?;
    let close = unescaped(inside, b'"')?;
    matches!(inside.get(close + 1), None | Some(b',')).then_some(close + 2)
}

/// Where a byte stands for the first time without a backslash before it.
fn unescaped(string: &[u8], wanted: u8) -> Option<usize> {
    let mut bytes = string.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        if *byte == b'\\' {
            bytes.next();
        } else if *byte == wanted {
            return Some(at);
        }
    }
    None
}

fn parse(option: &[u8]) -> RawOption {
    let typed = String::from_utf8_lossy(option).into_owned();
    let Some(equals) = option.iter().position(|byte| *byte == b'=') else {
        return RawOption { key: typed.clone(), value: None, typed };
    };
    let (key, value) = (option.get(..equals).unwrap_or_default(), option.get(equals + 1..).unwrap_or_default());
    let value = match quoted_length(value) {
        Some(length) if length == value.len() => value.get(1..length - 1).unwrap_or_default(),
        _ => value,
    };
    RawOption { key: String::from_utf8_lossy(key).into_owned(), value: Some(value.to_vec()), typed }
}

/// A value without its backslashes: each makes the character after it mean itself.
#[must_use]
pub fn unescape(value: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        let byte = if *byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte };
        plain.push(*byte);
    }
    plain
}

/// A value that is one path.
#[must_use]
pub fn path(value: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(value)))
}

/// The paths of a `lowerdir=` value, the topmost layer first: layers that are merged, and layers that hold data only.
///
/// # Errors
/// What is wrong with the colons, in words: the kernel refuses the same.
pub fn lowers(value: &[u8]) -> Result<(Vec<PathBuf>, Vec<PathBuf>), &'static str> {
    let mut pieces = Vec::new();
    let mut rest = value;
    while let Some(colon) = unescaped(rest, b':') {
        pieces.push(rest.get(..colon).unwrap_or_default());
        rest = rest.get(colon + 1..).unwrap_or_default();
    }
    pieces.push(rest);
    let empty = |at: usize| pieces.get(at).is_some_and(|piece| piece.is_empty());
    if pieces.len() == 1 && empty(0) {
        return Err("empty; at least one directory is needed");
    }
    if empty(0) {
        return Err("begins with a colon");
    }
    if empty(pieces.len() - 1) {
        return Err("ends with a colon");
    }
    if (1..pieces.len()).any(|at| empty(at) && empty(at + 1)) {
        return Err("three colons in a row");
    }
    let Some(first) = (0..pieces.len()).find(|at| empty(*at)) else {
        return Ok((pieces.into_iter().map(path).collect(), Vec::new()));
    };
    // Two colons before each of them.
    let data = pieces.split_off(first);
    if data.iter().enumerate().any(|(at, piece)| piece.is_empty() != (at % 2 == 0)) {
        return Err("a merged layer follows a data-only layer");
    }
    let data = data.into_iter().filter(|piece| !piece.is_empty());
    Ok((pieces.into_iter().map(path).collect(), data.map(path).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(string: &str) -> Vec<(String, Option<String>)> {
        let text = |value: Vec<u8>| String::from_utf8(value).unwrap();
        split(string.as_bytes()).into_iter().map(|option| (option.key, option.value.map(text))).collect()
    }

    #[test]
    fn option_strings_split_as_the_kernel_and_mount_split_them() {
        type Pairs<'a> = &'a [(&'a str, Option<&'a str>)];
        let table: &[(&str, Pairs<'_>)] = &[
            ("", &[]),
            (",", &[]),
            (",,a,,", &[("a", None)]),
            ("a", &[("a", None)]),
            ("a,b", &[("a", None), ("b", None)]),
            ("a=", &[("a", Some(""))]),
            ("a=b=c", &[("a", Some("b=c"))]),
            ("workdir=W,,volatile", &[("workdir", Some("W")), ("volatile", None)]),
            ("lowerdir=a:b,upperdir=u", &[("lowerdir", Some("a:b")), ("upperdir", Some("u"))]),
            (r"upperdir=a\,b,x", &[("upperdir", Some(r"a\,b")), ("x", None)]),
            (r"upperdir=a\\,x", &[("upperdir", Some(r"a\\")), ("x", None)]),
            (r"upperdir=a\", &[("upperdir", Some(r"a\"))]),
            (r#"context="u:r:t:s0:c1,c2",x"#, &[("context", Some("u:r:t:s0:c1,c2")), ("x", None)]),
            (r#"x,context="u:r:t:s0:c1,c2""#, &[("x", None), ("context", Some("u:r:t:s0:c1,c2"))]),
            (r#"context="",x"#, &[("context", Some("")), ("x", None)]),
            (r#"a="b\",c",x"#, &[("a", Some(r#"b\",c"#)), ("x", None)]),
            // Quotes that do not stand around the whole value are characters like others.
            (r#"a=b"c,d"e"#, &[("a", Some(r#"b"c"#)), (r#"d"e"#, None)]),
            (r#"a="b"c,d"#, &[("a", Some(r#""b"c"#)), ("d", None)]),
            (r#"a="b,c"#, &[("a", Some(r#""b"#)), ("c", None)]),
            ("a,b=\"c,d\"", &[("a", None), ("b", Some("c,d"))]),
        ];
        for (string, expected) in table {
            let expected: Vec<_> =
                expected.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect();
            assert_eq!(pairs(string), expected, "{string}");
        }
    }

    #[test]
    fn lowerdir_is_split_and_unescaped_as_the_kernel_does() {
        let table: &[(&str, Result<&[&str], &str>)] = &[
            ("a", Ok(&["a"])),
            ("a:b:c", Ok(&["a", "b", "c"])),
            (r"a\:b:c", Ok(&["a:b", "c"])),
            (r"a\\:b", Ok(&[r"a\", "b"])),
            (r"a\,b", Ok(&["a,b"])),
            (r"a\b", Ok(&["ab"])),
            ("l/A:l/B/../diff1", Ok(&["l/A", "l/B/../diff1"])),
            ("", Err("empty")),
            (":", Err("begins with")),
            (":a", Err("begins with")),
            ("a:", Err("ends with")),
            ("a::", Err("ends with")),
            ("a::b:c", Err("a merged layer follows")),
            ("a::b:c::d", Err("a merged layer follows")),
            ("a:::b", Err("three colons")),
            (r"a\::b", Ok(&["a:", "b"])),
        ];
        for (value, expected) in table {
            match (lowers(value.as_bytes()), expected) {
                (Ok((paths, data)), Ok(expected)) => {
                    assert_eq!((paths, data), (expected.map_paths(), Vec::new()), "{value}");
                }
                (Err(reason), Err(expected)) => assert!(reason.contains(expected), "{value}: {reason}"),
                (found, expected) => panic!("{value}: {found:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn two_colons_begin_a_layer_of_data() {
        let merged = |value: &str| lowers(value.as_bytes()).unwrap();
        let paths = |paths: &[&str]| paths.map_paths();
        assert_eq!(merged("a::b"), (paths(&["a"]), paths(&["b"])));
        assert_eq!(merged("a:b::c::d"), (paths(&["a", "b"]), paths(&["c", "d"])));
        assert_eq!(merged(r"a::b\:c"), (paths(&["a"]), paths(&["b:c"])));
    }

    trait MapPaths {
        fn map_paths(&self) -> Vec<PathBuf>;
    }

    impl MapPaths for &[&str] {
        fn map_paths(&self) -> Vec<PathBuf> {
            self.iter().map(PathBuf::from).collect()
        }
    }

    #[test]
    fn names_that_are_not_utf8_survive() {
        let options = split(b"upperdir=\xff\\,\xfe,x");
        let value = options[0].value.clone().unwrap();
        assert_eq!(path(&value).into_os_string().into_vec(), b"\xff,\xfe");
    }

    #[test]
    fn what_was_typed_is_kept_for_messages() {
        assert_eq!(split(br#"a,context="b,c""#)[1].typed, r#"context="b,c""#);
    }
}
