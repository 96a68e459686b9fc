//! Bad input: each is one clear line, nothing is left behind, nothing is lost.

use std::fs;
use std::os::unix::fs::chown;

use cowslip_e2e::{Instance, Kernel, Setup, Tar, box_tar};
use cowslip_model::SandboxState;
use rustix::process::Signal;

#[test]
fn unknown_names_say_what_is_near() {
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let _ = host.say("create --name web-server box").ok();
    for (line, near) in [
        ("run --rm bix -- true", "\"box\""),
        ("create --kernel gest box", "\"guest\""),
        ("exec web-servr -- true", "\"web-server\""),
        ("start web-serve", "\"web-server\""),
        ("rm web-servre", "\"web-server\""),
        ("stop wbe-server", "\"web-server\""),
        ("logs web-sever", "\"web-server\""),
        ("pause eb-server", "\"web-server\""),
        ("template rm boxx", "\"box\""),
        ("kernel rm guests", "\"guest\""),
        ("checkpoint create web-serverr", "\"web-server\""),
        ("fork point", "checkpoint ls"),
    ] {
        host.say(line).run().refused(&["there is no", near]);
    }
    // The start of an id is enough, where it is the start of one.
    let id = host.sandbox("web-server").id.to_string();
    assert_eq!(host.sandbox(&id[..6]).name.as_str(), "web-server");
    assert_eq!(host.sandboxes(), ["web-server"]);
}

#[test]
fn bad_archives_are_refused_whole() {
    // covers R57 R59
    let host = Instance::new();
    let _ = host.say("template ls").ok();
    let files = host.files();
    let whole = box_tar();
    let hostile: [(&str, Vec<u8>); 11] = [
        (
            "upwards",
            Tar::default().file("../evil", 0o644, b"x").bytes(),
        ),
        (
            "upwards inside",
            Tar::default().file("a/../../evil", 0o644, b"x").bytes(),
        ),
        (
            "through a link",
            Tar::default()
                .symlink("a", "/tmp")
                .file("a/evil", 0o644, b"x")
                .bytes(),
        ),
        (
            "hard link out",
            Tar::default()
                .hard_link("shadow", "../../etc/shadow")
                .bytes(),
        ),
        (
            "hard link to nothing",
            Tar::default().hard_link("shadow", "none").bytes(),
        ),
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("truncated in a header", whole[..700].to_vec()),
        ("nothing", Vec::new()),
        ("text", b"this is not a tar\n".repeat(100)),
        (
            "zeros then garbage",
            [vec![0; 100], vec![0xff; 5000]].concat(),
        ),
        (
            "half a gzip",
            vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3],
        ),
    ];
    for (what, bytes) in hostile {
        let done = host.say("template import bad -").stdin(bytes).run();
        assert_eq!(done.code, 125, "{what}: {done}");
        let done = done.refused(&["\"bad\""]);
        assert_eq!(host.files(), files, "{what} left something: {done}");
    }
    host.say("template import bad /no/such/file")
        .run()
        .refused(&["/no/such/file"]);
    assert!(!host.scratch().join("evil").exists());
    host.assert_only(&files);
}

#[test]
fn bad_names_and_sizes() {
    // covers R6 R63
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let before = host.files();
    let long = "x".repeat(300);
    for name in [
        "a/b",
        "..",
        "../../etc",
        "Upper",
        "new\nline",
        "",
        "-dash",
        "a b",
        "0123456789abcdef",
        &long,
    ] {
        let option = format!("--name={name}");
        let done = host.call(["create", &option, "box"]).run();
        assert_eq!(done.code, 125, "{name:?}: {done}");
        assert!(done.stderr.contains("name"), "{done}");
        let done = host
            .call(["template", "import", "--", name, "-"])
            .stdin(box_tar())
            .run();
        assert_eq!(done.code, 125, "{name:?}: {done}");
        // As an object of a verb it is just unknown, and never a path.
        let done = host.call(["inspect", "--", name]).run();
        assert_eq!(done.code, 125, "{name:?}: {done}");
    }
    for (options, words) in [
        ("--memory 0", "memory"),
        ("--memory 1", "memory"),
        ("--memory 1000T", "memory"),
        ("--memory 99999999999999999999", "memory"),
        ("--cpus 0", "cpus"),
        ("--cpus 100000", "processors"),
        ("--disk 1M", "disk"),
        ("--disk 8000P", "disk"),
        ("--ttl 0s", "ttl"),
        ("--ttl yesterday", "ttl"),
        ("-e =value", "environment"),
    ] {
        let done = host.say(&format!("create {options} box")).run();
        assert_eq!(done.code, 125, "{options}: {done}");
        assert!(
            done.stderr.to_lowercase().contains(words),
            "{options}: {done}"
        );
    }
    host.assert_only(&before);
}

