//! The ledger loses a witness: the others suffice. covers R43

use std::sync::{Arc, Mutex};

use cowslip_ledger::{Faults, LedgerError, Step, Synchronous, Verdict};
use cowslip_model::api::StopRequest;
use cowslip_store::Backend;

use crate::bench::{Bench, checkpoint_request, disk, running};

/// What a checkpoint stands on was replaced by something else of the same id.
#[test]
fn a_checkpoint_of_another_kernel_is_not_restored() {
    let bench = Bench::new(Backend::Qcow2);
    let life = bench.engine(None);
    running(&bench, &life, "one");
    life.run(
        life.engine
            .create_checkpoint(checkpoint_request("one", "point")),
    )
    .unwrap();
    let ledger = &life.engine.site().ledger;
    let fork = || {
        let request = serde_json::from_str("{}").unwrap();
        life.run(life.engine.fork("point", request))
    };
    let replace = |digest: &str| {
        ledger.write("replace", Synchronous::Normal, |tx| {
            let mut kernel = tx.kernels()?.remove(0);
            let before = std::mem::replace(&mut kernel.digest, digest.to_owned());
            tx.put_kernel(&kernel)?;
            Ok::<_, LedgerError>(before)
        })
    };
    let before = replace("other").unwrap();
    let handles = ledger.read(|tx| tx.handles()).unwrap().len();
    let error = fork().unwrap_err().to_string();
    assert!(
        error.contains(&format!("its kernel was sha256:{before}"))
            && error.contains("sha256:other here"),
        "{error}"
    );
    assert_eq!(ledger.read(|tx| tx.handles()).unwrap().len(), handles);
    replace(&before).unwrap();
    fork().unwrap();
}

#[test]
fn without_mirror_files_everything_is_torn_down_from_the_ledger() {
    let bench = Bench::new(Backend::Qcow2);
    let life = bench.engine(None);
    running(&bench, &life, "one");
    life.run(
        life.engine
            .create_checkpoint(checkpoint_request("one", "point")),
    )
    .unwrap();
    drop(life);
    std::fs::remove_dir_all(bench.setup.layout.state().join("handles")).unwrap();
    let life = bench.engine(None);
    bench.check(&life, "without mirror files");
    bench.clean_up(&life, "without mirror files");
}

#[test]
fn a_corrupt_mirror_file_is_no_obstacle() {
    let bench = Bench::new(Backend::Qcow2);
    let life = bench.engine(None);
    let one = running(&bench, &life, "one");
    drop(life);
    let path = bench
        .setup
        .layout
        .state()
        .join("handles")
        .join(format!("{}.json", one.id));
    assert!(path.exists(), "the mirror is written");
    std::fs::write(&path, "{ not json").unwrap();
    let life = bench.engine(None);
    bench.check(&life, "corrupt mirror file");
    assert_eq!(disk(&bench, one.id), ["one"]);
    bench.clean_up(&life, "corrupt mirror file");
}

#[test]
fn an_engine_that_restarts_adopts_what_runs() {
    // covers R46
    let bench = Bench::new(Backend::Qcow2);
    let life = bench.engine(None);
    let one = running(&bench, &life, "one");
    let pids = bench.setup.world.pids(one.id);
    drop(life);
    let life = bench.engine(None);
    assert_eq!(
        bench.setup.world.pids(one.id),
        pids,
        "the machine was not restarted"
    );
    life.run(
        life.engine
            .create_checkpoint(checkpoint_request("one", "point")),
    )
    .unwrap();
    bench.clean_up(&life, "after adoption");
}

#[test]
fn after_a_reboot_only_files_are_left() {
    let bench = Bench::new(Backend::Qcow2);
    let life = bench.engine(None);
    let one = running(&bench, &life, "one");
    drop(life);
    bench.setup.world.reboot(bench.setup.layout.run());
    let life = bench.engine(None);
    bench.check(&life, "after a reboot");
    assert_eq!(
        life.engine.sandbox("one").unwrap().state,
        cowslip_model::SandboxState::Failed
    );
    life.run(life.engine.start("one")).unwrap();
    assert_eq!(disk(&bench, one.id), ["one"]);
    bench.clean_up(&life, "after a reboot");
}

/// Something that happens once, just before a step.
struct Before<F> {
    step: &'static str,
    happens: Mutex<Option<F>>,
}

impl<F> Before<F> {
    fn new(step: &'static str, happens: F) -> Arc<Self> {
        let happens = Mutex::new(Some(happens));
        Arc::new(Self { step, happens })
    }
}

impl<F: FnOnce() -> Verdict + Send> Faults for Before<F> {
    fn verdict(&self, step: Step<'_>) -> Verdict {
        if step != self.step {
            return Verdict::Proceed;
        }
        let happens = self.happens.lock().unwrap().take();
        happens.map_or(Verdict::Proceed, |happens| happens())
    }
}

#[test]
fn a_machine_that_ends_while_it_boots_says_why() {
    // covers R38
    let bench = Bench::new(Backend::Qcow2);
    let life = bench.engine(None);
    let request = crate::bench::create_request("one");
    let one = life.run(life.engine.create(request)).unwrap();
    let host = Arc::clone(&life.engine.site().host);
    drop(life);
    let world = bench.setup.world.clone();
    let console = bench.setup.layout.sandbox(one.id).join("console.log");
    let ends = Before::new("guest: connect", move || {
        let said = b"up\nKernel panic - not syncing: no init\n";
        host.publish(&console, said).unwrap();
        assert!(world.crash_machine(one.id, "a triple fault"));
        Verdict::Proceed
    });
    let life = bench.engine(Some(ends));
    let error = life.run(life.engine.start("one")).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("a triple fault") && text.contains("no init"),
        "{text}"
    );
    bench.check(&life, "ended in boot");
    bench.clean_up(&life, "ended in boot");
}

#[test]
fn a_sandbox_whose_removal_failed_can_be_started() {
    // covers R8
    let bench = Bench::new(Backend::Qcow2);
    let life = bench.engine(None);
    let one = running(&bench, &life, "one");
    life.run(life.engine.stop("one", StopRequest { timeout: None }))
        .unwrap();
    drop(life);
    // All that goes with a removal is gone by then, but for what the row names.
    let fails = Before::new("remove: publish", || Verdict::Fail);
    let life = bench.engine(Some(fails));
    life.run(life.engine.remove("one", true)).unwrap_err();
    life.run(life.engine.start("one")).unwrap();
    assert_eq!(disk(&bench, one.id), ["one"]);
    bench.check(&life, "started again");
    bench.clean_up(&life, "started again");
}
