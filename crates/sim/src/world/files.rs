//! The file system: directories, files with a summary of their content, sockets.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use cowslip_host::file::Inode;
use cowslip_store::qcow2::HEAD_LIMIT;

use super::guest::Image;
use super::{Inner, World};

/// One name.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) inode: u64,
    pub(crate) node: Node,
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Directory,
    Socket,
    File(FileNode),
}

/// A file: its first bytes, and what the guests made of the rest.
#[derive(Debug, Clone, Default)]
pub(crate) struct FileNode {
    pub(crate) head: Vec<u8>,
    pub(crate) length: u64,
    /// What guests wrote to this very file, in order.
    pub(crate) writes: Vec<String>,
    /// The memory and devices of a machine; in an unfinished one they are missing.
    pub(crate) image: Option<Image>,
}

impl FileNode {
    pub(crate) fn with_bytes(bytes: &[u8]) -> Self {
        Self {
            head: bytes[..bytes.len().min(HEAD_LIMIT)].to_vec(),
            length: bytes.len() as u64,
            ..Self::default()
        }
    }

    /// With all its bytes, however many there are.
    pub(crate) fn whole(bytes: &[u8]) -> Self {
        Self {
            head: bytes.to_vec(),
            length: bytes.len() as u64,
            ..Self::default()
        }
    }
}

impl World {
    /// Makes `path` and its missing parents directories, as an administrator would.
    pub fn add_directory(&self, path: &Path) {
        let mut inner = self.lock();
        let missing: Vec<PathBuf> = path
            .ancestors()
            .filter(|path| !inner.entries.contains_key(*path))
            .map(Path::to_owned)
            .collect();
        for path in missing {
            inner.add(&path, Node::Directory);
        }
    }

    /// Makes or replaces a file of `length` bytes whose disk content is `writes`.
    pub fn add_file(&self, path: &Path, length: u64, writes: &[&str]) {
        let writes = writes.iter().map(ToString::to_string).collect();
        self.lock().add(
            path,
            Node::File(FileNode {
                length,
                writes,
                ..FileNode::default()
            }),
        );
    }

    /// Takes a name away, as somebody other than the engine would.
    pub fn lose(&self, path: &Path) {
        self.lock()
            .entries
            .retain(|entry, _| !entry.starts_with(path));
    }

    /// Whether something stands at `path`.
    #[must_use]
    pub fn exists(&self, path: &Path) -> bool {
        self.lock().entries.contains_key(path)
    }
}

impl Inner {
    pub(crate) fn add(&mut self, path: &Path, node: Node) -> Inode {
        let inode = self.number();
        self.entries.insert(path.to_owned(), Entry { inode, node });
        self.inode(inode)
    }

    /// Makes a new name, as `mkdir`, `open(O_EXCL)` and `bind` do.
    pub(crate) fn create(&mut self, path: &Path, node: Node) -> io::Result<Inode> {
        if self.entries.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let parent = path.parent().and_then(|parent| self.entries.get(parent));
        match parent.map(|entry| &entry.node) {
            Some(Node::Directory) => Ok(self.add(path, node)),
            Some(_) => Err(ErrorKind::NotADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    pub(crate) fn file(&self, path: &Path) -> io::Result<&FileNode> {
        match self.entries.get(path).map(|entry| &entry.node) {
            Some(Node::File(file)) => Ok(file),
            Some(_) => Err(ErrorKind::InvalidInput.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    pub(crate) fn file_mut(&mut self, path: &Path) -> io::Result<&mut FileNode> {
        match self.entries.get_mut(path).map(|entry| &mut entry.node) {
            Some(Node::File(file)) => Ok(file),
            Some(_) => Err(ErrorKind::InvalidInput.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    /// A new file that holds what `source` holds, extended to `size` bytes.
    pub(crate) fn clone_file(
        &mut self,
        source: &Path,
        path: &Path,
        size: u64,
    ) -> io::Result<Inode> {
        let mut copy = self.file(source)?.clone();
        copy.length = copy.length.max(size);
        let written_by = self.writer_of(source);
        if let Some(process) = written_by
            && !process.stands_still()
        {
            let mark = process.mark.clone();
            self.violation(format!(
                "\"{}\" was copied while {mark} wrote it (R26)",
                source.display()
            ));
        }
        self.create(path, Node::File(copy))
    }

    /// A new file of `size` bytes with all that was written to `sources`.
    pub(crate) fn merge_files(
        &mut self,
        sources: &[PathBuf],
        path: &Path,
        size: u64,
    ) -> io::Result<Inode> {
        let mut merged = FileNode {
            length: size,
            ..FileNode::default()
        };
        let mut wrong = Vec::new();
        for source in sources {
            merged.writes.extend(self.file(source)?.writes.clone());
            if let Some(process) = self.writer_of(source) {
                let mark = &process.mark;
                wrong.push(format!(
                    "\"{}\" was flattened while {mark} wrote it (R24)",
                    source.display()
                ));
            }
        }
        for what in wrong {
            self.violation(what);
        }
        self.create(path, Node::File(merged))
    }

    /// Replaces a file by a rename, or makes it.
    pub(crate) fn replace(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let node = Node::File(FileNode::with_bytes(bytes));
        if self.entries.contains_key(path) {
            self.file(path)?;
            self.note_removal(path);
            self.add(path, node);
            return Ok(());
        }
        self.create(path, node).map(drop)
    }

    /// Removes a file or socket, or a whole tree.
    pub(crate) fn remove(&mut self, path: &Path) {
        self.note_removal(path);
        self.entries.retain(|entry, _| !entry.starts_with(path));
        self.logs.retain(|network, _| !network.starts_with(path));
    }

    /// Notes what must not be removed.
    fn note_removal(&mut self, path: &Path) {
        let mut wrong = Vec::new();
        for process in self.processes.values() {
            let mark = &process.mark;
            for file in process.opened().filter(|file| file.starts_with(path)) {
                wrong.push(format!(
                    "\"{}\" was removed while {mark} uses it (R13)",
                    file.display()
                ));
            }
            for directory in process
                .directories
                .iter()
                .filter(|directory| directory.starts_with(path))
            {
                wrong.push(format!(
                    "\"{}\" was removed while {mark} lives (R13)",
                    directory.display()
                ));
            }
        }
        for target in self.mounts.keys().filter(|target| target.starts_with(path)) {
            wrong.push(format!(
                "\"{}\" was removed while it was mounted on",
                target.display()
            ));
        }
        for what in wrong {
            self.violation(what);
        }
    }

    /// Bytes that a file or tree occupies.
    pub(crate) fn usage(&self, path: &Path) -> u64 {
        self.entries
            .iter()
            .filter(|(entry, _)| entry.starts_with(path))
            .map(|(_, entry)| match &entry.node {
                Node::File(file) => 4096 * (1 + file.writes.len() as u64),
                Node::Directory | Node::Socket => 4096,
            })
            .sum()
    }
}
