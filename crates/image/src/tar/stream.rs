//! The byte stream below the archive: sniffed, decompressed, counted and bounded.

use std::io::{self, BufReader, Cursor, Read};

use crate::error::ImportError;

/// Tar's block size, in bytes.
pub(super) const BLOCK: usize = 512;

/// The decompressed archive.
pub(super) struct Stream<'r> {
    inner: Box<dyn Read + 'r>,
    offset: u64,
    limit: u64,
}

impl<'r> Stream<'r> {
    /// Looks at the first bytes and puts the right decompressor in front.
    pub(super) fn open(mut reader: impl Read + 'r, limit: u64) -> Result<Self, ImportError> {
        let mut magic = Vec::new();
        reader
            .by_ref()
            .take(6)
            .read_to_end(&mut magic)
            .map_err(|source| ImportError::ReadTar {
                at: "at its start".to_owned(),
                source,
            })?;
        let kind = Compression::sniff(&magic)?;
        let whole = BufReader::with_capacity(256 << 10, Cursor::new(magic).chain(reader));
        let inner: Box<dyn Read + 'r> = match kind {
            Compression::None => Box::new(whole),
            Compression::Gzip => {
                let decoder = flate2::bufread::MultiGzDecoder::new(whole);
                Box::new(BufReader::with_capacity(64 << 10, decoder))
            }
            Compression::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(whole);
                let decoder = decoder.map_err(|source| ImportError::ReadTar {
                    at: "at its start".to_owned(),
                    source,
                })?;
                Box::new(BufReader::with_capacity(64 << 10, decoder))
            }
        };
        Ok(Self {
            inner,
            offset: 0,
            limit,
        })
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

    /// Reads a block where a header or the end marker must be.
    pub(super) fn read_header_block(&mut self, block: &mut [u8; BLOCK]) -> Result<(), ImportError> {
        let start = self.offset;
        let got = self.fill(block)?;
        match (got, start) {
            (BLOCK, _) => Ok(()),
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
        loop {
            let got = self.fill(&mut bytes)?;
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
            return Err(ImportError::limit(b"(the whole archive)", self.limit, what));
        }
        Ok(got)
    }

    fn truncated(&self) -> ImportError {
        ImportError::Truncated(format!("{}, inside an entry", self.place()))
    }
}

enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn sniff(magic: &[u8]) -> Result<Self, ImportError> {
        match magic {
            [] => Err(ImportError::NotATar("it is empty")),
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Err(ImportError::NotATar(
                "it is compressed with xz; pipe it through \"xz -dc\"",
            )),
            [b'B', b'Z', b'h', ..] => Err(ImportError::NotATar(
                "it is compressed with bzip2; pipe it through \"bzip2 -dc\"",
            )),
            _ => Ok(Self::None),
        }
    }
}
