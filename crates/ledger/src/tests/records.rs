//! Objects, their names, and what stands on what.

use cowslip_model::{CheckpointId, LayerId, SandboxId};

use super::{
    Bench, KERNEL, TEMPLATE, Thing, ThingSpec, checkpoint, kernel, layer, name, sandbox, template,
};
use crate::db::EVENTS_KEPT;
use crate::{HandleState, LedgerError, Owner, Synchronous};

#[test]
fn what_is_written_is_read() {
    let bench = Bench::new();
    let (mut one, two) = (sandbox(1, Some(2)), sandbox(2, None));
    bench
        .write(|tx| {
            tx.put_layer(&layer(1, None))?;
            tx.put_layer(&layer(2, Some(1)))?;
            tx.put_sandbox(&two)?;
            tx.put_sandbox(&one)?;
            tx.put_checkpoint(&checkpoint(1, 1))
        })
        .unwrap();
    one.reason = Some("line 1\nline \"2\"".to_owned());
    bench.write(|tx| tx.put_sandbox(&one)).unwrap();
    let ledger = bench.reopened("boot-1");
    ledger
        .read(|tx| {
            assert_eq!(tx.template(TEMPLATE)?, Some(template()));
            assert_eq!(tx.template_named("bookworm")?, Some(template()));
            assert_eq!(tx.template_named("other")?, None);
            assert_eq!(tx.kernel_named("cloud")?, Some(kernel()));
            assert_eq!(tx.sandboxes()?, [one.clone(), two.clone()], "oldest first");
            assert_eq!(tx.sandbox_named(&name("box", 2))?, Some(two.clone()));
            assert_eq!(
                tx.checkpoint_named(&name("point", 1))?,
                Some(checkpoint(1, 1))
            );
            assert_eq!(
                tx.chain(LayerId::from_bits(2))?,
                [layer(1, None), layer(2, Some(1))]
            );
            assert!(matches!(
                tx.chain(LayerId::from_bits(9)),
                Err(LedgerError::Missing(_))
            ));
            Ok::<_, LedgerError>(())
        })
        .unwrap();
}

#[test]
fn nothing_goes_while_something_stands_on_it() {
    // covers R27
    let bench = Bench::new();
    bench
        .write(|tx| {
            tx.put_layer(&layer(1, None))?;
            tx.put_layer(&layer(2, Some(1)))?;
            tx.put_layer(&layer(3, None))?;
            tx.put_sandbox(&sandbox(1, Some(2)))?;
            tx.put_checkpoint(&checkpoint(1, 3))
        })
        .unwrap();
    for bits in [1, 2, 3] {
        let error = bench
            .write(|tx| tx.delete_layer(LayerId::from_bits(bits)))
            .unwrap_err();
        assert!(
            error.to_string().contains("FOREIGN KEY"),
            "layer {bits}: {error}"
        );
    }
    bench.write(|tx| tx.delete_template(TEMPLATE)).unwrap_err();
    bench.write(|tx| tx.delete_kernel(KERNEL)).unwrap_err();
    bench
        .write(|tx| {
            tx.delete_sandbox(SandboxId::from_bits(1))?;
            tx.delete_checkpoint(CheckpointId::from_bits(1))?;
            for bits in [2, 1, 3] {
                tx.delete_layer(LayerId::from_bits(bits))?;
            }
            tx.delete_kernel(KERNEL)?;
            tx.delete_template(TEMPLATE)
        })
        .unwrap();
    // Its names went with it.
    bench.write(|tx| tx.put_template(&template())).unwrap();
}

#[test]
fn a_name_has_one_bearer() {
    let bench = Bench::new();
    bench.write(|tx| tx.put_sandbox(&sandbox(1, None))).unwrap();
    let mut same_name = sandbox(2, None);
    same_name.name = name("box", 1);
    bench.write(|tx| tx.put_sandbox(&same_name)).unwrap_err();
    let mut same_name = kernel();
    same_name.id = cowslip_model::KernelId::from_bits(77);
    bench.write(|tx| tx.put_kernel(&same_name)).unwrap_err();
    let mut renamed = template();
    renamed.names = vec!["other".parse().unwrap()];
    bench.write(|tx| tx.put_template(&renamed)).unwrap();
    assert_eq!(
        bench.ledger.read(|tx| tx.template_named("debian")).unwrap(),
        None
    );
    assert_eq!(
        bench.ledger.read(|tx| tx.template_named("other")).unwrap(),
        Some(renamed)
    );
}

