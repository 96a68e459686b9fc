//! `create`: a sandbox with a volume and no machine.

use std::sync::Arc;

use cowslip_host::{Directory, DirectorySpec};
use cowslip_ledger::{
    LayerRecord, LedgerError, Owner, SandboxRecord, Synchronous, TemplateRecord, Tx,
};
use cowslip_model::api::{self, CreateRequest};
use cowslip_model::size::MIB;
use cowslip_model::{
    ByteSize, DiskLimits, LayerId, Lifetime, MonitorKind, Name, NetworkMode, OnExpiry, Resources,
    SandboxId, SandboxSpec, SandboxState, Timestamp, Transition,
};

use crate::error::EngineError;
use crate::network::{Slots, refuse_taken};
use crate::{Engine, blocking, names, to_the_end};

/// Guest memory at least, in bytes: less boots no kernel with its initramfs.
const MEMORY_MIN: u64 = 64 * MIB;
/// Disks at most, in bytes: an ext4 file system's bound with 4 KiB blocks.
pub(crate) const DISK_MAX: u64 = 16 << 40;
/// Entries of a sandbox's environment at most, and bytes of all of them.
const ENV_MAX: usize = 1024;
const ENV_BYTES_MAX: usize = 256 << 10;

impl Engine {
    /// Makes a sandbox; it is stopped then.
    ///
    /// # Errors
    /// When the request is not acceptable, or something could not be made; nothing is left then.
    pub async fn create(
        self: &Arc<Self>,
        request: CreateRequest,
    ) -> Result<api::Sandbox, EngineError> {
        let engine = Arc::clone(self);
        to_the_end(async move {
            let record = engine.create_record(request, false).await?;
            engine.view_sandbox(&record)
        })
        .await
    }

    /// Makes a sandbox and gives its record.
    pub(crate) async fn create_record(
        self: &Arc<Self>,
        request: CreateRequest,
        auto_remove: bool,
    ) -> Result<SandboxRecord, EngineError> {
        let template = self.find_template(&request.template)?;
        let spec = self.spec_of(&request, &template).await?;
        if auto_remove && spec.on_expiry != OnExpiry::Remove {
            return Err(EngineError::Invalid(
                "a sandbox that goes with its command cannot be kept when its time is over: leave out --rm or \
                 --on-expiry"
                    .to_owned(),
            ));
        }
        let layer = LayerRecord {
            id: LayerId::random().map_err(LedgerError::from)?,
            template: template.id,
            parent: None,
            format: self.volumes.format(),
            size: spec.resources.disk,
            frozen: false,
            created_at: Timestamp::now(),
        };
        let record = self.record_new(request.name, spec, auto_remove, layer.id)?;
        self.remove_left_over(&record.name).await?;
        let _busy = self.lock(record.id).await;
        let record = self.begin_creation(record, &layer, |_| Ok(()))?;
        let made = async {
            self.make_volume(&record, &layer, None).await?;
            self.change(
                record.id,
                "create: publish",
                Synchronous::Full,
                |sandbox, tx| {
                    sandbox.state = SandboxState::Stopped;
                    sandbox.transition = None;
                    tx.emit(
                        "sandbox.created",
                        sandbox.id,
                        Some(&sandbox.name),
                        serde_json::json!({
                            "template": sandbox.spec.template,
                        }),
                    )
                    .map(Some)
                },
            )
        };
        match made.await {
            Ok(record) => {
                self.ttl_changed.notify_one();
                Ok(record)
            }
            Err(error) => Err(error.and_rollback(self.remove_locked(record.id).await)),
        }
    }

