//! Records as the API shows them.

use cowslip_host::{Process, process::ProcessIdentity};
use cowslip_ledger::{
    CheckpointRecord, EventRecord, KernelRecord, Owner, Resource, SandboxRecord, TemplateRecord,
};
use cowslip_model::{ByteSize, CpuTemplate, DiskFormat, MonitorKind, SandboxState, api};
use cowslip_store::Backend;

use crate::Engine;
use crate::error::EngineError;
use crate::parts::in_words;

impl Engine {
    pub(crate) fn view_sandbox(&self, record: &SandboxRecord) -> Result<api::Sandbox, EngineError> {
        let (template_name, kernel, layers, handles) = self.site.ledger.read(|tx| {
            let template = tx.template(record.spec.template)?;
            Ok::<_, EngineError>((
                template.and_then(|template| template.names.first().cloned()),
                tx.kernel(record.spec.kernel)?
                    .map_or_else(String::new, |k| k.name.to_string()),
                record
                    .layer
                    .map(|top| tx.chain(top))
                    .transpose()?
                    .unwrap_or_default(),
                tx.handles_of(Owner::Machine(record.id))?,
            ))
        })?;
        let used: u64 = layers
            .iter()
            // One that vanishes between the two looks counts nothing.
            .map(|layer| self.volumes.usage(&self.site, layer).unwrap_or(0))
            .sum();
        let pid = handles
            .iter()
            .find(|row| row.kind == Process::KIND)
            .and_then(|row| row.identity.clone())
            .and_then(|identity| serde_json::from_value::<ProcessIdentity>(identity).ok())
            .map(|identity| identity.pid)
            .filter(|_| record.state == SandboxState::Running);
        // A copy where others are devices.
        let backend = match layers.last() {
            Some(top) if top.format == DiskFormat::Raw => Backend::Copy,
            _ => self.volumes.backend(),
        };
        Ok(api::Sandbox {
            id: record.id,
            name: record.name.clone(),
            template: record.spec.template,
            template_name,
            kernel,
            state: record.state,
            transition: record.transition,
            reason: record.reason.clone(),
            frozen: self.water.is_frozen(record.id),
            cpus: record.spec.resources.cpus,
            memory: record.spec.resources.memory,
            disk: record.spec.resources.disk,
            disk_used: ByteSize(used),
            layers: layers.len() as u64,
            backend: backend.as_str().to_owned(),
            disk_fallback: record.disk_fallback.clone(),
            phases: record.phases.clone(),
            vmm: record.spec.vmm,
            isolation: (record.spec.vmm == MonitorKind::Firecracker)
                .then(|| self.isolation_of(&record.spec)),
            cpu_template: record.spec.cpu_template.as_ref().map(CpuTemplate::name),
            disk_limits: record.spec.disk_limits,
            network: self.view_network(record),
            monitor: record.monitor.as_ref().map(in_words),
            env: record.spec.env.clone(),
            workdir: record.spec.workdir.clone(),
            user: record.spec.user.clone(),
            command: record.main.as_ref().map(|main| main.argv.clone()),
            exit_code: record.main.as_ref().and_then(|main| main.exit_code),
            forked_from: record.forked_from,
            generation: record.generation,
            pid,
            created_at: record.created_at,
            started_at: record.started_at,
            expires_at: record.expires_at,
            on_expiry: record.spec.on_expiry,
        })
    }

    pub(crate) fn view_template(
        &self,
        record: &TemplateRecord,
    ) -> Result<api::Template, EngineError> {
        let layers = self.site.ledger.read(|tx| tx.layers())?;
        Ok(api::Template {
            id: record.id,
            names: record.names.clone(),
            digest: record.digest.clone(),
            size: record.size,
            used: record.used,
            entries: record.entries,
            source: record.source.clone(),
            config: record.config.clone(),
            created_at: record.created_at,
            layers: layers
                .iter()
                .filter(|layer| layer.template == record.id)
                .count() as u64,
        })
    }

    pub(crate) fn view_kernel(&self, record: &KernelRecord) -> api::Kernel {
        let default = self
            .default_kernel()
            .is_ok_and(|default| default.id == record.id);
        api::Kernel {
            id: record.id,
            name: record.name.clone(),
            release: record.release.clone(),
            digest: record.digest.clone(),
            format: record.format.clone(),
            modules: record.modules,
            size: record.size,
            created_at: record.created_at,
            default,
        }
    }

    #[allow(clippy::cast_precision_loss)] // microseconds of a checkpoint, shown in milliseconds
    pub(crate) fn view_checkpoint(
        &self,
        record: &CheckpointRecord,
    ) -> Result<api::Checkpoint, EngineError> {
        let layer = self.site.ledger.read(|tx| tx.layer(record.layer))?;
        let disk_used = layer.map_or(0, |layer| {
            self.volumes.usage(&self.site, &layer).unwrap_or(0)
        });
        Ok(api::Checkpoint {
            id: record.id,
            name: record.name.clone(),
            sandbox: record.sandbox,
            sandbox_name: record.sandbox_name.clone(),
            template: record.spec.template,
            disk_only: record.disk_only,
            cpus: record.spec.resources.cpus,
            memory: record.spec.resources.memory,
            memory_used: record.memory_bytes,
            memory_chain: u64::from(record.memory_chain),
            disk_used: ByteSize(disk_used),
            monitor: in_words(&record.monitor),
            cpu: record.monitor.cpu.as_ref().map(|cpu| cpu.name.clone()),
            template_digest: record.template_digest.clone(),
            kernel_digest: record.kernel_digest.clone(),
            downtime_ms: record.downtime_us as f64 / 1000.0,
            publication_ms: record.publication_us as f64 / 1000.0,
            created_at: record.created_at,
        })
    }
}

/// An event as the API shows it.
pub(crate) fn event(record: EventRecord) -> api::Event {
    api::Event {
        seq: record.seq,
        at: record.at,
        kind: record.kind,
        id: record.id,
        name: record.name,
        detail: record.detail,
    }
}
