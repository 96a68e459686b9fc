//! The reader of ext4 images that others wrote, on any bytes. Run it with `cargo fuzz run export`.
//!
//! The input is put over the start of an image of `mke2fs`, from the superblock on, so that what is reached
//! is more than the check of the first fields: with an empty input the image is whole.

#![no_main]

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use cowslip_image::{Cancel, ExportJob, Limits, NoProgress, export_tar};
use libfuzzer_sys::fuzz_target;

/// Without checksums, which no mutation would get right.
static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let work = tempfile::tempdir().expect("a directory");
    let (source, image) = (work.path().join("source"), work.path().join("image"));
    std::fs::create_dir_all(source.join("a/b")).expect("made");
    std::fs::write(source.join("a/file"), [7; 5000]).expect("written");
    std::os::unix::fs::symlink("x/".repeat(50), source.join("link")).expect("linked");
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-b", "1024", "-N", "32"])
        .args(["-O", "^metadata_csum,^has_journal,^resize_inode", "-d"])
        .args([&source, &image])
        .arg("256K")
        .status();
    assert!(made.expect("mke2fs").success());
    std::fs::read(image).expect("read")
});

fuzz_target!(|input: &[u8]| {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = rustix::fs::memfd_create("image", flags).expect("a file in memory");
    let file = std::fs::File::from(file);
    file.write_all_at(&WHOLE, 0).expect("written");
    file.write_all_at(input, 1024).expect("written");
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let job = ExportJob {
        work_dir: Path::new("/nonexistent"),
        limits: Limits {
            max_bytes: 4 << 20,
            max_entries: 1000,
            ..Limits::default()
        },
        progress: &NoProgress,
        cancel: &Cancel::default(),
    };
    match export_tar(Path::new(&path), io::sink(), &job) {
        Ok(exported) => assert!(exported.entries <= job.limits.max_entries),
        Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
    }
});
