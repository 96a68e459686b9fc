use crate::fake::{Printed, cowslip};

/// What this host lacks is not known here; that nobody is asked and nothing made is.
#[test]
fn a_dry_run_needs_no_engine_and_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let run = |words: &[&str]| -> Printed {
        let mut command = cowslip(dir.path());
        command.args(["host", "prepare", "--dry-run"]).args(words);
        command.output().unwrap().into()
    };
    let table = run(&[]);
    assert_eq!((table.code, table.err.as_str()), (0, ""), "{table:?}");
    assert!(table.out.starts_with("STEP"), "{table:?}");
    let json = run(&["--json"]);
    let lines: Vec<serde_json::Value> = serde_json::from_str(&json.out).unwrap();
    for part in ["cache-attributes", "modules", "limits"] {
        assert!(lines.iter().any(|line| line["part"] == part), "{json:?}");
    }
    let needed = lines.iter().filter(|line| line["outcome"] == "needed");
    assert_eq!(run(&["-q"]).out.lines().count(), needed.count());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
