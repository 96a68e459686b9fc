//! Recovery's decisions, case by case.

use cowslip_model::{
    CheckpointId, HandleId, LayerId, SandboxId, SandboxState, Timestamp, Transition,
};

use super::{checkpoint, layer, sandbox};
use crate::plan::{Action, Books, Inventory, Presence, Stray, VolumeOutcome, plan};
use crate::{HandleRow, HandleState, Owner};

const BOOT: &str = "now";
const ID: SandboxId = SandboxId::from_bits(1);

pub(super) fn row(bits: u64, owner: Owner, kind: &str, boot_id: &str) -> HandleRow {
    HandleRow {
        id: HandleId::from_bits(bits),
        seq: i64::try_from(bits).unwrap(),
        owner,
        kind: kind.to_owned(),
        state: HandleState::Held,
        spec: serde_json::json!({}),
        identity: None,
        depends_on: Vec::new(),
        boot_id: boot_id.to_owned(),
        created_at: Timestamp(bits),
    }
}

/// What became of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Machine {
    Alive,
    /// Its process ended, its rows are there.
    Dead,
    /// It was of another boot; a process of the same pid runs.
    Rebooted,
    /// No row.
    None,
}

/// A sandbox in this state, with a machine, in the middle of a swap of layers or not.
struct Case {
    state: SandboxState,
    transition: Option<Transition>,
    machine: Machine,
    swapping: bool,
    paused_image: bool,
    auto_remove: bool,
}

impl Case {
    fn new(state: SandboxState, transition: Option<Transition>, machine: Machine) -> Self {
        Self {
            state,
            transition,
            machine,
            swapping: false,
            paused_image: false,
            auto_remove: false,
        }
    }

    fn swapping(mut self) -> Self {
        self.swapping = true;
        self
    }

    fn paused_image(mut self) -> Self {
        self.paused_image = true;
        self
    }

    fn auto_remove(mut self) -> Self {
        self.auto_remove = true;
        self
    }

    fn plan(&self) -> Vec<Action> {
        let mut record = sandbox(1, Some(1));
        record.state = self.state;
        record.transition = self.transition;
        record.paused_image = self.paused_image;
        record.auto_remove = self.auto_remove;
        record.next_layer = self.swapping.then(|| LayerId::from_bits(2));
        let mut books = Books {
            sandboxes: vec![record],
            layers: vec![layer(1, None)],
            ..Books::default()
        };
        if self.swapping {
            books.layers.push(layer(2, Some(1)));
        }
        let mut inventory = Inventory::default();
        if self.machine != Machine::None {
            let boot = if self.machine == Machine::Rebooted {
                "before"
            } else {
                BOOT
            };
            let present = if self.machine == Machine::Dead {
                Presence::Absent
            } else {
                Presence::Present
            };
            books
                .handles
                .push(row(1, Owner::Machine(ID), "directory", boot));
            books
                .handles
                .push(row(2, Owner::Machine(ID), "process", boot));
            inventory
                .presence
                .insert(HandleId::from_bits(1), Presence::Present);
            inventory.presence.insert(HandleId::from_bits(2), present);
        }
        plan(&books, &inventory, BOOT)
    }

    fn settles(&self, state: SandboxState, volume: VolumeOutcome) {
        match self.plan().as_slice() {
            [
                Action::Settle {
                    sandbox,
                    state: found,
                    volume: outcome,
                    ..
                },
            ] => {
                assert_eq!((*sandbox, *found, *outcome), (ID, state, volume));
            }
            other => panic!(
                "{:?} {:?} {:?}: {other:?}",
                self.state, self.transition, self.machine
            ),
        }
    }

    fn removes(&self) {
        let actions = self.plan();
        let removes = matches!(actions.as_slice(), [Action::Remove { sandbox: ID, .. }]);
        assert!(
            removes,
            "{:?} {:?} {:?}: {actions:?}",
            self.state, self.transition, self.machine
        );
    }

    fn adopts(&self) {
        let actions = self.plan();
        assert_eq!(
            actions,
            [Action::Adopt { sandbox: ID }],
            "{:?}",
            self.transition
        );
    }
}

use Machine::{Alive, Dead, Rebooted};
use SandboxState::{Creating, Failed, Paused, Running, Stopped};
use VolumeOutcome::{Advance, Keep, Revert};

#[test]
fn settled_sandboxes_are_left_alone() {
    for state in [Stopped, Paused, Failed] {
        assert_eq!(Case::new(state, None, Machine::None).plan(), []);
        // What is left of a machine goes, the state stays.
        // A layer that only a failed resume could have written goes; any other may be the top.
        let outcome = if state == Paused { Revert } else { Advance };
        for machine in [Alive, Dead, Rebooted, Machine::None] {
            if machine != Machine::None {
                Case::new(state, None, machine).settles(state, Keep);
            }
            Case::new(state, None, machine)
                .swapping()
                .settles(state, outcome);
        }
    }
}

