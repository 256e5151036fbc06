//! The options that change the on-disk format, and what follows from one for another: the rules of the kernel's
//! `ovl_fs_params_verify`, without those that keep unprivileged mounts from them.

use crate::cli::options::RawOption;
use crate::cli::values::choice;
use crate::overlay::config::{Features, RedirectDir, SetupError};

/// What was asked for by name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    redirect_dir: Option<RedirectDir>,
    metacopy: Option<bool>,
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

const SWITCH: &[(&str, bool)] = &[("on", true), ("off", false)];

impl Asked {
    /// Takes an option if it is one of these.
    ///
    /// # Errors
    /// When its value is none of those that it can have.
    pub fn take(&mut self, key: &str, value: &[u8], option: &RawOption) -> Result<bool, SetupError> {
        match key {
            "redirect_dir" => self.redirect_dir = Some(choice(option, value, REDIRECT_DIR)?),
            "metacopy" => self.metacopy = Some(choice(option, value, SWITCH)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What the options mean together.
    ///
    /// # Errors
    /// The first two that cannot be had together, in the kernel's words.
    pub fn resolve(self, upper: bool) -> Result<Resolved, SetupError> {
        let notices = Vec::new();
        let mut redirect_dir = self.redirect_dir.unwrap_or_default();
        let metacopy = self.metacopy.unwrap_or_default();
        if !upper && redirect_dir == RedirectDir::Follow {
            // Nothing is written, so the two are the same.
            redirect_dir = RedirectDir::On;
        }
        if metacopy && redirect_dir != RedirectDir::On {
            if let Some(asked) = self.redirect_dir {
                return Err(conflict("metacopy=on", &redirect_word(asked)));
            }
            redirect_dir = RedirectDir::On;
        }
        Ok(Resolved { features: Features { redirect_dir, metacopy }, notices })
    }
}

fn redirect_word(mode: RedirectDir) -> String {
    let word = REDIRECT_DIR.iter().find(|(_, meaning)| *meaning == mode).map_or("off", |(word, _)| word);
    format!("redirect_dir={word}")
}

/// Two options that exclude each other.
fn conflict(one: &str, other: &str) -> SetupError {
    SetupError::option("conflicting options", format!("{one},{other}"))
}
