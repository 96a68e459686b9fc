//! The second witness: for each sandbox one file, `handles/<sandbox id>.json`, with its record, its
//! handles and its chain of layers, replaced atomically before the transaction commits (R47).
//!
//! The files stand beside the sandboxes' directories and not in them, because the first handle of
//! a sandbox *is* its directory, and its intent must be on disk before the directory exists.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use cowslip_model::SandboxId;
use serde::{Deserialize, Serialize};

use crate::db::LedgerError;
use crate::handle::HandleRow;
use crate::owner::Owner;
use crate::record::{LayerRecord, SandboxRecord};
use crate::tx::Tx;

/// What one mirror file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorFile {
    /// Format of this file.
    pub version: u32,
    /// The sandbox, once it is recorded.
    pub sandbox: Option<SandboxRecord>,
    /// Its layers, base first.
    pub layers: Vec<LayerRecord>,
    /// Its handles, its machine's and its layers'.
    pub handles: Vec<HandleRow>,
}

/// The mirror files that can be read, by sandbox, and the paths of those that cannot.
pub type MirrorFiles = (Vec<(SandboxId, MirrorFile)>, Vec<PathBuf>);

/// The directory of mirror files.
#[derive(Debug)]
pub struct Mirror {
    dir: PathBuf,
}

impl Mirror {
    pub(crate) fn open(dir: PathBuf) -> Result<Self, LedgerError> {
        fs::create_dir_all(&dir).map_err(|source| LedgerError::Mirror {
            path: dir.clone(),
            source,
        })?;
        Ok(Self { dir })
    }

    fn path(&self, sandbox: SandboxId) -> PathBuf {
        self.dir.join(format!("{sandbox}.json"))
    }

    pub(crate) fn write(&self, tx: &Tx<'_>, sandbox: SandboxId) -> Result<(), LedgerError> {
        let record = tx.sandbox(sandbox)?;
        let mut layers = Vec::new();
        if let Some(record) = &record {
            if let Some(top) = record.layer {
                layers = tx.chain(top)?;
            }
            if let Some(next) = record.next_layer {
                layers.extend(
                    tx.layer(next)?
                        .filter(|next| layers.iter().all(|l| l.id != next.id)),
                );
            }
        }
        let mut handles = tx.handles_of(Owner::Sandbox(sandbox))?;
        handles.extend(tx.handles_of(Owner::Machine(sandbox))?);
        for layer in &layers {
            handles.extend(tx.handles_of(Owner::Layer(layer.id))?);
        }
        if record.is_none() && handles.is_empty() {
            return self.remove(sandbox);
        }
        let file = MirrorFile {
            version: 1,
            sandbox: record,
            layers,
            handles,
        };
        let text = serde_json::to_vec_pretty(&file).map_err(|source| LedgerError::Encode {
            what: format!("the mirror of sandbox {sandbox}"),
            source,
        })?;
        let path = self.path(sandbox);
        let temporary = path.with_extension("json.tmp");
        let written = fs::File::create(&temporary)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|source| LedgerError::Mirror { path, source })
    }

    pub(crate) fn remove(&self, sandbox: SandboxId) -> Result<(), LedgerError> {
        let path = self.path(sandbox);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(LedgerError::Mirror { path, source })
            }
            _ => Ok(()),
        }
    }

    /// The sandboxes that have a mirror file, readable or not. What a crash left half written goes.
    pub(crate) fn list(&self) -> Result<Vec<SandboxId>, LedgerError> {
        let fail = |path: &PathBuf| {
            let path = path.clone();
            move |source| LedgerError::Mirror { path, source }
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(fail(&self.dir))? {
            let path = entry.map_err(fail(&self.dir))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            if name.ends_with(".json.tmp") {
                fs::remove_file(&path).map_err(fail(&path))?;
            } else if let Some(stem) = name.strip_suffix(".json") {
                found.extend(stem.parse::<SandboxId>().ok());
            }
        }
        Ok(found)
    }

    /// Every mirror file that can be read, and the paths of those that cannot.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn read_all(&self) -> Result<MirrorFiles, LedgerError> {
        let fail = |source| LedgerError::Mirror {
            path: self.dir.clone(),
            source,
        };
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let id = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.strip_suffix(".json"))
                .and_then(|stem| stem.parse::<SandboxId>().ok());
            let Some(id) = id else { continue };
            match fs::read(&path)
                .ok()
                .and_then(|text| serde_json::from_slice(&text).ok())
            {
                Some(file) => good.push((id, file)),
                None => bad.push(path),
            }
        }
        good.sort_by_key(|(id, _)| *id);
        Ok((good, bad))
    }
}
