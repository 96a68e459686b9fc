//! The tree from its root, directory by directory, in the order of its names.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::Path;

use super::content::{Contents, CopyError};
use super::member::{Flag, Member, Writer};
use super::{ExportError, ExportJob};
use crate::ext4::read::{Inode, InodeKind, LOST_AND_FOUND, Name, ROOT, ReadError, Reader};
use crate::job::Skipped;
use crate::node::Xattr;

/// Names, link targets, attributes and paths that are kept may take this much memory, in bytes; what
/// the importer allows as well.
const MAX_TEXT_BYTES: u64 = 256 << 20;
/// A name of a layer that begins so is no file.
const WHITEOUT: &[u8] = b".wh.";

/// A directory on the way to the current entry.
struct Level {
    ino: u32,
    /// What of the path is its own.
    path: usize,
    /// Those that are still to come.
    names: std::vec::IntoIter<Name>,
}

/// An export under way.
pub(super) struct Walk<'a, W> {
    reader: &'a Reader,
    image: &'a Path,
    job: ExportJob<'a>,
    is_layer: bool,
    writer: Writer<W>,
    contents: Contents<'a>,
    /// The entry that is read, or the directory; empty for the root.
    path: Vec<u8>,
    directories: HashSet<u32>,
    /// Where files that have several names were written.
    first_names: HashMap<u32, Box<[u8]>>,
    entries: u64,
    /// Names seen, written or not.
    names: u64,
    content: u64,
    text: u64,
    skipped: Vec<Skipped>,
}

impl<'a, W: Write> Walk<'a, W> {
    pub(super) fn new(
        reader: &'a Reader,
        image: &'a Path,
        writer: Writer<W>,
        job: ExportJob<'a>,
        is_layer: bool,
    ) -> Self {
        Self {
            reader,
            image,
            job,
            is_layer,
            writer,
            contents: Contents::new(reader),
            path: Vec::new(),
            directories: HashSet::new(),
            first_names: HashMap::new(),
            entries: 0,
            names: 0,
            content: 0,
            text: 0,
            skipped: Vec::new(),
        }
    }

    /// The writer, the number of names written, and what was left out.
    pub(super) fn into_parts(self) -> (Writer<W>, u64, Vec<Skipped>) {
        (self.writer, self.entries, self.skipped)
    }

    /// Writes everything.
    pub(super) fn tree(&mut self) -> Result<(), ExportError> {
        let root = self.reader.inode(ROOT).map_err(|e| self.reading(e))?;
        if root.kind != InodeKind::Directory {
            let why = "the root is not a directory";
            return Err(self.reading(ReadError::Damaged { ino: ROOT, why }));
        }
        let xattrs = self.xattrs(&root)?;
        self.write(&root, b"./", b"", &xattrs)?;
        let mut levels = vec![self.enter(&root, ROOT)?];
        while let Some(level) = levels.last_mut() {
            self.path.truncate(level.path);
            let parent = level.ino;
            let Some(name) = level.names.next() else {
                levels.pop();
                continue;
            };
            if let Some(inner) = self.entry(&name, parent, levels.len())? {
                levels.push(inner);
            }
        }
        Ok(())
    }

    /// Writes one entry; for a directory gives what is in it. `depth` is the number of names in its path.
    fn entry(
        &mut self,
        name: &Name,
        parent: u32,
        depth: usize,
    ) -> Result<Option<Level>, ExportError> {
        let limits = self.job.limits;
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(&name.name);
        if self.path.len() > limits.max_path_len {
            let limit = limits.max_path_len as u64;
            return Err(ExportError::limit(&self.path, limit, "bytes of path"));
        }
        if depth > limits.max_depth {
            let limit = limits.max_depth as u64;
            return Err(ExportError::limit(&self.path, limit, "directories deep"));
        }
        if self.is_layer && name.name.starts_with(WHITEOUT) {
            let entry = crate::error::show(&self.path);
            return Err(ExportError::Whiteout { entry });
        }
        let inode = self.reader.inode(name.ino).map_err(|e| self.reading(e))?;
        if inode.kind == InodeKind::Socket {
            self.leave_out("sockets have no meaning without the program that listens");
            return Ok(None);
        }
        if inode.kind == InodeKind::Directory {
            return self.directory(&inode, parent);
        }
        let path = std::mem::take(&mut self.path);
        let result = self.file(&inode, &path);
        self.path = path;
        result.map(|()| None)
    }

    fn directory(&mut self, inode: &Inode, parent: u32) -> Result<Option<Level>, ExportError> {
        let level = self.enter(inode, parent)?;
        let xattrs = self.xattrs(inode)?;
        let made_by_mke2fs = self.path == b"lost+found"
            && inode.ino == LOST_AND_FOUND
            && (inode.uid, inode.gid, inode.mode) == (0, 0, 0o700)
            && xattrs.is_empty()
            && level.names.as_slice().is_empty();
        if made_by_mke2fs {
            return Ok(None);
        }
        let path = [&self.path[..], b"/"].concat();
        self.write(inode, &path, b"", &xattrs)?;
        self.entries += 1;
        Ok(Some(level))
    }

