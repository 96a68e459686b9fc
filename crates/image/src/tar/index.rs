//! What an uncompressed archive holds and where, without reading what its files hold.

use std::collections::BTreeMap;
use std::fs::File;

use super::entry::EntryKind;
use super::headers::Headers;
use super::stream::Stream;
use crate::error::ImportError;
use crate::job::{Cancel, Limits};
use crate::name::EntryPath;

/// An archive of images has no more entries than this; one of 500 layers has about 2,000.
const MAX_MEMBERS: u64 = 100_000;

/// A member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Member {
    /// A file: where its bytes are in the archive.
    File { offset: u64, size: u64 },
    /// A symbolic link, to be resolved in the archive.
    Symlink(Vec<u8>),
    /// A hard link to another member.
    HardLink(Vec<u8>),
    /// What holds no bytes that can be read.
    Other,
}

/// Lists the members of an archive by their names; the last of several with one name counts.
///
/// # Errors
/// As [`super::read`], for all that concerns names and headers.
pub(crate) fn index(
    file: &File,
    cancel: &Cancel,
) -> Result<BTreeMap<Vec<u8>, Member>, ImportError> {
    let limits = Limits::default();
    let stream = Stream::seekable(file).map_err(|source| ImportError::ReadTar {
        at: "at its start".to_owned(),
        source,
    })?;
    let mut headers = Headers::new(stream, true);
    let mut members = BTreeMap::new();
    let mut count = 0;
    while let Some((_, entry)) = headers.next(cancel)? {
        count += 1;
        if count > MAX_MEMBERS {
            let what = "entries of an archive of images";
            return Err(ImportError::limit(&entry.path, MAX_MEMBERS, what));
        }
        let path = EntryPath::parse(&entry.path, &limits)?;
        let name = path.components().join(&b'/');
        let member = match entry.kind {
            EntryKind::File => Member::File {
                offset: headers.stream.offset(),
                size: entry.stored,
            },
            EntryKind::Symlink(target) => Member::Symlink(target),
            EntryKind::HardLink(target) => Member::HardLink(target),
            EntryKind::GnuSparse { .. } => {
                return Err(headers
                    .stream
                    .corrupt("an archive of images has a sparse file; write it without holes"));
            }
            _ => Member::Other,
        };
        headers.stream.skip(entry.stored)?;
        headers.stream.skip_padding(entry.stored)?;
        members.insert(name, member);
    }
    headers.stream.expect_only_zeros()?;
    Ok(members)
}
