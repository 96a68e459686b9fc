//! A directory of the host as a source.
//!
//! Everything is opened below the source's root with `openat2`: beneath it, through no symbolic link,
//! on one mount. A tree whose owner swaps names for links while it is read can make the import fail,
//! but not make it read anything elsewhere. Files are read twice as `statx` and once as data: a stamp
//! taken in the walk must still hold before and after the copy.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

use crate::digest::{next_data, next_hole};
use crate::error::{ImportError, Refusal, show};
use crate::ext4::{Contents, Watch};
use crate::job::{Owners, Skipped};
use crate::name::{EntryPath, check_name};
use crate::node::{Children, Content, Device, Kind, Meta, Node, NodeId, Stamp, Time, Xattr};
use crate::spool::{BLOCK, BLOCK_U64, BlockSink, CHUNK, put_nonzero};
use crate::tree::Tree;

/// `STATX_ATTR_MOUNT_ROOT`: something is mounted here.
const MOUNT_ROOT: u64 = 0x2000;
/// The kernel's bound on attribute lists and values, in bytes.
const XATTR_MAX: usize = 64 << 10;

/// An opened source directory.
pub(crate) struct Source {
    root: OwnedFd,
    owners: OwnerMap,
    /// Every directory found, with its stamp.
    directories: Vec<(Vec<u8>, Stamp)>,
    buffer: Vec<u8>,
}

/// Which owners become root.
#[derive(Clone, Copy)]
struct OwnerMap {
    uid: Option<u32>,
    gid: Option<u32>,
}

impl OwnerMap {
    fn uid(self, uid: u32) -> u32 {
        if self.uid == Some(uid) { 0 } else { uid }
    }

    fn gid(self, gid: u32) -> u32 {
        if self.gid == Some(gid) { 0 } else { gid }
    }
}

