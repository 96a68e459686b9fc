//! Compressed streams: told by their first bytes, and decompressed with a bound on memory.

use std::io::{self, BufReader, Cursor, Read};

/// What a decoder of xz may take, in bytes: `xz -9` asks for 65 MiB.
const XZ_MEMORY: u64 = 128 << 20;
/// What a decoder of zstd may keep of what it has decoded, as a power of two: 128 MiB.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
}

/// Why there is nothing to decode.
pub(crate) enum SniffError {
    Read(io::Error),
    /// Nothing that this program knows, with a hint.
    Unknown(&'static str),
}

impl From<io::Error> for SniffError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl Compression {
    pub(crate) fn of(magic: &[u8]) -> Result<Self, &'static str> {
        match magic {
            [] => Err("it is empty"),
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Ok(Self::Xz),
            [b'B', b'Z', b'h', ..] => {
                Err("it is compressed with bzip2; pipe it through \"bzip2 -dc\"")
            }
            // Frames that a decoder skips, which some writers put first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            _ => Ok(Self::None),
        }
    }
}

/// Looks at the first bytes and puts the right decompressor in front.
pub(crate) fn decoder<'r>(mut reader: impl Read + 'r) -> Result<Box<dyn Read + 'r>, SniffError> {
    let mut magic = Vec::new();
    reader.by_ref().take(6).read_to_end(&mut magic)?;
    let kind = Compression::of(&magic).map_err(SniffError::Unknown)?;
    let whole = BufReader::with_capacity(256 << 10, Cursor::new(magic).chain(reader));
    let decoded: Box<dyn Read + 'r> = match kind {
        Compression::None => return Ok(Box::new(whole)),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        Compression::Xz => {
            let concatenated = liblzma::stream::CONCATENATED;
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, concatenated)
                .map_err(io::Error::from)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(whole, stream))
        }
    };
    Ok(Box::new(BufReader::with_capacity(64 << 10, decoded)))
}
