//! Our reader and writer against QEMU's, on random input.

use std::cell::Cell;
use std::process::Command;

use proptest::prelude::{ProptestConfig, Strategy};
use proptest::test_runner::TestRunner;

use super::qcow2::io;
use super::{Bench, TEMPLATE_SIZE, tool};
use crate::Backend;
use crate::qcow2::{HEAD_LIMIT, read_header};

/// Runs `check` on `cases` values, all on one bench.
fn for_any<S: Strategy>(cases: u32, strategy: S, check: impl Fn(&Bench, u64, S::Value)) {
    let bench = Bench::new(Backend::Qcow2);
    let next = Cell::new(1);
    TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    })
    .run(&strategy, |value| {
        next.set(next.get() + 1);
        check(&bench, next.get(), value);
        Ok(())
    })
    .unwrap();
}

/// QEMU's own checker agrees with the writer on any size.
#[test]
fn any_size_is_clean_for_qemu() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for_any(
        24,
        TEMPLATE_SIZE / 512..1_u64 << 33,
        |bench, bits, sectors| {
            let layer = runtime.block_on(bench.made(bits, None, sectors * 512));
            tool(
                "qemu-img",
                &["check", "-q", "-f", "qcow2"],
                &bench.path(&layer),
            );
            io(
                bench,
                &layer,
                &format!("write -P 5 {} 512", (sectors - 1) * 512),
            );
            tool(
                "qemu-img",
                &["check", "-q", "-f", "qcow2"],
                &bench.path(&layer),
            );
        },
    );
}

/// What is accepted here, QEMU reads in the same way: no header says one thing to us and another to
/// the monitor.
#[test]
fn an_accepted_header_says_the_same_to_qemu() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let bench = Bench::new(Backend::Qcow2);
    let layer = runtime.block_on(bench.made(1, None, TEMPLATE_SIZE));
    let clean = std::fs::read(bench.path(&layer)).unwrap();
    let changes = proptest::collection::vec((8_usize..160, 0_u32..8), 1..3);
    for_any(100, changes, |_, _, changes| {
        let mut image = clean.clone();
        for (at, bit) in changes {
            image[at] ^= 1 << bit;
        }
        let Ok(ours) = read_header(&image[..HEAD_LIMIT], image.len() as u64) else {
            return;
        };
        std::fs::write(bench.path(&layer), &image).unwrap();
        let output = Command::new("qemu-img")
            .args(["info", "--output=json", "-f", "qcow2"])
            .arg(bench.path(&layer))
            .output()
            .unwrap();
        // What QEMU refuses is harmless; what is no text it prints in its own way.
        if output.status.success() && ours.backing.is_ascii() && ours.backing_format.is_ascii() {
            let theirs: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let text = |field: &str| theirs[field].as_str().unwrap_or_default().as_bytes();
            assert_eq!(theirs["virtual-size"], ours.size);
            assert_eq!(text("backing-filename"), ours.backing);
            assert_eq!(text("backing-filename-format"), ours.backing_format);
            assert_eq!(theirs["cluster-size"], 1_u64 << ours.cluster_bits);
            assert!(theirs["format-specific"]["data"].get("data-file").is_none());
        }
    });
}
