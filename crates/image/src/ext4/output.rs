//! The image file: small writes to neighbouring places become large ones.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::ImportError;
use crate::spool::{BLOCK_U64, CHUNK};

/// A stream of writes at mostly ascending offsets.
pub(super) struct Output<'a> {
    file: &'a File,
    path: &'a Path,
    pending: Vec<u8>,
    start: u64,
}

impl<'a> Output<'a> {
    pub(super) fn new(file: &'a File, path: &'a Path) -> Self {
        Self {
            file,
            path,
            pending: Vec::new(),
            start: 0,
        }
    }

    /// Writes whole blocks.
    pub(super) fn write_block(&mut self, block: u64, bytes: &[u8]) -> Result<(), ImportError> {
        self.write(block * BLOCK_U64, bytes)
    }

    /// Writes at a byte offset.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ImportError> {
        let end = self.start + self.pending.len() as u64;
        if offset != end || self.pending.len() + bytes.len() > CHUNK {
            self.flush()?;
            self.start = offset;
        }
        if bytes.len() >= CHUNK / 4 && self.pending.is_empty() {
            self.start = offset + bytes.len() as u64;
            return self.write_now(offset, bytes);
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes what is pending. Dropping without it loses writes, as a failed import wants.
    pub(super) fn flush(&mut self) -> Result<(), ImportError> {
        let pending = std::mem::take(&mut self.pending);
        self.write_now(self.start, &pending)?;
        self.start += pending.len() as u64;
        self.pending = pending;
        self.pending.clear();
        Ok(())
    }

    fn write_now(&self, offset: u64, bytes: &[u8]) -> Result<(), ImportError> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|e| ImportError::write("write", self.path, e))
    }
}
