//! What becomes of a guest's discards: its disk takes none, so a store neither grows nor shrinks by them.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use cowslip_store::exceptions::Exceptions;

use crate::bench::{Bench, DISK, template_byte};

#[tokio::test]
async fn discards_do_not_grow_a_store() {
    // covers R29
    let bench = Bench::new();
    let layer = bench.layer(1, None).await;
    let disk = bench.disk(1, std::slice::from_ref(&layer)).await;
    for block in 16..32 {
        disk.write(block, 200);
    }
    let store = bench.volumes.path(&bench.site, &layer);
    let held = || {
        let found = Exceptions::read(&File::open(&store).unwrap(), DISK).unwrap();
        let usage = bench.volumes.usage(&bench.site, &layer).unwrap();
        (found.len(), usage)
    };
    let before = held();
    let minor = rustix::fs::minor(disk.file.metadata().unwrap().rdev());
    // What a monitor sees, and therefore a guest: nothing that can be discarded.
    let limit = format!("/sys/block/dm-{minor}/queue/discard_max_bytes");
    assert_eq!(fs::read_to_string(limit).unwrap().trim(), "0");
    // All of it, written and unwritten.
    let mut discard = Command::new("blkdiscard");
    let said = discard
        .args(["--force", &format!("/dev/dm-{minor}")])
        .output();
    let said = said.unwrap();
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(
        !said.status.success() && text.contains("not supported"),
        "{said:?}"
    );
    assert_eq!(held(), before);
    assert_eq!((disk.read(16), disk.read(0)), (200, template_byte(0)));
    bench.end(disk).await;
    bench.remove(&[&layer]);
    bench.assert_clean();
}
