//! `exec`: exit codes, streams, environment, users, time-outs.

use cowslip_e2e::{Instance, Kernel, Setup};
use rustix::process::Signal;

fn host() -> Instance {
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let _ = host.say("run -d --name one box").ok();
    host
}

#[test]
fn exit_codes_signals_and_reaping() {
    // covers R11 R55
    let host = host();
    for code in [0, 1, 2, 63, 124, 125, 126, 127, 128, 200, 255] {
        let _ = host.sh("one", &format!("exit {code}")).run().exits(code);
    }
    for signal in [1, 2, 6, 9, 11, 15] {
        let script = format!("kill -{signal} $$; while :; do :; done");
        let _ = host.sh("one", &script).run().exits(128 + signal);
    }
    let done = host.say("exec one -- no-such-command").run().exits(127);
    assert!(done.stderr.contains("no-such-command"), "{done}");
    let done = host.say("exec one -- /etc/not-executable").run().exits(126);
    assert!(done.stderr.contains("/etc/not-executable"), "{done}");
    let _ = host.say("run --rm box -- /no/such").run().exits(127);
    assert_eq!(host.sandboxes(), ["one"]);

    // Twenty orphans, each the child of a child that is gone: none stays a zombie, and a process
    // started meanwhile still has its own exit code.
    let orphans = "i=0; while [ $i -lt 20 ]; do (sh -c 'sleep 0.2; exit 3' & exit 4); i=$((i+1)); done; exit 5";
    let _ = host.sh("one", orphans).run().exits(5);
    let settle = "while ps -o args | grep -q '[s]leep 0.2'; do sleep 0.1; done; \
        n=0; while ps -o stat | grep -q Z; do n=$((n+1)); [ $n -lt 50 ] || { ps -o pid,stat,args; exit 1; }; sleep 0.1; done";
    let _ = host.sh("one", settle).ok();
}

#[test]
fn streams_are_whole_and_apart() {
    let host = host();
    let mut input = Vec::with_capacity(8 << 20);
    let mut word: u64 = 0x9e37_79b9_7f4a_7c15;
    while input.len() < 8 << 20 {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        input.extend(word.to_le_bytes());
    }
    let done = host.say("exec -i one -- cat").stdin(input.clone()).run();
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(
        done.stdout == input,
        "cat changed the bytes: {} of {}",
        done.stdout.len(),
        input.len()
    );

    let done = host
        .sh(
            "one",
            "yes 0123456789abcde | head -c 20971520; echo end >&2",
        )
        .run();
    assert_eq!((done.code, done.stdout.len()), (0, 20 << 20));
    assert!(
        done.stdout
            .chunks(16)
            .all(|line| line == b"0123456789abcde\n")
    );
    assert_eq!(done.stderr, "end\n");

    // Without -i there is no input at all, so nothing waits for it.
    assert_eq!(host.say("exec one -- cat").stdin("unseen").ok(), "");
    // A reader of ours that goes away ends the call, not the engine.
    let _ = host.sh("one", "echo still there").ok();
}

#[test]
fn environment_directory_user_and_timeout() {
    // covers R56
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let _ = host
        .say("run -d --name one -e FROM=sandbox -e BOTH=sandbox -w /etc box")
        .ok();
    let script = "echo \"$FROM $BOTH $OWN $(pwd) $(id -u):$(id -g)\"";
    assert_eq!(host.sh("one", script).ok(), "sandbox sandbox  /etc 0:0");
    let call = host
        .say("exec -e OWN=x=y -e BOTH=exec -w /tmp -u alice one -- sh -c")
        .arg(script);
    assert_eq!(call.ok(), "sandbox exec x=y /tmp 1000:1001");
    let call = host.say("exec -u 12:34 one -- sh -c").arg("id -u; id -g");
    assert_eq!(call.ok(), "12\n34");
    // Honoured or refused, never ignored.
    for (option, value, named) in [
        ("-u", "nobody-here", "nobody-here"),
        ("-u", "1:2:3", "2:3"),
        ("-w", "/not/there", "/not/there"),
        ("-w", "/etc/passwd", "/etc/passwd"),
    ] {
        let done = host
            .call(["exec", option, value, "one", "--", "echo", "ran"])
            .run();
        assert!((125..=127).contains(&done.code), "{done}");
        assert!(
            done.text().is_empty() && done.stderr.contains(named),
            "{done}"
        );
    }

    let _ = host
        .say("exec --timeout 1s one -- sleep 1000")
        .run()
        .exits(124);
    let gone = "while ps -o args | grep -q '[s]leep 1000'; do sleep 0.1; done";
    let _ = host.sh("one", gone).ok();
    // A process that is left running is no longer the call's.
    let _ = host.say("exec -d one -- sleep 2000").ok();
    let _ = host.sh("one", "ps -o args | grep -q '[s]leep 2000'").ok();
}

#[test]
fn signals_to_the_call_go_to_the_command() {
    let host = host();
    for (signal, name) in [
        (Signal::INT, "INT"),
        (Signal::TERM, "TERM"),
        (Signal::USR1, "USR1"),
    ] {
        let script = format!(
            "trap 'echo got {name}; exit 42' {name}; echo ready; while :; do sleep 0.1; done"
        );
        let running = host.sh("one", &script).start();
        running.wait_for("ready");
        running.signal(signal);
        let done = running.wait().exits(42);
        assert_eq!(done.text(), format!("ready\ngot {name}"));
    }
    // One that ignores it is given up at the third, and nothing hangs.
    let running = host
        .sh(
            "one",
            "trap '' INT; echo ready; while :; do sleep 0.1; done",
        )
        .start();
    running.wait_for("ready");
    for _ in 0..3 {
        running.signal(Signal::INT);
        let _ = host.sh("one", "true").ok();
    }
    let _ = running.wait().exits(130);
    // A call that is killed outright takes its command with it or leaves it, but the sandbox works.
    let running = host.sh("one", "echo ready; exec sleep 3000").start();
    running.wait_for("ready");
    drop(running);
    assert_eq!(host.sh("one", "echo works").ok(), "works");
}
