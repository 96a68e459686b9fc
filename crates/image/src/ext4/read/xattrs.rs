//! Extended attributes: what is in the inode, then what is in its block.

use super::{Inode, ReadError, Reader};
use crate::ext4::checksum::crc32c;
use crate::ext4::xattr::{BLOCK_HEADER, ENTRY, MAGIC, PREFIXES};
use crate::ext4::{acl, get16, get32};
use crate::job::Limits;
use crate::node::Xattr;

/// Attributes of one inode while they are read.
struct Found<'a> {
    ino: u32,
    limits: &'a Limits,
    bytes: usize,
    xattrs: Vec<Xattr>,
    leave_out: &'a mut dyn FnMut(&[u8], &'static str),
}

impl Reader {
    /// The attributes of an inode as the kernel shows them, sorted by name. Those that cannot be told
    /// are given to `leave_out`, with the reason.
    pub(crate) fn xattrs(
        &self,
        inode: &Inode,
        limits: &Limits,
        leave_out: &mut dyn FnMut(&[u8], &'static str),
    ) -> Result<Vec<Xattr>, ReadError> {
        let mut found = Found {
            ino: inode.ino,
            limits,
            bytes: 0,
            xattrs: Vec::new(),
            leave_out,
        };
        if inode.rest.len() >= 4 && get32(&inode.rest, 0) == MAGIC {
            // Values are counted from the first entry.
            let room = &inode.rest[4..];
            found.add(room, room)?;
        }
        if inode.attribute_block != 0 {
            let block = self.attribute_block(inode)?;
            // Values are counted from the start of the block.
            found.add(&block[BLOCK_HEADER..], &block)?;
        }
        let mut xattrs = found.xattrs;
        xattrs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if xattrs.windows(2).any(|pair| pair[0].name == pair[1].name) {
            return ReadError::damaged(inode.ino, "it has an extended attribute twice");
        }
        Ok(xattrs)
    }

    fn attribute_block(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        let number = inode.attribute_block;
        let mut block = self.block(inode.ino, number)?;
        if get32(&block, 0) != MAGIC || get32(&block, 8) != 1 {
            return ReadError::damaged(inode.ino, "its block of extended attributes is none");
        }
        if let Some(seed) = self.layout.seed {
            let stored = get32(&block, 16);
            block[16..20].fill(0);
            if crc32c(crc32c(seed, &number.to_le_bytes()), &block) != stored {
                let why = "its block of extended attributes has a wrong checksum";
                return ReadError::damaged(inode.ino, why);
            }
        }
        Ok(block)
    }
}

impl Found<'_> {
    fn damaged<T>(&self, why: &'static str) -> Result<T, ReadError> {
        ReadError::damaged(self.ino, why)
    }

    /// Adds the attributes whose entries are in `entries`, up to four zeros, with values in `values`.
    fn add(&mut self, mut entries: &[u8], values: &[u8]) -> Result<(), ReadError> {
        while entries.len() >= 4 && get32(entries, 0) != 0 {
            let length = ENTRY + usize::from(entries[0]);
            let Some(entry) = entries.get(..length) else {
                return self.damaged("an extended attribute of it leaves its place");
            };
            entries = entries
                .get(length.next_multiple_of(4)..)
                .unwrap_or_default();
            let start = usize::from(get16(entry, 2));
            let size = usize::try_from(get32(entry, 8)).unwrap_or(usize::MAX);
            let name = full_name(entry[1], &entry[ENTRY..]);
            if name.as_ref().is_some_and(|name| name.contains(&0)) {
                return self.damaged("an extended attribute of it has NUL in its name");
            }
            if get32(entry, 4) != 0 {
                let name = name.unwrap_or_default();
                (self.leave_out)(&name, "its value is an inode of its own (ea_inode)");
                continue;
            }
            let end = start.checked_add(size);
            let value = match (size, end) {
                (0, _) => Some(&[][..]),
                (_, Some(end)) => values.get(start..end),
                (_, None) => None,
            };
            let Some(value) = value else {
                return self.damaged("the value of an extended attribute leaves its place");
            };
            let Some(name) = name else {
                (self.leave_out)(&entry[ENTRY..], "it is of a kind that is not known here");
                continue;
            };
            self.keep(name, entry[1], value)?;
        }
        Ok(())
    }

    fn keep(&mut self, name: Vec<u8>, index: u8, value: &[u8]) -> Result<(), ReadError> {
        let value = match index {
            2 | 3 => match acl::from_disk(value) {
                Some(value) => value,
                None => return self.damaged("its access control list is malformed"),
            },
            _ => value.to_vec(),
        };
        self.bytes += name.len() + value.len();
        let limit = |limit: usize, what| {
            let limit = limit as u64;
            Err(ReadError::Limit { limit, what })
        };
        if self.xattrs.len() == self.limits.max_xattrs {
            let what = "extended attributes of one entry";
            return limit(self.limits.max_xattrs, what);
        }
        if self.bytes > self.limits.max_xattr_bytes {
            let what = "bytes of extended attributes of one entry";
            return limit(self.limits.max_xattr_bytes, what);
        }
        self.xattrs.push(Xattr {
            name: name.into(),
            value: value.into(),
        });
        Ok(())
    }
}

/// The name with its prefix; `None` for a prefix that there is not.
fn full_name(index: u8, name: &[u8]) -> Option<Vec<u8>> {
    let (prefix, _) = PREFIXES.iter().find(|(_, number)| *number == index)?;
    Some([prefix, name].concat())
}
