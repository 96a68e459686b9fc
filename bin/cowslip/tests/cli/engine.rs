//! Against a real engine, started by the command itself.

use std::path::Path;
use std::process::Output;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::fake::{Printed, cowslip};

fn run(state: &Path, arguments: &[&str]) -> Printed {
    let output: Output = cowslip(state).args(arguments).output().unwrap();
    output.into()
}

fn engine_pid(state: &Path) -> String {
    std::fs::read_to_string(state.join("lock"))
        .unwrap()
        .trim()
        .to_owned()
}

#[test]
fn one_engine_is_started_however_many_commands_ask() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let commands: Vec<_> = (0..6)
        .map(|_| {
            let mut command = cowslip(&state);
            command.args(["info", "--json"]);
            std::thread::spawn(move || Printed::from(command.output().unwrap()))
        })
        .collect();
    for command in commands {
        let printed = command.join().unwrap();
        assert_eq!((printed.code, printed.err.as_str()), (0, ""), "{printed:?}");
        let info: serde_json::Value = serde_json::from_str(&printed.out).unwrap();
        assert_eq!(info["pid"].to_string(), engine_pid(&state));
    }
    assert_eq!(run(&state, &["ls", "-q"]).out, "");
    let version = run(&state, &["version"]).out;
    assert!(
        version.ends_with(concat!("engine  ", env!("CARGO_PKG_VERSION"), "\n")),
        "{version}"
    );

    let pid = Pid::from_raw(engine_pid(&state).parse().unwrap()).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let stopped = run(&state, &["serve", "--stop"]);
    assert_eq!((stopped.code, stopped.err.as_str()), (0, ""));
    assert!(!state.join("run/cowslip.sock").exists());
    // It has given the lock up; what is left of it ends on its own.
    let bound = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&bound)).unwrap();
    assert_eq!(ended, 1, "the engine's process stays");
    assert_eq!(
        run(&state, &["serve", "--stop"]).err,
        "no engine is running\n"
    );
    assert!(
        run(&state, &["version"])
            .out
            .ends_with("engine  not running\n")
    );
}

#[test]
fn an_unknown_template_is_125_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let printed = run(&state, &["run", "--rm", "nope", "true"]);
    assert_eq!(printed.code, 125);
    assert!(
        printed
            .err
            .starts_with("cowslip: there is no template \"nope\"\n"),
        "{printed:?}"
    );
    assert_eq!(run(&state, &["ls", "-q"]).out, "");
    run(&state, &["serve", "--stop"]);
}

#[test]
fn a_second_engine_is_told_who_has_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    assert_eq!(run(&state, &["ls"]).code, 0);
    let second = run(&state, &["serve"]);
    assert_eq!(second.code, 125);
    assert!(
        second
            .err
            .contains(&format!("process {}", engine_pid(&state))),
        "{second:?}"
    );
    run(&state, &["serve", "--stop"]);
}

#[test]
fn an_engine_keeps_nothing_of_its_starters() {
    use std::io::Read;

    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    // Inherited by every program, as a shell's `3>&1` is.
    let (read, write) = rustix::pipe::pipe().unwrap();
    let printed = run(&state, &["ls", "-q"]);
    assert_eq!((printed.code, printed.err.as_str()), (0, ""));
    drop(write);
    // The end comes although the engine runs on.
    let mut rest = Vec::new();
    std::fs::File::from(read).read_to_end(&mut rest).unwrap();
    assert!(state.join("run/cowslip.sock").exists());
    run(&state, &["serve", "--stop"]);
}
