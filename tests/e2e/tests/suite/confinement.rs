//! What the engine's thread may do that reads what comes from outside.

use std::fs;

use cowslip_e2e::{Instance, Tar};

/// Of each thread of the engine, whether it is under a seccomp filter and can gain no privileges.
fn threads(host: &Instance) -> Vec<bool> {
    let engine = host.engine().unwrap().as_raw_nonzero();
    let tasks = fs::read_dir(format!("/proc/{engine}/task")).unwrap();
    tasks
        // A thread may end meanwhile.
        .filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok())
        .map(|status| {
            let has = |line: &str| status.lines().any(|found| found == line);
            has("Seccomp:\t2") && has("NoNewPrivs:\t1")
        })
        .collect()
}

#[test]
fn an_archive_is_read_by_a_confined_thread() {
    // covers R57 R59
    let host = Instance::new();
    let _ = host.say("template ls").ok();
    // An engine that is the machine's first process reads for other tests as well.
    let is_own = std::env::var_os("COWSLIP_TEST_ENGINE").is_none();
    assert!(
        !(is_own && threads(&host).contains(&true)),
        "nothing is read yet"
    );
    let files = host.files();
    let tar = Tar::default()
        .file("much", 0o644, &vec![7; 48 << 20])
        .bytes();
    // More than any buffer on the way takes: once it is written, somebody reads.
    let (now, later) = tar.split_at(32 << 20);
    let mut import = host
        .call(["template", "import", "other", "-"])
        .open_stdin()
        .start();
    import.write(now);
    assert!(
        threads(&host).contains(&true),
        "nobody reads it who may do nothing else"
    );
    import.write(later);
    let _ = import.wait().ok();
    assert!(
        !(is_own && threads(&host).contains(&true)),
        "it went with its work"
    );
    let _ = host.say("template rm other").ok();
    assert_eq!(host.files(), files);
}
