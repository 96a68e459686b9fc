//! `host prepare` on the machine's own sysfs and limits: the real command, and an engine's `doctor`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cowslip_e2e::{Instance, Setup};
use cowslip_host::Layout;
use cowslip_host::prepare::{Outcome, Part, Preparation, Roots};
use cowslip_model::api::{Check, CheckStatus, DoctorReport};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use serde_json::Value;

use crate::commands::only_in_the_test_vm;

const SYSCTLS: [&str; 5] = [
    "fs/inotify/max_user_instances",
    "fs/file-max",
    "kernel/pid_max",
    "vm/max_map_count",
    "fs/aio-max-nr",
];
/// Nobody in the machine needs more, so that other tests do not notice.
const LOWERED: (&str, &str) = ("vm/max_map_count", "60000");

/// There is one sysfs: a test that changes it is alone.
fn alone() -> File {
    only_in_the_test_vm();
    let lock = File::create("/tmp/prepare.lock").unwrap();
    lock.lock().unwrap();
    lock
}

fn sysctl(name: &str) -> String {
    let text = fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap();
    text.trim().to_owned()
}

/// A limit that is lower for as long as this lives.
struct Lowered(String);

impl Lowered {
    fn new() -> Self {
        let (name, value) = LOWERED;
        let before = sysctl(name);
        fs::write(Path::new("/proc/sys").join(name), value).unwrap();
        Self(before)
    }
}

impl Drop for Lowered {
    fn drop(&mut self) {
        fs::write(Path::new("/proc/sys").join(LOWERED.0), &self.0).unwrap();
    }
}

/// A cache's directory from which attributes are missing for as long as this lives.
struct Hidden {
    directory: PathBuf,
    /// What the kernel tells.
    told: BTreeMap<String, String>,
    _shown: tempfile::TempDir,
}

impl Hidden {
    fn new(cpu: u32, index: u32, missing: &[&str]) -> Self {
        let directory = format!("/sys/devices/system/cpu/cpu{cpu}/cache/index{index}");
        let directory = PathBuf::from(directory);
        let told = attributes(&directory);
        let shown = tempfile::tempdir().unwrap();
        for (name, value) in &told {
            if !missing.contains(&name.as_str()) {
                fs::write(shown.path().join(name), value).unwrap();
            }
        }
        for name in missing {
            assert!(
                told.contains_key(*name),
                "the kernel tells no {name} either"
            );
        }
        mount_bind(shown.path(), &directory).unwrap();
        Self {
            directory,
            told,
            _shown: shown,
        }
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        while unmount(&self.directory, UnmountFlags::DETACH).is_ok() {}
    }
}

fn attributes(directory: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    files
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_to_string(entry.path()).unwrap())
        })
        .collect()
}

/// Everything that `host prepare` may change.
#[derive(Debug, PartialEq, Eq)]
struct State {
    sysctls: Vec<String>,
    caches: BTreeMap<PathBuf, BTreeMap<String, String>>,
    /// Mounts over sysfs.
    mounts: Vec<String>,
}

impl State {
    fn now() -> Self {
        let caches = (0..2).flat_map(|cpu| {
            let place = PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}/cache"));
            let entries = fs::read_dir(place)
                .unwrap()
                .map(|entry| entry.unwrap().path());
            entries.filter(|path| path.is_dir()).collect::<Vec<_>>()
        });
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        Self {
            sysctls: SYSCTLS.map(sysctl).to_vec(),
            caches: caches
                .map(|path| (path.clone(), attributes(&path)))
                .collect(),
            mounts: table
                .lines()
                .filter(|line| line.contains("/sys/devices"))
                .map(str::to_owned)
                .collect(),
        }
    }
}

/// Objects with this state, of what a command printed as JSON.
fn objects(lines: &[Value], outcome: &str) -> Vec<String> {
    let lines = lines.iter().filter(|line| line["outcome"] == outcome);
    lines
        .map(|line| line["object"].as_str().unwrap().to_owned())
        .collect()
}

fn doctors_check(host: &Instance) -> Check {
    let report: DoctorReport = host.say("doctor").json();
    assert!(report.healthy, "{:?}", report.checks);
    let mut checks = report.checks.into_iter();
    checks.find(|check| check.name == "host prepare").unwrap()
}