impl Source {
    /// Opens the directory; a symbolic link to it is followed, being the user's own word.
    pub(crate) fn open(path: &Path, owners: Owners) -> Result<Self, ImportError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| {
            ImportError::read_source("open", path.as_os_str().as_encoded_bytes(), e)
        })?;
        let owners = match owners {
            Owners::Keep => OwnerMap {
                uid: None,
                gid: None,
            },
            Owners::SelfIsRoot => OwnerMap {
                uid: Some(rustix::process::geteuid().as_raw()),
                gid: Some(rustix::process::getegid().as_raw()),
            },
        };
        Ok(Self {
            root,
            owners,
            directories: Vec::new(),
            buffer: vec![0; CHUNK],
        })
    }

    /// Merges all that is below the source into the tree.
    pub(crate) fn walk(
        &mut self,
        tree: &mut Tree,
        watch: Watch<'_>,
        skipped: &mut Vec<Skipped>,
    ) -> Result<(), ImportError> {
        let mut walk = Walk {
            tree,
            watch,
            skipped,
            linked: HashMap::new(),
            todo: vec![b".".to_vec()],
            bytes: 0,
        };
        let stat = self.stat(b".")?;
        let meta = self.meta(&stat, list_xattrs(&self.root, b".", b".")?);
        walk.insert(b".", meta, Kind::Directory(Children::new()))?;
        while let Some(path) = walk.todo.pop() {
            self.walk_directory(&mut walk, &path)?;
        }
        Ok(())
    }

    fn walk_directory(&mut self, walk: &mut Walk<'_>, path: &[u8]) -> Result<(), ImportError> {
        let fd = self.open_below(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let before = Stamp::of(&stat_fd(&fd, path)?);
        let list = |e| ImportError::read_source("list", path, e);
        let mut names = Vec::new();
        for entry in Dir::read_from(&fd).map_err(list)? {
            let entry = entry.map_err(list)?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(name.to_vec());
            }
            if names.len() as u64 > walk.tree.limits().max_entries {
                let limit = walk.tree.limits().max_entries;
                return Err(ImportError::limit(path, limit, "entries"));
            }
        }
        // Sorted, so that the same tree is refused, or complained about, the same way.
        names.sort_unstable();
        for name in names {
            walk.watch.cancel.check()?;
            self.walk_entry(walk, &fd, path, &name)?;
        }
        if Stamp::of(&stat_fd(&fd, path)?) != before {
            return Err(changed(path));
        }
        self.directories.push((path.to_vec(), before));
        Ok(())
    }

    fn walk_entry(
        &self,
        walk: &mut Walk<'_>,
        dir: &OwnedFd,
        dir_path: &[u8],
        name: &[u8],
    ) -> Result<(), ImportError> {
        let path = match dir_path {
            b"." => name.to_vec(),
            _ => [dir_path, name].join(&b'/'),
        };
        check_name(name).map_err(|why| ImportError::refused(&path, why))?;
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let stat = rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS)
            .map_err(|e| gone(&path, "stat", e))?;
        let mounted = stat.stx_attributes.bits() & MOUNT_ROOT != 0;
        let size = stat.stx_size;
        let kind = match u32::from(stat.stx_mode) & 0o170_000 {
            0o040_000 => {
                if mounted {
                    walk.skip(
                        &path,
                        "something is mounted on it: only the empty directory is kept",
                    );
                } else {
                    walk.todo.push(path.clone());
                }
                Kind::Directory(Children::new())
            }
            _ if mounted => {
                walk.skip(&path, "something is mounted on it");
                return Ok(());
            }
            0o140_000 => {
                walk.skip(&path, "sockets have no meaning in an image");
                return Ok(());
            }
            0o100_000 => Kind::File {
                size,
                content: Content::InSource(Stamp::of(&stat)),
            },
            0o120_000 => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new())
                    .map_err(|e| gone(&path, "read the link", e))?;
                Kind::Symlink(target.to_bytes().into())
            }
            0o010_000 => Kind::Fifo,
            0o020_000 => Kind::CharDevice(device(&path, &stat)?),
            _ => Kind::BlockDevice(device(&path, &stat)?),
        };
        let is_directory = matches!(kind, Kind::Directory(_));
        let identity = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
        if let Some(first) = walk.linked.get(&identity)
            && !is_directory
        {
            let first = *first;
            let limits = *walk.tree.limits();
            return walk
                .tree
                .hard_link_to(&EntryPath::parse(&path, &limits)?, first);
        }
        if let Kind::File { size, .. } = kind {
            walk.tree.admit_content(&path, size)?;
            walk.bytes += size;
        }
        let meta = self.meta(&stat, list_xattrs(dir, name, &path)?);
        let node = walk.insert(&path, meta, kind)?;
        if stat.stx_nlink > 1 && !is_directory {
            walk.linked.insert(identity, node);
        }
        Ok(())
    }

    /// Checks that no directory gained or lost a name since the walk.
    pub(crate) fn verify_unchanged(&self) -> Result<(), ImportError> {
        for (path, stamp) in &self.directories {
            if Stamp::of(&self.stat(path)?) != *stamp {
                return Err(changed(path));
            }
        }
        Ok(())
    }

    fn stat(&self, path: &[u8]) -> Result<Statx, ImportError> {
        let fd = self.open_below(path, OFlags::PATH)?;
        stat_fd(&fd, path)
    }

    fn open_below(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, ImportError> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let flags = match flags.contains(OFlags::PATH) {
            true => flags - OFlags::NONBLOCK,
            false => flags,
        };
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        loop {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                // A rename elsewhere made the kernel unsure; it asks to be called again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result.map_err(|e| gone(path, "open", e)),
            }
        }
    }

    fn meta(&self, stat: &Statx, xattrs: Vec<Xattr>) -> Meta {
        Meta {
            mode: stat.stx_mode & 0o7777,
            uid: self.owners.uid(stat.stx_uid),
            gid: self.owners.gid(stat.stx_gid),
            mtime: time(&stat.stx_mtime),
            xattrs,
        }
    }
}

impl Contents for Source {
    fn copy(
        &mut self,
        path: &dyn Fn() -> Vec<u8>,
        content: &Content,
        sink: &mut dyn BlockSink,
    ) -> Result<(), ImportError> {
        let Content::InSource(stamp) = content else {
            return Ok(());
        };
        let path = path();
        let file = File::from(self.open_below(&path, OFlags::RDONLY)?);
        let stat = stat_fd(&file, &path)?;
        if Stamp::of(&stat) != *stamp {
            return Err(changed(&path));
        }
        let size = stamp.size;
        let read = |e| ImportError::read_source("read", &path, e);
        let sparse = stat.stx_blocks.saturating_mul(512) < size;
        let mut at = 0;
        while at < size {
            let mut end = size;
            if sparse {
                let Some(data) = next_data(&file, at).map_err(read)? else {
                    break;
                };
                at = data.max(at) / BLOCK_U64 * BLOCK_U64;
                end = next_hole(&file, data.min(size), size).map_err(read)?;
                end = end.next_multiple_of(BLOCK_U64).min(size);
            }
            while at < end {
                let take = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
                let blocks = &mut self.buffer[..take.next_multiple_of(BLOCK)];
                match file.read_exact_at(&mut blocks[..take], at) {
                    Ok(()) => {}
                    Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                        return Err(changed(&path));
                    }
                    Err(e) => return Err(read(e)),
                }
                blocks[take..].fill(0);
                put_nonzero(sink, at / BLOCK_U64, blocks)?;
                at += take as u64;
            }
        }
        if Stamp::of(&stat_fd(&file, &path)?) != *stamp {
            return Err(changed(&path));
        }
        Ok(())
    }
}

