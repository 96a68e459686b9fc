//! Digests as images write them, `ALGORITHM:HEX`, and readers that check them.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

/// The digest of a blob, as the OCI image specification writes it: `sha256:` or `sha512:` and
/// lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct BlobDigest {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Algorithm {
    Sha256,
    Sha512,
}

/// The text is no digest of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is \"sha256:\" and 64, or \"sha512:\" and 128, lower-case hexadecimal digits")]
pub struct ParseBlobDigestError;

impl BlobDigest {
    /// `sha256` or `sha512`.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        match self.algorithm {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// The hexadecimal digits; with [`Self::algorithm`] they are a safe name of a file.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The SHA-256 of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::sha256();
        hasher.update(bytes);
        hasher.finish()
    }
}

impl fmt::Display for BlobDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex)
    }
}

impl From<BlobDigest> for String {
    fn from(digest: BlobDigest) -> Self {
        digest.to_string()
    }
}

impl FromStr for BlobDigest {
    type Err = ParseBlobDigestError;

    fn from_str(text: &str) -> Result<Self, ParseBlobDigestError> {
        let (algorithm, length, hex) = match text.split_once(':') {
            Some(("sha256", hex)) => (Algorithm::Sha256, 64, hex),
            Some(("sha512", hex)) => (Algorithm::Sha512, 128, hex),
            _ => return Err(ParseBlobDigestError),
        };
        let digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != length || !hex.bytes().all(digit) {
            return Err(ParseBlobDigestError);
        }
        let hex = hex.to_owned();
        Ok(Self { algorithm, hex })
    }
}

impl TryFrom<String> for BlobDigest {
    type Error = ParseBlobDigestError;

    fn try_from(text: String) -> Result<Self, ParseBlobDigestError> {
        text.parse()
    }
}

/// Computes the digest that another is compared with.
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    pub(crate) fn sha256() -> Self {
        Self(State::Sha256(Sha256::new()))
    }

    /// With the algorithm of a digest.
    #[must_use]
    pub fn like(digest: &BlobDigest) -> Self {
        match digest.algorithm {
            Algorithm::Sha256 => Self::sha256(),
            Algorithm::Sha512 => Self(State::Sha512(Box::default())),
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes so far.
    #[must_use]
    pub fn finish(self) -> BlobDigest {
        let (algorithm, bytes) = match self.0 {
            State::Sha256(hasher) => (Algorithm::Sha256, hasher.finalize().to_vec()),
            State::Sha512(hasher) => (Algorithm::Sha512, hasher.finalize().to_vec()),
        };
        let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        BlobDigest { algorithm, hex }
    }
}

/// Hashes and counts what is read through it, and reads no more than one byte beyond `size`.
pub(crate) struct Checked<R> {
    inner: io::Take<R>,
    hasher: Option<Hasher>,
    read: u64,
}

impl<R: Read> Checked<R> {
    /// Without a digest only bytes are counted.
    pub(crate) fn new(inner: R, size: u64, digest: Option<&BlobDigest>) -> Self {
        Self {
            inner: inner.take(size.saturating_add(1)),
            hasher: digest.map(Hasher::like),
            read: 0,
        }
    }

    /// Reads what is left; gives how many bytes there were in all, and their digest.
    pub(crate) fn finish(mut self) -> io::Result<(u64, Option<BlobDigest>)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((self.read, self.hasher.map(Hasher::finish)))
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(bytes)?;
        self.read += got as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes[..got]);
        }
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // covers R63
    #[test]
    fn only_digests_are_digests() {
        let good = BlobDigest::of(b"");
        assert_eq!(good.to_string().parse(), Ok(good.clone()));
        assert!(good.hex().starts_with("e3b0c442"));
        let long = format!("sha512:{}", "0a".repeat(64));
        assert_eq!(long.parse::<BlobDigest>().unwrap().to_string(), long);
        for bad in [
            "",
            "sha256:",
            &good.hex,
            "sha256:../../etc/passwd",
            &format!("sha256:{}", "A".repeat(64)),
            &format!("sha256:{}", "é".repeat(32)),
            &format!("sha512:{}", "a".repeat(64)),
            &format!("md5:{}", "a".repeat(32)),
            &format!("../sha256:{}", good.hex),
        ] {
            assert_eq!(
                bad.parse::<BlobDigest>(),
                Err(ParseBlobDigestError),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_checked_reader_counts_and_stops() {
        let digest = BlobDigest::of(b"abc");
        let mut reader = Checked::new(&b"abc"[..], 3, Some(&digest));
        reader.read_exact(&mut [0; 1]).unwrap();
        assert_eq!(reader.finish().unwrap(), (3, Some(digest)));
        let endless = Checked::new(io::repeat(0), 10, None);
        assert_eq!(endless.finish().unwrap(), (11, None));
    }
}
