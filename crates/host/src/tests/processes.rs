//! Processes: found again, told apart, ended for good.

use std::collections::BTreeSet;
use std::fs::File as StdFile;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cowslip_ledger::HandleRow;
use cowslip_ledger::plan::Presence;
use cowslip_model::InstanceId;

use super::{Bench, ID, OWNER};
use crate::process::{Binding, Credentials, ExitStatus, View, ended, is_root, mark};
use crate::{Host, HostError, Launch, Process, ProcessIdentity, ProcessSpec};

/// A program that waits until somebody opens a pipe to write, and ends when that closes it. The
/// pipe's name is its mark: `cat <dir>/<mark>`.
struct Waiter {
    pipe: PathBuf,
    spec: ProcessSpec,
}

impl Waiter {
    fn new(bench: &Bench) -> Self {
        Self::marked(bench, mark(bench.ledger.instance(), ID))
    }

    fn marked(bench: &Bench, mark: String) -> Self {
        let pipe = bench.dir.path().join(&mark);
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::from(0o666)).unwrap();
        Self {
            pipe,
            spec: ProcessSpec::unjailed(mark),
        }
    }

    fn launch(&self) -> Launch {
        Launch {
            program: "/bin/cat".into(),
            arguments: vec![self.pipe.display().to_string()],
            environment: vec![("ONLY".to_owned(), "this".to_owned())],
            inherit: Vec::new(),
            output: StdFile::options()
                .write(true)
                .open("/dev/null")
                .unwrap()
                .into(),
            credentials: None,
            view: None,
            cgroups: Vec::new(),
            netns: None,
        }
    }

    /// Starts it through the host.
    fn start(&self, bench: &Bench) -> (HandleRow, ProcessIdentity) {
        let held = bench
            .host
            .spawn(bench.reserve::<Process>(self.spec.clone()), self.launch())
            .unwrap();
        let identity = held.identity().clone();
        (bench.row(held), identity)
    }

    /// Lets it end by itself.
    fn let_end(&self) {
        drop(StdFile::options().write(true).open(&self.pipe).unwrap());
    }

    /// Starts one that is not this process' child; gives its pid.
    fn start_apart(&self) -> u32 {
        let script = format!("cat '{}' >/dev/null 2>&1 & echo $!", self.pipe.display());
        let output = Command::new("/bin/sh")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }
}

/// Nothing outlives a test that failed.
impl Drop for Waiter {
    fn drop(&mut self) {
        let mut options = StdFile::options();
        // Without a reader this fails, and does not block.
        let _ = options
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&self.pipe);
    }
}

