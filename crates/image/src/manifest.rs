//! What a template's directory contains: the image and a manifest beside it.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::oci::{ImageConfig, ImageError};

/// Name of the image in a template's directory.
pub const IMAGE_FILE: &str = "rootfs.ext4";
/// Name of the manifest in a template's directory.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The version that this code writes. It also reads version 1, which has no config.
const FORMAT_VERSION: u32 = 2;
/// No manifest is longer than this, in bytes. A config's text has at most 1 MiB, and JSON may take six
/// bytes for one.
const MAX_BYTES: usize = 8 << 20;

/// Where a template came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// A directory on the host.
    Directory,
    /// A tar file or stream.
    Tar,
    /// An OCI image layout, a directory.
    OciLayout,
    /// An OCI image layout in a tar.
    OciArchive,
    /// What `docker save` wrote.
    DockerArchive,
    /// A registry.
    Registry,
}

/// A template's manifest, as it is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    version: u32,
    /// SHA-256 of the image.
    pub digest: Digest,
    /// Length of the image, in bytes.
    pub size: u64,
    /// Bytes in use inside the file system.
    pub used: u64,
    /// Names in the image.
    pub entries: u64,
    /// Where it came from.
    pub source: SourceKind,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// How its image is run, where it came from one that says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ImageConfig>,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON that it should be.
    #[error("the template's manifest is damaged; import the template again")]
    Damaged(#[source] serde_json::Error),
    /// Far too long.
    #[error("the template's manifest is longer than 8 MiB; import the template again")]
    TooLong,
    /// From another version of this program.
    #[error(
        "the template's manifest has version {0}, this program reads versions 1 and 2; import it again"
    )]
    Version(u32),
    /// A version that knows no config, with one.
    #[error("the template's manifest has version 1 and a config; import the template again")]
    Version1Config,
    /// Its config has a value that no import lets through.
    #[error("the template's manifest has a config that cannot be used; import the template again")]
    Config(#[source] ImageError),
    /// The image's length is not a number of whole blocks.
    #[error(
        "the template's manifest says {0} bytes, which is no multiple of 4096; import it again"
    )]
    Size(u64),
}

impl Manifest {
    /// The manifest of a fresh import.
    #[must_use]
    pub fn new(imported: &crate::Imported, source: SourceKind, created: u64) -> Self {
        Self {
            version: FORMAT_VERSION,
            digest: imported.digest,
            size: imported.size,
            used: imported.used,
            entries: imported.entries,
            source,
            created,
            config: None,
        }
    }

    /// With how the image is run.
    #[must_use]
    pub fn with_config(mut self, config: ImageConfig) -> Self {
        self.config = Some(config);
        self
    }

    /// Reads a manifest from its file's bytes.
    ///
    /// # Errors
    /// [`ManifestError`] when it is damaged or of another version.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        /// Read first, so that a newer manifest is called newer and not damaged.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        if bytes.len() > MAX_BYTES {
            return Err(ManifestError::TooLong);
        }
        let Version { version } = serde_json::from_slice(bytes).map_err(ManifestError::Damaged)?;
        if !(1..=FORMAT_VERSION).contains(&version) {
            return Err(ManifestError::Version(version));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(ManifestError::Damaged)?;
        if manifest.size == 0 || !manifest.size.is_multiple_of(4096) {
            return Err(ManifestError::Size(manifest.size));
        }
        match &manifest.config {
            Some(_) if version == 1 => return Err(ManifestError::Version1Config),
            Some(config) => config.check().map_err(ManifestError::Config)?,
            None => {}
        }
        Ok(manifest)
    }

    /// The bytes to store.
    ///
    /// # Errors
    /// None in practice: every field has a JSON form.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(ManifestError::Damaged)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            version: FORMAT_VERSION,
            digest: "0".repeat(64).parse().unwrap(),
            size: 8192,
            used: 4096,
            entries: 1,
            source: SourceKind::Tar,
            created: 1_700_000_000,
            config: None,
        }
    }

    fn with_config() -> Manifest {
        let config = br#"{"platform": "linux/arm/v6", "env": ["A=b"], "user": "root"}"#;
        manifest().with_config(serde_json::from_slice(config).unwrap())
    }

    #[test]
    fn a_manifest_survives_the_round_trip() {
        let bytes = manifest().to_bytes().unwrap();
        assert_eq!(Manifest::parse(&bytes).unwrap(), manifest());
        let bytes = with_config().to_bytes().unwrap();
        assert_eq!(Manifest::parse(&bytes).unwrap(), with_config());
    }

    #[test]
    fn version_1_is_read_and_has_no_config() {
        let old = String::from_utf8(manifest().to_bytes().unwrap()).unwrap();
        let old = old.replace("\"version\": 2", "\"version\": 1");
        let read = Manifest::parse(old.as_bytes()).unwrap();
        assert_eq!((read.digest, read.config), (manifest().digest, None));
        let text = String::from_utf8(with_config().to_bytes().unwrap()).unwrap();
        let text = text.replace("\"version\": 2", "\"version\": 1");
        let error = Manifest::parse(text.as_bytes()).unwrap_err();
        assert!(matches!(error, ManifestError::Version1Config), "{error}");
    }

    #[test]
    fn a_config_is_checked_again() {
        let text = String::from_utf8(with_config().to_bytes().unwrap()).unwrap();
        let error = Manifest::parse(text.replace("A=b", "A").as_bytes()).unwrap_err();
        assert!(matches!(error, ManifestError::Config(_)), "{error}");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let text = String::from_utf8(manifest().to_bytes().unwrap()).unwrap();
        let parse = |from: &str, to: &str| {
            assert!(text.contains(from));
            Manifest::parse(text.replace(from, to).as_bytes()).unwrap_err()
        };
        assert!(matches!(
            parse("\"version\": 2", "\"version\": 3"),
            ManifestError::Version(3)
        ));
        assert!(matches!(
            parse("\"used\"", "\"usde\""),
            ManifestError::Damaged(_)
        ));
        assert!(matches!(parse("8192", "8193"), ManifestError::Size(8193)));
        let long = vec![b' '; MAX_BYTES + 1];
        assert!(matches!(
            Manifest::parse(&long),
            Err(ManifestError::TooLong)
        ));
    }
}
