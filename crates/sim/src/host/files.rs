//! Files of the simulated host.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cowslip_host::usage::Space;
use cowslip_host::{Files, Head, HostError};
use cowslip_ledger::FileStamp;

use super::SimHost;
use crate::world::Node;

impl Files for SimHost {
    fn publish(&self, path: &Path, bytes: &[u8]) -> Result<(), HostError> {
        self.layout.own(path)?;
        self.step("host: publish file", |inner| {
            inner
                .replace(path, bytes)
                .map_err(HostError::path("publish", path))
        })
    }

    fn sync(&self, path: &Path) -> Result<(), HostError> {
        self.step("host: sync", |inner| {
            if inner.entries.contains_key(path) {
                return Ok(());
            }
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            Err(HostError::path("sync", path)(missing))
        })
    }

    fn rewrite(&self, path: &Path, at: u64, bytes: &[u8]) -> Result<(), HostError> {
        self.layout.own(path)?;
        self.step("host: rewrite", |inner| {
            let file = inner
                .file_mut(path)
                .map_err(HostError::path("write to", path))?;
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            // Beyond the head nothing is simulated.
            for (index, byte) in bytes.iter().enumerate() {
                if let Some(place) = at
                    .checked_add(index)
                    .and_then(|place| file.head.get_mut(place))
                {
                    *place = *byte;
                }
            }
            Ok(())
        })
    }

    fn remove_file(&self, path: &Path) -> Result<(), HostError> {
        self.layout.own(path)?;
        self.step("host: remove file", |inner| {
            if inner.entries.contains_key(path) {
                inner.file(path).map_err(HostError::path("remove", path))?;
                inner.remove(path);
            }
            Ok(())
        })
    }

    fn relink(&self, gone: &[PathBuf], links: &[(PathBuf, PathBuf)]) -> Result<(), HostError> {
        for path in gone.iter().chain(links.iter().map(|(_, to)| to)) {
            self.layout.own(path)?;
        }
        self.step("host: relink", |inner| {
            for path in gone.iter().chain(links.iter().map(|(_, to)| to)) {
                if inner.entries.contains_key(path) {
                    inner.file(path).map_err(HostError::path("remove", path))?;
                    inner.remove(path);
                }
            }
            for (from, to) in links {
                let failed = HostError::path("give another name to", from);
                let file = inner.file(from).cloned();
                // Images are never written again: a copy is as good as another name.
                file.and_then(|file| inner.create(to, Node::File(file)))
                    .map_err(failed)?;
            }
            Ok(())
        })
    }

    fn head(&self, path: &Path, limit: usize) -> Result<Option<Head>, HostError> {
        self.step("host: read head", |inner| {
            let Some(entry) = inner.entries.get(path) else {
                return Ok(None);
            };
            let Node::File(file) = &entry.node else {
                let why = "it is not a plain file".to_owned();
                return Err(HostError::Foreign {
                    path: path.to_owned(),
                    why,
                });
            };
            let bytes = file.head[..file.head.len().min(limit)].to_vec();
            Ok(Some(Head {
                bytes,
                length: file.length,
                stamp: FileStamp {
                    inode: entry.inode,
                    modified: i64::try_from(file.writes.len()).unwrap_or(i64::MAX),
                },
            }))
        })
    }

    /// A real file with the head that the simulated one has: its content is in the world.
    fn open(&self, path: &Path) -> Result<Option<std::fs::File>, HostError> {
        let Some(head) = self.head(path, usize::MAX)? else {
            return Ok(None);
        };
        let make = || {
            let file = tempfile::tempfile()?;
            file.write_all_at(&head.bytes, 0)?;
            file.set_len(head.length)?;
            Ok::<_, std::io::Error>(file)
        };
        make().map(Some).map_err(HostError::path("open", path))
    }

    /// Not a step: it is looked at by the clock, so a harness that counts steps must not meet it.
    fn space(&self, _path: &Path) -> Result<Space, HostError> {
        Ok(self.world.lock().space)
    }

    fn usage(&self, path: &Path) -> Result<u64, HostError> {
        Ok(self.world.lock().usage(path))
    }
}
