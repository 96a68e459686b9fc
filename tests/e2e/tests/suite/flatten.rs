//! Templates made of disks, and what layers changed.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use cowslip_e2e::{Backend, Instance, Kernel, Setup};
use cowslip_model::SandboxState;
use cowslip_model::api::{Checkpoint, Diff, Template};

fn ready(backend: Backend) -> Instance {
    let setup = Setup {
        backend,
        ..Setup::default()
    };
    Instance::ready(setup, Kernel::Guest)
}

fn image(host: &Instance, template: &Template) -> PathBuf {
    let id = template.id.to_string();
    host.state().join("templates").join(id).join("image.ext4")
}

/// The image is a whole file system that needs no recovery, and its digest is what was told.
fn assert_clean(host: &Instance, template: &Template) {
    let image = image(host, template);
    let output = Command::new("e2fsck")
        .args(["-f", "-n"])
        .arg(&image)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "e2fsck: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let output = Command::new("sha256sum").arg(&image).output().unwrap();
    let digest = String::from_utf8(output.stdout).unwrap();
    assert!(digest.starts_with(&template.digest), "{digest}");
    let found = std::fs::metadata(&image).unwrap();
    assert_eq!(found.len(), template.size.bytes());
    assert_eq!(found.mode() & 0o777, 0o600);
    // Sparse: what the file system does not use takes no room; the journal may.
    assert!(found.blocks() * 512 <= template.used.bytes() + (1 << 20));
}

fn from_each_source(backend: Backend) {
    // covers R24 R27
    let host = ready(backend);
    let _ = host.say("run -d --name source box -- sleep infinity").ok();
    let write =
        "mkdir /root/dir; echo synced >/root/dir/a; head -c 3000000 /dev/zero >/root/zeros; sync";
    let _ = host.sh("source", write).ok();
    let point: Checkpoint = host.say("checkpoint create source --name point").json();
    let base: Template = host.say("template inspect box").json::<Vec<_>>().remove(0);

    // Not synced by the guest: the flatten does that. A file without a block is not without content.
    let write = "echo unsynced >/root/dir/b; head -c 5000000 /dev/urandom >/root/random; \
                 sha256sum </root/random >/root/sum; rm /root/zeros; echo 1 >/tmp/memory";
    let _ = host.sh("source", write).ok();
    let started = host.sandbox("source").started_at;
    let running: Template = host.say("template from source running").json();
    assert_eq!(running.source, "sandbox \"source\"");
    assert_clean(&host, &running);
    let source = host.sandbox("source");
    assert_eq!(source.state, SandboxState::Running);
    assert_eq!(source.started_at, started, "it was started again");
    assert_eq!(host.sh("source", "cat /tmp/memory").ok(), "1");
    let _ = host.sh("source", "echo later >/root/dir/c; sync").ok();

    let checked: Template = host.say("template from point checked").json();
    assert_eq!(checked.source, "checkpoint \"point\"");
    assert_clean(&host, &checked);

    let _ = host.say("stop source").ok();
    let stopped: Template = host.say("template from source stopped").json();
    assert_clean(&host, &stopped);

    for (template, seen) in [
        ("running", "a\nb"),
        ("checked", "a"),
        ("stopped", "a\nb\nc"),
    ] {
        let run = format!("run --rm {template} -- sh -c");
        let done = host.say(&run).arg("ls /root/dir").ok();
        assert_eq!(done, seen, "{template}");
    }
    let sum = "sha256sum </root/random | cmp - /root/sum && cat /root/dir/a /root/dir/b";
    let done = host.say("run --rm running -- sh -c").arg(sum).ok();
    assert_eq!(done, "synced\nunsynced");
    let zeros = "tr -d '\\0' </root/zeros | wc -c; wc -c </root/zeros";
    let done = host.say("run --rm checked -- sh -c").arg(zeros).ok();
    assert_eq!(done, "0\n3000000");

    // A template like any other: it stands without what it was made of.
    let _ = host.say("rm source").ok();
    let _ = host.say("checkpoint rm point").ok();
    assert_eq!(point.template, base.id);
    let _ = host.say("template rm box").ok();
    let done = host.say("run --rm stopped -- cat /root/dir/c").ok();
    assert_eq!(done, "later");
    host.say("template from nobody new")
        .run()
        .refused(&["sandbox or checkpoint \"nobody\"", "checkpoint ls"]);
    let _ = host.say("create --name again stopped").ok();
    host.say("template from again running")
        .run()
        .refused(&["\"running\"", "taken"]);
    let _ = host.say("rm again").ok();
    let _ = host.say("template rm running checked stopped").ok();
}

#[test]
fn templates_are_made_of_overlays() {
    from_each_source(Backend::Qcow2);
}

#[test]
fn templates_are_made_of_copies() {
    from_each_source(Backend::Copy);
}

#[test]
fn a_damaged_disk_becomes_no_template() {
    // covers R24
    let host = ready(Backend::Copy);
    let _ = host.say("create --name broken box").ok();
    let layer = std::fs::read_dir(host.state().join("layers"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .next()
        .unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(layer).unwrap();
    // The group descriptors and what follows them.
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; 1 << 16], 4096).unwrap();
    let before = host.files();
    host.say("template from broken new")
        .run()
        .refused(&["make the template \"new\"", "damaged"]);
    host.assert_only(&before);
    let left = std::fs::read_dir(host.state().join("templates")).unwrap();
    assert_eq!(left.count(), 1);
}

#[test]
fn what_layers_changed_is_told() {
    const MIB: u64 = 1 << 20;
    for backend in [Backend::Qcow2, Backend::Copy] {
        let host = ready(backend);
        let _ = host.say("run -d --name source box -- sleep infinity").ok();
        let changed = || host.say("diff source").json::<Diff>();
        let first = changed().changed.bytes();
        let write = |name: &str, mib: u64| {
            let script = format!("head -c {} /dev/urandom >/root/{name}; sync", mib * MIB);
            let _ = host.sh("source", &script).ok();
        };
        write("a", 4);
        let second = changed();
        assert!(second.live && second.layers.len() == 1, "{second:?}");
        let more = second.changed.bytes() - first;
        assert!((4 * MIB..8 * MIB).contains(&more), "{more} bytes");

        let _ = host.say("checkpoint create source --name point").ok();
        write("b", 8);
        let point: Diff = host.say("diff point").json();
        assert!(!point.live);
        assert_eq!(point.layers[0].checkpoints[0].as_str(), "point");
        assert!(point.layers[0].frozen);
        assert!(point.changed.bytes() >= second.changed.bytes());
        let after = changed();
        let more = after.changed.bytes() - point.changed.bytes();
        assert!((7 * MIB..12 * MIB).contains(&more), "{more} bytes");
        if backend == Backend::Qcow2 {
            assert_eq!(after.layers.len(), 2);
            let top = after.layers[1].changed.bytes();
            assert!((8 * MIB..12 * MIB).contains(&top), "{top} bytes");
            assert!(after.changed.bytes() <= top + after.layers[0].changed.bytes());
        }
        let table = host.say("diff source").ok();
        assert!(
            table.contains("together") && table.contains("over template box"),
            "{table}"
        );
        let _ = host.say("rm --force source").ok();
        let _ = host.say("checkpoint rm point").ok();
    }
}
