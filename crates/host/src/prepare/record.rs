//! `prepared.json`: what was done to the host, or was about to be, in this boot.

use std::io::ErrorKind;

use serde::{Deserialize, Serialize};

use super::PrepareError;
use super::cache::Cache;
use super::limits::Limit;
use super::modules::Module;
use crate::error::HostError;
use crate::layout::Layout;
use crate::process::boot_id;
use crate::publish::publish;

/// Everything that is to be taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    boot_id: String,
    /// Caches whose directory was mounted over.
    pub(super) caches: Vec<Cache>,
    /// Modules that were loaded.
    pub(super) modules: Vec<Module>,
    /// Limits that were raised.
    pub(super) limits: Vec<Limit>,
}

impl Record {
    fn empty() -> Self {
        Self {
            boot_id: boot_id(),
            caches: Vec::new(),
            modules: Vec::new(),
            limits: Vec::new(),
        }
    }

    /// What is on record; nothing where there is none.
    ///
    /// A run directory may outlive a boot. The limits of another boot went with it, and so did its mounts,
    /// but copies of attributes stay: only they are still to be taken back.
    pub(super) fn load(layout: &Layout) -> Result<Self, PrepareError> {
        let path = layout.prepared();
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::empty()),
            other => other.map_err(HostError::path("read", &path))?,
        };
        let found: Self = serde_json::from_slice(&bytes).map_err(|error| PrepareError::Record {
            path,
            why: error.to_string(),
        })?;
        if found.boot_id == boot_id() {
            return Ok(found);
        }
        Ok(Self {
            caches: found.caches,
            ..Self::empty()
        })
    }

    /// Puts it in place, whole or not at all.
    pub(super) fn write(&self, layout: &Layout) -> Result<(), PrepareError> {
        let path = layout.prepared();
        let text = serde_json::to_vec_pretty(self).map_err(|error| PrepareError::Record {
            path: path.clone(),
            why: error.to_string(),
        })?;
        Ok(publish(&path, &text)?)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.caches.is_empty() && self.modules.is_empty() && self.limits.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_another_boot_only_the_copies_are_left() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("s"), dir.path().to_owned());
        std::fs::create_dir(layout.host()).unwrap();
        let caches = vec![Cache { cpu: 1, index: 2 }];
        let mut record = Record {
            caches: caches.clone(),
            limits: vec![Limit {
                name: "fs.file-max".to_owned(),
                was: 1,
                now: 2,
            }],
            ..Record::empty()
        };
        record.write(&layout).unwrap();
        assert_eq!(Record::load(&layout).unwrap(), record);
        record.boot_id = "another".to_owned();
        record.write(&layout).unwrap();
        let expected = Record {
            caches,
            ..Record::empty()
        };
        assert_eq!(Record::load(&layout).unwrap(), expected);
    }

    #[test]
    fn what_is_no_record_is_named_and_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("s"), dir.path().to_owned());
        std::fs::create_dir(layout.host()).unwrap();
        std::fs::write(layout.prepared(), "{\"boot_id\":\"x\",\"wormholes\":[]}").unwrap();
        let error = Record::load(&layout).unwrap_err().to_string();
        assert!(
            error.contains("prepared.json") && error.contains("wormholes"),
            "{error}"
        );
    }
}
