//! Opening an engine: lock, ledger, recovery, background tasks.

use std::collections::{BTreeSet, HashSet};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex};

use cowslip_host::{Layout, LinuxHost, Site};
use cowslip_ledger::fault::Injector;
use cowslip_ledger::lock::StateLock;
use cowslip_ledger::{Ledger, LedgerError};
use cowslip_model::Timestamp;
use cowslip_store::Backend;
use tokio::sync::{Notify, broadcast};

use crate::config::{BackendChoice, Config};
use crate::error::OpenError;
use crate::guest::AgentGuests;
use crate::images::Ext4Images;
use crate::locks::Locks;
use crate::monitors::HostMonitors;
use crate::parts::Parts;
use crate::verbs::rebuild;
use crate::verbs::recover::Recovered;
use crate::{EVENT_BACKLOG, Engine};

impl Engine {
    /// Opens the engine of the configured state directory, recovers what an earlier one left, and
    /// starts the background tasks.
    ///
    /// # Errors
    /// When the directory cannot be used or another engine has it.
    pub async fn open(config: Config) -> Result<Arc<Self>, OpenError> {
        let parts = Parts::of_this_host(config, Injector::default())?;
        let (engine, recovered) = Self::assemble(parts).await;
        for left in recovered.left {
            tracing::warn!(left, "recovery left this alone");
        }
        Ok(engine)
    }

    /// Puts an engine together and recovers.
    pub async fn assemble(parts: Parts) -> (Arc<Self>, Recovered) {
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let engine = Arc::new(Self {
            resolvers: crate::network::Resolvers::new(&parts.config),
            config: parts.config,
            site: parts.site,
            volumes: parts.volumes,
            monitors: parts.monitors,
            guests: parts.guests,
            images: parts.images,
            live: crate::live::LiveTable::default(),
            boots: crate::boots::Boots::default(),
            water: crate::water::Water::default(),
            networks: crate::network::Networks::default(),
            spares: Arc::default(),
            listeners: crate::network::Listeners::default(),
            space_found: Arc::default(),
            locks: Locks::default(),
            completing: Locks::default(),
            importing: Locks::default(),
            puller: tokio::sync::OnceCell::new(),
            collecting: tokio::sync::Mutex::new(()),
            merging: tokio::sync::Mutex::new(()),
            events,
            making: Mutex::new(BTreeSet::new()),
            refreshed: Mutex::new(HashSet::new()),
            ttl_changed: Notify::new(),
            notes: parts.notes,
            _lock: parts.lock,
        });
        if let Err(error) = engine.site.ledger.renew_mirrors() {
            tracing::warn!(%error, "the mirror files may be behind the ledger");
        }
        // Before machines are adopted: their vCPUs go on only if there is space for what they write.
        if let Err(error) = engine.look_at_the_disk().await {
            tracing::warn!(%error, "the free space is not known");
        }
        let recovered = engine.recover().await.unwrap_or_else(|error| Recovered {
            done: Vec::new(),
            left: vec![crate::error::chain(&error).join(": ")],
        });
        engine.renew_host_rules().await;
        engine.start_tasks();
        (engine, recovered)
    }
}

impl Parts {
    /// The real ones; `faults` is asked before everything that the ledger writes down.
    ///
    /// # Errors
    /// When the directory cannot be used or another engine has it.
    pub fn of_this_host(config: Config, faults: Injector) -> Result<Self, OpenError> {
        let layout = Layout::new(config.paths.state.clone(), config.paths.run.clone());
        private_directory(layout.state())?;
        private_directory(layout.run())?;
        let lock = StateLock::acquire(layout.state())?;
        let ledger = open_ledger(layout.state(), &faults)?;
        let host = LinuxHost::new(layout.clone(), ledger.instance())?;
        let site = Site {
            ledger,
            host: Arc::new(host),
            layout,
        };
        if rebuild::is_empty(&site).map_err(Box::new)? {
            for what in rebuild::rebuild(&site).map_err(Box::new)? {
                tracing::warn!(what, "the database had lost it; recorded again");
            }
        }
        let (backend, note) = choose_backend(config.storage.backend)?;
        let volumes = cowslip_store::open(backend, config.storage.durability);
        Ok(Self {
            monitors: Arc::new(HostMonitors::new(&config, volumes.format())),
            volumes,
            guests: Arc::new(AgentGuests),
            images: Arc::new(Ext4Images {
                require_confinement: config.images.require_confinement,
            }),
            notes: vec![note],
            lock: Some(lock),
            config,
            site,
        })
    }
}

/// Opens the ledger; a damaged database is set aside, never deleted, and built again.
fn open_ledger(state: &Path, faults: &Injector) -> Result<Ledger, OpenError> {
    let open = || Ledger::open(state, &cowslip_host::process::boot_id(), faults.clone());
    match open() {
        Err(LedgerError::Damaged { path, source }) => {
            let aside = path.with_extension(format!("damaged-{}", Timestamp::now().0));
            tracing::error!(error = %source, aside = %aside.display(), "the ledger is damaged and set aside");
            std::fs::rename(&path, &aside).map_err(|source| OpenError::StateDir {
                path: path.clone(),
                source,
            })?;
            for suffix in ["db-wal", "db-shm"] {
                // They belong to the damaged one; absent is fine.
                let _ = std::fs::rename(path.with_extension(suffix), aside.with_extension(suffix));
            }
            Ok(open()?)
        }
        other => Ok(other?),
    }
}

/// The best backend that this host can do, and why.
fn choose_backend(choice: BackendChoice) -> Result<(Backend, String), OpenError> {
    let configured = |backend| Ok((backend, "configured".to_owned()));
    match choice {
        BackendChoice::Qcow2 => configured(Backend::Qcow2),
        BackendChoice::Copy => configured(Backend::Copy),
        BackendChoice::Dm => device_mapper()
            .map_err(|why| OpenError::Backend { why })
            .and_then(|()| configured(Backend::Dm)),
        BackendChoice::Auto => Ok(match device_mapper() {
            Ok(()) => (
                Backend::Dm,
                "chosen: this host has device-mapper with the snapshot target".to_owned(),
            ),
            Err(why) => (
                Backend::Qcow2,
                format!("chosen: copy-on-write without device-mapper, under QEMU ({why})"),
            ),
        }),
    }
}

/// Whether this engine can use device-mapper, or why not.
fn device_mapper() -> Result<(), String> {
    if !cowslip_host::process::is_root() {
        return Err("device-mapper needs root".to_owned());
    }
    cowslip_host::dm::usable().map_err(|error| crate::error::chain(&error).join(": "))
}

/// Makes a directory that only its owner may enter, or checks that it is one.
fn private_directory(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::StateDir {
        path: path.to_owned(),
        source,
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    let found = std::fs::metadata(path).map_err(failed)?;
    let me = cowslip_host::process::effective_uid();
    if found.uid() != me {
        return Err(OpenError::ForeignStateDir {
            path: path.to_owned(),
            owner: found.uid(),
        });
    }
    if found.mode() & 0o077 != 0 {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}
