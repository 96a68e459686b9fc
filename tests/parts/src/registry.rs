//! A registry on this machine: Debian's docker-registry, and skopeo to push to it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::missing;

/// `user` with the password `right`.
const USERS: &str = "user:$2b$05$abcdefghijklmnopqrstuu8xaCxxL82bnl.UY74PMksDxIJShppPC\n";

/// A registry on loopback; it ends when it is dropped.
pub struct Registry {
    child: Child,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

/// What it is like.
#[derive(Clone, Copy)]
enum Kind<'a> {
    Open,
    WithUsers,
    WithTls { certificate: &'a str, key: &'a str },
}

impl Registry {
    /// One for anybody; none, which is said, where the programs are not installed.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn open() -> Option<Self> {
        Self::start(Kind::Open)
    }

    /// One for a user with the name "user" and the password "right"; as [`Self::open`] otherwise.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn with_users() -> Option<Self> {
        Self::start(Kind::WithUsers)
    }

    /// One that speaks TLS; as [`Self::open`] otherwise.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn with_tls(certificate: &str, key: &str) -> Option<Self> {
        Self::start(Kind::WithTls { certificate, key })
    }

    fn start(kind: Kind<'_>) -> Option<Self> {
        if missing("docker-registry", false) || missing("skopeo", false) {
            return None;
        }
        // Between the choice of a port and its use somebody else may take it.
        let started = (0..10).find_map(|_| Self::try_start(kind));
        Some(started.expect("no port is free"))
    }

    fn try_start(kind: Kind<'_>) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let mut config = format!(
            "version: 0.1\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\n\
             http:\n  addr: {address}\n  secret: test\n",
            path("storage")
        );
        match kind {
            Kind::Open => {}
            Kind::WithUsers => {
                let users = path("users");
                fs::write(&users, USERS).unwrap();
                config += &format!("auth: {{ htpasswd: {{ realm: test, path: {users} }} }}\n");
            }
            Kind::WithTls { certificate, key } => {
                let [certificate_at, key_at] = ["certificate", "key"].map(path);
                fs::write(&certificate_at, certificate).unwrap();
                fs::write(&key_at, key).unwrap();
                config += &format!("  tls: {{ certificate: {certificate_at}, key: {key_at} }}\n");
            }
        }
        let config_at = path("config.yml");
        fs::write(&config_at, config).unwrap();
        let mut child = Command::new("docker-registry")
            .args(["serve", &config_at])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let listens = log.any(|line| line.unwrap().contains("listening on"));
        // Nobody else reads it, and it must not wait for that.
        std::thread::spawn(move || log.for_each(drop));
        if !listens {
            child.wait().unwrap();
            return None;
        }
        Some(Self {
            child,
            address,
            directory,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts an image of an OCI image layout there, for all platforms that it has: as `REPOSITORY:TAG`.
    ///
    /// # Panics
    /// When that fails.
    pub fn push(&self, layout: &Path, tag: &str, name: &str) {
        let from = format!("oci:{}:{tag}", layout.display());
        let to = format!("docker://{}/{name}", self.address);
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--all"]);
        command.arg("--dest-tls-verify=false");
        if self.directory.path().join("users").exists() {
            command.args(["--dest-creds", "user:right"]);
        }
        let output = command.args([from, to]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "skopeo: {said}");
    }

    /// Writes a file as `docker login` does, with the name and password in base64.
    ///
    /// # Panics
    /// When that fails.
    pub fn write_login(&self, path: &Path, auth: &str) {
        let registry = self.address.to_string();
        let text = serde_json::json!({ "auths": { registry: { "auth": auth } } });
        fs::write(path, text.to_string()).unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
