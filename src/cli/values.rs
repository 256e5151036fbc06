//! Values of options: a text, and what it must be to mean something. An error names the option as typed.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::cli::options::{self, RawOption};
use crate::overlay::SetupError;

/// An error about an option as typed.
pub(super) fn refusal(option: &RawOption, reason: &str) -> SetupError {
    SetupError::option(option.typed.clone(), reason)
}

pub(super) fn one_path(option: &str, value: &[u8]) -> Result<PathBuf, SetupError> {
    if value.is_empty() {
        return Err(SetupError::option(option, "empty; a directory is needed"));
    }
    Ok(options::path(value))
}

pub(super) fn name(option: &RawOption, value: &[u8]) -> Result<OsString, SetupError> {
    if value.is_empty() {
        return Err(refusal(option, "needs a value"));
    }
    Ok(OsString::from_vec(options::unescape(value)))
}

pub(super) fn choice<T: Copy>(option: &RawOption, value: &[u8], words: &[(&str, T)]) -> Result<T, SetupError> {
    words.iter().find(|(word, _)| word.as_bytes() == value).map(|(_, meaning)| *meaning).ok_or_else(|| {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        refusal(option, &format!("must be {}", words.join(" or ")))
    })
}

pub(super) fn number<T: FromStr + PartialOrd + std::fmt::Display>(
    option: &RawOption,
    value: &[u8],
    least: T,
    most: T,
) -> Result<T, SetupError> {
    let parsed = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    parsed
        .filter(|number| *number >= least && *number <= most)
        .ok_or_else(|| refusal(option, &format!("must be a number from {least} to {most}")))
}

pub(super) fn seconds(option: &RawOption, value: &[u8]) -> Result<Duration, SetupError> {
    let parsed = std::str::from_utf8(value).ok().and_then(|text| text.parse::<f64>().ok());
    parsed
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| refusal(option, "must be a number of seconds, not negative"))
}