#[test]
fn unused_layers_are_those_without_any_user() {
    let bench = Bench::new();
    bench
        .write(|tx| {
            for (bits, parent) in [
                (1, None),
                (2, Some(1)),
                (3, Some(1)),
                (4, None),
                (5, None),
                (6, None),
            ] {
                tx.put_layer(&layer(bits, parent))?;
            }
            let mut record = sandbox(1, Some(2));
            record.next_layer = Some(LayerId::from_bits(4));
            tx.put_sandbox(&record)?;
            let mut unpublished = checkpoint(1, 5);
            unpublished.ready = false;
            tx.put_checkpoint(&unpublished)
        })
        .unwrap();
    let unused = || -> Vec<LayerId> {
        let found = bench.ledger.read(|tx| tx.unused_layers()).unwrap();
        found.into_iter().map(|layer| layer.id).collect()
    };
    // 1 has children, 2 a sandbox, 4 is to be its next, 5 is of a checkpoint to be.
    assert_eq!(unused(), [3, 6].map(LayerId::from_bits));
    bench
        .write(|tx| tx.delete_sandbox(SandboxId::from_bits(1)))
        .unwrap();
    assert_eq!(unused(), [2, 3, 4, 6].map(LayerId::from_bits));
    bench
        .write(|tx| {
            tx.delete_layer(LayerId::from_bits(2))?;
            tx.delete_layer(LayerId::from_bits(3))
        })
        .unwrap();
    assert_eq!(unused(), [1, 4, 6].map(LayerId::from_bits));
}

#[test]
fn events_are_numbered_and_bounded() {
    let bench = Bench::new();
    let emit = |number: i64| {
        bench.ledger.write("emit", Synchronous::Normal, |tx| {
            tx.emit(
                "sandbox.started",
                number,
                None,
                serde_json::json!({ "n": number }),
            )
        })
    };
    let first = emit(0).unwrap();
    let second = emit(1).unwrap();
    assert!(second.seq > first.seq);
    assert_eq!(
        bench.ledger.read(|tx| tx.events(first.seq, 10)).unwrap(),
        [second]
    );
    bench
        .write(|tx| {
            for number in 2..EVENTS_KEPT + 10 {
                tx.emit("sandbox.started", number, None, serde_json::json!({}))?;
            }
            Ok(())
        })
        .unwrap();
    let kept = bench.ledger.read(|tx| tx.events(0, u32::MAX)).unwrap();
    assert_eq!(i64::try_from(kept.len()).unwrap(), EVENTS_KEPT);
    let newest = bench.ledger.read(|tx| tx.events(0, 3)).unwrap();
    assert_eq!(
        newest,
        kept[kept.len() - 3..],
        "the newest, oldest of them first"
    );
}

#[test]
fn parts_of_many_records_are_what_is_in_them() {
    let bench = Bench::new();
    let published = || "8080:80".parse().unwrap();
    bench
        .write(|tx| {
            for bits in 1..=3 {
                let mut record = sandbox(bits, None);
                record.slot = 10 - u32::try_from(bits).unwrap();
                if bits == 2 {
                    record.spec.network.publish = vec![published()];
                }
                tx.put_sandbox(&record)?;
            }
            Ok(())
        })
        .unwrap();
    let owners = [Owner::Machine(SandboxId::from_bits(1)), Owner::Slot(7)];
    let made = owners.map(|owner| {
        let spec = ThingSpec::new(&format!("/{owner}"));
        bench.ledger.reserve::<Thing>(owner, spec, &[]).unwrap()
    });
    let [held, reserved] = made;
    held.acquired(1).unwrap().settle();
    bench
        .ledger
        .read(|tx| {
            let all = tx.sandboxes()?;
            assert_eq!(tx.publishing()?, all[1..2]);
            let mut slots = tx.slots()?;
            slots.sort_unstable();
            assert_eq!(slots, [7, 8, 9]);
            let states = [HandleState::Held, HandleState::Reserved];
            let found = tx.owners_of_kind("thing")?;
            assert_eq!(found, owners.into_iter().zip(states).collect::<Vec<_>>());
            assert_eq!(tx.owners_of_kind("other")?, []);
            Ok::<_, LedgerError>(())
        })
        .unwrap();
    drop(reserved);
}
