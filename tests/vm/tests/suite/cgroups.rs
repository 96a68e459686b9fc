//! Control groups on the real kernel.

use std::path::PathBuf;
use std::process::{Child, Command};

use cowslip_engine::unwind::unwind;
use cowslip_host::{Cgroup, CgroupSpec, process};
use cowslip_ledger::Owner;
use cowslip_model::SandboxId;

use crate::bench::Bench;

const ID: SandboxId = SandboxId::from_bits(7);
const OWNER: Owner = Owner::Machine(ID);

fn spec(bench: &Bench) -> CgroupSpec {
    let root = bench.site.host.cgroup_roots().remove(0);
    CgroupSpec {
        path: root.join(process::mark(bench.site.ledger.instance(), ID)),
        memory: 64 << 20,
        tasks: 4,
    }
}

fn make(bench: &Bench) -> PathBuf {
    let spec = spec(bench);
    let path = spec.path.clone();
    let slot = bench.site.ledger.reserve::<Cgroup>(OWNER, spec, &[]);
    let held = bench.site.host.make_cgroup(slot.unwrap()).unwrap();
    held.settle();
    path
}

/// A process in the group, with a child of its own.
fn fill(path: &std::path::Path) -> Child {
    let script = format!("echo $$ >{}/cgroup.procs; sleep 600 & wait", path.display());
    let child = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    let events = path.join("cgroup.events");
    while !std::fs::read_to_string(&events)
        .unwrap()
        .contains("populated 1")
    {
        std::thread::yield_now();
    }
    child
}

#[test]
fn a_group_bounds_what_is_in_it_and_takes_it_along() {
    // covers R8 R18
    let bench = Bench::new();
    let path = make(&bench);
    let limit = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
    assert_eq!(limit("memory.max").trim(), (64 << 20).to_string());
    assert_eq!(limit("pids.max").trim(), "4");
    let mut child = fill(&path);
    unwind(&bench.site, OWNER).unwrap();
    assert!(!path.exists());
    child.wait().unwrap();
    bench.assert_clean();
}

#[test]
fn a_group_without_a_row_is_found_and_goes() {
    // covers R18 R43
    let bench = Bench::new();
    let path = spec(&bench).path;
    std::fs::create_dir(&path).unwrap();
    let mut child = fill(&path);
    let strays = bench.site.host.strays(&[]).unwrap();
    let stray = strays.iter().find(|stray| stray.kind == "cgroup").unwrap();
    assert!(
        stray.what.contains(path.to_str().unwrap()),
        "{}",
        stray.what
    );
    bench
        .site
        .host
        .release(stray.row.as_ref().unwrap())
        .unwrap();
    assert!(!path.exists());
    child.wait().unwrap();
    bench.assert_clean();
}

#[test]
fn the_group_of_another_is_left_alone() {
    let bench = Bench::new();
    let other = CgroupSpec {
        path: spec(&bench).path.with_file_name("cowslip-other"),
        ..spec(&bench)
    };
    std::fs::create_dir(&other.path).unwrap();
    let slot = bench
        .site
        .ledger
        .reserve::<Cgroup>(OWNER, other.clone(), &[]);
    assert!(bench.site.host.make_cgroup(slot.unwrap()).is_err());
    let rows = bench.site.ledger.read(|tx| tx.handles_of(OWNER)).unwrap();
    assert!(bench.site.host.release(&rows[0]).is_err());
    assert!(other.path.exists());
    std::fs::remove_dir(&other.path).unwrap();
}
