//! Firecracker by hand: its process, the requests that a monitor of the engine was given, and the agent in the
//! guest, on a block device that is ready. Nothing is recorded, nobody could clean up, and there is no jail.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cowslip_proto::AgentClient;
use cowslip_proto::client::{Configure, ExecEvent, ExecStart, Restore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::lab::{COMMAND, Lab};
use crate::{Failure, http};

/// The agent's port.
const PORT: u32 = 10_320;
/// The longest anything may take.
const BOUND: Duration = Duration::from_secs(120);
/// Between two looks at what gives no sign.
const AGAIN: Duration = Duration::from_millis(1);

/// What a monitor of the engine was told.
#[derive(Debug)]
pub(crate) struct Model {
    configuration: Value,
    program: PathBuf,
}

impl Model {
    /// Reads it off the monitor of a running sandbox, in direct mode.
    pub(crate) async fn of(lab: &Lab, sandbox: &str) -> Result<Self, Failure> {
        let id = lab.sandbox(sandbox).id;
        let socket = lab.instance().run_dir().join(format!("vm/{id}/self/api"));
        Ok(Self {
            configuration: http::request(&socket, "GET", "/vm/config", None).await?,
            program: std::env::var_os("COWSLIP_FIRECRACKER")
                .map(PathBuf::from)
                .ok_or("COWSLIP_FIRECRACKER names no program")?,
        })
    }

    fn part(&self, name: &str) -> Value {
        let mut part = self.configuration[name].clone();
        if let Some(object) = part.as_object_mut() {
            object.retain(|_, value| !value.is_null());
        }
        part
    }

    /// Boots a machine on `disk` and runs the command in it.
    pub(crate) async fn boot(&self, directory: &Path, disk: &Path) -> Result<Bare, Failure> {
        let mut clock = Clock::start();
        let mut bare = Bare::start(&self.program, directory, disk).await?;
        clock.end("its process");
        let mut drive = self.part("drives")[0].clone();
        drive["path_on_host"] = json!(bare.at("rootfs"));
        if let Some(object) = drive.as_object_mut() {
            object.retain(|_, value| !value.is_null());
        }
        let mut vsock = self.part("vsock");
        vsock["uds_path"] = json!(bare.at("vsock"));
        for (path, body) in [
            ("/machine-config", self.part("machine-config")),
            ("/boot-source", self.part("boot-source")),
            ("/drives/root", drive),
            ("/vsock", vsock),
            ("/entropy", json!({})),
            ("/balloon", self.part("balloon")),
            ("/actions", json!({ "action_type": "InstanceStart" })),
        ] {
            bare.ask("PUT", path, &body).await?;
        }
        clock.end("requests");
        let agent = bare.connect().await?;
        let with = Configure {
            generation: 1,
            entropy: vec![1; 64],
            hostname: Some("bare".to_owned()),
            machine_id: Some("0".repeat(32)),
            env: Vec::new(),
            grow_root: true,
            network: None,
        };
        agent.configure(with).await?;
        clock.end("guest");
        exec(&agent).await?;
        clock.end("command");
        bare.parts = clock.parts;
        bare.agent = Some(agent);
        Ok(bare)
    }

    /// Makes a machine of a snapshot, on another disk, and runs the command in it.
    pub(crate) async fn restore(
        &self,
        directory: &Path,
        disk: &Path,
        from: &Path,
    ) -> Result<Bare, Failure> {
        let mut bare = Bare::start(&self.program, directory, disk).await?;
        let load = json!({
            "snapshot_path": from.join("state"),
            "mem_backend": { "backend_type": "File", "backend_path": from.join("memory") },
            "resume_vm": true,
            "track_dirty_pages": self.configuration["machine-config"]["track_dirty_pages"],
        });
        bare.ask("PUT", "/snapshot/load", &load).await?;
        let agent = bare.connect().await?;
        let with = Restore {
            generation: 2,
            entropy: vec![2; 64],
            hostname: Some("child".to_owned()),
            machine_id: Some("1".repeat(32)),
            reset_connections: false,
        };
        agent.restored(with).await?;
        exec(&agent).await?;
        bare.agent = Some(agent);
        Ok(bare)
    }
}

/// One Firecracker, ended when it is dropped. Snapshots know its paths: one at a time in a directory.
pub(crate) struct Bare {
    child: Child,
    directory: PathBuf,
    api: PathBuf,
    agent: Option<AgentClient>,
    /// How long its parts took, in order.
    pub(crate) parts: Vec<(&'static str, Duration)>,
}

impl Drop for Bare {
    fn drop(&mut self) {
        // Ended by itself: nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bare {
    async fn start(program: &Path, directory: &Path, disk: &Path) -> Result<Self, Failure> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // A parent goes on listening while its child is made.
        let api = directory.join(format!("api-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        for name in ["vsock", "rootfs"] {
            match std::fs::remove_file(directory.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        std::os::unix::fs::symlink(disk, directory.join("rootfs"))?;
        let mut command = Command::new(program);
        command.args(["--id", "bare", "--api-sock"]).arg(&api);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let bare = Self {
            child: command.spawn()?,
            directory: directory.to_owned(),
            api,
            agent: None,
            parts: Vec::new(),
        };
        let listens = async {
            while UnixStream::connect(&bare.api).await.is_err() {
                tokio::time::sleep(AGAIN).await;
            }
        };
        tokio::time::timeout(BOUND, listens).await?;
        Ok(bare)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, Failure> {
        http::request(&self.api, method, path, Some(body)).await
    }

    /// Saves the machine to `to` and lets it go on.
    pub(crate) async fn save(&self, to: &Path) -> Result<(), Failure> {
        self.ask("PATCH", "/vm", &json!({ "state": "Paused" }))
            .await?;
        let create = json!({
            "snapshot_type": "Full",
            "snapshot_path": to.join("state"),
            "mem_file_path": to.join("memory"),
        });
        self.ask("PUT", "/snapshot/create", &create).await?;
        self.ask("PATCH", "/vm", &json!({ "state": "Resumed" }))
            .await?;
        Ok(())
    }

    async fn connect(&self) -> Result<AgentClient, Failure> {
        let connect = async {
            loop {
                if let Some(stream) = self.attempt().await {
                    return AgentClient::connect_stream(stream, BOUND).await;
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        Ok(tokio::time::timeout(BOUND, connect).await??.0)
    }

    /// A connection, if somebody listens in the guest.
    async fn attempt(&self) -> Option<UnixStream> {
        let mut stream = UnixStream::connect(self.at("vsock")).await.ok()?;
        let request = format!("CONNECT {PORT}\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        while stream.read_u8().await.ok()? != b'\n' {}
        Some(stream)
    }
}

async fn exec(agent: &AgentClient) -> Result<(), Failure> {
    let session = agent.exec(ExecStart::new(COMMAND)).await?;
    let mut events = session.events;
    loop {
        match events.next().await? {
            Some(ExecEvent::Exited(_)) => return Ok(()),
            Some(_) => {}
            None => return Err("the command has no end".into()),
        }
    }
}

/// Measures one part after the other.
struct Clock {
    since: Instant,
    parts: Vec<(&'static str, Duration)>,
}

impl Clock {
    fn start() -> Self {
        Self {
            since: Instant::now(),
            parts: Vec::new(),
        }
    }

    fn end(&mut self, name: &'static str) {
        self.parts.push((name, self.since.elapsed()));
        self.since = Instant::now();
    }
}

/// A block device over a file, gone with the value.
pub(crate) struct Loop(pub(crate) PathBuf);

impl Loop {
    pub(crate) fn over(file: &Path) -> Result<Self, Failure> {
        let output = Command::new("losetup")
            .args(["-f", "--show"])
            .arg(file)
            .output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(Self(String::from_utf8(output.stdout)?.trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // One that stays is seen when the machine ends.
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}
