//! SHA-256 of whole images, in one pass.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{SeekFrom, seek};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::spool::CHUNK;

/// A SHA-256, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of some bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The raw bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// The text is not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sha256 digest is 64 lower-case hexadecimal digits")]
pub struct ParseDigestError;

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(ParseDigestError),
        };
        let mut bytes = [0; 32];
        let pairs = text.as_bytes();
        if pairs.len() != 64 {
            return Err(ParseDigestError);
        }
        for (byte, pair) in bytes.iter_mut().zip(pairs.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = ParseDigestError;

    fn try_from(text: String) -> Result<Self, ParseDigestError> {
        text.parse()
    }
}

/// Hashes a file from its start to its end.
///
/// Holes are hashed as the zeros that they read as, without reading them.
///
/// # Errors
/// Whatever reading gives; an error of kind `Interrupted` when `stop` answers true.
pub fn digest_file(file: &File, mut stop: impl FnMut(u64) -> bool) -> io::Result<Digest> {
    let size = file.metadata()?.len();
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let zeros = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        let data = next_data(file, at)?.unwrap_or(size).clamp(at, size);
        while at < data {
            at += hash_chunk(&mut hasher, &zeros, data - at);
            if stop(at) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        let hole = next_hole(file, at, size)?;
        while at < hole {
            let take = CHUNK.min(usize::try_from(hole - at).unwrap_or(CHUNK));
            file.read_exact_at(&mut buffer[..take], at)?;
            at += hash_chunk(&mut hasher, &buffer, hole - at);
            if stop(at) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
    }
    Ok(Digest(hasher.finalize().into()))
}

fn hash_chunk(hasher: &mut Sha256, chunk: &[u8], most: u64) -> u64 {
    let take = chunk.len().min(usize::try_from(most).unwrap_or(usize::MAX));
    hasher.update(&chunk[..take]);
    take as u64
}

/// The next byte that may be data; `None` when there is none left.
pub(crate) fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(from)) {
        Ok(at) => Ok(Some(at)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        // No such seek on this file system: everything may be data.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some(from)),
        Err(error) => Err(error.into()),
    }
}

/// The end of the data that starts at `from`.
pub(crate) fn next_hole(file: &File, from: u64, size: u64) -> io::Result<u64> {
    match seek(file, SeekFrom::Hole(from)) {
        Ok(at) => Ok(at.clamp(from, size)),
        Err(rustix::io::Errno::NXIO | rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
            Ok(size)
        }
        Err(error) => Err(error.into()),
    }
}

/// Why an image is not the one that its manifest describes.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It could not be read.
    #[error("cannot read the image \"{path}\"")]
    Read {
        /// The image.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is shorter or longer.
    #[error(
        "the image \"{path}\" has {found} bytes instead of {expected}; import the template again"
    )]
    Size {
        /// The image.
        path: String,
        /// Its length, in bytes.
        found: u64,
        /// The length that it should have, in bytes.
        expected: u64,
    },
    /// Its bytes are different.
    #[error(
        "the image \"{path}\" has digest {found} instead of {expected}; import the template again"
    )]
    Digest {
        /// The image.
        path: String,
        /// What its bytes hash to.
        found: Digest,
        /// What they should hash to.
        expected: Digest,
    },
}

/// Checks that the image has the size (bytes) and the digest that its manifest says.
///
/// # Errors
/// [`VerifyError`] when it cannot be read or differs. The cheap check, the size, comes first.
pub fn verify_image(path: &Path, expected: &Digest, size: u64) -> Result<(), VerifyError> {
    let name = || path.display().to_string();
    let read = |source| VerifyError::Read {
        path: name(),
        source,
    };
    let file = File::open(path).map_err(read)?;
    let found = file.metadata().map_err(read)?.len();
    if found != size {
        return Err(VerifyError::Size {
            path: name(),
            found,
            expected: size,
        });
    }
    let found = digest_file(&file, |_| false).map_err(read)?;
    if found != *expected {
        return Err(VerifyError::Digest {
            path: name(),
            found,
            expected: *expected,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_hash_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let sparse = File::create_new(dir.path().join("sparse")).unwrap();
        sparse.set_len(5 << 20).unwrap();
        sparse.write_all_at(b"in the middle", 3 << 20).unwrap();
        let dense = std::fs::read(dir.path().join("sparse")).unwrap();
        let sparse = File::open(dir.path().join("sparse")).unwrap();
        let expected = Digest(Sha256::digest(dense).into());
        assert_eq!(digest_file(&sparse, |_| false).unwrap(), expected);
        assert_eq!(expected.to_string().parse(), Ok(expected));
    }

    #[test]
    fn a_changed_image_is_told_from_a_short_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, b"abc").unwrap();
        let good = digest_file(&File::open(&path).unwrap(), |_| false).unwrap();
        verify_image(&path, &good, 3).unwrap();
        assert!(matches!(
            verify_image(&path, &good, 4),
            Err(VerifyError::Size { found: 3, .. })
        ));
        std::fs::write(&path, b"abd").unwrap();
        assert!(matches!(
            verify_image(&path, &good, 3),
            Err(VerifyError::Digest { .. })
        ));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(
            verify_image(&path, &good, 3),
            Err(VerifyError::Read { .. })
        ));
    }

    // covers R63
    #[test]
    fn only_lower_case_hex_is_a_digest() {
        assert_eq!("../../etc".parse::<Digest>(), Err(ParseDigestError));
        assert_eq!("A".repeat(64).parse::<Digest>(), Err(ParseDigestError));
        assert_eq!("é".repeat(32).parse::<Digest>(), Err(ParseDigestError));
        assert!("a".repeat(64).parse::<Digest>().is_ok());
    }
}
