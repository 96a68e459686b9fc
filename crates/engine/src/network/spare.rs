//! Networks made ahead: a sandbox that is started takes one that is ready.
//!
//! A spare is a whole network under the rules of a sandbox that asks for nothing, with a slot that no sandbox has. Whoever
//! is made next gets that slot, and his machine the network, by one transaction. Spares are this engine's alone: the
//! next one finds them without an owner, and releases them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cowslip_host::{DeniedLog, Netns, NetnsSpec};
use cowslip_ledger::{HandleRow, HandleState, Owner, Resource, SandboxRecord, Synchronous, Tx};
use cowslip_model::{NetworkMode, NetworkSpec};
use tokio::sync::Notify;

use crate::error::EngineError;
use crate::unwind::unwind;
use crate::{Engine, blocking};

/// How far a spare has come.
#[derive(Debug)]
enum Spare {
    /// It is being made, or released.
    Making,
    Ready {
        /// What it was put under: the host's name server may be another one by now.
        rules: String,
        /// Where what is denied will be told: to be ready takes longer than all else that a start does to its network.
        log: Option<DeniedLog>,
    },
}

/// A network that was a spare.
pub(crate) struct Taken {
    pub(crate) spec: NetnsSpec,
    pub(crate) log: Option<DeniedLog>,
}

/// The slots of spares.
#[derive(Default)]
pub(crate) struct Spares {
    slots: Mutex<BTreeMap<u32, Spare>>,
    /// Rung when one was taken, or the first network of all was made.
    wanted: Notify,
    /// Held while one is made; true: no more are.
    ended: tokio::sync::Mutex<bool>,
}

/// The slots of spares while nobody else can take or make one.
pub(crate) struct Slots<'a>(MutexGuard<'a, BTreeMap<u32, Spare>>);

impl Slots<'_> {
    /// The slot for a sandbox to be: one whose network is ready if it will want one, or the lowest that nobody has.
    pub(crate) fn choose(
        &self,
        tx: &Tx<'_>,
        count: u32,
        mode: NetworkMode,
    ) -> Result<Option<u32>, EngineError> {
        let taken = taken(tx)?;
        let ready = |(slot, spare): (&u32, &Spare)| {
            (matches!(spare, Spare::Ready { .. }) && !taken.sandboxes.contains(slot))
                .then_some(*slot)
        };
        if mode == NetworkMode::Nat
            && let Some(slot) = self.0.iter().find_map(ready)
        {
            return Ok(Some(slot));
        }
        let spares = self.0.keys().copied();
        Ok(lowest_free(taken.all().chain(spares)).filter(|slot| *slot < count))
    }
}

/// Slots that the ledger says are taken.
struct InUse {
    sandboxes: Vec<u32>,
    /// Of spares, among them such as could not be released.
    spares: Vec<u32>,
}

impl InUse {
    fn all(&self) -> impl Iterator<Item = u32> {
        self.sandboxes.iter().chain(&self.spares).copied()
    }
}

fn taken(tx: &Tx<'_>) -> Result<InUse, EngineError> {
    let slot_of = |(owner, _)| match owner {
        Owner::Slot(slot) => Some(slot),
        _ => None,
    };
    let owners = tx.owners_of_kind(Netns::KIND)?;
    Ok(InUse {
        sandboxes: tx.slots()?,
        spares: owners.into_iter().filter_map(slot_of).collect(),
    })
}

fn lowest_free(taken: impl Iterator<Item = u32>) -> Option<u32> {
    let mut taken: Vec<u32> = taken.collect();
    taken.sort_unstable();
    taken.dedup();
    let gap = (0_u32..).zip(&taken).find(|(slot, taken)| slot != *taken);
    gap.map_or_else(|| u32::try_from(taken.len()).ok(), |(slot, _)| Some(slot))
}

impl Spares {
    /// Keeps the slots as they are until a sandbox that takes one has its record.
    pub(crate) fn lock(&self) -> Slots<'_> {
        Slots(self.slots.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whose handles recovery leaves alone.
    pub(crate) fn owners(&self) -> Vec<Owner> {
        self.lock().0.keys().copied().map(Owner::Slot).collect()
    }

    /// There is somebody to make some for.
    pub(crate) fn want(&self) {
        self.wanted.notify_one();
    }
}

impl Engine {
    /// How many slots there are: a sandbox needs a uid, and its addresses.
    pub(crate) fn slot_count(&self) -> u32 {
        self.config
            .machine
            .uid_count
            .min(self.config.network.range.slots())
    }

    /// Gives a sandbox's machine the spare of its slot, if there is one.
    pub(crate) async fn take_spare(
        &self,
        record: &SandboxRecord,
        rules: &str,
    ) -> Result<Option<Taken>, EngineError> {
        let Some((taken, under)) = self.give_spare(record)? else {
            return Ok(None);
        };
        if rules != under {
            let host = Arc::clone(&self.site.host);
            let (netns, rules) = (taken.spec.clone(), rules.to_owned());
            blocking(move || host.reload_netns(&netns, &rules)).await??;
        }
        Ok(Some(taken))
    }