#[test]
fn a_running_machine_is_adopted_and_one_that_ended_has_failed() {
    // covers R38, R46
    for transition in [
        None,
        Some(Transition::Checkpointing),
        Some(Transition::Pausing),
    ] {
        Case::new(Running, transition, Alive).adopts();
        Case::new(Running, transition, Alive).swapping().adopts();
        Case::new(Running, transition, Alive).auto_remove().adopts();
        for machine in [Dead, Rebooted, Machine::None] {
            Case::new(Running, transition, machine).settles(Failed, Keep);
            Case::new(Running, transition, machine)
                .swapping()
                .settles(Failed, Advance);
            Case::new(Running, transition, machine)
                .auto_remove()
                .removes();
        }
    }
}

#[test]
fn a_pause_counts_from_the_moment_its_image_is_published() {
    // covers R31, R32
    for machine in [Alive, Dead, Rebooted, Machine::None] {
        Case::new(Running, Some(Transition::Pausing), machine)
            .paused_image()
            .settles(Paused, Keep);
        let resuming = Case::new(Paused, Some(Transition::Resuming), machine).paused_image();
        resuming.settles(Paused, Keep);
        resuming.swapping().settles(Paused, Revert);
    }
}

#[test]
fn what_had_begun_to_be_made_or_removed_is_removed() {
    for machine in [Alive, Dead, Rebooted, Machine::None] {
        for state in [Creating, Stopped, Running, Paused, Failed] {
            Case::new(state, Some(Transition::Removing), machine).removes();
            Case::new(state, Some(Transition::Creating), machine).removes();
            Case::new(state, Some(Transition::Stopping), machine).settles(Stopped, Keep);
        }
        Case::new(Creating, None, machine).removes();
        Case::new(Stopped, Some(Transition::Starting), machine).settles(Stopped, Keep);
        Case::new(Stopped, Some(Transition::Starting), machine)
            .auto_remove()
            .removes();
    }
}

#[test]
fn a_process_that_is_somebody_elses_is_no_machine() {
    // covers R45
    let mut record = sandbox(1, Some(1));
    record.state = Running;
    let process = row(1, Owner::Machine(ID), "process", BOOT);
    let books = Books {
        sandboxes: vec![record],
        layers: vec![layer(1, None)],
        handles: vec![process],
        ..Books::default()
    };
    let mut inventory = Inventory::default();
    for presence in [Presence::Foreign, Presence::Absent] {
        inventory.presence.insert(HandleId::from_bits(1), presence);
        let actions = plan(&books, &inventory, BOOT);
        assert!(
            matches!(actions[0], Action::Settle { state: Failed, .. }),
            "{actions:?}"
        );
    }
}

#[test]
fn unpublished_checkpoints_go_and_free_their_layers() {
    let mut unpublished = checkpoint(1, 2);
    unpublished.ready = false;
    let books = Books {
        sandboxes: vec![sandbox(1, Some(1))],
        checkpoints: vec![unpublished, checkpoint(2, 3)],
        layers: vec![layer(1, None), layer(2, None), layer(3, None)],
        ..Books::default()
    };
    let actions = plan(&books, &Inventory::default(), BOOT);
    let expected = [
        Action::Discard {
            checkpoint: CheckpointId::from_bits(1),
        },
        Action::Collect {
            layer: LayerId::from_bits(2),
        },
    ];
    assert_eq!(actions, expected);
}

#[test]
fn a_branch_that_nobody_uses_goes_from_its_top() {
    let books = Books {
        sandboxes: vec![sandbox(1, Some(2))],
        layers: vec![
            layer(1, None),
            layer(2, Some(1)),
            layer(3, Some(1)),
            layer(4, Some(3)),
            layer(5, Some(3)),
        ],
        ..Books::default()
    };
    let collected: Vec<u64> = plan(&books, &Inventory::default(), BOOT)
        .into_iter()
        .map(|action| match action {
            Action::Collect { layer } => layer.to_string().parse().unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(collected.len(), 3);
    assert_eq!(collected.last(), Some(&3), "{collected:?}: the lowest last");
}

#[test]
fn handles_without_an_owner_are_released_newest_first() {
    let books = Books {
        others: [Owner::Template(super::TEMPLATE)].into(),
        handles: vec![
            row(1, Owner::Template(super::TEMPLATE), "directory", BOOT),
            row(2, Owner::Sandbox(ID), "directory", BOOT),
            row(3, Owner::Kernel(super::KERNEL), "directory", BOOT),
        ],
        ..Books::default()
    };
    let released: Vec<HandleId> = plan(&books, &Inventory::default(), BOOT)
        .into_iter()
        .map(|action| match action {
            Action::Release { handle, .. } => handle,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(released, [3, 2].map(HandleId::from_bits));
}

#[test]
fn strays_with_our_mark_are_ended_and_others_reported() {
    // covers R18, R43
    let known = row(9, Owner::Machine(ID), "process", BOOT);
    let inventory = Inventory {
        strays: vec![
            Stray {
                kind: "process".to_owned(),
                what: "process 1".to_owned(),
                row: Some(known.clone()),
            },
            Stray {
                kind: "path".to_owned(),
                what: "\"/x\"".to_owned(),
                row: None,
            },
        ],
        ..Inventory::default()
    };
    let expected = [
        Action::ReleaseStray {
            what: "process 1".to_owned(),
            row: Box::new(known),
        },
        Action::Report {
            what: "\"/x\"".to_owned(),
        },
    ];
    assert_eq!(plan(&Books::default(), &inventory, BOOT), expected);
}