#[test]
fn a_kernel_that_is_none() {
    let host = Instance::new();
    let _ = host.say("kernel ls").ok();
    let files = host.files();
    let at = |name: &str| host.scratch().join(name);
    fs::write(at("text"), "no kernel\n").unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("zeros"), vec![0; 1 << 20]).unwrap();
    let half = fs::read(Kernel::Guest.image()).unwrap();
    fs::write(at("half"), &half[..half.len() / 2]).unwrap();
    fs::create_dir(at("directory")).unwrap();
    for file in ["text", "empty", "zeros", "half", "directory", "not-there"] {
        host.call(["kernel", "import", "bad", at(file).to_str().unwrap()])
            .run()
            .refused(&[file]);
        assert_eq!(host.files(), files, "{file} left something");
    }
    // One whose modules are another kernel's.
    let image = Kernel::Debian.image();
    let modules = at("directory");
    host.call([
        "kernel",
        "import",
        "bad",
        image.to_str().unwrap(),
        "--modules",
        modules.to_str().unwrap(),
    ])
    .run()
    .refused(&["directory"]);
    assert_eq!(host.files(), files);
    host.import("box", box_tar());
    host.say("run --rm box -- true").run().refused(&["kernel"]);
}

#[test]
fn a_state_directory_that_cannot_be_used() {
    let host = Instance::new();
    let state = host.state().to_owned();
    let to = |path: &std::path::Path| {
        let mut words = vec!["--state-dir".to_owned(), path.display().to_string()];
        words.push("ls".to_owned());
        host.call(words)
    };
    // A file, and one below a file.
    let file = host.scratch().join("file");
    fs::write(&file, "").unwrap();
    to(&file)
        .run()
        .refused(&["is not a directory", "--state-dir"]);
    to(&file.join("below")).run().refused(&["below"]);
    // Another user's.
    if rustix::process::geteuid().is_root() {
        let foreign = host.scratch().join("foreign");
        fs::create_dir(&foreign).unwrap();
        chown(&foreign, Some(65534), None).unwrap();
        to(&foreign).run().refused(&["belongs to user 65534"]);
        assert_eq!(fs::read_dir(&foreign).unwrap().count(), 0);
    }
    // One that another engine holds, with its socket somewhere else.
    let _ = host.say("ls").ok();
    let elsewhere = host.scratch().join("r");
    let done = host
        .call([
            "--state-dir",
            state.to_str().unwrap(),
            "--run-dir",
            elsewhere.to_str().unwrap(),
            "serve",
        ])
        .run()
        .refused(&["in use by another engine"]);
    let pid = host.info().pid.to_string();
    assert!(done.stderr.contains(&pid), "{done}");
    // A configuration with a mistake.
    let _ = host.say("serve --stop").ok();
    let config = host.scratch().join("bad.toml");
    fs::write(&config, "[machine]\nacelerator = \"tcg\"\n").unwrap();
    host.say("ls")
        .env("COWSLIP_CONFIG", config.to_str().unwrap())
        .run()
        .refused(&["acelerator"]);
    let _ = host.say("ls").ok();
}

/// A small file system that runs full under an import and under a guest.
#[test]
fn a_full_disk() {
    // covers R28
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can mount a small file system");
        return;
    }
    let host = Instance::with(Setup {
        disk: Some("48m".to_owned()),
        ..Setup::default()
    });
    host.import_kernel(Kernel::Guest);
    let files = host.files();
    let big = Tar::default().file("big", 0o644, &random(64 << 20)).bytes();
    host.say("template import big -")
        .stdin(big)
        .run()
        .refused(&["No space left", "\"big\""]);
    assert_eq!(host.files(), files);
    host.assert_agreement();
    // After room was made (here: by asking for less) everything goes on.
    host.import("box", box_tar());
    let done = host
        .say("run --name one box -- sh -c")
        .arg("echo alive")
        .run();
    assert_eq!(done.code, 0, "{done}");
    // What frees space works where nothing is left at all.
    let filler = host.state().join("filler");
    let full = fs::write(&filler, random(48 << 20)).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let _ = host.say("rm --force one").ok();
    fs::remove_file(&filler).unwrap();
    host.assert_agreement();
    assert_eq!(host.sandboxes(), [""; 0]);
}

