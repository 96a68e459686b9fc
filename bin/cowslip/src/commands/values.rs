//! Values of options that several verbs take.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use cowslip_model::api::{CreateRequest, NetworkRequest, NetworkRules, PullPolicy};
use cowslip_model::size::MIB;
use cowslip_model::{
    ByteSize, CpuTemplate, Isolation, Lifetime, MonitorKind, Name, NetworkLimits, NetworkMode,
    NetworkRule, OnExpiry, PublishedPort,
};

use crate::exit::Failure;

/// A name for the object to be made.
pub(crate) fn name(text: &str) -> Result<Name, String> {
    text.parse()
        .map_err(|error: cowslip_model::NameError| error.to_string())
}

/// A program and its first arguments.
#[derive(Debug, Clone)]
pub(crate) struct Entrypoint(pub(crate) Vec<String>);

/// One word, or a JSON list of words; nothing for none.
pub(crate) fn entrypoint(text: &str) -> Result<Entrypoint, String> {
    match text {
        "" => Ok(Entrypoint(Vec::new())),
        _ if text.starts_with('[') => serde_json::from_str(text)
            .map(Entrypoint)
            .map_err(|error| format!("it is no JSON list of words: {error}")),
        word => Ok(Entrypoint(vec![word.to_owned()])),
    }
}

/// When a registry is asked.
pub(crate) fn pull(text: &str) -> Result<PullPolicy, String> {
    match text {
        "missing" => Ok(PullPolicy::Missing),
        "always" => Ok(PullPolicy::Always),
        "never" => Ok(PullPolicy::Never),
        _ => Err("give missing, always or never".to_owned()),
    }
}

/// A size of memory or disk, at least one mebibyte.
pub(crate) fn size(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text
        .parse()
        .map_err(|error: cowslip_model::SizeError| error.to_string())?;
    if size.bytes() < MIB {
        return Err(format!(
            "{size} is too little: give at least 1 MiB (a bare number is bytes)"
        ));
    }
    Ok(size)
}

/// A name of a CPU template, or the path of a file with a custom one.
pub(crate) fn cpu_template(text: &str) -> Result<CpuTemplate, String> {
    if !text.contains('/') {
        return match text.parse() {
            Ok(named) => Ok(CpuTemplate::Named(named)),
            Err(error) => Err(format!("{error}")),
        };
    }
    let read = std::fs::read_to_string(text);
    let content = read.map_err(|error| format!("read \"{text}\": {error}"))?;
    CpuTemplate::parse_custom(&content).map_err(|error| format!("\"{text}\": {error}"))
}

/// A time span.
pub(crate) fn lifetime(text: &str) -> Result<Lifetime, String> {
    text.parse()
        .map_err(|error: cowslip_model::time::LifetimeError| error.to_string())
}

/// Environment variables.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Env {
    /// Set an environment variable; a NAME alone takes its value from here
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Set environment variables from a file of NAME[=VALUE] lines
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
}

impl Env {
    /// All of it; what stands later wins, and options win over files.
    pub(crate) fn collect(&self) -> Result<BTreeMap<String, String>, Failure> {
        let outside = |name: &str| std::env::var(name).ok();
        let mut all = BTreeMap::new();
        for path in &self.env_file {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Failure::io(
                    format!("read the environment file \"{}\"", path.display()),
                    &error,
                )
            })?;
            add_file(&mut all, &text, path, &outside)?;
        }
        for setting in &self.env {
            add(&mut all, setting, &outside).map_err(Failure::usage)?;
        }
        Ok(all)
    }
}

fn add_file(
    all: &mut BTreeMap<String, String>,
    text: &str,
    path: &Path,
    outside: &impl Fn(&str) -> Option<String>,
) -> Result<(), Failure> {
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        add(all, line, outside).map_err(|reason| {
            Failure::usage(format!(
                "\"{}\", line {}: {reason}",
                path.display(),
                number + 1
            ))
        })?;
    }
    Ok(())
}

fn add(
    all: &mut BTreeMap<String, String>,
    setting: &str,
    outside: &impl Fn(&str) -> Option<String>,
) -> Result<(), String> {
    let (name, value) = match setting.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (setting, outside(setting)),
    };
    if name.is_empty() || name.contains(['\0', ' ', '\t']) {
        return Err(format!(
            "{setting:?} sets no environment variable: write NAME=VALUE"
        ));
    }
    if let Some(value) = value {
        all.insert(name.to_owned(), value);
    }
    Ok(())
}

