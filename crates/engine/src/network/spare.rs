//! Networks made ahead: a sandbox that is started takes one that is ready.
//!
//! A spare is a whole network under the rules of a sandbox that asks for nothing, with a slot that no sandbox has. Whoever
//! is made next gets that slot, and his machine the network, by one transaction. Spares are this engine's alone: the
//! next one finds them without an owner, and releases them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cowslip_host::{Netns, NetnsSpec};
use cowslip_ledger::{HandleState, Held, Owner, Resource, SandboxRecord, Synchronous, Tx};
use cowslip_model::NetworkSpec;
use tokio::sync::Notify;

use crate::error::EngineError;
use crate::unwind::unwind;
use crate::{Engine, blocking};

/// How far a spare has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spare {
    Making,
    Ready,
}

/// The slots of spares.
#[derive(Default)]
pub(crate) struct Spares {
    slots: Mutex<BTreeMap<u32, Spare>>,
    /// Rung when one was taken, or the first network of all was made.
    wanted: Notify,
}

/// The slots of spares while nobody else can take or make one.
pub(crate) struct Slots<'a>(MutexGuard<'a, BTreeMap<u32, Spare>>);

impl Slots<'_> {
    /// The slot for a sandbox to be: one whose network is ready, or the lowest that nobody has.
    pub(crate) fn choose(&self, tx: &Tx<'_>, count: u32) -> Result<Option<u32>, EngineError> {
        let taken: Vec<u32> = tx.sandboxes()?.iter().map(|sandbox| sandbox.slot).collect();
        let ready = |(slot, spare): (&u32, &Spare)| {
            (*spare == Spare::Ready && !taken.contains(slot)).then_some(*slot)
        };
        if let Some(slot) = self.0.iter().find_map(ready) {
            return Ok(Some(slot));
        }
        let spares = self.0.keys().copied();
        Ok(lowest_free(taken.into_iter().chain(spares)).filter(|slot| *slot < count))
    }
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
    ) -> Result<Option<NetnsSpec>, EngineError> {
        {
            let mut slots = self.spares.lock();
            if slots.0.get(&record.slot) != Some(&Spare::Ready) {
                return Ok(None);
            }
            slots.0.remove(&record.slot);
        }
        let (owner, to) = (Owner::Slot(record.slot), Owner::Machine(record.id));
        let spec = self
            .site
            .ledger
            .write("take spare network", Synchronous::Normal, |tx| {
                let rows = tx.handles_of(owner)?;
                let held = |row: &&cowslip_ledger::HandleRow| {
                    row.kind == Netns::KIND && row.state == HandleState::Held
                };
                let Some(row) = rows.iter().find(held) else {
                    return Ok(None);
                };
                tx.give_handle(row, to)?;
                Ok::<_, EngineError>(Some(row.spec::<Netns>()?))
            })?;
        let Some(spec) = spec else { return Ok(None) };
        if rules != self.inside(&NetworkSpec::default(), record.slot)? {
            let (host, netns, rules) =
                (Arc::clone(&self.site.host), spec.clone(), rules.to_owned());
            blocking(move || host.reload_netns(&netns, &rules)).await??;
        }
        Ok(Some(spec))
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
    pub(crate) async fn fill_spares(&self) {
        while let Some(slot) = self.begin_spare() {
            let made = self.make_spare(slot).await;
            if let Err(error) = made {
                let why = crate::error::chain(&error).join(": ");
                tracing::warn!(why, slot, "make a spare network");
                self.drop_spare(slot).await;
                return;
            }
            self.spares.lock().0.insert(slot, Spare::Ready);
        }
    }

    /// The slot of a spare that is to be made.
    fn begin_spare(&self) -> Option<u32> {
        let wanted = usize::try_from(self.config.network.warm).unwrap_or(usize::MAX);
        let mut slots = self.spares.lock();
        let sandboxes: Result<Vec<SandboxRecord>, EngineError> =
            self.site.ledger.read(|tx| Ok(tx.sandboxes()?));
        let taken: Vec<u32> = match sandboxes {
            Ok(all) => all.iter().map(|sandbox| sandbox.slot).collect(),
            Err(error) => {
                tracing::warn!(%error, "read who has a slot");
                return None;
            }
        };
        let free = slots.0.keys().filter(|slot| !taken.contains(slot)).count();
        if free >= wanted {
            return None;
        }
        let spares: Vec<u32> = slots.0.keys().copied().collect();
        let slot = lowest_free(taken.into_iter().chain(spares))?;
        if slot >= self.slot_count() {
            return None;
        }
        slots.0.insert(slot, Spare::Making);
        Some(slot)
    }

    async fn make_spare(&self, slot: u32) -> Result<(), EngineError> {
        let spec = self.netns_spec(slot)?;
        let rules = self.inside(&NetworkSpec::default(), slot)?;
        let reserved = self
            .site
            .ledger
            .reserve::<Netns>(Owner::Slot(slot), spec, &[])?;
        let host = Arc::clone(&self.site.host);
        blocking(move || host.make_netns(reserved, &rules).map(Held::settle)).await??;
        Ok(())
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
        let slots: Vec<u32> = {
            let slots = self.spares.lock();
            let ready = |(slot, spare): (&u32, &Spare)| (*spare == Spare::Ready).then_some(*slot);
            slots.0.iter().filter_map(ready).collect()
        };
        for slot in slots {
            self.drop_spare(slot).await;
        }
        if let Err(error) = self.load_host_rules().await {
            tracing::warn!(%error, "the host's rules are left as they were");
        }
    }
}
