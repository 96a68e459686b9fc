//! `throughput`: iperf3 from a guest through its sandbox's network, and from one on a tap that ends at the site; and
//! without guests, whose emulation hides what packets cost, from a namespace in the place of the tap.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cowslip_e2e::{End, HOST, Instance, Lab, SITE};
use cowslip_host::NetnsSpec;
use cowslip_network::{AddressRange, GATEWAY, GUEST, HostRules, TABLE, TAP};
use serde_json::Value;

use crate::commands::run;
use crate::room::Room;
use crate::table::{Samples, Table, number};
use crate::{Failure, guest};

const ROUNDS: usize = 5;
/// A measurement ends after so many seconds.
const SECONDS: &str = "3";
const RANGE: &str = "10.204.0.0/23";
/// The ends of a cable from nowhere to the site.
const BARE: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
const MEGA: f64 = 1_000_000.0;

/// What iperf3 is told, and which figure it is asked for.
#[derive(Clone, Copy)]
enum Kind {
    /// Megabits in a second, from the guest.
    Up,
    /// And to it.
    Down,
    /// Datagrams of 64 bytes in a second that arrive.
    Small,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Up, Self::Down, Self::Small];
    const COLUMNS: [&'static str; 3] = ["Mbit/s up", "Mbit/s down", "64 B/s up"];

    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Up => &[],
            Self::Down => &["--reverse"],
            Self::Small => &["--udp", "--bandwidth", "0", "--length", "64"],
        }
    }

    fn figure(self, said: &str) -> Result<f64, Failure> {
        let said: Value = serde_json::from_str(said)?;
        let end = &said["end"];
        let found = match self {
            Self::Up | Self::Down => {
                let bits = end["sum_received"]["bits_per_second"].as_f64();
                bits.map(|bits| bits / MEGA)
            }
            Self::Small => {
                let number = |field: &str| end["sum"][field].as_f64();
                number("packets")
                    .zip(number("lost_packets"))
                    .zip(number("seconds"))
                    .map(|((sent, lost), seconds)| (sent - lost) / seconds)
            }
        };
        Ok(found.ok_or_else(|| format!("iperf3 told no figure: {said}"))?)
    }
}

/// One thing that is measured, by kind.
type Figures = [Samples; 3];

fn print(title: &str, rows: &[(&str, &Figures)]) {
    let table = Table::new(title, &Kind::COLUMNS);
    for (name, figures) in rows {
        let words: Vec<String> = figures.iter().map(|one| number(one.median())).collect();
        table.words(name, &words);
    }
    let Some(((first, base), others)) = rows.split_first() else {
        return;
    };
    for (name, figures) in others {
        let ratios = figures.iter().zip(*base);
        let words: Vec<String> = ratios
            .map(|(one, base)| number(base.ratio(one).median()))
            .collect();
        table.words(&format!("{first} to {name}"), &words);
    }
}

pub(crate) fn bench(lab: &Lab) -> Result<(), Failure> {
    let site = lab.path(End::Site);
    let _server = Server::start(&site)?;
    let rounds = crate::rounds(ROUNDS)?;
    guests(&site, rounds)?;
    namespaces(&site, rounds)
}

/// An iperf3 that serves until it is dropped.
struct Server(Child);

