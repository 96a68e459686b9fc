//! The database: opening, migrating, and running one transaction at a time.
//!
//! SQLite in WAL mode. A commit survives the death of the engine at any instant; with
//! [`Synchronous::Full`] it survives a power cut too, which is what publications ask for, and intents to
//! make files. Kernel objects do not outlive a power cut, so their rows need not either.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cowslip_model::{HandleId, InstanceId, Timestamp};
use rusqlite::{Connection, TransactionBehavior};

use crate::ballast::Ballast;
use crate::fault::{Fault, Injector};
use crate::handle::{HandleRow, HandleState, Reservation, Resource};
use crate::mirror::Mirror;
use crate::owner::Owner;
use crate::tx::Tx;

/// Migrations in order; `PRAGMA user_version` counts those applied. Append only.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001.sql"),
    include_str!("migrations/0002.sql"),
];

/// The database's file in the state directory.
pub const DATABASE: &str = "cowslip.db";

/// Events kept; older ones go as new ones come.
pub(crate) const EVENTS_KEPT: i64 = 10_000;

/// Why the ledger could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// SQLite's own error.
    #[error("{operation} in the ledger: {source}")]
    Sqlite {
        /// What was being done.
        operation: String,
        /// The cause.
        source: rusqlite::Error,
    },
    /// A mirror file could not be written.
    #[error("write the mirror file \"{path}\": {source}")]
    Mirror {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A record could not be turned into JSON.
    #[error("encode {what}: {source}")]
    Encode {
        /// The record.
        what: String,
        /// The cause.
        source: serde_json::Error,
    },
    /// A stored record does not fit its type.
    #[error("the ledger's record of {what} cannot be read: {source}")]
    Decode {
        /// The record.
        what: String,
        /// The cause.
        source: serde_json::Error,
    },
    /// The database was written by a newer cowslip.
    #[error(
        "the ledger \"{path}\" has version {found}, this cowslip knows {known}: use a newer cowslip"
    )]
    TooNew {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest known.
        known: i64,
    },
    /// The database is no database any more.
    #[error("the ledger \"{path}\" is damaged: {source}")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// SQLite's own error.
        source: rusqlite::Error,
    },
    /// The file with the state directory's id cannot be used.
    #[error("the id of the state directory, \"{path}\": {source}")]
    Instance {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The row is not there.
    #[error("the ledger has no {0}")]
    Missing(String),
    /// No random id could be drawn.
    #[error(transparent)]
    Random(#[from] cowslip_model::id::RandomError),
    /// A test's injected fault.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// How hard a commit is pressed onto the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synchronous {
    /// Survives the engine's death.
    Normal,
    /// Survives a power cut.
    Full,
}

type OrphanHook = Box<dyn Fn(HandleId) + Send + Sync>;

struct Inner {
    connection: Mutex<Connection>,
    mirror: Mirror,
    ballast: Ballast,
    instance: InstanceId,
    boot_id: String,
    faults: Injector,
    on_orphan: OnceLock<OrphanHook>,
}

/// The open ledger; clones share one connection.
#[derive(Clone)]
pub struct Ledger(Arc<Inner>);

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ledger({})", self.0.instance)
    }
}

fn sqlite(operation: impl Into<String>) -> impl FnOnce(rusqlite::Error) -> LedgerError {
    let operation = operation.into();
    move |source| LedgerError::Sqlite { operation, source }
}

impl Ledger {
    /// Opens (or makes) the ledger in the state directory `dir`. `boot_id` is the host's present
    /// boot.
    ///
    /// # Errors
    /// When the database cannot be opened, migrated, or is newer than this program.
    pub fn open(dir: &Path, boot_id: &str, faults: Injector) -> Result<Self, LedgerError> {
        let path = dir.join(DATABASE);
        let (connection, instance) =
            open_database(dir, &path).map_err(|error| name_damage(error, &path))?;
        let mirror = Mirror::open(dir.join("handles"))?;
        let ballast = Ballast::new(dir);
        if let Err(error) = ballast.renew() {
            tracing::info!(%error, "the ledger has no ballast for a full disk");
        }
        Ok(Self(Arc::new(Inner {
            connection: Mutex::new(connection),
            mirror,
            ballast,
            instance,
            boot_id: boot_id.to_owned(),
            faults,
            on_orphan: OnceLock::new(),
        })))
    }

