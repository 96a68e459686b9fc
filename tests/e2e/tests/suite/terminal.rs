//! `-t`: a terminal in the guest on the user's own.

use cowslip_e2e::{Instance, Kernel, Setup, Terminal};
use rustix::process::Signal;
use rustix::termios::Termios;

fn flags(modes: &Termios) -> String {
    format!(
        "{:?} {:?} {:?} {:?}",
        modes.input_modes, modes.output_modes, modes.control_modes, modes.local_modes
    )
}

#[test]
fn a_terminal_in_the_guest() {
    // covers R54
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let _ = host.say("run -d --name one box").ok();
    let mut terminal = Terminal::new(31, 97);
    let before = flags(&terminal.modes());

    let shell = terminal.start(host.say("exec -it one -- sh"));
    terminal.type_in("tty; stty size; echo term=$TERM.\n");
    terminal.wait_for("/dev/pts/");
    terminal.wait_for("31 97");
    assert_ne!(flags(&terminal.modes()), before, "the terminal is not raw");
    terminal.resize(40, 120);
    // The guest's shell is told by a signal, and nothing else happens until it has come.
    terminal
        .type_in("while [ \"$(stty size)\" != '40 120' ]; do sleep 0.1; done; echo re''sized\n");
    terminal.wait_for("resized");
    // The shell itself is busy: one that is just starting a program may lose the interrupt.
    terminal.type_in("echo wai''ting; while :; do :; done\n");
    terminal.wait_for("waiting");
    terminal.type_in("\u{3}");
    terminal.type_in("echo code=$?.\n");
    terminal.wait_for("code=130.");

    // A grandchild that keeps the terminal open does not keep the call.
    terminal.type_in("(trap '' HUP; sleep 1000) & exit 9\n");
    let _ = shell.wait().exits(9);
    assert_eq!(flags(&terminal.modes()), before, "raw mode was not undone");

    // Every way out undoes it.
    for signal in [Signal::HUP, Signal::TERM] {
        let shell = terminal.start(host.call([
            "exec",
            "-it",
            "one",
            "--",
            "sh",
            "-c",
            "trap 'exit 15' TERM; echo rea''dy; while :; do sleep 0.1; done",
        ]));
        terminal.wait_for("ready");
        shell.signal(signal);
        let done = shell.wait();
        assert!(done.code != 0, "{done}");
        assert_eq!(
            flags(&terminal.modes()),
            before,
            "raw mode was not undone after {signal:?}"
        );
    }
    let shell = terminal.start(
        host.say("exec -it one -- sh -c")
            .arg("echo rea''dy; exec sleep 1000"),
    );
    terminal.wait_for("ready");
    host.kill_engine();
    let done = shell.wait().exits(125);
    assert!(done.stderr.contains("cowslip: "), "{done}");
    assert_eq!(
        flags(&terminal.modes()),
        before,
        "raw mode was not undone after the engine's end"
    );

    // Where there is no terminal, -t says so.
    host.say("exec -it one -- sh")
        .run()
        .refused(&["-t needs a terminal"]);
}
