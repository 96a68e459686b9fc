//! What a volume on dm-snapshot promises.

use std::fs::File;
use std::os::unix::fs::FileExt;

use cowslip_e2e::Mounted;
use cowslip_host::dm::DeviceEvents;
use cowslip_ledger::LayerRecord;
use cowslip_model::SandboxId;
use cowslip_store::StoreError;
use cowslip_store::exceptions::{Exceptions, Store, flatten};

use crate::bench::{BLOCK, Bench, DISK, TEMPLATE, TEMPLATE_BLOCKS, template_byte};

#[tokio::test]
async fn a_disk_lives_is_frozen_and_branches() {
    // covers R2 R4 R5 R12 R25 R27
    let bench = Bench::new();
    let a = bench.layer(1, None).await;
    let disk = bench.disk(1, std::slice::from_ref(&a)).await;
    assert_eq!(disk.read(5), template_byte(5));
    disk.write(5, 100);

    let b = bench.layer(2, Some(&a)).await;
    bench.freeze(&disk, &a, &b).await;
    disk.write(6, 101);
    disk.write(5, 102);

    // Two children of the frozen layer, while the parent goes on.
    let (c, d) = (
        bench.layer(3, Some(&a)).await,
        bench.layer(4, Some(&a)).await,
    );
    let left = bench.disk(2, &[a.clone(), c.clone()]).await;
    let right = bench.disk(3, &[a.clone(), d.clone()]).await;
    for child in [&left, &right] {
        assert_eq!((child.read(5), child.read(6)), (100, template_byte(6)));
    }
    left.write(5, 103);
    right.write(7, 104);
    assert_eq!(
        (disk.read(5), disk.read(6), disk.read(7)),
        (102, 101, template_byte(7))
    );
    assert_eq!((left.read(5), left.read(7)), (103, template_byte(7)));
    assert_eq!((right.read(5), right.read(7)), (100, 104));
    // One device a layer, whoever uses it, and one loop device for the template.
    let devices = bench.devices();
    assert_eq!(devices.len(), 4 + 3 + 4 + 1, "{devices:?}");

    bench.end(right).await;
    assert_eq!(left.read(5), 103, "what others use stays");
    bench.end(disk).await;
    bench.end(left).await;
    assert_eq!(bench.devices(), [""; 0]);

    // Everything is in the files; what is frozen is opened for reading only.
    let frozen = LayerRecord {
        frozen: true,
        ..a.clone()
    };
    let layers = [frozen, b.clone()];
    let disk = bench.disk(1, &layers).await;
    assert_eq!((disk.read(5), disk.read(6)), (102, 101));
    bench.end(disk).await;
    bench.remove(&[&b, &c, &d, &a]);
    bench.assert_clean();
}

#[tokio::test]
async fn a_store_holds_a_rewrite_of_the_whole_disk() {
    // covers R23
    let bench = Bench::new();
    let layer = bench.layer(1, None).await;
    let disk = bench.disk(1, std::slice::from_ref(&layer)).await;
    for block in 0..TEMPLATE_BLOCKS {
        disk.write(block, 200);
    }
    for block in 0..TEMPLATE_BLOCKS {
        assert_eq!(disk.read(block), 200);
    }
    bench.end(disk).await;
    let store = File::open(bench.volumes.path(&bench.site, &layer)).unwrap();
    let found = Exceptions::read(&store, DISK).unwrap();
    assert_eq!(found.changed_bytes(), DISK);
    bench.remove(&[&layer]);
    bench.assert_clean();
}

#[tokio::test]
async fn a_disk_may_be_larger_than_its_template() {
    let bench = Bench::new();
    let record = bench.record(1, None, 4 * DISK);
    bench
        .volumes
        .make_layer(&bench.site, &record, None)
        .await
        .unwrap();
    let disk = bench.disk(1, std::slice::from_ref(&record)).await;
    let last = 4 * TEMPLATE_BLOCKS - 1;
    assert_eq!((disk.read(0), disk.read(last)), (template_byte(0), 0));
    disk.write(last, 1);
    assert_eq!(disk.read(last), 1);
    let beyond = disk.file.read_at(&mut [0; 512], 4 * DISK).unwrap();
    assert_eq!(beyond, 0);
    bench.end(disk).await;
    bench.remove(&[&record]);
    bench.assert_clean();
}

