//! Loop devices and devices of device-mapper as handles.

use std::collections::HashSet;
use std::sync::Arc;

use cowslip_host::dm::{Role, whole};
use cowslip_host::{
    Content, Device, DeviceSpec, DmError, File, FileSpec, HostError, Loop, LoopSpec, Target,
};
use cowslip_ledger::plan::Presence;
use cowslip_ledger::{HandleRow, Owner};
use cowslip_model::{HandleId, InstanceId, LayerId};

use crate::bench::{Bench, open_device};

const OWNER: Owner = Owner::Layer(LayerId::from_bits(9));

fn row(bench: &Bench, id: HandleId) -> HandleRow {
    bench.site.ledger.read(|tx| tx.handle(id)).unwrap().unwrap()
}

/// A file that a loop device can stand on.
fn backing(bench: &Bench, name: &str) -> (HandleRow, LoopSpec) {
    let path = bench.site.layout.state().join("layers").join(name);
    let spec = FileSpec {
        path: path.clone(),
        mode: 0o600,
    };
    let slot = bench.site.ledger.reserve::<File>(OWNER, spec, &[]).unwrap();
    let content = Content::Beginning {
        bytes: b"x",
        size: 1 << 20,
    };
    let held = bench.site.host.make_file(slot, content).unwrap();
    let spec = LoopSpec {
        path,
        read_only: false,
        flushes: false,
    };
    (row(bench, held.settle()), spec)
}

fn release(bench: &Bench, rows: &[&HandleRow]) {
    for row in rows {
        for _ in 0..2 {
            bench.site.host.release(row).unwrap();
        }
        assert_eq!(bench.site.host.probe(row).unwrap(), Presence::Absent);
        bench.site.ledger.forget(row).unwrap();
    }
}

fn zeros(bench: &Bench, id: u64) -> DeviceSpec {
    let instance = bench.site.ledger.instance();
    DeviceSpec::new(
        instance,
        Role::Layer,
        LayerId::from_bits(id),
        whole(8, Target::Zero),
    )
}

#[test]
fn nobody_gets_the_loop_device_of_another() {
    // covers R10
    let bench = Arc::new(Bench::new());
    let threads: Vec<_> = (0..16)
        .map(|index| {
            let bench = Arc::clone(&bench);
            std::thread::spawn(move || {
                let (file, spec) = backing(&bench, &format!("{index}.cow"));
                let slot = bench.site.ledger.reserve::<Loop>(OWNER, spec, &[]).unwrap();
                let (held, hold) = bench.site.host.attach_loop(slot).unwrap();
                let identity = *held.identity();
                (file, row(&bench, held.settle()), identity.index, hold)
            })
        })
        .collect();
    let got: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    let indices: HashSet<u32> = got.iter().map(|(_, _, index, _)| *index).collect();
    assert_eq!(indices.len(), 16);
    let cache = std::fs::read_to_string(format!("/sys/block/loop{}/queue/write_cache", got[0].2));
    assert_eq!(cache.unwrap().trim(), "write through");
    for (file, row, _, hold) in got {
        assert_eq!(bench.site.host.probe(&row).unwrap(), Presence::Present);
        drop(hold);
        release(&bench, &[&row, &file]);
    }
    bench.assert_clean();
}

#[test]
fn a_loop_device_goes_with_its_last_user_and_its_file_after_it() {
    // covers R12 R14
    let bench = Bench::new();
    let (file, spec) = backing(&bench, "a.cow");
    let slot = bench.site.ledger.reserve::<Loop>(OWNER, spec, &[]).unwrap();
    let (held, hold) = bench.site.host.attach_loop(slot).unwrap();
    let number = held.identity().number;
    let attached = row(&bench, held.settle());
    let instance = bench.site.ledger.instance();
    let target = Target::Linear {
        device: number,
        from: 0,
    };
    let spec = DeviceSpec::new(
        instance,
        Role::Disk,
        LayerId::from_bits(1),
        whole(2048, target),
    );
    let slot = bench
        .site
        .ledger
        .reserve::<Device>(OWNER, spec, &[attached.id])
        .unwrap();
    let device = row(&bench, bench.site.host.make_device(slot).unwrap().settle());
    drop(hold);
    let host = &bench.site.host;
    assert_eq!(host.probe(&attached).unwrap(), Presence::Present);
    let error = host.release(&attached).unwrap_err().to_string();
    assert!(error.contains("in use by cowslip-"), "{error}");
    release(&bench, &[&device]);
    assert_eq!(
        host.probe(&attached).unwrap(),
        Presence::Absent,
        "autoclear"
    );
    release(&bench, &[&attached, &file]);
    bench.assert_clean();
}

