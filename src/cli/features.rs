//! The options that change the on-disk format, and what follows from one for another: the rules of the kernel's
//! `ovl_fs_params_verify`, without those that keep unprivileged mounts from them.

use crate::cli::options::RawOption;
use crate::cli::values::choice;
use crate::overlay::config::{Features, RedirectDir, SetupError, Uuid, Verity};

/// What was asked for by name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    redirect_dir: Option<RedirectDir>,
    metacopy: Option<bool>,
    verity: Verity,
    index: Option<bool>,
    nfs_export: Option<bool>,
    uuid: Uuid,
}

/// The features of a mount, and what the caller should be told about them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// What the union is to be made with.
    pub features: Features,
    /// Its identity.
    pub uuid: Uuid,
    /// What was changed or is ignored, in the kernel's words.
    pub notices: Vec<String>,
}

const REDIRECT_DIR: &[(&str, RedirectDir)] = &[
    ("on", RedirectDir::On),
    ("follow", RedirectDir::Follow),
    ("nofollow", RedirectDir::NoFollow),
    ("off", RedirectDir::Off),
];

const VERITY: &[(&str, Verity)] = &[("on", Verity::On), ("require", Verity::Require), ("off", Verity::Off)];

const UUID: &[(&str, Uuid)] = &[("auto", Uuid::Auto), ("null", Uuid::Null), ("off", Uuid::Off), ("on", Uuid::On)];

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
            "index" => self.index = Some(choice(option, value, SWITCH)?),
            "nfs_export" => self.nfs_export = Some(choice(option, value, SWITCH)?),
            "uuid" => self.uuid = choice(option, value, UUID)?,
            "verity" => self.verity = choice(option, value, VERITY)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What the options mean together.
    ///
    /// # Errors
    /// The first two that cannot be had together, in the kernel's words.
    pub fn resolve(self, upper: bool) -> Result<Resolved, SetupError> {
        let mut notices = Vec::new();
        if !upper && self.index == Some(true) {
            notices.push("option \"index=on\" is useless in a non-upper mount, ignore".to_owned());
        }
        let index = upper && self.index.unwrap_or_default();
        if !upper && self.uuid == Uuid::On {
            notices.push("option \"uuid=on\" requires an upper fs, falling back to uuid=null".to_owned());
        }
        let mut redirect_dir = self.redirect_dir.unwrap_or_default();
        let metacopy = self.metacopy.unwrap_or_default();
        if !upper && matches!(redirect_dir, RedirectDir::Follow | RedirectDir::Off) && metacopy {
            // Nothing is written, so the two are the same.
            redirect_dir = RedirectDir::On;
        }
        if metacopy && redirect_dir != RedirectDir::On {
            if let Some(asked) = self.redirect_dir.filter(|_| redirect_dir != RedirectDir::On) {
                return Err(conflict("metacopy=on", &redirect_word(asked)));
            }
            redirect_dir = RedirectDir::On;
        }
        let nfs_export = self.handles(upper, index, redirect_dir, metacopy, &mut notices)?;
        let index = index || (nfs_export && upper);
        let features = Features { redirect_dir, metacopy, index, nfs_export, verity: self.verity };
        Ok(Resolved { features, uuid: self.uuid, notices })
    }
}

impl Asked {
    /// Whether there are file handles: an upper needs its index for them, and the data of a copy.
    fn handles(
        &self,
        upper: bool,
        index: bool,
        redirect_dir: RedirectDir,
        metacopy: bool,
        notices: &mut Vec<String>,
    ) -> Result<bool, SetupError> {
        if self.nfs_export != Some(true) {
            return Ok(false);
        }
        if !upper && redirect_dir != RedirectDir::NoFollow {
            let reason =
                "NFS export requires \"redirect_dir=nofollow\" on non-upper mount, falling back to nfs_export=off";
            notices.push(reason.to_owned());
            return Ok(false);
        }
        if upper && !index && self.index == Some(false) {
            return Err(conflict("nfs_export=on", "index=off"));
        }
        if metacopy {
            return Err(conflict("nfs_export=on", "metacopy=on"));
        }
        Ok(true)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(upper: bool, options: &str) -> Result<Features, String> {
        let mut asked = Asked::default();
        for option in crate::cli::options::split(options.as_bytes()) {
            let value = option.value.clone().unwrap_or_default();
            assert!(asked.take(&option.key, &value, &option).map_err(|error| error.to_string())?, "{option:?}");
        }
        asked.resolve(upper).map(|resolved| resolved.features).map_err(|error| error.to_string())
    }

    #[test]
    fn options_follow_from_and_exclude_one_another_as_in_the_kernel() {
        let off = Features::default();
        let metacopy = Features { redirect_dir: RedirectDir::On, metacopy: true, ..off };
        assert_eq!(resolve(true, ""), Ok(off));
        assert_eq!(resolve(true, "metacopy=on"), Ok(metacopy));
        assert_eq!(resolve(true, "metacopy=on,redirect_dir=on"), Ok(metacopy));
        assert_eq!(resolve(true, "verity=require"), Ok(Features { verity: Verity::Require, ..off }));
        for mode in ["off", "follow", "nofollow"] {
            let refused = format!("conflicting options: metacopy=on,redirect_dir={mode}");
            assert_eq!(resolve(true, &format!("metacopy=on,redirect_dir={mode}")), Err(refused));
        }
        // Nothing is written: to follow is all there is.
        for mode in ["off", "follow"] {
            assert_eq!(resolve(false, &format!("metacopy=on,redirect_dir={mode}")), Ok(metacopy), "{mode}");
        }
        assert!(resolve(false, "metacopy=on,redirect_dir=nofollow").is_err());
        assert_eq!(resolve(true, "index=on"), Ok(Features { index: true, ..off }));
        assert_eq!(resolve(false, "index=on"), Ok(off));
        let export = Features { index: true, nfs_export: true, ..off };
        assert_eq!(resolve(true, "nfs_export=on"), Ok(export));
        assert_eq!(resolve(true, "nfs_export=on,index=on"), Ok(export));
        assert_eq!(resolve(false, "nfs_export=on"), Ok(off));
        assert!(
            resolve(true, "nfs_export=on,index=off").is_err() && resolve(true, "nfs_export=on,metacopy=on").is_err()
        );
        assert_eq!(resolve(true, "verity=yes"), Err("verity=yes: must be on or require or off".to_owned()));
    }
}
