//! Starting the monitor's process: its sockets bound, its files opened, its row written before it runs.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cowslip_host::layout::Layout;
use cowslip_host::process::{self, Launch, Process, ProcessSpec};
use cowslip_host::{Cgroup, Device, Directory, Netns, Site, Socket, SocketSpec};
use cowslip_ledger::{Held, LedgerError, Owner, Resource};
use cowslip_model::{HandleId, SandboxId};

use super::accelerator::Accelerator;
use super::arguments::{self, Parts, Start};
use super::disk;
use super::network;
use super::passing::Passed;
use crate::{MachineConfig, VmmError, words};

/// Where a machine's sockets and messages are. All lie in its runtime directory.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub(super) control: PathBuf,
    pub(super) agent: PathBuf,
    pub(super) console: PathBuf,
    pub(super) messages: PathBuf,
}

impl Paths {
    pub(super) fn new(layout: &Layout, sandbox: SandboxId) -> Self {
        let dir = layout.machine(sandbox);
        Self {
            control: dir.join("control"),
            agent: dir.join("agent"),
            console: dir.join("console"),
            messages: dir.join("monitor.log"),
        }
    }

    /// The end of what the monitor said of itself.
    pub(super) fn last_words(&self) -> Option<String> {
        words::last(&self.messages)
    }
}

/// How a machine is to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    Boot,
    Incoming,
}

/// A started process and its sockets; whoever drops it unsettled leaves them to the reaper.
pub(super) struct Acquired {
    pub(super) process: Held<Process>,
    sockets: Vec<Held<Socket>>,
}

impl Acquired {
    /// Hands everything over to the machine's owner.
    pub(super) fn settle(self) {
        for socket in self.sockets {
            socket.settle();
        }
        self.process.settle();
    }
}

/// Starts the monitor; its vCPUs stand still. Blocking.
pub(super) fn acquire(
    program: &Path,
    accelerator: Accelerator,
    site: &Site,
    config: &MachineConfig,
    beginning: Beginning,
) -> Result<Acquired, VmmError> {
    let paths = Paths::new(&site.layout, config.sandbox);
    let directory = runtime_directory(site, config.sandbox)?;
    let mut passed = Passed::default();
    let mut sockets = Vec::new();
    let mut listeners = Vec::new();
    for path in [&paths.control, &paths.agent, &paths.console] {
        let spec = SocketSpec {
            path: path.clone(),
            mode: 0o600,
        };
        let slot =
            site.ledger
                .reserve::<Socket>(Owner::Machine(config.sandbox), spec, &directory)?;
        let (held, listener) = site.host.bind_socket(slot)?;
        sockets.push(held);
        listeners.push(passed.add(listener));
    }
    let start = match beginning {
        Beginning::Incoming => Start::Incoming,
        Beginning::Boot => {
            let same_user = config.credentials.is_none();
            Start::Boot {
                kernel: passed.add_named(&config.kernel, same_user)?,
                initramfs: passed.add_named(&config.initramfs, same_user)?,
                words: config.command_line.clone(),
            }
        }
    };
    let disk = config
        .disk
        .as_ref()
        .map(|chain| disk::options(chain, &mut passed))
        .transpose()?;
    let network = config
        .network
        .as_ref()
        .map(|interface| network::options(interface, site, &mut passed))
        .transpose()?;
    let mark = process::mark(site.ledger.instance(), config.sandbox);
    let arguments = arguments::build(&Parts {
        mark: &mark,
        accelerator,
        cpus: config.cpus,
        memory: config.memory,
        start: &start,
        disk: disk.as_ref(),
        network: network.as_ref(),
        control: listeners[0],
        agent: listeners[1],
        console: listeners[2],
    });
    let launch = Launch {
        program: program.to_owned(),
        arguments,
        environment: Vec::new(),
        inherit: passed.into_inner(),
        output: messages(&paths.messages)?.into(),
        credentials: config.credentials.clone(),
        view: None,
        cgroups: config.cgroups.clone(),
        netns: config.netns(),
    };
    let needs: Vec<HandleId> = directory
        .iter()
        .copied()
        .chain(sockets.iter().map(Held::id))
        .collect();
    let slot = site.ledger.reserve::<Process>(
        Owner::Machine(config.sandbox),
        ProcessSpec::unjailed(mark),
        &needs,
    )?;
    let process = site.host.spawn(slot, launch)?;
    Ok(Acquired { process, sockets })
}

/// The handles of the machine's runtime directory and of its disk, where that is a device: what lies
/// in the one and who opens the other goes before it.
fn runtime_directory(site: &Site, sandbox: SandboxId) -> Result<Vec<HandleId>, LedgerError> {
    let rows = site
        .ledger
        .read::<_, LedgerError>(|tx| tx.handles_of(Owner::Machine(sandbox)))?;
    Ok(rows
        .iter()
        .filter(|row| {
            [Directory::KIND, Device::KIND, Cgroup::KIND, Netns::KIND].contains(&row.kind.as_str())
        })
        .map(|row| row.id)
        .collect())
}

fn messages(path: &Path) -> Result<File, VmmError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| VmmError::File {
            operation: "open",
            path: path.to_owned(),
            source,
        })
}
