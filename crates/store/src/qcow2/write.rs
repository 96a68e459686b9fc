//! The bytes of an empty overlay.

use cowslip_model::DiskFormat;

use super::format::{
    BACKING_NAME_MAX, CLUSTER, CLUSTER_BITS, EXTENDED_ENTRY, EXTENSION_BACKING_FORMAT,
    EXTENSION_END, FEATURE_EXTENDED_L2, HEADER_LENGTH, L1_BYTES_MAX, MAGIC, REFCOUNT_ORDER,
    VERSION, field, l1_entries,
};

/// Why an overlay cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OverlayError {
    /// No disk has zero bytes.
    #[error("no disk: give it at least its template's size")]
    Empty,
    /// Disks are made of 512-byte sectors.
    #[error("not a whole number of 512-byte sectors: round it up")]
    Sectors,
    /// The mapping table of such a disk is larger than QEMU opens.
    #[error("larger than a qcow2 file can describe: choose a smaller one")]
    TooLarge,
    /// The name of the layer below does not fit the header.
    #[error(
        "over a layer whose path has more than {BACKING_NAME_MAX} bytes: choose a shorter state directory"
    )]
    Name,
}

/// The whole file of an empty overlay for a disk of `size` bytes over the file `backing` (relative
/// to the overlay's own directory, or absolute). Mostly zeros: the host writes them as holes.
pub(crate) fn empty_overlay(
    size: u64,
    backing: &[u8],
    backing_format: DiskFormat,
) -> Result<Vec<u8>, OverlayError> {
    if size == 0 {
        return Err(OverlayError::Empty);
    }
    if !size.is_multiple_of(512) {
        return Err(OverlayError::Sectors);
    }
    if backing.is_empty() || backing.len() > BACKING_NAME_MAX {
        return Err(OverlayError::Name);
    }
    let entries = l1_entries(size, CLUSTER_BITS, EXTENDED_ENTRY);
    let l1_bytes = entries
        .checked_mul(8)
        .filter(|&b| b <= L1_BYTES_MAX)
        .ok_or(OverlayError::TooLarge)?;
    let (refcount_table, refcount_block, l1) = (CLUSTER, 2 * CLUSTER, 3 * CLUSTER);

    let mut file = Image::new(l1 + l1_bytes);
    file.put_u32(0, MAGIC);
    file.put_u32(field::VERSION, VERSION);
    file.put_u32(field::CLUSTER_BITS, CLUSTER_BITS);
    file.put_u64(field::SIZE, size);
    file.put_u32(
        field::L1_SIZE,
        u32::try_from(entries).map_err(|_| OverlayError::TooLarge)?,
    );
    file.put_u64(field::L1_OFFSET, l1);
    file.put_u64(field::REFCOUNT_OFFSET, refcount_table);
    file.put_u32(field::REFCOUNT_CLUSTERS, 1);
    file.put_u64(field::INCOMPATIBLE, FEATURE_EXTENDED_L2);
    file.put_u32(field::REFCOUNT_ORDER, REFCOUNT_ORDER);
    file.put_u32(field::HEADER_LENGTH, HEADER_LENGTH);

    // Without this extension QEMU would guess the format from the content, and the content of a raw
    // layer is the guest's to choose.
    let format = format_name(backing_format).as_bytes();
    let mut at = HEADER_LENGTH as usize;
    at = file.put_extension(at, EXTENSION_BACKING_FORMAT, format);
    at = file.put_extension(at, EXTENSION_END, b"");
    file.put_u64(field::BACKING_OFFSET, at as u64);
    file.put_u32(
        field::BACKING_SIZE,
        u32::try_from(backing.len()).map_err(|_| OverlayError::Name)?,
    );
    file.put(at, backing);

    file.put_u64(offset(refcount_table), refcount_block);
    // Header, refcount table, refcount block and the L1 table: 259 clusters at most, one block
    // has counts for 65,536.
    for cluster in 0..3 + l1_bytes.div_ceil(CLUSTER) {
        file.put(offset(refcount_block + cluster * 2), &1_u16.to_be_bytes());
    }
    Ok(file.0)
}

/// The format's name in a header.
pub(crate) fn format_name(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw | DiskFormat::Snapshot => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

/// An offset into a file that is held in memory.
fn offset(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

struct Image(Vec<u8>);

impl Image {
    fn new(length: u64) -> Self {
        Self(vec![0; offset(length)])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_be_bytes());
    }

    fn put_u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_be_bytes());
    }

    /// Writes an extension, padded to 8 bytes, and gives the offset after it.
    fn put_extension(&mut self, at: usize, kind: u32, data: &[u8]) -> usize {
        self.put_u32(at, kind);
        self.put_u32(at + 4, u32::try_from(data.len()).unwrap_or(0));
        self.put(at + 8, data);
        at + 8 + data.len().next_multiple_of(8)
    }
}
