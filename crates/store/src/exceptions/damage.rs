//! Why a store is not to be trusted.

use std::path::PathBuf;

use cowslip_model::LayerId;

use crate::StoreError;

/// Why a file is no store that may be used. Worded to follow the file's name.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// Shorter than a store of its disk is.
    #[error("is cut off: it has {length} bytes, a store of its disk has at least {needed}")]
    Truncated {
        /// Bytes there are.
        length: u64,
        /// Bytes there should be.
        needed: u64,
    },
    /// Does not begin with the magic number.
    #[error("is no exception store: it begins with \"{}\"", found.escape_ascii())]
    Foreign {
        /// What stands in the place of the magic number.
        found: [u8; 4],
    },
    /// The kernel gave it up.
    #[error(
        "was invalidated by the kernel, which could not write to it (no space left, or an error of the \
         disk): start its sandbox again, which takes what was written until then"
    )]
    Invalidated,
    /// Neither valid nor invalidated.
    #[error("has the validity flag {0}, which is none")]
    Flag(u32),
    /// A version that this kernel does not write.
    #[error("has version {0}, exception stores have version 1")]
    Version(u32),
    /// A chunk size that cannot be.
    #[error("has chunks of {0} sectors, which cannot be")]
    ChunkSize(u32),
    /// An exception whose data lies past the end of the store.
    #[error("says that chunk {old} of the disk is in its chunk {new}, but it has only {chunks}")]
    PastStore {
        /// The chunk of the disk.
        old: u64,
        /// The chunk of the store.
        new: u64,
        /// Chunks of the store.
        chunks: u64,
    },
    /// An exception of a chunk that the disk does not have.
    #[error("holds chunk {old} of a disk that has only {chunks}")]
    PastDisk {
        /// The chunk of the disk.
        old: u64,
        /// Chunks of the disk.
        chunks: u64,
    },
    /// An exception whose data would be a chunk with pairs.
    #[error("says that chunk {old} of the disk is in its chunk {new}, which is no chunk for data")]
    NoData {
        /// The chunk of the disk.
        old: u64,
        /// The chunk of the store.
        new: u64,
    },
    /// Two exceptions of one chunk of the disk.
    #[error("holds chunk {old} of the disk twice")]
    OldTwice {
        /// The chunk of the disk.
        old: u64,
    },
    /// Two exceptions with the same data.
    #[error("says of its chunk {new} twice that a chunk of the disk is there")]
    NewTwice {
        /// The chunk of the store.
        new: u64,
    },
    /// Something stands after the pair that ends them: that pair was not always the end.
    #[error("has pairs after the one that ends them, in its chunk {chunk}")]
    AfterEnd {
        /// The chunk of the store.
        chunk: u64,
    },
    /// It could not be read.
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
}

impl Damage {
    /// The error of the layer that has this store.
    #[must_use]
    pub fn of_layer(&self, layer: LayerId, path: PathBuf) -> StoreError {
        StoreError::Layer {
            layer,
            path,
            why: self.to_string(),
        }
    }
}
