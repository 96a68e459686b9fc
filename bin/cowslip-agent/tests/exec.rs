//! Processes: what is asked for is honoured or refused, and their end is never lost.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{Agent, Outcome, PATIENCE, finish, read_until, run, sh};
use cowslip_proto::client::{CallError, ExecError, ExecEvent, ExecStart, ExitStatus, PtySize};

const KILLED: ExitStatus = ExitStatus::Signal {
    signal: 9,
    core_dumped: false,
};

fn ok(stdout: &str) -> Outcome {
    let status = ExitStatus::Code(0);
    Outcome {
        stdout: stdout.into(),
        stderr: String::new(),
        skipped: 0,
        status,
    }
}

#[tokio::test]
async fn a_command_has_output_an_exit_code_and_an_environment() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let outcome = run(&client, sh("echo out; echo err >&2; exit 3")).await;
    assert_eq!(
        (outcome.stdout.as_str(), outcome.stderr.as_str()),
        ("out\n", "err\n")
    );
    assert_eq!(outcome.status, ExitStatus::Code(3));
    assert_eq!(run(&client, sh("kill -9 $$")).await.status, KILLED);

    let mut start = sh("pwd; echo $A; echo $HOME");
    start.cwd = Some(b"/usr".to_vec());
    start.env = vec![
        (b"A".to_vec(), b"1 2".to_vec()),
        (b"HOME".to_vec(), b"/x".to_vec()),
    ];
    assert_eq!(run(&client, start).await, ok("/usr\n1 2\n/x\n"));
    // Found on the default path, with nothing of the agent's environment.
    let env = run(&client, ExecStart::new(["env"])).await;
    let names = env
        .stdout
        .lines()
        .map(|l| l.split('=').next().unwrap())
        .collect::<Vec<_>>();
    assert_eq!(names, ["HOME", "PATH"]);
}

#[tokio::test]
async fn a_process_is_alone_in_its_session_with_only_its_own_descriptors() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    // No descriptor beyond those that any child of this test would have.
    let list = "for fd in /proc/self/fd/*; do echo ${fd##*/}; done";
    let plain = std::process::Command::new("sh")
        .args(["-c", list])
        .output()
        .unwrap();
    let outcome = run(&client, sh(list)).await;
    assert_eq!(outcome.stdout, String::from_utf8(plain.stdout).unwrap());
    let outcome = run(&client, sh("cut -d' ' -f5,6 /proc/$$/stat; echo $$")).await;
    let lines = outcome.stdout.lines().collect::<Vec<_>>();
    assert_eq!(lines[0], format!("{0} {0}", lines[1]));
    // SIGPIPE as usual: `yes` ends silently.
    assert_eq!(
        run(&client, sh("yes | head -n1; ulimit -n")).await,
        ok("y\n1024\n")
    );
}

// covers R56
#[tokio::test]
async fn what_cannot_be_honoured_is_refused_by_its_name() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let plain = agent.dir.path().join("plain");
    std::fs::write(&plain, "#!/bin/sh\n").unwrap();
    let script = agent.dir.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::process::Command::new("chmod")
        .arg("755")
        .arg(&script)
        .status()
        .unwrap();

    let refused = async |start: ExecStart| client.exec(start).await.unwrap_err();
    let path = |p: &std::path::Path| ExecStart::new([p.to_str().unwrap()]);
    assert!(matches!(
        refused(ExecStart::new(["no-such-program"])).await,
        ExecError::NotFound(_)
    ));
    assert!(matches!(
        refused(ExecStart::new(["/no/such"])).await,
        ExecError::NotFound(_)
    ));
    assert!(matches!(
        refused(path(&plain)).await,
        ExecError::NotExecutable(_)
    ));
    assert!(matches!(
        refused(ExecStart::new(["/etc"])).await,
        ExecError::NotExecutable(_)
    ));
    let error = refused(path(&script)).await;
    assert!(error.to_string().contains("interpreter"), "{error}");
    let mut start = sh("true");
    start.cwd = Some(b"/no/such".to_vec());
    assert!(matches!(refused(start).await, ExecError::BadCwd(_)));
    let mut start = sh("true");
    start.user = Some("no-such-user".into());
    assert!(matches!(refused(start).await, ExecError::UnknownUser(_)));
    let mut start = sh("true");
    start.process = "../x".into();
    assert!(matches!(refused(start).await, ExecError::Other(_)));
    assert!(matches!(
        refused(ExecStart::new([""])).await,
        ExecError::NotFound(_)
    ));
    assert!(matches!(
        refused(ExecStart::new(["a\0b"])).await,
        ExecError::Other(_)
    ));
    let mut start = sh("true");
    start.env = vec![(b"A=B".to_vec(), b"".to_vec())];
    assert!(matches!(refused(start).await, ExecError::Other(_)));
    let codes = [
        refused(ExecStart::new(["nope"])).await,
        refused(path(&plain)).await,
    ];
    assert_eq!(codes.map(|e| e.exit_code()), [127, 126]);
    // Nothing of that is left.
    assert_eq!(client.processes().await.unwrap(), vec![]);
}

