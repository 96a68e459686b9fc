//! A registry on this machine: Debian's docker-registry, and skopeo to push to it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::{ContainerImage, missing};

/// `user` with the password `right`.
const USERS: &str = "user:$2b$05$abcdefghijklmnopqrstuu8xaCxxL82bnl.UY74PMksDxIJShppPC\n";

/// A registry; it ends when it is dropped.
pub struct Registry {
    child: Child,
    address: SocketAddr,
    directory: tempfile::TempDir,
    with_users: bool,
}

impl Registry {
    /// Starts one, for anybody or for one user; none, which is said, where the programs are not installed.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(with_users: bool) -> Option<Self> {
        if ["docker-registry", "skopeo"]
            .iter()
            .any(|program| missing(program, false))
        {
            return None;
        }
        // Between the choice of a port and its use somebody else may take it.
        let started = (0..10).find_map(|_| Self::try_start(with_users));
        Some(started.expect("no port is free"))
    }

    fn try_start(with_users: bool) -> Option<Self> {
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
        if with_users {
            fs::write(directory.path().join("users"), USERS).unwrap();
            let users = path("users");
            config += &format!("auth: {{ htpasswd: {{ realm: test, path: {users} }} }}\n");
        }
        fs::write(directory.path().join("config.yml"), config).unwrap();
        let mut child = Command::new("docker-registry")
            .args(["serve", &path("config.yml")])
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
            with_users,
        })
    }

    /// `HOST:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Puts an image there: as `REPOSITORY:TAG`.
    ///
    /// # Panics
    /// When that fails.
    pub fn push(&self, image: &ContainerImage, name: &str) {
        let layout = self.directory.path().join("layout");
        image.write_layout(&layout, "pushed");
        let from = format!("oci:{}:pushed", layout.display());
        let to = format!("docker://{}/{name}", self.address);
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--dest-tls-verify=false"]);
        if self.with_users {
            command.args(["--dest-creds", "user:right"]);
        }
        let output = command.args([from, to]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "skopeo: {said}");
        fs::remove_dir_all(&layout).unwrap();
    }

    /// Writes a file as `docker login` does, with this password.
    ///
    /// # Panics
    /// When that fails.
    pub fn write_login(&self, path: &Path, auth: &str) {
        let text = serde_json::json!({ "auths": { self.address(): { "auth": auth } } });
        fs::write(path, text.to_string()).unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
