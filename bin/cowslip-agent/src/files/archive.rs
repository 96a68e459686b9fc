//! Files and directory trees as tar archives, with owners, modes, times, links and devices.
//!
//! Unpacking happens inside the guest, with what the host sent: a path that leads out of the
//! directory is refused, and an existing link is replaced rather than followed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use cowslip_proto::pb;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use tar::{Archive, Builder, Entry, EntryType, Header};
use tonic::Status;

use super::{owner, path, refused};
use crate::process::user::Identity;

const READ: &str = "read";
const WRITE: &str = "unpack into";

/// What a request asks to pack: checked, so that its errors come before any content.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    name: PathBuf,
}

/// Finds what a request asks for.
pub(crate) fn open(request: &pb::ReadTarRequest) -> Result<Source, Status> {
    let asked = path(&request.path)?;
    let failed = |e: io::Error| refused(READ, &asked, &e);
    let path = if request.follow {
        fs::canonicalize(&asked).map_err(failed)?
    } else {
        asked.clone()
    };
    fs::symlink_metadata(&path).map_err(failed)?;
    let name = match (request.name.as_slice(), asked.file_name()) {
        ([], Some(name)) => PathBuf::from(name),
        ([], None) => PathBuf::from("."),
        (name, _) => PathBuf::from(OsStr::from_bytes(name)),
    };
    if name
        .components()
        .any(|c| !matches!(c, Component::Normal(_) | Component::CurDir))
    {
        return Err(Status::invalid_argument(
            "the name in the archive must be relative",
        ));
    }
    Ok(Source { path, name })
}

/// Writes the archive.
pub(crate) fn pack(source: &Source, to: impl Write) -> io::Result<()> {
    let mut builder = Builder::new(to);
    let mut packer = Packer {
        links: HashMap::new(),
    };
    // A stack of our own: a tree may be deeper than any thread's stack.
    let mut stack = vec![(source.path.clone(), source.name.clone())];
    while let Some((path, name)) = stack.pop() {
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            // Removed while we read: as if it had never been there.
            Err(e) if e.kind() == io::ErrorKind::NotFound && path != source.path => continue,
            Err(e) => return Err(e),
        };
        packer.pack_one(&mut builder, &path, &name, &metadata)?;
        if metadata.is_dir() {
            let mut below = Vec::new();
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                below.push((path.join(entry.file_name()), name.join(entry.file_name())));
            }
            // Sorted: the same tree gives the same archive.
            below.sort_unstable_by(|a, b| b.cmp(a));
            stack.extend(below);
        }
    }
    builder.into_inner()?.flush()
}

struct Packer {
    /// Files with more than one name: where the first one is in the archive.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Packer {
    fn pack_one<W: Write>(
        &mut self,
        builder: &mut Builder<W>,
        path: &Path,
        name: &Path,
        metadata: &Metadata,
    ) -> io::Result<()> {
        let kind = metadata.file_type();
        let mut header = Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        header.set_size(0);
        if kind.is_file() {
            let key = (metadata.dev(), metadata.ino());
            if metadata.nlink() > 1 {
                if let Some(first) = self.links.get(&key) {
                    header.set_entry_type(EntryType::Link);
                    return builder.append_link(&mut header, name, first);
                }
                self.links.insert(key, name.to_owned());
            }
            let file = fs::OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(path)?;
            header.set_entry_type(EntryType::Regular);
            header.set_size(metadata.size());
            // It may grow or shrink while it is read; the header's size must come true.
            let exact = file
                .take(metadata.size())
                .chain(io::repeat(0))
                .take(metadata.size());
            return builder.append_data(&mut header, name, exact);
        }
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            return builder.append_link(&mut header, name, fs::read_link(path)?);
        }
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
        } else if kind.is_fifo() {
            header.set_entry_type(EntryType::Fifo);
        } else if kind.is_char_device() || kind.is_block_device() {
            header.set_entry_type(if kind.is_char_device() {
                EntryType::Char
            } else {
                EntryType::Block
            });
            header.set_device_major(rustix::fs::major(metadata.rdev()))?;
            header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
        } else {
            // A socket is nothing without the process that listens.
            return Ok(());
        }
        builder.append_data(&mut header, name, io::empty())
    }
}

