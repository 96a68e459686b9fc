//! Unpacks what a guest sent. The archive is hostile: every name in it is resolved one component at
//! a time below an open directory, and no link is ever followed, whoever made it.
//!
//! Nothing is written outside the place that the copy lands in; devices, pipes and links that point
//! out of it are left out and named; set-user-id bits are dropped.

mod tree;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use cowslip_model::api::ErrorCode;
use tar::{Entry, EntryType};

use self::tree::Tree;
use super::place::{Remote, land_here};
use crate::exit::Failure;

/// Components of a path at most.
const DEPTH_MAX: usize = 1024;
/// Entries left out that are named.
const NAMED_MAX: usize = 20;

/// What was not done.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// What was left out and why, a line each.
    pub(crate) skipped: Vec<String>,
    more: usize,
}

impl Report {
    fn skip(&mut self, entry: &[OsString], why: &str) {
        if self.skipped.len() < NAMED_MAX {
            let path: PathBuf = entry.iter().collect();
            self.skipped.push(format!("\"{}\": {why}", path.display()));
        } else {
            self.more += 1;
        }
    }

    fn finish(mut self) -> Self {
        if self.more > 0 {
            self.skipped.push(format!("{} more", self.more));
        }
        self
    }
}

/// Unpacks the archive of `from` to `to`.
pub(crate) fn unpack(
    archive: impl Read,
    from: &Remote,
    to: &str,
    keep_links: bool,
) -> Result<Report, Failure> {
    let mut archive = tar::Archive::new(archive);
    let mut entries = archive.entries().map_err(|error| broken(&error))?;
    let first = entries.next().ok_or_else(|| {
        Failure::new(
            ErrorCode::Internal,
            format!("the sandbox sent nothing for \"{}\"", from.path()),
        )
    })?;
    let first = first.map_err(|error| broken(&error))?;
    let top = components(&first)?;
    match first.header().entry_type() {
        EntryType::Directory => {
            let place = land_here(from, to, true)?;
            let mut unpacker = Unpacker {
                tree: Tree::open(&place)?,
                top,
                keep_links,
                report: Report::default(),
            };
            for entry in entries {
                unpacker.entry(entry.map_err(|error| broken(&error))?)?;
            }
            Ok(unpacker.report.finish())
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            write_named(&land_here(from, to, false)?, first)?;
            Ok(Report::default())
        }
        EntryType::Symlink => {
            let target = first
                .link_name()
                .ok()
                .flatten()
                .unwrap_or_default()
                .into_owned();
            Err(Failure::usage(format!(
                "\"{}:{}\" is a symbolic link to \"{}\"",
                from.sandbox,
                from.path(),
                target.display()
            ))
            .hint("copy what it points to"))
        }
        _ => Err(Failure::usage(format!(
            "\"{}:{}\" is neither a file nor a directory",
            from.sandbox,
            from.path()
        ))),
    }
}

fn broken(error: &io::Error) -> Failure {
    Failure::io("read the sandbox's archive", error)
}

fn refused(path: &Path, why: &str) -> Failure {
    Failure::usage(format!(
        "the sandbox's archive has an entry \"{}\" {why}",
        path.display()
    ))
    .hint("nothing outside the destination was touched; do not trust this sandbox's files")
}

/// The components of an entry's name: none of them leads anywhere but down.
fn components<R: Read>(entry: &Entry<'_, R>) -> Result<Vec<OsString>, Failure> {
    downward(&entry.path().map_err(|error| broken(&error))?)
}

fn downward(path: &Path) -> Result<Vec<OsString>, Failure> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_owned()),
            Component::CurDir => {}
            Component::ParentDir => return Err(refused(path, "with \"..\" in it")),
            Component::RootDir | Component::Prefix(_) => {
                return Err(refused(path, "with an absolute path"));
            }
        }
    }
    if parts.len() > DEPTH_MAX {
        return Err(refused(path, "that is too deep"));
    }
    Ok(parts)
}