/// What the kernel wrote is what our reader reads, through a chain of three.
#[tokio::test]
async fn a_chain_reads_offline_as_it_read_on_line() {
    // covers R24
    let bench = Bench::new();
    let mut layers = vec![bench.layer(1, None).await];
    let disk = bench.disk(1, &layers).await;
    for depth in 0..3_u64 {
        for block in (depth * 7..TEMPLATE_BLOCKS).step_by(13) {
            disk.write(block, u8::try_from(depth).unwrap());
        }
        let top = layers.last().unwrap().clone();
        let next = bench.layer(depth + 2, Some(&top)).await;
        bench.freeze(&disk, &top, &next).await;
        layers.push(next);
    }
    let wanted: Vec<u8> = (0..TEMPLATE_BLOCKS).map(|block| disk.read(block)).collect();
    // The frozen ones are read while the disk is in use.
    let files: Vec<File> = layers[..3]
        .iter()
        .map(|layer| File::open(bench.volumes.path(&bench.site, layer)).unwrap())
        .collect();
    let stores: Vec<Store<'_>> = files
        .iter()
        .map(|file| Store {
            file,
            disk_bytes: DISK,
        })
        .collect();
    let template = File::open(bench.site.layout.template_image(TEMPLATE)).unwrap();
    let out = tempfile::tempfile().unwrap();
    flatten(&template, DISK, &stores, &out).unwrap();
    for (block, byte) in (0_u64..).zip(wanted) {
        let mut found = [0; 1];
        out.read_exact_at(&mut found, block * BLOCK + 9).unwrap();
        assert_eq!(found[0], byte, "block {block}");
    }
    bench.end(disk).await;
    let layers: Vec<&LayerRecord> = layers.iter().rev().collect();
    bench.remove(&layers);
    bench.assert_clean();
}

#[tokio::test]
async fn damaged_stores_and_templates_are_refused_and_nothing_is_activated() {
    let bench = Bench::new();
    let layer = bench.layer(1, None).await;
    let path = bench.volumes.path(&bench.site, &layer);
    let whole = std::fs::read(&path).unwrap();
    let image = bench.site.layout.template_image(TEMPLATE);
    let refused = async |words: &str| {
        let layers = std::slice::from_ref(&layer);
        let id = SandboxId::from_bits(1);
        let error = bench
            .volumes
            .activate(&bench.site, id, layers)
            .await
            .unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        bench.volumes.retire(&bench.site).await.unwrap();
        assert_eq!(bench.devices(), [""; 0]);
        error
    };
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"QFI\xfb", 0).unwrap();
    let _ = refused("is no exception store").await;
    file.write_all_at(&whole[..4096], 0).unwrap();
    file.write_all_at(&u64::MAX.to_le_bytes(), 4096).unwrap();
    file.write_all_at(&2_u64.to_le_bytes(), 4096 + 8).unwrap();
    let _ = refused("holds chunk").await;
    file.write_all_at(&[0; 16], 4096).unwrap();
    file.set_len(whole.len() as u64 - 1).unwrap();
    let _ = refused("bytes, and should have").await;
    file.set_len(whole.len() as u64).unwrap();
    let template = File::options().write(true).open(&image).unwrap();
    template.write_all_at(b"x", 4096).unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
    template.set_modified(later).unwrap();
    let _ = refused("was changed since").await;
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(DISK / 2)
        .unwrap();
    let error = refused("import it again").await;
    assert!(matches!(error, StoreError::Template { .. }));
    std::fs::remove_file(&path).unwrap();
    bench.remove(&[&layer]);
    bench.assert_clean();
}

