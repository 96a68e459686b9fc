//! The driver against a scripted API and an ordinary process in the place of Firecracker's.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use cowslip_host::layout::Layout;
use cowslip_host::process::{ProcessIdentity, ProcessSpec, boot_id};
use cowslip_model::{
    ByteSize, DiskChain, DiskFormat, DiskLayer, DiskLimits, Durability, HostCpu, SandboxId,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use super::api::peer::{NO_CONTENT, Peer, with_body};
use super::*;
use crate::AgentChannel;

#[test]
fn only_the_same_release_restores() {
    let info = |version: &str| MonitorInfo {
        kind: KIND.to_owned(),
        version: version.to_owned(),
        accelerator: ACCELERATOR.to_owned(),
        machine: MACHINE.to_owned(),
        cpu: None,
    };
    let present = info("1.16.1");
    compare(&info("1.16.0"), &present).unwrap();
    for other in ["1.15.1", "1.17.0", "1.16.0-dev", "2.16.1", "?"] {
        let error = compare(&info(other), &present).unwrap_err().to_string();
        assert!(error.contains(other) && error.contains("1.16.1"), "{error}");
    }
    let mut other = info("1.16.1");
    other.kind = "qemu".to_owned();
    assert!(compare(&other, &present).is_err());
}

#[test]
fn an_image_of_another_processor_is_refused_with_both_named() {
    let on = |name: &str, model: u32| MonitorInfo {
        kind: KIND.to_owned(),
        version: "1.16.1".to_owned(),
        accelerator: ACCELERATOR.to_owned(),
        machine: MACHINE.to_owned(),
        cpu: HostCpu::parse(&format!(
            "vendor_id : GenuineIntel\ncpu family : 6\nmodel : {model}\nmodel name : {name}\nflags : avx\n"
        )),
    };
    let (saved, present) = (on("Ice", 106), on("Sapphire", 143));
    compare(&saved, &saved).unwrap();
    let error = compare(&saved, &present).unwrap_err().to_string();
    assert!(
        error.contains("on \"Ice\"") && error.contains("on \"Sapphire\""),
        "{error}"
    );
    // An older record does not say.
    let unknown = MonitorInfo {
        cpu: None,
        ..saved.clone()
    };
    compare(&unknown, &present).unwrap();
    let templated = MonitorInfo {
        cpu: saved.cpu.map(HostCpu::behind_a_template),
        ..present.clone()
    };
    compare(&templated, &present).unwrap();
}

/// A jail is what is asked for unless the configuration says otherwise, and nothing less is given.
#[tokio::test]
async fn nobody_is_run_without_a_jail_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let program = |name: &str, says: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        path
    };
    let firecracker = program("firecracker", "Firecracker v1.17.0");
    let refused = async |jailer: PathBuf| {
        let config = FirecrackerConfig {
            program: Some(firecracker.clone()),
            jailer: Some(jailer),
            ..FirecrackerConfig::default()
        };
        FirecrackerVmm::detect(&config)
            .await
            .unwrap_err()
            .to_string()
    };
    let error = refused(dir.path().join("nothing")).await;
    assert!(error.contains("isolation = \"direct\""), "{error}");
    if cowslip_host::process::is_root() {
        let error = refused(program("jailer", "Jailer v1.16.1")).await;
        assert!(
            error.contains("1.16.1") && error.contains("1.17.0"),
            "{error}"
        );
    }
}

const MARK: &str = "cowslip-00000000000000aa-0000000000000001";
const FAULT: &str = r#"{"fault_message":"no such thing"}"#;

