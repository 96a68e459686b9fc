//! Who has a block device open: for the message of an error, so every failure here is silence.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::dm::DeviceNumber;

/// Devices that stand on it, and processes that have it open.
pub(crate) fn of(number: DeviceNumber) -> Vec<String> {
    let mut found = Vec::new();
    let holders = format!("/sys/dev/block/{number}/holders");
    for entry in std::fs::read_dir(holders).into_iter().flatten().flatten() {
        let name = entry.path().join("dm/name");
        let name = std::fs::read_to_string(name).map(|name| name.trim().to_owned());
        found.push(name.unwrap_or_else(|_| entry.file_name().to_string_lossy().into_owned()));
    }
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let descriptors = std::fs::read_dir(process.path().join("fd"));
        let opens = descriptors.into_iter().flatten().flatten().any(|entry| {
            std::fs::metadata(entry.path()).is_ok_and(|file| {
                file.file_type().is_block_device()
                    && rustix::fs::major(file.rdev()) == number.major
                    && rustix::fs::minor(file.rdev()) == number.minor
            })
        });
        if opens {
            found.push(format!("process {pid}"));
        }
    }
    if found.is_empty() {
        found.push("the kernel (a mount, or swap)".to_owned());
    }
    found
}
