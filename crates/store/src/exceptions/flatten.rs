//! Exception stores as changes, and written out with their template.

use std::fs::File;
use std::io;

use super::{Damage, Exceptions};
use crate::changes::{Change, Changes, Content};
use crate::flatten::{self, FlattenStats};

/// One layer's store.
#[derive(Debug, Clone, Copy)]
pub struct Store<'a> {
    /// Its file.
    pub file: &'a File,
    /// Size of the disk that it is a layer of, in bytes.
    pub disk_bytes: u64,
}

/// Why stores were not written out.
#[derive(Debug, thiserror::Error)]
pub enum FlattenError {
    /// A store is damaged.
    #[error("the exception store of layer {index} {damage}")]
    Store {
        /// Which; 0 is the base.
        index: usize,
        /// What is wrong with it.
        damage: Damage,
    },
    /// Reading or writing failed.
    #[error("write the flattened disk: {0}")]
    Write(#[from] io::Error),
}

/// Writes to `out`, an empty file, the disk of `disk_bytes` that `stores` (base first, no device over
/// them) make of `template`. What `out` is after an error is for the caller to remove.
///
/// # Errors
/// [`FlattenError`]; before anything is written when a store is damaged.
pub fn flatten(
    template: &File,
    disk_bytes: u64,
    stores: &[Store<'_>],
    out: &File,
) -> Result<FlattenStats, FlattenError> {
    let mut changes = Vec::with_capacity(stores.len());
    for (index, store) in stores.iter().enumerate() {
        let found = Exceptions::read(store.file, store.disk_bytes)
            .map_err(|damage| FlattenError::Store { index, damage })?;
        changes.push(found.changes());
    }
    let files: Vec<&File> = stores.iter().map(|store| store.file).collect();
    Ok(flatten::write(template, disk_bytes, &files, &changes, out)?)
}

impl Exceptions {
    /// They as changes of the disk.
    #[must_use]
    pub fn changes(&self) -> Changes {
        let mut changes = Changes::default();
        let length = self.chunk_bytes();
        for (old, new) in self.iter() {
            let change = Change {
                at: old * length,
                length,
                content: Content::Data(new * length),
            };
            changes.push(self.disk_bytes, change);
        }
        changes
    }
}
