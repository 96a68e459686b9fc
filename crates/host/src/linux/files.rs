//! Files of the real host.

use std::path::{Path, PathBuf};

use super::LinuxHost;
use crate::error::HostError;
use crate::host::Files;
use crate::{Head, cgroup, head, process, publish, usage};

impl Files for LinuxHost {
    fn publish(&self, path: &Path, bytes: &[u8]) -> Result<(), HostError> {
        publish::publish(path, bytes)
    }

    fn remove_file(&self, path: &Path) -> Result<(), HostError> {
        self.layout.own(path)?;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(HostError::path("remove", path)),
        }
    }

    fn relink(&self, gone: &[PathBuf], links: &[(PathBuf, PathBuf)]) -> Result<(), HostError> {
        for path in gone.iter().chain(links.iter().map(|(_, to)| to)) {
            self.remove_file(path)?;
        }
        for (from, to) in links {
            std::fs::hard_link(from, to).map_err(HostError::path("give another name to", from))?;
        }
        Ok(())
    }

    fn sync(&self, path: &Path) -> Result<(), HostError> {
        publish::sync(path)
    }

    fn rewrite(&self, path: &Path, at: u64, bytes: &[u8]) -> Result<(), HostError> {
        publish::rewrite(path, at, bytes)
    }

    fn head(&self, path: &Path, limit: usize) -> Result<Option<Head>, HostError> {
        head::head(path, limit)
    }

    fn open(&self, path: &Path) -> Result<Option<std::fs::File>, HostError> {
        head::open(path)
    }

    fn usage(&self, path: &Path) -> Result<u64, HostError> {
        usage::usage(path)
    }

    fn space(&self, path: &Path) -> Result<usage::Space, HostError> {
        let unwritten = || {
            cgroup::unwritten(&process::mark_prefix(self.instance))
                .map_err(HostError::path("look for what machines wrote to", path))
        };
        // Before and after: what is written on meanwhile is not to be counted twice.
        let before = unwritten()?;
        let found = usage::space(path)?;
        let unwritten = before.min(unwritten()?);
        Ok(usage::Space {
            free: found.free.saturating_sub(unwritten),
            ..found
        })
    }
}
