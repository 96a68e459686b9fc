//! A directory of this host that entries are written below, by open descriptors and without ever
//! following a link.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, futimens, linkat, mkdirat,
    openat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::exit::Failure;

/// How directories are opened: never through a link.
const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::RDONLY)
    .union(OFlags::CLOEXEC);

/// The directory.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    place: PathBuf,
    /// The directory that was used last; directories are never removed or replaced here.
    last: Option<(Vec<OsString>, OwnedFd)>,
}

impl Tree {
    /// Opens the directory at a path of the user's, made where it is not there.
    pub(super) fn open(place: &Path) -> Result<Self, Failure> {
        match std::fs::create_dir(place) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Failure::io(format!("make \"{}\"", place.display()), &error));
            }
            _ => {}
        }
        let root = File::open(place)
            .map_err(|error| Failure::io(format!("open \"{}\"", place.display()), &error))?;
        Ok(Self {
            root: root.into(),
            place: place.to_owned(),
            last: None,
        })
    }

    fn path(&self, parent: &[OsString], name: &OsStr) -> PathBuf {
        self.place
            .join(parent.iter().collect::<PathBuf>())
            .join(name)
    }

    /// The directory `parts` below the root, made where it is not there.
    fn parent(&mut self, parts: &[OsString]) -> Result<&OwnedFd, Failure> {
        if parts.is_empty() {
            return Ok(&self.root);
        }
        if self.last.as_ref().is_none_or(|(known, _)| known != parts) {
            let mut current: Option<OwnedFd> = None;
            for (depth, part) in parts.iter().enumerate() {
                let at = current.as_ref().unwrap_or(&self.root);
                let failed = |error: Errno| {
                    let path = self.path(&parts[..depth], part);
                    Failure::io(format!("enter \"{}\"", path.display()), &error.into())
                };
                let next = match openat(at, part, DIRECTORY, Mode::empty()) {
                    Err(Errno::NOENT) => {
                        mkdirat(at, part, Mode::from_raw_mode(0o755)).map_err(failed)?;
                        openat(at, part, DIRECTORY, Mode::empty())
                    }
                    other => other,
                };
                current = Some(next.map_err(failed)?);
            }
            self.last = current.map(|fd| (parts.to_vec(), fd));
        }
        Ok(self.last.as_ref().map_or(&self.root, |(_, fd)| fd))
    }

    /// Makes a directory, or keeps the one that is there.
    pub(super) fn directory(
        &mut self,
        parent: &[OsString],
        name: &OsStr,
        mode: u32,
    ) -> Result<(), Failure> {
        let path = self.path(parent, name);
        let failed = |error: Errno| {
            Failure::io(
                format!("make the directory \"{}\"", path.display()),
                &error.into(),
            )
        };
        let at = self.parent(parent)?;
        // Its owner must be able to fill it.
        match mkdirat(at, name, Mode::from_raw_mode(mode | 0o700)) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => openat(at, name, DIRECTORY, Mode::empty())
                .map(drop)
                .map_err(failed),
            Err(error) => Err(failed(error)),
        }
    }

    /// Makes a file, in the place of a file or link that is there, and fills it.
    pub(super) fn file(
        &mut self,
        parent: &[OsString],
        name: &OsStr,
        mode: u32,
        mtime: u64,
        fill: impl FnOnce(&mut File, &Path) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let path = self.path(parent, name);
        let at = self.parent(parent)?;
        clear(at, name, &path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(at, name, flags, Mode::from_raw_mode(mode)).map_err(|error| {
            Failure::io(
                format!("make the file \"{}\"", path.display()),
                &error.into(),
            )
        })?;
        let mut file = File::from(fd);
        let filled = fill(&mut file, &path);
        if filled.is_err() {
            // A part is not the file. Should this fail too, the first error is the one to tell.
            let _ = unlinkat(at, name, AtFlags::empty());
            return filled;
        }
        let time = Timespec {
            tv_sec: i64::try_from(mtime).unwrap_or(0),
            tv_nsec: 0,
        };
        let keep = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        };
        // A file system without times is no reason to fail.
        let _ = futimens(
            &file,
            &Timestamps {
                last_access: keep,
                last_modification: time,
            },
        );
        Ok(())
    }

    /// Makes a symbolic link, in the place of a file or link that is there.
    pub(super) fn symlink(
        &mut self,
        parent: &[OsString],
        name: &OsStr,
        target: &Path,
    ) -> Result<(), Failure> {
        let path = self.path(parent, name);
        let at = self.parent(parent)?;
        clear(at, name, &path)?;
        symlinkat(target, at, name).map_err(|error| {
            Failure::io(
                format!("make the link \"{}\"", path.display()),
                &error.into(),
            )
        })
    }

    /// Makes another name of a file below this directory.
    pub(super) fn link(
        &mut self,
        source: &[OsString],
        parent: &[OsString],
        name: &OsStr,
    ) -> Result<(), Failure> {
        let path = self.path(parent, name);
        let failed = |error: Errno| {
            Failure::io(
                format!("make the link \"{}\"", path.display()),
                &error.into(),
            )
        };
        let Some((source_name, source_parent)) = source.split_last() else {
            return Err(failed(Errno::ISDIR));
        };
        let from = rustix::io::dup(self.parent(source_parent)?).map_err(failed)?;
        let at = self.parent(parent)?;
        clear(at, name, &path)?;
        linkat(&from, source_name, at, name, AtFlags::empty()).map_err(failed)
    }
}

/// Removes a file or link that has an entry's place; everything else there is left and refused.
fn clear(at: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), Failure> {
    let failed =
        |error: Errno| Failure::io(format!("replace \"{}\"", path.display()), &error.into());
    match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(found) => match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile | FileType::Symlink => {
                unlinkat(at, name, AtFlags::empty()).map_err(failed)
            }
            FileType::Directory => Err(failed(Errno::ISDIR)),
            _ => Err(Failure::usage(format!(
                "\"{}\" is neither a file nor a directory: it stays",
                path.display()
            ))),
        },
    }
}
