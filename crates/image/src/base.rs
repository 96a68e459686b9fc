//! What an earlier import made of the lower layers of an image, so that only those above are unpacked.
//!
//! ```text
//!  template's image ── ext4::read ── Tree ── layers above ── ext4 ── image
//!                          └───────── contents, copied by extent ─────┘
//! ```
//!
//! The tree that the writer was given is in what it wrote, whole: what is read back and written again is
//! the same bytes. So an image on a base is the same, to the last byte, as the one of all its layers.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::{ImportError, show};
use crate::ext4::read::{Inode, InodeKind, LOST_AND_FOUND, ROOT, ReadError, Reader};
use crate::job::Job;
use crate::name::EntryPath;
use crate::node::{Children, Content, Kind, Meta, Node, NodeId, Time};
use crate::spool::{BLOCK_U64, BlockSink, CHUNK};
use crate::tree::Tree;

/// An image that [`import_image`](crate::import_image) made of the lowest layers of another one.
#[derive(Debug)]
pub struct Base {
    /// The image, open for reading. It must not change; it may lose its name.
    pub file: File,
    /// Its name, for messages.
    pub path: PathBuf,
    /// How many layers it has.
    pub layers: usize,
}

/// A base while it is read.
pub(crate) struct OpenBase<'a> {
    reader: Reader,
    path: &'a Path,
    buffer: Vec<u8>,
}

impl<'a> OpenBase<'a> {
    pub(crate) fn open(base: &'a Base, job: &Job<'_>) -> Result<Self, ImportError> {
        let failed = |error| unreadable(&base.path, b".", error);
        let file = base.file.try_clone().map_err(ReadError::Io);
        let open = |file| Reader::open(file, job.cancel);
        let reader = file.and_then(open).map_err(failed)?;
        if reader.block_size() != BLOCK_U64 {
            let why = "its blocks are not those of an import";
            return Err(failed(ReadError::NotExt4(why)));
        }
        Ok(Self {
            reader,
            path: &base.path,
            buffer: Vec::new(),
        })
    }

    /// Puts all that the base has into the tree, under the same bounds and rules as what comes from
    /// archives. Contents stay where they are.
    pub(crate) fn read_into(&self, tree: &mut Tree, job: &Job<'_>) -> Result<(), ImportError> {
        let root = self.inode(ROOT, b".")?;
        let node = self.node(&root, b".", tree)?;
        tree.insert(&EntryPath::parse(b".", tree.limits())?, node)?;
        // Where files that have several names are.
        let mut linked: HashMap<u32, NodeId> = HashMap::new();
        let mut todo = vec![(Vec::new(), root, ROOT)];
        while let Some((directory, inode, parent)) = todo.pop() {
            job.progress.advance(0, tree.entries());
            let names = self.reader.names(&inode, parent, &mut |_| Ok(()));
            let names = names.map_err(|error| self.failed(&directory, error))?;
            for name in names {
                let path = match directory.is_empty() {
                    true => name.name.to_vec(),
                    false => [&directory[..], b"/", &name.name].concat(),
                };
                let limits = *tree.limits();
                let entry = EntryPath::parse(&path, &limits)?;
                if let Some(id) = linked.get(&name.ino) {
                    tree.hard_link_to(&entry, *id)?;
                    continue;
                }
                let child = self.inode(name.ino, &path)?;
                let node = self.node(&child, &path, tree)?;
                if is_the_writers(&child, &path, &node) {
                    continue;
                }
                let id = tree.insert(&entry, node)?;
                if child.kind == InodeKind::Directory {
                    todo.push((path, child, inode.ino));
                } else if child.links > 1 {
                    linked.insert(child.ino, id);
                }
            }
        }
        Ok(())
    }

    /// Hands the blocks of a file to the sink.
    pub(crate) fn copy(
        &mut self,
        ino: u32,
        path: &dyn Fn() -> Vec<u8>,
        sink: &mut dyn BlockSink,
    ) -> Result<(), ImportError> {
        let failed = |error| unreadable(self.path, &path(), error);
        let inode = self.reader.inode(ino).map_err(failed)?;
        self.buffer.resize(CHUNK, 0);
        for stretch in self.reader.extents(&inode).map_err(failed)? {
            let stretch = stretch.map_err(failed)?;
            if !stretch.written {
                continue;
            }
            let (length, mut at) = (stretch.length * BLOCK_U64, 0);
            while at < length {
                let take = usize::try_from(length - at).unwrap_or(CHUNK).min(CHUNK);
                let bytes = &mut self.buffer[..take];
                self.reader
                    .read_stretch(&stretch, at, bytes)
                    .map_err(failed)?;
                sink.put(stretch.logical + at / BLOCK_U64, bytes)?;
                at += take as u64;
            }
        }
        Ok(())
    }

    fn inode(&self, ino: u32, path: &[u8]) -> Result<Inode, ImportError> {
        let inode = self.reader.inode(ino);
        inode.map_err(|error| self.failed(path, error))
    }

    fn node(&self, inode: &Inode, path: &[u8], tree: &mut Tree) -> Result<Node, ImportError> {
        let failed = |error| self.failed(path, error);
        let mut lost = false;
        let mut leave_out = |_: &[u8], _: &'static str| lost = true;
        let xattrs = self.reader.xattrs(inode, tree.limits(), &mut leave_out);
        let xattrs = xattrs.map_err(failed)?;
        let ino = inode.ino;
        if lost {
            let why = "it has an attribute that no import writes";
            return Err(failed(ReadError::Damaged { ino, why }));
        }
        let kind = match inode.kind {
            InodeKind::Directory => Kind::Directory(Children::new()),
            InodeKind::File => {
                tree.admit_content(path, inode.size)?;
                Kind::File {
                    size: inode.size,
                    content: Content::InBase(ino),
                }
            }
            InodeKind::Symlink => {
                let target = self.reader.symlink_target(inode).map_err(failed)?;
                Kind::Symlink(target.into_boxed_slice())
            }
            InodeKind::Fifo => Kind::Fifo,
            InodeKind::CharDevice(device) => Kind::CharDevice(device),
            InodeKind::BlockDevice(device) => Kind::BlockDevice(device),
            InodeKind::Socket => {
                let why = "it is a socket, which no import writes";
                return Err(failed(ReadError::Damaged { ino, why }));
            }
        };
        let meta = Meta {
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            xattrs,
        };
        Ok(Node { meta, kind })
    }

    fn failed(&self, path: &[u8], error: ReadError) -> ImportError {
        let path = if path.is_empty() { b"." } else { path };
        unreadable(self.path, path, error)
    }
}

/// Whether it is the directory that every image has and no layer had.
fn is_the_writers(inode: &Inode, path: &[u8], node: &Node) -> bool {
    let made = Meta {
        mode: 0o700,
        mtime: Time::default(),
        ..Meta::default()
    };
    path == b"lost+found" && inode.ino == LOST_AND_FOUND && node.meta == made
}

fn unreadable(image: &Path, entry: &[u8], error: ReadError) -> ImportError {
    let why = match error {
        ReadError::Cancelled => return ImportError::Cancelled,
        ReadError::Io(error) => error.to_string(),
        ReadError::NotExt4(why) | ReadError::Damaged { why, .. } => why.to_owned(),
        ReadError::Unclean => "it was not unmounted cleanly".to_owned(),
        ReadError::Unsupported(what) | ReadError::UnsupportedInode { what, .. } => what.to_owned(),
        ReadError::Limit { limit, what } => format!("it has more than {limit} {what}"),
    };
    ImportError::Base {
        image: image.to_owned(),
        entry: show(entry),
        why,
    }
}
