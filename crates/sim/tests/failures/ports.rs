//! Published ports: each leads to one sandbox, for as long as that has it.

use std::sync::{Arc, Mutex};

use cowslip_engine::Engine;
use cowslip_ledger::fault::Injector;
use cowslip_ledger::{Faults, Step, Verdict};
use cowslip_model::api::StopRequest;
use cowslip_store::Backend;
use serde_json::json;

use crate::armed::Armed;
use crate::bench::{Bench, Life, checkpoint_request};
use crate::networks::{check_networks, connected, connected_request, is_taken};

fn create(life: &Life, name: &str, port: &str) {
    let request = connected_request(name, json!({ "publish": [port] }));
    life.run(life.engine.create(request)).unwrap();
}

fn stop(life: &Life, name: &str) {
    let stop = life.engine.stop(name, StopRequest::default());
    life.run(stop).unwrap();
}

#[test]
fn of_two_that_start_at_once_one_has_the_port() {
    let bench = Bench::new(Backend::Qcow2);
    let life = bench.engine(None);
    for name in ["one", "two"] {
        create(&life, name, "8080:80");
    }
    let engine = &life.engine;
    let both = life.run(async { tokio::join!(engine.start("one"), engine.start("two")) });
    let (winner, refused, loser) = match both {
        (Ok(winner), Err(refused)) => (winner, refused, "two"),
        (Err(refused), Ok(winner)) => (winner, refused, "one"),
        other => panic!("{other:?}"),
    };
    assert!(is_taken(&refused, winner.name.as_str()), "{refused}");
    bench.check(&life, "both");
    stop(&life, winner.name.as_str());
    life.run(engine.start(loser)).unwrap();
    bench.check(&life, "the other");
    bench.clean_up(&life, "the other");
}

#[test]
fn of_two_that_are_made_at_once_one_has_the_port() {
    let bench = Bench::new(Backend::Qcow2);
    let life = bench.engine(None);
    let engine = &life.engine;
    let request = |name| connected_request(name, json!({ "publish": ["8080:80"] }));
    let start = async |name| {
        engine.create(request(name)).await?;
        engine.start(name).await
    };
    let (one, two) = life.run(async { tokio::join!(start("one"), start("two")) });
    assert_ne!(one.is_ok(), two.is_ok(), "{one:?} {two:?}");
    bench.check(&life, "both");
    bench.clean_up(&life, "both");
}

#[test]
fn a_port_is_kept_through_a_pause_and_not_through_a_stop() {
    let bench = Bench::new(Backend::Qcow2);
    let life = bench.engine(None);
    let engine = &life.engine;
    create(&life, "two", "127.0.0.1:8080:90");
    connected(&bench, &life, "one", json!({ "publish": ["8080:80"] }));
    let refused = |context| {
        let error = life.run(engine.start("two")).unwrap_err();
        assert!(is_taken(&error, "one"), "{context}: {error}");
    };
    refused("running");
    life.run(engine.pause("one")).unwrap();
    refused("paused");
    life.run(engine.resume("one")).unwrap();
    bench.check(&life, "resumed");
    stop(&life, "one");
    life.run(engine.start("two")).unwrap();
    let error = life.run(engine.start("one")).unwrap_err();
    assert!(is_taken(&error, "two"), "{error}");
    bench.check(&life, "stopped");
    bench.clean_up(&life, "stopped");
}

#[test]
fn a_port_that_another_has_changes_no_rule() {
    let bench = Bench::new(Backend::Qcow2);
    let life = bench.engine(None);
    connected(&bench, &life, "one", json!({ "publish": ["8080:80"] }));
    connected(&bench, &life, "two", json!({ "publish": ["53:53/udp"] }));
    let before = life.engine.sandbox("two").unwrap().network;
    let set = |rules| {
        let rules = serde_json::from_value(rules).unwrap();
        life.run(life.engine.set_network("two", rules))
    };
    let rules = json!({ "allow": ["192.0.2.1"], "publish": ["8080:90"] });
    let error = set(rules.clone()).unwrap_err();
    assert!(is_taken(&error, "one"), "{error}");
    assert_eq!(life.engine.sandbox("two").unwrap().network, before);
    bench.check(&life, "refused");
    stop(&life, "one");
    set(rules).unwrap();
    // The transports have ports of their own.
    set(json!({ "publish": ["8080:90", "8080:53/udp"] })).unwrap();
    bench.check(&life, "set");
    bench.clean_up(&life, "set");
}

#[test]
fn forks_get_no_port() {
    let bench = Bench::new(Backend::Qcow2);
    let life = bench.engine(None);
    let engine = &life.engine;
    connected(&bench, &life, "one", json!({ "publish": ["8080:80"] }));
    let request = checkpoint_request("one", "point");
    life.run(engine.create_checkpoint(request)).unwrap();
    let fork = |request| {
        let request = serde_json::from_value(request).unwrap();
        life.run(engine.fork("point", request))
    };
    for fork in fork(json!({ "count": 2 })).unwrap() {
        assert_eq!(fork.network.publish, []);
    }
    let error = fork(json!({ "network": { "publish": ["8080:80"] } })).unwrap_err();
    assert!(is_taken(&error, "one"), "{error}");
    // Two of them cannot have one either: then there is none.
    let before = engine.sandboxes().unwrap().len();
    fork(json!({ "count": 2, "network": { "publish": ["9090:80"] } })).unwrap_err();
    assert_eq!(engine.sandboxes().unwrap().len(), before);
    fork(json!({ "network": { "publish": ["9090:80"] } })).unwrap();
    bench.check(&life, "forks");
    bench.clean_up(&life, "forks");
}

