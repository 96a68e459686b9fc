//! What recovery does, as a pure function of what the ledger says and what the host shows.
//!
//! `cowslip doctor` prints the plan; the engine carries it out at start. Nothing here acts.

use std::collections::{BTreeMap, BTreeSet};

use cowslip_model::{CheckpointId, HandleId, LayerId, SandboxId, SandboxState, Transition};
use serde::{Deserialize, Serialize};

use crate::handle::HandleRow;
use crate::owner::Owner;
use crate::record::{CheckpointRecord, LayerRecord, SandboxRecord};

/// What the host says of the object that a row names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// It is there, and it is ours.
    Present,
    /// It is gone (or never came to be).
    Absent,
    /// Something else has its place: not ours to touch.
    Foreign,
}

/// Something on the host that bears this instance's mark and has no row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stray {
    /// The handle kind it would be.
    pub kind: String,
    /// What it is: a path, or a process and its name.
    pub what: String,
    /// The row it would have had, where its mark tells enough to release it (R43).
    pub row: Option<HandleRow>,
}

/// What the host shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// For each row of the ledger.
    pub presence: BTreeMap<HandleId, Presence>,
    /// What no row accounts for.
    pub strays: Vec<Stray>,
}

/// What the ledger says.
#[derive(Debug, Clone, Default)]
pub struct Books {
    /// Every sandbox.
    pub sandboxes: Vec<SandboxRecord>,
    /// Every checkpoint, published or not.
    pub checkpoints: Vec<CheckpointRecord>,
    /// Every layer.
    pub layers: Vec<LayerRecord>,
    /// Every handle.
    pub handles: Vec<HandleRow>,
    /// Owners of handles that exist though they are none of the above: templates and kernels.
    pub others: BTreeSet<Owner>,
}

/// One thing that recovery does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// The machine runs: connect to it again, let its vCPUs go on, and settle an unfinished swap
    /// of its disk by asking the machine which layer it writes.
    Adopt {
        /// The sandbox.
        sandbox: SandboxId,
    },
    /// Release the machine, settle the volume and set the state.
    Settle {
        /// The sandbox.
        sandbox: SandboxId,
        /// The state it ends in.
        state: SandboxState,
        /// What becomes of an unfinished swap.
        volume: VolumeOutcome,
        /// Why, where that is no normal end.
        reason: Option<String>,
    },
    /// Release everything of the sandbox and delete its record.
    Remove {
        /// The sandbox.
        sandbox: SandboxId,
        /// Why.
        reason: String,
    },
    /// Release an unpublished checkpoint and delete its record.
    Discard {
        /// The checkpoint.
        checkpoint: CheckpointId,
    },
    /// Release a layer that nothing stands on.
    Collect {
        /// The layer.
        layer: LayerId,
    },
    /// Release a handle that has no owner any more.
    Release {
        /// The handle.
        handle: HandleId,
        /// What it is.
        what: String,
    },
    /// Release something that bears our mark and has no row.
    ReleaseStray {
        /// What it is.
        what: String,
        /// The row it would have had.
        row: Box<HandleRow>,
    },
    /// Tell about something that cannot be attributed; it is left alone.
    Report {
        /// What it is.
        what: String,
    },
}

/// What becomes of `next_layer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeOutcome {
    /// No swap was under way.
    Keep,
    /// The new layer, empty or written, stands over the old one: it is the top from now on. Right
    /// whether or not the machine had changed over, since an empty layer changes nothing.
    Advance,
    /// The new layer was only for a machine that is given up: it goes.
    Revert,
}

/// Decides. `boot_id` is the host's present boot: kernel objects of rows from another are gone.
#[must_use]
pub fn plan(books: &Books, inventory: &Inventory, boot_id: &str) -> Vec<Action> {
    let mut actions = Vec::new();
    for stray in &inventory.strays {
        actions.push(match &stray.row {
            Some(row) => Action::ReleaseStray {
                what: stray.what.clone(),
                row: Box::new(row.clone()),
            },
            None => Action::Report {
                what: stray.what.clone(),
            },
        });
    }
    for sandbox in &books.sandboxes {
        actions.extend(plan_sandbox(sandbox, books, inventory, boot_id));
    }
    for checkpoint in books
        .checkpoints
        .iter()
        .filter(|checkpoint| !checkpoint.ready)
    {
        actions.push(Action::Discard {
            checkpoint: checkpoint.id,
        });
    }
    actions.extend(plan_layers(books));
    actions.extend(plan_handles(books));
    actions
}

/// Whether the sandbox's machine is a live process of ours in this boot.
fn alive(sandbox: SandboxId, books: &Books, inventory: &Inventory, boot_id: &str) -> bool {
    books.handles.iter().any(|row| {
        row.owner == Owner::Machine(sandbox)
            && row.kind == "process"
            && row.boot_id == boot_id
            && inventory.presence.get(&row.id) == Some(&Presence::Present)
    })
}

