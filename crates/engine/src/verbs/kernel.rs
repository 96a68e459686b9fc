//! `kernel import` and `kernel rm`, and keeping the agent in the initramfs up to date.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use cowslip_host::DirectorySpec;
use cowslip_ledger::{KernelRecord, LedgerError, Owner, Synchronous};
use cowslip_model::api::{self, KernelImportRequest};
use cowslip_model::{ByteSize, KernelId, Timestamp};

use crate::error::EngineError;
use crate::unwind::unwind;
use crate::verbs::rebuild::{self, RECORD};
use crate::{Engine, blocking, to_the_end};

/// The agent's file name.
const AGENT: &str = "cowslip-agent";

impl Engine {
    /// Imports a guest kernel and makes its initramfs.
    ///
    /// # Errors
    /// When a file is not what it should be; nothing is left then.
    pub async fn import_kernel(
        self: &Arc<Self>,
        request: KernelImportRequest,
    ) -> Result<api::Kernel, EngineError> {
        if self
            .site
            .ledger
            .read(|tx| tx.kernel_named(request.name.as_str()))?
            .is_some()
        {
            return Err(EngineError::Exists {
                kind: "kernel",
                name: request.name,
            });
        }
        let engine = Arc::clone(self);
        to_the_end(async move {
            let id = KernelId::random().map_err(LedgerError::from)?;
            let _making = engine.making(Owner::Kernel(id));
            match engine.import_kernel_as(id, request).await {
                Ok(record) => Ok(engine.view_kernel(&record)),
                Err(error) => Err(error.and_rollback(engine.unwind_kernel(id).await)),
            }
        })
        .await
    }

    async fn import_kernel_as(
        &self,
        id: KernelId,
        request: KernelImportRequest,
    ) -> Result<KernelRecord, EngineError> {
        let agent = self.agent_path()?;
        let directory = self.site.layout.kernel(id);
        let spec = DirectorySpec {
            path: directory.clone(),
            mode: 0o700,
        };
        self.make_directory(Owner::Kernel(id), spec).await?;
        let name = request.name.clone();
        let manifest = blocking(move || {
            let modules = request.modules.as_deref().map(Path::new);
            cowslip_guest::import_kernel(Path::new(&request.image), modules, &agent, &directory)
        })
        .await?
        .map_err(|source| EngineError::ImportKernel {
            name: name.clone(),
            source,
        })?;
        let record = KernelRecord {
            id,
            name: name.clone(),
            release: manifest.release.clone(),
            digest: manifest.kernel.sha256.to_string(),
            format: format_word(manifest.format).to_owned(),
            modules: manifest.modules.len() as u64,
            size: ByteSize(manifest.kernel.size + manifest.initramfs.size),
            created_at: Timestamp::now(),
        };
        let text = rebuild::encode(&record)?;
        let host = Arc::clone(&self.site.host);
        let path = self.site.layout.kernel(id).join(RECORD);
        blocking(move || host.publish(&path, &text)).await??;
        let event = self
            .site
            .ledger
            .write("kernel: publish", Synchronous::Full, |tx| {
                if tx.kernel_named(name.as_str())?.is_some() {
                    return Err(EngineError::Exists {
                        kind: "kernel",
                        name: name.clone(),
                    });
                }
                tx.put_kernel(&record)?;
                let detail = serde_json::json!({ "release": record.release });
                Ok(tx.emit("kernel.imported", id, Some(&name), detail)?)
            })?;
        self.announce(event);
        Ok(record)
    }

    async fn unwind_kernel(&self, id: KernelId) -> Result<(), EngineError> {
        let site = self.site.clone();
        Ok(blocking(move || unwind(&site, Owner::Kernel(id))).await??)
    }

    /// Removes a kernel.
    ///
    /// # Errors
    /// When sandboxes or checkpoints need it: they are named.
    pub async fn remove_kernel(self: &Arc<Self>, reference: &str) -> Result<(), EngineError> {
        let record = self.find_kernel(reference)?;
        let engine = Arc::clone(self);
        to_the_end(async move {
            let event = engine
                .site
                .ledger
                .write("kernel: delete", Synchronous::Normal, |tx| {
                    let mut users: Vec<String> = tx
                        .sandboxes()?
                        .iter()
                        .filter(|sandbox| sandbox.spec.kernel == record.id)
                        .map(|sandbox| format!("sandbox \"{}\"", sandbox.name))
                        .collect();
                    users.extend(
                        tx.checkpoints()?
                            .iter()
                            .filter(|checkpoint| checkpoint.spec.kernel == record.id)
                            .map(|checkpoint| format!("checkpoint \"{}\"", checkpoint.name)),
                    );
                    if !users.is_empty() {
                        return Err(EngineError::InUse {
                            kind: "kernel",
                            name: record.name.to_string(),
                            users,
                            hint: "remove those first",
                        });
                    }
                    tx.delete_kernel(record.id)?;
                    let detail = serde_json::json!({ "release": record.release });
                    Ok(tx.emit("kernel.removed", record.id, Some(&record.name), detail)?)
                })?;
            engine.announce(event);
            engine.unwind_kernel(record.id).await
        })
        .await
    }

    /// The agent's binary: as configured, beside this program, or where packages put it.
    pub(crate) fn agent_path(&self) -> Result<PathBuf, EngineError> {
        if let Some(path) = &self.config.paths.agent {
            return Ok(path.clone());
        }
        let beside = std::env::current_exe()
            .ok()
            .and_then(|exe| exe.parent().map(|dir| dir.join(AGENT)));
        let places = [
            beside,
            Some(Path::new("/usr/local/lib/cowslip").join(AGENT)),
            Some(Path::new("/usr/lib/cowslip").join(AGENT)),
        ];
        places.into_iter().flatten().find(|path| path.is_file()).ok_or_else(|| {
            EngineError::Unsupported(format!(
                "the guest agent \"{AGENT}\" is neither beside this program nor in /usr/lib/cowslip: build it with: make build"
            ))
        })
    }

    /// Puts this program's agent into a kernel's initramfs if it holds another; once a kernel and
    /// engine, since hashing the agent takes as long as starting a monitor.
    pub(crate) async fn refresh_agent(&self, kernel: &Path) -> Result<(), EngineError> {
        let done = |kernel: &Path, insert: bool| {
            let mut table = self
                .refreshed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if insert {
                table.insert(kernel.to_owned())
            } else {
                table.contains(kernel)
            }
        };
        if done(kernel, false) || !kernel.exists() {
            return Ok(());
        }
        let Ok(agent) = self.agent_path() else {
            return Ok(());
        };
        let directory = kernel.to_owned();
        let outcome =
            blocking(move || cowslip_guest::refresh_initramfs(&directory, &agent)).await?;
        match outcome {
            Ok(renewed) => {
                if renewed {
                    tracing::info!(kernel = %kernel.display(), "put this program's agent into the initramfs");
                }
                done(kernel, true);
                Ok(())
            }
            Err(error) => Err(EngineError::Internal(
                crate::error::chain(&error).join(": "),
            )),
        }
    }
}

/// A kernel's format, as the API names it.
fn format_word(format: cowslip_guest::KernelFormat) -> &'static str {
    match format {
        cowslip_guest::KernelFormat::BzImage => "bzImage",
        cowslip_guest::KernelFormat::Elf => "elf",
    }
}
