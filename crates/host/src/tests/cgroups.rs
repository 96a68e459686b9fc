//! Control groups, of whichever version this host has.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};

use super::{Bench, ID};
use crate::process::mark;
use crate::{Cgroup, CgroupSpec, Host};

fn specs(bench: &Bench) -> Vec<CgroupSpec> {
    let roots = bench.host.cgroup_roots();
    if roots.is_empty() {
        eprintln!("SKIPPED: this host has no control groups for this user");
    }
    let spec = |root: PathBuf| CgroupSpec {
        path: root.join(mark(bench.ledger.instance(), ID)),
        memory: 64 << 20,
        tasks: 4,
    };
    roots.into_iter().map(spec).collect()
}

/// A shell in the groups, with a child of its own.
fn fill(specs: &[CgroupSpec]) -> Child {
    let join = specs
        .iter()
        .map(|spec| format!("echo $$ >'{}/cgroup.procs'; ", spec.path.display()));
    let script = format!("{}sleep 600 & echo; wait", join.collect::<String>());
    let mut command = Command::new("sh");
    command
        .args(["-c", &script])
        .stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let output = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
    child
}

#[test]
fn groups_bound_what_is_in_them_and_take_it_along() {
    // covers R8 R18
    let bench = Bench::new();
    let specs = specs(&bench);
    if specs.is_empty() {
        return;
    }
    let mut rows = Vec::new();
    for spec in &specs {
        let held = bench
            .host
            .make_cgroup(bench.reserve::<Cgroup>(spec.clone()))
            .unwrap();
        rows.push(bench.row(held));
    }
    let limits: Vec<String> = specs
        .iter()
        .flat_map(|spec| {
            ["memory.max", "memory.limit_in_bytes", "pids.max"].map(|file| spec.path.join(file))
        })
        .filter_map(|file| fs::read_to_string(file).ok())
        .map(|text| text.trim().to_owned())
        .collect();
    assert_eq!(limits, ["67108864", "4"]);
    let mut child = fill(&specs);
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    let name = mark(bench.ledger.instance(), ID);
    assert_eq!(groups.matches(&name).count(), specs.len(), "{groups}");
    for (row, spec) in rows.iter().zip(&specs).rev() {
        bench.host.release(row).unwrap();
        assert!(!spec.path.exists());
        bench.host.release(row).unwrap();
    }
    child.wait().unwrap();
}

#[test]
fn groups_without_a_row_are_found() {
    // covers R18 R43
    let bench = Bench::new();
    let specs = specs(&bench);
    for spec in &specs {
        fs::create_dir(&spec.path).unwrap();
    }
    let found = bench.host.strays(&[]).unwrap();
    let found: Vec<_> = found
        .iter()
        .filter(|stray| stray.kind == "cgroup")
        .collect();
    assert_eq!(found.len(), specs.len());
    for stray in found {
        bench.host.release(stray.row.as_ref().unwrap()).unwrap();
    }
    assert!(specs.iter().all(|spec| !spec.path.exists()));
}