// covers R56
#[tokio::test]
async fn a_process_runs_as_the_user_that_was_asked_for() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let mut start = sh("id -u; id -g; id -G; grep Cap /proc/self/status | sort -u -k2");
    start.user = Some("4711:4712".into());
    let outcome = run(&client, start).await;
    let lines = outcome.stdout.lines().collect::<Vec<_>>();
    assert_eq!(lines[..3], ["4711", "4712", "4712"]);
    let effective = lines
        .iter()
        .find(|l| l.starts_with("CapEff") || l.starts_with("CapInh"));
    assert!(
        effective.unwrap().ends_with("0000000000000000"),
        "{outcome:?}"
    );
    // The working directory is entered as the user.
    let mut start = sh("true");
    start.user = Some("4711".into());
    start.cwd = Some(b"/root".to_vec());
    let entered = client.exec(start).await;
    let private = std::fs::metadata("/root").unwrap().permissions();
    if std::os::unix::fs::PermissionsExt::mode(&private) & 0o001 == 0 {
        assert!(matches!(entered.unwrap_err(), ExecError::BadCwd(_)));
    }
}

#[tokio::test]
async fn input_reaches_the_process_whole_and_its_end_too() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let mut start = sh("sha256sum");
    start.stdin = true;
    let mut session = client.exec(start).await.unwrap();
    let data = (0..1_000_000u32)
        .flat_map(u32::to_le_bytes)
        .collect::<Vec<_>>();
    session.stdin.write(data.into()).await.unwrap();
    session.stdin.close().await.unwrap();
    let outcome = finish(&mut session.events).await;
    assert_eq!(outcome.status, ExitStatus::Code(0));
    let expected = std::process::Command::new("sh")
        .args(["-c", "perl -e 'print pack(\"V*\", 0..999999)' | sha256sum"])
        .output()
        .unwrap();
    assert_eq!(outcome.stdout, String::from_utf8(expected.stdout).unwrap());

    // Without input there is none; with input that is not read, closing does not hang.
    assert_eq!(run(&client, sh("cat")).await, ok(""));
    let mut start = sh("exit 0");
    start.stdin = true;
    let mut session = client.exec(start).await.unwrap();
    assert_eq!(
        finish(&mut session.events).await.status,
        ExitStatus::Code(0)
    );
    let big = bytes::Bytes::from(vec![0; 1 << 20]);
    let error = session.stdin.write(big).await.unwrap_err();
    assert!(error.to_string().contains("takes no more input"), "{error}");
}

#[tokio::test]
async fn input_can_go_on_after_a_client_has_gone() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let mut start = sh("cat");
    start.stdin = true;
    let process = start.process.clone();
    let mut session = client.exec(start).await.unwrap();
    session.stdin.write("one ".into()).await.unwrap();
    assert_eq!(read_until(&mut session.events, "one ").await, "one ");
    let offset = session.events.offset();
    drop(session);
    drop(client);
    let client = agent.connect().await;
    let mut session = client.attach(&process, offset).await.unwrap();
    session.stdin.write("two".into()).await.unwrap();
    session.stdin.close().await.unwrap();
    assert_eq!(finish(&mut session.events).await, ok("two"));
}