    /// The id of this state directory.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        self.0.instance
    }

    /// The host's boot in which this ledger was opened.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.0.boot_id
    }

    /// The mirror files beside the database.
    #[must_use]
    pub fn mirror(&self) -> &Mirror {
        &self.0.mirror
    }

    /// Lays the ballast for a full disk down again where it was given up and there is space.
    ///
    /// # Errors
    /// The failing system call's; everything goes on without it.
    pub fn renew_ballast(&self) -> std::io::Result<()> {
        self.0.ballast.renew()
    }

    /// What is called when a reservation or an unsettled handle is dropped. The first call wins.
    pub fn on_orphan(&self, hook: impl Fn(HandleId) + Send + Sync + 'static) {
        let _ = self.0.on_orphan.set(Box::new(hook));
    }

    pub(crate) fn orphaned(&self, id: HandleId) {
        if let Some(hook) = self.0.on_orphan.get() {
            hook(id);
        }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic while the lock was held rolled its transaction back: the connection is sound.
        self.0
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` in one write transaction named `step`: all of it is durable, or nothing is.
    ///
    /// # Errors
    /// What `work` returns, or the ledger's own failure.
    pub fn write<T, E: From<LedgerError>>(
        &self,
        step: &str,
        durability: Synchronous,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let outcome = self.0.faults.around(step, || {
            self.0.ballast.make_room();
            let mut connection = self.connection();
            if durability == Synchronous::Full {
                connection
                    .pragma_update(None, "synchronous", "FULL")
                    .map_err(sqlite(step))?;
            }
            let result = self.write_locked(step, &mut connection, work);
            if durability == Synchronous::Full {
                connection
                    .pragma_update(None, "synchronous", "NORMAL")
                    .map_err(sqlite(step))?;
            }
            result
        });
        match outcome {
            Ok(result) => result,
            Err(fault) => Err(LedgerError::from(fault).into()),
        }
    }

    fn write_locked<T, E: From<LedgerError>>(
        &self,
        step: &str,
        connection: &mut Connection,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(sqlite(step))?;
        let mut tx = Tx::new(&transaction);
        let value = work(&mut tx)?;
        let (changed, removed) = tx.into_dirty();
        // The mirror is written first: what it holds beyond the database is harmless, the
        // reverse would be a handle that the second witness has not seen.
        for sandbox in &changed {
            self.0.mirror.write(&Tx::new(&transaction), *sandbox)?;
        }
        transaction.commit().map_err(sqlite(step))?;
        for sandbox in removed {
            self.0.mirror.remove(sandbox)?;
        }
        Ok(value)
    }

    /// Makes every mirror file say what the database says. A crash between the two leaves a file that
    /// knows of a sandbox which never was, or is no more; with the database lost later, that
    /// file would bring it back (R43).
    ///
    /// # Errors
    /// When a mirror file cannot be written or removed.
    pub fn renew_mirrors(&self) -> Result<(), LedgerError> {
        let mut sandboxes = self.0.mirror.list()?;
        self.read(|tx| {
            sandboxes.extend(tx.sandboxes()?.iter().map(|sandbox| sandbox.id));
            sandboxes.sort_unstable();
            sandboxes.dedup();
            for sandbox in sandboxes {
                self.0.mirror.write(tx, sandbox)?;
            }
            Ok(())
        })
    }

    /// Runs `work` on a consistent view.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn read<T, E: From<LedgerError>>(
        &self,
        work: impl FnOnce(&Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut connection = self.connection();
        let transaction = connection.transaction().map_err(sqlite("read"))?;
        let value = work(&Tx::new(&transaction))?;
        transaction.finish().map_err(sqlite("read"))?;
        Ok(value)
    }

    /// Records the intent to acquire an object, and gives the right to do so. `depends_on` are
    /// handles that must outlive it.
    ///
    /// # Errors
    /// When the row cannot be written.
    pub fn reserve<R: Resource>(
        &self,
        owner: Owner,
        spec: R::Spec,
        depends_on: &[HandleId],
    ) -> Result<Reservation<R>, LedgerError> {
        let id = HandleId::random()?;
        let value = serde_json::to_value(&spec).map_err(|source| LedgerError::Encode {
            what: format!("spec of a {}", R::KIND),
            source,
        })?;
        let step = format!("reserve {} for {}", R::KIND, owner_word(owner));
        // An object that a power cut leaves must not be there without its row.
        let durability = if R::OUTLIVES_POWER && !matches!(owner, Owner::Machine(_)) {
            Synchronous::Full
        } else {
            Synchronous::Normal
        };
        self.write(&step, durability, |tx| {
            tx.insert_handle(&HandleRow {
                id,
                seq: 0,
                owner,
                kind: R::KIND.to_owned(),
                state: HandleState::Reserved,
                spec: value,
                identity: None,
                depends_on: depends_on.to_vec(),
                boot_id: self.0.boot_id.clone(),
                created_at: Timestamp::now(),
            })
        })?;
        Ok(Reservation::new(self.clone(), id, spec))
    }

    /// The same for an object that uses everything its owner holds so far, as a monitor's process
    /// uses its sockets and their directory: none of it goes while the object does not.
    ///
    /// # Errors
    /// As for [`Ledger::reserve`].
    pub fn reserve_over_all<R: Resource>(
        &self,
        owner: Owner,
        spec: R::Spec,
    ) -> Result<Reservation<R>, LedgerError> {
        let below = self.read(|tx| tx.handles_of(owner))?;
        let below: Vec<HandleId> = below.iter().map(|row| row.id).collect();
        self.reserve(owner, spec, &below)
    }

    pub(crate) fn record_held(
        &self,
        id: HandleId,
        kind: &str,
        identity: &serde_json::Value,
    ) -> Result<(), LedgerError> {
        self.write(&format!("record {kind}"), Synchronous::Normal, |tx| {
            tx.set_handle_identity(id, identity)
        })
    }

    /// Deletes the row of an object that the host has said is gone. Forgetting twice is fine.
    ///
    /// # Errors
    /// When the row cannot be deleted.
    pub fn forget(&self, row: &HandleRow) -> Result<(), LedgerError> {
        self.write(&format!("forget {}", row.kind), Synchronous::Normal, |tx| {
            tx.delete_handle(row)
        })
    }

    /// Forgets several in one transaction, which costs as much as one. Dying before it leaves rows of
    /// what is gone, and releasing that again is no error.
    ///
    /// # Errors
    /// When the rows cannot be deleted: none is then.
    pub fn forget_all(&self, rows: &[&HandleRow]) -> Result<(), LedgerError> {
        if rows.is_empty() {
            return Ok(());
        }
        self.write("forget what was released", Synchronous::Normal, |tx| {
            rows.iter().try_for_each(|row| tx.delete_handle(row))
        })
    }
}

/// The owner's kind, without its id: step names must be the same from run to run.
fn owner_word(owner: Owner) -> &'static str {
    match owner {
        Owner::Sandbox(_) => "sandbox",
        Owner::Machine(_) => "machine",
        Owner::Layer(_) => "layer",
        Owner::Checkpoint(_) => "checkpoint",
        Owner::Template(_) => "template",
        Owner::Kernel(_) => "kernel",
        Owner::Slot(_) => "slot",
    }
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), LedgerError> {
    let found: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(sqlite("read the version"))?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(LedgerError::TooNew {
            path: path.to_owned(),
            found,
            known,
        });
    }
    let applied = usize::try_from(found).unwrap_or(0);
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(applied) {
        let version = i64::try_from(index + 1).unwrap_or(i64::MAX);
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Exclusive)
            .map_err(sqlite("migrate"))?;
        transaction
            .execute_batch(migration)
            .map_err(sqlite(format!("migration {version}")))?;
        transaction
            .pragma_update(None, "user_version", version)
            .map_err(sqlite("migrate"))?;
        transaction
            .commit()
            .map_err(sqlite(format!("migration {version}")))?;
    }
    Ok(())
}

fn open_database(dir: &Path, path: &Path) -> Result<(Connection, InstanceId), LedgerError> {
    let mut connection =
        Connection::open(path).map_err(sqlite(format!("open \"{}\"", path.display())))?;
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = OFF;
             PRAGMA busy_timeout = 5000;",
        )
        .map_err(sqlite("configure"))?;
    // Without foreign keys, since a table that is made anew would take with it what refers to it.
    migrate(&mut connection, path)?;
    connection
        .execute_batch("PRAGMA foreign_keys = ON;")
        .map_err(sqlite("configure"))?;
    let instance = instance_id(dir)?;
    Ok((connection, instance))
}

/// Tells a damaged database from one that could not be opened for another reason.
fn name_damage(error: LedgerError, path: &Path) -> LedgerError {
    match error {
        LedgerError::Sqlite { source, .. }
            if matches!(
                source.sqlite_error_code(),
                Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt)
            ) =>
        {
            LedgerError::Damaged {
                path: path.to_owned(),
                source,
            }
        }
        other => other,
    }
}

/// The id of the state directory. It stands in a file of its own, since the names of running machines
/// carry it: they must be known again even if the database is lost.
fn instance_id(dir: &Path) -> Result<InstanceId, LedgerError> {
    let path = dir.join("instance");
    let failed = |source| LedgerError::Instance {
        path: path.clone(),
        source,
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            return text.trim().parse().map_err(|_| {
                failed(std::io::Error::new(
                    std::io::ErrorKind::InvalidData,
                    "it holds no id",
                ))
            });
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let id = InstanceId::random()?;
    let temporary = dir.join("instance.tmp");
    std::fs::write(&temporary, format!("{id}\n"))
        .and_then(|()| std::fs::File::open(&temporary)?.sync_all())
        .and_then(|()| std::fs::rename(&temporary, &path))
        .map_err(failed)?;
    Ok(id)
}
