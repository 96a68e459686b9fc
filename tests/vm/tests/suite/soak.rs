//! The main job round after round, with engines that are killed in it: in the end nothing is left.
//! `COWSLIP_SOAK_ROUNDS` says how many, `COWSLIP_SOAK_SEED` gives the same instants again (as far as the
//! guests' own course is the same).

use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use cowslip_e2e::{Call, Instance};
use cowslip_model::SandboxState;

use crate::firecracker::{JAIL, instance};
use crate::firecracker_failures::{assert_nothing_but, checkpoints};

/// So many fit into the suite.
const ROUNDS: u32 = 3;
/// An engine is killed at one of so many changes that a verb makes, or after the verb where it makes fewer.
const INSTANTS: u64 = 60;

/// A round takes a fraction of this, also on a busy machine.
const LONG: Duration = Duration::from_secs(240);

/// What a round does, in this order.
const VERBS: [&str; 7] = [
    "run -d --name one --memory 128M box",
    "exec one -- sh -c",
    "checkpoint create one --name point",
    "fork point --name two",
    "exec two -- sh -c",
    "rm --force one two",
    "checkpoint rm point",
];

fn number<T: std::str::FromStr>(variable: &str) -> Option<T> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Numbers that a seed gives (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }
}

fn call(host: &Instance, verb: &str) -> Call {
    let call = host.say(verb);
    match verb.split(' ').next() {
        Some("exec") => call.arg("echo kept >>/root/f; sync; cat /root/f"),
        _ => call,
    }
}

fn runs(host: &Instance, name: &str) -> bool {
    let there = host.sandboxes().iter().any(|found| found == name);
    there && host.sandbox(name).state == SandboxState::Running
}

/// Whether what the verb works on is there, after an engine was killed.
fn has_its_object(host: &Instance, verb: &str) -> bool {
    match verb.split(' ').nth(1) {
        Some("one") => runs(host, "one"),
        Some("two") => runs(host, "two"),
        Some("create") => runs(host, "one"),
        Some("point") => !checkpoints(host).is_empty(),
        // Removed below, whatever there is.
        _ => false,
    }
}

/// One round; gives what was done to its engine.
fn round(host: &Instance, random: &mut Random) -> String {
    // One more than there are: in some rounds nobody is killed.
    let victim = random.below(VERBS.len() as u64 + 1) as usize;
    let instant = 1 + random.below(INSTANTS) as usize;
    let mut told = "no engine killed".to_owned();
    for (index, verb) in VERBS.iter().enumerate() {
        if index < victim {
            let _ = call(host, verb).ok();
        } else if index == victim {
            let changes = host.changes();
            let running = call(host, verb).start();
            let seen = changes.wait(instant, &running.end());
            host.kill_engine();
            let done = running.wait();
            told = format!(
                "killed at change {seen} of \"{verb}\", which gave {}",
                done.code
            );
        } else if has_its_object(host, verb) {
            let _ = call(host, verb).ok();
        }
    }
    settle(host);
    told
}

/// What is there is sound, and goes.
fn settle(host: &Instance) {
    for name in host.sandboxes() {
        let found = host.sandbox(&name);
        assert_eq!(found.transition, None, "{name} is left in a transition");
        match found.state {
            SandboxState::Running => {}
            // Its start was interrupted.
            SandboxState::Stopped => drop(host.call(["start", &name]).ok()),
            other => panic!("{name} is {other}: {:?}", found.reason),
        }
        assert_eq!(host.sh(&name, "echo yes").ok(), "yes");
        let _ = host.call(["rm", "--force", &name]).ok();
    }
    for checkpoint in checkpoints(host) {
        let name = checkpoint.name.as_str();
        let _ = host.call(["checkpoint", "rm", name]).ok();
    }
}

/// What each process waits for, as far as the kernel tells.
fn waits() -> String {
    let mut told = String::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let read =
            |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let command = read("cmdline").replace('\0', " ");
        if command.is_empty() {
            continue;
        }
        let state = read("stat")
            .rsplit(") ")
            .next()
            .unwrap_or_default()
            .chars()
            .next();
        told.push_str(&format!(
            "{} {} {:.150}\n{}",
            entry.file_name().display(),
            state.unwrap_or('?'),
            command,
            read("stack")
        ));
    }
    told
}

/// Tells what everything waits for while a round takes too long.
fn watch(rounds: mpsc::Receiver<()>) {
    loop {
        match rounds.recv_timeout(LONG) {
            Ok(()) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => {
                eprintln!("soak: a round stands still:\n{}", waits())
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[test]
fn rounds_with_killed_engines_leave_nothing() {
    // covers R8 R18 R46
    let Some(host) = instance(JAIL) else { return };
    let rounds = number("COWSLIP_SOAK_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("COWSLIP_SOAK_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap().as_nanos() as u64 | 1
    });
    eprintln!("soak: {rounds} rounds, COWSLIP_SOAK_SEED={seed}");
    let mut random = Random(seed.max(1));
    let (ended, rounds_ended) = mpsc::channel();
    std::thread::spawn(|| watch(rounds_ended));
    let files = host.files();
    for index in 1..=rounds {
        let begun = Instant::now();
        let told = round(&host, &mut random);
        assert_nothing_but(&host, &files);
        let _ = ended.send(());
        let took = begun.elapsed().as_secs_f32();
        eprintln!("soak: round {index} of {rounds}: {told}; nothing left; {took:.1} s");
    }
}
