//! What an image says about how it is run, validated: it goes into a template's manifest.

mod written;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::documents::parse;
use super::{BlobDigest, ImageError, Platform};

/// A list of the config has no more items than this.
const MAX_ITEMS: usize = 4096;
/// No variable or argument is longer, in bytes: the kernel's `MAX_ARG_STRLEN`, less the NUL.
const MAX_ARGUMENT: usize = (128 << 10) - 1;
/// No other name or path is longer, in bytes.
const MAX_NAME: usize = 4095;
/// All of the config's text together is no longer, in bytes.
const MAX_TEXT: usize = 1 << 20;

/// What an image says about how it is run. Everything here is from outside, but was checked: no NUL,
/// bounded lengths and counts, and a shape that can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// What it is made for.
    pub platform: Platform,
    /// Variables, as `NAME=value`, in the image's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program where there is no entrypoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// An absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// `USER` or `USER:GROUP`, each a name or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Ports that the image's programs listen on, as `80/tcp`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed_ports: BTreeSet<String>,
    /// Whatever its maker wrote.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// A signal's name or number, as `SIGTERM` or `15`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
}

/// The document, as it is read.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    variant: Option<String>,
    config: Option<Execution>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Option<Vec<BlobDigest>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Execution {
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    env: Option<Vec<String>>,
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
}

/// A list, or the one word that old programs wrote for a list of one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Many(Vec<String>),
    One(String),
}

impl Words {
    fn list(words: Option<Self>) -> Vec<String> {
        match words {
            None => Vec::new(),
            Some(Self::Many(words)) => words,
            Some(Self::One(word)) => vec![word],
        }
    }
}

impl ImageConfig {
    /// A config that says nothing but what the image is made for.
    #[must_use]
    pub fn new(platform: Platform) -> Self {
        Self {
            platform,
            env: Vec::new(),
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            working_dir: None,
            user: None,
            exposed_ports: BTreeSet::new(),
            labels: BTreeMap::new(),
            stop_signal: None,
        }
    }

    /// Reads the document; also gives the digests of the layers' contents, the lowest first.
    pub(super) fn read(bytes: &[u8], name: &str) -> Result<(Self, Vec<BlobDigest>), ImageError> {
        let document: Document = parse(bytes, name)?;
        if document.rootfs.kind != "layers" {
            return Err(ImageError::document(
                name,
                "its rootfs is not made of layers",
            ));
        }
        let run = document.config.unwrap_or_default();
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let ports = run.exposed_ports.unwrap_or_default().into_keys();
        let config = Self {
            platform: Platform::new(
                &document.os,
                &document.architecture,
                document.variant.as_deref(),
            ),
            env: run.env.unwrap_or_default(),
            entrypoint: Words::list(run.entrypoint),
            cmd: Words::list(run.cmd),
            working_dir: given(run.working_dir),
            user: given(run.user),
            exposed_ports: ports.map(with_protocol).collect(),
            labels: run.labels.unwrap_or_default(),
            stop_signal: given(run.stop_signal),
        };
        config.check()?;
        Ok((config, document.rootfs.diff_ids.unwrap_or_default()))
    }

    /// Checks every value: of what an image says, and of what a manifest says again.
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        let platform = self.platform.to_string();
        if platform.parse() != Ok(self.platform.clone()) {
            return unusable("platform", "it is not OS/ARCHITECTURE", &platform);
        }
        self.check_sizes()?;
        for variable in &self.env {
            match variable.split_once('=') {
                Some((name, _)) if !name.is_empty() => {}
                _ => return unusable("env", "a variable is not NAME=value", variable),
            }
        }
        if let Some(path) = &self.working_dir
            && !path.starts_with('/')
        {
            return unusable("working directory", "it is not absolute", path);
        }
        if let Some(user) = &self.user {
            let (name, group) = user.split_once(':').unwrap_or((user, "0"));
            let plain = |part: &str| {
                let odd = |c: char| c.is_control() || c.is_whitespace() || c == ':';
                !part.is_empty() && !part.contains(odd)
            };
            if !plain(name) || !plain(group) || user.len() > 256 {
                return unusable("user", "it is not USER or USER:GROUP", user);
            }
        }
        for port in &self.exposed_ports {
            let number = port.split_once('/').and_then(|(number, protocol)| {
                matches!(protocol, "tcp" | "udp" | "sctp").then_some(number)
            });
            if !number.is_some_and(is_port) {
                return unusable("exposed port", "it is not PORT/PROTOCOL", port);
            }
        }
        if let Some(signal) = &self.stop_signal {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-');
            if signal.len() > 16 || !signal.chars().all(plain) {
                return unusable("stop signal", "it is no name or number of a signal", signal);
            }
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), ImageError> {
        let one = |text: &Option<String>| text.iter().cloned().collect::<Vec<_>>();
        let (paths, users, signals) = (
            one(&self.working_dir),
            one(&self.user),
            one(&self.stop_signal),
        );
        let lists: [(&'static str, usize, Vec<&String>); 9] = [
            ("env", MAX_ARGUMENT, self.env.iter().collect()),
            ("entrypoint", MAX_ARGUMENT, self.entrypoint.iter().collect()),
            ("cmd", MAX_ARGUMENT, self.cmd.iter().collect()),
            ("label", MAX_NAME, self.labels.keys().collect()),
            ("label", MAX_TEXT, self.labels.values().collect()),
            ("exposed port", 16, self.exposed_ports.iter().collect()),
            ("working directory", MAX_NAME, paths.iter().collect()),
            ("user", MAX_NAME, users.iter().collect()),
            ("stop signal", MAX_NAME, signals.iter().collect()),
        ];
        let mut text = 0;
        for (field, most, list) in lists {
            if list.len() > MAX_ITEMS {
                let why = format!("there are more than {MAX_ITEMS}");
                return Err(ImageError::Config { field, why });
            }
            for value in list {
                text += value.len();
                if value.len() > most {
                    return unusable(field, &format!("it is longer than {most} bytes"), value);
                }
                if value.contains('\0') {
                    return unusable(field, "it contains NUL", value);
                }
            }
        }
        if text > MAX_TEXT {
            let why = format!("all values together are longer than {MAX_TEXT} bytes");
            return Err(ImageError::Config { field: "size", why });
        }
        Ok(())
    }
}

fn is_port(number: &str) -> bool {
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    digits && number.parse::<u16>().is_ok_and(|port| port > 0)
}

/// A port without a protocol is TCP's.
fn with_protocol(port: String) -> String {
    match port.contains('/') {
        true => port.to_ascii_lowercase(),
        false => port + "/tcp",
    }
}

fn unusable(field: &'static str, why: &str, value: &str) -> Result<(), ImageError> {
    // Enough to be found.
    let start: String = value.chars().take(40).collect();
    let why = format!("{why}: \"{}\"", start.escape_debug());
    Err(ImageError::Config { field, why })
}

#[cfg(test)]
mod tests;