#[test]
fn a_device_of_another_is_left_alone() {
    // covers R18 R21
    let bench = Bench::new();
    let mut foreign = zeros(&bench, 1);
    let slot = bench
        .site
        .ledger
        .reserve::<Device>(OWNER, foreign.clone(), &[])
        .unwrap();
    let ours = row(&bench, bench.site.host.make_device(slot).unwrap().settle());
    // One that died between making and recording is found by name and uuid.
    let mut unrecorded = ours.clone();
    unrecorded.identity = None;
    assert_eq!(
        bench.site.host.probe(&unrecorded).unwrap(),
        Presence::Present
    );
    // The same name with another uuid is somebody else's.
    foreign.uuid.push('0');
    let mut other = ours.clone();
    other.spec = serde_json::to_value(&foreign).unwrap();
    assert_eq!(bench.site.host.probe(&other).unwrap(), Presence::Foreign);
    assert!(matches!(
        bench.site.host.release(&other),
        Err(HostError::Foreign { .. })
    ));
    // A row that names another instance's device is not believed.
    let mut elsewhere = zeros(&bench, 1);
    elsewhere.name = elsewhere.name.replace(
        &bench.site.ledger.instance().to_string(),
        &InstanceId::from_bits(1).to_string(),
    );
    other.spec = serde_json::to_value(&elsewhere).unwrap();
    assert!(matches!(
        bench.site.host.release(&other),
        Err(HostError::Outside { .. })
    ));
    release(&bench, &[&unrecorded]);
    assert_eq!(bench.devices(), [""; 0]);
}

#[test]
fn a_stale_device_of_the_same_name_makes_way_and_one_in_use_does_not() {
    // covers R21
    let bench = Bench::new();
    let make = || {
        let spec = zeros(&bench, 1);
        let slot = bench
            .site
            .ledger
            .reserve::<Device>(OWNER, spec, &[])
            .unwrap();
        let made = bench.site.host.make_device(slot);
        made.map(|held| (held.identity().number, row(&bench, held.settle())))
    };
    let (_, first) = make().unwrap();
    bench.site.ledger.forget(&first).unwrap();
    let (number, second) = make().unwrap();
    let open = open_device(&cowslip_host::dm::node(number));
    assert!(make().is_err(), "it is open");
    drop(open);
    release(&bench, &[&second]);
    assert_eq!(bench.devices(), [""; 0]);
}

#[test]
fn a_busy_device_is_named_with_who_holds_it() {
    // covers R20
    let bench = Bench::new();
    let slot = bench
        .site
        .ledger
        .reserve::<Device>(OWNER, zeros(&bench, 1), &[])
        .unwrap();
    let held = bench.site.host.make_device(slot).unwrap();
    let open = open_device(&cowslip_host::dm::node(held.identity().number));
    let row = row(&bench, held.settle());
    let error = bench.site.host.release(&row).unwrap_err();
    let words = format!("process {}", std::process::id());
    assert!(
        matches!(&error, HostError::Device(DmError::Busy { holders, .. }) if holders.contains(&words)),
        "{error}"
    );
    drop(open);
    release(&bench, &[&row]);
    assert_eq!(bench.devices(), [""; 0]);
}

#[test]
fn devices_without_a_row_are_found_and_released_from_the_top() {
    // covers R18 R43
    let bench = Bench::new();
    let two = Bench::new();
    let (_, spec) = backing(&bench, "a.cow");
    let slot = bench.site.ledger.reserve::<Loop>(OWNER, spec, &[]).unwrap();
    let (held, hold) = bench.site.host.attach_loop(slot).unwrap();
    let mut below = held.identity().number;
    held.settle();
    for (id, role) in [(3, Role::Base), (2, Role::Layer), (1, Role::Disk)] {
        let target = Target::Linear {
            device: below,
            from: 0,
        };
        let instance = bench.site.ledger.instance();
        let spec = DeviceSpec::new(instance, role, LayerId::from_bits(id), whole(2048, target));
        let slot = bench
            .site
            .ledger
            .reserve::<Device>(OWNER, spec, &[])
            .unwrap();
        let held = bench.site.host.make_device(slot).unwrap();
        below = held.identity().number;
        held.settle();
    }
    drop(hold);
    let others = two.site.host.strays(&[]).unwrap();
    assert!(
        others.iter().all(|stray| stray.row.is_none()),
        "another instance's: {others:?}"
    );
    let strays = bench.site.host.strays(&[]).unwrap();
    let releasable: Vec<&HandleRow> = strays
        .iter()
        .filter_map(|stray| stray.row.as_ref())
        .collect();
    assert_eq!(releasable.len(), 4, "{strays:?}");
    for row in releasable {
        bench.site.host.release(row).unwrap();
    }
    assert_eq!(bench.devices(), [""; 0]);
}
