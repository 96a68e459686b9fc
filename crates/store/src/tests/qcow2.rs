//! Overlays as QEMU's own tools see them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::{Bench, TEMPLATE_SIZE, tool};
use crate::{Backend, FreezeStyle, LiveDisk, StoreError};
use async_trait::async_trait;
use cowslip_ledger::LayerRecord;
use cowslip_model::{ByteSize, DiskFormat, DiskLayer, SandboxId};

const OWNER: SandboxId = SandboxId::from_bits(1);

fn info(layer: &Path) -> serde_json::Value {
    let output = tool(
        "qemu-img",
        &["info", "--backing-chain", "--output=json"],
        layer,
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

pub(super) fn io(bench: &Bench, layer: &LayerRecord, command: &str) {
    let output = tool(
        "qemu-io",
        &["-f", "qcow2", "-c", command],
        &bench.path(layer),
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        !text.contains("failed") && !text.contains("error"),
        "{command}: {text}"
    );
}

#[tokio::test]
async fn qemu_finds_a_chain_clean_and_of_the_right_shape() {
    let bench = Bench::new(Backend::Qcow2);
    let base = bench.made(1, None, TEMPLATE_SIZE).await;
    let middle = bench.made(2, Some(&base), TEMPLATE_SIZE).await;
    let top = bench.made(3, Some(&middle), TEMPLATE_SIZE).await;

    io(&bench, &base, "write -P 0xaa 0 4k");
    io(&bench, &middle, "write -P 0xbb 4k 4k");
    io(&bench, &top, "write -P 0xcc 1M 100k");
    for layer in [&base, &middle, &top] {
        tool(
            "qemu-img",
            &["check", "-q", "-f", "qcow2"],
            &bench.path(layer),
        );
    }
    let chain = info(&bench.path(&top));
    let formats: Vec<_> = chain
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["format"].as_str().unwrap())
        .collect();
    assert_eq!(formats, ["qcow2", "qcow2", "qcow2", "raw"]);
    assert_eq!(chain[0]["virtual-size"], TEMPLATE_SIZE);
    assert_eq!(chain[0]["format-specific"]["data"]["extended-l2"], true);
    // The top sees all of them, and the template where none has written.
    for expected in [
        "read -P 0xaa 0 4k",
        "read -P 0xbb 4k 4k",
        "read -P 0xcc 1M 100k",
        "read -P 3 8k 4k",
    ] {
        io(&bench, &top, expected);
    }

    let layers = [base.clone(), middle.clone(), top.clone()];
    let chain = bench
        .volumes
        .activate(&bench.site, OWNER, &layers)
        .await
        .unwrap();
    assert_eq!(
        chain.top,
        DiskLayer {
            path: bench.path(&top),
            format: DiskFormat::Qcow2
        }
    );
    let frozen: Vec<PathBuf> = chain
        .frozen
        .iter()
        .map(|layer| layer.path.clone())
        .collect();
    let image = bench.site.layout.template_image(bench.template);
    assert_eq!(frozen, [image, bench.path(&base), bench.path(&middle)]);
    assert_eq!(chain.frozen[0].format, DiskFormat::Raw);
    assert_eq!(chain.size, TEMPLATE_SIZE);
}

#[tokio::test]
async fn siblings_see_their_parent_and_not_each_other() {
    // covers R25
    let bench = Bench::new(Backend::Qcow2);
    let parent = bench.made(1, None, TEMPLATE_SIZE).await;
    io(&bench, &parent, "write -P 0x11 64k 4k");
    let left = bench.made(2, Some(&parent), TEMPLATE_SIZE).await;
    let right = bench.made(3, Some(&parent), TEMPLATE_SIZE).await;
    let before = std::fs::read(bench.path(&parent)).unwrap();
    io(&bench, &left, "write -P 0x22 64k 4k");
    io(&bench, &right, "read -P 0x11 64k 4k");
    io(&bench, &right, "write -P 0x33 64k 4k");
    io(&bench, &left, "read -P 0x22 64k 4k");
    assert!(
        before == std::fs::read(bench.path(&parent)).unwrap(),
        "the frozen parent was written"
    );
}

#[tokio::test]
async fn a_disk_may_be_larger_than_its_template() {
    // covers R27: the template is neither resized nor written
    let bench = Bench::new(Backend::Qcow2);
    let size = 5 * TEMPLATE_SIZE + 512;
    let layer = bench.made(1, None, size).await;
    io(&bench, &layer, &format!("read -P 0 {TEMPLATE_SIZE} 64k"));
    io(&bench, &layer, &format!("write -P 9 {} 512", size - 512));
    io(&bench, &layer, &format!("read -P 9 {} 512", size - 512));
    tool(
        "qemu-img",
        &["check", "-q", "-f", "qcow2"],
        &bench.path(&layer),
    );
    let wider = bench.made(2, Some(&layer), 2 * size).await;
    io(&bench, &wider, &format!("read -P 0 {size} 64k"));
    let image = bench.site.layout.template_image(bench.template);
    assert_eq!(std::fs::metadata(image).unwrap().len(), TEMPLATE_SIZE);
}

#[tokio::test]
async fn a_huge_disk_costs_nothing_until_it_is_written() {
    let bench = Bench::new(Backend::Qcow2);
    let layer = bench.made(1, None, 8 << 40).await;
    tool(
        "qemu-img",
        &["check", "-q", "-f", "qcow2"],
        &bench.path(&layer),
    );
    io(&bench, &layer, "write -P 1 7T 4k");
    let used = bench.volumes.usage(&bench.site, &layer).unwrap();
    assert!(used < 1 << 20, "{used} bytes");
}

#[tokio::test]
async fn a_small_first_write_copies_no_more_than_its_block() {
    let bench = Bench::new(Backend::Qcow2);
    let layer = bench.made(1, None, TEMPLATE_SIZE).await;
    let blocks = || std::fs::metadata(bench.path(&layer)).unwrap().blocks() * 512;
    let empty = blocks();
    assert!(empty <= 16 << 10, "an empty overlay takes {empty} bytes");
    io(&bench, &layer, "write -P 1 0 4k");
    let first = blocks();
    // The L2 table and its refcounts came with the first; the second brings its 4 KiB only.
    io(&bench, &layer, "write -P 1 4M 4k");
    assert!(
        blocks() - first <= 8 << 10,
        "{} bytes for 4 KiB",
        blocks() - first
    );
}

#[tokio::test]
async fn bad_sizes_are_refused_and_leave_nothing() {
    let bench = Bench::new(Backend::Qcow2);
    for size in [0, 512, TEMPLATE_SIZE - 512, TEMPLATE_SIZE + 1, 1 << 60] {
        let layer = bench.layer(size + 100, None, size);
        let error = bench
            .volumes
            .make_layer(&bench.site, &layer, None)
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Size { .. }), "{size}: {error}");
        assert!(!bench.path(&layer).exists() && bench.handles(&layer) == 0);
    }
}

