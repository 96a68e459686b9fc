//! What a case works on: a world, engines over it, and the checks that hold after everything.

use std::sync::Arc;

use cowslip_engine::Engine;
use cowslip_ledger::Faults;
use cowslip_ledger::fault::Injector;
use cowslip_model::api::{CheckpointRequest, CreateRequest, FlattenRequest, Sandbox};
use cowslip_model::{SandboxId, SandboxState};
use cowslip_sim::rig::TEMPLATE_NAME;
use cowslip_sim::{Rig, Snapshot};
use cowslip_store::Backend;
use tokio::runtime::Runtime;

use crate::networks::check_networks;

/// A world with a template and a kernel.
pub(crate) struct Bench {
    pub(crate) setup: Rig,
    backend: Backend,
    /// What there was before the first sandbox.
    pub(crate) installed: Snapshot,
    handles: usize,
    /// Networks that its engines keep ready.
    warm: u32,
}

/// One life of an engine. Dropping it takes every task with it, as a `kill -9` does.
pub(crate) struct Life {
    pub(crate) engine: Arc<Engine>,
    runtime: Runtime,
}

impl Life {
    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

impl Bench {
    pub(crate) fn new(backend: Backend) -> Self {
        let setup = Rig::new().unwrap();
        let site = setup.site(Injector::default()).unwrap();
        setup.install(&site).unwrap();
        let installed = setup.world.snapshot();
        let handles = site.ledger.read(|tx| tx.handles()).unwrap().len();
        Self {
            setup,
            backend,
            installed,
            handles,
            warm: 0,
        }
    }

    /// The same with engines that keep networks ready.
    pub(crate) fn with_spares(self, warm: u32) -> Self {
        Self { warm, ..self }
    }

    /// A new engine over what is there; it recovers first.
    pub(crate) fn engine(&self, faults: Option<Arc<dyn Faults>>) -> Life {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let injector = faults.map_or_else(Injector::default, Injector::new);
        let mut parts = self.setup.parts(self.backend, injector).unwrap();
        parts.config.network.warm = self.warm;
        let (engine, _) = runtime.block_on(Engine::assemble(parts));
        Life { engine, runtime }
    }

    /// Lets recovery finish what a verb that failed could not release. It is the user's next step
    /// that does so, or the next engine; here it is called for.
    pub(crate) fn recover(&self, life: &Life) {
        self.settle_spares(life);
        life.run(life.engine.recover()).unwrap();
    }

    /// Recovery is for an engine that makes nothing: spares are made behind its back.
    fn settle_spares(&self, life: &Life) {
        if self.warm > 0 {
            life.run(life.engine.fill_spares());
        }
    }

    /// What must hold whenever no verb is under way.
    pub(crate) fn check(&self, life: &Life, context: &str) {
        self.settle_spares(life);
        self.setup.world.check_guests();
        let violations = self.setup.world.violations();
        assert!(violations.is_empty(), "{context}: {violations:#?}");
        let again = life.run(life.engine.recover()).unwrap();
        let adopting = again.done.iter().all(|done| done.starts_with("adopt"));
        assert!(
            adopting && again.left.is_empty(),
            "{context}: recovery found more: {again:#?}"
        );
        check_networks(self, life, context);
        for sandbox in life.engine.sandboxes().unwrap() {
            assert_eq!(sandbox.transition, None, "{context}: {sandbox:?}");
            let guest = self.setup.world.guest(sandbox.id);
            match sandbox.state {
                SandboxState::Running => {
                    let guest =
                        guest.unwrap_or_else(|| panic!("{context}: {} has no guest", sandbox.name));
                    assert!(
                        guest.running,
                        "{context}: {} is frozen and shown as running (R30)",
                        sandbox.name
                    );
                }
                SandboxState::Creating => panic!("{context}: {} was never made", sandbox.name),
                _ => assert!(
                    guest.is_none(),
                    "{context}: {} is {} and has a guest",
                    sandbox.name,
                    sandbox.state
                ),
            }
        }
        self.setup.world.check_guests();
        assert_eq!(
            self.setup.world.violations(),
            Vec::<String>::new(),
            "{context}"
        );
    }

    /// Removes everything and checks that nothing is left.
    pub(crate) fn clean_up(&self, life: &Life, context: &str) {
        for sandbox in life.engine.sandboxes().unwrap() {
            life.run(life.engine.remove(sandbox.name.as_str(), true))
                .unwrap_or_else(|error| panic!("{context}: remove {}: {error}", sandbox.name));
        }
        for checkpoint in life.engine.checkpoints().unwrap() {
            life.run(
                life.engine
                    .remove_checkpoint(checkpoint.name.as_str(), true),
            )
            .unwrap_or_else(|error| panic!("{context}: remove {}: {error}", checkpoint.name));
        }
        for template in life.engine.templates().unwrap() {
            for name in template
                .names
                .iter()
                .filter(|name| name.as_str() != TEMPLATE_NAME)
            {
                life.run(life.engine.remove_template(name.as_str()))
                    .unwrap_or_else(|error| panic!("{context}: remove {name}: {error}"));
            }
        }
        // Rules that an error has left lead nowhere: they go with the next network that ends, or by `gc`.
        let tidied = life.run(life.engine.gc(false)).unwrap();
        assert!(tidied.left.is_empty(), "{context}: {tidied:#?}");
        life.run(life.engine.close());
        assert_eq!(self.setup.world.host_rules(), None, "{context}");
        let left = self.installed.difference(&self.setup.world.snapshot());
        assert!(left.is_empty(), "{context}: the host differs: {left:#?}");
        let handles = life.engine.site().ledger.read(|tx| tx.handles()).unwrap();
        assert_eq!(
            handles.len(),
            self.handles,
            "{context}: handles are left: {handles:#?}"
        );
        let layers = life.engine.site().ledger.read(|tx| tx.layers()).unwrap();
        assert!(layers.is_empty(), "{context}: layers are left: {layers:#?}");
        let mirrors = life.engine.site().ledger.mirror().read_all().unwrap();
        assert!(
            mirrors.0.is_empty() && mirrors.1.is_empty(),
            "{context}: mirror files are left"
        );
        assert!(
            self.setup.world.violations().is_empty(),
            "{context}: {:#?}",
            self.setup.world.violations()
        );
    }
}

pub(crate) fn create_request(name: &str) -> CreateRequest {
    serde_json::from_value(serde_json::json!({ "template": "debian", "name": name })).unwrap()
}

pub(crate) fn flatten_request(source: &str, name: &str) -> FlattenRequest {
    serde_json::from_value(serde_json::json!({ "source": source, "name": name })).unwrap()
}

pub(crate) fn checkpoint_request(sandbox: &str, name: &str) -> CheckpointRequest {
    serde_json::from_value(serde_json::json!({ "sandbox": sandbox, "name": name })).unwrap()
}

/// A running sandbox that has written a line and counted to one.
pub(crate) fn running(bench: &Bench, life: &Life, name: &str) -> Sandbox {
    life.run(life.engine.create(create_request(name))).unwrap();
    let sandbox = life.run(life.engine.start(name)).unwrap();
    bench.setup.world.guest_write(sandbox.id, name).unwrap();
    bench.setup.world.guest_count(sandbox.id).unwrap();
    sandbox
}

/// The lines on the disk of a running sandbox, without the template's.
pub(crate) fn disk(bench: &Bench, id: SandboxId) -> Vec<String> {
    let lines = bench
        .setup
        .world
        .guest(id)
        .map(|guest| guest.disk)
        .unwrap_or_default();
    lines
        .into_iter()
        .filter(|line| line != "template")
        .collect()
}
