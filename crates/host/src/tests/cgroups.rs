//! Control groups, of whichever version this host has.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};

use super::{Bench, ID};
use crate::process::mark;
use crate::{Cgroup, CgroupSpec, Files, Host};

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

/// A shell that enters the groups first.
fn inside(specs: &[CgroupSpec], script: &str) -> Command {
    let enter = specs
        .iter()
        .map(|spec| format!("echo $$ >'{}/cgroup.procs'; ", spec.path.display()));
    let mut command = Command::new("sh");
    command.args(["-c", &(enter.collect::<String>() + script)]);
    command
}

/// A shell in the groups, with a child of its own.
fn fill(specs: &[CgroupSpec]) -> Child {
    let mut command = inside(specs, "sleep 600 & echo; wait");
    command.stdout(std::process::Stdio::piped());
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
fn what_waits_in_the_page_cache_counts_as_taken() {
    // covers R28
    const WRITTEN: u64 = 4 << 20;
    /// Its number in `statfs`.
    const TMPFS: u64 = 0x0102_1994;
    let bench = Bench::new();
    let mut specs = specs(&bench);
    let directory = bench.dir.path().to_owned();
    let kind = rustix::fs::statfs(&directory).unwrap().f_type;
    if specs.is_empty() || u64::try_from(kind) == Ok(TMPFS) {
        eprintln!(
            "SKIPPED: there are no control groups, or what is written to a tmpfs waits for nothing"
        );
        return;
    }
    let mut rows = Vec::new();
    for spec in &mut specs {
        // So much that nothing is written on for the groups' own sake.
        spec.memory = 4 << 30;
        let held = bench
            .host
            .make_cgroup(bench.reserve::<Cgroup>(spec.clone()));
        rows.push(bench.row(held.unwrap()));
    }
    let file = directory.join("written");
    let script = format!("head -c {WRITTEN} /dev/zero >'{}'", file.display());
    assert!(inside(&specs, &script).status().unwrap().success());
    let taken = || {
        let seen = bench.host.space(&directory).unwrap().free;
        crate::usage::space(&directory)
            .unwrap()
            .free
            .saturating_sub(seen)
    };
    // Others write to this disk as well, but not as much between two looks.
    assert!(taken() > WRITTEN / 2, "{}", taken());
    fs::File::open(&file).unwrap().sync_all().unwrap();
    assert!(taken() < WRITTEN / 2, "{}", taken());
    for row in rows.iter().rev() {
        bench.host.release(row).unwrap();
    }
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
