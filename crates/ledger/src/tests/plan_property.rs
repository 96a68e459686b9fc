//! The plan for any books: it can be made, carrying it out leaves nothing more to do, and it touches
//! nothing that a healthy sandbox uses.

use std::collections::BTreeSet;

use cowslip_model::{CheckpointId, KernelId, LayerId, SandboxId, SandboxState, Transition};
use proptest::prelude::*;

use super::plan::row;
use super::{checkpoint, layer, sandbox};
use crate::plan::{Action, Books, Inventory, Presence, Stray, VolumeOutcome, plan};
use crate::{HandleRow, Owner, SandboxRecord};

const BOOT: &str = "now";

/// Sandboxes, checkpoints and layers of a case have numbers below this; some of them are missing.
const NUMBERS: u64 = 6;

fn number() -> impl Strategy<Value = u64> {
    0..NUMBERS
}

fn states() -> impl Strategy<Value = SandboxState> {
    use SandboxState::{Creating, Failed, Paused, Running, Stopped};
    prop::sample::select(vec![Creating, Stopped, Running, Paused, Failed])
}

fn transitions() -> impl Strategy<Value = Option<Transition>> {
    use Transition::{Checkpointing, Creating, Pausing, Removing, Resuming, Starting, Stopping};
    let all = vec![
        Creating,
        Starting,
        Checkpointing,
        Pausing,
        Resuming,
        Stopping,
        Removing,
    ];
    prop::option::of(prop::sample::select(all))
}

fn sandboxes() -> impl Strategy<Value = SandboxRecord> {
    let layers = (prop::option::of(number()), prop::option::of(number()));
    (
        number(),
        states(),
        transitions(),
        layers,
        any::<(bool, bool)>(),
    )
        .prop_map(
            |(bits, state, transition, (top, next), (paused_image, auto_remove))| {
                let mut record = sandbox(bits, top);
                record.state = state;
                record.transition = transition;
                record.next_layer = next.map(LayerId::from_bits);
                record.paused_image = paused_image;
                record.auto_remove = auto_remove;
                record
            },
        )
}

fn owners() -> impl Strategy<Value = Owner> {
    (0..6, number()).prop_map(|(kind, bits)| match kind {
        0 => Owner::Sandbox(SandboxId::from_bits(bits)),
        1 | 2 => Owner::Machine(SandboxId::from_bits(bits)),
        3 => Owner::Layer(LayerId::from_bits(bits)),
        4 => Owner::Checkpoint(CheckpointId::from_bits(bits)),
        _ => Owner::Kernel(KernelId::from_bits(bits)),
    })
}

fn presences() -> impl Strategy<Value = Presence> {
    prop::sample::select(vec![Presence::Present, Presence::Absent, Presence::Foreign])
}

/// Everything there could be. What the database's own rules forbid is left out: layers that refer to
/// layers that are not there, two sandboxes of one id.
fn cases() -> impl Strategy<Value = (Books, Inventory)> {
    let handles = (owners(), any::<(bool, bool)>(), presences());
    (
        prop::collection::vec(sandboxes(), 0..5),
        prop::collection::vec((number(), number(), any::<bool>()), 0..4),
        prop::collection::btree_set(number(), 0..6),
        prop::collection::vec(any::<prop::sample::Index>(), 6),
        prop::collection::vec(handles, 0..12),
        prop::collection::vec((number(), any::<bool>()), 0..3),
    )
        .prop_map(
            |(mut sandboxes, checkpoints, numbers, parents, handles, strays)| {
                let mut books = Books::default();
                let numbers: Vec<u64> = numbers.into_iter().collect();
                for (place, bits) in numbers.iter().enumerate() {
                    // A parent is one of those before it, or the template.
                    let parent = parents[place]
                        .index(place + 1)
                        .checked_sub(1)
                        .map(|at| numbers[at]);
                    books.layers.push(layer(*bits, parent));
                }
                let is_there =
                    |id: &LayerId| numbers.iter().any(|bits| LayerId::from_bits(*bits) == *id);
                sandboxes.sort_by_key(|sandbox| sandbox.id);
                sandboxes.dedup_by_key(|sandbox| sandbox.id);
                for mut record in sandboxes {
                    record.layer = record.layer.filter(is_there);
                    record.next_layer = record.next_layer.filter(is_there);
                    books.sandboxes.push(record);
                }
                for (bits, layer, ready) in checkpoints {
                    let mut record = checkpoint(bits, layer);
                    record.ready = ready;
                    if is_there(&record.layer)
                        && books.checkpoints.iter().all(|c| c.id != record.id)
                    {
                        books.checkpoints.push(record);
                    }
                }
                books.others.insert(Owner::Kernel(KernelId::from_bits(0)));
                let mut inventory = Inventory::default();
                for (place, (owner, (process, this_boot), presence)) in
                    handles.into_iter().enumerate()
                {
                    let kind = if process { "process" } else { "directory" };
                    let boot = if this_boot { BOOT } else { "before" };
                    let row = row(place as u64 + 1, owner, kind, boot);
                    inventory.presence.insert(row.id, presence);
                    books.handles.push(row);
                }
                for (bits, known) in strays {
                    let owner = Owner::Machine(SandboxId::from_bits(bits));
                    inventory.strays.push(Stray {
                        kind: "process".to_owned(),
                        what: format!("process {bits}"),
                        row: known.then(|| row(100 + bits, owner, "process", BOOT)),
                    });
                }
                (books, inventory)
            },
        )
}