/// A runtime directory, a process that ends when it is told to, and the driver's view of both.
struct Lab {
    dir: TempDir,
    paths: Paths,
    process: Child,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("s"), dir.path().join("r"));
        let paths = Paths::new(&layout, SandboxId::from_bits(1));
        std::fs::create_dir_all(&paths.directory).unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &paths.console, mode).unwrap();
        let process = Command::new("/bin/sh")
            .args(["-c", "read code; exit $code", MARK])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            dir,
            paths,
            process,
        }
    }

    fn peer(&self) -> Peer {
        Peer::listen(&self.paths.api)
    }

    fn config(&self) -> MachineConfig {
        MachineConfig {
            sandbox: SandboxId::from_bits(1),
            cpus: 2,
            memory: ByteSize::mib(256),
            kernel: "/k/vmlinuz".into(),
            initramfs: "/k/initramfs".into(),
            command_line: vec!["last=word".to_owned()],
            disk: Some(DiskChain {
                frozen: Vec::new(),
                top: DiskLayer {
                    path: "/dev/dm-7".into(),
                    format: DiskFormat::Snapshot,
                },
                size: 1 << 20,
                durability: Durability::default(),
            }),
            disk_limits: DiskLimits::default(),
            network: None,
            cpu_template: None,
            track_memory: true,
            work: self.dir.path().join("work"),
            cgroups: Vec::new(),
            console_log: self.dir.path().join("console.log"),
            console_bound: ByteSize::mib(1),
            credentials: None,
            called_off: CancellationToken::new(),
        }
    }

    fn machine(&self) -> FirecrackerMachine {
        let pid = self.process.id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, rest) = stat.rsplit_once(')').unwrap();
        let identity = ProcessIdentity {
            pid,
            start_time: rest.split_whitespace().nth(19).unwrap().parse().unwrap(),
            boot_id: boot_id(),
        };
        let spec = ProcessSpec::unjailed(MARK.to_owned());
        FirecrackerMachine::connect(self.paths.clone(), &self.config(), spec, identity).unwrap()
    }

    /// Ends the process with this exit code.
    fn end(&mut self, code: i32) {
        let mut stdin = self.process.stdin.take().unwrap();
        writeln!(stdin, "{code}").unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // It ends when its input does; one that was waited for already is fine.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// What a machine is configured with, in order.
const BOOT: [&str; 7] = [
    "PUT /machine-config",
    "PUT /boot-source",
    "PUT /drives/root",
    "PUT /vsock",
    "PUT /entropy",
    "PUT /balloon",
    "PUT /actions",
];

#[tokio::test]
async fn a_machine_is_made_of_constant_paths() {
    let lab = Lab::new();
    let (machine, peer) = (lab.machine(), lab.peer());
    let config = lab.config();
    let serve = async {
        let mut all = Vec::new();
        for expected in BOOT {
            let got = peer.serve(NO_CONTENT).await;
            assert_eq!(got.line, format!("{expected} HTTP/1.1"));
            all.push(got.body.unwrap());
        }
        all
    };
    let (booted, all) = tokio::join!(machine.boot(&config), serve);
    booted.unwrap();
    assert_eq!(all[0]["mem_size_mib"], 256);
    assert_eq!(all[1]["kernel_image_path"], "/k/vmlinuz");
    assert!(
        all[1]["boot_args"]
            .as_str()
            .unwrap()
            .ends_with(" last=word --")
    );
    assert_eq!(all[2]["path_on_host"], "/run/cowslip/self/rootfs");
    assert_eq!(all[2]["cache_type"], "Unsafe");
    assert_eq!(all[3]["uds_path"], "/run/cowslip/self/vsock");
    assert_eq!(all[6], json!({ "action_type": "InstanceStart" }));
}

#[tokio::test]
async fn whatever_is_refused_at_a_start_is_told() {
    for (count, refused) in BOOT.into_iter().enumerate() {
        let lab = Lab::new();
        let (machine, peer) = (lab.machine(), lab.peer());
        let config = lab.config();
        let serve = async {
            for _ in 0..count {
                peer.serve(NO_CONTENT).await;
            }
            peer.serve(&with_body(400, FAULT)).await
        };
        let (failed, got) = tokio::join!(machine.boot(&config), serve);
        let error = failed.unwrap_err();
        assert!(matches!(&error, VmmError::Refused { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains(refused) && text.contains("no such thing"),
            "{text}"
        );
        assert!(got.line.starts_with(refused));
    }
}

#[tokio::test]
async fn a_process_that_ends_before_it_listens_is_noticed() {
    let mut lab = Lab::new();
    // What an earlier machine printed says nothing of this one.
    std::fs::write(lab.dir.path().join("console.log"), "long ago\n").unwrap();
    let machine = lab.machine();
    std::fs::write(&lab.paths.log, "t [a:main:ERROR] bad argument\n").unwrap();
    lab.end(7);
    let error = machine.wait(&CancellationToken::new()).await.unwrap_err();
    let VmmError::Ended { detail, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(detail.as_deref(), Some("bad argument; exit code 7"));
}

#[tokio::test]
async fn a_process_that_does_not_listen_need_not_be_waited_for() {
    let lab = Lab::new();
    let (machine, called_off) = (lab.machine(), CancellationToken::new());
    let (waited, ()) = tokio::join!(machine.wait(&called_off), async { called_off.cancel() });
    assert!(matches!(waited, Err(VmmError::CalledOff(_))), "{waited:?}");
}

/// A machine that its guest powered off stands still; one whose kernel panicked is reset like any other.
#[tokio::test]
async fn how_a_guest_ended_is_heard_on_its_console() {
    let lab = Lab::new();
    let machine = lab.machine();
    let mut console = std::fs::File::options()
        .write(true)
        .open(&lab.paths.console)
        .unwrap();
    console.write_all(b"[ 1.0] reboot: Power down\r\n").unwrap();
    assert_eq!(machine.ended().await, None, "its process lives");

    let mut lab = Lab::new();
    let machine = lab.machine();
    let mut console = std::fs::File::options()
        .write(true)
        .open(&lab.paths.console)
        .unwrap();
    let panic = b"[ 1.0] Kernel panic - not syncing: no init\r\n";
    console.write_all(panic).unwrap();
    drop(console);
    lab.end(0);
    let words = machine.ended().await;
    assert_eq!(words.as_deref(), Some("its kernel panicked: no init"));
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_never_comes_is_given_up() {
    let lab = Lab::new();
    let error = lab
        .machine()
        .wait(&CancellationToken::new())
        .await
        .unwrap_err();
    assert!(matches!(&error, VmmError::TimedOut { .. }), "{error:?}");
}

fn state(word: &str) -> String {
    let body = json!({ "id": MARK, "state": word, "vmm_version": "1", "app_name": "F" });
    with_body(200, &body.to_string())
}

#[tokio::test]
async fn a_save_is_one_file_and_leaves_nothing_beside_it() {
    let lab = Lab::new();
    let (machine, peer) = (lab.machine(), lab.peer());
    let image = lab.dir.path().join("image");
    let serve = async {
        peer.serve(&state("Paused")).await;
        let (got, mut stream) = peer.take().await;
        assert_eq!(got.line, "PUT /snapshot/create HTTP/1.1");
        let body = got.body.unwrap();
        assert_eq!(body["snapshot_path"], "/run/cowslip/self/state");
        assert_eq!(body["mem_file_path"], image.to_str().unwrap());
        std::fs::write(&image, vec![1; 4096]).unwrap();
        std::fs::write(&lab.paths.state, "device state").unwrap();
        stream.write_all(NO_CONTENT.as_bytes()).await.unwrap();
    };
    let (saved, ()) = tokio::join!(machine.save(&image, None), serve);
    let saved = saved.unwrap();
    assert_eq!(saved.bytes, std::fs::metadata(&image).unwrap().len());
    assert!(!saved.changes_only);
    assert!(!lab.paths.state.exists());

    let serve = async {
        let (got, mut stream) = peer.take().await;
        assert_eq!(got.line, "PUT /snapshot/load HTTP/1.1");
        let body = got.body.unwrap();
        assert_eq!(body["mem_backend"]["backend_path"], image.to_str().unwrap());
        assert_eq!(body["resume_vm"], false);
        assert_eq!(body["track_dirty_pages"], true);
        assert_eq!(std::fs::read(&lab.paths.state).unwrap(), b"device state");
        stream.write_all(NO_CONTENT.as_bytes()).await.unwrap();
    };
    let (loaded, ()) = tokio::join!(machine.load(&image, true), serve);
    loaded.unwrap();
    assert!(!lab.paths.state.exists());
}

#[tokio::test]
async fn what_changed_is_saved_where_it_is_known() {
    let lab = Lab::new();
    let (mut machine, peer) = (lab.machine(), lab.peer());
    let (base, image) = (lab.dir.path().join("base"), lab.dir.path().join("image"));
    let save = async |kind: &str| {
        peer.serve(&state("Paused")).await;
        let (got, mut stream) = peer.take().await;
        assert_eq!(got.body.unwrap()["snapshot_type"], kind);
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(1 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], 8192).unwrap();
        std::fs::write(&lab.paths.state, "device state").unwrap();
        stream.write_all(NO_CONTENT.as_bytes()).await.unwrap();
    };
    let (saved, ()) = tokio::join!(machine.save(&image, Some(&base)), save("Diff"));
    let saved = saved.unwrap();
    assert!(saved.changes_only && saved.bytes < 8192, "{saved:?}");
    std::fs::remove_file(&image).unwrap();

    // The machine of an engine that did not ask for it: told by Firecracker, not by the configuration.
    let take_over = async {
        peer.serve(&state("Running")).await;
        let machine = json!({ "vcpu_count": 1, "mem_size_mib": 1, "track_dirty_pages": false });
        let body = json!({ "drives": [], "machine-config": machine });
        peer.serve(&with_body(200, &body.to_string())).await;
    };
    let (taken, ()) = tokio::join!(machine.take_over(), take_over);
    taken.unwrap();
    assert!(!machine.tracks_memory());
    let (saved, ()) = tokio::join!(machine.save(&image, Some(&base)), save("Full"));
    assert!(!saved.unwrap().changes_only);
}

#[tokio::test]
async fn a_save_that_fails_leaves_no_image() {
    let mut lab = Lab::new();
    let (machine, peer) = (lab.machine(), lab.peer());
    let image = lab.dir.path().join("image");
    let refuse = async {
        peer.serve(&state("Paused")).await;
        std::fs::write(&lab.paths.state, "half").unwrap();
        peer.serve(&with_body(400, FAULT)).await;
    };
    let (failed, ()) = tokio::join!(machine.save(&image, None), refuse);
    assert!(failed.unwrap_err().to_string().contains("no such thing"));
    assert!(!image.exists() && !lab.paths.state.exists());

    let running = state("Running");
    let serve = peer.serve(&running);
    let (failed, _) = tokio::join!(machine.save(&image, None), serve);
    assert!(failed.unwrap_err().to_string().contains("pause it first"));
    assert!(!image.exists());

    let unseen = Path::new("/run/image");
    let paused = state("Paused");
    let serve = peer.serve(&paused);
    let (failed, _) = tokio::join!(machine.save(unseen, None), serve);
    assert!(failed.unwrap_err().to_string().contains("/run"));

    // It dies in the middle.
    let die = async {
        peer.serve(&state("Paused")).await;
        let (_, stream) = peer.take().await;
        lab.end(3);
        drop(stream);
    };
    let (failed, ()) = tokio::join!(machine.save(&image, None), die);
    let error = failed.unwrap_err();
    assert!(matches!(&error, VmmError::Ended { .. }), "{error:?}");
    assert!(error.to_string().contains("exit code 3"), "{error}");
    assert!(!image.exists());
    assert!(machine.ended().await.is_some());
}

#[tokio::test]
async fn an_image_that_cannot_be_loaded_is_named() {
    let mut lab = Lab::new();
    let (machine, peer) = (lab.machine(), lab.peer());
    let image = lab.dir.path().join("image");
    std::fs::write(&image, "no image").unwrap();
    let error = machine.load(&image, false).await.unwrap_err().to_string();
    assert!(error.contains("/image"), "{error}");

    let mut file = std::fs::File::create(&image).unwrap();
    std::fs::write(&lab.paths.state, "state").unwrap();
    let state = std::fs::File::open(&lab.paths.state).unwrap();
    image::seal(&mut file, &state, image::Content::Whole).unwrap();
    std::fs::remove_file(&lab.paths.state).unwrap();
    let answer = with_body(400, FAULT);
    let (failed, _) = tokio::join!(machine.load(&image, false), peer.serve(&answer));
    assert!(failed.unwrap_err().to_string().contains("no such thing"));
    assert!(!lab.paths.state.exists());

    let die = async {
        let (_, stream) = peer.take().await;
        lab.end(1);
        drop(stream);
    };
    let (failed, ()) = tokio::join!(machine.load(&image, false), die);
    let error = failed.unwrap_err().to_string();
    assert!(
        error.contains("/image") && error.contains("exit code 1"),
        "{error}"
    );
}

#[tokio::test]
async fn vcpus_and_states_are_told_as_firecracker_tells_them() {
    let lab = Lab::new();
    let (machine, peer) = (lab.machine(), lab.peer());
    let (paused, got) = tokio::join!(machine.pause(), peer.serve(NO_CONTENT));
    paused.unwrap();
    assert_eq!(got.body, Some(json!({ "state": "Paused" })));
    let (resumed, got) = tokio::join!(machine.resume(), peer.serve(NO_CONTENT));
    resumed.unwrap();
    assert_eq!(got.body, Some(json!({ "state": "Resumed" })));
    let answer = state("Not started");
    let (failed, _) = tokio::join!(machine.state(), peer.serve(&answer));
    assert!(failed.unwrap_err().to_string().contains("no machine yet"));
    // It lives, and its API does not: that is no end of the machine.
    let (failed, _) = tokio::join!(machine.resume(), peer.serve(""));
    let error = failed.unwrap_err();
    assert!(matches!(&error, VmmError::ChannelLost { .. }), "{error:?}");
}

#[tokio::test]
async fn a_new_channel_to_the_agent_ends_the_one_before() {
    let lab = Lab::new();
    let machine = lab.machine();
    let guest = Peer::listen(&lab.paths.vsock);
    let answer = async {
        let (mut stream, _) = guest.listener.accept().await.unwrap();
        stream.write_all(b"OK 1\n").await.unwrap();
        stream
    };
    let (first, mut one) = tokio::join!(machine.agent(), answer);
    let AgentChannel::Connection(_first) = first.unwrap() else {
        panic!("vsock has connections")
    };
    let answer = async {
        let (mut stream, _) = guest.listener.accept().await.unwrap();
        stream.write_all(b"OK 2\n").await.unwrap();
        stream
    };
    let (second, _two) = tokio::join!(machine.agent(), answer);
    second.unwrap();
    let mut rest = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut one, &mut rest)
        .await
        .unwrap();
    assert_eq!(rest, "CONNECT 10320\n");
}
