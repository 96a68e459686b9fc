//! The record of an imported kernel, as `manifest.json` in its directory.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::kernel::KernelFormat;
use crate::modules::Stage;
use crate::{MANIFEST, durable};

/// The version of the format that this code reads and writes.
pub const VERSION: u32 = 1;
/// A manifest with every module of the table is a few KiB.
const MAX_MANIFEST: u64 = 4 << 20;

/// What an imported kernel is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelManifest {
    /// Version of this format: [`VERSION`].
    pub version: u32,
    /// The kernel's release, as `uname -r` prints it in the guest.
    pub release: String,
    /// The kernel's whole version text.
    pub banner: String,
    /// The kernel file's format.
    pub format: KernelFormat,
    /// Whether an ELF kernel can be entered by PVH.
    pub pvh: bool,
    /// `vmlinuz`.
    pub kernel: FileRecord,
    /// `modules.cpio`.
    pub modules_archive: FileRecord,
    /// `initramfs`.
    pub initramfs: FileRecord,
    /// The agent inside the initramfs.
    pub agent: FileRecord,
    /// The modules in the initramfs, in the order in which the guest loads them.
    pub modules: Vec<ModuleRecord>,
}

/// A file by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// Length in bytes.
    pub size: u64,
}

/// A kernel module in the initramfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleRecord {
    /// Its name as the kernel knows it.
    pub name: String,
    /// When the guest loads it.
    pub stage: Stage,
    /// Length in bytes, decompressed.
    pub size: u64,
}

/// Why a manifest cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is no manifest of this version.
    #[error("\"{path}\" is not a kernel's manifest: remove the kernel and import it again")]
    Invalid {
        /// The manifest.
        path: PathBuf,
        /// What does not parse.
        #[source]
        source: serde_json::Error,
    },
    /// It was written by another release of cowslip.
    #[error(
        "\"{path}\" has version {found}, this cowslip reads {VERSION}: import the kernel again"
    )]
    Version {
        /// The manifest.
        path: PathBuf,
        /// The version it names.
        found: u64,
    },
    /// It cannot be read or written.
    #[error("cannot access kernel manifest \"{path}\"")]
    Io {
        /// The manifest.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl KernelManifest {
    /// Reads the manifest of the kernel in `dir`.
    ///
    /// # Errors
    /// When there is none, or it is not one of version [`VERSION`].
    pub fn load(dir: &Path) -> Result<Self, ManifestError> {
        let path = dir.join(MANIFEST);
        let io_error = |source| ManifestError::Io {
            path: path.clone(),
            source,
        };
        let mut text = Vec::new();
        let file = File::open(&path).map_err(io_error)?;
        file.take(MAX_MANIFEST)
            .read_to_end(&mut text)
            .map_err(io_error)?;
        let invalid = |source| ManifestError::Invalid {
            path: path.clone(),
            source,
        };
        // The version first: another version may have other fields.
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(invalid)?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(found) if found != u64::from(VERSION) => Err(ManifestError::Version {
                path: path.clone(),
                found,
            }),
            _ => serde_json::from_value(value).map_err(invalid),
        }
    }

    /// Writes it as the manifest of `dir`, atomically and durably.
    pub(crate) fn store(&self, dir: &Path) -> Result<(), ManifestError> {
        let path = dir.join(MANIFEST);
        let mut text =
            serde_json::to_vec_pretty(self).map_err(|source| ManifestError::Invalid {
                path: path.clone(),
                source,
            })?;
        text.push(b'\n');
        durable::write_file(dir, MANIFEST, |writer| writer.write_all(&text))
            .map(|_| ())
            .map_err(|source| ManifestError::Io { path, source })
    }
}

/// Removes the manifest of `dir`, so that what else is there no longer counts as a kernel.
pub(crate) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(MANIFEST)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
