//! Imports: read a source into a tree, write the tree, seal the image, publish it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::base::OpenBase;
use crate::digest::digest_file;
use crate::directory::Source;
use crate::error::ImportError;
use crate::ext4::{self, Contents, Plan, Watch};
use crate::job::{Imported, Job, Phase, Skipped};
use crate::node::Content;
use crate::spool::{BLOCK, BLOCK_U64, BlockSink, CHUNK, Spool};
use crate::tar::Destination;
use crate::tree::Tree;

/// Makes an image of a directory tree.
///
/// Symbolic links are copied, never followed; other file systems mounted inside are left out, as are
/// sockets, and are named in [`Imported::skipped`].
///
/// # Errors
/// [`ImportError`]; nothing is at the output then.
pub fn import_directory(source: &Path, job: &Job<'_>) -> Result<Imported, ImportError> {
    refuse_existing(job.output)?;
    job.progress.phase(Phase::Reading, None);
    let mut skipped = Vec::new();
    let mut tree = Tree::new(job.limits);
    let mut source = Source::open(source, job.owners)?;
    source.walk(&mut tree, watch(job), &mut skipped)?;
    build(job, tree, source, skipped, |source| {
        source.verify_unchanged()
    })
}

/// Makes an image of a tar stream: plain, or compressed with gzip, zstd or xz.
///
/// The stream is read to its end. Owners, modes, device nodes and attributes are taken from the
/// archive and need no privilege.
///
/// # Errors
/// [`ImportError`]; nothing is at the output then.
pub fn import_tar(reader: impl Read, job: &Job<'_>) -> Result<Imported, ImportError> {
    refuse_existing(job.output)?;
    job.progress.phase(Phase::Reading, None);
    let mut skipped = Vec::new();
    let mut tree = Tree::new(job.limits);
    let mut spool = Spool::create(job.work_dir)?;
    let to = Destination {
        tree: &mut tree,
        spool: &mut spool,
        watch: watch(job),
        skipped: &mut skipped,
        before: 0,
    };
    crate::tar::read(reader, to)?;
    build_spooled(job, tree, spool, None, skipped)
}

/// Writes a tree whose contents are in the spool, or in the image that has the lower layers.
pub(crate) fn build_spooled(
    job: &Job<'_>,
    tree: Tree,
    spool: Spool,
    base: Option<OpenBase<'_>>,
    skipped: Vec<Skipped>,
) -> Result<Imported, ImportError> {
    let buffer = vec![0; CHUNK];
    let contents = Spooled {
        spool,
        base,
        buffer,
        work_dir: job.work_dir,
    };
    build(job, tree, contents, skipped, |_| Ok(()))
}

pub(crate) fn watch<'a>(job: &Job<'a>) -> Watch<'a> {
    Watch {
        progress: job.progress,
        cancel: job.cancel,
    }
}

/// Writes the tree; `verify` has the last word on whether the contents were what the tree says.
fn build<C: Contents>(
    job: &Job<'_>,
    mut tree: Tree,
    mut contents: C,
    mut skipped: Vec<Skipped>,
    verify: impl FnOnce(&C) -> Result<(), ImportError>,
) -> Result<Imported, ImportError> {
    if tree.is_empty() {
        return Err(ImportError::Empty);
    }
    let added = tree.ensure_lost_and_found()?;
    let plan = Plan::new(&tree)?;
    job.progress.phase(Phase::Writing, Some(plan.content()));
    let image = Scratch(job.work_dir.join("image"));
    let file = ext4::format(job.work_dir, &image.0, job.label, &plan, &job.sizing)?;
    let superblock = ext4::populate(
        &file,
        &image.0,
        &plan,
        &mut contents,
        watch(job),
        &mut skipped,
    )?;
    verify(&contents)?;
    drop(contents);
    let size = superblock.size();
    job.progress.phase(Phase::Sealing, Some(size));
    let digest = seal(&file, &image.0, job)?;
    publish(&image.0, job.output)?;
    Ok(Imported {
        digest,
        size,
        used: superblock.used(),
        entries: plan.names() - u64::from(added),
        skipped,
    })
}

/// Syncs and hashes at once: one waits for the disk, the other for the processor.
fn seal(file: &File, path: &Path, job: &Job<'_>) -> Result<crate::Digest, ImportError> {
    let (synced, hashed) = std::thread::scope(|scope| {
        let sync = scope.spawn(|| file.sync_all());
        let hashed = digest_file(file, |done| {
            job.progress.advance(done, 0);
            job.cancel.is_cancelled()
        });
        let synced = sync
            .join()
            .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        (synced, hashed)
    });
    job.cancel.check()?;
    synced.map_err(|e| ImportError::write("sync", path, e))?;
    hashed.map_err(|e| ImportError::write("read back", path, e))
}

/// Gives the image its name, durably.
fn publish(image: &Path, output: &Path) -> Result<(), ImportError> {
    let write = |operation| move |e: io::Error| ImportError::write(operation, output, e);
    std::fs::set_permissions(image, std::fs::Permissions::from_mode(0o600))
        .map_err(write("set the mode of"))?;
    // A second name, not a rename: it never replaces what came first, on any file system.
    std::fs::hard_link(image, output).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => ImportError::OutputExists(output.to_owned()),
        _ => ImportError::write("publish", output, error),
    })?;
    let parent = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| {
            // Not durable is not published.
            let _ = std::fs::remove_file(output);
            ImportError::write("sync the directory of", output, error)
        })
}

pub(crate) fn refuse_existing(output: &Path) -> Result<(), ImportError> {
    match output.symlink_metadata() {
        Ok(_) => Err(ImportError::OutputExists(output.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ImportError::write("look for", output, error)),
    }
}

/// A scratch name that goes when the import ends; a published image has its own by then.
struct Scratch(std::path::PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Should this fail, the caller removes the directory that it is in.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Contents that a tar left in the spool, and those of a base.
struct Spooled<'a> {
    spool: Spool,
    base: Option<OpenBase<'a>>,
    buffer: Vec<u8>,
    work_dir: &'a Path,
}

impl Contents for Spooled<'_> {
    fn copy(
        &mut self,
        path: &dyn Fn() -> Vec<u8>,
        content: &Content,
        sink: &mut dyn BlockSink,
    ) -> Result<(), ImportError> {
        let runs = match (content, &mut self.base) {
            (Content::Spooled(runs), _) => runs,
            (Content::InBase(inode), Some(base)) => return base.copy(*inode, path, sink),
            (Content::InBase(_), None) | (Content::InSource(_), _) => return Ok(()),
        };
        for run in runs {
            let mut done = 0;
            while done < run.count {
                let most = (CHUNK / BLOCK) as u64;
                let blocks = most.min(run.count - done);
                let bytes = &mut self.buffer[..usize::try_from(blocks).unwrap_or(0) * BLOCK];
                self.spool
                    .read(run.spool + done * BLOCK_U64, bytes)
                    .map_err(|e| ImportError::write("read back contents in", self.work_dir, e))?;
                sink.put(run.block + done, bytes)?;
                done += blocks;
            }
        }
        Ok(())
    }
}
