//! The options that change the on-disk format, and what follows from one for another: the rules of the kernel's
//! `ovl_fs_params_verify`, without those that keep unprivileged mounts from them.

use crate::cli::options::RawOption;
use crate::overlay::config::{Features, RedirectDir, SetupError};

/// What was asked for by name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    redirect_dir: Option<RedirectDir>,
}

/// The features of a mount, and what the caller should be told about them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// What the union is to be made with.
    pub features: Features,
    /// What was changed or is ignored, in the kernel's words.
    pub notices: Vec<String>,
}

const REDIRECT_DIR: &[(&str, RedirectDir)] = &[
    ("on", RedirectDir::On),
    ("follow", RedirectDir::Follow),
    ("nofollow", RedirectDir::NoFollow),
    ("off", RedirectDir::Off),
];

impl Asked {
    /// Takes an option if it is one of these.
    ///
    /// # Errors
    /// When its value is none of those that it can have.
    pub fn take(&mut self, key: &str, value: &[u8], option: &RawOption) -> Result<bool, SetupError> {
        match key {
            "redirect_dir" => self.redirect_dir = Some(super::values::choice(option, value, REDIRECT_DIR)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What the options mean together.
    ///
    /// # Errors
    /// The first two that cannot be had together, in the kernel's words.
    pub fn resolve(self) -> Result<Resolved, SetupError> {
        let redirect_dir = self.redirect_dir.unwrap_or_default();
        Ok(Resolved { features: Features { redirect_dir }, notices: Vec::new() })
    }
}