// covers R54
#[tokio::test]
async fn an_exit_is_reported_at_once_whoever_holds_the_pipe() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    // The background process keeps both pipes open until the test ends.
    let script = "sleep 1000 & echo $!; echo done";
    let outcome = tokio::time::timeout(PATIENCE, run(&client, sh(script)))
        .await
        .unwrap();
    assert!(outcome.stdout.ends_with("done\n"));
    let left = outcome.stdout.lines().next().unwrap().to_owned();
    // It is not killed by that, and by writing neither.
    let outcome = run(&client, sh(&format!("kill -0 {left} && kill {left}"))).await;
    assert_eq!(outcome, ok(""));

    let mut start = sh("sleep 1000 & echo done");
    start.pty = Some(PtySize { rows: 24, cols: 80 });
    let outcome = tokio::time::timeout(PATIENCE, run(&client, start))
        .await
        .unwrap();
    assert_eq!(outcome, ok("done\r\n"));
}

#[tokio::test]
async fn all_output_comes_before_the_exit() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    for _ in 0..20 {
        let outcome = run(&client, sh("head -c 65536 /dev/zero | tr '\\0' x")).await;
        assert_eq!(outcome.stdout.len(), 65536);
        let mut start = sh("head -c 20000 /dev/zero | tr '\\0' x");
        start.pty = Some(PtySize { rows: 24, cols: 80 });
        assert_eq!(run(&client, start).await.stdout.len(), 20000);
    }
    // Far more than is held: a follower that reads gets everything.
    let outcome = run(&client, sh("head -c 3000000 /dev/zero | tr '\\0' x")).await;
    assert_eq!((outcome.stdout.len(), outcome.skipped), (3_000_000, 0));
}

/// Whoever started the agent may ignore signals: what the agent starts does not.
#[tokio::test]
async fn signals_do_what_they_do_by_default() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let outcome = run(
        &client,
        sh("exec grep -E 'SigIgn|SigBlk' /proc/self/status"),
    )
    .await;
    assert_eq!(
        outcome.stdout,
        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
    );
}

#[tokio::test]
async fn a_terminal_has_a_size_a_line_discipline_and_an_end() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let mut start = sh("tty; stty size; echo ready; read a; stty size; echo got $a; sleep 1000");
    start.pty = Some(PtySize { rows: 33, cols: 99 });
    let mut session = client.exec(start).await.unwrap();
    let seen = read_until(&mut session.events, "ready\r\n").await;
    assert!(
        seen.contains("/dev/pts/") && seen.contains("33 99"),
        "{seen}"
    );
    session
        .control
        .resize(PtySize {
            rows: 40,
            cols: 120,
        })
        .await
        .unwrap();
    session.stdin.write("x\n".into()).await.unwrap();
    let seen = read_until(&mut session.events, "got x\r\n").await;
    assert!(seen.contains("40 120"), "{seen}");
    session.control.signal(9).await.unwrap();
    finish(&mut session.events).await;

    // No `sleep` here: a shell that is just starting one may lose the interrupt.
    let mut start = sh("echo ready; while :; do :; done");
    start.pty = Some(PtySize { rows: 1, cols: 1 });
    let mut session = client.exec(start).await.unwrap();
    read_until(&mut session.events, "ready").await;
    // ^C goes to the foreground process.
    session.stdin.write("\x03".into()).await.unwrap();
    let outcome = finish(&mut session.events).await;
    assert_eq!(
        outcome.status,
        ExitStatus::Signal {
            signal: 2,
            core_dumped: false
        }
    );

    // Without a terminal there is nothing to resize.
    let session = client.exec(sh("sleep 1000")).await.unwrap();
    assert!(
        session
            .control
            .resize(PtySize { rows: 1, cols: 1 })
            .await
            .is_err()
    );
    session.control.signal(9).await.unwrap();
}

