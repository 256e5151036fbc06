//! POSIX ACLs in the form of their xattrs, as far as a new object inherits them.
//!
//! Answers to `acl(5)` ("object creation and default ACLs") and `linux/posix_acl_xattr.h`.

/// The xattr of the access ACL.
pub const ACL_ACCESS: &str = "system.posix_acl_access";
/// The xattr of the default ACL of a directory.
pub const ACL_DEFAULT: &str = "system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// A parsed ACL: tag, permissions and id of each entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl(Vec<(u16, u16, u32)>);

impl Acl {
    /// An ACL from the value of its xattr; `None` when the bytes are not one.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Acl> {
        let (version, entries) = value.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != VERSION || entries.len() % 8 != 0 {
            return None;
        }
        let entry = |&[t0, t1, p0, p1, i0, i1, i2, i3]: &[u8; 8]| {
            (u16::from_le_bytes([t0, t1]), u16::from_le_bytes([p0, p1]), u32::from_le_bytes([i0, i1, i2, i3]))
        };
        let (entries, _) = entries.as_chunks::<8>();
        Some(Acl(entries.iter().map(entry).collect()))
    }

    /// The value of its xattr.
    #[must_use]
    pub fn to_xattr(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in &self.0 {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&perm.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    /// The same ACL with other ids in the entries of named users and groups.
    #[must_use]
    pub fn with_ids(&self, uid: impl Fn(u32) -> u32, gid: impl Fn(u32) -> u32) -> Acl {
        let changed = |&(tag, perm, id): &(u16, u16, u32)| match tag {
            USER => (tag, perm, uid(id)),
            GROUP => (tag, perm, gid(id)),
            _ => (tag, perm, id),
        };
        Acl(self.0.iter().map(changed).collect())
    }

    /// The access ACL of an object made with `mode` below a directory whose default ACL this is, and the mode that
    /// results. `None` in place of the ACL when the mode bits say it all.
    #[must_use]
    pub fn inherit(&self, mode: u32) -> (Option<Acl>, u32) {
        let mut acl = self.clone();
        let has_mask = acl.0.iter().any(|(tag, _, _)| *tag == MASK);
        let mut result = mode & !0o777;
        for (tag, perm, _) in &mut acl.0 {
            let (shift, governs) = match *tag {
                USER_OBJ => (6, true),
                OTHER => (0, true),
                MASK => (3, true),
                GROUP_OBJ => (3, !has_mask),
                _ => (0, false),
            };
            if governs {
                *perm &= u16::try_from((mode >> shift) & 7).unwrap_or(0);
                result |= u32::from(*perm) << shift;
            }
        }
        let minimal = acl.0.iter().all(|(tag, _, _)| [USER_OBJ, GROUP_OBJ, OTHER].contains(tag));
        ((!minimal).then_some(acl), result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minimal_default_acl_becomes_mode_bits() {
        let acl = Acl(vec![(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 0, 0)]);
        assert_eq!(acl.inherit(0o666), (None, 0o640));
    }

    #[test]
    fn the_mask_takes_the_group_bits() {
        let acl = Acl(vec![(USER_OBJ, 7, 0), (USER, 7, 1000), (GROUP_OBJ, 7, 0), (MASK, 7, 0), (OTHER, 5, 0)]);
        let (inherited, mode) = acl.inherit(0o2640);
        let expected = Acl(vec![(USER_OBJ, 6, 0), (USER, 7, 1000), (GROUP_OBJ, 7, 0), (MASK, 4, 0), (OTHER, 0, 0)]);
        assert_eq!(inherited, Some(expected.clone()));
        assert_eq!(mode, 0o2640);
        assert_eq!(Acl::parse(&expected.to_xattr()), Some(expected));
    }

    #[test]
    fn garbage_is_no_acl() {
        assert_eq!(Acl::parse(b""), None);
        assert_eq!(Acl::parse(&[1, 0, 0, 0]), None);
        assert_eq!(Acl::parse(&[2, 0, 0, 0, 1]), None);
    }
}
