//! Reading an overlay's header, defensively.
//!
//! A layer is written by a monitor that runs a hostile guest. Should the guest break out into its
//! monitor, it can write whatever it likes into its own layer, for example a header that names
//! another file as its backing or data file, which an engine with more rights would then open. So
//! nothing is opened before its header was read here and found to say what the ledger says.

use super::format::{
    BACKING_NAME_MAX, CLUSTER_BITS_ALLOWED, EXTENDED_CLUSTER_BITS_MIN, EXTENDED_ENTRY,
    EXTENSION_BACKING_FORMAT, EXTENSION_DATA_FILE, EXTENSION_END, FEATURE_CORRUPT,
    FEATURE_DATA_FILE, FEATURE_DIRTY, FEATURE_EXTENDED_L2, HEADER_LENGTH, L1_BYTES_MAX, MAGIC,
    PLAIN_ENTRY, VERSION, field, l1_entries,
};

/// How much of a file is looked at: the header, its extensions and the backing name of every file
/// that cowslip or QEMU writes are within.
pub const HEAD_LIMIT: usize = 4096;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Size of the disk, in bytes.
    pub size: u64,
    /// A cluster has 2^this bytes.
    pub cluster_bits: u32,
    /// Whether its clusters have subclusters.
    pub extended_l2: bool,
    /// Where its mapping begins, in bytes; it covers the disk and lies in the file.
    pub l1_offset: u64,
    /// Name of the backing file, as written.
    pub backing: Vec<u8>,
    /// Name of the backing file's format.
    pub backing_format: Vec<u8>,
}

