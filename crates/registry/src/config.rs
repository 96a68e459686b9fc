//! What can be configured about registries.

use std::collections::BTreeMap;
use std::num::{NonZeroU8, NonZeroU64};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::host::Host;

/// How images are pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// For a registry, others to ask first, in order. They are believed about what a tag means, and get no
    /// credentials.
    pub mirrors: BTreeMap<Host, Vec<Host>>,
    /// Registries that speak HTTP without TLS. Those on this machine do so anyway.
    pub plain_http: Vec<Host>,
    /// Registries on this machine that do speak TLS.
    pub https: Vec<Host>,
    /// Files of certificates, in PEM, that are trusted beside the system's.
    pub ca_certificates: Vec<PathBuf>,
    /// Layers of one image that are downloaded at once.
    pub parallel_downloads: NonZeroU8,
    /// What the cache may keep, in bytes; an image that is larger is not pulled.
    pub cache_limit: u64,
    /// Seconds without a byte after which a connection counts as broken.
    pub read_timeout: NonZeroU64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mirrors: BTreeMap::new(),
            plain_http: Vec::new(),
            https: Vec::new(),
            ca_certificates: Vec::new(),
            parallel_downloads: const { NonZeroU8::new(4).unwrap() },
            cache_limit: 10 << 30,
            read_timeout: const { NonZeroU64::new(30).unwrap() },
        }
    }
}

impl Config {
    /// The scheme by which a registry is spoken to.
    pub(crate) fn scheme(&self, host: &Host) -> &'static str {
        let plain = host.is_loopback() && !self.https.contains(host);
        match plain || self.plain_http.contains(host) {
            true => "http",
            false => "https",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_what_is_named_is_plain() {
        let config: Config = toml::from_str(
            "plain_http = [\"registry.lan:5000\"]\nhttps = [\"localhost:5443\"]\n\
             [mirrors]\n\"docker.io\" = [\"mirror.lan\", \"127.0.0.1:5000\"]\n",
        )
        .unwrap();
        let scheme = |host: &str| config.scheme(&host.parse().unwrap());
        assert_eq!(scheme("registry.lan:5000"), "http");
        assert_eq!(scheme("registry.lan"), "https");
        assert_eq!(scheme("localhost:5000"), "http");
        assert_eq!(scheme("localhost:5443"), "https");
        assert_eq!(scheme("[::1]:5000"), "http");
        assert_eq!(scheme("docker.io"), "https");
        assert_eq!(config.mirrors[&Host::docker_hub()].len(), 2);
        assert_eq!(config.parallel_downloads.get(), 4);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            "mirror = []",
            "parallel_downloads = 0",
            "read_timeout = 0",
            "plain_http = [\"http://registry.lan\"]",
            "[mirrors]\n\"docker.io\" = [\"mirror.lan/path\"]",
        ] {
            assert!(toml::from_str::<Config>(bad).is_err(), "{bad}");
        }
    }
}
