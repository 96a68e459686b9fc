//! An engine that answers as a test says, on the socket where the command looks for one.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use axum::Router;
use axum::http::HeaderValue;
use axum::middleware::map_response;
use cowslip_model::api::{Checkpoint, ErrorBody, ErrorCode, Kernel, Sandbox, Template};
use cowslip_model::{CheckpointId, KernelId, SandboxId, TemplateId, Timestamp};
use serde_json::{Value, from_value, json};

/// The command.
pub(crate) fn cowslip(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cowslip"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("COWSLIP_STATE_DIR", state)
        .stdin(Stdio::null());
    command
}

/// A fake engine and its state directory.
pub(crate) struct Fake {
    dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

/// What a command printed, and its exit code.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Printed {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Printed {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Fake {
    pub(crate) fn new(router: Router) -> Self {
        Self::of_version(router, env!("CARGO_PKG_VERSION"))
    }

    pub(crate) fn of_version(router: Router, version: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        std::fs::create_dir(&run).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = {
            let _inside = runtime.enter();
            tokio::net::UnixListener::bind(run.join("cowslip.sock")).unwrap()
        };
        let router = router.layer(map_response(
            move |mut answer: axum::response::Response| async move {
                answer
                    .headers_mut()
                    .insert("cowslip-version", HeaderValue::from_static(version));
                answer
            },
        ));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self {
            dir,
            _runtime: runtime,
        }
    }

    pub(crate) fn state(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = cowslip(self.state());
        command.args(arguments);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Printed {
        self.command(arguments).output().unwrap().into()
    }

    pub(crate) fn run_with(&self, arguments: &[&str], input: &[u8]) -> Printed {
        let mut child = self.spawn(arguments);
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // A command that ends early takes no more.
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let printed = child.wait_with_output().unwrap().into();
        let _ = writer.join().unwrap();
        printed
    }

    /// The command, with pipes on all sides.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// An error answer.
pub(crate) fn refusal(
    status: u16,
    code: ErrorCode,
    message: &str,
    hint: Option<&str>,
) -> (axum::http::StatusCode, axum::Json<ErrorBody>) {
    let body = ErrorBody {
        code,
        message: message.into(),
        causes: Vec::new(),
        hint: hint.map(Into::into),
    };
    (
        axum::http::StatusCode::from_u16(status).unwrap(),
        axum::Json(body),
    )
}

/// Three hours ago, and a little.
pub(crate) fn then() -> Timestamp {
    Timestamp(Timestamp::now().0 - (3 * 3600 + 20) * 1000)
}

pub(crate) fn sandbox(id: u64, name: &str, state: &str, now: Timestamp) -> Sandbox {
    let ttl = (name == "web").then(|| Timestamp(Timestamp::now().0 + (2 * 86_400 + 1800) * 1000));
    from_value::<Sandbox>(json!({
        "id": SandboxId::from_bits(id), "name": name,
        "template": TemplateId::from_bits(0x7e), "template_name": "debian", "kernel": "deb",
        "state": state, "transition": null, "reason": null, "cpus": 2, "memory": 268_435_456_u64,
        "disk": 1_073_741_824_u64, "disk_used": 1_572_864, "layers": 1, "backend": "qcow2",
        "monitor": "qemu 7.2.22 (tcg)", "env": { "A": "b" }, "workdir": null, "user": null,
        "command": null, "exit_code": null, "forked_from": null, "generation": 1, "pid": 4711,
        "created_at": now, "started_at": now, "expires_at": ttl,
    }))
    .unwrap()
}

pub(crate) fn template(now: Timestamp) -> Template {
    from_value::<Template>(json!({
        "id": TemplateId::from_bits(0x7e), "names": ["debian", "bookworm"], "digest": "0".repeat(64),
        "size": 306_958_336, "used": 239_075_328, "entries": 6767, "source": "tar+zstd",
        "created_at": now, "layers": 2,
    }))
    .unwrap()
}

pub(crate) fn kernel(now: Timestamp) -> Kernel {
    from_value::<Kernel>(json!({
        "id": KernelId::from_bits(0x6e), "name": "deb", "release": "6.1.0-56-cloud-amd64",
        "digest": "1".repeat(64), "format": "bzImage", "modules": 72, "size": 21_705_523,
        "created_at": now, "default": true,
    }))
    .unwrap()
}

pub(crate) fn checkpoint(now: Timestamp) -> Checkpoint {
    from_value::<Checkpoint>(json!({
        "id": CheckpointId::from_bits(0xc), "name": "point", "sandbox": SandboxId::from_bits(1),
        "sandbox_name": "web", "template": TemplateId::from_bits(0x7e), "cpus": 1,
        "memory": 268_435_456, "memory_used": 98_304_000, "disk_used": 1_572_864,
        "monitor": "qemu 7.2.22 (tcg)", "downtime_ms": 251.5, "publication_ms": 312.25,
        "created_at": now,
    }))
    .unwrap()
}

/// What the command printed as JSON.
pub(crate) fn parsed(printed: &Printed) -> Value {
    serde_json::from_str(&printed.out).unwrap_or_else(|error| panic!("{error}: {printed:?}"))
}