#[tokio::test]
async fn damage_is_found_before_anything_is_opened() {
    let bench = Bench::new(Backend::Qcow2);
    let base = bench.made(1, None, TEMPLATE_SIZE).await;
    let top = bench.made(2, Some(&base), TEMPLATE_SIZE).await;
    let layers = [base.clone(), top.clone()];
    let good = std::fs::read(bench.path(&top)).unwrap();
    let fails = async |why: &str| {
        let error = bench
            .volumes
            .activate(&bench.site, OWNER, &layers)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(why), "expected \"{why}\" in: {error}");
    };

    // A guest that broke out into its monitor points its layer at somebody else's file.
    tool(
        "qemu-img",
        &[
            "rebase",
            "-u",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            "/etc/shadow",
        ],
        &bench.path(&top),
    );
    fails("stands over \"/etc/shadow\"").await;
    tool(
        "qemu-img",
        &[
            "rebase",
            "-u",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            "0000000000000001.qcow2",
        ],
        &bench.path(&top),
    );
    fails("reads the layer below as \"raw\"").await;
    std::fs::write(bench.path(&top), &good[..4000]).unwrap();
    fails("is cut off").await;
    std::fs::write(bench.path(&top), b"#!/bin/sh\n").unwrap();
    fails("is not a qcow2 file").await;
    std::fs::remove_file(bench.path(&top)).unwrap();
    fails("is gone").await;
    std::os::unix::fs::symlink("/etc/passwd", bench.path(&top)).unwrap();
    fails("not a plain file").await;
    std::fs::remove_file(bench.path(&top)).unwrap();

    std::fs::write(bench.path(&top), &good).unwrap();
    bench
        .volumes
        .activate(&bench.site, OWNER, &layers)
        .await
        .unwrap();
    let image = bench.site.layout.template_image(bench.template);
    std::fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(4096)
        .unwrap();
    fails("has 4096 bytes").await;
    std::fs::remove_file(&image).unwrap();
    fails("is gone").await;
    let over_gone = bench.layer(3, None, TEMPLATE_SIZE);
    let error = bench
        .volumes
        .make_layer(&bench.site, &over_gone, None)
        .await
        .unwrap_err();
    assert!(error.to_string().ends_with("import it again"), "{error}");
}