/// A terminal has no end of input but a character that is typed: what the kernel makes of it is
/// the kernel's business, so the terminal is raw here.
#[tokio::test]
async fn closing_a_terminals_input_types_the_end_of_file() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    for (typed, expected) in [
        ("line\n", " 6c 69 6e 65 0a 04"),
        ("part", " 70 61 72 74 04 04"),
    ] {
        let mut start = sh("stty raw -echo; echo ready; head -c 6 | od -An -tx1");
        start.pty = Some(PtySize { rows: 24, cols: 80 });
        let mut session = client.exec(start).await.unwrap();
        read_until(&mut session.events, "ready").await;
        session.stdin.write(typed.into()).await.unwrap();
        session.stdin.close().await.unwrap();
        let outcome = finish(&mut session.events).await;
        assert_eq!(outcome.stdout.trim_matches(['\r', '\n']), expected);
    }
}

#[tokio::test]
async fn signals_reach_the_group_and_never_a_stranger() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    // Both die by the signal to the group.
    let mut session = client.exec(sh("sleep 1000 & echo $!; wait")).await.unwrap();
    let child = read_until(&mut session.events, "\n")
        .await
        .trim()
        .to_owned();
    session.control.signal(15).await.unwrap();
    let outcome = finish(&mut session.events).await;
    assert_eq!(
        outcome.status,
        ExitStatus::Signal {
            signal: 15,
            core_dumped: false
        }
    );
    let gone = format!("while kill -0 {child} 2>/dev/null; do :; done");
    assert_eq!(run(&client, sh(&gone)).await, ok(""));
    // The process has ended: its pid may be somebody else's.
    let error = session.control.signal(9).await.unwrap_err();
    assert!(matches!(error, CallError::NotFound { .. }), "{error}");
    assert!(
        client
            .signal("nobody", 9, Default::default())
            .await
            .is_err()
    );
    let session = client.exec(sh("sleep 1000")).await.unwrap();
    for bad in [0, -9, 65] {
        assert!(session.control.signal(bad).await.is_err());
    }
    session.control.signal(9).await.unwrap();
}

#[tokio::test]
async fn a_process_without_a_client_goes_on_and_keeps_its_last_output() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let mark = agent.dir.path().join("mark");
    let start = sh(&format!(
        "echo begin; read x < {0}; head -c 1000000 /dev/zero | tr '\\0' x; echo end > {0}.done; exec sleep 1000",
        mark.display()
    ));
    let made = std::process::Command::new("mkfifo")
        .arg(&mark)
        .status()
        .unwrap();
    assert!(made.success());
    let process = start.process.clone();
    let mut session = client.exec(start).await.unwrap();
    read_until(&mut session.events, "begin\n").await;
    let offset = session.events.offset();
    drop(session);
    drop(client);
    // Now it writes a megabyte to nobody, and must not stop in the middle.
    let client = agent.connect().await;
    let wait = format!(
        "echo go > {0}; while ! test -e {0}.done; do :; done",
        mark.display()
    );
    assert_eq!(run(&client, sh(&wait)).await, ok(""));

    let mut session = client.attach(&process, offset).await.unwrap();
    let mut got = 0;
    let Some(ExecEvent::Skipped(skipped)) = session.events.next().await.unwrap() else {
        panic!("nothing was skipped");
    };
    while got + skipped < 1_000_000 {
        match session.events.next().await.unwrap().unwrap() {
            ExecEvent::Stdout(data) => got += data.len() as u64,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got + skipped, 1_000_000);
    assert!(
        (256 * 1024..=512 * 1024).contains(&got),
        "{got} bytes were held"
    );
    session.control.signal(9).await.unwrap();
    assert_eq!(finish(&mut session.events).await.status, KILLED);
    // The status stays for those who ask later.
    let mut late = client.attach(&process, u64::MAX).await.unwrap();
    assert_eq!(finish(&mut late.events).await.status, KILLED);
}

#[tokio::test]
async fn a_slow_follower_holds_the_process_and_loses_nothing() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let mark = agent.dir.path().join("written");
    let script = format!(
        "head -c 8000000 /dev/zero | tr '\\0' x; touch {}",
        mark.display()
    );
    let mut session = client.exec(sh(&script)).await.unwrap();
    // Not an assertion about time: whatever it wrote by now, it cannot be done.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!mark.exists());
    let outcome = finish(&mut session.events).await;
    assert_eq!((outcome.stdout.len(), outcome.skipped), (8_000_000, 0));
}

