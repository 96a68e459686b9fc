//! What a container image says about how it is run.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a template's image is run; the defaults of `run`. It comes from outside, and its import has checked it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ImageConfig {
    /// What it was made for, as `linux/amd64`; none: no image said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Variables of its processes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The program and its first arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program where there is no entrypoint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Working directory, absolute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// `USER` or `USER:GROUP`, each a name or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Ports that its programs listen on, as `80/tcp`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed_ports: BTreeSet<String>,
    /// Whatever its maker wrote.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The signal that ends its main process, as `SIGTERM` or `15`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
}

impl ImageConfig {
    /// The command line of a main process: what is asked for, and the image's words for the rest.
    ///
    /// Arguments take the place of the image's, behind its entrypoint; another entrypoint takes the place of
    /// both.
    #[must_use]
    pub fn command(&self, entrypoint: Option<Vec<String>>, arguments: Vec<String>) -> Vec<String> {
        let (mut words, of_image) = match entrypoint {
            Some(entrypoint) => (entrypoint, Vec::new()),
            None => (self.entrypoint.clone(), self.cmd.clone()),
        };
        words.extend(match arguments.is_empty() {
            true => of_image,
            false => arguments,
        });
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_takes_the_place_of_what_the_image_says() {
        let words = |text: &str| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let config = |entrypoint, cmd| ImageConfig {
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            ..ImageConfig::default()
        };
        for (entrypoint, cmd, given, arguments, expected) in [
            ("", "", None, "", ""),
            ("", "bash", None, "", "bash"),
            ("", "bash", None, "ls -l", "ls -l"),
            ("git", "--help", None, "", "git --help"),
            ("git", "--help", None, "log", "git log"),
            ("git", "--help", Some("sh"), "", "sh"),
            ("git", "--help", Some("sh"), "-c true", "sh -c true"),
            ("git", "--help", Some(""), "", ""),
            ("git", "--help", Some(""), "true", "true"),
        ] {
            assert_eq!(
                config(entrypoint, cmd).command(given.map(words), words(arguments)),
                words(expected),
                "{entrypoint} {cmd} with {given:?} {arguments}"
            );
        }
    }
}
