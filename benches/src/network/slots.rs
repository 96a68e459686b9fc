//! `slots`: a sandbox's network made and removed, by us (the rows of the ledger included) and by the commands of a shell.
//! The same objects each time: namespace, tap, link, addresses, neighbour, route, settings, rules.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cowslip_e2e::Lab;
use cowslip_host::NetnsSpec;

use crate::Failure;
use crate::commands::run;
use crate::room::Room;
use crate::table::{Samples, Table, number};

const ROUNDS: usize = 30;
const OURS: u32 = 1;
const THEIRS: u32 = 2;

/// Made, and removed.
type Both = [Samples; 2];

pub(crate) fn bench(_: &Lab) -> Result<(), Failure> {
    let room = Room::new()?;
    let shell = Shell::new(&room, THEIRS)?;
    let rounds = crate::rounds(ROUNDS)?;
    let [mut ours, mut single, mut batch]: [Both; 3] = Default::default();
    let [mut rules, mut nothing] = [Samples::default(), Samples::default()];
    // All once for the page cache.
    for round in 0..=rounds {
        let begun = Instant::now();
        let spec = room.make(OURS)?;
        let made = begun.elapsed();
        let script = room.rules(OURS)?;
        let loaded = timed(|| Ok(room.site.host.reload_netns(&spec, &script)?))?;
        let started = timed(|| Ok(room.site.host.reload_netns(&spec, "")?))?;
        let removed = timed(|| room.remove(OURS))?;
        let [by_one, by_batch] = [Shell::make, Shell::make_in_batches].map(|make| {
            let made = timed(|| make(&shell))?;
            Ok::<_, Failure>([made, timed(|| shell.remove())?])
        });
        let (by_one, by_batch) = (by_one?, by_batch?);
        if round == 0 {
            continue;
        }
        note(&mut ours, [made, removed]);
        note(&mut single, by_one);
        note(&mut batch, by_batch);
        rules.time(loaded);
        nothing.time(started);
    }
    for (index, what) in ["made", "removed"].iter().enumerate() {
        let title = format!("a network {what} [ms]");
        let table = Table::new(&title, &["median", "least", "most", "to cowslip"]);
        for (name, samples) in [
            ("cowslip, the ledger included", &ours),
            ("ip, sysctl and nft, a command each", &single),
            ("the same, ip -batch", &batch),
        ] {
            let ratio = samples[index].ratio(&ours[index]).median();
            table.spread(name, &samples[index], &[number(ratio)]);
        }
    }
    let table = Table::new("of the making [ms]", &["median", "least", "most"]);
    table.spread("the rules: a thread, nft", &rules, &[]);
    table.spread("nft without a rule", &nothing, &[]);
    println!("{rounds} rounds, in turn");
    Ok(())
}

fn note(samples: &mut Both, took: [Duration; 2]) {
    for (samples, took) in samples.iter_mut().zip(took) {
        samples.time(took);
    }
}

fn timed(work: impl FnOnce() -> Result<(), Failure>) -> Result<Duration, Failure> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed())
}

/// The commands, and what they read.
struct Shell {
    /// The namespace, in ip-netns(8)'s directory.
    name: String,
    spec: NetnsSpec,
    rules: PathBuf,
    inside: PathBuf,
    outside: PathBuf,
}

impl Shell {
    fn new(room: &Room, slot: u32) -> Result<Self, Failure> {
        let at = |name: &str| room.directory.path().join(name);
        let shell = Self {
            name: format!("cowbench{}", std::process::id()),
            spec: room.spec(slot)?,
            rules: at("rules"),
            inside: at("inside"),
            outside: at("outside"),
        };
        // In a new namespace there is no table to delete first, which would take longer.
        let rules = room.rules(slot)?;
        let rules: Vec<String> = rules.lines().skip(2).map(str::to_owned).collect();
        std::fs::write(&shell.rules, lines(&rules))?;
        std::fs::write(&shell.inside, lines(&shell.within()))?;
        let outside = [shell.link(), shell.host_end()].concat();
        std::fs::write(&shell.outside, lines(&outside))?;
        Ok(shell)
    }

