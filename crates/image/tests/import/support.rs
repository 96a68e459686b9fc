//! A place for one import, and the eyes to look into its image.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cowslip_image::{
    Base, Cancel, ExportError, ExportJob, Exported, Image, ImportError, Imported, Job, Limits,
    NoProgress, Owners, Progress, Sizing, check_image, export_tar, import_directory, import_image,
    import_tar,
};

pub(crate) struct Bench {
    dir: tempfile::TempDir,
    pub(crate) limits: Limits,
    pub(crate) sizing: Sizing,
    pub(crate) cancel: Cancel,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("work")).unwrap();
        let sizing = Sizing {
            free_bytes: 1 << 20,
            ..Sizing::default()
        };
        Self {
            dir,
            limits: Limits::default(),
            sizing,
            cancel: Cancel::default(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.path("image")
    }

    fn run(
        &self,
        progress: &dyn Progress,
        import: impl FnOnce(&Job<'_>) -> Result<Imported, ImportError>,
    ) -> Result<Imported, ImportError> {
        let result = self.job_watched(progress, import);
        match &result {
            Ok(imported) => {
                assert_clean(&self.image());
                assert_eq!(self.image().metadata().unwrap().len(), imported.size);
                cowslip_image::verify_image(&self.image(), &imported.digest, imported.size)
                    .unwrap();
            }
            Err(_) => {
                assert!(!self.image().exists(), "a failed import left an image");
                let left: Vec<_> = std::fs::read_dir(self.path("work"))
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name())
                    .filter(|name| name != "mke2fs.conf")
                    .collect();
                assert!(left.is_empty(), "a failed import left {left:?}");
            }
        }
        result
    }

    /// A job for what makes no image.
    pub(crate) fn job<T>(&self, make: impl FnOnce(&Job<'_>) -> T) -> T {
        self.job_watched(&NoProgress, make)
    }

    fn job_watched<T>(&self, progress: &dyn Progress, make: impl FnOnce(&Job<'_>) -> T) -> T {
        make(&Job {
            work_dir: &self.path("work"),
            output: &self.image(),
            label: "cowslip",
            limits: self.limits,
            sizing: self.sizing,
            owners: Owners::Keep,
            progress,
            cancel: &self.cancel,
        })
    }

    pub(crate) fn image_of(&self, image: &Image) -> Result<Imported, ImportError> {
        self.run(&NoProgress, |job| import_image(image, None, job))
    }

    pub(crate) fn on_base(&self, image: &Image, base: &Base) -> Result<Imported, ImportError> {
        self.run(&NoProgress, |job| import_image(image, Some(base), job))
    }

    pub(crate) fn checked(&self, image: &Image) -> Result<u64, ImportError> {
        self.job(|job| check_image(image, job))
    }

    pub(crate) fn tar(&self, reader: impl Read) -> Result<Imported, ImportError> {
        self.run(&NoProgress, |job| import_tar(reader, job))
    }

    pub(crate) fn directory(&self, source: &Path) -> Result<Imported, ImportError> {
        self.directory_watched(source, &NoProgress)
    }

    pub(crate) fn directory_watched(
        &self,
        source: &Path,
        progress: &dyn Progress,
    ) -> Result<Imported, ImportError> {
        self.run(progress, |job| import_directory(source, job))
    }

    /// Exports an image as a tar, under the bench's limits.
    pub(crate) fn export_of(&self, image: &Path) -> Result<(Vec<u8>, Exported), ExportError> {
        let mut bytes = Vec::new();
        let exported = self.exporting(|job| export_tar(image, &mut bytes, job))?;
        assert_eq!(exported.bytes, bytes.len() as u64);
        Ok((bytes, exported))
    }

    /// The image as a tar.
    pub(crate) fn exported(&self) -> Vec<u8> {
        let (bytes, exported) = self.export_of(&self.image()).unwrap();
        assert!(exported.skipped.is_empty(), "{:?}", exported.skipped);
        bytes
    }

    pub(crate) fn exporting<T>(&self, export: impl FnOnce(&ExportJob<'_>) -> T) -> T {
        let result = export(&ExportJob {
            work_dir: &self.path("work"),
            limits: self.limits,
            progress: &NoProgress,
            cancel: &self.cancel,
        });
        assert!(!self.path("work/layer").exists());
        result
    }

    /// Runs one debugfs command on the image.
    pub(crate) fn debugfs(&self, command: &str) -> String {
        let output = tool("debugfs", &["-R", command, self.image().to_str().unwrap()]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A file's bytes, read out of the image.
    pub(crate) fn read(&self, path: &str) -> Vec<u8> {
        let image = self.image();
        tool(
            "debugfs",
            &["-R", &format!("cat {path}"), image.to_str().unwrap()],
        )
        .stdout
    }
}

pub(crate) fn assert_clean(image: &Path) {
    let output = tool("e2fsck", &["-fn", image.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
}

/// Runs a program of e2fsprogs, which users often do not have on PATH.
pub(crate) fn tool(program: &str, arguments: &[&str]) -> Output {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let program = path
        .split(':')
        .map(|dir| Path::new(dir).join(program))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("{program} is not installed: install e2fsprogs"));
    Command::new(program)
        .env("DEBUGFS_PAGER", "__none__")
        .args(arguments)
        .output()
        .unwrap()
}

/// Unpacks a tar as GNU tar does for root, with all attributes.
pub(crate) fn gnu_untar(archive: &[u8], directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    let path = directory.with_extension("unpacked.tar");
    std::fs::write(&path, archive).unwrap();
    let output = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner"])
        .args(["--warning=no-timestamp", "-xpf"])
        .arg(&path)
        .arg("-C")
        .arg(directory)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
}

/// Runs GNU tar and gives what it writes.
pub(crate) fn gnu_tar(directory: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .arg("-C")
        .arg(directory)
        .args(arguments)
        .args(["--sort=name", "-cf", "-", "."])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    output.stdout
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An archive in the making, names taken as they are.
pub(crate) struct Archive(::tar::Builder<Vec<u8>>);

pub(crate) fn archive() -> Archive {
    Archive(::tar::Builder::new(Vec::new()))
}

impl Archive {
    /// Adds an entry, with names that the library would not let through.
    pub(crate) fn raw(
        mut self,
        kind: u8,
        name: &str,
        link: &str,
        data: &[u8],
        change: impl FnOnce(&mut ::tar::Header),
    ) -> Self {
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(::tar::EntryType::new(kind));
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        change(&mut header);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.raw(b'0', name, "", data, |_| {})
    }

    pub(crate) fn directory(self, name: &str) -> Self {
        self.raw(b'5', name, "", b"", |header| header.set_mode(0o755))
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(b'2', name, target, b"", |_| {})
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.raw(b'1', name, target, b"", |_| {})
    }

    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0
            .append_pax_extensions(records.iter().copied())
            .unwrap();
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}
