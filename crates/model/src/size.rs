//! Sizes in bytes, as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes. Text may carry a binary suffix: `512m`, `1GiB`, `64K`.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with a known suffix.
    #[error(
        "\"{0}\" is not a size: write a number of bytes, or one with k, m, g or t (512m, 2GiB)"
    )]
    Format(String),
    /// Over 2^64 − 1 bytes.
    #[error("\"{0}\" is more bytes than can be counted")]
    Overflow(String),
}

/// One kibibyte.
pub const KIB: u64 = 1 << 10;
/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// One gibibyte.
pub const GIB: u64 = 1 << 30;

impl ByteSize {
    /// `n` mebibytes.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n * MIB)
    }

    /// Whole mebibytes, rounded up.
    #[must_use]
    pub const fn mib_ceil(self) -> u64 {
        self.0.div_ceil(MIB)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let format = || SizeError::Format(text.chars().take(40).collect());
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(trimmed.len());
        let (digits, suffix) = trimmed.split_at(split);
        if digits.is_empty() {
            return Err(format());
        }
        let unit: u64 = match suffix.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" | "kib" => KIB,
            "m" | "mb" | "mib" => MIB,
            "g" | "gb" | "gib" => GIB,
            "t" | "tb" | "tib" => GIB * 1024,
            _ => return Err(format()),
        };
        digits
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(unit))
            .map(Self)
            .ok_or_else(|| SizeError::Overflow(text.chars().take(40).collect()))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let (mut whole, mut rest, mut unit) = (self.0, 0, 0);
        while whole >= 1024 && unit + 1 < units.len() {
            rest = whole % 1024;
            whole /= 1024;
            unit += 1;
        }
        let tenths = rest * 10 / 1024;
        let text = if unit == 0 || tenths == 0 {
            format!("{whole} {}", units[unit])
        } else {
            format!("{whole}.{tenths} {}", units[unit])
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_and_print() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("64k", 65536),
            ("512m", 512 * MIB),
            ("2GiB", 2 * GIB),
            ("1 g", GIB),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
        for bad in ["", "m", "-1", "1.5g", "12x", "99999999999g"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        assert_eq!(ByteSize(1536 * MIB).to_string(), "1.5 GiB");
        assert_eq!(ByteSize(17).to_string(), "17 B");
    }
}
