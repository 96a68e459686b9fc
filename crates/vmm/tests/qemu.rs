//! The QEMU monitor with a real QEMU and a real guest kernel.
//!
//! Needs what `scripts/test-assets` makes; says so and tests nothing where that is not there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests; a failed expectation is a failed test"
)]

mod support;

use std::path::Path;

use cowslip_model::{ByteSize, DiskFormat, DiskLayer};
use cowslip_vmm::qemu::{Accelerator, Choice, Trial};
use cowslip_vmm::{Credentials, Machine, RunState, Vmm, VmmError};
use support::guest;
use support::{Lab, Port, chain, is_root, qemu_img, writers};

macro_rules! lab {
    ($choice:expr) => {
        match Lab::new($choice).await {
            Some(lab) => lab,
            None => return,
        }
    };
}

/// A checkpoint as the engine takes it: the disk first, then the memory, then on.
async fn checkpoint(machine: &dyn Machine, next: &DiskLayer, image: &Path) -> u64 {
    machine.pause().await.unwrap();
    machine.change_disk(next).await.unwrap();
    assert_eq!(machine.disk_top().await.unwrap(), next.path);
    let bytes = machine.save(image, None).await.unwrap().bytes;
    machine.resume().await.unwrap();
    bytes
}

/// The main job: checkpoint a running machine, restore the image twice at once, and a checkpoint of
/// a restored machine once more.
async fn forks(lab: &Lab) {
    let base = lab.base();
    let first = lab.overlay("first", &base);
    let config = lab.config(chain(&[&base, &first]));
    let source = lab.vmm.boot(&lab.site, &config).await.unwrap();
    let mut port = Port::open(&*source).await;
    if let Some(user) = &lab.credentials {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", lab.pid(config.sandbox))).unwrap();
        let expected = format!("Uid:\t{0}\t{0}\t{0}\t{0}\n", user.uid);
        assert!(status.contains(&expected), "{status}");
    }
    assert_eq!(port.ask("write 5 x common").await, "written");
    assert_eq!(port.ask("count").await, "count 1");

    let image = lab.dir().join("image");
    let second = lab.overlay("second", &first);
    let bytes = checkpoint(&*source, &second, &image).await;
    assert_eq!(bytes, std::fs::metadata(&image).unwrap().len());
    // Frozen: written by nobody, not even where QEMU once could.
    assert_eq!(writers(lab.pid(config.sandbox), &first.path), 0);
    assert!(writers(lab.pid(config.sandbox), &second.path) > 0);
    assert_eq!(port.ask("read 5").await, "read x common");
    assert_eq!(port.ask("write 5 x source").await, "written");
    assert_eq!(port.ask("count").await, "count 2");

    let tops = [lab.overlay("left", &first), lab.overlay("right", &first)];
    let configs = tops
        .each_ref()
        .map(|top| lab.config(chain(&[&base, &first, top])));
    let (left, right) = tokio::join!(
        lab.vmm.restore(&lab.site, &configs[0], &image),
        lab.vmm.restore(&lab.site, &configs[1], &image)
    );
    let forks = [left.unwrap(), right.unwrap()];
    let mut ports = Vec::new();
    for (fork, top) in forks.iter().zip(&tops) {
        assert_eq!(fork.state().await.unwrap(), RunState::Paused);
        assert_eq!(fork.disk_top().await.unwrap(), top.path);
        fork.resume().await.unwrap();
        ports.push(Port::open(&**fork).await);
    }
    for (index, port) in ports.iter_mut().enumerate() {
        assert_eq!(port.ask("read 5").await, "read x common");
        assert_eq!(port.ask("count").await, "count 2");
        assert_eq!(port.ask(&format!("write 5 x fork{index}")).await, "written");
    }
    for (index, port) in ports.iter_mut().enumerate() {
        assert_eq!(port.ask("read 5").await, format!("read x fork{index}"));
    }
    assert_eq!(port.ask("read 5").await, "read x source");

    let again = lab.dir().join("again");
    let deeper = lab.overlay("deeper", &tops[0]);
    checkpoint(&*forks[0], &deeper, &again).await;
    let top = lab.overlay("deepest", &tops[0]);
    let config = lab.config(chain(&[&base, &first, &tops[0], &top]));
    let grandchild = lab.vmm.restore(&lab.site, &config, &again).await.unwrap();
    grandchild.resume().await.unwrap();
    assert_eq!(
        Port::open(&*grandchild).await.ask("read 5").await,
        "read x fork0"
    );
    for layer in [&first, &tops[0]] {
        qemu_img(&["check", "-q"], &[&layer.path]);
    }
}

