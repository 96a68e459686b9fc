//! File contents on their way: cut into blocks, and holes found by looking at the bytes.
//!
//! A block of zeros is a hole, however the source stores it, so that the same content gives the
//! same image whether it came from a sparse file, a dense one or an archive.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::ImportError;
use crate::node::Run;

/// File system block size, in bytes. Everything here is made for this one.
pub(crate) const BLOCK: usize = 4096;
/// The same, for arithmetic on offsets.
pub(crate) const BLOCK_U64: u64 = BLOCK as u64;
/// How much is read or copied at once, in bytes.
pub(crate) const CHUNK: usize = 1 << 20;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Takes whole blocks of one file, in ascending order.
pub(crate) trait BlockSink {
    /// Takes blocks from `block` on; `bytes` is a multiple of [`BLOCK`] long.
    fn put(&mut self, block: u64, bytes: &[u8]) -> Result<(), ImportError>;
}

/// Hands the blocks that are not all zero to the sink. `bytes` is a multiple of [`BLOCK`] long.
pub(crate) fn put_nonzero(
    sink: &mut dyn BlockSink,
    block: u64,
    bytes: &[u8],
) -> Result<(), ImportError> {
    let mut start = None;
    for (index, chunk) in bytes.chunks(BLOCK).enumerate() {
        let zero = *chunk == ZEROS[..chunk.len()];
        match (zero, start) {
            (false, None) => start = Some(index),
            (true, Some(first)) => {
                sink.put(block + first as u64, &bytes[first * BLOCK..index * BLOCK])?;
                start = None;
            }
            _ => {}
        }
    }
    match start {
        Some(first) => sink.put(block + first as u64, &bytes[first * BLOCK..]),
        None => Ok(()),
    }
}

/// Cuts a stream of bytes and gaps into blocks for a sink.
pub(crate) struct Blocks<'a> {
    sink: &'a mut dyn BlockSink,
    buffer: &'a mut Vec<u8>,
    first: u64,
}

impl<'a> Blocks<'a> {
    /// Starts at block 0. The buffer is only there to be reused from file to file.
    pub(crate) fn new(sink: &'a mut dyn BlockSink, buffer: &'a mut Vec<u8>) -> Self {
        buffer.clear();
        Self {
            sink,
            buffer,
            first: 0,
        }
    }

    /// Appends bytes.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), ImportError> {
        while !bytes.is_empty() {
            let take = bytes.len().min(CHUNK - self.buffer.len());
            self.buffer.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if self.buffer.len() == CHUNK {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Appends a gap of zeros, without writing them out one by one.
    pub(crate) fn skip(&mut self, gap: u64) -> Result<(), ImportError> {
        let to_boundary = (BLOCK - self.buffer.len() % BLOCK) % BLOCK;
        match gap.checked_sub(to_boundary as u64) {
            None => {
                let end = self.buffer.len() + usize::try_from(gap).unwrap_or(0);
                self.buffer.resize(end, 0);
            }
            Some(rest) => {
                self.flush()?;
                self.first += rest / BLOCK_U64;
                let tail = usize::try_from(rest % BLOCK_U64).unwrap_or(0);
                self.buffer.resize(tail, 0);
            }
        }
        Ok(())
    }

    /// Pads the last block with zeros and hands it over.
    pub(crate) fn finish(mut self) -> Result<(), ImportError> {
        self.flush()
    }

    fn flush(&mut self) -> Result<(), ImportError> {
        self.buffer
            .resize(self.buffer.len().next_multiple_of(BLOCK), 0);
        put_nonzero(self.sink, self.first, self.buffer)?;
        self.first += (self.buffer.len() / BLOCK) as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// One scratch file that holds the contents of all files of an archive, back to back.
pub(crate) struct Spool {
    file: File,
    path: PathBuf,
    end: u64,
    runs: Vec<Run>,
}

impl Spool {
    /// Makes the scratch file; it has no name afterwards and goes with its last descriptor.
    pub(crate) fn create(work_dir: &Path) -> Result<Self, ImportError> {
        let path = work_dir.join("contents");
        let create = |source| ImportError::write("create", &path, source);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(create)?;
        std::fs::remove_file(&path).map_err(|e| ImportError::write("unlink", &path, e))?;
        Ok(Self {
            file,
            path,
            end: 0,
            runs: Vec::new(),
        })
    }

    /// The runs put since the last call: the file that was just written.
    pub(crate) fn take_runs(&mut self) -> Box<[Run]> {
        std::mem::take(&mut self.runs).into_boxed_slice()
    }

    /// Reads back a stretch of a run.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }
}

impl BlockSink for Spool {
    fn put(&mut self, block: u64, bytes: &[u8]) -> Result<(), ImportError> {
        self.file
            .write_all_at(bytes, self.end)
            .map_err(|e| ImportError::write("write", &self.path, e))?;
        let count = (bytes.len() / BLOCK) as u64;
        match self.runs.last_mut() {
            Some(run) if run.block + run.count == block => run.count += count,
            _ => self.runs.push(Run {
                block,
                count,
                spool: self.end,
            }),
        }
        self.end += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Collect(Vec<(u64, Vec<u8>)>);

    impl BlockSink for Collect {
        fn put(&mut self, block: u64, bytes: &[u8]) -> Result<(), ImportError> {
            self.0.push((block, bytes.to_vec()));
            Ok(())
        }
    }

    proptest! {
        // covers R60: sparse files
        #[test]
        fn blocks_give_back_bytes_and_gaps(parts in proptest::collection::vec(
            (any::<bool>(), prop_oneof![0u64..9000, Just(4096), Just(1 << 20), Just(3 << 20)]), 0..8)) {
            let mut expected = Vec::new();
            let mut collect = Collect::default();
            let mut buffer = Vec::new();
            let mut blocks = Blocks::new(&mut collect, &mut buffer);
            for (data, length) in parts {
                let bytes = vec![u8::from(data) * 7; usize::try_from(length).unwrap()];
                if data { blocks.write(&bytes).unwrap() } else { blocks.skip(length).unwrap() }
                expected.extend(bytes);
            }
            blocks.finish().unwrap();
            expected.resize(expected.len().next_multiple_of(BLOCK), 0);
            let mut got = vec![0; expected.len()];
            for (block, bytes) in collect.0 {
                let at = usize::try_from(block).unwrap() * BLOCK;
                prop_assert!(bytes.chunks(BLOCK).all(|b| b != ZEROS));
                got[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            prop_assert!(got == expected);
        }
    }
}
