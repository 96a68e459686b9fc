//! `ls`, `inspect` and `info`: what there is.

use std::collections::BTreeMap;

use cowslip_model::{ByteSize, api};

use crate::Engine;
use crate::error::EngineError;

impl Engine {
    /// Every sandbox, oldest first.
    ///
    /// # Errors
    /// When the ledger cannot be read; so for every method here.
    pub fn sandboxes(&self) -> Result<Vec<api::Sandbox>, EngineError> {
        let all = self.site.ledger.read(|tx| tx.sandboxes())?;
        all.iter().map(|record| self.view_sandbox(record)).collect()
    }

    /// One sandbox, by name, id or start of an id.
    pub fn sandbox(&self, reference: &str) -> Result<api::Sandbox, EngineError> {
        self.view_sandbox(&self.find_sandbox(reference)?)
    }

    /// Every template, oldest first.
    pub fn templates(&self) -> Result<Vec<api::Template>, EngineError> {
        let all = self.site.ledger.read(|tx| tx.templates())?;
        all.iter()
            .map(|record| self.view_template(record))
            .collect()
    }

    /// One template.
    pub fn template(&self, reference: &str) -> Result<api::Template, EngineError> {
        self.view_template(&self.find_template(reference)?)
    }

    /// Every kernel, oldest first.
    pub fn kernels(&self) -> Result<Vec<api::Kernel>, EngineError> {
        let all = self.site.ledger.read(|tx| tx.kernels())?;
        Ok(all.iter().map(|record| self.view_kernel(record)).collect())
    }

    /// One kernel.
    pub fn kernel(&self, reference: &str) -> Result<api::Kernel, EngineError> {
        Ok(self.view_kernel(&self.find_kernel(reference)?))
    }

    /// Every published checkpoint, oldest first.
    pub fn checkpoints(&self) -> Result<Vec<api::Checkpoint>, EngineError> {
        let all = self.site.ledger.read(|tx| tx.checkpoints())?;
        all.iter()
            .filter(|one| one.ready)
            .map(|record| self.view_checkpoint(record))
            .collect()
    }

    /// One checkpoint.
    pub fn checkpoint(&self, reference: &str) -> Result<api::Checkpoint, EngineError> {
        self.view_checkpoint(&self.find_checkpoint(reference)?)
    }

    /// What this engine is and uses.
    pub fn info(&self) -> Result<api::Info, EngineError> {
        let (states, templates, kernels, checkpoints, handles) = self.site.ledger.read(|tx| {
            let mut states: BTreeMap<String, u64> = BTreeMap::new();
            for sandbox in tx.sandboxes()? {
                *states.entry(sandbox.state.to_string()).or_default() += 1;
            }
            let ready = tx.checkpoints()?.iter().filter(|one| one.ready).count();
            Ok::<_, EngineError>((
                states,
                tx.templates()?.len(),
                tx.kernels()?.len(),
                ready,
                tx.handles()?.len(),
            ))
        })?;
        let described = self.monitors.describe();
        let state = self.site.layout.state();
        Ok(api::Info {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.site.ledger.instance().to_string(),
            pid: std::process::id(),
            state_dir: state.display().to_string(),
            run_dir: self.site.layout.run().display().to_string(),
            backend: self.volumes.backend().as_str().to_owned(),
            backend_reason: self.notes.join("; "),
            monitor: described.monitor,
            monitor_reason: described.reason,
            accelerator_reason: described.accelerator_reason,
            sandboxes: states,
            templates: templates as u64,
            kernels: kernels as u64,
            checkpoints: checkpoints as u64,
            handles: handles as u64,
            disk_free: ByteSize(cowslip_host::usage::free_space(state)?),
            memory_available: ByteSize(cowslip_host::usage::memory()?.available),
        })
    }
}