impl Server {
    fn start(site: &Path) -> Result<Self, Failure> {
        let child = Command::new("nsenter")
            .arg(format!("--net={}", site.display()))
            .args(["iperf3", "--server", "--forceflush"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut server = Self(child);
        let said = server.0.stdout.take().ok_or("no standard output")?;
        let mut lines = BufReader::new(said).lines();
        for line in lines.by_ref() {
            if line?.contains("listening") {
                // Somebody has to read what it says.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(server);
            }
        }
        Err("iperf3 does not serve: is the package iperf3 installed?".into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already is not there to be killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn guests(site: &Path, rounds: usize) -> Result<(), Failure> {
    let engine = guest::engine(RANGE, "");
    for name in ["ours", "bare"] {
        let words = ["run", "-d", "--name", name, "--ttl", "60m", "box"];
        let _ = engine.call(words).arg("sleep").arg("10000").ok();
        provide(&engine, name)?;
    }
    // The same monitor, the same arguments, the same tap: only it is elsewhere, and under no rules.
    let namespace = guest::namespace(&engine, RANGE, "bare")?;
    let name = site
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    within(&namespace, &format!("ip link set {TAP} netns {name}"))?;
    within(site, &format!("ip address add {GATEWAY}/24 dev {TAP}"))?;
    within(site, &format!("ip link set {TAP} up"))?;
    let [mut ours, mut bare]: [Figures; 2] = Default::default();
    for _ in 0..rounds {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            ours[index].value(measure(&engine, "ours", &SITE.to_string(), kind)?);
            bare[index].value(measure(&engine, "bare", &GATEWAY.to_string(), kind)?);
        }
    }
    print(
        "from guests",
        &[("cowslip", &ours), ("a bare tap at the site", &bare)],
    );
    println!("{rounds} rounds of {SECONDS} s, in turn");
    Ok(())
}

/// Puts the host's iperf3 into a guest, with what it is linked with.
fn provide(engine: &Instance, name: &str) -> Result<(), Failure> {
    let program = run("sh", &["-c", "command -v iperf3"])?;
    let linked = run("ldd", &[&program])?;
    let libraries = linked
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    let _ = engine.sh(name, "mkdir /iperf3").ok();
    for path in libraries.chain([&*program]) {
        let file = Path::new(path).file_name().and_then(|name| name.to_str());
        let file = file.ok_or("a library without a name")?;
        let real = std::fs::canonicalize(path)?;
        let to = format!("{name}:/iperf3/{file}");
        let _ = engine
            .call(["cp".as_ref(), real.as_os_str(), to.as_ref()])
            .ok();
    }
    Ok(())
}

fn measure(engine: &Instance, name: &str, to: &str, kind: Kind) -> Result<f64, Failure> {
    let program = "/iperf3/ld-linux-x86-64.so.2 --library-path /iperf3 /iperf3/iperf3";
    let more = kind.words().join(" ");
    let script = format!("{program} --client {to} --time {SECONDS} --json {more}");
    kind.figure(&engine.sh(name, &script).ok())
}

/// Runs a command in a namespace.
fn within(namespace: &Path, line: &str) -> Result<String, Failure> {
    let net = format!("--net={}", namespace.display());
    let words: Vec<&str> = [&*net].into_iter().chain(line.split_whitespace()).collect();
    run("nsenter", &words)
}

/// A namespace in the place of a guest; it goes with this value.
struct Place(String);

impl Place {
    fn new(number: u32) -> Result<Self, Failure> {
        let name = format!("cowbench{}-{number}", std::process::id());
        run("ip", &["netns", "add", &name])?;
        Ok(Self(name))
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    /// Connects it with another one, where the cable's end is called `there`.
    fn connect(&self, other: &Path, there: &str, addresses: [&str; 2]) -> Result<(), Failure> {
        let [here, gateway] = addresses;
        let name = &self.0;
        within(
            other,
            &format!("ip link add {there} type veth peer name eth0 netns {name}"),
        )?;
        within(other, &format!("ip address add {gateway}/24 dev {there}"))?;
        within(other, &format!("ip link set {there} up"))?;
        let path = self.path();
        within(&path, &format!("ip address add {here}/24 dev eth0"))?;
        within(&path, "ip link set eth0 up")?;
        within(&path, &format!("ip route add default via {gateway}")).map(drop)
    }

    fn measure(&self, to: &str, kind: Kind) -> Result<f64, Failure> {
        let more = kind.words().join(" ");
        let line = format!("iperf3 --client {to} --time {SECONDS} --json {more}");
        kind.figure(&within(&self.path(), &line)?)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(failure) = run("ip", &["netns", "delete", &self.0]) {
            eprintln!("{failure}");
        }
    }
}

const SLOT: u32 = 1;

fn namespaces(site: &Path, rounds: usize) -> Result<(), Failure> {
    let room = Room::new()?;
    let spec = room.make(SLOT)?;
    let done = compare(&room, &spec, site, rounds);
    room.remove(SLOT)?;
    done
}

fn compare(room: &Room, spec: &NetnsSpec, site: &Path, rounds: usize) -> Result<(), Failure> {
    let (guest, cable) = (Place::new(1)?, Place::new(2)?);
    within(&spec.path, &format!("ip link delete {TAP}"))?;
    let [gateway, own] = [GATEWAY, GUEST].map(|address| address.to_string());
    guest.connect(&spec.path, TAP, [&own, &gateway])?;
    cable.connect(site, "bare", BARE)?;
    // The way back to a guest whose address nothing translates.
    let (link, sandbox) = (&spec.link, spec.sandbox);
    run(
        "ip",
        &[
            "route",
            "add",
            &own,
            "via",
            &sandbox.to_string(),
            "dev",
            link,
        ],
    )?;
    within(site, &format!("ip route add {own} via {HOST}"))?;
    let instance = room.site.ledger.instance();
    let host_rules = HostRules {
        instance,
        range: AddressRange::default(),
        published: Vec::new(),
    };
    let (rules, nothing) = (room.rules(SLOT)?, HostRules::none(instance));
    let no_rules = format!("table inet {TABLE}\ndelete table inet {TABLE}\n");
    let host = &room.site.host;
    let [mut ours, mut routed, mut bare]: [Figures; 3] = Default::default();
    for _ in 0..rounds {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            host.load_host_rules(&host_rules.to_string())?;
            host.reload_netns(spec, &rules)?;
            ours[index].value(guest.measure(&SITE.to_string(), kind)?);
            host.load_host_rules(&nothing)?;
            host.reload_netns(spec, &no_rules)?;
            routed[index].value(guest.measure(&SITE.to_string(), kind)?);
            bare[index].value(cable.measure(BARE[1], kind)?);
        }
    }
    print(
        "from namespaces in the place of guests",
        &[
            ("cowslip", &ours),
            ("the same way without any rules", &routed),
            ("a bare cable to the site", &bare),
        ],
    );
    println!("{rounds} rounds of {SECONDS} s, in turn");
    Ok(())
}