    /// Reads the names of a directory that was not read before.
    fn enter(&mut self, inode: &Inode, parent: u32) -> Result<Level, ExportError> {
        if !self.directories.insert(inode.ino) {
            let why = "it is a directory with two names";
            return Err(self.reading(ReadError::Damaged {
                ino: inode.ino,
                why,
            }));
        }
        let (mut names, mut text) = (self.names, self.text);
        let most = self.job.limits.max_entries;
        let mut admit = |length: usize| {
            names += 1;
            text += length as u64;
            let (limit, what) = match () {
                () if names > most => (most, "entries"),
                () if text > MAX_TEXT_BYTES => (MAX_TEXT_BYTES, TEXT),
                () => return Ok(()),
            };
            Err(ReadError::Limit { limit, what })
        };
        let found = self.reader.names(inode, parent, &mut admit);
        (self.names, self.text) = (names, text);
        Ok(Level {
            ino: inode.ino,
            path: self.path.len(),
            names: found.map_err(|e| self.reading(e))?.into_iter(),
        })
    }

    /// Writes what is no directory.
    fn file(&mut self, inode: &Inode, path: &[u8]) -> Result<(), ExportError> {
        let reading = |error| ExportError::reading(error, self.image, path);
        if inode.links > 1 {
            if let Some(first) = self.first_names.get(&inode.ino) {
                let first = first.clone();
                let mut member = describe(inode, path, &first, &[]);
                member.flag = Flag::HardLink;
                member.device = None;
                self.writer.begin(&member).map_err(ExportError::write)?;
                self.entries += 1;
                self.advance();
                return Ok(());
            }
            self.admit_text(path, path.len())?;
            self.first_names.insert(inode.ino, path.into());
        }
        let target = match inode.kind {
            InodeKind::Symlink => self.reader.symlink_target(inode).map_err(reading)?,
            _ => Vec::new(),
        };
        let xattrs = self.xattrs_at(inode, path)?;
        if inode.kind != InodeKind::File {
            self.write(inode, path, &target, &xattrs)?;
            self.entries += 1;
            return Ok(());
        }
        let limit = self.job.limits.max_bytes;
        self.content = match self.content.checked_add(inode.size) {
            Some(content) if content <= limit => content,
            _ => return Err(ExportError::limit(path, limit, "bytes of content")),
        };
        let member = describe(inode, path, b"", &xattrs);
        let (progress, entries) = (self.job.progress, self.entries);
        let advance = |bytes| progress.advance(bytes, entries);
        self.contents
            .copy(inode, member, &mut self.writer, &advance)
            .map_err(|error| match error {
                CopyError::Read(error) => ExportError::reading(error, self.image, path),
                CopyError::Write(error) => error,
            })?;
        self.entries += 1;
        self.advance();
        Ok(())
    }

    /// Writes an entry that stores nothing.
    fn write(
        &mut self,
        inode: &Inode,
        path: &[u8],
        target: &[u8],
        xattrs: &[Xattr],
    ) -> Result<(), ExportError> {
        let member = describe(inode, path, target, xattrs);
        self.writer.begin(&member).map_err(ExportError::write)?;
        self.advance();
        Ok(())
    }

    fn xattrs(&mut self, inode: &Inode) -> Result<Vec<Xattr>, ExportError> {
        let path = match self.path.is_empty() {
            true => b".".to_vec(),
            false => self.path.clone(),
        };
        self.xattrs_at(inode, &path)
    }

    fn xattrs_at(&mut self, inode: &Inode, path: &[u8]) -> Result<Vec<Xattr>, ExportError> {
        let skipped = &mut self.skipped;
        let mut leave_out = |name: &[u8], why: &str| {
            let why = format!("its attribute \"{}\": {why}", crate::error::show(name));
            crate::tar::note(skipped, path, &why);
        };
        let mut xattrs = self
            .reader
            .xattrs(inode, &self.job.limits, &mut leave_out)
            .map_err(|e| ExportError::reading(e, self.image, path))?;
        // A record ends its key at the first of these, so that it would come back as another.
        for xattr in xattrs.extract_if(.., |xattr| xattr.name.contains(&b'=')) {
            leave_out(&xattr.name, "a tar cannot have \"=\" in its name");
        }
        let bytes = xattrs.iter().map(|x| x.name.len() + x.value.len()).sum();
        self.admit_text(path, bytes)?;
        Ok(xattrs)
    }

    fn admit_text(&mut self, path: &[u8], bytes: usize) -> Result<(), ExportError> {
        self.text += bytes as u64;
        match self.text > MAX_TEXT_BYTES {
            true => Err(ExportError::limit(path, MAX_TEXT_BYTES, TEXT)),
            false => Ok(()),
        }
    }

    fn leave_out(&mut self, why: &str) {
        crate::tar::note(&mut self.skipped, &self.path, why);
    }

    fn advance(&self) {
        self.job.progress.advance(self.writer.bytes(), self.entries);
    }

    /// An error of the reader at the current path.
    fn reading(&self, error: ReadError) -> ExportError {
        let path = match self.path.is_empty() {
            true => &b"."[..],
            false => &self.path,
        };
        ExportError::reading(error, self.image, path)
    }
}

const TEXT: &str = "bytes of names, link targets and attributes";

/// What the header says of an inode.
fn describe<'m>(
    inode: &Inode,
    path: &'m [u8],
    target: &'m [u8],
    xattrs: &'m [Xattr],
) -> Member<'m> {
    let (flag, device) = match inode.kind {
        InodeKind::Directory => (Flag::Directory, None),
        InodeKind::Symlink => (Flag::Symlink, None),
        InodeKind::CharDevice(device) => (Flag::CharDevice, Some(device)),
        InodeKind::BlockDevice(device) => (Flag::BlockDevice, Some(device)),
        InodeKind::Fifo => (Flag::Fifo, None),
        // Sockets are left out before.
        InodeKind::File | InodeKind::Socket => (Flag::File, None),
    };
    Member {
        flag,
        path,
        target,
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        mtime: inode.mtime,
        device,
        xattrs,
        stored: 0,
        sparse: None,
    }
}
