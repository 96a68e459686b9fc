//! Packs local files for a guest. As in docker, everything belongs to root there.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::place::{Landing, Sources};
use crate::exit::Failure;
use crate::output;

/// Writes the archive that lands as `landing` says.
pub(crate) fn pack(
    sources: &Sources,
    landing: &Landing,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut packer = Packer {
        builder: Builder::new(out),
    };
    match &landing.name {
        Some(name) => packer.tree(&sources.path, Path::new(name))?,
        None => packer.contents(&sources.path, Path::new(""))?,
    }
    packer
        .builder
        .into_inner()
        .map(drop)
        .map_err(|error| sending(&error))
}

struct Packer<'a> {
    builder: Builder<&'a mut dyn Write>,
}

fn sending(error: &io::Error) -> Failure {
    Failure::io("send the archive", error)
}

fn reading(path: &Path) -> impl Fn(io::Error) -> Failure + '_ {
    move |error| Failure::io(format!("read \"{}\"", path.display()), &error)
}

impl Packer<'_> {
    /// A file or directory and all below it, under `name`.
    fn tree(&mut self, path: &Path, name: &Path) -> Result<(), Failure> {
        // Links above were decided on when the source was looked at; a slash follows the top one.
        let followed = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        let found = if followed {
            std::fs::metadata(path)
        } else {
            std::fs::symlink_metadata(path)
        };
        let found = found.map_err(reading(path))?;
        let mut header = Header::new_gnu();
        header.set_metadata(&found);
        header.set_uid(0);
        header.set_gid(0);
        let kind = found.file_type();
        if kind.is_dir() {
            header.set_size(0);
            self.builder
                .append_data(&mut header, name, io::empty())
                .map_err(|error| sending(&error))?;
            self.contents(path, name)
        } else if kind.is_symlink() {
            let target = std::fs::read_link(path).map_err(reading(path))?;
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            self.builder
                .append_link(&mut header, name, target)
                .map_err(|error| sending(&error))
        } else if kind.is_file() {
            self.file(path, name, header)
        } else {
            let what = if kind.is_socket() {
                "a socket"
            } else {
                "a device or pipe"
            };
            output::note(&format!(
                "cowslip: left out \"{}\": it is {what}",
                path.display()
            ));
            Ok(())
        }
    }

    /// Everything in a directory, under `name`, in a fixed order.
    fn contents(&mut self, path: &Path, name: &Path) -> Result<(), Failure> {
        let mut entries: Vec<PathBuf> = std::fs::read_dir(path)
            .and_then(|entries| {
                entries
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect()
            })
            .map_err(reading(path))?;
        entries.sort();
        for entry in entries {
            if let Some(last) = entry.file_name() {
                self.tree(&entry, &name.join(last))?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, name: &Path, mut header: Header) -> Result<(), Failure> {
        let file = File::open(path).map_err(reading(path))?;
        // Of the open file: the name may stand for another one by now.
        let size = file.metadata().map_err(reading(path))?.size();
        header.set_size(size);
        let mut exact = Exact {
            file: file.take(size),
            left: size,
            failed: None,
        };
        let appended = self.builder.append_data(&mut header, name, &mut exact);
        if let Some(error) = exact.failed {
            return Err(reading(path)(error));
        }
        appended.map_err(|error| sending(&error))
    }
}

/// A file that must have the size its header says.
struct Exact {
    file: io::Take<File>,
    left: u64,
    /// Why reading failed, so that it is told apart from sending.
    failed: Option<io::Error>,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buffer) {
            Ok(0) if self.left > 0 && !buffer.is_empty() => {
                self.failed = Some(io::Error::other("it was cut while it was read"));
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Ok(length) => {
                self.left -= length as u64;
                Ok(length)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_packed_with_its_links_and_belongs_to_root() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("src");
        std::fs::create_dir_all(source.join("sub")).unwrap();
        std::fs::write(source.join("sub/file"), "text").unwrap();
        std::os::unix::fs::symlink("sub/file", source.join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
        let sources = Sources::look(source.to_str().unwrap()).unwrap();
        let landing = Landing {
            directory: "/".into(),
            name: Some("dst".into()),
        };
        let mut archive = Vec::new();
        pack(&sources, &landing, &mut archive).unwrap();
        let mut read = tar::Archive::new(&archive[..]);
        let entries: Vec<(String, EntryType, u64)> = read
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                (
                    path,
                    entry.header().entry_type(),
                    entry.header().uid().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            entries,
            [
                ("dst".to_owned(), EntryType::Directory, 0),
                ("dst/link".to_owned(), EntryType::Symlink, 0),
                ("dst/sub".to_owned(), EntryType::Directory, 0),
                ("dst/sub/file".to_owned(), EntryType::Regular, 0),
            ]
        );
        let contents = Sources::look(&format!("{}/.", source.display())).unwrap();
        let mut archive = Vec::new();
        pack(&contents, &Landing::into("/"), &mut archive).unwrap();
        let mut read = tar::Archive::new(&archive[..]);
        let first = read.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(first.path().unwrap(), Path::new("link"));
    }
}