    /// Makes the spare of a sandbox's slot its machine's; with the rules that it is under.
    fn give_spare(&self, record: &SandboxRecord) -> Result<Option<(Taken, String)>, EngineError> {
        // Until its owner has changed nobody else may take it for left over, or for his.
        let mut slots = self.spares.lock();
        if !matches!(slots.0.get(&record.slot), Some(Spare::Ready { .. })) {
            return Ok(None);
        }
        let (owner, to) = (Owner::Slot(record.slot), Owner::Machine(record.id));
        let spec = self
            .site
            .ledger
            .write("take spare network", Synchronous::Normal, |tx| {
                let rows = tx.handles_of(owner)?;
                let held =
                    |row: &&HandleRow| row.kind == Netns::KIND && row.state == HandleState::Held;
                let Some(row) = rows.iter().find(held) else {
                    return Ok(None);
                };
                tx.give_handle(row, to)?;
                Ok::<_, EngineError>(Some(row.spec::<Netns>()?))
            })?;
        let given = match (slots.0.remove(&record.slot), spec) {
            (Some(Spare::Ready { rules, log }), Some(spec)) => Some((Taken { spec, log }, rules)),
            _ => None,
        };
        Ok(given)
    }

    /// Makes spares as they are taken, until the engine is gone.
    pub(crate) async fn keep_spares(engine: Weak<Self>) {
        loop {
            let Some(strong) = engine.upgrade() else {
                return;
            };
            let spares = Arc::clone(&strong.spares);
            drop(strong);
            spares.wanted.notified().await;
            let Some(strong) = engine.upgrade() else {
                return;
            };
            strong.fill_spares().await;
        }
    }

    /// Makes as many spares as are missing.
    pub async fn fill_spares(&self) {
        loop {
            let ended = self.spares.ended.lock().await;
            if *ended {
                return;
            }
            let Some(slot) = self.begin_spare() else {
                return;
            };
            match self.make_spare(slot).await {
                Ok(ready) => {
                    self.spares.lock().0.insert(slot, ready);
                }
                Err(error) => {
                    let why = crate::error::chain(&error).join(": ");
                    tracing::warn!(why, slot, "make a spare network");
                    self.drop_spare(slot).await;
                    // The host's rules may have come for it alone.
                    self.unpublish().await;
                    return;
                }
            }
        }
    }

    /// The slot of a spare that is to be made.
    fn begin_spare(&self) -> Option<u32> {
        let wanted = usize::try_from(self.config.network.warm).unwrap_or(usize::MAX);
        let mut slots = self.spares.lock();
        let taken = match self.site.ledger.read(taken) {
            Ok(taken) => taken,
            Err(error) => {
                tracing::warn!(%error, "read who has a slot");
                return None;
            }
        };
        let unused = |slot: &&u32| !taken.sandboxes.contains(slot);
        if slots.0.keys().filter(unused).count() >= wanted {
            return None;
        }
        let spares: Vec<u32> = slots.0.keys().copied().collect();
        let slot = lowest_free(taken.all().chain(spares))?;
        if slot >= self.slot_count() {
            return None;
        }
        slots.0.insert(slot, Spare::Making);
        Some(slot)
    }

    async fn make_spare(&self, slot: u32) -> Result<Spare, EngineError> {
        let rules = self.inside(&NetworkSpec::default(), slot)?;
        let spec = self
            .make_netns(Owner::Slot(slot), slot, rules.clone())
            .await?;
        // One that cannot be had is tried again by whoever takes it.
        let log = self.denied_log(&spec).unwrap_or_default();
        Ok(Spare::Ready { rules, log })
    }

    /// Releases a spare. What could not be is found by the next engine, or by `gc`.
    async fn drop_spare(&self, slot: u32) {
        let site = self.site.clone();
        let unwound = blocking(move || unwind(&site, Owner::Slot(slot))).await;
        self.spares.lock().0.remove(&slot);
        match unwound {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a spare network is left"),
            Err(error) => tracing::warn!(%error, "a spare network is left"),
        }
    }

    /// Releases the spares, and the host's rules where no machine needs them any more. The engine ends.
    pub async fn close(&self) {
        // One that is being made is waited for.
        *self.spares.ended.lock().await = true;
        let slots: Vec<u32> = {
            let mut slots = self.spares.lock();
            // From here on nobody takes one, and nobody listens in one, which would keep its namespace.
            slots
                .0
                .values_mut()
                .for_each(|spare| *spare = Spare::Making);
            slots.0.keys().copied().collect()
        };
        for slot in slots {
            self.drop_spare(slot).await;
        }
        if let Err(error) = self.load_host_rules().await {
            tracing::warn!(%error, "the host's rules are left as they were");
        }
    }
}
