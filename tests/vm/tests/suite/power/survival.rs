//! What must hold on a state directory whose host lost its power.

use std::collections::BTreeSet;
use std::fs::File;

use cowslip_host::Site;
use cowslip_ledger::{LayerRecord, LedgerError};
use cowslip_model::{Durability, LayerId, SandboxState};
use cowslip_store::Backend;
use cowslip_store::exceptions::{Store, flatten};

use super::disk::Place;
use super::log::{Cut, Log};
use super::machine::{Blocks, blocks, image};
use super::{Life, site, template};
use crate::bench::{DISK, TEMPLATE};

/// After one cut in so many everything is removed too: it takes longer than all the rest.
const REMOVED: usize = 8;

/// Something that is published at one instant.
struct Published {
    name: &'static str,
    /// From this place of the log on its verb had returned.
    returned: usize,
    /// The disk at its instant.
    blocks: Blocks,
}

/// What the recorded engine published: checkpoints, and a pause as the last.
pub(crate) struct Expected(Vec<Published>);

impl Expected {
    pub(crate) fn new(log: &Log, stills: &[Blocks]) -> Self {
        let names = ["first", "second", "paused"];
        assert_eq!(stills.len(), names.len());
        let published = names
            .into_iter()
            .zip(stills)
            .map(|(name, blocks)| Published {
                name,
                returned: log.mark(name),
                blocks: blocks.clone(),
            });
        Self(published.collect())
    }

    fn named(&self, name: &str) -> &Published {
        self.0.iter().find(|one| one.name == name).unwrap()
    }
}

/// Opens a new engine and looks at everything. Tells whether a disk that was being written is a disk
/// still, which nobody promised.
pub(crate) fn check(place: &Place, expected: &Expected, cut: &Cut) -> Option<bool> {
    let before = survivors(place, expected, cut);
    let boot = format!("after {cut:?}");
    let (life, recovered) = Life::begin(place, &boot);
    assert_eq!(recovered.left, [""; 0], "{cut:?}: recovery left something");
    let after: BTreeSet<String> = life
        .engine
        .checkpoints()
        .unwrap()
        .into_iter()
        .map(|checkpoint| checkpoint.name.to_string())
        .collect();
    let published = |name: &String| name != "paused";
    assert!(
        before.iter().filter(|name| published(name)).eq(&after),
        "{cut:?}: {before:?} were published, {after:?} are shown"
    );
    let sandboxes = life.engine.sandboxes().unwrap();
    let state = if before.contains("paused") {
        SandboxState::Paused
    } else {
        SandboxState::Failed
    };
    let states: Vec<SandboxState> = sandboxes.iter().map(|sandbox| sandbox.state).collect();
    let never_started =
        cut.end() < expected.named("first").returned && states == [SandboxState::Stopped];
    assert!(never_started || states == [state], "{cut:?}: {states:?}");
    nothing_is_unaccounted_for(&life, cut);
    assert!(
        survivors(place, expected, cut) == before,
        "{cut:?}: recovery changed what was published"
    );
    let written = (state == SandboxState::Failed).then(|| written_disk_is_one(&life));
    if cut.end().is_multiple_of(REMOVED) {
        everything_can_be_removed(&life, cut);
    }
    let image = life.engine.site().layout.template_image(TEMPLATE);
    assert!(
        std::fs::read(image).unwrap() == template(),
        "{cut:?}: the template changed"
    );
    written
}

fn written_disk_is_one(life: &Life) -> bool {
    let site = life.engine.site();
    let (id, chain) = site
        .ledger
        .read::<_, LedgerError>(|tx| {
            let sandbox = tx.sandboxes()?.remove(0);
            Ok((sandbox.id, tx.chain(sandbox.layer.unwrap())?))
        })
        .unwrap();
    let volumes = cowslip_store::open(Backend::Dm, Durability::Published);
    life.run(volumes.check(site, id, &chain)).is_ok()
}