// covers R25, R26, R33, R41
#[tokio::test(flavor = "multi_thread")]
async fn forks_of_a_checkpoint_share_nothing_that_is_written() {
    forks(&lab!(Choice::Tcg)).await;
}

// covers R25, R26, R33
#[tokio::test(flavor = "multi_thread")]
async fn the_purpose_built_kernel_forks_as_well() {
    if let Some(lab) = Lab::with(Choice::Tcg, guest::purpose_built).await {
        forks(&lab).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_under_its_own_user_needs_no_access_to_any_directory() {
    if !is_root() {
        eprintln!("SKIPPED: only root can start a process as another user");
        return;
    }
    let mut lab = lab!(Choice::Tcg);
    lab.credentials = Some(Credentials {
        uid: 200_001,
        gid: 200_001,
        groups: Vec::new(),
    });
    forks(&lab).await;
}

// covers R30
#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_while_paused_the_machine_goes_on() {
    let lab = lab!(Choice::Tcg);
    let base = lab.base();
    let first = lab.overlay("first", &base);
    let config = lab.config(chain(&[&base, &first]));
    let machine = lab.vmm.boot(&lab.site, &config).await.unwrap();
    let mut port = Port::open(&*machine).await;

    // What needs a machine that stands still is refused while it runs.
    let next = lab.overlay("next", &first);
    assert!(machine.change_disk(&next).await.is_err());
    assert!(machine.save(&lab.dir().join("none"), None).await.is_err());
    assert!(!lab.dir().join("none").exists());

    machine.pause().await.unwrap();
    machine.pause().await.unwrap();
    assert_eq!(machine.state().await.unwrap(), RunState::Paused);

    // Overlays that are none.
    let garbage = lab.dir().join("garbage.qcow2");
    std::fs::write(&garbage, b"no qcow2").unwrap();
    for bad in [garbage, lab.dir().join("absent.qcow2"), first.path.clone()] {
        let bad = DiskLayer {
            path: bad,
            format: DiskFormat::Qcow2,
        };
        let error = machine.change_disk(&bad).await.unwrap_err();
        assert_eq!(
            machine.disk_top().await.unwrap(),
            first.path,
            "after: {error}"
        );
    }
    let raw = DiskLayer {
        path: base.path.clone(),
        format: DiskFormat::Raw,
    };
    assert!(machine.change_disk(&raw).await.is_err());

    // An image that cannot be written.
    assert!(
        machine
            .save(Path::new("/nonexistent/image"), None)
            .await
            .is_err()
    );
    assert!(
        machine.save(&first.path, None).await.is_err(),
        "a file that is there was overwritten"
    );
    machine.resume().await.unwrap();
    machine.resume().await.unwrap();
    assert_eq!(port.ask("count").await, "count 1");

    // A save that is given up in the middle, at any moment.
    for micros in [100, 1_000, 10_000, 50_000] {
        machine.pause().await.unwrap();
        let image = lab.dir().join(format!("given-up-{micros}"));
        let bound = std::time::Duration::from_micros(micros);
        let _ = tokio::time::timeout(bound, machine.save(&image, None)).await;
        machine.resume().await.unwrap();
        assert_eq!(port.ask("echo on").await, "echo on");
    }

    // A good checkpoint works afterwards, and a saved machine's disk is left alone until it goes on.
    machine.pause().await.unwrap();
    machine.change_disk(&next).await.unwrap();
    machine.save(&lab.dir().join("image"), None).await.unwrap();
    let last = lab.overlay("last", &next);
    let error = machine.change_disk(&last).await.unwrap_err().to_string();
    assert!(error.contains("resume it first"), "{error}");
    assert!(machine.save(&lab.dir().join("more"), None).await.is_err());
    machine.resume().await.unwrap();
    assert_eq!(port.ask("count").await, "count 2");
    assert_eq!(writers(lab.pid(config.sandbox), &first.path), 0);
}

// covers R28, R30
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_image_leaves_the_machine_running() {
    if !is_root() {
        eprintln!("SKIPPED: only root can mount a small file system");
        return;
    }
    let lab = lab!(Choice::Tcg);
    let small = Small::mount(&lab.dir().join("small"));
    let config = lab.config(None);
    let machine = lab.vmm.boot(&lab.site, &config).await.unwrap();
    let mut port = Port::open(&*machine).await;
    machine.pause().await.unwrap();
    let image = small.0.join("image");
    let error = machine.save(&image, None).await.unwrap_err().to_string();
    assert!(error.contains("No space left on device"), "{error}");
    assert!(!image.exists(), "half an image was left");
    machine.resume().await.unwrap();
    assert_eq!(port.ask("count").await, "count 1");
    machine.pause().await.unwrap();
    machine.save(&lab.dir().join("image"), None).await.unwrap();
    machine.resume().await.unwrap();
    assert_eq!(port.ask("count").await, "count 2");
}

/// A file system of 8 MiB.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(at: &Path) -> Self {
        std::fs::create_dir(at).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", at, "tmpfs", flags, Some(c"size=8m")).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

// covers R32
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_whole_is_refused_with_the_reason() {
    let lab = lab!(Choice::Tcg);
    let config = lab.config(None);
    let machine = lab.vmm.boot(&lab.site, &config).await.unwrap();
    Port::open(&*machine).await;
    machine.pause().await.unwrap();
    let image = lab.dir().join("image");
    let bytes = machine.save(&image, None).await.unwrap().bytes;
    let whole = std::fs::read(&image).unwrap();

    let cut = lab.dir().join("cut");
    std::fs::write(&cut, &whole[..usize::try_from(bytes / 2).unwrap()]).unwrap();
    let garbage = lab.dir().join("garbage");
    std::fs::write(&garbage, vec![b'x'; 1 << 20]).unwrap();
    let empty = lab.dir().join("empty");
    std::fs::write(&empty, b"").unwrap();
    for bad in [&cut, &garbage, &empty] {
        let config = lab.config(None);
        let Err(error) = lab.vmm.restore(&lab.site, &config, bad).await else {
            panic!("{} was restored", bad.display())
        };
        assert!(matches!(error, VmmError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(bad.to_str().unwrap()), "{error}");
        lab.unwind(config.sandbox);
        assert!(lab.rows(config.sandbox).is_empty());
    }
    // A machine of another size is not the one that was saved.
    let mut other = lab.config(None);
    other.memory = ByteSize::mib(256);
    assert!(lab.vmm.restore(&lab.site, &other, &image).await.is_err());
    let absent = lab.dir().join("absent");
    assert!(
        lab.vmm
            .restore(&lab.site, &lab.config(None), &absent)
            .await
            .is_err()
    );
    // None of it touched the image.
    assert_eq!(std::fs::read(&image).unwrap(), whole);
    let restored = lab
        .vmm
        .restore(&lab.site, &lab.config(None), &image)
        .await
        .unwrap();
    restored.resume().await.unwrap();
    assert_eq!(Port::open(&*restored).await.ask("count").await, "count 1");
}

// covers R45, R46
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_outlives_its_engine_and_is_attached_again() {
    let lab = lab!(Choice::Tcg);
    let base = lab.base();
    let first = lab.overlay("first", &base);
    let mut config = lab.config(chain(&[&base, &first]));
    config.cpus = 2;
    config.console_bound = ByteSize(64 << 10);
    let machine = lab.vmm.boot(&lab.site, &config).await.unwrap();
    let mut port = Port::open(&*machine).await;
    assert_eq!(port.ask("cpus").await, "cpus 2");
    assert_eq!(port.ask("count").await, "count 1");
    let second = lab.overlay("second", &first);
    checkpoint(&*machine, &second, &lab.dir().join("image")).await;
    drop((machine, port));

    // The engine's book may still name the layer from before the checkpoint: the machine knows.
    let machine = lab.vmm.attach(&lab.site, &config).await.unwrap();
    assert_eq!(machine.state().await.unwrap(), RunState::Running);
    assert_eq!(machine.disk_top().await.unwrap(), second.path);
    let mut port = Port::open(&*machine).await;
    assert_eq!(port.ask("count").await, "count 2");

    // A new channel replaces the one before.
    let mut newer = Port::open(&*machine).await;
    assert_eq!(newer.ask("count").await, "count 3");

    // The console is read on, within its bound, and the guest never waits for it.
    assert_eq!(newer.ask("console marker 300000").await, "console");
    assert_eq!(newer.ask("count").await, "count 4");
    let log = std::fs::metadata(&config.console_log).unwrap().len();
    assert!(
        (1024..=64 << 10).contains(&log),
        "{log} bytes of console log"
    );

    newer.tell("off").await;
    // A guest that powers off is no failure: there is nothing to say.
    assert_eq!(machine.ended().await, None);
    assert!(matches!(machine.state().await, Err(VmmError::Ended { .. })));
    drop(machine);
    let Err(error) = lab.vmm.attach(&lab.site, &config).await else {
        panic!("a dead one was attached")
    };
    assert!(matches!(error, VmmError::Ended { .. }), "{error}");
    lab.unwind(config.sandbox);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_ends_leaves_its_last_words() {
    let lab = lab!(Choice::Tcg);
    // A kernel panic ends the machine, and is told.
    let config = lab.config(None);
    let machine = lab.vmm.boot(&lab.site, &config).await.unwrap();
    Port::open(&*machine).await.tell("panic").await;
    let words = machine.ended().await.unwrap();
    assert!(words.contains("kernel panic"), "{words}");
    assert!(machine.pause().await.is_err());

    // So is what the monitor says of a kernel that is none.
    let mut config = lab.config(None);
    config.kernel = lab.dir().join("no-kernel");
    std::fs::write(&config.kernel, vec![b'#'; 8192]).unwrap();
    let Err(error) = lab.vmm.boot(&lab.site, &config).await else {
        panic!("no kernel was booted")
    };
    assert!(
        matches!(
            error,
            VmmError::Ended {
                detail: Some(_),
                ..
            }
        ),
        "{error}"
    );
    let mut config = lab.config(None);
    config.kernel = lab.dir().join("absent");
    let Err(error) = lab.vmm.boot(&lab.site, &config).await else {
        panic!("nothing was booted")
    };
    assert!(error.to_string().contains("absent"), "{error}");

    // And a kill from outside, seen by the engine that started it.
    let config = lab.config(None);
    let machine = lab.vmm.boot(&lab.site, &config).await.unwrap();
    Port::open(&*machine).await;
    let pid = i32::try_from(lab.pid(config.sandbox))
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.unwrap(), rustix::process::Signal::KILL).unwrap();
    assert_eq!(machine.ended().await.as_deref(), Some("ended by signal 9"));
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_is_used_only_where_a_guest_boots_on_it() {
    let lab = lab!(Choice::Auto);
    let config = lab.config(None);
    let known = lab.vmm.accelerator();
    let decided = lab
        .vmm
        .decide(&lab.site, &Trial::of(&config))
        .await
        .unwrap();
    eprintln!("KVM: known before the probe {known:?}, decided {decided:?}");
    // The probe leaves nothing: what is held is the runtime directory made above.
    let rows = lab
        .site
        .ledger
        .read::<_, cowslip_ledger::LedgerError>(|tx| tx.handles())
        .unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert!(known.is_none() || decided == Accelerator::Tcg);
    // Whatever it is, it runs guests.
    let machine = lab.vmm.boot(&lab.site, &config).await.unwrap();
    assert_eq!(Port::open(&*machine).await.ask("count").await, "count 1");
    assert_eq!(lab.vmm.info().accelerator, decided.as_str());
    if known.is_none() {
        let config = cowslip_vmm::qemu::QemuConfig {
            program: None,
            accelerator: Choice::Auto,
            memory: lab.dir().join("kvm.json"),
        };
        let next = cowslip_vmm::qemu::QemuVmm::detect(&config).await.unwrap();
        assert_eq!(
            next.accelerator(),
            Some(decided),
            "the answer was not remembered"
        );
    }
}
