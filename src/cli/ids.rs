//! The options about users and groups, as fuse-overlayfs has them: `uidmapping=`, `gidmapping=`, `squash_to_*`.

use crate::overlay::config::{IdMapping, IdRange};

/// Reads one of the options with a value. `None` if it is another option; an error says what is wrong with the value.
pub fn assign(ids: &mut IdMapping, key: &str, value: &[u8]) -> Option<Result<(), &'static str>> {
    Some(match key {
        "uidmapping" => ranges(value).map(|ranges| ids.uids = ranges),
        "gidmapping" => ranges(value).map(|ranges| ids.gids = ranges),
        "squash_to_uid" => squashed(value).map(|id| ids.squash_uid = Some(id)),
        "squash_to_gid" => squashed(value).map(|id| ids.squash_gid = Some(id)),
        _ => return None,
    })
}

/// `squash_to_root`; an id that is named wins over it, wherever it stands.
pub fn squash_to_root(ids: &mut IdMapping) {
    ids.squash_uid = ids.squash_uid.or(Some(0));
    ids.squash_gid = ids.squash_gid.or(Some(0));
}

fn squashed(value: &[u8]) -> Result<u32, &'static str> {
    number(value).filter(|id| *id != u32::MAX).ok_or("must be a number from 0 to 4294967294")
}

/// Triples `DISK:SHOWN:COUNT`, joined by colons. Container stores put one more colon before the first.
fn ranges(value: &[u8]) -> Result<Vec<IdRange>, &'static str> {
    let value = value.strip_prefix(b":").unwrap_or(value);
    let numbers: Vec<u32> = value
        .split(|byte| *byte == b':')
        .map(|piece| number(piece).ok_or("must be numbers with colons between them"))
        .collect::<Result<_, _>>()?;
    let (triples, rest) = numbers.as_chunks::<3>();
    if !rest.is_empty() {
        return Err("must be triples DISK:SHOWN:COUNT");
    }
    let ranges: Vec<IdRange> = triples.iter().map(|&[disk, shown, count]| IdRange { disk, shown, count }).collect();
    for (at, range) in ranges.iter().enumerate() {
        if range.count == 0 {
            return Err("a triple with the count 0 maps nothing");
        }
        if range.disk.checked_add(range.count).is_none() || range.shown.checked_add(range.count).is_none() {
            return Err("a triple goes beyond the largest id, 4294967294");
        }
        let meets = |a: u32, b: u32, count: u32| a < b + count && b < a + range.count;
        let others = ranges.get(..at).unwrap_or_default();
        if others.iter().any(|other| meets(range.disk, other.disk, other.count)) {
            return Err("two triples have an id on disk in common");
        }
        if others.iter().any(|other| meets(range.shown, other.shown, other.count)) {
            return Err("two triples show an id in common");
        }
    }
    Ok(ranges)
}

fn number(text: &[u8]) -> Option<u32> {
    // Digits alone: no sign, no blank.
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Result<Vec<(u32, u32, u32)>, &'static str> {
        let ranges = ranges(value.as_bytes())?;
        Ok(ranges.iter().map(|range| (range.disk, range.shown, range.count)).collect())
    }

    #[test]
    fn triples_are_read_as_container_stores_write_them() {
        assert_eq!(read("0:1000:1"), Ok(vec![(0, 1000, 1)]));
        assert_eq!(read(":0:1000:1:1:100000:65536"), Ok(vec![(0, 1000, 1), (1, 100_000, 65536)]));
        assert_eq!(read("0:0:4294967295"), Ok(vec![(0, 0, u32::MAX)]));
    }

    #[test]
    fn bad_maps_are_refused_in_words() {
        let table = [
            ("", "numbers"),
            (":", "numbers"),
            ("::0:0:1", "numbers"),
            ("0:0:1:", "numbers"),
            ("a:0:1", "numbers"),
            ("-1:0:1", "numbers"),
            ("+1:0:1", "numbers"),
            (" 1:0:1", "numbers"),
            ("0:0:4294967296", "numbers"),
            ("0:0", "triples"),
            ("0:0:1:5", "triples"),
            ("0:0:0", "count 0"),
            ("1:0:4294967295", "largest"),
            ("0:1:4294967295", "largest"),
            ("0:0:10:9:100:1", "on disk in common"),
            ("0:0:10:100:9:1", "show an id in common"),
        ];
        for (value, reason) in table {
            let error = read(value).unwrap_err();
            assert!(error.contains(reason), "{value}: {error}");
        }
    }

    #[test]
    fn an_id_that_is_named_wins_over_root() {
        for keys in [["root", "uid"], ["uid", "root"]] {
            let mut ids = IdMapping::default();
            for key in keys {
                match key {
                    "root" => squash_to_root(&mut ids),
                    _ => assign(&mut ids, "squash_to_uid", b"7").unwrap().unwrap(),
                }
            }
            assert_eq!((ids.squash_uid, ids.squash_gid), (Some(7), Some(0)));
        }
        assert!(assign(&mut IdMapping::default(), "squash_to_gid", b"4294967295").unwrap().is_err());
        assert!(assign(&mut IdMapping::default(), "squash_to_uid", b"").unwrap().is_err());
        assert!(assign(&mut IdMapping::default(), "xino", b"on").is_none());
    }
}