/// A guest that fills the host's disk stands still before the disk refuses a write, and goes on with
/// space; meanwhile nothing hangs and what frees space works.
#[test]
fn a_guest_that_fills_the_hosts_disk_stands_still() {
    // covers R28
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can mount a small file system");
        return;
    }
    let host = Instance::with(Setup {
        disk: Some("160m".to_owned()),
        ..Setup::default()
    });
    host.import_kernel(Kernel::Guest);
    host.import("box", box_tar());
    let follow = host.follow_events();
    let write = "yes full | head -c 150000000 >/root/big; sync; md5sum </root/big; sleep 1000";
    let _ = host
        .say("run -d --name full --disk 2G box -- sh -c")
        .arg(write)
        .ok();
    follow.wait_for("\"sandbox.frozen\"");
    // While the page cache empties it may go on for a moment: it stands still when many looks in a row say so.
    let mut looks = 0;
    while looks < 20 {
        let full = host.sandbox("full");
        assert_eq!(full.state, SandboxState::Running, "{:?}", full.reason);
        looks = if full.frozen { looks + 1 } else { 0 };
    }
    host.say("exec full -- true")
        .run()
        .refused(&["stands still", "nearly full"]);
    host.say("checkpoint create full")
        .run()
        .refused(&["nearly full"]);
    host.say("create box").run().refused(&["nearly full"]);
    host.resize_disk("1g");
    follow.wait_for("\"sandbox.thawed\"");
    drop(follow);
    // Every byte arrived: the host computes the same sum.
    let log = host.say("logs --follow full").start();
    log.wait_for("  -\n");
    drop(log);
    let data: Vec<u8> = b"full\n"
        .iter()
        .copied()
        .cycle()
        .take(150_000_000)
        .collect();
    let sum = host.scratch().join("big");
    fs::write(&sum, data).unwrap();
    let wanted = std::process::Command::new("md5sum")
        .stdin(fs::File::open(&sum).unwrap())
        .output()
        .unwrap();
    assert_eq!(
        host.say("logs full").ok(),
        String::from_utf8(wanted.stdout).unwrap().trim()
    );
    let _ = host.say("rm --force full").ok();
}

fn random(length: usize) -> Vec<u8> {
    let mut word: u64 = 88_172_645_463_325_252;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

/// What this host lacks is told when the engine starts, by `info` and `doctor`, and not once a sandbox.
#[test]
fn a_missing_feature_is_told_once() {
    // covers R19
    let host = Instance::new();
    host.import_kernel(Kernel::Guest);
    host.import("box", box_tar());
    host.kill_engine();
    let config = host.scratch().join("auto.toml");
    fs::write(&config, "[storage]\nbackend = \"auto\"\n").unwrap();
    let say = |words: &str| {
        host.say(words)
            .env("COWSLIP_CONFIG", config.to_str().unwrap())
    };
    for name in ["one", "two", "three"] {
        let _ = say(&format!("create --name {name} box")).ok();
    }
    let info = host.info();
    let lacks = info.backend != "dm";
    assert!(info.backend_reason.starts_with("chosen: "), "{info:?}");
    assert_eq!(info.backend_reason.contains("without device-mapper"), lacks);
    let log = fs::read_to_string(host.state().join("engine.log")).unwrap();
    assert!(log.matches("device-mapper").count() <= 1, "{log}");
    for name in ["one", "two", "three"] {
        let _ = host.say(&format!("rm {name}")).ok();
    }
}

/// ^C at several places of an import and of a boot leaves nothing.
#[test]
fn interrupted_by_the_user() {
    // covers R34
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let files = host.files();
    let mut tar = Tar::default();
    for index in 0..300 {
        tar = tar.file(&format!("file-{index}"), 0o644, &[1; 4096]);
    }
    let tar = tar.bytes();
    // Writes of one file that come together are one change: these three are there in any case.
    for at in [1, 2, 3] {
        let changes = host.changes();
        // An archive that does not end: the import is under way when it is interrupted.
        let mut import = host.say("template import slow -").open_stdin().start();
        import.write(&tar[..tar.len() / 2]);
        changes.wait(at, &import.end());
        import.signal(Signal::INT);
        let done = import.wait();
        // A shell calls both 130.
        assert!(done.code == 130 || done.code == -2, "{done}");
        assert!(!done.stderr.contains("panicked"), "{done}");
        settled(&host, &files);
    }
    for at in [1, 4, 8, 12] {
        let changes = host.changes();
        let run = host.say("run --name gone box -- sleep 1000").start();
        changes.wait(at, &run.end());
        run.signal(Signal::INT);
        let done = run.wait();
        assert!(done.code == 130 || done.code == -2, "{done}");
        settled(&host, &files);
    }
}

/// The engine sees a client go a moment after it went: what is waited for is the change it makes.
fn settled(host: &Instance, files: &std::collections::BTreeSet<std::path::PathBuf>) {
    let changes = host.changes();
    let as_before = || &host.files() == files && host.machines().is_empty();
    loop {
        while !as_before() {
            changes.wait_any();
        }
        // One that had not begun by then has by the time that all these calls take.
        assert_eq!(host.sandboxes(), [""; 0]);
        host.assert_agreement();
        if as_before() {
            break;
        }
    }
    host.assert_only(files);
}
