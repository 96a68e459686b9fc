//! Opening: new, known, newer and damaged databases.

use rusqlite::Connection;

use super::Bench;
use crate::db::DATABASE;
use crate::fault::Injector;
use crate::{Ledger, LedgerError};

#[test]
fn a_state_directory_keeps_its_identity() {
    let bench = Bench::new();
    let other = Bench::new();
    assert_eq!(bench.reopened("boot-2").instance(), bench.ledger.instance());
    assert_ne!(other.ledger.instance(), bench.ledger.instance());
    assert_eq!(bench.reopened("boot-2").boot_id(), "boot-2");
    // The names of running machines carry it: it outlives the database.
    let instance = bench.ledger.instance();
    let Bench { dir, ledger } = bench;
    drop(ledger);
    std::fs::remove_file(dir.path().join(DATABASE)).unwrap();
    let again = Ledger::open(dir.path(), "boot-1", Injector::default()).unwrap();
    assert_eq!(again.instance(), instance);
    assert!(again.read(|tx| tx.templates()).unwrap().is_empty());
}

#[test]
fn a_database_of_a_newer_cowslip_is_left_alone() {
    let Bench { dir, ledger } = Bench::new();
    drop(ledger);
    let path = dir.path().join(DATABASE);
    let raw = Connection::open(&path).unwrap();
    raw.pragma_update(None, "user_version", 99).unwrap();
    drop(raw);
    let error = Ledger::open(dir.path(), "boot-1", Injector::default()).unwrap_err();
    assert!(
        matches!(error, LedgerError::TooNew { found: 99, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("use a newer cowslip"), "{error}");
    let raw = Connection::open(&path).unwrap();
    let templates: i64 = raw
        .query_row("SELECT count(*) FROM templates", [], |row| row.get(0))
        .unwrap();
    assert_eq!(templates, 1);
}

#[test]
fn migrations_run_once_each() {
    let bench = Bench::new();
    let version = |dir: &std::path::Path| -> i64 {
        let raw = Connection::open(dir.join(DATABASE)).unwrap();
        raw.pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap()
    };
    let first = version(bench.dir.path());
    assert!(first > 0);
    assert_eq!(
        bench
            .reopened("boot-1")
            .read(|tx| tx.templates())
            .unwrap()
            .len(),
        1
    );
    assert_eq!(version(bench.dir.path()), first);
}

#[test]
fn a_database_of_the_first_version_keeps_what_refers_to_its_templates() {
    let dir = tempfile::tempdir().unwrap();
    let raw = Connection::open(dir.path().join(DATABASE)).unwrap();
    raw.execute_batch(include_str!("../migrations/0001.sql"))
        .unwrap();
    raw.pragma_update(None, "user_version", 1).unwrap();
    let record = serde_json::to_string(&super::template()).unwrap();
    let id = super::template().id.to_string();
    for (statement, values) in [
        (
            "INSERT INTO templates VALUES (?1, ?2, ?3)",
            [&id, &"0".repeat(64), &record],
        ),
        (
            "INSERT INTO layers VALUES (?1, ?2, NULL, ?3)",
            [&"l".to_owned(), &id, &"{}".to_owned()],
        ),
    ] {
        raw.execute(statement, values).unwrap();
    }
    raw.execute("INSERT INTO template_names VALUES ('bookworm', ?1)", [&id])
        .unwrap();
    drop(raw);
    let ledger = Ledger::open(dir.path(), "boot-1", Injector::default()).unwrap();
    let found = ledger.read(|tx| tx.template_named("bookworm")).unwrap();
    assert_eq!(found, Some(super::template()));
    let again = ledger.write("again", crate::Synchronous::Normal, |tx| {
        // Another of the same image.
        let mut other = super::template();
        other.id = "00000000000000ff".parse().unwrap();
        other.names.clear();
        tx.put_template(&other)?;
        // Layers stand on the first one still.
        let refused = tx.delete_template(super::template().id);
        assert!(refused.is_err(), "the layer's template went");
        Ok::<_, LedgerError>(())
    });
    again.unwrap();
}

#[test]
fn a_damaged_database_is_named_as_such() {
    let Bench { dir, ledger } = Bench::new();
    drop(ledger);
    let path = dir.path().join(DATABASE);
    std::fs::write(
        &path,
        b"this is no database, whatever its name may say of it".repeat(100),
    )
    .unwrap();
    let error = Ledger::open(dir.path(), "boot-1", Injector::default()).unwrap_err();
    assert!(
        matches!(&error, LedgerError::Damaged { path: named, .. } if *named == path),
        "{error}"
    );
    // An instance file without an id is told of, not replaced: machines may run under the old id.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(dir.path().join("instance"), "?").unwrap();
    let error = Ledger::open(dir.path(), "boot-1", Injector::default()).unwrap_err();
    assert!(matches!(error, LedgerError::Instance { .. }), "{error}");
}
