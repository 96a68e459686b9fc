//! `kill -9` of the engine while it imports: the template is whole, or nothing of it is left.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use cowslip_e2e::{ContainerImage, Done, Instance, Kernel, Registry, Setup, Tar, box_tar};
use cowslip_model::api::Template;
use serde_json::json;

use crate::crash::{kill_at, measure, places};

fn is_there(host: &Instance, name: &str) -> bool {
    let found: Vec<Template> = host.say("template ls").json();
    found
        .iter()
        .any(|one| one.names.iter().any(|known| known.as_str() == name))
}

/// The template "other" is there and goes without a trace, or is not.
fn assert_whole_or_gone(host: &Instance, done: &Done, files: &BTreeSet<PathBuf>) {
    let there = is_there(host, "other");
    assert!(
        there || done.code != 0,
        "it was said to be done and is not there: {done}"
    );
    if there {
        let _ = host.say("template rm other").ok();
    }
    host.assert_agreement();
    assert_eq!(&host.files(), files);
}

/// Bytes that nothing makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length / 8).flat_map(|_| word()).collect()
}

#[test]
fn during_import() {
    // covers R43 R47 R62
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let files = host.files();
    let mut other = Tar::default().file("more", 0o644, &[7; 1 << 20]);
    for index in 0..200 {
        other = other.file(&format!("file-{index}"), 0o644, b"x");
    }
    let other = other.bytes();
    let import = |name: &str| {
        host.call(["template", "import", name, "-"])
            .stdin(other.clone())
    };
    let count = measure(&host, import("other"));
    let _ = host.say("template rm other").ok();
    for at in places(count) {
        let done = kill_at(&host, import("other"), at);
        let there = is_there(&host, "other");
        assert!(
            there || done.code != 0,
            "it was said to be done and is not there: {done}"
        );
        if there {
            let _ = host.say("run --rm other -- /none").run().exits(127);
            let _ = host.say("template rm other").ok();
        }
        host.assert_agreement();
        assert_eq!(host.files(), files, "at change {at} of {count}");
    }
    // The template there was is whole, and importing it again is no work.
    host.import("again", box_tar());
    assert_eq!(host.files(), files);
}

#[test]
fn during_a_pull() {
    // covers R43 R47 R62
    let Some(registry) = Registry::open() else {
        return;
    };
    let host = Instance::new();
    let top = Tar::default().file("noise", 0o644, &noise(4 << 20));
    let more = Tar::default().file("more", 0o644, b"more");
    let image = ContainerImage::new(box_tar()).layer(top).layer(more);
    image.push(&registry, "made:v1");
    let source = format!("docker://{}/made:v1", registry.address());
    let import = || host.call(["template", "import", "other", &source]);
    let blobs = host.state().join("images/blobs/sha256");
    let partial = host.state().join("images/partial");
    let count = |directory: &PathBuf| fs::read_dir(directory).unwrap().count();
    let forget = || {
        let _ = host.say("template rm other").ok();
        let _ = host.say("gc --images").ok();
        assert_eq!((count(&blobs), count(&partial)), (0, 0));
    };
    // The first one makes the cache, whose changes count from then on.
    let _ = import().ok();
    let files = {
        forget();
        host.files()
    };
    let changes = measure(&host, import());
    forget();
    for at in places(changes) {
        let done = kill_at(&host, import(), at);
        assert_whole_or_gone(&host, &done, &files);
        // What was downloaded is gone on with.
        let _ = import().ok();
        // Three layers, a manifest and a config.
        assert_eq!((count(&blobs), count(&partial)), (5, 0), "change {at}");
        forget();
        assert_eq!(host.files(), files, "change {at} of {changes}");
    }
}

/// Asks the engine for an import, and comes back when it tells of this phase.
fn import_up_to(host: &Instance, source: &serde_json::Value, phase: &str) {
    let body = json!({ "name": "other", "source": source }).to_string();
    let socket = host.run_dir().join("cowslip.sock");
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(
        stream,
        "POST /v1/templates/import HTTP/1.1\r\nHost: localhost\r\ncowslip-version: {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        env!("CARGO_PKG_VERSION"),
        body.len()
    )
    .unwrap();
    let mut answer = BufReader::new(stream).lines();
    let told = format!("\"phase\":\"{phase}\"");
    let found = answer.find(|line| line.as_ref().is_ok_and(|line| line.contains(&told)));
    assert!(found.is_some(), "it was never {phase}");
    host.kill_engine();
}

#[test]
fn in_each_phase_of_an_import() {
    // covers R43 R47
    let host = Instance::new();
    let root = host.scratch().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("noise"), noise(64 << 20)).unwrap();
    for index in 0..2000 {
        fs::write(root.join(format!("file-{index}")), "content").unwrap();
    }
    let layout = host.scratch().join("layout");
    let layer = Tar::default().file("noise", 0o644, &noise(64 << 20));
    ContainerImage::new(layer.bytes()).write_layout(&layout, "v1");
    let directory = json!({ "type": "directory", "path": root });
    let layout = json!({ "type": "oci-layout", "path": layout });
    assert!(!is_there(&host, "other"));
    let files = host.files();
    for source in [&directory, &layout] {
        for phase in ["reading", "writing", "sealing"] {
            import_up_to(&host, source, phase);
            // It may just have ended.
            if is_there(&host, "other") {
                let _ = host.say("template rm other").ok();
            }
            host.assert_agreement();
            assert_eq!(host.files(), files, "{phase}: {source}");
        }
    }
}
