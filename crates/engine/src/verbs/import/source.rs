//! Where the content of a template comes from.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use cowslip_image::{Archive, Base, Digest, Image, ImportError, Imported, Job, Sizing};
use cowslip_model::ImageConfig;

use super::Workshop;
use super::pull::RegistryImage;

/// Where the content of a template comes from.
pub enum Source {
    /// From this host, or a client.
    Local(Local),
    /// An image of a registry.
    Registry(RegistryImage),
}

/// Content that is at hand.
pub enum Local {
    /// A directory of this host: a root file system.
    Directory(PathBuf),
    /// A tar of a root file system: plain, gzip, zstd or xz.
    Tar(Box<dyn Read + Send>),
    /// A directory of this host: an OCI image layout, and which of its images.
    OciLayout(PathBuf, Option<String>),
    /// An OCI image layout in a tar, and which of its images.
    OciArchive(Box<dyn Read + Send>, Option<String>),
    /// What `docker save` wrote, and which of its images.
    DockerArchive(Box<dyn Read + Send>, Option<String>),
}

impl Source {
    /// What it is, for the user.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Local(local) => local.words().to_owned(),
            Self::Registry(image) => image.words(),
        }
    }
}

impl Local {
    /// What it is, for the user.
    fn words(&self) -> &'static str {
        match self {
            Self::Directory(_) => "directory",
            Self::Tar(_) => "tar",
            Self::OciLayout(..) => "OCI image layout",
            Self::OciArchive(..) => "OCI archive",
            Self::DockerArchive(..) => "docker archive",
        }
    }

    /// The place that it is read from, where it is no stream.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::Directory(path) | Self::OciLayout(path, _) => Some(path),
            Self::Tar(_) | Self::OciArchive(..) | Self::DockerArchive(..) => None,
        }
    }

    /// Reads an image's documents. Blocking.
    pub(super) fn open(self, workshop: &Workshop) -> Result<Opened, ImportError> {
        let job: Job<'_> = workshop.job();
        let platform = &workshop.platform;
        let image = match self {
            Self::Directory(path) => return Ok(Opened::Directory(path)),
            Self::Tar(reader) => return Ok(Opened::Tar(reader)),
            Self::OciLayout(path, tag) => Image::from_layout(&path, tag.as_deref(), platform)?,
            Self::OciArchive(reader, tag) => {
                let archive = Archive::read(reader, &job)?;
                Image::from_oci_archive(archive, tag.as_deref(), platform)?
            }
            Self::DockerArchive(reader, tag) => {
                let archive = Archive::read(reader, &job)?;
                Image::from_docker_archive(archive, tag.as_deref(), platform)?
            }
        };
        Ok(Opened::Image(Box::new(image)))
    }
}

/// A source whose documents, if it has any, are read and checked.
pub(super) enum Opened {
    Directory(PathBuf),
    Tar(Box<dyn Read + Send>),
    Image(Box<Image>),
}

impl Opened {
    /// Makes the template's image. Blocking.
    pub(super) fn import(
        self,
        base: Option<&Base>,
        job: &Job<'_>,
    ) -> Result<Imported, ImportError> {
        match self {
            Self::Directory(path) => cowslip_image::import_directory(&path, job),
            Self::Tar(reader) => cowslip_image::import_tar(reader, job),
            Self::Image(image) => cowslip_image::import_image(&image, base, job),
        }
    }

    /// What it says of how it is run.
    pub(super) fn config(&self) -> Option<ImageConfig> {
        let Self::Image(image) = self else {
            return None;
        };
        let config = image.config();
        let variable = |text: &String| {
            let (name, value) = text.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        };
        Some(ImageConfig {
            platform: Some(config.platform.to_string()),
            // Of two values of one variable the last one counts, as in a process.
            env: config.env.iter().filter_map(variable).collect(),
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
            workdir: config.working_dir.clone(),
            user: config.user.clone(),
            exposed_ports: config.exposed_ports.clone(),
            labels: config.labels.clone(),
            stop_signal: config.stop_signal.clone(),
        })
    }

    /// What the image is made of, where that is known before it is read.
    pub(super) fn layers_key(&self, sizing: Sizing) -> Option<LayersKey> {
        let Self::Image(image) = self else {
            return None;
        };
        Some(LayersKey {
            content: image.content(),
            size: sizing.min_bytes,
        })
    }
}

/// What a template's key says of its content.
pub(super) fn content_of(layers: &str) -> &str {
    layers
        .split_once(' ')
        .map_or(layers, |(content, _)| content)
}

/// What an image's template is made of, and how large its disk becomes at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LayersKey {
    content: Digest,
    size: u64,
}

impl fmt::Display for LayersKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.content, self.size)
    }
}