/// The state of a walk.
struct Walk<'a> {
    tree: &'a mut Tree,
    watch: Watch<'a>,
    skipped: &'a mut Vec<Skipped>,
    linked: HashMap<(u32, u32, u64), NodeId>,
    todo: Vec<Vec<u8>>,
    bytes: u64,
}

impl Walk<'_> {
    fn insert(&mut self, path: &[u8], meta: Meta, kind: Kind) -> Result<NodeId, ImportError> {
        let limits = *self.tree.limits();
        let path = EntryPath::parse(path, &limits)?;
        let node = self.tree.insert(&path, Node { meta, kind })?;
        self.watch.progress.advance(self.bytes, self.tree.entries());
        Ok(node)
    }

    fn skip(&mut self, path: &[u8], why: &str) {
        self.skipped.push(Skipped {
            entry: show(path),
            why: why.to_owned(),
        });
    }
}

impl Stamp {
    fn of(stat: &Statx) -> Self {
        Self {
            inode: stat.stx_ino,
            size: stat.stx_size,
            mtime: time(&stat.stx_mtime),
            ctime: time(&stat.stx_ctime),
        }
    }
}

fn time(stamp: &rustix::fs::StatxTimestamp) -> Time {
    Time {
        secs: stamp.tv_sec,
        nanos: stamp.tv_nsec,
    }
}

fn device(path: &[u8], stat: &Statx) -> Result<Device, ImportError> {
    Device::new(stat.stx_rdev_major, stat.stx_rdev_minor)
        .map_err(|why: Refusal| ImportError::refused(path, why))
}

fn stat_fd(fd: &impl AsFd, path: &[u8]) -> Result<Statx, ImportError> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        .map_err(|e| ImportError::read_source("stat", path, e))
}

fn changed(path: &[u8]) -> ImportError {
    ImportError::Changed { path: show(path) }
}

/// What was there in the walk and is not any more has changed; everything else failed.
fn gone(path: &[u8], operation: &'static str, error: Errno) -> ImportError {
    match error {
        Errno::NOENT | Errno::LOOP | Errno::XDEV | Errno::NOTDIR => changed(path),
        _ => ImportError::read_source(operation, path, error),
    }
}

/// All attributes of a name in an opened directory; a last symbolic link is not followed.
fn list_xattrs(dir: &OwnedFd, name: &[u8], shown: &[u8]) -> Result<Vec<Xattr>, ImportError> {
    let failed = |e| gone(shown, "read the attributes of", e);
    // There is no call for this by descriptor and name; the descriptor's own link is exact.
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    let mut names = [0; 1024];
    let names: Box<[u8]> = match rustix::fs::llistxattr(&path[..], &mut names[..]) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(length) => names[..length].into(),
        Err(Errno::RANGE) => {
            let mut names = vec![0; XATTR_MAX];
            let length = rustix::fs::llistxattr(&path[..], &mut names[..]).map_err(failed)?;
            names[..length].into()
        }
        Err(error) => return Err(failed(error)),
    };
    let mut xattrs = Vec::new();
    let mut value = vec![0; XATTR_MAX];
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        match rustix::fs::lgetxattr(&path[..], name, &mut value[..]) {
            Ok(length) => xattrs.push(Xattr {
                name: name.into(),
                value: value[..length].into(),
            }),
            Err(Errno::NODATA) => return Err(changed(shown)),
            Err(error) => return Err(failed(error)),
        }
    }
    // The list has no promised order.
    xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(xattrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_importing_user_becomes_root() {
        let map = OwnerMap {
            uid: Some(1000),
            gid: Some(100),
        };
        assert_eq!([0, 6, 100, 1000].map(|uid| map.uid(uid)), [0, 6, 100, 0]);
        assert_eq!([0, 6, 100, 1000].map(|gid| map.gid(gid)), [0, 6, 0, 1000]);
    }
}