#[tokio::test]
async fn a_layer_that_is_no_layer_of_the_ledger_is_refused() {
    let bench = Bench::new(Backend::Qcow2);
    let base = bench.made(1, None, TEMPLATE_SIZE).await;
    let wrong = LayerRecord {
        size: ByteSize(2 * TEMPLATE_SIZE),
        ..base.clone()
    };
    let error = bench
        .volumes
        .activate(&bench.site, OWNER, &[wrong])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("the ledger says"), "{error}");
    let raw = LayerRecord {
        format: DiskFormat::Raw,
        ..base
    };
    let error = bench
        .volumes
        .activate(&bench.site, OWNER, &[raw])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("another backend"), "{error}");
    let error = bench
        .volumes
        .activate(&bench.site, OWNER, &[])
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::NoLayers { .. }));
}

#[tokio::test]
async fn a_file_in_the_way_is_never_overwritten() {
    let bench = Bench::new(Backend::Qcow2);
    let layer = bench.layer(1, None, TEMPLATE_SIZE);
    std::fs::write(bench.path(&layer), b"precious").unwrap();
    bench
        .volumes
        .make_layer(&bench.site, &layer, None)
        .await
        .unwrap_err();
    assert_eq!(std::fs::read(bench.path(&layer)).unwrap(), b"precious");
}

/// A machine whose disk change goes as the test wants.
struct Disk {
    top: Mutex<PathBuf>,
    changes: bool,
    answers: bool,
}

#[async_trait]
impl LiveDisk for Disk {
    fn sandbox(&self) -> SandboxId {
        OWNER
    }

    async fn change_disk(&self, next: &DiskLayer) -> Result<(), StoreError> {
        if self.changes {
            next.path.clone_into(&mut self.top.lock().unwrap());
        }
        if self.answers {
            return Ok(());
        }
        Err(StoreError::Swap {
            sandbox: OWNER,
            message: "no answer".to_owned(),
        })
    }

    async fn disk_top(&self) -> Result<PathBuf, StoreError> {
        Ok(self.top.lock().unwrap().clone())
    }
}

#[tokio::test]
async fn a_freeze_whose_answer_is_lost_is_judged_by_what_the_machine_writes() {
    let bench = Bench::new(Backend::Qcow2);
    assert_eq!(
        bench.volumes.freeze_style(bench.volumes.format()),
        FreezeStyle::NewTop
    );
    let top = bench.made(1, None, TEMPLATE_SIZE).await;
    let next = bench.made(2, Some(&top), TEMPLATE_SIZE).await;
    for (changes, answers, good) in [
        (true, true, true),
        (true, false, true),
        (false, false, false),
    ] {
        let disk = Disk {
            top: Mutex::new(bench.path(&top)),
            changes,
            answers,
        };
        let result = bench.volumes.freeze(&bench.site, &top, &next, &disk).await;
        assert_eq!(result.is_ok(), good, "changes {changes}, answers {answers}");
    }
    bench.volumes.sync(&bench.site, &top).await.unwrap();
}