/// What a new sandbox is like, except its environment.
#[derive(Debug, Clone, Args)]
pub(crate) struct Shape {
    /// Its name; none: one is made up
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) name: Option<Name>,
    /// Virtual processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cpus: Option<u32>,
    /// Guest memory, as 512m or 2g
    #[arg(short, long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory: Option<ByteSize>,
    /// Size of its disk; none: the template's
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) disk: Option<ByteSize>,
    /// End it after this time, as 90s or 1h30m
    #[arg(long, value_name = "SPAN", value_parser = lifetime)]
    pub(crate) ttl: Option<Lifetime>,
    /// How it is ended then: remove, stop, or pause; none: remove. With the latter two the time begins anew with
    /// every start and resume
    #[arg(long, value_name = "HOW")]
    pub(crate) on_expiry: Option<OnExpiry>,
    /// Name or id of its kernel; none: the default one
    #[arg(long, value_name = "KERNEL")]
    pub(crate) kernel: Option<String>,
    /// What runs it: qemu or firecracker; none: as the engine's configuration says, which by default is Firecracker
    /// where it can run
    #[arg(long, value_name = "MONITOR")]
    pub(crate) vmm: Option<MonitorKind>,
    /// How Firecracker is kept apart from the host: jail or direct; none: as the configuration says
    #[arg(long, value_name = "HOW")]
    pub(crate) isolation: Option<Isolation>,
    /// What of its processor the guest is shown, in Firecracker: C3, T2, T2S, T2CL, T2A, or the path (with a /)
    /// of a file with a custom template
    #[arg(long, value_name = "TEMPLATE", value_parser = cpu_template)]
    pub(crate) cpu_template: Option<CpuTemplate>,
    /// Bytes of its disk that it may read and write in a second, as 50m
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) disk_bandwidth: Option<ByteSize>,
    /// Requests that it may make of its disk in a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) disk_iops: Option<u64>,
    #[command(flatten)]
    pub(crate) network: Connection,
}

/// What options of networks stand below in the help.
const NETWORK: &str = "Network";

/// How a new sandbox is connected.
#[derive(Debug, Clone, Args)]
pub(crate) struct Connection {
    /// nat: the internet and nothing else; user: what this user's programs reach, through QEMU; none; without a word
    /// as the engine's configuration says
    #[arg(long = "network", value_name = "MODE", help_heading = NETWORK)]
    mode: Option<NetworkMode>,
    #[command(flatten)]
    rules: Rules,
    /// Bytes that it may send, and as many that it may receive, in a second, as 10m
    #[arg(long, value_name = "SIZE", help_heading = NETWORK)]
    network_bandwidth: Option<ByteSize>,
    /// Packets that it may send, and as many that it may receive, in a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = NETWORK)]
    network_packets: Option<u64>,
}

impl Connection {
    fn request(self) -> NetworkRequest {
        NetworkRequest {
            mode: self.mode,
            allow: self.rules.allow,
            deny: self.rules.deny,
            publish: self.rules.publish,
            limits: NetworkLimits {
                bandwidth: self.network_bandwidth,
                packets: self.network_packets,
            },
        }
    }
}

/// What a sandbox may reach, and who may reach it.
#[derive(Debug, Clone, Args)]
pub(crate) struct Rules {
    /// Let it reach this, and nothing else: CIDR, ADDRESS, NAME or *.NAME, each with or without :PORT
    #[arg(long, value_name = "TO", help_heading = NETWORK)]
    allow: Vec<NetworkRule>,
    /// Do not let it reach this, whatever is allowed; in the same words
    #[arg(long, value_name = "TO", help_heading = NETWORK)]
    deny: Vec<NetworkRule>,
    /// Let a port of this host lead to one of the guest: [ADDRESS:]PORT:PORT[/udp], the host's first
    #[arg(short, long, value_name = "PORTS", help_heading = NETWORK)]
    publish: Vec<PublishedPort>,
}

impl Rules {
    pub(crate) fn request(self) -> NetworkRules {
        NetworkRules {
            allow: self.allow,
            deny: self.deny,
            publish: self.publish,
        }
    }

    /// Whether none was given.
    pub(crate) fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty() && self.publish.is_empty()
    }
}

impl Shape {
    /// The request for such a sandbox.
    pub(crate) fn request(
        self,
        template: String,
        env: BTreeMap<String, String>,
        workdir: Option<String>,
        user: Option<String>,
    ) -> CreateRequest {
        let Self {
            name,
            cpus,
            memory,
            disk,
            ttl,
            on_expiry,
            kernel,
            vmm,
            isolation,
            cpu_template,
            disk_bandwidth,
            disk_iops,
            network,
        } = self;
        CreateRequest {
            template,
            name,
            kernel,
            cpus,
            memory,
            disk,
            env,
            workdir,
            user,
            ttl,
            on_expiry,
            vmm,
            isolation,
            cpu_template,
            disk_bandwidth,
            disk_iops,
            network: network.request(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_is_read_as_docker_reads_it() {
        let outside = |name: &str| (name == "HOME").then(|| "/home/u".to_owned());
        let mut all = BTreeMap::new();
        let file = "# comment\n\nA=1\n  B = x\nHOME\nUNSET\nC=with = sign\n";
        let error = add_file(&mut all, file, Path::new("f"), &outside).unwrap_err();
        assert!(error.to_string().contains("\"f\", line 4"), "{error}");

        let mut all = BTreeMap::new();
        let file = "# comment\nA=1\nHOME\nUNSET\nC=with = sign\nA=2\nE=\n";
        add_file(&mut all, file, Path::new("f"), &outside).unwrap();
        let expected = [
            ("A", "2"),
            ("C", "with = sign"),
            ("E", ""),
            ("HOME", "/home/u"),
        ];
        assert!(
            all.iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .eq(expected),
            "{all:?}"
        );
        assert!(add(&mut all, "=x", &outside).is_err());
    }
}
