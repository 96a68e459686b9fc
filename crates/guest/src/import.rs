//! Imports a kernel into a directory of its own, and renews its initramfs when the agent changes.
//!
//! Both verbs hold the directory's lock, write every file under a temporary name and rename it, and
//! write the manifest last: a directory without one is an import that did not finish.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::agent::{self, AgentError};
use crate::cpio::{CpioError, padding};
use crate::digest::{Digest, HashingWriter};
use crate::durable;
use crate::kernel::{self, KernelError};
use crate::manifest::{self, FileRecord, KernelManifest, ManifestError, ModuleRecord};
use crate::modules::{self, Module, ModulesError};
use crate::{INITRAMFS, MANIFEST, MODULES_CPIO, VMLINUZ};

/// Why a kernel could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The kernel file.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The module tree.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The directory is in use: nothing in it was touched.
    #[error("cannot import a kernel into \"{0}\": it is not empty")]
    NotEmpty(PathBuf),
    /// A file of the import could not be written. Nothing of it is left.
    #[error("cannot write \"{path}\"")]
    Write {
        /// Which.
        path: PathBuf,
        /// The reason.
        #[source]
        source: CpioError,
    },
    /// The manifest could not be written. Nothing of the import is left.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Why an initramfs could not be renewed. The old one is still in place.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The kernel's manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The module archive is not the one that was imported.
    #[error("\"{0}\" is not what was imported: remove the kernel and import it again")]
    Changed(PathBuf),
    /// A file could not be read or written.
    #[error("cannot renew \"{path}\"")]
    Write {
        /// Which.
        path: PathBuf,
        /// The reason.
        #[source]
        source: CpioError,
    },
}

/// Imports the kernel `vmlinuz`, the modules of its release from `modules` and `agent` into
/// `out_dir`, which must exist and be empty. Without `modules` the kernel must have built in what a
/// guest needs.
///
/// When it returns, all is on disk, `manifest.json` included.
///
/// # Errors
/// When the kernel, the modules or the agent are not usable or a file cannot be written; `out_dir` is
/// then empty again.
pub fn import_kernel(
    vmlinuz: &Path,
    modules: Option<&Path>,
    agent: &Path,
    out_dir: &Path,
) -> Result<KernelManifest, ImportError> {
    let source = kernel::open(vmlinuz)?;
    let image = kernel::probe(vmlinuz, &source)?;
    let agent = agent::read_agent(agent)?;
    let picked = match modules {
        Some(dir) => modules::select(dir, &image.release)?,
        None => Vec::new(),
    };
    let _lock = lock_empty(out_dir)?;
    let written = (|| {
        let kernel = write(out_dir, VMLINUZ, |writer| {
            copy(&source.file, source.size, writer)
        })?;
        let modules_archive = write(out_dir, MODULES_CPIO, |writer| {
            modules::archive(&picked)?.write_to(writer)
        })?;
        let initramfs = write(out_dir, INITRAMFS, |writer| {
            compose(&out_dir.join(MODULES_CPIO), modules_archive, &agent, writer)
        })?;
        let manifest = KernelManifest {
            version: manifest::VERSION,
            release: image.release,
            banner: image.version,
            format: image.format,
            pvh: image.pvh,
            kernel,
            modules_archive,
            initramfs,
            agent: record_of(&agent),
            modules: picked.iter().map(module_record).collect(),
        };
        manifest.store(out_dir)?;
        Ok(manifest)
    })();
    if written.is_err() {
        discard(out_dir);
    }
    written
}

/// Writes the initramfs of the kernel in `dir` again if it holds another agent than `agent`; tells
/// whether it did. Guests that are starting keep the file they have opened.
///
/// # Errors
/// When the agent is not usable, the module archive was altered, or a file cannot be written.
pub fn refresh_initramfs(dir: &Path, agent: &Path) -> Result<bool, RefreshError> {
    let at = |name: &str| dir.join(name);
    let failed = |path: PathBuf, source: CpioError| RefreshError::Write { path, source };
    let _lock = durable::lock_dir(dir).map_err(|error| failed(dir.to_owned(), error.into()))?;
    let mut manifest = KernelManifest::load(dir)?;
    let agent = agent::read_agent(agent)?;
    let agent_record = record_of(&agent);
    if agent_record == manifest.agent && at(INITRAMFS).exists() {
        return Ok(false);
    }
    let modules = manifest.modules_archive;
    let written = durable::write_file(dir, INITRAMFS, |writer| {
        compose(&at(MODULES_CPIO), modules, &agent, writer)
    });
    let (sha256, size) = written.map_err(|source| match source {
        CpioError::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            RefreshError::Changed(at(MODULES_CPIO))
        }
        source => failed(at(INITRAMFS), source),
    })?;
    // A crash between the two leaves the old digest in the manifest: the next refresh writes again.
    manifest.initramfs = FileRecord { sha256, size };
    manifest.agent = agent_record;
    manifest.store(dir)?;
    Ok(true)
}

/// The initramfs: the module archive, padded, then the agent's. The kernel unpacks one after the
/// other. The agent's comes last, so that no module can take its place.
fn compose(
    modules: &Path,
    expected: FileRecord,
    agent: &[u8],
    writer: &mut dyn Write,
) -> Result<(), CpioError> {
    let mut hashing = HashingWriter::new(writer);
    let file = File::open(modules)?;
    io::copy(
        &mut BufReader::new(file).take(expected.size + 1),
        &mut hashing,
    )?;
    let (writer, sha256, size) = hashing.finish();
    if (FileRecord { sha256, size }) != expected {
        return Err(io::Error::from(io::ErrorKind::InvalidData).into());
    }
    let unaligned = usize::try_from(size % 4).unwrap_or(0);
    writer.write_all(&[0; 4][..padding(unaligned)])?;
    agent::archive(agent)?.write_to(writer)
}

/// Copies the first `size` bytes of `file`: all that was probed, and no more if it has grown.
fn copy(mut file: &File, size: u64, writer: &mut dyn Write) -> Result<(), CpioError> {
    file.rewind()?;
    let copied = io::copy(&mut file.take(size), writer)?;
    if copied == size {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
    }
}

fn write(
    dir: &Path,
    name: &str,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), CpioError>,
) -> Result<FileRecord, ImportError> {
    durable::write_file(dir, name, fill)
        .map(|(sha256, size)| FileRecord { sha256, size })
        .map_err(|source| ImportError::Write {
            path: dir.join(name),
            source,
        })
}

fn lock_empty(dir: &Path) -> Result<File, ImportError> {
    let failed = |error: io::Error| ImportError::Write {
        path: dir.to_owned(),
        source: error.into(),
    };
    let lock = durable::lock_dir(dir).map_err(failed)?;
    match fs::read_dir(dir).map_err(failed)?.next() {
        None => Ok(lock),
        Some(_) => Err(ImportError::NotEmpty(dir.to_owned())),
    }
}

/// Empties the directory after a failed import: the error that caused it is the one to report.
fn discard(dir: &Path) {
    let _ = manifest::remove(dir);
    for name in [VMLINUZ, MODULES_CPIO, INITRAMFS] {
        let _ = fs::remove_file(dir.join(name));
    }
    let _ = durable::sync_dir(dir);
    debug_assert!(!dir.join(MANIFEST).exists());
}

fn record_of(bytes: &[u8]) -> FileRecord {
    FileRecord {
        sha256: Digest::of(bytes),
        size: bytes.len() as u64,
    }
}

fn module_record(module: &Module) -> ModuleRecord {
    ModuleRecord {
        name: module.name.clone(),
        stage: module.stage,
        size: module.object.len() as u64,
    }
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