#[test]
fn the_hosts_rules_go_with_the_last_network() {
    // covers R65
    let bench = Bench::new(Backend::Qcow2);
    let life = bench.engine(None);
    let world = &bench.setup.world;
    assert_eq!(world.host_rules(), None);
    connected(&bench, &life, "one", json!({ "publish": ["8080:80"] }));
    connected(&bench, &life, "two", json!({ "publish": ["9090:90"] }));
    let has = |port: &str| world.host_rules().unwrap().contains(port);
    assert!(has("8080 : 10.200.0.1 . 80") && has("9090 : 10.200.0.3 . 90"));
    stop(&life, "one");
    assert!(!has("8080") && has("9090"));
    life.run(life.engine.pause("two")).unwrap();
    assert_eq!(world.host_rules(), None);
    life.run(life.engine.resume("two")).unwrap();
    assert!(has("9090"));
    life.run(life.engine.remove("two", true)).unwrap();
    assert_eq!(world.host_rules(), None);
    bench.clean_up(&life, "gone");
}

/// Something that happens once, before a step, when the test has said so.
#[derive(Default)]
struct Meanwhile(Mutex<Option<(&'static str, Happens)>>);

type Happens = Box<dyn FnOnce() + Send>;

impl Faults for Meanwhile {
    fn verdict(&self, step: Step<'_>) -> Verdict {
        let happens = self.0.lock().unwrap().take_if(|(at, _)| *at == step);
        if let Some((_, happens)) = happens {
            happens();
        }
        Verdict::Proceed
    }
}

#[test]
fn the_hosts_rules_do_not_go_with_a_network_that_ends_while_another_is_made() {
    // covers R65
    let bench = Bench::new(Backend::Qcow2);
    let meanwhile = Arc::new(Meanwhile::default());
    let faults = Injector::new(Arc::clone(&meanwhile) as Arc<dyn Faults>);
    let parts = bench.setup.parts(Backend::Qcow2, faults).unwrap();
    // The one waits in its thread for the other's end.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (engine, _) = runtime.block_on(Engine::assemble(parts));
    for name in ["one", "two"] {
        let request = connected_request(name, json!({}));
        runtime.block_on(engine.create(request)).unwrap();
    }
    runtime.block_on(engine.start("one")).unwrap();
    let (ends, within) = (Arc::clone(&engine), runtime.handle().clone());
    let end = move || {
        let end = move || within.block_on(ends.remove("one", true)).unwrap();
        std::thread::spawn(end).join().unwrap();
    };
    *meanwhile.0.lock().unwrap() = Some(("reserve netns for machine", Box::new(end)));
    runtime.block_on(engine.start("two")).unwrap();
    assert!(engine.sandbox("one").is_err(), "it did not end meanwhile");
    assert!(bench.setup.world.host_rules().is_some());
    assert_eq!(bench.setup.world.violations(), [""; 0]);
}

#[test]
fn rules_of_the_host_that_could_not_be_taken_away_go_later() {
    // covers R65
    for by_gc in [true, false] {
        let bench = Bench::new(Backend::Qcow2);
        let armed = Arc::new(Armed::default());
        let life = bench.engine(Some(armed.clone()));
        connected(&bench, &life, "one", json!({ "publish": ["8080:80"] }));
        armed.at_step("host: load rules");
        life.run(life.engine.stop("one", StopRequest::default()))
            .unwrap();
        assert!(bench.setup.world.host_rules().is_some(), "the fault missed");
        if by_gc {
            life.run(life.engine.gc(false)).unwrap();
        } else {
            life.run(life.engine.start("one")).unwrap();
            stop(&life, "one");
        }
        assert_eq!(bench.setup.world.host_rules(), None, "by gc: {by_gc}");
        check_networks(&bench, &life, "gone");
        bench.clean_up(&life, "gone");
    }
}

#[test]
fn what_is_left_of_a_machine_keeps_no_port() {
    // covers R65
    let bench = Bench::new(Backend::Qcow2);
    let armed = Arc::new(Armed::default());
    let life = bench.engine(Some(armed.clone()));
    connected(&bench, &life, "one", json!({ "publish": ["8080:80"] }));
    armed.at_step("host: release netns");
    let stop = life.engine.stop("one", StopRequest::default());
    life.run(stop).unwrap_err();
    connected(&bench, &life, "two", json!({ "publish": ["8080:90"] }));
    let rules = bench.setup.world.host_rules().unwrap();
    assert_eq!(rules.matches("8080 : ").count(), 1, "{rules}");
    check_networks(&bench, &life, "beside it");
    // What was left goes before its sandbox has a machine again.
    life.run(life.engine.remove("two", true)).unwrap();
    life.run(life.engine.start("one")).unwrap();
    bench.check(&life, "again");
    bench.clean_up(&life, "again");
}
