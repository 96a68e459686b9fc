//! The ledger loses a witness: the others suffice. covers R43

use crate::bench::{Bench, checkpoint_request, disk, running};
use cowslip_store::Backend;

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
