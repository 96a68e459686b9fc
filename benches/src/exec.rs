//! `exec`: the round trip of a command that does nothing.

use std::time::Instant;

use crate::lab::Lab;
use crate::table::{Samples, Table, number};
use crate::{Failure, session};

const ROUNDS: usize = 200;
const COMMAND: &str = "/bin/true";
/// As often does a shell in the guest start the same command: the part that no host can save.
const IN_GUEST: &str = "i=0; while [ $i -lt 50 ]; do /bin/true; i=$((i+1)); done";
const IN_GUEST_COUNT: f64 = 50.0;
/// The loop is measured so often, spread over the rounds.
const IN_GUEST_EVERY: usize = 25;

pub(crate) fn bench(lab: &Lab) -> Result<(), Failure> {
    let sandbox = "bench-exec";
    lab.sandbox(sandbox, &[])?;
    let socket = lab.socket();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut program = Samples::default();
    let mut idle = Samples::default();
    let [mut opened, mut started, mut ended] = [(); 3].map(|()| Samples::default());
    let mut guest = Samples::default();
    for round in 0..ROUNDS {
        program.time(lab.cowslip(["exec", sandbox, COMMAND])?.took);
        idle.time(lab.cowslip(["version", "--help"])?.took);
        let times = runtime.block_on(session::exec(&socket, sandbox, &[COMMAND]))?;
        opened.time(times.opened);
        started.time(times.started.saturating_sub(times.opened));
        ended.time(times.ended);
        if round % IN_GUEST_EVERY == 0 {
            let begun = Instant::now();
            runtime.block_on(session::exec(
                &socket,
                sandbox,
                &["/bin/sh", "-c", IN_GUEST],
            ))?;
            guest.value(begun.elapsed().as_secs_f64() * 1000.0 / IN_GUEST_COUNT);
        }
    }
    lab.remove(sandbox)?;
    let table = Table::new("exec /bin/true, ms", &["p50", "p95", "least", "most"]);
    for (name, samples) in [
        ("cowslip exec, a process each", &program),
        ("  of it: the program alone (version --help)", &idle),
        ("API, a session each", &ended),
        ("  of it: connection and upgrade", &opened),
        ("  of it: request until the process runs", &started),
        ("a shell in the guest: fork, exec, wait", &guest),
    ] {
        let words = [0.5, 0.95, 0.0, 1.0].map(|share| number(samples.quantile(share)));
        table.words(name, &words);
    }
    println!(
        "{ROUNDS} rounds, interleaved; the guest's own is a mean over {IN_GUEST_COUNT} starts"
    );
    Ok(())
}