/// Why a file is no overlay that may be opened. Worded to follow the file's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Ends before its header does.
    #[error("is cut off: it has {length} bytes, its header needs {needed}")]
    Truncated {
        /// Bytes there are.
        length: u64,
        /// Bytes there should be.
        needed: u64,
    },
    /// Does not begin with the magic number.
    #[error("is not a qcow2 file")]
    Magic,
    /// Not version 3.
    #[error("has qcow2 version {0}, layers have version 3")]
    Version(u32),
    /// A cluster size out of range.
    #[error("has clusters of 2^{0} bytes, which cannot be")]
    ClusterBits(u32),
    /// The file was found corrupt by a monitor, or its reference counts are not to be trusted.
    #[error("is marked as {0}: run \"qemu-img check -r all\" on it")]
    Damaged(&'static str),
    /// Uses what no layer uses.
    #[error("uses {0}, which no layer does")]
    Feature(String),
    /// Has no backing file, or none with a stated format.
    #[error("does not state {0}")]
    Backing(&'static str),
    /// A table lies outside the file or is of an impossible size.
    #[error("has a header that contradicts itself: {0}")]
    Inconsistent(&'static str),
}

/// Reads the header in `head`, the first bytes (up to [`HEAD_LIMIT`]) of a file of `length` bytes.
///
/// # Errors
/// [`HeaderError`] when this is no overlay that may be opened.
pub fn read_header(head: &[u8], length: u64) -> Result<Overlay, HeaderError> {
    let head = Head {
        bytes: &head[..head.len().min(HEAD_LIMIT)],
        length,
    };
    if head.u32(0)? != MAGIC {
        return Err(HeaderError::Magic);
    }
    let version = head.u32(field::VERSION)?;
    if version != VERSION {
        return Err(HeaderError::Version(version));
    }
    let extended_l2 = features(head.u64(field::INCOMPATIBLE)?)?;
    let cluster_bits = head.u32(field::CLUSTER_BITS)?;
    if !CLUSTER_BITS_ALLOWED.contains(&cluster_bits)
        || (extended_l2 && cluster_bits < EXTENDED_CLUSTER_BITS_MIN)
    {
        return Err(HeaderError::ClusterBits(cluster_bits));
    }
    if head.u32(field::CRYPT_METHOD)? != 0 {
        return Err(HeaderError::Feature("encryption".to_owned()));
    }
    if head.u32(field::SNAPSHOTS)? != 0 {
        return Err(HeaderError::Feature("internal snapshots".to_owned()));
    }
    let size = head.u64(field::SIZE)?;
    tables(&head, size, cluster_bits, extended_l2)?;
    let backing_format = backing_format(&head)?;
    let backing = backing_name(&head)?;
    Ok(Overlay {
        size,
        cluster_bits,
        extended_l2,
        l1_offset: head.u64(field::L1_OFFSET)?,
        backing,
        backing_format,
    })
}

/// Whether the file has subclusters; everything else incompatible is refused.
fn features(incompatible: u64) -> Result<bool, HeaderError> {
    if incompatible & FEATURE_CORRUPT != 0 {
        return Err(HeaderError::Damaged("corrupt"));
    }
    if incompatible & FEATURE_DIRTY != 0 {
        return Err(HeaderError::Damaged("not closed"));
    }
    if incompatible & FEATURE_DATA_FILE != 0 {
        return Err(HeaderError::Feature("an external data file".to_owned()));
    }
    let unknown = incompatible & !FEATURE_EXTENDED_L2;
    if unknown != 0 {
        return Err(HeaderError::Feature(format!("the features {unknown:#x}")));
    }
    Ok(incompatible & FEATURE_EXTENDED_L2 != 0)
}

/// The tables lie in the file, on cluster boundaries, and the mapping covers the disk exactly.
fn tables(
    head: &Head<'_>,
    size: u64,
    cluster_bits: u32,
    extended_l2: bool,
) -> Result<(), HeaderError> {
    if size == 0 || !size.is_multiple_of(512) {
        return Err(HeaderError::Inconsistent(
            "its disk is no whole number of sectors",
        ));
    }
    let entry = if extended_l2 {
        EXTENDED_ENTRY
    } else {
        PLAIN_ENTRY
    };
    let entries = u64::from(head.u32(field::L1_SIZE)?);
    if entries < l1_entries(size, cluster_bits, entry) {
        return Err(HeaderError::Inconsistent(
            "its mapping is too small for its disk",
        ));
    }
    if entries * 8 > L1_BYTES_MAX {
        return Err(HeaderError::Inconsistent("its mapping is too large"));
    }
    let cluster = 1_u64 << cluster_bits;
    let refcount_bytes = u64::from(head.u32(field::REFCOUNT_CLUSTERS)?) << cluster_bits;
    let l1 = (head.u64(field::L1_OFFSET)?, entries * 8);
    let refcounts = (head.u64(field::REFCOUNT_OFFSET)?, refcount_bytes);
    for (offset, bytes) in [l1, refcounts] {
        // Cluster 0 is the header's.
        if bytes == 0 || offset < cluster || !offset.is_multiple_of(cluster) {
            return Err(HeaderError::Inconsistent("a table lies where none can"));
        }
        let needed = offset
            .checked_add(bytes)
            .ok_or(HeaderError::Inconsistent("a table lies where none can"))?;
        if needed > head.length {
            return Err(HeaderError::Truncated {
                length: head.length,
                needed,
            });
        }
    }
    if head.u32(field::REFCOUNT_ORDER)? > 6 {
        return Err(HeaderError::Inconsistent(
            "its reference counts are too wide",
        ));
    }
    Ok(())
}

/// The backing file's format, from the chain of extensions.
fn backing_format(head: &Head<'_>) -> Result<Vec<u8>, HeaderError> {
    let header_length = head.u32(field::HEADER_LENGTH)?;
    if header_length < HEADER_LENGTH || !header_length.is_multiple_of(8) {
        return Err(HeaderError::Inconsistent(
            "its header has an impossible length",
        ));
    }
    let mut at = header_length as usize;
    let mut format = None;
    // Every round goes on by 8 bytes at least, within HEAD_LIMIT.
    loop {
        let kind = head.u32(at)?;
        let length = head.u32(at + 4)? as usize;
        match kind {
            EXTENSION_END => break,
            EXTENSION_DATA_FILE => {
                return Err(HeaderError::Feature("an external data file".to_owned()));
            }
            EXTENSION_BACKING_FORMAT if format.is_some() => {
                return Err(HeaderError::Inconsistent(
                    "it states two formats of its backing file",
                ));
            }
            EXTENSION_BACKING_FORMAT => format = Some(name(head.slice(at + 8, length)?)?),
            _ => {}
        }
        at = length
            .checked_next_multiple_of(8)
            .and_then(|padded| padded.checked_add(at + 8))
            .ok_or(HeaderError::Inconsistent(
                "an extension has an impossible length",
            ))?;
    }
    format.ok_or(HeaderError::Backing("its backing file's format"))
}

fn backing_name(head: &Head<'_>) -> Result<Vec<u8>, HeaderError> {
    let offset = head.u64(field::BACKING_OFFSET)?;
    let length = head.u32(field::BACKING_SIZE)? as usize;
    if offset == 0 || length == 0 {
        return Err(HeaderError::Backing("its backing file"));
    }
    if length > BACKING_NAME_MAX {
        return Err(HeaderError::Inconsistent(
            "its backing file's name is too long",
        ));
    }
    let offset = usize::try_from(offset).map_err(|_| {
        HeaderError::Inconsistent("its backing file's name lies outside the header")
    })?;
    name(head.slice(offset, length)?)
}

/// QEMU ends a name at its first NUL, so one with a NUL in it is not what it seems.
fn name(bytes: &[u8]) -> Result<Vec<u8>, HeaderError> {
    if bytes.contains(&0) {
        return Err(HeaderError::Inconsistent("a name in it has a NUL"));
    }
    Ok(bytes.to_vec())
}

struct Head<'a> {
    bytes: &'a [u8],
    length: u64,
}

impl<'a> Head<'a> {
    fn slice(&self, at: usize, length: usize) -> Result<&'a [u8], HeaderError> {
        let end = at.checked_add(length);
        if let Some(found) = end.and_then(|end| self.bytes.get(at..end)) {
            return Ok(found);
        }
        match end {
            Some(end) if end as u64 > self.length => Err(HeaderError::Truncated {
                length: self.length,
                needed: end as u64,
            }),
            _ => Err(HeaderError::Inconsistent(
                "its header is larger than any that is written",
            )),
        }
    }

    fn u32(&self, at: usize) -> Result<u32, HeaderError> {
        let bytes = self.slice(at, 4)?;
        Ok(bytes
            .iter()
            .fold(0, |value, &byte| (value << 8) | u32::from(byte)))
    }

    fn u64(&self, at: usize) -> Result<u64, HeaderError> {
        Ok((u64::from(self.u32(at)?) << 32) | u64::from(self.u32(at + 4)?))
    }
}