/// Unpacks an archive into the directory of a request; gives back the number of entries.
pub(crate) fn unpack(header: &pb::WriteTarHeader, from: impl Read) -> Result<u64, Status> {
    let root = path(&header.path)?;
    let owner = owner(&header.user)?;
    if !root.is_dir() {
        let missing = io::Error::from_raw_os_error(libc::ENOENT);
        return Err(refused(WRITE, &root, &missing));
    }
    let mut archive = Archive::new(from);
    let mut entries = 0;
    // Times of directories last: filling a directory changes its time.
    let mut directories = Vec::new();
    for entry in archive.entries().map_err(|e| broken(&e))? {
        let mut entry = entry.map_err(|e| broken(&e))?;
        let name = entry.path().map_err(|e| broken(&e))?.into_owned();
        let target = inside(&root, &name)?;
        unpack_one(&mut entry, &root, &target, owner.as_ref(), &mut directories)
            .map_err(|e| refused("unpack", &target, &e))?;
        entries += 1;
    }
    for (path, time) in directories.iter().rev() {
        set_time(path, *time).map_err(|e| refused("set the time of", path, &e))?;
    }
    Ok(entries)
}

fn broken(error: &io::Error) -> Status {
    Status::invalid_argument(format!("the archive cannot be read: {error}"))
}

/// Where an entry goes: below the root by its name, whatever the name is.
fn inside(root: &Path, name: &Path) -> Result<PathBuf, Status> {
    let mut target = root.to_owned();
    for component in name.components() {
        match component {
            Component::Normal(part) => target.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                let message = format!("\"{}\" in the archive leads out of it", name.display());
                return Err(Status::invalid_argument(message));
            }
        }
    }
    Ok(target)
}

fn unpack_one<R: Read>(
    entry: &mut Entry<'_, R>,
    root: &Path,
    target: &Path,
    owner: Option<&Identity>,
    directories: &mut Vec<(PathBuf, u64)>,
) -> io::Result<()> {
    let kind = entry.header().entry_type();
    let mode = entry.header().mode()? & 0o7777;
    let time = entry.header().mtime()?;
    if kind.is_dir() {
        // An existing directory, even behind a link, is filled and not replaced.
        if !target.is_dir() {
            replace(target)?;
            fs::create_dir_all(target)?;
        }
        if target != root {
            own(target, entry.header(), owner)?;
            fs::set_permissions(target, fs::Permissions::from_mode(mode))?;
            directories.push((target.to_owned(), time));
        }
        return Ok(());
    }
    if let Some(parent) = target.parent()
        && !parent.is_dir()
    {
        fs::create_dir_all(parent)?;
    }
    replace(target)?;
    if kind.is_hard_link() {
        let link = entry.link_name()?.ok_or(io::ErrorKind::InvalidData)?;
        let first = inside(root, &link).map_err(|s| io::Error::other(s.message().to_owned()))?;
        return fs::hard_link(first, target);
    }
    if kind.is_symlink() {
        let link = entry.link_name()?.ok_or(io::ErrorKind::InvalidData)?;
        std::os::unix::fs::symlink(link, target)?;
        own(target, entry.header(), owner)?;
        return set_time(target, time);
    }
    if kind.is_file() || kind == EntryType::GNUSparse {
        let mut file: File = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(target)?;
        io::copy(entry, &mut file)?;
    } else {
        let node = match kind {
            EntryType::Fifo => FileType::Fifo,
            EntryType::Char => FileType::CharacterDevice,
            EntryType::Block => FileType::BlockDevice,
            // Notes of some archiver: not files.
            _ => return Ok(()),
        };
        let header = entry.header();
        let (major, minor) = (header.device_major()?, header.device_minor()?);
        let device = rustix::fs::makedev(major.unwrap_or(0), minor.unwrap_or(0));
        rustix::fs::mknodat(CWD, target, node, Mode::from_raw_mode(0o600), device)?;
    }
    // The owner first: changing it takes setuid bits away.
    own(target, entry.header(), owner)?;
    fs::set_permissions(target, fs::Permissions::from_mode(mode))?;
    set_time(target, time)
}

/// Makes room: never writes through what is there.
fn replace(target: &Path) -> io::Result<()> {
    match fs::symlink_metadata(target) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir(target),
        Ok(_) => fs::remove_file(target),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn own(target: &Path, header: &Header, owner: Option<&Identity>) -> io::Result<()> {
    let (uid, gid) = match owner {
        Some(owner) => (owner.uid, owner.gid),
        None => (id(header.uid()?)?, id(header.gid()?)?),
    };
    std::os::unix::fs::lchown(target, Some(uid), Some(gid))
}

fn id(number: u64) -> io::Result<u32> {
    u32::try_from(number)
        .ok()
        .filter(|&n| n != u32::MAX)
        .ok_or(io::ErrorKind::InvalidData.into())
}

fn set_time(target: &Path, seconds: u64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: i64::try_from(seconds).unwrap_or(0),
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(
        CWD,
        target,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}
