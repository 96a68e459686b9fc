//! Writes `newc` cpio archives, the format of an initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! The same entries give the same bytes: they are sorted by path, inode numbers count up from 1, and
//! owners and times are zero. A directory sorts before what it holds, as the kernel's unpacker needs.
//! Several archives may follow one another in an initramfs if each begins on a multiple of four
//! bytes; the archives written here end on one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// The most entries an archive may have, parents included.
pub const MAX_ENTRIES: usize = 1 << 16;
/// The longest path in bytes, with its NUL (the kernel's `PATH_MAX`).
pub const MAX_PATH: usize = 4096;

/// Why an entry or an archive cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum CpioError {
    /// A path that the unpacker would refuse or misread.
    #[error("\"{path}\" is not a path for an archive: {reason}")]
    Path {
        /// The offending path, shortened.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two entries with one path, or a file in the place of a directory.
    #[error("\"{0}\" is in the archive already")]
    Duplicate(String),
    /// Over [`MAX_ENTRIES`].
    #[error("an archive cannot hold more than {MAX_ENTRIES} entries")]
    TooMany,
    /// A file over the 32 bits that the format has for its length.
    #[error("\"{0}\" is too large for an archive: 4 GiB is the most")]
    TooLarge(String),
    /// The writer failed.
    #[error("cannot write the archive")]
    Io(#[from] io::Error),
}

#[derive(Debug, Clone)]
enum Node<'a> {
    Directory,
    File(Cow<'a, [u8]>),
    Symlink(String),
    CharDevice { major: u32, minor: u32 },
}

#[derive(Debug, Clone)]
struct Entry<'a> {
    node: Node<'a>,
    permissions: u32,
}

/// The entries of an archive, by path. Paths are relative to the root and have no leading slash.
#[derive(Debug, Clone, Default)]
pub struct Archive<'a> {
    entries: BTreeMap<String, Entry<'a>>,
}

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

impl<'a> Archive<'a> {
    /// An archive with no entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory, mode 0755, and its parents; one that is there already is fine.
    ///
    /// # Errors
    /// When the path is not valid, is a file's, or there are too many entries.
    pub fn directory(&mut self, path: &str) -> Result<(), CpioError> {
        check_path(path)?;
        let ends = path
            .match_indices('/')
            .map(|(end, _)| end)
            .chain([path.len()]);
        for directory in ends.map(|end| &path[..end]) {
            match self.entries.get(directory).map(|entry| &entry.node) {
                Some(Node::Directory) => {}
                Some(_) => return Err(CpioError::Duplicate(directory.to_owned())),
                None => self.insert(directory, Node::Directory, 0o755)?,
            }
        }
        Ok(())
    }

    /// Adds a regular file and the directories above it.
    ///
    /// # Errors
    /// As for [`Archive::directory`], and when the file is 4 GiB or more.
    pub fn file(
        &mut self,
        path: &str,
        permissions: u32,
        content: impl Into<Cow<'a, [u8]>>,
    ) -> Result<(), CpioError> {
        let content = content.into();
        if u32::try_from(content.len()).is_err() {
            return Err(CpioError::TooLarge(path.to_owned()));
        }
        self.leaf(path, Node::File(content), permissions)
    }

    /// Adds a symbolic link and the directories above it.
    ///
    /// # Errors
    /// As for [`Archive::directory`], and when the target is empty, has a NUL or is too long.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), CpioError> {
        if target.is_empty() || target.len() >= MAX_PATH || target.contains('\0') {
            return Err(path_error(
                path,
                "its target is empty, too long or has a NUL",
            ));
        }
        self.leaf(path, Node::Symlink(target.to_owned()), 0o777)
    }

    /// Adds a character device and the directories above it.
    ///
    /// # Errors
    /// As for [`Archive::directory`].
    pub fn char_device(
        &mut self,
        path: &str,
        permissions: u32,
        major: u32,
        minor: u32,
    ) -> Result<(), CpioError> {
        self.leaf(path, Node::CharDevice { major, minor }, permissions)
    }

    /// Writes the archive and its trailer; the length written is a multiple of four.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn write_to(&self, writer: &mut dyn Write) -> Result<(), CpioError> {
        // At most MAX_ENTRIES, so inode numbers fit.
        for (inode, (path, entry)) in (1_u32..).zip(&self.entries) {
            let (kind, device, data): (_, _, &[u8]) = match &entry.node {
                Node::Directory => (S_IFDIR, (0, 0), &[]),
                Node::File(content) => (S_IFREG, (0, 0), content),
                Node::Symlink(target) => (S_IFLNK, (0, 0), target.as_bytes()),
                Node::CharDevice { major, minor } => (S_IFCHR, (*major, *minor), &[]),
            };
            let links = if kind == S_IFDIR { 2 } else { 1 };
            let mode = kind | entry.permissions & 0o7777;
            write_entry(writer, path, inode, mode, links, device, data)?;
        }
        write_entry(writer, "TRAILER!!!", 0, 0, 1, (0, 0), &[])
    }

    fn leaf(&mut self, path: &str, node: Node<'a>, permissions: u32) -> Result<(), CpioError> {
        check_path(path)?;
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        self.insert(path, node, permissions)
    }

    fn insert(&mut self, path: &str, node: Node<'a>, permissions: u32) -> Result<(), CpioError> {
        if self.entries.len() >= MAX_ENTRIES {
            return Err(CpioError::TooMany);
        }
        if self.entries.contains_key(path) {
            return Err(CpioError::Duplicate(path.to_owned()));
        }
        self.entries
            .insert(path.to_owned(), Entry { node, permissions });
        Ok(())
    }
}

fn write_entry(
    writer: &mut dyn Write,
    path: &str,
    inode: u32,
    mode: u32,
    links: u32,
    (major, minor): (u32, u32),
    data: &[u8],
) -> Result<(), CpioError> {
    let too_large = |_| CpioError::TooLarge(path.to_owned());
    let data_len = u32::try_from(data.len()).map_err(too_large)?;
    let name_len = u32::try_from(path.len() + 1).map_err(too_large)?;
    // inode mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    let fields = [
        inode, mode, 0, 0, links, 0, data_len, 0, 0, major, minor, name_len, 0,
    ];
    writer.write_all(b"070701")?;
    for field in fields {
        write!(writer, "{field:08x}")?;
    }
    writer.write_all(path.as_bytes())?;
    // The header is 110 bytes; the name with its NUL is padded so that the data begins aligned.
    writer.write_all(&[0; 4][..1 + padding(110 + path.len() + 1)])?;
    writer.write_all(data)?;
    writer.write_all(&[0; 4][..padding(data.len())])?;
    Ok(())
}

/// Bytes to the next multiple of four.
pub(crate) fn padding(length: usize) -> usize {
    length.wrapping_neg() & 3
}

fn check_path(path: &str) -> Result<(), CpioError> {
    if path.len() >= MAX_PATH {
        return Err(path_error(path, "it is too long"));
    }
    if path.contains('\0') {
        return Err(path_error(path, "it has a NUL"));
    }
    if path == "TRAILER!!!" {
        return Err(path_error(path, "it is the mark of an archive's end"));
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(path_error(
            path,
            "it is absolute, or has an empty, \".\" or \"..\" part",
        ));
    }
    Ok(())
}

fn path_error(path: &str, reason: &'static str) -> CpioError {
    CpioError::Path {
        path: path.chars().take(80).collect(),
        reason,
    }
}

#[cfg(test)]
#[path = "cpio_tests.rs"]
mod tests;
