//! Templates and kernels, and where they come from.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ErrorBody;
use crate::id::{KernelId, TemplateId};
use crate::image::ImageConfig;
use crate::name::Name;
use crate::size::ByteSize;
use crate::time::Timestamp;

/// A template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Template {
    /// Its id.
    pub id: TemplateId,
    /// The names it goes by.
    pub names: Vec<Name>,
    /// sha256 of the image.
    pub digest: String,
    /// Size of its disk, in bytes.
    pub size: ByteSize,
    /// Bytes of it on the host's disk.
    pub used: ByteSize,
    /// Files, directories and links in it.
    pub entries: u64,
    /// "directory", "tar", "OCI image layout", "OCI archive" or "docker archive", a registry's
    /// "docker://…", or the sandbox or checkpoint that it was made from: `sandbox "web"`.
    pub source: String,
    /// How it is run, where its image says so: the defaults of its sandboxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ImageConfig>,
    /// When it was imported.
    pub created_at: Timestamp,
    /// Layers that stand on it.
    pub layers: u64,
}

/// A guest kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Kernel {
    /// Its id.
    pub id: KernelId,
    /// Its name.
    pub name: Name,
    /// What `uname -r` says in the guest.
    pub release: String,
    /// sha256 of the kernel image.
    pub digest: String,
    /// "bzImage" or "elf".
    pub format: String,
    /// Modules in its initramfs.
    pub modules: u64,
    /// Bytes of kernel and initramfs.
    pub size: ByteSize,
    /// When it was imported.
    pub created_at: Timestamp,
    /// Used where a request names no kernel.
    pub default: bool,
}

/// Import a kernel from files on the engine's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelImportRequest {
    /// Its name.
    pub name: Name,
    /// Absolute path of the kernel image.
    pub image: String,
    /// Absolute path of its modules' directory.
    #[serde(default)]
    pub modules: Option<String>,
}

/// Import a template from a place that the engine reads itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// Its name.
    pub name: Name,
    /// The place.
    pub source: ImportSource,
    /// What is made of it.
    #[serde(default)]
    pub options: ImportOptions,
}

/// A place that the engine reads itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ImportSource {
    /// A directory on the engine's host: a root file system.
    Directory {
        /// Absolute.
        path: String,
    },
    /// A directory on the engine's host: an OCI image layout.
    OciLayout {
        /// Absolute.
        path: String,
        /// Which of its images; none: the only one.
        #[serde(default)]
        tag: Option<String>,
    },
    /// A registry, through the engine's cache.
    Registry {
        /// `REGISTRY/REPOSITORY[:TAG][@DIGEST]`.
        reference: String,
        /// When the registry is asked.
        #[serde(default)]
        pull: PullPolicy,
        /// Who asks; none: nobody in particular.
        #[serde(default)]
        credentials: Option<RegistryCredentials>,
    },
}

/// When a registry is asked for an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PullPolicy {
    /// When the cache does not have the whole image, as it was when it was pulled last.
    #[default]
    Missing,
    /// Always, for what the tag is now.
    Always,
    /// Never: it is in the cache, or the import fails.
    Never,
}

/// Who one is to a registry. They are used for one import, and are kept nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RegistryCredentials {
    /// A user with a password, or with a token in its place.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that the registry's token server gives others for.
    IdentityToken {
        /// It.
        token: String,
    },
}

impl std::fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets are in no log.
        match self {
            Self::Basic { user, .. } => write!(f, "Basic({user:?}, ..)"),
            Self::IdentityToken { .. } => f.write_str("IdentityToken(..)"),
        }
    }
}

/// What is made of an import's source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ImportOptions {
    /// The disk is at least this large, in bytes; none: the content and some room.
    pub size: Option<ByteSize>,
    /// Which of an image's platforms, as `linux/arm64`; none: the host's.
    pub platform: Option<String>,
    /// The program that `run` starts; none: what the image says.
    pub entrypoint: Option<Vec<String>>,
}

/// What the bytes are that an import is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImportFormat {
    /// A tar of a root file system: plain, gzip, zstd or xz.
    #[default]
    Tar,
    /// An OCI image layout in a tar.
    OciArchive,
    /// What `docker save` wrote.
    DockerArchive,
}

/// What a template is exported as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExportFormat {
    /// A tar of its root file system.
    #[default]
    Tar,
    /// An OCI image layout in a tar, with one layer and how it is run.
    OciArchive,
}

/// A line of the answer to an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ImportMessage {
    /// How far it is.
    Progress {
        /// "reading", "building", "hashing", …
        phase: String,
        /// Entries so far.
        entries: u64,
        /// Bytes so far.
        bytes: u64,
    },
    /// How far the download of a layer is.
    Layer {
        /// Its digest.
        digest: String,
        /// Its size, in bytes.
        total: u64,
        /// Bytes that are there; all of them once it is whole and checked.
        bytes: u64,
    },
    /// It is there.
    Done {
        /// The template.
        template: Box<Template>,
        /// What was left out, and why.
        skipped: Vec<String>,
        /// False when the same content was there already.
        new: bool,
    },
    /// It failed; the last message.
    Failed {
        /// Why.
        error: ErrorBody,
    },
}

/// Make a template of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FlattenRequest {
    /// Name or id of the sandbox or checkpoint.
    pub source: String,
    /// The template's name.
    pub name: Name,
    /// How it is run; none: as the template below says.
    #[serde(default)]
    pub config: Option<ImageConfig>,
}
