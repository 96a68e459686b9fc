//! An archive around an image: its members are read by their offsets, and never unpacked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{BlobDigest, Blobs, ImageError};
use crate::compression::{self, Compression, SniffError};
use crate::error::{ImportError, show};
use crate::job::{Job, Phase};
use crate::spool::CHUNK;
use crate::tar::{Member, index};

/// Links of an archive that follow one another are no more than this.
const MAX_LINKS: usize = 8;

/// A tar around an image, indexed: what `docker save` and `skopeo copy … oci-archive:` write.
#[derive(Debug)]
pub struct Archive {
    file: File,
    members: BTreeMap<Vec<u8>, Member>,
}

impl Archive {
    /// Opens an archive. A plain one is read where it is; a compressed one, or one that is no regular
    /// file, is copied to [`Job::work_dir`] first.
    ///
    /// # Errors
    /// When it cannot be read, or is no tar.
    pub fn open(path: &Path, job: &Job<'_>) -> Result<Self, ImportError> {
        let read = |operation| {
            move |source| ImageError::Read {
                operation,
                path: path.to_owned(),
                source,
            }
        };
        let mut file = File::open(path).map_err(read("open"))?;
        if !file.metadata().map_err(read("look at"))?.is_file() {
            return Self::read(file, job);
        }
        let mut magic = Vec::new();
        Read::by_ref(&mut file)
            .take(6)
            .read_to_end(&mut magic)
            .and_then(|_| file.rewind())
            .map_err(read("read"))?;
        match Compression::of(&magic).map_err(ImportError::NotATar)? {
            Compression::None => Self::index(file, job),
            _ => Self::read(file, job),
        }
    }

    /// Reads an archive off a stream, plain or compressed, into a file of [`Job::work_dir`] that has
    /// no name and goes with the archive.
    ///
    /// # Errors
    /// When it cannot be read or written, is no tar, or is longer than [`Limits::max_bytes`]
    /// decompressed.
    ///
    /// [`Limits::max_bytes`]: crate::Limits::max_bytes
    pub fn read(reader: impl Read, job: &Job<'_>) -> Result<Self, ImportError> {
        job.progress.phase(Phase::Reading, None);
        let failed = |source| ImportError::ReadTar {
            at: "of the image".to_owned(),
            source,
        };
        let mut reader = compression::decoder(reader).map_err(|error| match error {
            SniffError::Unknown(why) => ImportError::NotATar(why),
            SniffError::Read(source) => failed(source),
        })?;
        let path = job.work_dir.join("archive");
        let write = |operation| {
            let path = &path;
            move |source: io::Error| ImportError::write(operation, path, source)
        };
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(write("create"))?;
        std::fs::remove_file(&path).map_err(write("unlink"))?;
        let mut buffer = vec![0; CHUNK];
        let mut size = 0;
        loop {
            job.cancel.check()?;
            let got = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            size += got as u64;
            if size > job.limits.max_bytes {
                let limit = job.limits.max_bytes;
                let what = "decompressed bytes";
                return Err(ImportError::limit(b"(the whole archive)", limit, what));
            }
            file.write_all(&buffer[..got]).map_err(write("write"))?;
            job.progress.advance(size, 0);
        }
        Self::index(file, job)
    }

    fn index(file: File, job: &Job<'_>) -> Result<Self, ImportError> {
        let members = index(&file, job.cancel)?;
        Ok(Self { file, members })
    }

    /// Whether there is something of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.members.contains_key(name.as_bytes())
    }

    /// Finds a file, through links of the archive, which cannot leave it; `None` when there is none.
    pub(super) fn find(&self, name: &str) -> Result<Option<Section<'_>>, ImageError> {
        let wrong = |why: &str| {
            ImageError::document(
                format!("archive's member \"{}\"", show(name.as_bytes())),
                why,
            )
        };
        let mut path =
            normal(&[], name.as_bytes()).ok_or_else(|| wrong("it leaves the archive"))?;
        for _ in 0..MAX_LINKS {
            let parent = match path.iter().rposition(|byte| *byte == b'/') {
                Some(slash) => &path[..slash],
                None => &[],
            };
            path = match self.members.get(&path) {
                None => return Ok(None),
                Some(Member::File { offset, size }) => {
                    return Ok(Some(Section {
                        file: &self.file,
                        offset: *offset,
                        size: *size,
                    }));
                }
                Some(Member::Symlink(target)) => normal(parent, target),
                Some(Member::HardLink(target)) => normal(&[], target),
                Some(Member::Other) => return Err(wrong("it is not a file")),
            }
            .ok_or_else(|| wrong("it is a link that leaves the archive"))?;
        }
        Err(wrong("it is a link of links"))
    }
}

impl Blobs for Archive {
    fn open(&self, digest: &BlobDigest) -> io::Result<Option<Box<dyn Read + '_>>> {
        let name = format!("blobs/{}/{}", digest.algorithm(), digest.hex());
        let found = self.find(&name).map_err(io::Error::other)?;
        Ok(found.map(|section| Box::new(section) as Box<dyn Read>))
    }
}

/// A stretch of an archive: one member's bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section<'a> {
    file: &'a File,
    offset: u64,
    /// What is left of it, in bytes.
    pub(super) size: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.size).unwrap_or(usize::MAX);
        let take = bytes.len().min(most);
        let got = self.file.read_at(&mut bytes[..take], self.offset)?;
        self.offset += got as u64;
        self.size -= got as u64;
        Ok(got)
    }
}

/// A path as the archive's members are named; `None` when it is absolute or leaves the archive.
fn normal(parent: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    if path.first() == Some(&b'/') {
        return None;
    }
    let mut names: Vec<&[u8]> = Vec::new();
    for name in parent
        .split(|b| *b == b'/')
        .chain(path.split(|b| *b == b'/'))
    {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()?),
            name => names.push(name),
        }
    }
    Some(names.join(&b'/'))
}