    /// What is done in the namespace before and after there is the link.
    fn within(&self) -> Vec<String> {
        let NetnsSpec { tap, uplink, .. } = &self.spec;
        let name = &tap.name;
        let user = tap
            .owner
            .map(|(user, group)| format!(" user {user} group {group}"));
        let mut all = vec![
            "link set lo up".to_owned(),
            format!(
                "tuntap add dev {name} mode tap vnet_hdr{}",
                user.unwrap_or_default()
            ),
        ];
        let address =
            |address: &Ipv4Addr| format!("address add {address}/{} dev {name}", tap.prefix);
        all.extend(tap.addresses.iter().map(address));
        all.extend([
            format!("link set dev {name} address {} up", hardware(tap.mac)),
            format!(
                "neighbour add {} lladdr {} dev {name} nud permanent",
                tap.guest,
                hardware(tap.guest_mac)
            ),
            format!("address add {}/31 dev {uplink}", self.spec.sandbox),
            format!("link set {uplink} up"),
            format!("route add default via {}", self.spec.host),
        ]);
        all
    }

    fn link(&self) -> Vec<String> {
        let NetnsSpec { link, uplink, .. } = &self.spec;
        vec![format!(
            "link add name {link} type veth peer name {uplink} netns {}",
            self.name
        )]
    }

    fn host_end(&self) -> Vec<String> {
        let NetnsSpec {
            link, mark, host, ..
        } = &self.spec;
        vec![
            format!("link set {link} alias {mark}"),
            format!("address add {host}/31 dev {link}"),
            format!("link set {link} up"),
        ]
    }

    /// What is set by other commands in either way, before the interfaces are up.
    fn begin(&self) -> Result<(), Failure> {
        run("ip", &["netns", "add", &self.name])?;
        let settings = "net.ipv4.ip_forward=1 net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1";
        let line = format!("netns exec {} sysctl -q -w {settings}", self.name);
        command("ip", &line)
    }

    fn end(&self) -> Result<(), Failure> {
        let rules = text(&self.rules);
        run("ip", &["netns", "exec", &self.name, "nft", "-f", rules])?;
        // A dot in the name is one: the slash stands for what else is a dot.
        let link = &self.spec.link;
        let line = format!(
            "-q -w net/ipv6/conf/{link}/disable_ipv6=1 net/ipv4/conf/{link}/forwarding=1 \
             net/ipv4/conf/{link}/route_localnet=1"
        );
        command("sysctl", &line)
    }

    fn make(&self) -> Result<(), Failure> {
        self.begin()?;
        for line in self.link() {
            command("ip", &line)?;
        }
        for line in self.within() {
            command("ip", &format!("-n {} {line}", self.name))?;
        }
        self.end()?;
        for line in self.host_end() {
            command("ip", &line)?;
        }
        Ok(())
    }

    fn make_in_batches(&self) -> Result<(), Failure> {
        self.begin()?;
        run("ip", &["-batch", text(&self.outside)])?;
        run("ip", &["-n", &self.name, "-batch", text(&self.inside)])?;
        self.end()
    }

    fn remove(&self) -> Result<(), Failure> {
        run("ip", &["link", "delete", &self.spec.link])?;
        run("ip", &["netns", "delete", &self.name]).map(drop)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // There only where something failed.
        if Path::new("/run/netns").join(&self.name).exists()
            && let Err(failure) = run("ip", &["netns", "delete", &self.name])
        {
            eprintln!("{failure}");
        }
    }
}

fn command(program: &str, line: &str) -> Result<(), Failure> {
    let words: Vec<&str> = line.split_whitespace().collect();
    run(program, &words).map(drop)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn lines(all: &[String]) -> String {
    all.iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{line}");
        text
    })
}

fn hardware(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
