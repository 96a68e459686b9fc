//! The HTTP clients: what they trust, how long they wait, and through what they go.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Certificate, Method, RequestBuilder, Url, redirect};

use crate::config::Config;
use crate::host::Host;

/// Both are kept for the connections that they have.
pub(crate) struct Client {
    config: Config,
    /// To this machine, where no proxy could find the registry.
    direct: reqwest::Client,
    /// Elsewhere, through the proxies that the environment names.
    proxied: reqwest::Client,
}

/// Why nothing can be pulled at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A file of certificates cannot be read.
    #[error("cannot read the certificates in \"{}\", which registries.ca_certificates names", path.display())]
    ReadCertificates {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A file has no certificates.
    #[error("\"{}\", which registries.ca_certificates names, has no certificate in PEM", path.display())]
    NoCertificates {
        /// The file.
        path: PathBuf,
    },
    /// TLS cannot be used.
    #[error("cannot set up TLS; install the package ca-certificates")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Client {
    pub(crate) fn new(config: Config) -> Result<Self, ClientError> {
        // Another part of the program may have chosen one before; any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut trusted = Vec::new();
        for path in &config.ca_certificates {
            let pem = std::fs::read(path).map_err(|source| ClientError::ReadCertificates {
                path: path.clone(),
                source,
            })?;
            let found = Certificate::from_pem_bundle(&pem).unwrap_or_default();
            if found.is_empty() {
                return Err(ClientError::NoCertificates { path: path.clone() });
            }
            trusted.extend(found);
        }
        let build = |proxied: bool| {
            let wait = Duration::from_secs(config.read_timeout.get());
            let mut builder = reqwest::Client::builder()
                .user_agent(concat!("cowslip/", env!("CARGO_PKG_VERSION")))
                // They are followed by hand, so that what goes where is seen in one place.
                .redirect(redirect::Policy::none())
                // So are failures: of what was half sent nothing is to be sent again unseen.
                .retry(reqwest::retry::never())
                .connect_timeout(wait)
                .read_timeout(wait);
            if !trusted.is_empty() {
                builder = builder.tls_certs_merge(trusted.clone());
            }
            if !proxied {
                builder = builder.no_proxy();
            }
            builder
                .build()
                .map_err(|error| ClientError::Tls(error.into()))
        };
        let (direct, proxied) = (build(false)?, build(true)?);
        Ok(Self {
            config,
            direct,
            proxied,
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let host = url.host_str().and_then(|host| host.parse::<Host>().ok());
        match host.is_some_and(|host| host.is_loopback()) {
            true => self.direct.request(method, url),
            false => self.proxied.request(method, url),
        }
    }
}