/// The host's disk refuses a write: the kernel gives the layer up, which is heard at once; what the
/// layer had taken until then is there when it is activated again.
#[tokio::test]
async fn a_layer_that_lost_a_write_is_heard_of_and_taken_up_again() {
    // covers R23 R28
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let mount = Mounted::new(&state, "6m");
    let bench = Bench::on(&state);
    let events = DeviceEvents::open(bench.site.ledger.instance()).unwrap();
    let layer = bench.layer(1, None).await;
    let disk = bench.disk(1, std::slice::from_ref(&layer)).await;
    assert_eq!(events.broken().unwrap(), []);
    let taken = (0..TEMPLATE_BLOCKS)
        .take_while(|block| {
            let bytes = [200; BLOCK as usize];
            disk.file.write_all_at(&bytes, block * BLOCK).is_ok()
        })
        .count() as u64;
    assert!((1..TEMPLATE_BLOCKS).contains(&taken), "{taken} blocks");
    let broken = loop {
        let broken = events.broken().unwrap();
        if !broken.is_empty() {
            break broken;
        }
        events.next().await.unwrap();
    };
    assert_eq!(broken.len(), 1);
    assert_eq!(broken[0].layer, layer.id.to_string());
    assert_eq!(broken[0].state, "Invalid");
    assert_eq!(events.broken().unwrap(), [], "told twice");
    let error = bench.volumes.sync(&bench.site, &layer).await.unwrap_err();
    assert!(error.to_string().contains("invalidated"), "{error}");
    bench.end(disk).await;

    mount.resize("64m");
    let disk = bench.disk(1, std::slice::from_ref(&layer)).await;
    for block in 0..taken {
        assert_eq!(disk.read(block), 200, "block {block} of {taken}");
    }
    disk.write(TEMPLATE_BLOCKS - 1, 201);
    assert_eq!(disk.read(TEMPLATE_BLOCKS - 1), 201);
    bench.volumes.sync(&bench.site, &layer).await.unwrap();
    bench.end(disk).await;
    bench.remove(&[&layer]);
    bench.assert_clean();
    drop(bench);
    drop(mount);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_use_one_template() {
    // covers R10 R14 R39
    let bench = std::sync::Arc::new(Bench::new());
    let before = bench.rows();
    let mut tasks = Vec::new();
    for index in 1..=32_u64 {
        let bench = std::sync::Arc::clone(&bench);
        tasks.push(tokio::spawn(async move {
            let layer = bench.layer(index, None).await;
            let disk = bench.disk(index, std::slice::from_ref(&layer)).await;
            let byte = u8::try_from(index).unwrap();
            disk.write(index, byte);
            assert_eq!((disk.read(index), disk.read(0)), (byte, template_byte(0)));
            bench.end(disk).await;
            bench.remove(&[&layer]);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(bench.rows(), before);
    bench.assert_clean();
}

/// The table is switched under a disk that is written all the time: what was written before a freeze
/// is in the frozen layer, and nothing after it.
#[tokio::test(flavor = "multi_thread")]
async fn freezes_under_a_writer_cut_its_writes_at_one_instant() {
    // covers R26
    use std::sync::atomic::{AtomicBool, Ordering};
    let bench = Bench::new();
    let mut layers = vec![bench.layer(1, None).await];
    let disk = bench.disk(1, &layers).await;
    let writer = disk.file.try_clone().unwrap();
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let seen = std::sync::Arc::clone(&stop);
    // Rounds over all blocks: at any instant the first blocks hold one round, the others the one before.
    for block in 0..64 {
        disk.write(block, 0);
    }
    let thread = std::thread::spawn(move || {
        for round in 1..=u8::MAX {
            for block in 0..64 {
                if seen.load(Ordering::Relaxed) {
                    return;
                }
                writer
                    .write_all_at(&[round; BLOCK as usize], block * BLOCK)
                    .unwrap();
            }
        }
    });
    for depth in 2..=21_u64 {
        let top = layers.last().unwrap().clone();
        let next = bench.layer(depth, Some(&top)).await;
        bench.freeze(&disk, &top, &next).await;
        layers.push(next);
    }
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    for depth in 1..layers.len() {
        let child = bench
            .layer(100 + depth as u64, Some(&layers[depth - 1]))
            .await;
        let mut chain = layers[..depth].to_vec();
        chain.push(child.clone());
        let branch = bench.disk(100 + depth as u64, &chain).await;
        let rounds: Vec<u8> = (0..64).map(|block| branch.read(block)).collect();
        let steps: Vec<(u8, u8)> = rounds
            .windows(2)
            .filter(|pair| pair[0] != pair[1])
            .map(|pair| (pair[0], pair[1]))
            .collect();
        let one_instant = match steps.as_slice() {
            [] => true,
            [(here, before)] => *here == before + 1,
            _ => false,
        };
        assert!(one_instant, "depth {depth}: {rounds:?}");
        bench.end(branch).await;
        bench.remove(&[&child]);
    }
    bench.end(disk).await;
    let layers: Vec<&LayerRecord> = layers.iter().rev().collect();
    bench.remove(&layers);
    bench.assert_clean();
}
