//! Layers that are merged below a disk in use.

use std::sync::Arc;

use cowslip_engine::unwind::unwind;
use cowslip_ledger::fault::Injector;
use cowslip_ledger::{LayerRecord, Owner, Verdict};
use cowslip_sim::faults::Script;

use crate::bench::{Bench, Disk, Switch, TEMPLATE_BLOCKS, template_byte};

fn frozen(layer: &LayerRecord) -> LayerRecord {
    LayerRecord {
        frozen: true,
        ..layer.clone()
    }
}

/// A disk over layers 1 to 4, of which the last is written; each has block 0 and one of its own.
async fn chain(bench: &Bench) -> (Disk, Vec<LayerRecord>) {
    let mut layers = vec![bench.layer(1, None).await];
    let disk = bench.disk(1, &layers).await;
    for bits in 1..=4_u8 {
        disk.write(0, 100 + bits);
        disk.write(bits.into(), 100 + bits);
        if bits < 4 {
            let top = layers.last().unwrap().clone();
            let next = bench.layer(u64::from(bits) + 1, Some(&top)).await;
            bench.freeze(&disk, &top, &next).await;
            layers.push(next);
        }
    }
    (disk, layers)
}

/// Merges all but the last; gives the merged layer and the last, which stands on it now.
async fn merge(bench: &Bench, layers: &[LayerRecord]) -> (LayerRecord, LayerRecord) {
    let (top, lower) = layers.split_last().unwrap();
    let lower: Vec<LayerRecord> = lower.iter().map(frozen).collect();
    let merged = frozen(&bench.record(9, None, top.size.bytes()));
    bench.put(&merged);
    let (site, volumes) = (&bench.site, &bench.volumes);
    volumes.merge(site, &lower, &merged).await.unwrap();
    let top = LayerRecord {
        parent: Some(merged.id),
        ..top.clone()
    };
    bench.put(&top);
    (merged, top)
}

#[track_caller]
fn assert_content(disk: &Disk) {
    assert_eq!(disk.read(0), 104);
    for bits in 1..=4_u8 {
        assert_eq!(disk.read(bits.into()), 100 + bits);
    }
    let untouched = TEMPLATE_BLOCKS - 1;
    assert_eq!(disk.read(untouched), template_byte(untouched));
}

#[tokio::test]
async fn a_disk_in_use_changes_over_to_the_merged_layer() {
    // covers R5 R25
    let bench = Bench::new();
    let (disk, layers) = chain(&bench).await;
    // A child of the third goes on with the layers as they were.
    let child_top = bench.layer(5, Some(&layers[2])).await;
    let mut child_layers: Vec<LayerRecord> = layers[..3].iter().map(frozen).collect();
    child_layers.push(child_top.clone());
    let child = bench.disk(2, &child_layers).await;

    let (merged, top) = merge(&bench, &layers).await;
    assert_content(&disk);
    let next = bench.layer(6, Some(&top)).await;
    bench.freeze(&disk, &top, &next).await;
    assert_content(&disk);
    disk.write(7, 107);
    let last = bench.layer(7, Some(&next)).await;
    bench.freeze(&disk, &next, &last).await;
    disk.write(8, 108);
    assert_content(&disk);
    assert_eq!((child.read(0), child.read(4)), (103, template_byte(4)));

    bench.end(child).await;
    // A device and a loop device each of the merged layer and the three over it, the template's loop
    // device and the disk: nothing of the layers that were merged, nor of the fourth's first device.
    let devices = bench.devices();
    assert_eq!(devices.len(), 2 * 4 + 2, "{devices:?}");
    bench.remove(&[&child_top, &layers[2], &layers[1], &layers[0]]);
    assert_content(&disk);
    assert_eq!((disk.read(7), disk.read(8)), (107, 108));
    bench.end(disk).await;
    assert_eq!(bench.devices(), [""; 0]);

    let whole = [merged.clone(), frozen(&top), frozen(&next), last.clone()];
    let disk = bench.disk(1, &whole).await;
    assert_content(&disk);
    assert_eq!((disk.read(7), disk.read(8)), (107, 108));
    bench.end(disk).await;
    bench.remove(&[&last, &next, &top, &merged]);
    bench.assert_clean();
}

#[tokio::test]
async fn what_was_made_for_a_freeze_that_did_not_come_is_free_to_go() {
    // covers R8 R30
    let bench = Bench::new();
    let (disk, layers) = chain(&bench).await;
    let (site, volumes) = (&bench.site, &bench.volumes);
    let switch = Switch(disk.id);
    let before = bench.devices();
    // Over the top as it stands, and over one whose lower layers were merged.
    let mut merged = None;
    for bits in [20, 21] {
        let top = match &merged {
            None => layers[3].clone(),
            Some((_, top)) => LayerRecord::clone(top),
        };
        let next = bench.layer(bits, Some(&top)).await;
        let prepared = volumes.prepare_freeze(site, &top, &next, &switch).await;
        prepared.unwrap();
        assert!(bench.devices().len() > before.len());
        volumes.retire(site).await.unwrap();
        assert!(
            bench.devices().len() > before.len(),
            "the disk may come to stand on it"
        );
        volumes.settle(site, disk.id).await.unwrap();
        volumes.retire(site).await.unwrap();
        assert_eq!(bench.devices(), before);
        bench.remove(&[&next]);
        merged = match merged {
            None => Some(merge(&bench, &layers).await),
            some => some,
        };
    }
    assert_content(&disk);
    bench.end(disk).await;
    let (merged, _) = merged.unwrap();
    let layers: Vec<&LayerRecord> = layers.iter().rev().collect();
    bench.remove(&layers);
    bench.remove(&[&merged]);
    bench.assert_clean();
}

/// Whatever fails while it changes over, the disk goes on where it was, and what is written meanwhile
/// is there when it has changed over.
#[tokio::test]
async fn what_is_written_between_a_change_over_that_failed_and_the_next_is_there() {
    // covers R22 R30
    let bench = Bench::new();
    let (disk, layers) = chain(&bench).await;
    let (merged, top) = merge(&bench, &layers).await;
    let switch = Switch(disk.id);
    let mut failures = 0;
    for step in 0.. {
        let script = Arc::new(Script::at(step, Verdict::Fail));
        let doomed = bench.again(Injector::new(script));
        let next = bench.record(100 + step as u64, Some(&top), top.size.bytes());
        bench.put(&next);
        let (site, volumes) = (&doomed.site, &doomed.volumes);
        let outcome = async {
            volumes.make_layer(site, &next, Some(&top)).await?;
            volumes.prepare_freeze(site, &top, &next, &switch).await?;
            volumes.freeze(site, &top, &next, &switch).await
        };
        let outcome = outcome.await;
        let written = bench.volumes.is_written(&bench.site, &next, &switch);
        if written.await.unwrap() {
            // It may have failed after the switch, which is none of its own failures.
            bench.put(&frozen(&top));
            assert_content(&disk);
            for index in 0..failures {
                assert_eq!(disk.read(20 + index), 150);
            }
            bench.end(disk).await;
            bench.remove(&[&next]);
            break;
        }
        assert!(outcome.is_err(), "step {step}");
        unwind(&bench.site, Owner::Layer(next.id)).unwrap();
        disk.write(20 + failures, 150);
        failures += 1;
    }
    assert!(failures > 5, "{failures} steps can fail");
    let layers: Vec<&LayerRecord> = layers.iter().rev().collect();
    bench.remove(&layers);
    bench.remove(&[&merged]);
    bench.assert_clean();
}
