//! Tables of device-mapper: what a device is made of.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes of a sector, the unit of everything here.
pub const SECTOR: u64 = 512;

/// The number of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// Which driver.
    pub major: u32,
    /// Which of the driver's devices.
    pub minor: u32,
}

impl DeviceNumber {
    /// From the kernel's own packing, as device-mapper gives it.
    #[must_use]
    pub(super) fn from_kernel(dev: u64) -> Self {
        let dev = u32::try_from(dev & u64::from(u32::MAX)).unwrap_or(0);
        Self {
            major: (dev & 0x000f_ff00) >> 8,
            minor: (dev & 0xff) | ((dev >> 12) & 0x000f_ff00),
        }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A text that is no device number.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is no device number: MAJOR:MINOR")]
pub struct NoDeviceNumber(String);

impl FromStr for DeviceNumber {
    type Err = NoDeviceNumber;

    fn from_str(text: &str) -> Result<Self, NoDeviceNumber> {
        let parts = text.split_once(':').and_then(|(major, minor)| {
            Some(Self {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            })
        });
        parts.ok_or_else(|| NoDeviceNumber(text.to_owned()))
    }
}

/// What a part of a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "target", rename_all = "lowercase")]
pub enum Target {
    /// The same sectors of another device, from its sector `from`.
    Linear {
        /// It.
        device: DeviceNumber,
        /// The first sector there.
        from: u64,
    },
    /// Zeros; what is written is lost.
    Zero,
    /// `origin`, with what was changed in the persistent exception store `store`. A store that is full
    /// fails writes from then on ("PO") and keeps what it has; the plain kind would be lost whole.
    Snapshot {
        /// What is read where nothing was changed.
        origin: DeviceNumber,
        /// Where changes go.
        store: DeviceNumber,
        /// Sectors that are copied as one.
        chunk_sectors: u32,
    },
}

impl Target {
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Linear { .. } => "linear",
            Self::Zero => "zero",
            Self::Snapshot { .. } => "snapshot",
        }
    }

    pub(super) fn words(&self) -> String {
        match self {
            Self::Linear { device, from } => format!("{device} {from}"),
            Self::Zero => String::new(),
            Self::Snapshot {
                origin,
                store,
                chunk_sectors,
            } => format!("{origin} {store} PO {chunk_sectors}"),
        }
    }

    fn parse(kind: &str, words: &str) -> Option<Self> {
        let words: Vec<&str> = words.split_ascii_whitespace().collect();
        match (kind, words.as_slice()) {
            ("linear", [device, from]) => Some(Self::Linear {
                device: device.parse().ok()?,
                from: from.parse().ok()?,
            }),
            ("zero", []) => Some(Self::Zero),
            // A kernel may name features after the chunk's size.
            ("snapshot", [origin, store, "PO", chunk, ..]) => Some(Self::Snapshot {
                origin: origin.parse().ok()?,
                store: store.parse().ok()?,
                chunk_sectors: chunk.parse().ok()?,
            }),
            _ => None,
        }
    }
}

/// A part of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Its first sector.
    pub start: u64,
    /// How many there are.
    pub sectors: u64,
    /// What they are.
    #[serde(flatten)]
    pub target: Target,
}

/// A table of one segment.
#[must_use]
pub fn whole(sectors: u64, target: Target) -> Vec<Segment> {
    vec![Segment {
        start: 0,
        sectors,
        target,
    }]
}

pub(super) fn parse_table(lines: &[(u64, u64, String, String)]) -> Option<Vec<Segment>> {
    lines
        .iter()
        .map(|(start, sectors, kind, words)| {
            Some(Segment {
                start: *start,
                sectors: *sectors,
                target: Target::parse(kind, words)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_read_as_they_were_written() {
        let device = DeviceNumber {
            major: 253,
            minor: 300,
        };
        let store = DeviceNumber { major: 7, minor: 1 };
        for target in [
            Target::Linear { device, from: 8 },
            Target::Zero,
            Target::Snapshot {
                origin: device,
                store,
                chunk_sectors: 8,
            },
        ] {
            let line = (0, 8, target.kind().to_owned(), target.words());
            assert_eq!(parse_table(&[line]), Some(whole(8, target)));
        }
        let foreign = (0, 8, "crypt".to_owned(), "aes".to_owned());
        assert_eq!(parse_table(&[foreign]), None);
    }

    #[test]
    fn numbers_beyond_eight_bits_are_whole() {
        // 253:300 as the kernel packs it: the minor's upper bits stand above the major.
        let packed = (300 & 0xff) | (253 << 8) | ((300 & !0xff) << 12);
        let number = DeviceNumber::from_kernel(packed);
        assert_eq!(number.to_string(), "253:300");
        assert!("7".parse::<DeviceNumber>().is_err());
    }
}