#[tokio::test]
async fn an_id_names_one_process_for_ever() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let start = sh("exit 7");
    let process = start.process.clone();
    assert_eq!(
        run(&client, start.clone()).await.status,
        ExitStatus::Code(7)
    );
    let error = client.exec(start).await.unwrap_err();
    assert!(matches!(error, ExecError::IdInUse(_)), "{error}");
    let known = client.processes().await.unwrap();
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].process, process);
    assert!(known[0].exited.is_some());
    let error = client.attach("unheard-of", 0).await.unwrap_err();
    assert!(matches!(error, CallError::NotFound { .. }), "{error}");
}

// covers R55
#[tokio::test]
async fn ended_processes_are_forgotten_oldest_first() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    for i in 0..40 {
        let mut start = sh("exit 0");
        start.process = format!("n{i}");
        run(&client, start).await;
    }
    let mut known = client.processes().await.unwrap();
    known.sort_by_key(|p| p.pid);
    let names = known.iter().map(|p| p.process.as_str()).collect::<Vec<_>>();
    let expected = (8..40).map(|i| format!("n{i}")).collect::<Vec<_>>();
    assert_eq!(names.len(), 32);
    assert!(expected.iter().all(|e| names.contains(&e.as_str())));
    // Nothing is left behind in the agent: neither descriptors nor children.
    let fds = || {
        std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))
            .unwrap()
            .count()
    };
    let before = fds();
    for _ in 0..50 {
        run(&client, sh("exit 0")).await;
    }
    assert!(fds() <= before, "{} descriptors, then {}", before, fds());
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", agent.pid()));
    assert_eq!(children.unwrap_or_default(), "");
}

// covers R11
#[tokio::test]
async fn orphans_are_reaped_and_no_status_is_lost_among_them() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    // Each leaves orphans that end at the same time as it does.
    let runs = (0..60).map(|i| {
        let client = client.clone();
        tokio::spawn(async move {
            let code = i % 200;
            let script = format!("for i in 1 2 3 4 5; do (exit 9) & done; exit {code}");
            assert_eq!(
                run(&client, sh(&script)).await.status,
                ExitStatus::Code(code)
            );
        })
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.unwrap();
    }
    // An orphan of an orphan, which ends later than everybody who knew it.
    let outcome = run(&client, sh("(sleep 0.05 & echo $!)")).await;
    let pid = outcome.stdout.trim().to_owned();
    // A zombie would stay there for ever.
    let gone = format!("while test -e /proc/{pid}; do :; done");
    assert_eq!(run(&client, sh(&gone)).await, ok(""));
}

#[tokio::test]
async fn a_lost_agent_is_noticed_by_everyone_who_waits() {
    let mut agent = Agent::start(false);
    let client = agent.connect().await;
    let mut session = client.exec(sh("exec sleep 1000")).await.unwrap();
    let pid = session.pid;
    let waiting = tokio::spawn(async move { session.events.next().await });
    agent.kill();
    let error = tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert!(error.is_link_lost(), "{error}");
    tokio::time::timeout(PATIENCE, client.closed())
        .await
        .unwrap();
    assert!(client.is_closed());
    assert!(client.hello().await.unwrap_err().is_link_lost());
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn the_same_works_over_the_link() {
    let agent = Agent::start(true);
    let client = agent.connect_link().await;
    let outcome = run(&client, sh("head -c 3000000 /dev/zero | tr '\\0' x")).await;
    assert_eq!((outcome.stdout.len(), outcome.skipped), (3_000_000, 0));
    let hello = client.hello().await.unwrap();
    assert_eq!(hello.mode, cowslip_proto::pb::AgentMode::Process as i32);
    // It is not its machine.
    assert!(client.shutdown(Duration::ZERO).await.is_err());
    assert!(client.configure(Default::default()).await.is_err());
    assert!(client.metrics().await.unwrap().mem_total_bytes > 0);
}
