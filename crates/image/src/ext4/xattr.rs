//! Extended attributes: in the inode where they fit, else in one block.

use super::checksum::crc32c;
use super::{acl, low16, low32, put16, put32};
use crate::node::Xattr;
use crate::spool::BLOCK;

pub(super) const MAGIC: u32 = 0xea02_0000;
pub(super) const ENTRY: usize = 16;
/// Room in the inode after its fixed fields, in bytes.
pub(super) const IN_INODE: usize = 96;
pub(super) const BLOCK_HEADER: usize = 32;

/// Name prefixes and their numbers. The ACLs are complete names, so they come first.
pub(super) const PREFIXES: [(&[u8], u8); 6] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
    (b"system.", 7),
];

/// Why an attribute cannot be carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum XattrError {
    #[error("ext4 has no such kind of attribute")]
    UnknownPrefix,
    #[error("its name is empty or too long")]
    BadName,
    #[error("its value is not an access control list")]
    BadAcl,
    #[error("the attributes of one inode take more than 4 KiB")]
    TooLarge,
}

/// An attribute in ext4's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Encoded {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

/// The attributes of one inode, checked and in the order that ext4 keeps in blocks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Attributes(Vec<Encoded>);

impl Attributes {
    /// Takes what fits; each attribute that cannot be carried is given to `skip`.
    pub(super) fn collect(xattrs: &[Xattr], mut skip: impl FnMut(&Xattr, XattrError)) -> Self {
        let mut attributes = Self::default();
        for xattr in xattrs {
            match translate(xattr) {
                Ok(encoded) => {
                    attributes.0.push(encoded);
                    if attributes.space() > BLOCK - BLOCK_HEADER {
                        attributes.0.pop();
                        skip(xattr, XattrError::TooLarge);
                    }
                }
                Err(error) => skip(xattr, error),
            }
        }
        attributes.0.sort_by(|a, b| {
            let key = |e: &Encoded| (e.index, e.name.len());
            key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
        });
        attributes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether they take a block of their own.
    pub(super) fn needs_block(&self) -> bool {
        self.space() > IN_INODE - 4
    }

    /// Entries, values and the four zero bytes between them.
    fn space(&self) -> usize {
        let entries = self.0.iter().map(|e| {
            (ENTRY + e.name.len()).next_multiple_of(4) + e.value.len().next_multiple_of(4)
        });
        entries.sum::<usize>() + 4
    }

    /// The inode's part. Value offsets count from the first entry.
    pub(super) fn encode_in_inode(&self, room: &mut [u8]) {
        put32(room, 0, MAGIC);
        self.place(&mut room[4..], 0);
    }

    /// A block of its own. Value offsets count from the start of the block.
    pub(super) fn encode_block(&self, number: u64, seed: u32) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        let hashes = self.place(&mut block, BLOCK_HEADER);
        put32(&mut block, 0, MAGIC);
        put32(&mut block, 4, 1); // reference count
        put32(&mut block, 8, 1); // blocks used
        let hash = hashes
            .iter()
            .fold(0u32, |hash, entry| hash.rotate_left(16) ^ entry);
        let shared = !hashes.contains(&0);
        put32(&mut block, 12, if shared { hash } else { 0 });
        let checksum = crc32c(crc32c(seed, &number.to_le_bytes()), &block);
        put32(&mut block, 16, checksum);
        block
    }

    /// Entries grow from `first` upwards, values from the end downwards.
    fn place(&self, room: &mut [u8], first: usize) -> Vec<u32> {
        let mut entry = first;
        let mut value = room.len();
        let mut hashes = Vec::new();
        for attribute in &self.0 {
            let mut padded = attribute.value.clone();
            padded.resize(padded.len().next_multiple_of(4), 0);
            value -= padded.len();
            room[value..value + padded.len()].copy_from_slice(&padded);
            let hash = hash(&attribute.name, &padded);
            let slot = &mut room[entry..];
            slot[0] = attribute.name.len().to_le_bytes()[0];
            slot[1] = attribute.index;
            let offset = if padded.is_empty() { 0 } else { value };
            put16(slot, 2, low16(offset as u64));
            put32(slot, 8, low32(attribute.value.len() as u64));
            put32(slot, 12, hash);
            slot[ENTRY..ENTRY + attribute.name.len()].copy_from_slice(&attribute.name);
            entry += (ENTRY + attribute.name.len()).next_multiple_of(4);
            hashes.push(hash);
        }
        hashes
    }
}

fn translate(xattr: &Xattr) -> Result<Encoded, XattrError> {
    let found = PREFIXES
        .iter()
        .find(|(prefix, _)| xattr.name.starts_with(prefix));
    let Some((prefix, index)) = found else {
        return Err(XattrError::UnknownPrefix);
    };
    let name = &xattr.name[prefix.len()..];
    let is_acl = matches!(index, 2 | 3);
    if name.is_empty() != is_acl || name.len() > 255 || name.contains(&0) {
        return Err(XattrError::BadName);
    }
    let value = match is_acl {
        true => acl::to_disk(&xattr.value).ok_or(XattrError::BadAcl)?,
        false => xattr.value.to_vec(),
    };
    Ok(Encoded {
        index: *index,
        name: name.to_vec(),
        value,
    })
}

/// `ext4_xattr_hash_entry`: bytes of the name, then words of the value.
fn hash(name: &[u8], padded_value: &[u8]) -> u32 {
    let hash = name
        .iter()
        .fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
    padded_value.chunks_exact(4).fold(hash, |hash, word| {
        hash.rotate_left(16) ^ super::get32(word, 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattr(name: &str, value: &[u8]) -> Xattr {
        Xattr {
            name: name.as_bytes().into(),
            value: value.into(),
        }
    }

    #[test]
    fn what_ext4_cannot_hold_is_named() {
        let mut skipped = Vec::new();
        let all = [
            xattr("user.ok", b"1"),
            xattr("btrfs.compression", b"zstd"),
            xattr("user.", b""),
            xattr("system.posix_acl_access", b"junk"),
            xattr("user.large", &[1; 5000]),
        ];
        let attributes = Attributes::collect(&all, |x, why| skipped.push((x.name.to_vec(), why)));
        assert_eq!(attributes.0.len(), 1);
        let reasons: Vec<_> = skipped.into_iter().map(|(_, why)| why).collect();
        let expected = [
            XattrError::UnknownPrefix,
            XattrError::BadName,
            XattrError::BadAcl,
            XattrError::TooLarge,
        ];
        assert_eq!(reasons, expected);
    }

    #[test]
    fn small_ones_stay_in_the_inode() {
        let capability = xattr("security.capability", &[1; 20]);
        let one = Attributes::collect(std::slice::from_ref(&capability), |_, _| unreachable!());
        assert!(!one.needs_block());
        let two = [capability, xattr("user.note", &[2; 60])];
        let two = Attributes::collect(&two, |_, _| unreachable!());
        assert!(two.needs_block());
    }
}