    /// The record of a sandbox to be, without a name until it is written.
    pub(crate) fn record_new(
        &self,
        name: Option<Name>,
        spec: SandboxSpec,
        auto_remove: bool,
        layer: LayerId,
    ) -> Result<SandboxRecord, EngineError> {
        let name = match name {
            Some(name) => name,
            None => names::make_up(|name| {
                Ok(self
                    .site
                    .ledger
                    .read(|tx| tx.sandbox_named(name))?
                    .is_some())
            })?,
        };
        let created_at = Timestamp::now();
        Ok(SandboxRecord {
            id: SandboxId::random().map_err(LedgerError::from)?,
            name,
            expires_at: spec.ttl.map(|ttl| created_at.after(ttl.duration())),
            spec,
            state: SandboxState::Creating,
            transition: Some(Transition::Creating),
            reason: None,
            layer: Some(layer),
            next_layer: None,
            generation: 1,
            forked_from: None,
            paused_image: false,
            monitor: None,
            main: None,
            auto_remove,
            slot: 0,
            network_pending: false,
            created_at,
            disk_fallback: None,
            memory_base: None,
            phases: Vec::new(),
            started_at: None,
        })
    }

    /// Writes the record of a sandbox to be and of its layer, so that whatever comes next is known
    /// to recovery. `check` may refuse, in the same transaction. The caller holds its lock: one that is being
    /// made and that nobody holds was left.
    pub(crate) fn begin_creation(
        &self,
        mut record: SandboxRecord,
        layer: &LayerRecord,
        check: impl FnOnce(&mut Tx<'_>) -> Result<(), EngineError>,
    ) -> Result<SandboxRecord, EngineError> {
        self.refuse_without_space("create")?;
        let slots = self.spares.lock();
        self.site
            .ledger
            .write("create: record", Synchronous::Normal, |tx| {
                check(tx)?;
                refuse_taken(tx, record.id, &record.spec.network)?;
                if tx.sandbox_named(&record.name)?.is_some() {
                    return Err(EngineError::Exists {
                        kind: "sandbox",
                        name: record.name.clone(),
                    });
                }
                record.slot = self.free_slot(tx, &slots, record.spec.network.mode)?;
                tx.put_layer(layer)?;
                tx.put_sandbox(&record)?;
                Ok(record)
            })
    }

    /// A number that no sandbox has, for its uid and its addresses.
    fn free_slot(
        &self,
        tx: &Tx<'_>,
        slots: &Slots<'_>,
        mode: NetworkMode,
    ) -> Result<u32, EngineError> {
        let count = self.slot_count();
        slots.choose(tx, count, mode)?.ok_or_else(|| {
            EngineError::NoSpace(format!(
                "all {count} sandboxes that there can be are there: remove some, or raise machine.uid_count and \
                 network.range"
            ))
        })
    }

    /// Makes a sandbox's directory and the file of its layer.
    pub(crate) async fn make_volume(
        &self,
        record: &SandboxRecord,
        layer: &LayerRecord,
        below: Option<&LayerRecord>,
    ) -> Result<(), EngineError> {
        let spec = DirectorySpec {
            path: self.site.layout.sandbox(record.id),
            mode: 0o700,
        };
        self.make_directory(Owner::Sandbox(record.id), spec).await?;
        self.volumes.make_layer(&self.site, layer, below).await?;
        Ok(())
    }

    /// Makes a directory for `owner` and leaves it with it.
    pub(crate) async fn make_directory(
        &self,
        owner: Owner,
        spec: DirectorySpec,
    ) -> Result<(), EngineError> {
        let slot = self.site.ledger.reserve::<Directory>(owner, spec, &[])?;
        let host = Arc::clone(&self.site.host);
        blocking(move || host.make_directory(slot)).await??.settle();
        Ok(())
    }

    /// Turns a request into a specification, refusing what no machine can be.
    pub(crate) async fn spec_of(
        &self,
        request: &CreateRequest,
        template: &TemplateRecord,
    ) -> Result<SandboxSpec, EngineError> {
        let invalid = |text: String| Err(EngineError::Invalid(text));
        let kernel = match &request.kernel {
            Some(reference) => self.find_kernel(reference)?,
            None => self.default_kernel()?,
        };
        let cpus = request.cpus.unwrap_or(self.config.defaults.cpus);
        let vmm = self.monitor_for(request, &kernel).await?;
        Self::check_cpus(cpus, vmm)?;
        if let Some(template) = &request.cpu_template {
            if vmm != MonitorKind::Firecracker {
                return invalid(
                    "only Firecracker has CPU templates: add --vmm firecracker, or leave --cpu-template out"
                        .to_owned(),
                );
            }
            template
                .check()
                .map_err(|error| EngineError::Invalid(error.to_string()))?;
        }
        let disk_limits = DiskLimits {
            bandwidth: request.disk_bandwidth,
            operations: request.disk_iops,
        };
        if disk_limits.bandwidth == Some(ByteSize(0)) || disk_limits.operations == Some(0) {
            return invalid(
                "a disk that may not be used at all: give a limit of 1 or more".to_owned(),
            );
        }
        let asked = request.memory.unwrap_or(self.config.defaults.memory);
        let host = cowslip_host::usage::memory()?;
        if asked.bytes() < MEMORY_MIN {
            return invalid(format!(
                "{asked} of memory: a guest needs at least {}",
                ByteSize(MEMORY_MIN)
            ));
        }
        if asked.bytes() > host.total {
            return invalid(format!(
                "{asked} of memory: this host has {} in all, {} of it free",
                ByteSize(host.total),
                ByteSize(host.available)
            ));
        }
        let memory = ByteSize::mib(asked.mib_ceil());
        let disk = match request.disk {
            None => template.size,
            Some(disk) if disk < template.size => {
                return invalid(format!(
                    "a disk of {disk} is too small: the template \"{}\" has {}",
                    request.template, template.size
                ));
            }
            Some(disk) if disk.bytes() > DISK_MAX => {
                return invalid(format!(
                    "a disk of {disk}: give at most {}",
                    ByteSize(DISK_MAX)
                ));
            }
            Some(disk) => ByteSize(disk.bytes().div_ceil(4096) * 4096),
        };
        let image = template.config.clone().unwrap_or_default();
        let mut env = image.env;
        env.extend(request.env.clone());
        check_env(&env)?;
        let workdir = request.workdir.clone().or(image.workdir);
        let user = request.user.clone().or(image.user);
        for (what, text) in [("working directory", &workdir), ("user", &user)] {
            if text
                .as_ref()
                .is_some_and(|text| text.is_empty() || text.contains('\0'))
            {
                return invalid(format!("the {what} is empty or has a NUL"));
            }
        }
        if workdir.as_ref().is_some_and(|dir| !dir.starts_with('/')) {
            return invalid("the working directory must be an absolute path".to_owned());
        }
        let ttl = request.ttl.or(self.config.defaults.ttl);
        let on_expiry = request.on_expiry.unwrap_or_default();
        refuse_without_end(ttl, on_expiry)?;
        Ok(SandboxSpec {
            template: template.id,
            kernel: kernel.id,
            resources: Resources { cpus, memory, disk },
            env,
            workdir,
            user,
            ttl,
            on_expiry,
            vmm,
            cpu_template: request.cpu_template.clone(),
            disk_limits,
            isolation: self.allowed_isolation(request.isolation, self.config.machine.isolation)?,
            network: self.network_of(request.network.clone(), vmm)?,
        })
    }
}

/// Refuses to say what becomes of a sandbox whose time is never over.
pub(crate) fn refuse_without_end(
    ttl: Option<Lifetime>,
    on_expiry: OnExpiry,
) -> Result<(), EngineError> {
    if ttl.is_none() && on_expiry != OnExpiry::Remove {
        return Err(EngineError::Invalid(
            "a sandbox that lives for ever does not expire: give it a time with --ttl, or leave out --on-expiry"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Refuses what no environment can hold.
pub(crate) fn check_env(
    env: &std::collections::BTreeMap<String, String>,
) -> Result<(), EngineError> {
    let bytes: usize = env
        .iter()
        .map(|(name, value)| name.len() + value.len() + 2)
        .sum();
    if env.len() > ENV_MAX || bytes > ENV_BYTES_MAX {
        return Err(EngineError::Invalid(format!(
            "the environment has {} entries and {bytes} bytes: the limits are {ENV_MAX} and {ENV_BYTES_MAX}",
            env.len()
        )));
    }
    let bad = env.iter().find(|(name, value)| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    });
    match bad {
        Some((name, _)) => Err(EngineError::Invalid(format!(
            "the environment variable {name:?} cannot be set"
        ))),
        None => Ok(()),
    }
}
