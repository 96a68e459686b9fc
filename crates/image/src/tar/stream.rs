//! The byte stream below the archive: decompressed, counted, hashed and bounded.

use std::fs::File;
use std::io::{self, BufReader, Read};

use crate::compression::{self, SniffError};
use crate::error::ImportError;
use crate::oci::Hasher;

/// What crosses a limit where no one entry does.
pub(super) const WHOLE: &[u8] = b"(the whole archive)";
/// Tar's block size, in bytes.
pub(super) const BLOCK: usize = 512;
/// No more zeros than these follow an archive's end, in bytes; GNU tar's largest blocks are smaller.
const MAX_PADDING: u64 = 16 << 20;

/// The decompressed archive.
pub(super) struct Stream<'r> {
    inner: Inner<'r>,
    offset: u64,
    limit: u64,
    hasher: Option<Hasher>,
}

enum Inner<'r> {
    /// A stream, decompressed.
    Reader(Box<dyn Read + 'r>),
    /// A plain file, where skipping is no reading.
    File {
        file: BufReader<&'r File>,
        size: u64,
    },
}

impl Read for Inner<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Reader(reader) => reader.read(bytes),
            Self::File { file, .. } => file.read(bytes),
        }
    }
}

impl<'r> Stream<'r> {
    /// Looks at the first bytes and puts the right decompressor in front. What comes out of it is
    /// also given to the hasher.
    pub(super) fn open(
        reader: impl Read + 'r,
        limit: u64,
        hasher: Option<Hasher>,
    ) -> Result<Self, ImportError> {
        let reader = compression::decoder(reader).map_err(|error| match error {
            SniffError::Unknown(why) => ImportError::NotATar(why),
            SniffError::Read(source) => ImportError::ReadTar {
                at: "at its start".to_owned(),
                source,
            },
        })?;
        Ok(Self {
            inner: Inner::Reader(reader),
            offset: 0,
            limit,
            hasher,
        })
    }

    /// An archive that is not compressed, from its file's start.
    pub(super) fn seekable(file: &'r File) -> io::Result<Self> {
        let mut reader = BufReader::with_capacity(4096, file);
        io::Seek::rewind(&mut reader)?;
        let size = file.metadata()?.len();
        Ok(Self {
            inner: Inner::File { file: reader, size },
            offset: 0,
            limit: u64::MAX,
            hasher: None,
        })
    }

    /// The hasher, with all that was read.
    pub(super) fn into_hasher(self) -> Option<Hasher> {
        self.hasher
    }

    /// Decompressed bytes read so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// An error at the current place.
    pub(super) fn corrupt(&self, why: &str) -> ImportError {
        ImportError::Corrupt {
            at: self.place(),
            why: why.to_owned(),
        }
    }

    fn place(&self) -> String {
        format!("after {} bytes", self.offset)
    }

    /// Reads a block where a header or the end marker must be; false at the end of the stream, which
    /// is an error where the marker is `required`.
    pub(super) fn read_header_block(
        &mut self,
        block: &mut [u8; BLOCK],
        required: bool,
    ) -> Result<bool, ImportError> {
        let start = self.offset;
        let got = self.fill(block)?;
        match (got, start) {
            (BLOCK, _) => Ok(true),
            (0, 1..) if !required => Ok(false),
            (_, 0) => Err(ImportError::NotATar("it is shorter than one block")),
            (0, _) => Err(ImportError::Truncated(format!(
                "after {start} bytes, without the end marker"
            ))),
            _ => Err(self.truncated()),
        }
    }

    /// Reads exactly as many bytes.
    pub(super) fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), ImportError> {
        match self.fill(bytes)? {
            got if got == bytes.len() => Ok(()),
            _ => Err(self.truncated()),
        }
    }

    /// Skips what pads `size` bytes to whole blocks.
    pub(super) fn skip_padding(&mut self, size: u64) -> Result<(), ImportError> {
        let block = BLOCK as u64;
        self.skip((block - size % block) % block)
    }

    /// Reads bytes and forgets them.
    pub(super) fn skip(&mut self, mut bytes: u64) -> Result<(), ImportError> {
        if let Inner::File { file, size } = &mut self.inner {
            let end = self.offset.checked_add(bytes).filter(|end| end <= size);
            let (Some(end), Ok(relative)) = (end, i64::try_from(bytes)) else {
                return Err(self.truncated());
            };
            return match file.seek_relative(relative) {
                Ok(()) => {
                    self.offset = end;
                    Ok(())
                }
                Err(source) => {
                    let at = self.place();
                    Err(ImportError::ReadTar { at, source })
                }
            };
        }
        let mut sink = [0; 16 << 10];
        while bytes > 0 {
            let take = usize::try_from(bytes).unwrap_or(usize::MAX).min(sink.len());
            self.read_exact(&mut sink[..take])?;
            bytes -= take as u64;
        }
        Ok(())
    }

    /// After the end marker: padding may follow, nothing else.
    pub(super) fn expect_only_zeros(&mut self) -> Result<(), ImportError> {
        let mut bytes = [0; 16 << 10];
        let start = self.offset;
        loop {
            let got = self.fill(&mut bytes)?;
            if self.offset - start > MAX_PADDING {
                let what = "bytes of zeros after the archive's end";
                return Err(ImportError::limit(WHOLE, MAX_PADDING, what));
            }
            if bytes[..got].iter().any(|byte| *byte != 0) {
                return Err(ImportError::TrailingData);
            }
            if got < bytes.len() {
                return Ok(());
            }
        }
    }

    /// Reads until the buffer is full or the stream ends.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<usize, ImportError> {
        let mut got = 0;
        while got < bytes.len() {
            match self.inner.read(&mut bytes[got..]) {
                Ok(0) => break,
                Ok(count) => {
                    got += count;
                    self.offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(ImportError::Truncated(format!(
                        "{} of decompressed data",
                        self.place()
                    )));
                }
                Err(source) => {
                    let at = self.place();
                    return Err(ImportError::ReadTar { at, source });
                }
            }
        }
        if self.offset > self.limit {
            let what = "decompressed bytes";
            return Err(ImportError::limit(WHOLE, self.limit, what));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes[..got]);
        }
        Ok(got)
    }

    fn truncated(&self) -> ImportError {
        ImportError::Truncated(format!("{}, inside an entry", self.place()))
    }
}
