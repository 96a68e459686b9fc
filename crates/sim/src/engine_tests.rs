//! The whole engine on the simulated world: nothing goes wrong here; that is the harness' part.

use std::sync::Arc;

use cowslip_engine::Engine;
use cowslip_ledger::fault::Injector;
use cowslip_ledger::{Faults, Verdict};
use cowslip_model::SandboxId;
use cowslip_store::Backend;

use crate::rig::{Rig, TEMPLATE_NAME};
use crate::{Recorder, Script};

struct Lab {
    rig: Rig,
    engine: Arc<Engine>,
}

fn from_json<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

impl Lab {
    fn over(rig: Rig, engine: Arc<Engine>) -> Self {
        Self { rig, engine }
    }

    async fn started(&self, name: &str) -> SandboxId {
        let request = from_json(serde_json::json!({ "template": TEMPLATE_NAME, "name": name }));
        let sandbox = self.engine.create(request).await.unwrap();
        self.engine.start(name).await.unwrap();
        sandbox.id
    }

    fn disk(&self, sandbox: SandboxId) -> Vec<String> {
        self.rig.world.guest(sandbox).unwrap().disk
    }

    fn assert_no_violations(&self) {
        self.rig.world.check_guests();
        assert_eq!(self.rig.world.violations(), [""; 0]);
    }
}

#[tokio::test]
async fn every_verb_keeps_the_rules() {
    for backend in [Backend::Qcow2, Backend::Copy] {
        let rig = Rig::new().unwrap();
        rig.install(&rig.site(Injector::default()).unwrap())
            .unwrap();
        let empty = rig.world.snapshot();
        let steps = Arc::new(Recorder::default());
        let faults = Injector::new(Arc::clone(&steps) as Arc<dyn Faults>);
        let (engine, recovered) = Engine::assemble(rig.parts(backend, faults).unwrap()).await;
        assert_eq!(recovered.left, [""; 0]);
        let lab = Lab::over(rig, engine);
        let (world, engine) = (&lab.rig.world, &lab.engine);
        let source = lab.started("source").await;
        world.guest_write(source, "before").unwrap();
        world.guest_count(source).unwrap();
        engine
            .create_checkpoint(from_json(
                serde_json::json!({ "sandbox": "source", "name": "point" }),
            ))
            .await
            .unwrap();
        world.guest_write(source, "after").unwrap();
        let forks = engine
            .fork(
                "point",
                from_json(serde_json::json!({ "count": 3, "name": "fork" })),
            )
            .await
            .unwrap();
        for fork in &forks {
            world.guest_write(fork.id, &fork.name.to_string()).unwrap();
        }
        for fork in &forks {
            assert_eq!(
                lab.disk(fork.id),
                ["template", "before", &fork.name.to_string()]
            );
            assert_eq!(world.guest(fork.id).unwrap().counter, 1);
        }
        assert_eq!(lab.disk(source), ["template", "before", "after"]);

        engine.pause("source").await.unwrap();
        assert!(world.guest(source).is_none());
        engine.resume("source").await.unwrap();
        world.guest_write(source, "resumed").unwrap();
        engine
            .stop("source", from_json(serde_json::json!({})))
            .await
            .unwrap();
        engine.start("source").await.unwrap();
        assert_eq!(lab.disk(source), ["template", "before", "after", "resumed"]);
        assert_eq!(
            world.guest(source).unwrap().counter,
            0,
            "a cold boot forgets"
        );

        for name in ["source", "fork-1", "fork-2", "fork-3"] {
            engine.remove(name, true).await.unwrap();
        }
        engine.remove_checkpoint("point", false).await.unwrap();
        assert_eq!(empty.difference(&world.snapshot()), [""; 0], "{backend:?}");
        assert_eq!(engine.recovery_plan().await.unwrap(), []);
        lab.assert_no_violations();
        assert!(steps.steps().len() > 100);
    }
}

#[tokio::test]
async fn a_new_engine_adopts_what_runs() {
    // covers R46
    let rig = Rig::new().unwrap();
    rig.install(&rig.site(Injector::default()).unwrap())
        .unwrap();
    let script = Arc::new(Script::at(usize::MAX, Verdict::Proceed));
    let faults = Injector::new(Arc::clone(&script) as Arc<dyn Faults>);
    let (first, _) = Engine::assemble(rig.parts(Backend::Qcow2, faults).unwrap()).await;
    let lab = Lab::over(rig, first);
    let id = lab.started("one").await;
    lab.rig.world.guest_write(id, "kept").unwrap();
    let before = lab.rig.world.snapshot();
    script.kill();

    let parts = lab.rig.parts(Backend::Qcow2, Injector::default()).unwrap();
    let (engine, recovered) = Engine::assemble(parts).await;
    assert_eq!(recovered.left, [""; 0]);
    assert_eq!(before.difference(&lab.rig.world.snapshot()), [""; 0]);
    engine.pause("one").await.unwrap();
    engine.resume("one").await.unwrap();
    assert_eq!(lab.disk(id), ["template", "kept"]);
    lab.assert_no_violations();
}

#[tokio::test]
async fn guests_stand_still_on_a_full_disk_and_go_on_with_space() {
    // covers R28
    let rig = Rig::new().unwrap();
    rig.install(&rig.site(Injector::default()).unwrap())
        .unwrap();
    let script = Arc::new(Script::at(usize::MAX, Verdict::Proceed));
    let faults = Injector::new(Arc::clone(&script) as Arc<dyn Faults>);
    let (engine, _) = Engine::assemble(rig.parts(Backend::Qcow2, faults).unwrap()).await;
    let lab = Lab::over(rig, engine);
    let (world, engine) = (&lab.rig.world, &lab.engine);
    let id = lab.started("one").await;
    let _ = lab.started("two").await;
    world.set_free_space(1 << 20);
    engine.check_the_disk().await.unwrap();
    assert!(!world.guest(id).unwrap().running, "it may go on writing");
    assert!(engine.sandbox("one").unwrap().frozen);
    let refused = engine.start("two").await;
    assert!(refused.is_err());
    let request = from_json(serde_json::json!({ "sandbox": "one" }));
    let error = engine.create_checkpoint(request).await.unwrap_err();
    assert!(error.to_string().contains("nearly full"), "{error}");
    // What frees space works.
    engine.remove("two", true).await.unwrap();

    // The next engine does not let it go on either.
    script.kill();
    let parts = lab.rig.parts(Backend::Qcow2, Injector::default()).unwrap();
    let (next, _) = Engine::assemble(parts).await;
    assert!(!world.guest(id).unwrap().running, "adoption let it go on");
    world.set_free_space(1 << 40);
    // A verb is not refused for space that was freed since the last look.
    let second = from_json(serde_json::json!({ "template": TEMPLATE_NAME, "name": "second" }));
    next.create(second).await.unwrap();
    next.check_the_disk().await.unwrap();
    assert!(world.guest(id).unwrap().running);
    assert!(!next.sandbox("one").unwrap().frozen);
    next.remove("one", true).await.unwrap();
    lab.assert_no_violations();
}