/// What the ledger shows as published; all of it is whole, and nothing whose verb had returned is missing.
fn survivors(place: &Place, expected: &Expected, cut: &Cut) -> BTreeSet<String> {
    let site = site(place, "looking");
    let (checkpoints, sandboxes) = site
        .ledger
        .read::<_, LedgerError>(|tx| Ok((tx.checkpoints()?, tx.sandboxes()?)))
        .unwrap();
    let mut found = BTreeSet::new();
    for checkpoint in checkpoints.iter().filter(|checkpoint| checkpoint.ready) {
        let directory = site.layout.checkpoint(checkpoint.id);
        let one = expected.named(checkpoint.name.as_str());
        whole(&site, checkpoint.layer, &directory.join("memory"), one, cut);
        let record = std::fs::read(directory.join("record.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        assert_eq!(record["record"]["name"], one.name, "{cut:?}");
        found.insert(one.name.to_owned());
    }
    for sandbox in sandboxes.iter().filter(|sandbox| sandbox.paused_image) {
        let image = site.layout.sandbox(sandbox.id).join("paused");
        whole(
            &site,
            sandbox.layer.unwrap(),
            &image,
            expected.named("paused"),
            cut,
        );
        found.insert("paused".to_owned());
    }
    for one in &expected.0 {
        assert!(
            cut.end() <= one.returned || found.contains(one.name),
            "{cut:?}: \"{}\" had been published and is lost",
            one.name
        );
    }
    found
}

/// Memory and disk are there, and of one instant.
fn whole(site: &Site, top: LayerId, memory: &std::path::Path, one: &Published, cut: &Cut) {
    let context = format!("{cut:?}: \"{}\"", one.name);
    let found = std::fs::read(memory).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(found == image(&one.blocks), "{context}: its memory is torn");
    let chain: Vec<LayerRecord> = site
        .ledger
        .read::<_, LedgerError>(|tx| tx.chain(top))
        .unwrap();
    let open = |layer: &LayerRecord| {
        let path = site.layout.layer(layer.id, layer.format);
        File::open(path).unwrap_or_else(|error| panic!("{context}: layer {}: {error}", layer.id))
    };
    let files: Vec<File> = chain.iter().map(open).collect();
    let stores: Vec<Store<'_>> = files
        .iter()
        .map(|file| Store {
            file,
            disk_bytes: DISK,
        })
        .collect();
    let template = File::open(site.layout.template_image(TEMPLATE)).unwrap();
    let out = tempfile::tempfile().unwrap();
    if let Err(error) = flatten(&template, DISK, &stores, &out) {
        panic!("{context}: {error}");
    }
    assert!(
        blocks(&out) == one.blocks,
        "{context}: its disk is not that of its instant"
    );
}

/// There is nothing more to recover, and nothing on the host that no row accounts for.
fn nothing_is_unaccounted_for(life: &Life, cut: &Cut) {
    let plan = life.run(life.engine.recovery_plan()).unwrap();
    assert!(plan.is_empty(), "{cut:?}: {plan:#?}");
    let site = life.engine.site();
    let open = site
        .ledger
        .read::<_, LedgerError>(|tx| tx.checkpoints())
        .unwrap();
    assert!(open.iter().all(|checkpoint| checkpoint.ready), "{cut:?}");
}

/// What survived a cut can still be released, whatever device the disk is now.
fn everything_can_be_removed(life: &Life, cut: &Cut) {
    let engine = &life.engine;
    life.run(engine.remove("one", true))
        .unwrap_or_else(|error| panic!("{cut:?}: remove: {error}"));
    for checkpoint in engine.checkpoints().unwrap() {
        life.run(engine.remove_checkpoint(checkpoint.name.as_str(), true))
            .unwrap_or_else(|error| panic!("{cut:?}: remove a checkpoint: {error}"));
    }
    let layout = &engine.site().layout;
    for directory in ["layers", "checkpoints", "sandboxes"] {
        let left = std::fs::read_dir(layout.state().join(directory)).unwrap();
        assert_eq!(left.count(), 0, "{cut:?}: {directory} are left");
    }
}
