//! POSIX ACLs: the kernel's attribute form and ext4's own form differ.

use super::{get16, get32, put16, put32};

/// `ACL_USER`, the tag of a named user's entry.
const USER: u16 = 0x02;
/// `ACL_GROUP`, the tag of a named group's entry.
const GROUP: u16 = 0x08;
const XATTR_VERSION: u32 = 2;
const DISK_VERSION: u32 = 1;

/// Converts an ACL from the kernel's attribute form to ext4's; `None` when it is malformed.
pub(super) fn to_disk(value: &[u8]) -> Option<Vec<u8>> {
    if value.len() < 4 || get32(value, 0) != XATTR_VERSION || !(value.len() - 4).is_multiple_of(8) {
        return None;
    }
    let mut disk = vec![0; 4];
    put32(&mut disk, 0, DISK_VERSION);
    for entry in value[4..].chunks_exact(8) {
        let tag = get16(entry, 0);
        let mut short = [0; 8];
        put16(&mut short, 0, tag);
        put16(&mut short, 2, get16(entry, 2));
        put32(&mut short, 4, get32(entry, 4));
        let named = matches!(tag, USER | GROUP);
        disk.extend_from_slice(&short[..if named { 8 } else { 4 }]);
    }
    Some(disk)
}

/// Converts an ACL from ext4's form to the kernel's attribute form; `None` when it is malformed.
pub(super) fn from_disk(disk: &[u8]) -> Option<Vec<u8>> {
    if disk.len() < 4 || get32(disk, 0) != DISK_VERSION {
        return None;
    }
    let mut value = vec![0; 4];
    put32(&mut value, 0, XATTR_VERSION);
    let mut rest = &disk[4..];
    while !rest.is_empty() {
        let named = rest.len() >= 2 && matches!(get16(rest, 0), USER | GROUP);
        let (entry, next) = rest.split_at_checked(if named { 8 } else { 4 })?;
        let mut long = [0xff; 8];
        long[..entry.len()].copy_from_slice(entry);
        value.extend_from_slice(&long);
        rest = next;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_entries_keep_an_id() {
        let kernel = [
            2u8, 0, 0, 0, // version
            1, 0, 7, 0, 255, 255, 255, 255, // owner
            2, 0, 6, 0, 232, 3, 0, 0, // user 1000
        ];
        let disk = [1u8, 0, 0, 0, 1, 0, 7, 0, 2, 0, 6, 0, 232, 3, 0, 0];
        assert_eq!(to_disk(&kernel).unwrap(), disk);
        assert_eq!(from_disk(&disk).unwrap(), kernel);
        for bad in [&disk[..3], &disk[..6], &disk[..15], &kernel] {
            assert_eq!(from_disk(bad), None, "{bad:?}");
        }
        assert_eq!(to_disk(&kernel[..7]), None);
        assert_eq!(to_disk(b""), None);
    }
}
