//! A disk that is full. It is one of its own, which goes with the process that has it.

use std::path::PathBuf;
use std::process::Command;

use cowslip_registry::{Credentials, NoProgress, Pull, PullError};

use crate::bench::{amd64, puller, reference};
use crate::images::{layer, single};
use crate::peer::{Peer, start};

/// Where the disk is, for the process that has one.
const DISK: &str = "COWSLIP_TEST_DISK";

#[tokio::test]
async fn a_full_disk_is_told_and_the_pull_goes_on_when_there_is_space() {
    let Some(disk) = std::env::var_os(DISK).map(PathBuf::from) else {
        let directory = tempfile::tempdir().unwrap();
        let disk = Command::new("unshare")
            .args([
                "--mount",
                "sh",
                "-c",
                "mount -t tmpfs -o size=512k none \"$1\" && shift && exec \"$@\"",
                "sh",
            ])
            .arg(directory.path())
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "full::a_full_disk_is_told_and_the_pull_goes_on_when_there_is_space",
            ])
            .env(DISK, directory.path())
            .output()
            .unwrap();
        let (output, errors) = (
            String::from_utf8_lossy(&disk.stdout),
            String::from_utf8_lossy(&disk.stderr),
        );
        if !disk.status.success() && !output.contains("running 1 test") {
            eprintln!("SKIPPED: this user can mount nothing: {errors}");
            return;
        }
        assert!(disk.status.success(), "{output}{errors}");
        return;
    };
    let long = layer("long", 700_000);
    let peer = Peer::plain(single(std::slice::from_ref(&long))).await;
    let puller = puller(&disk.join("cache"), |_| {});
    let reference = reference(peer.address);
    let platform = amd64();
    let pull = || {
        puller.pull(
            &reference,
            &platform,
            Pull::Always,
            &Credentials::Anonymous,
            &NoProgress,
        )
    };
    let error = pull().await.unwrap_err();
    assert!(matches!(error, PullError::DiskFull { .. }), "{error:?}");
    assert!(
        error.to_string().contains(disk.to_str().unwrap()),
        "{error}"
    );
    // It is no registry's fault: nothing was tried again.
    assert_eq!(peer.count("GET", &long.path()), 1);

    let larger = Command::new("mount")
        .args(["-o", "remount,size=4m"])
        .arg(&disk)
        .status();
    assert!(larger.unwrap().success());
    pull().await.unwrap();
    let asked = peer.asked();
    let of_layer: Vec<_> = asked
        .iter()
        .filter(|asked| asked.path.ends_with(&long.path()))
        .collect();
    assert_eq!(of_layer.len(), 2);
    assert!(
        start(of_layer[1].range.as_deref().unwrap()) > 100_000,
        "{of_layer:?}"
    );
    let blob = disk.join("cache/blobs/sha256").join(long.digest().hex());
    assert_eq!(std::fs::read(blob).unwrap(), long.bytes);
}