fn plan_sandbox(
    sandbox: &SandboxRecord,
    books: &Books,
    inventory: &Inventory,
    boot_id: &str,
) -> Option<Action> {
    let id = sandbox.id;
    let alive = alive(id, books, inventory, boot_id);
    let machine_rows = books
        .handles
        .iter()
        .any(|row| row.owner == Owner::Machine(id));
    let settle = |state, volume, reason: Option<&str>| {
        Some(Action::Settle {
            sandbox: id,
            state,
            volume,
            reason: reason.map(str::to_owned),
        })
    };
    let remove = |reason: &str| {
        Some(Action::Remove {
            sandbox: id,
            reason: reason.to_owned(),
        })
    };
    let pending = if sandbox.next_layer.is_some() {
        VolumeOutcome::Advance
    } else {
        VolumeOutcome::Keep
    };
    let abandoned = if sandbox.next_layer.is_some() {
        VolumeOutcome::Revert
    } else {
        VolumeOutcome::Keep
    };
    match sandbox.transition {
        Some(Transition::Removing) => remove("its removal had begun"),
        Some(Transition::Creating) => remove("its creation had not ended"),
        Some(Transition::Starting) if sandbox.auto_remove => remove("its start had not ended"),
        Some(Transition::Starting) => settle(
            SandboxState::Stopped,
            pending,
            Some("the engine died while it started"),
        ),
        Some(Transition::Resuming) => settle(SandboxState::Paused, abandoned, None),
        Some(Transition::Pausing) if sandbox.paused_image => {
            settle(SandboxState::Paused, pending, None)
        }
        Some(Transition::Stopping) => settle(SandboxState::Stopped, pending, None),
        Some(Transition::Checkpointing | Transition::Pausing) | None => match sandbox.state {
            SandboxState::Running if alive => Some(Action::Adopt { sandbox: id }),
            SandboxState::Running if sandbox.auto_remove => remove("its machine is gone"),
            SandboxState::Running => settle(
                SandboxState::Failed,
                pending,
                Some("its machine ended while no engine was running"),
            ),
            SandboxState::Creating => remove("its creation had not ended"),
            // A resume that could not undo all it did: the image is the sandbox, with its own layer.
            SandboxState::Paused if machine_rows || sandbox.next_layer.is_some() => {
                settle(SandboxState::Paused, abandoned, None)
            }
            state if machine_rows || sandbox.next_layer.is_some() => {
                settle(state, pending, sandbox.reason.as_deref())
            }
            _ => None,
        },
    }
}

/// Unused layers, tops first, so that a whole unused branch goes in one pass.
fn plan_layers(books: &Books) -> Vec<Action> {
    let mut users: BTreeMap<LayerId, usize> = BTreeMap::new();
    let sandboxes = books
        .sandboxes
        .iter()
        .flat_map(|s| [s.layer, s.next_layer])
        .flatten();
    // An unpublished checkpoint is discarded before this, so it holds nothing.
    let checkpoints = books
        .checkpoints
        .iter()
        .filter(|c| c.ready)
        .map(|c| c.layer);
    let parents = books.layers.iter().filter_map(|layer| layer.parent);
    for id in sandboxes.chain(checkpoints).chain(parents) {
        *users.entry(id).or_default() += 1;
    }
    let by_id: BTreeMap<LayerId, &LayerRecord> = books.layers.iter().map(|l| (l.id, l)).collect();
    let mut free: Vec<LayerId> = by_id
        .keys()
        .copied()
        .filter(|id| !users.contains_key(id))
        .collect();
    let mut actions = Vec::new();
    while let Some(id) = free.pop() {
        actions.push(Action::Collect { layer: id });
        if let Some(parent) = by_id.get(&id).and_then(|layer| layer.parent)
            && let Some(count) = users.get_mut(&parent)
        {
            *count -= 1;
            if *count == 0 {
                free.push(parent);
            }
        }
    }
    actions
}

/// Handles whose owner is not in the books.
fn plan_handles(books: &Books) -> Vec<Action> {
    let mut owners = books.others.clone();
    for sandbox in &books.sandboxes {
        owners.extend([Owner::Sandbox(sandbox.id), Owner::Machine(sandbox.id)]);
    }
    owners.extend(
        books
            .checkpoints
            .iter()
            .map(|checkpoint| Owner::Checkpoint(checkpoint.id)),
    );
    owners.extend(books.layers.iter().map(|layer| Owner::Layer(layer.id)));
    books
        .handles
        .iter()
        .rev()
        .filter(|row| !owners.contains(&row.owner))
        .map(|row| Action::Release {
            handle: row.id,
            what: row.describe(),
        })
        .collect()
}