#[test]
fn what_the_host_hides_is_filled_in_and_given_back() {
    // covers R17
    let _alone = alone();
    let host = Instance::new();
    let untouched = State::now();
    {
        let size = Hidden::new(0, 0, &["size"]);
        let sets = Hidden::new(1, 2, &["number_of_sets", "coherency_line_size"]);
        let _lowered = Lowered::new();
        let before = State::now();

        let check = doctors_check(&host);
        assert_eq!(check.status, CheckStatus::Warning, "{check:?}");
        assert_eq!(check.mend.as_deref(), Some("cowslip host prepare"));
        for part in ["cpu0/index0 lacks size", "vm.max_map_count 60000"] {
            assert!(check.detail.contains(part), "{check:?}");
        }
        let wanted: Vec<Value> = host.say("host prepare --dry-run").json();
        let needed = objects(&wanted, "needed");
        for object in ["cpu0/index0", "cpu1/index2", "vm.max_map_count"] {
            assert!(needed.iter().any(|one| one == object), "{wanted:?}");
        }
        assert_eq!(State::now(), before, "a dry run changes nothing");

        let done: Vec<Value> = host.say("host prepare").json();
        assert_eq!(objects(&done, "done"), needed);
        assert_eq!(objects(&done, "failed"), [""; 0]);
        // The values follow from what the kernel tells besides.
        assert_eq!(attributes(&size.directory), size.told);
        assert_eq!(attributes(&sets.directory), sets.told);
        assert!(fs::write(size.directory.join("size"), "1K").is_err());
        assert_eq!(sysctl(LOWERED.0), "65530");
        let prepared = State::now();
        let check = doctors_check(&host);
        assert_eq!((check.status, check.mend), (CheckStatus::Ok, None));

        let again: Vec<Value> = host.say("host prepare").json();
        assert_eq!(objects(&again, "done"), [""; 0]);
        assert_eq!(State::now(), prepared);

        let undone: Vec<Value> = host.say("host undo").json();
        assert_eq!(objects(&undone, "undone").len(), needed.len(), "{undone:?}");
        assert_eq!(State::now(), before);
        assert!(!host.run_dir().join("host").exists());
        assert_eq!(host.say("host undo").run().stderr, "nothing to take back\n");
        assert_eq!(State::now(), before);
    }
    assert_eq!(State::now(), untouched);
}

#[test]
fn a_host_that_hides_nothing_keeps_its_caches() {
    let _alone = alone();
    let host = Instance::new();
    let before = State::now();
    let _ = host.say("host prepare").ok();
    let prepared = State::now();
    assert_eq!(
        (&prepared.caches, &prepared.mounts),
        (&before.caches, &before.mounts)
    );
    let _ = host.say("host undo").ok();
    assert_eq!(State::now(), before);
}

#[test]
fn a_kill_at_any_moment_leaves_what_the_next_one_finishes() {
    const KILLS: u32 = 40;
    let _alone = alone();
    let host = Instance::new();
    let _size = Hidden::new(0, 0, &["size"]);
    let _all = Hidden::new(1, 2, &["size", "number_of_sets", "coherency_line_size"]);
    let _lowered = Lowered::new();
    let before = State::now();
    let (mut took, mut takes_back) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..2 {
        took = host.say("host prepare").run().took;
        takes_back = host.say("host undo").run().took;
    }
    let killed = |verb: &str, after: Duration| {
        let running = host.say(verb).start();
        std::thread::sleep(after);
        drop(running);
    };
    let mut within = 0;
    for kill in 0..KILLS {
        killed("host prepare", took * kill / KILLS);
        if State::now() != before {
            within += 1;
        }
        if kill % 2 == 0 {
            let done = host.say("host prepare").run();
            assert_eq!(done.code, 0, "{done:?}");
            let wanted: Vec<Value> = host.say("host prepare --dry-run").json();
            assert_eq!(objects(&wanted, "needed"), [""; 0], "{wanted:?}");
            killed("host undo", takes_back * kill / KILLS);
        }
        let undone = host.say("host undo").run();
        assert_eq!(undone.code, 0, "{undone:?}");
        assert_eq!(State::now(), before, "kill {kill}");
        assert!(!host.run_dir().join("host").exists());
    }
    eprintln!("{within} of {KILLS} kills came when something was made");
}

#[test]
fn modules_are_loaded_by_the_systems_own_program() {
    only_in_the_test_vm();
    // A host that seems to have none loaded: those that are loaded load again, and nobody is disturbed.
    let fake = tempfile::tempdir().unwrap();
    let at = |path: &str| fake.path().join(path);
    let release = sysctl("kernel/osrelease");
    fs::create_dir_all(at("proc/sys/kernel")).unwrap();
    fs::write(at("proc/sys/kernel/osrelease"), release).unwrap();
    fs::create_dir(at("run")).unwrap();
    let roots = |modprobe: Option<&str>| Roots {
        sys: at("sys"),
        proc: at("proc"),
        modprobe: modprobe.map_or_else(|| Roots::default().modprobe, PathBuf::from),
        ..Roots::default()
    };
    let layout = || Layout::new(at("state"), at("run"));
    let of = |roots: Roots, outcome: Outcome| {
        let lines = Preparation::new(roots, layout()).prepare().unwrap();
        let lines = lines.into_iter();
        let lines = lines.filter(|line| line.part == Part::Modules && line.outcome == outcome);
        lines.map(|line| line.object).collect::<Vec<_>>()
    };
    let wanted = ["loop", "dm_mod", "dm_snapshot", "tun"];
    assert_eq!(of(roots(Some("/bin/false")), Outcome::Failed), wanted);
    assert_eq!(of(roots(None), Outcome::Done), wanted);
    for module in wanted {
        assert!(Path::new("/sys/module").join(module).is_dir(), "{module}");
    }
}

#[test]
fn one_who_is_not_root_may_look() {
    only_in_the_test_vm();
    let setup = Setup {
        user: Some(1234),
        ..Setup::default()
    };
    let host = Instance::with(setup);
    for verb in ["host prepare", "host undo"] {
        let next = format!("sudo cowslip {verb}");
        let _ = host.say(verb).run().refused(&["needs root", &next]);
    }
    let all: Vec<Value> = host.say("host prepare --dry-run").json();
    assert_eq!(objects(&all, "failed"), [""; 0]);
    assert!(!host.run_dir().exists(), "looking made something");
}
