//! Every kind of handle with real kernel objects: acquired, probed, released, and what is not ours
//! left alone.

mod cgroups;
mod files;
mod firewalls;
mod mounts;
mod networks;
mod prepare;
mod processes;
mod sockets;
mod traffic;

use std::path::PathBuf;

use cowslip_ledger::fault::Injector;
use cowslip_ledger::plan::Presence;
use cowslip_ledger::{HandleRow, Held, Ledger, Owner, Reservation, Resource};
use cowslip_model::{HandleId, SandboxId};

use crate::process::boot_id;
use crate::{Host, HostError, Layout, LinuxHost};

const ID: SandboxId = SandboxId::from_bits(0xb0);
const OWNER: Owner = Owner::Machine(ID);

/// A host over a directory of its own.
struct Bench {
    dir: tempfile::TempDir,
    ledger: Ledger,
    host: LinuxHost,
    layout: Layout,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("state"), dir.path().join("run"));
        std::fs::create_dir(layout.state()).unwrap();
        let ledger = Ledger::open(layout.state(), &boot_id(), Injector::default()).unwrap();
        let host = LinuxHost::new(layout.clone(), ledger.instance()).unwrap();
        Self {
            dir,
            ledger,
            host,
            layout,
        }
    }

    /// A path that cowslip may make something at.
    fn place(&self, name: &str) -> PathBuf {
        self.layout.machines().join(name)
    }

    fn reserve<R: Resource>(&self, spec: R::Spec) -> Reservation<R> {
        self.ledger.reserve(OWNER, spec, &[]).unwrap()
    }

    /// The row of a handle that was settled.
    fn row<R: Resource>(&self, held: Held<R>) -> HandleRow {
        self.row_of(held.settle())
    }

    /// The row of an object whose making was never recorded.
    fn unrecorded<R: Resource>(&self, spec: R::Spec) -> HandleRow {
        let slot = self.reserve::<R>(spec);
        self.row_of(slot.id())
    }

    fn row_of(&self, id: HandleId) -> HandleRow {
        self.ledger.read(|tx| tx.handle(id)).unwrap().unwrap()
    }

    fn probe(&self, row: &HandleRow) -> Presence {
        self.host.probe(row).unwrap()
    }

    /// Releases twice: the second time finds nothing, which is as good.
    fn release_twice(&self, row: &HandleRow) {
        for _ in 0..2 {
            self.host.release(row).unwrap();
            assert_eq!(self.probe(row), Presence::Absent);
        }
    }

    /// Something else has taken the place: it is seen to be foreign and left alone.
    fn assert_foreign(&self, row: &HandleRow) {
        assert_eq!(self.probe(row), Presence::Foreign);
        let error = self.host.release(row).unwrap_err();
        assert!(matches!(error, HostError::Foreign { .. }), "{error}");
    }
}

#[test]
fn a_kind_of_another_version_is_not_guessed_at() {
    let bench = Bench::new();
    let spec = crate::FileSpec {
        path: bench.place("x"),
        mode: 0o600,
    };
    let mut row = bench.unrecorded::<crate::File>(spec);
    row.kind = "wormhole".to_owned();
    assert!(matches!(
        bench.host.probe(&row),
        Err(HostError::UnknownKind(_))
    ));
    assert!(matches!(
        bench.host.release(&row),
        Err(HostError::UnknownKind(_))
    ));
}
