//! From the kernel's first call of /init to a root file system that programs can live in.
//!
//! ```text
//!   kernel ─► modules ─► port ─► disk ─► root ─► (ready: serving)
//! ```
//!
//! Each phase's end is kept, in nanoseconds since the kernel started, and told to the host. All
//! of this is single-threaded and runs before anything is served. A failure here is final: PID 1
//! must never hang or exit, it says why and cuts the power.

mod cmdline;
pub(crate) mod console;
mod devices;
mod modules;
mod rootfs;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use cowslip_proto::pb::{AgentMode, BootPhase};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::machine::identity::uptime_ns;
use crate::machine::shutdown;
use crate::network::interface::loopback_up;
use cmdline::Cmdline;
use console::say;
use devices::Devices;
pub(crate) use modules::Later;

/// Files that the agent may have open: processes, connections and what is copied.
const OPEN_FILES: u64 = 524_288;

/// Why the guest cannot come up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("cannot {what} \"{path}\": {source}", path = path.display())]
    Path {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{what} did not appear; is it configured for this machine, and its driver loaded?")]
    Missing { what: String },
}

impl BootError {
    fn path(what: &'static str, path: &str, source: io::Error) -> Self {
        Self::Path {
            what,
            path: path.into(),
            source,
        }
    }
}

/// What the boot leaves to the server.
#[derive(Debug)]
pub(crate) struct Booted {
    pub(crate) mode: AgentMode,
    pub(crate) phases: Vec<BootPhase>,
    /// The way to the host; `None` where there is only vsock.
    pub(crate) port: Option<OwnedFd>,
    /// What is left to load.
    pub(crate) later: Later,
}

/// Brings the guest up.
pub(crate) fn boot() -> Result<Booted, BootError> {
    let mut phases = Vec::new();
    let mut ended = |name: &str| {
        phases.push(BootPhase {
            name: name.to_owned(),
            ended_ns: uptime_ns(),
        });
    };
    ended("kernel");
    rootfs::mount_early()?;
    console::attach();
    let text = fs::read_to_string("/proc/cmdline");
    let text = text.map_err(|e| BootError::path("read", "/proc/cmdline", e))?;
    let cmdline = Cmdline::parse(&text);
    if cmdline.off_by_reset {
        shutdown::end_by_reset();
    }
    let limit = Rlimit {
        current: Some(OPEN_FILES),
        maximum: Some(OPEN_FILES),
    };
    // With fewer it works too, only not for as many.
    let _ = setrlimit(Resource::Nofile, limit);

    let devices = Devices::listen()?;
    let loaded = modules::load()?;
    let later = Later::open()?;
    ended("modules");
    let port = devices.port()?;
    ended("port");
    let mode = if cmdline.probe {
        AgentMode::Probe
    } else {
        devices.disk(&cmdline.root)?;
        rootfs::mount_disk(&cmdline)?;
        ended("disk");
        rootfs::switch()?;
        AgentMode::Init
    };
    rootfs::mount_late()?;
    if let Err(e) = loopback_up() {
        say(&format!("no loopback interface: {e}"));
    }
    ended("root");
    let ms = |p: &BootPhase| format!("{} {} ms", p.name, p.ended_ns / 1_000_000);
    let times = phases.iter().map(ms).collect::<Vec<_>>().join(", ");
    say(&format!("up with {loaded} modules: {times}"));
    Ok(Booted {
        mode,
        phases,
        port,
        later,
    })
}
