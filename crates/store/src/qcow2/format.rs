//! The qcow2 format, version 3, as far as cowslip writes and checks it. Source: QEMU's
//! `docs/interop/qcow2.txt`. All numbers in the file are big-endian.
//!
//! ```text
//!  cluster 0            1                2                3 …
//!  ┌──────────────────┬────────────────┬────────────────┬──────────────────┐
//!  │ header           │ refcount table │ refcount block │ L1 table, all 0: │
//!  │ backing format   │ one entry      │ a 1 for each   │ every read goes  │
//!  │ backing name     │                │ of these       │ to the backing   │
//!  └──────────────────┴────────────────┴────────────────┴──────────────────┘
//! ```

/// `QFI\xfb`.
pub(crate) const MAGIC: u32 = 0x5146_49fb;
/// The only version that has subclusters.
pub(crate) const VERSION: u32 = 3;
/// Length of the version 3 header without optional fields, in bytes.
pub(crate) const HEADER_LENGTH: u32 = 104;

/// 128 KiB clusters. With extended L2 entries each has 32 subclusters of 4 KiB, the block size of
/// the guest's file system: its first write to a block copies nothing from the layer below.
/// `docs/qcow2.md` has the measurements.
pub(crate) const CLUSTER_BITS: u32 = 17;
/// Bytes of a cluster.
pub(crate) const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Bytes of an extended L2 entry: a cluster's offset and the bitmap of its subclusters.
pub(crate) const EXTENDED_ENTRY: u64 = 16;
/// Bytes of an L2 entry without subclusters.
pub(crate) const PLAIN_ENTRY: u64 = 8;
/// 2^4 = 16 bits a reference count.
pub(crate) const REFCOUNT_ORDER: u32 = 4;

/// Cluster sizes that QEMU opens.
pub(crate) const CLUSTER_BITS_ALLOWED: std::ops::RangeInclusive<u32> = 9..=21;
/// The smallest with subclusters.
pub(crate) const EXTENDED_CLUSTER_BITS_MIN: u32 = 14;
/// The longest backing file name, in bytes.
pub(crate) const BACKING_NAME_MAX: usize = 1023;
/// The largest L1 table that QEMU opens, in bytes.
pub(crate) const L1_BYTES_MAX: u64 = 32 << 20;

/// Incompatible feature: refcounts may be wrong, the file must be repaired first.
pub(crate) const FEATURE_DIRTY: u64 = 1 << 0;
/// Incompatible feature: the file was found to be corrupt.
pub(crate) const FEATURE_CORRUPT: u64 = 1 << 1;
/// Incompatible feature: the data is in another file, which the header names.
pub(crate) const FEATURE_DATA_FILE: u64 = 1 << 2;
/// Incompatible feature: extended L2 entries.
pub(crate) const FEATURE_EXTENDED_L2: u64 = 1 << 4;

/// Header extension: none follows.
pub(crate) const EXTENSION_END: u32 = 0;
/// Header extension: the backing file's format.
pub(crate) const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// Header extension: the name of an external data file.
pub(crate) const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// Byte offsets of the header's fields.
pub(crate) mod field {
    pub(crate) const VERSION: usize = 4;
    pub(crate) const BACKING_OFFSET: usize = 8;
    pub(crate) const BACKING_SIZE: usize = 16;
    pub(crate) const CLUSTER_BITS: usize = 20;
    pub(crate) const SIZE: usize = 24;
    pub(crate) const CRYPT_METHOD: usize = 32;
    pub(crate) const L1_SIZE: usize = 36;
    pub(crate) const L1_OFFSET: usize = 40;
    pub(crate) const REFCOUNT_OFFSET: usize = 48;
    pub(crate) const REFCOUNT_CLUSTERS: usize = 56;
    pub(crate) const SNAPSHOTS: usize = 60;
    pub(crate) const INCOMPATIBLE: usize = 72;
    pub(crate) const REFCOUNT_ORDER: usize = 96;
    pub(crate) const HEADER_LENGTH: usize = 100;
}

/// Entries of the L1 table for a disk of `size` bytes.
pub(crate) fn l1_entries(size: u64, cluster_bits: u32, entry: u64) -> u64 {
    let cluster = 1_u64 << cluster_bits;
    // At most 2^21 × 2^18: no overflow.
    size.div_ceil(cluster * (cluster / entry))
}