/// The layers below and including `top`.
fn chain(books: &Books, top: Option<LayerId>) -> BTreeSet<LayerId> {
    let mut found = BTreeSet::new();
    let mut next = top;
    while let Some(id) = next.filter(|id| found.insert(*id)) {
        next = books
            .layers
            .iter()
            .find(|layer| layer.id == id)
            .and_then(|layer| layer.parent);
    }
    found
}

fn alive(books: &Books, inventory: &Inventory, id: SandboxId) -> bool {
    let machine = |row: &&HandleRow| row.owner == Owner::Machine(id) && row.kind == "process";
    books
        .handles
        .iter()
        .filter(machine)
        .any(|row| row.boot_id == BOOT && inventory.presence[&row.id] == Presence::Present)
}

/// Sandboxes that run, and were in the middle of nothing that ends that.
fn healthy(books: &Books, inventory: &Inventory) -> Vec<SandboxRecord> {
    let runs = |sandbox: &&SandboxRecord| {
        sandbox.state == SandboxState::Running
            && matches!(sandbox.transition, None | Some(Transition::Checkpointing))
            && alive(books, inventory, sandbox.id)
    };
    books.sandboxes.iter().filter(runs).cloned().collect()
}

/// Carries an action out as the engine does, on paper. Gives the handles that were released.
fn carry_out(books: &mut Books, inventory: &mut Inventory, action: &Action) -> Vec<HandleRow> {
    let before = books.handles.clone();
    let find = |books: &mut Books, id: SandboxId, work: &dyn Fn(&mut SandboxRecord)| {
        books
            .sandboxes
            .iter_mut()
            .filter(|sandbox| sandbox.id == id)
            .for_each(work);
    };
    match action {
        Action::Adopt { sandbox } => find(books, *sandbox, &|record| {
            record.layer = record.next_layer.take().or(record.layer);
            record.transition = None;
            record.paused_image = false;
        }),
        Action::Settle {
            sandbox,
            state,
            volume,
            ..
        } => {
            books
                .handles
                .retain(|row| row.owner != Owner::Machine(*sandbox));
            find(books, *sandbox, &|record| {
                match volume {
                    VolumeOutcome::Keep => assert_eq!(record.next_layer, None, "a swap stays open"),
                    VolumeOutcome::Advance => record.layer = record.next_layer.take(),
                    VolumeOutcome::Revert => record.next_layer = None,
                }
                record.state = *state;
                record.transition = None;
            });
        }
        Action::Remove { sandbox, .. } => {
            let owned = [Owner::Machine(*sandbox), Owner::Sandbox(*sandbox)];
            books.handles.retain(|row| !owned.contains(&row.owner));
            books.sandboxes.retain(|record| record.id != *sandbox);
        }
        Action::Discard { checkpoint } => {
            books
                .handles
                .retain(|row| row.owner != Owner::Checkpoint(*checkpoint));
            books.checkpoints.retain(|record| record.id != *checkpoint);
        }
        Action::Collect { .. } | Action::Report { .. } => {}
        Action::Release { handle, .. } => books.handles.retain(|row| row.id != *handle),
        Action::ReleaseStray { row, .. } => {
            inventory
                .strays
                .retain(|stray| stray.row.as_ref() != Some(row));
        }
    }
    before
        .into_iter()
        .filter(|row| !books.handles.contains(row))
        .collect()
}

