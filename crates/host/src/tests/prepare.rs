//! `host prepare` on a host of files: looked at, prepared, prepared again, taken back, and broken off.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::mounts::may_mount;
use crate::Layout;
use crate::prepare::{Line, Outcome, Part, Preparation, Roots};

const RELEASE: &str = "6.1.0-fake";
/// A first-level and a second-level cache, as the kernel tells of them.
const CACHES: [(&str, &[(&str, &str)]); 2] = [
    (
        "cpu0/cache/index0",
        &[
            ("level", "1"),
            ("type", "Data"),
            ("size", "32K"),
            ("coherency_line_size", "64"),
            ("number_of_sets", "64"),
            ("shared_cpu_map", "1"),
            ("ways_of_associativity", "8"),
        ],
    ),
    (
        "cpu0/cache/index2",
        &[
            ("level", "2"),
            ("type", "Unified"),
            ("shared_cpu_map", "3"),
            ("ways_of_associativity", "4"),
            ("number_of_sets", "256"),
        ],
    ),
];

/// A host of files, and the state of cowslip on it. What is mounted on it goes with it.
struct Fake {
    dir: tempfile::TempDir,
}

impl Fake {
    /// Lacks attributes of one cache, the modules tun and dm_snapshot, and has two limits that are low.
    fn new() -> Self {
        let fake = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for (cache, attributes) in CACHES {
            for (name, value) in attributes {
                fake.put(&format!("sys/devices/system/cpu/{cache}/{name}"), value);
            }
        }
        fake.put("sys/devices/system/cpu/cpufreq/boost", "1");
        fake.put("sys/module/dm_mod/version", "1");
        fake.put("proc/sys/kernel/osrelease", RELEASE);
        fake.put("proc/misc", "232 kvm\n237 loop-control");
        fake.put(
            "proc/devices",
            "Block devices:\n  7 loop\n253 device-mapper",
        );
        fake.put("proc/cpuinfo", "processor : 0\nflags\t\t: fpu svm");
        let modules = "kernel/drivers/net/tun.ko.xz:\nkernel/drivers/md/dm-snapshot.ko.xz: x.ko";
        fake.put(&format!("modules/{RELEASE}/modules.dep"), modules);
        for (name, value) in [
            ("fs/inotify/max_user_instances", "128"),
            ("fs/file-max", "9223372036854775807"),
            ("kernel/pid_max", "32768"),
            ("vm/max_map_count", "65530"),
        ] {
            fake.put(&format!("proc/sys/{name}"), value);
        }
        let loads = format!(
            "#!/bin/sh\n[ \"$1\" = -- ] || exit 9\nmkdir -p \"{}/$2\"\n",
            fake.at("sys/module").display()
        );
        fake.program("modprobe", &loads);
        fs::create_dir(fake.at("run")).unwrap();
        fake
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), format!("{text}\n")).unwrap();
    }

    fn program(&self, path: &str, text: &str) {
        fs::write(self.at(path), text).unwrap();
        fs::set_permissions(self.at(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn read(&self, path: &str) -> String {
        let text = fs::read_to_string(self.at(path)).unwrap();
        text.trim().to_owned()
    }

    fn preparation(&self) -> Preparation {
        let roots = Roots {
            sys: self.at("sys"),
            proc: self.at("proc"),
            modules: self.at("modules"),
            modprobe: self.at("modprobe"),
        };
        Preparation::new(roots, Layout::new(self.at("state"), self.at("run")))
    }

    fn caches_are_whole(&self) {
        self.put("sys/devices/system/cpu/cpu0/cache/index2/size", "64K");
        let line = "sys/devices/system/cpu/cpu0/cache/index2/coherency_line_size";
        self.put(line, "64");
    }

    fn cache(&self) -> PathBuf {
        self.at("sys/devices/system/cpu/cpu0/cache/index2")
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        while unmount(self.cache(), UnmountFlags::DETACH).is_ok() {}
    }
}

/// Object and outcome of one step.
fn of(part: Part, lines: &[Line]) -> Vec<(&str, Outcome)> {
    let lines = lines.iter().filter(|line| line.part == part);
    lines
        .map(|line| (line.object.as_str(), line.outcome))
        .collect()
}

fn with(outcome: Outcome, lines: &[Line]) -> Vec<&str> {
    let lines = lines.iter().filter(|line| line.outcome == outcome);
    lines.map(|line| line.object.as_str()).collect()
}

fn attributes(directory: &Path) -> Vec<(String, String)> {
    let mut all: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_to_string(entry.path()).unwrap())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_look_tells_what_is_missing_and_changes_nothing() {
    let fake = Fake::new();
    let lines = fake.preparation().look();
    assert_eq!(
        of(Part::CacheAttributes, &lines),
        [
            ("cpu0/index2", Outcome::Needed),
            ("the others (1)", Outcome::Ready)
        ]
    );
    assert_eq!(
        lines[0].detail,
        "lacks size (64K), coherency_line_size (64)"
    );
    assert_eq!(
        of(Part::Modules, &lines),
        [
            ("kvm", Outcome::Ready),
            ("kvm_amd", Outcome::Ready),
            ("kvm_intel", Outcome::Ready),
            ("loop", Outcome::Ready),
            ("dm_mod", Outcome::Ready),
            ("dm_snapshot", Outcome::Needed),
            ("tun", Outcome::Needed),
        ]
    );
    assert_eq!(
        of(Part::Limits, &lines),
        [
            ("fs.inotify.max_user_instances", Outcome::Needed),
            ("fs.file-max", Outcome::Ready),
            ("kernel.pid_max", Outcome::Needed),
            ("vm.max_map_count", Outcome::Ready),
            ("fs.aio-max-nr", Outcome::Unneeded),
        ]
    );
    assert_eq!(fs::read_dir(fake.at("run")).unwrap().count(), 0);
    assert_eq!(fake.read("proc/sys/kernel/pid_max"), "32768");
}

#[test]
fn kvm_is_for_processors_that_have_it_and_modules_for_kernels_that_do() {
    let fake = Fake::new();
    fake.put("proc/misc", "");
    let dep = format!("modules/{RELEASE}/modules.dep");
    fake.put(
        &dep,
        "kernel/arch/x86/kvm/kvm.ko:\nx/kvm-amd.ko:\nx/kvm-intel.ko:",
    );
    let builtin = format!("modules/{RELEASE}/modules.builtin");
    fake.put(&builtin, "kernel/drivers/md/dm-snapshot.ko");
    let modules = |lines: &[Line]| -> Vec<Outcome> {
        of(Part::Modules, lines).iter().map(|line| line.1).collect()
    };
    use Outcome::{Impossible, Needed, Ready, Unneeded};
    let found = modules(&fake.preparation().look());
    assert_eq!(
        found,
        [Needed, Needed, Unneeded, Ready, Ready, Ready, Impossible]
    );
    fake.put("proc/cpuinfo", "flags : fpu vmx");
    let found = modules(&fake.preparation().look());
    assert_eq!(found[..3], [Needed, Unneeded, Needed]);
    fake.put("proc/cpuinfo", "flags : fpu svmx");
    let found = modules(&fake.preparation().look());
    assert_eq!(found[..3], [Unneeded, Unneeded, Unneeded]);
}

#[test]
fn modules_and_limits_have_their_whole_life() {
    let fake = Fake::new();
    fake.caches_are_whole();
    let host = fake.preparation();
    let changed = [
        "dm_snapshot",
        "tun",
        "fs.inotify.max_user_instances",
        "kernel.pid_max",
    ];
    let lines = host.prepare().unwrap();
    assert_eq!(with(Outcome::Done, &lines), changed, "{lines:?}");
    assert_eq!(fake.read("proc/sys/fs/inotify/max_user_instances"), "2048");
    assert_eq!(fake.read("proc/sys/fs/file-max"), "9223372036854775807");
    assert!(fake.at("sys/module/tun").is_dir());
    let record = fake.read("run/host/prepared.json");

    let again = host.prepare().unwrap();
    assert_eq!(with(Outcome::Done, &again), Vec::<&str>::new(), "{again:?}");
    assert_eq!(fake.read("run/host/prepared.json"), record);

    let lines = host.undo().unwrap();
    let expected = [
        ("kernel.pid_max", Outcome::Undone),
        ("fs.inotify.max_user_instances", Outcome::Undone),
        ("tun", Outcome::Left),
        ("dm_snapshot", Outcome::Left),
    ];
    let found: Vec<_> = lines
        .iter()
        .map(|line| (line.object.as_str(), line.outcome))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(fake.read("proc/sys/kernel/pid_max"), "32768");
    assert_eq!(fake.read("proc/sys/fs/inotify/max_user_instances"), "128");
    assert!(!fake.at("run/host").exists());
    assert_eq!(host.undo().unwrap(), []);
}

#[test]
fn what_somebody_changed_since_is_left_to_them() {
    let fake = Fake::new();
    fake.caches_are_whole();
    let host = fake.preparation();
    host.prepare().unwrap();
    fake.put("proc/sys/kernel/pid_max", "4194304");
    fake.put("proc/sys/fs/inotify/max_user_instances", "128");
    fs::remove_dir(fake.at("sys/module/tun")).unwrap();
    let lines = host.undo().unwrap();
    assert_eq!(
        with(Outcome::Left, &lines),
        ["kernel.pid_max", "dm_snapshot"]
    );
    let gone = ["fs.inotify.max_user_instances", "tun"];
    assert_eq!(with(Outcome::Gone, &lines), gone);
    assert_eq!(fake.read("proc/sys/kernel/pid_max"), "4194304");

    // One who lowered it after the first time gets that back, not what was there before.
    host.prepare().unwrap();
    fake.put("proc/sys/fs/inotify/max_user_instances", "500");
    host.prepare().unwrap();
    assert_eq!(fake.read("proc/sys/fs/inotify/max_user_instances"), "2048");
    host.undo().unwrap();
    assert_eq!(fake.read("proc/sys/fs/inotify/max_user_instances"), "500");
}

/// A step that fails after its record was written leaves what a kill there leaves.
#[test]
fn what_was_recorded_and_not_made_is_finished_or_taken_back() {
    let fake = Fake::new();
    fake.caches_are_whole();
    let host = fake.preparation();
    let load = fs::read_to_string(fake.at("modprobe")).unwrap();
    fake.program(
        "modprobe",
        "#!/bin/sh\necho \"modprobe: FATAL: $2\" >&2\nexit 1\n",
    );
    let lines = host.prepare().unwrap();
    assert_eq!(with(Outcome::Failed, &lines), ["dm_snapshot", "tun"]);
    let tun = lines.iter().find(|line| line.object == "tun").unwrap();
    assert_eq!(tun.detail, "load the module \"tun\": modprobe: FATAL: tun");
    let done = ["fs.inotify.max_user_instances", "kernel.pid_max"];
    assert_eq!(with(Outcome::Done, &lines), done);

    fake.program("modprobe", &load);
    // The limits as they are when the kill came before the first write.
    fake.put("proc/sys/kernel/pid_max", "32768");
    let lines = host.prepare().unwrap();
    let done = ["dm_snapshot", "tun", "kernel.pid_max"];
    assert_eq!(with(Outcome::Done, &lines), done);
    host.undo().unwrap();
    assert_eq!(fake.read("proc/sys/kernel/pid_max"), "32768");

    fake.program("modprobe", "#!/bin/sh\nexit 1\n");
    fs::remove_dir(fake.at("sys/module/tun")).unwrap();
    host.prepare().unwrap();
    let lines = host.undo().unwrap();
    assert_eq!(with(Outcome::Gone, &lines), ["tun"]);
    assert!(!fake.at("run/host").exists());
}

#[test]
fn a_program_that_is_missing_is_named_with_its_package() {
    let fake = Fake::new();
    fs::remove_file(fake.at("modprobe")).unwrap();
    let lines = fake.preparation().prepare().unwrap();
    let tun = lines.iter().find(|line| line.object == "tun").unwrap();
    assert_eq!(tun.outcome, Outcome::Failed);
    assert!(tun.detail.contains("the package kmod"), "{}", tun.detail);
}

#[test]
fn a_limit_that_is_no_number_is_told_and_the_rest_is_done() {
    let fake = Fake::new();
    fake.caches_are_whole();
    fake.put("proc/sys/fs/file-max", "lots");
    let lines = fake.preparation().prepare().unwrap();
    assert_eq!(with(Outcome::Failed, &lines), ["limits"]);
    assert_eq!(with(Outcome::Done, &lines), ["dm_snapshot", "tun"]);
    assert!(lines.iter().any(|line| line.detail.contains("\"lots\"")));
}

#[test]
fn without_a_directory_of_a_cache_nothing_can_be_done() {
    let fake = Fake::new();
    fs::remove_dir_all(fake.at("sys/devices/system/cpu/cpu0/cache")).unwrap();
    let lines = fake.preparation().look();
    let found = of(Part::CacheAttributes, &lines);
    assert_eq!(found, [("all processors", Outcome::Impossible)]);
    assert!(lines[0].detail.contains("x86-64 does without"));
}

#[test]
fn a_cache_gets_what_it_lacks_and_keeps_the_rest() {
    // covers R17
    if !may_mount() {
        return;
    }
    let fake = Fake::new();
    let host = fake.preparation();
    let before = attributes(&fake.cache());
    let lines = host.prepare().unwrap();
    assert_eq!(with(Outcome::Done, &lines)[0], "cpu0/index2", "{lines:?}");
    let mut expected = before.clone();
    expected.push(("size".to_owned(), "64K\n".to_owned()));
    expected.push(("coherency_line_size".to_owned(), "64\n".to_owned()));
    expected.sort();
    assert_eq!(attributes(&fake.cache()), expected);
    let size = fake.cache().join("size");
    assert_eq!(
        fs::metadata(&size).unwrap().permissions().mode() & 0o777,
        0o444
    );
    assert!(
        fs::write(&size, "1K").is_err(),
        "it is mounted for reading only"
    );

    let again = host.prepare().unwrap();
    assert_eq!(with(Outcome::Done, &again), Vec::<&str>::new());
    let lines = host.undo().unwrap();
    assert!(
        with(Outcome::Undone, &lines).contains(&"cpu0/index2"),
        "{lines:?}"
    );
    assert_eq!(attributes(&fake.cache()), before);
    assert!(!fake.at("run/host").exists());
}

#[test]
fn wherever_it_was_broken_off_a_cache_is_finished_or_taken_back() {
    if !may_mount() {
        return;
    }
    let fake = Fake::new();
    let host = fake.preparation();
    let before = attributes(&fake.cache());
    host.prepare().unwrap();
    let whole = attributes(&fake.cache());
    let copy = fake.at("run/host/cache/cpu0-index2");
    let detach = || unmount(fake.cache(), UnmountFlags::DETACH).unwrap();
    let broken: [(&str, &dyn Fn()); 4] = [
        ("before anything was made", &|| {
            detach();
            fs::remove_dir_all(&copy).unwrap();
        }),
        ("within the copy", &|| {
            detach();
            fs::remove_file(copy.join("level")).unwrap();
        }),
        ("after the mount, before it was made read-only", &|| {
            detach();
            mount_bind(&copy, fake.cache()).unwrap();
        }),
        ("after somebody removed the copy below the mount", &|| {
            fs::remove_dir_all(&copy).unwrap();
        }),
    ];
    for (place, breaks) in broken {
        breaks();
        let lines = host.prepare().unwrap();
        assert_eq!(
            with(Outcome::Done, &lines),
            ["cpu0/index2"],
            "{place}: {lines:?}"
        );
        assert_eq!(attributes(&fake.cache()), whole, "{place}");
        assert!(fs::write(fake.cache().join("size"), "").is_err(), "{place}");

        breaks();
        host.undo().unwrap();
        assert_eq!(attributes(&fake.cache()), before, "{place}");
        assert!(!fake.at("run/host").exists(), "{place}");
        host.prepare().unwrap();
    }
}

#[test]
fn a_mount_over_ours_is_named_and_left() {
    if !may_mount() {
        return;
    }
    let fake = Fake::new();
    let host = fake.preparation();
    let before = attributes(&fake.cache());
    host.prepare().unwrap();
    // Left of a kill in the middle of an undo: it goes, though another stays.
    fs::create_dir(fake.at("run/host/cache/cpu0-index0")).unwrap();
    fs::create_dir(fake.at("other")).unwrap();
    mount_bind(fake.at("other"), fake.cache()).unwrap();
    let lines = host.undo().unwrap();
    let failed: Vec<_> = lines
        .iter()
        .filter(|line| line.outcome == Outcome::Failed)
        .collect();
    assert!(
        failed.len() == 1 && failed[0].detail.contains("umount"),
        "{lines:?}"
    );
    assert_eq!(attributes(&fake.cache()), []);
    let copies = fs::read_dir(fake.at("run/host/cache")).unwrap();
    let copies: Vec<_> = copies.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(copies, ["cpu0-index2"]);
    unmount(fake.cache(), UnmountFlags::NOFOLLOW).unwrap();
    let lines = host.undo().unwrap();
    assert_eq!(with(Outcome::Undone, &lines), ["cpu0/index2"]);
    assert_eq!(attributes(&fake.cache()), before);
}

#[test]
fn a_record_that_is_lost_loses_no_mount() {
    if !may_mount() {
        return;
    }
    let fake = Fake::new();
    let host = fake.preparation();
    let before = attributes(&fake.cache());
    host.prepare().unwrap();
    fs::remove_file(fake.at("run/host/prepared.json")).unwrap();
    let lines = host.undo().unwrap();
    assert_eq!(with(Outcome::Undone, &lines), ["cpu0/index2"]);
    assert_eq!(attributes(&fake.cache()), before);
    assert!(!fake.at("run/host").exists());
}
