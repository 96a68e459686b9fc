//! What an image is made for: `linux/amd64`, `linux/arm/v7`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system, an architecture in Go's words, and a variant of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Platform {
    os: String,
    architecture: String,
    /// Not given where it is the architecture's usual one.
    variant: Option<String>,
}

/// The text is no platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a platform is OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, as \"linux/amd64\"")]
pub struct ParsePlatformError;

impl Platform {
    /// The platform of the machine that this runs on.
    #[must_use]
    pub fn host() -> Self {
        Self::new("linux", std::env::consts::ARCH, None)
    }

    /// As an image spells it: usual variants and other names of architectures are made one.
    pub(crate) fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, implied) = match architecture {
            "x86_64" | "x86-64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "armhf" => ("arm", Some("v7")),
            "armel" => ("arm", Some("v6")),
            "i386" | "x86" => ("386", None),
            "powerpc64le" => ("ppc64le", None),
            other => (other, None),
        };
        let variant = variant.filter(|variant| !variant.is_empty()).or(implied);
        let usual = matches!(
            (architecture, variant),
            ("amd64", Some("v1")) | ("arm64", Some("v8" | "8")) | ("arm", Some("v7" | "7"))
        );
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.filter(|_| !usual).map(str::to_owned),
        }
    }

    /// `linux`, or what no sandbox runs.
    #[must_use]
    pub fn os(&self) -> &str {
        &self.os
    }

    /// `amd64`, `arm64` …
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// `v6`, `v3` …, where it is not the architecture's usual one.
    pub(crate) fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// As [`fmt::Display`], from an image: escaped, and not too long.
    pub(crate) fn show(&self) -> String {
        crate::error::show(self.to_string().as_bytes())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        platform.to_string()
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, ParsePlatformError> {
        let word = |part: &&str| {
            let plain =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
            (1..=32).contains(&part.len()) && part.bytes().all(plain)
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(word) {
            return Err(ParsePlatformError);
        }
        match parts[..] {
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(ParsePlatformError),
        }
    }
}

impl TryFrom<String> for Platform {
    type Error = ParsePlatformError;

    fn try_from(text: String) -> Result<Self, ParsePlatformError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_spellings_are_one_platform() {
        let parse = |text: &str| text.parse::<Platform>().map(|p| p.to_string());
        assert_eq!(parse("linux/x86_64").unwrap(), "linux/amd64");
        assert_eq!(parse("linux/arm64/v8").unwrap(), "linux/arm64");
        assert_eq!(parse("linux/armhf").unwrap(), "linux/arm");
        assert_eq!(parse("linux/arm/v6").unwrap(), "linux/arm/v6");
        assert_eq!(parse("linux/amd64/v3").unwrap(), "linux/amd64/v3");
        for bad in [
            "",
            "linux",
            "linux/",
            "linux/a/b/c",
            "linux/a b",
            "linux/a\n",
        ] {
            assert_eq!(parse(bad), Err(ParsePlatformError), "{bad:?}");
        }
        assert_eq!(Platform::host().os(), "linux");
    }
}