/// Takes away unused layers, tops first, as the engine does after all other actions.
fn collect(books: &mut Books) {
    loop {
        let used: BTreeSet<LayerId> = books
            .layers
            .iter()
            .filter_map(|layer| layer.parent)
            .chain(
                books
                    .sandboxes
                    .iter()
                    .flat_map(|s| [s.layer, s.next_layer])
                    .flatten(),
            )
            .chain(books.checkpoints.iter().map(|checkpoint| checkpoint.layer))
            .collect();
        let count = books.layers.len();
        books.layers.retain(|layer| used.contains(&layer.id));
        let left: BTreeSet<Owner> = books
            .layers
            .iter()
            .map(|layer| Owner::Layer(layer.id))
            .collect();
        books
            .handles
            .retain(|row| !matches!(row.owner, Owner::Layer(_)) || left.contains(&row.owner));
        if books.layers.len() == count {
            return;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_second_recovery_only_adopts((mut books, mut inventory) in cases()) {
        for action in plan(&books, &inventory, BOOT) {
            carry_out(&mut books, &mut inventory, &action);
        }
        collect(&mut books);
        for action in plan(&books, &inventory, BOOT) {
            let fine = matches!(action, Action::Adopt { .. } | Action::Report { .. });
            prop_assert!(fine, "still to do: {:?}", action);
        }
    }

    #[test]
    fn what_a_healthy_sandbox_uses_is_never_released((mut books, mut inventory) in cases()) {
        let healthy = healthy(&books, &inventory);
        let uses = |books: &Books| -> BTreeSet<Owner> {
            healthy
                .iter()
                .flat_map(|sandbox| {
                    let layers = chain(books, sandbox.layer).into_iter().chain(chain(books, sandbox.next_layer));
                    let owners = layers.map(Owner::Layer);
                    owners.chain([Owner::Sandbox(sandbox.id), Owner::Machine(sandbox.id)]).collect::<Vec<_>>()
                })
                .collect()
        };
        let in_use = uses(&books);
        for action in plan(&books, &inventory, BOOT) {
            if let Action::Collect { layer } = &action {
                prop_assert!(!in_use.contains(&Owner::Layer(*layer)), "{:?}", action);
            }
            let released = carry_out(&mut books, &mut inventory, &action);
            let wrong = released.iter().find(|row| in_use.contains(&row.owner));
            prop_assert!(wrong.is_none(), "{:?} releases {:?}", action, wrong);
        }
        for sandbox in &healthy {
            prop_assert!(books.sandboxes.iter().any(|record| record.id == sandbox.id));
        }
    }

    #[test]
    fn each_sandbox_has_one_action_at_most_and_what_is_owned_is_not_released_by_itself((books, inventory) in cases()) {
        let actions = plan(&books, &inventory, BOOT);
        let mut seen = BTreeSet::new();
        for action in &actions {
            if let Action::Adopt { sandbox } | Action::Settle { sandbox, .. } | Action::Remove { sandbox, .. } = action {
                prop_assert!(seen.insert(*sandbox), "two actions for {:?}: {:?}", sandbox, actions);
            }
            // Nothing is released that has an owner; that is its owner's unwinding.
            if let Action::Release { handle, .. } = action {
                let row = books.handles.iter().find(|row| row.id == *handle).unwrap();
                let owned = match row.owner {
                    Owner::Sandbox(id) | Owner::Machine(id) => books.sandboxes.iter().any(|s| s.id == id),
                    Owner::Layer(id) => books.layers.iter().any(|layer| layer.id == id),
                    Owner::Checkpoint(id) => books.checkpoints.iter().any(|c| c.id == id),
                    owner => books.others.contains(&owner),
                };
                prop_assert!(!owned, "{:?}", row);
            }
        }
        prop_assert_eq!(plan(&books, &inventory, BOOT), actions, "the same twice");
    }
}