/// Writes the one file that was asked for to the place that the user named, as `cp` would: links that
/// the user has there are the user's.
fn write_named<R: Read>(place: &Path, mut entry: Entry<'_, R>) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::io(format!("write \"{}\"", place.display()), &error);
    let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
    let new = std::fs::symlink_metadata(place).is_err();
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(place)
        .map_err(failed)?;
    let copied = copy(&mut entry, &mut file, place);
    if copied.is_err() && new {
        // A part is not the file. Should this fail too, the first error is the one to tell.
        let _ = std::fs::remove_file(place);
    }
    copied
}

/// Copies an entry's content, and tells a bad archive from a bad disk.
fn copy<R: Read>(entry: &mut Entry<'_, R>, file: &mut File, place: &Path) -> Result<(), Failure> {
    let mut buffer = vec![0; 128 << 10];
    let mut left = entry.size();
    loop {
        let length = match entry.read(&mut buffer) {
            Ok(0) if left == 0 => return Ok(()),
            // The library takes the end of a cut archive for the end of the file.
            Ok(0) => return Err(broken(&io::ErrorKind::UnexpectedEof.into())),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(broken(&error)),
        };
        left = left.saturating_sub(length as u64);
        io::Write::write_all(file, &buffer[..length])
            .map_err(|error| Failure::io(format!("write \"{}\"", place.display()), &error))?;
    }
}

struct Unpacker {
    tree: Tree,
    /// What every entry's name begins with.
    top: Vec<OsString>,
    keep_links: bool,
    report: Report,
}

impl Unpacker {
    /// The part of a name below the top entry.
    fn below(&self, parts: &[OsString]) -> Result<Vec<OsString>, Failure> {
        parts
            .strip_prefix(self.top.as_slice())
            .map(<[OsString]>::to_vec)
            .ok_or_else(|| {
                refused(
                    &parts.iter().collect::<PathBuf>(),
                    "outside the directory that was asked for",
                )
            })
    }

    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<(), Failure> {
        let parts = self.below(&components(&entry)?)?;
        let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
        let Some((name, parent)) = parts.split_last() else {
            // The top entry once more.
            return Ok(());
        };
        match entry.header().entry_type() {
            EntryType::Directory => self.tree.directory(parent, name, mode),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mtime = entry.header().mtime().unwrap_or(0);
                self.tree.file(parent, name, mode, mtime, |file, path| {
                    copy(&mut entry, file, path)
                })
            }
            EntryType::Symlink => {
                let target = entry.link_name().map_err(|error| broken(&error))?;
                let target = target.unwrap_or_default().into_owned();
                if !self.keep_links && leads_out(parent.len(), &target) {
                    let why = format!(
                        "it links to \"{}\", outside (--keep-links)",
                        target.display()
                    );
                    self.report.skip(&parts, &why);
                    return Ok(());
                }
                self.tree.symlink(parent, name, &target)
            }
            EntryType::Link => {
                let target = entry.link_name().map_err(|error| broken(&error))?;
                let source = self.below(&downward(&target.unwrap_or_default())?)?;
                self.tree.link(&source, parent, name)
            }
            EntryType::XGlobalHeader => Ok(()),
            EntryType::Char | EntryType::Block => {
                self.report.skip(&parts, "it is a device");
                Ok(())
            }
            EntryType::Fifo => {
                self.report.skip(&parts, "it is a pipe");
                Ok(())
            }
            _ => {
                self.report.skip(&parts, "it is of an unknown kind");
                Ok(())
            }
        }
    }
}

/// Whether a link in a directory `depth` levels below the top leads out of the tree.
fn leads_out(depth: usize, target: &Path) -> bool {
    let mut depth = depth;
    for component in target.components() {
        match component {
            Component::RootDir | Component::Prefix(_) => return true,
            Component::ParentDir => match depth.checked_sub(1) {
                Some(up) => depth = up,
                None => return true,
            },
            Component::CurDir => {}
            Component::Normal(_) => depth += 1,
        }
    }
    false
}

#[cfg(test)]
mod tests;