fn runs(pid: u32) -> bool {
    // A zombie has a directory, and no program.
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

fn status(pid: u32, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

#[test]
fn a_process_stands_on_its_own() {
    let bench = Bench::new();
    let waiter = Waiter::new(&bench);
    let inherited = StdFile::open("/dev/zero").unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&inherited).to_string();
    // One that the engine was started with: not closed on exec.
    let leaked = StdFile::open("/dev/urandom").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let mut launch = waiter.launch();
    launch.inherit = vec![inherited.into()];
    let held = bench
        .host
        .spawn(bench.reserve::<Process>(waiter.spec.clone()), launch)
        .unwrap();
    let pid = held.identity().pid;
    let row = bench.row(held);
    let proc = PathBuf::from(format!("/proc/{pid}"));

    let stat = std::fs::read_to_string(proc.join("stat")).unwrap();
    let session = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(3)
        .unwrap()
        .to_owned();
    assert_eq!(session, pid.to_string(), "a session of its own");
    assert_eq!(std::fs::read(proc.join("environ")).unwrap(), b"ONLY=this\0");
    assert_eq!(
        std::fs::read_link(proc.join("cwd")).unwrap(),
        Path::new("/")
    );
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Umask"), "0077");
    let limits = std::fs::read_to_string(proc.join("limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"));
    let open: Vec<PathBuf> = std::fs::read_dir(proc.join("fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .collect();
    assert!(open.contains(&PathBuf::from("/dev/zero")), "{open:?}");
    assert!(!open.contains(&PathBuf::from("/dev/urandom")), "{open:?}");
    assert_eq!(
        std::fs::read_link(proc.join("fd").join(number)).unwrap(),
        Path::new("/dev/zero")
    );
    drop(leaked);
    bench.release_twice(&row);
}

#[test]
fn ending_a_process_is_waiting_for_its_end() {
    // covers R13
    let bench = Bench::new();
    for _ in 0..20 {
        let waiter = Waiter::new(&bench);
        let (row, identity) = waiter.start(&bench);
        assert_eq!(bench.probe(&row), Presence::Present);
        bench.host.release(&row).unwrap();
        assert!(
            !Path::new(&format!("/proc/{}", identity.pid)).exists(),
            "not even a zombie is left"
        );
        bench.release_twice(&row);
        std::fs::remove_file(&waiter.pipe).unwrap();
    }
}

#[test]
fn a_process_whose_making_was_not_recorded_is_found_by_its_mark() {
    let bench = Bench::new();
    let waiter = Waiter::new(&bench);
    let row = bench.unrecorded::<Process>(waiter.spec.clone());
    assert_eq!(bench.probe(&row), Presence::Absent);
    let pid = waiter.start_apart();
    // One whose mark only begins like ours is another sandbox's.
    let other = Waiter::marked(&bench, format!("{}0", waiter.spec.mark));
    let other_pid = other.start_apart();
    assert_eq!(bench.probe(&row), Presence::Present);
    bench.release_twice(&row);
    assert!(!runs(pid) && runs(other_pid));
    other.let_end();
}

#[test]
fn a_process_that_cannot_be_recorded_does_not_stay() {
    let bench = Bench::new();
    let waiter = Waiter::new(&bench);
    let slot = bench.reserve::<Process>(waiter.spec.clone());
    // Somebody unwound its owner meanwhile.
    let row = bench.row_of(slot.id());
    bench.ledger.forget(&row).unwrap();
    let failed = bench.host.spawn(slot, waiter.launch());
    assert!(matches!(failed, Err(HostError::Ledger(_))));
    assert_eq!(bench.probe(&row), Presence::Absent);
}

#[test]
fn a_pid_that_was_used_again_is_not_ours() {
    // covers R45
    let bench = Bench::new();
    let waiter = Waiter::new(&bench);
    let (row, identity) = waiter.start(&bench);
    for changed in [
        ProcessIdentity {
            start_time: identity.start_time + 1,
            ..identity.clone()
        },
        ProcessIdentity {
            boot_id: "another".to_owned(),
            ..identity.clone()
        },
        ProcessIdentity {
            pid: u32::MAX,
            ..identity.clone()
        },
    ] {
        let mut stale = row.clone();
        stale.identity = Some(serde_json::to_value(&changed).unwrap());
        bench.release_twice(&stale);
        assert!(runs(identity.pid), "{changed:?}");
    }
    bench.release_twice(&row);
}

#[test]
fn a_process_that_denies_its_mark_is_neither_killed_nor_taken_for_gone() {
    // covers R45: a monitor that a guest broke into can write over its own command line
    let bench = Bench::new();
    let waiter = Waiter::new(&bench);
    let (row, identity) = waiter.start(&bench);
    let mut unmarked = row.clone();
    let other = ProcessSpec::unjailed(mark(InstanceId::from_bits(1), ID));
    unmarked.spec = serde_json::to_value(other).unwrap();
    assert_eq!(bench.probe(&unmarked), Presence::Foreign);
    let error = bench.host.release(&unmarked).unwrap_err();
    assert!(
        matches!(error, HostError::Unmarked { pid, .. } if pid == identity.pid),
        "{error}"
    );
    assert!(runs(identity.pid));
    bench.release_twice(&row);
}

#[tokio::test]
async fn the_end_of_a_child_is_told_with_its_status() {
    // covers R11
    let bench = Bench::new();
    let waiter = Waiter::new(&bench);
    let (row, identity) = waiter.start(&bench);
    let (end, ()) = tokio::join!(ended(&waiter.spec, &identity), async { waiter.let_end() });
    assert_eq!(
        end.unwrap(),
        Some(ExitStatus {
            code: Some(0),
            signal: None
        })
    );
    assert_eq!(
        ended(&waiter.spec, &identity).await.unwrap(),
        None,
        "it is told once"
    );
    bench.release_twice(&row);

    let waiter = Waiter::marked(&bench, mark(InstanceId::from_bits(2), ID));
    let (row, identity) = waiter.start(&bench);
    let watch = tokio::spawn({
        let (spec, identity) = (waiter.spec.clone(), identity.clone());
        async move { ended(&spec, &identity).await }
    });
    tokio::task::yield_now().await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(identity.pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(
        watch.await.unwrap().unwrap(),
        Some(ExitStatus {
            code: None,
            signal: Some(15)
        })
    );
    bench.release_twice(&row);
}

#[tokio::test]
async fn the_end_of_a_process_of_an_earlier_engine_is_told_without_status() {
    // covers R46
    let bench = Bench::new();
    let waiter = Waiter::new(&bench);
    let pid = waiter.start_apart();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start_time = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(19)
        .unwrap()
        .parse()
        .unwrap();
    let identity = ProcessIdentity {
        pid,
        start_time,
        boot_id: crate::process::boot_id(),
    };
    let (end, ()) = tokio::join!(ended(&waiter.spec, &identity), async { waiter.let_end() });
    assert_eq!(end.unwrap(), None);
}

#[test]
fn two_instances_never_see_each_others_processes() {
    // covers R18
    let (one, two) = (Bench::new(), Bench::new());
    let waiter = Waiter::new(&one);
    let (row, identity) = waiter.start(&one);
    assert_eq!(one.host.strays(std::slice::from_ref(&row)).unwrap(), []);
    assert_eq!(two.host.strays(&[]).unwrap(), []);
    let strays = one.host.strays(&[]).unwrap();
    let [stray] = strays.as_slice() else {
        panic!("{strays:?}")
    };
    let found = stray.row.clone().unwrap();
    assert_eq!((found.owner, found.kind.as_str()), (OWNER, "process"));
    assert!(stray.what.contains(&identity.pid.to_string()));
    one.release_twice(&found);
    assert!(!runs(identity.pid));
    one.release_twice(&row);
}

#[test]
fn a_program_that_cannot_be_started_is_an_error_and_nothing_runs() {
    let bench = Bench::new();
    let waiter = Waiter::new(&bench);
    let slot = bench.reserve::<Process>(waiter.spec.clone());
    let id = slot.id();
    let launch = Launch {
        program: "/nowhere/qemu".into(),
        ..waiter.launch()
    };
    let error = bench.host.spawn(slot, launch).err().unwrap();
    assert!(error.to_string().contains("/nowhere/qemu"), "{error}");
    let row = bench.row_of(id);
    assert_eq!(bench.probe(&row), Presence::Absent);
    bench.release_twice(&row);
}

#[test]
fn a_process_runs_as_the_user_it_is_given() {
    if !is_root() {
        eprintln!("SKIPPED: only root starts processes of other users");
        return;
    }
    let bench = Bench::new();
    let waiter = Waiter::new(&bench);
    std::fs::set_permissions(
        bench.dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let mut launch = waiter.launch();
    launch.credentials = Some(Credentials {
        uid: 2_000_007,
        gid: 2_000_008,
        groups: vec![2_000_009],
    });
    let held = bench
        .host
        .spawn(bench.reserve::<Process>(waiter.spec.clone()), launch)
        .unwrap();
    let pid = held.identity().pid;
    let row = bench.row(held);
    let words = |field| {
        status(pid, field)
            .split_whitespace()
            .map(str::to_owned)
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(words("Uid"), ["2000007".to_owned()].into());
    assert_eq!(words("Gid"), ["2000008".to_owned()].into());
    assert_eq!(words("Groups"), ["2000009".to_owned()].into());
    bench.release_twice(&row);
}

/// Whether this process (or an unprivileged one) may make mount namespaces; told loudly where not.
fn can_mount() -> bool {
    let mut unshare = Command::new("unshare");
    let flags = if is_root() { "-m" } else { "-Um" };
    let can = unshare.args([flags, "true"]).stderr(Stdio::null()).status();
    let can = can.is_ok_and(|status| status.success());
    if !can {
        eprintln!("SKIPPED: this user can make no mount namespace");
    }
    can
}

#[tokio::test]
async fn a_process_sees_its_own_directory_where_all_do_and_the_host_sees_nothing() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let at = |name: &str| bench.dir.path().join(name);
    std::fs::create_dir(at("own")).unwrap();
    std::fs::write(at("own/disk"), "").unwrap();
    std::fs::write(at("elsewhere"), "a disk").unwrap();
    let bind = |source: PathBuf, target: &str| Binding {
        source,
        target: target.into(),
    };
    let view = View {
        blank: "/run".into(),
        jail: None,
        bindings: vec![
            bind(at("own"), "/run/cowslip-view/self"),
            bind(at("elsewhere"), "/run/cowslip-view/self/disk"),
        ],
        nodes: Vec::new(),
    };
    let script = "cd /run/cowslip-view/self && cat disk && ls /run && echo made >new";
    let output = StdFile::create(at("output")).unwrap();
    let spec = ProcessSpec::unjailed(mark(bench.ledger.instance(), ID));
    let launch = Launch {
        program: "/bin/sh".into(),
        arguments: vec!["-ec".to_owned(), script.to_owned(), spec.mark.clone()],
        environment: Vec::new(),
        inherit: Vec::new(),
        output: output.into(),
        credentials: None,
        view: Some(view),
        cgroups: Vec::new(),
        netns: None,
    };
    let slot = bench.reserve::<Process>(spec.clone());
    let held = bench.host.spawn(slot, launch).unwrap();
    let status = ended(&spec, held.identity()).await.unwrap();
    let said = std::fs::read_to_string(at("output")).unwrap();
    // One that ended before it was looked at leaves no status.
    assert!(status.is_none_or(|status| status.code == Some(0)), "{said}");
    assert_eq!(said, "a diskcowslip-view\n");
    assert_eq!(std::fs::read_to_string(at("own/new")).unwrap(), "made\n");
    assert_eq!(std::fs::read_to_string(at("own/disk")).unwrap(), "");
    assert!(!Path::new("/run/cowslip-view").exists());
    bench.host.release(&bench.row(held)).unwrap();
}

#[test]
fn a_view_of_what_is_not_there_starts_nothing() {
    let bench = Bench::new();
    let waiter = Waiter::new(&bench);
    let view = View {
        blank: "/run".into(),
        jail: None,
        bindings: vec![Binding {
            source: "/nonexistent".into(),
            target: "/run/self".into(),
        }],
        nodes: Vec::new(),
    };
    let launch = Launch {
        view: Some(view),
        ..waiter.launch()
    };
    let slot = bench.reserve::<Process>(waiter.spec.clone());
    let error = bench.host.spawn(slot, launch).err().unwrap();
    assert!(error.to_string().contains("/bin/cat"), "{error}");
}
