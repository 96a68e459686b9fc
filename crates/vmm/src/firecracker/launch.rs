//! Starting the process: the place of its disk, its console's pipe, its row written before it runs.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cowslip_host::process::{self, Binding, Launch, Process, ProcessSpec, View};
use cowslip_host::{Cgroup, Device, Directory, Netns, Site};
use cowslip_ledger::{Held, LedgerError, Owner, Resource};
use cowslip_model::{DiskChain, DiskFormat, HandleId, SandboxId};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use super::jail::Jail;
use super::paths::{BLANK, Paths, SELF, seen};
use super::program::Programs;
use crate::{MachineConfig, VmmError};

/// A started process; whoever drops it unsettled leaves it to the reaper.
pub(super) struct Acquired {
    pub(super) process: Held<Process>,
    /// The pipe of its console: what a process printed that ends at once would go with its last holder. To
    /// be closed when the pipe is read, since until then it has no end.
    pub(super) console: Option<OwnedFd>,
}

impl Acquired {
    /// Hands it over to the machine's owner.
    pub(super) fn settle(self) {
        self.process.settle();
    }
}

/// How a machine is to begin.
#[derive(Debug, Clone)]
pub(super) enum Beginning {
    Boot,
    Image(PathBuf),
}

/// Starts Firecracker, without a machine. Blocking.
pub(super) fn acquire(
    programs: &Programs,
    site: &Site,
    config: &MachineConfig,
    beginning: &Beginning,
) -> Result<Acquired, VmmError> {
    let paths = Paths::new(&site.layout, config.sandbox);
    let disk = config.disk.as_ref().map(device).transpose()?;
    let mark = process::mark(site.ledger.instance(), config.sandbox);
    let output: OwnedFd = make_console(&paths.console)?.into();
    let console = output
        .try_clone()
        .map_err(failed("keep open", &paths.console))?;
    let mut arguments = Vec::new();
    let mut spec = ProcessSpec::unjailed(mark.clone());
    let (program, view) = match &programs.jailer {
        Some(jailer) => {
            let user = config.credentials.as_ref().ok_or_else(no_user)?;
            let jail = Jail {
                firecracker: &programs.firecracker,
                user,
                id: &mark,
            };
            spec.root = Some(jail.root());
            arguments.extend(jail.arguments(config));
            (jailer, jail.view(&paths, config, beginning)?)
        }
        None => {
            arguments.extend(["--id".to_owned(), mark.clone()]);
            (&programs.firecracker, open_view(&paths, disk)?)
        }
    };
    arguments.extend(own_arguments());
    let launch = Launch {
        program: program.path.clone(),
        arguments,
        environment: Vec::new(),
        inherit: Vec::new(),
        output,
        // The jailer changes it. In direct mode Firecracker reads images and writes them by path, as the
        // engine does.
        credentials: None,
        view: Some(view),
        cgroups: config.cgroups.clone(),
        // The jailer joins it by itself.
        netns: config.netns().filter(|_| programs.jailer.is_none()),
    };
    let needs = needs(site, config.sandbox)?;
    let owner = Owner::Machine(config.sandbox);
    let slot = site.ledger.reserve::<Process>(owner, spec, &needs)?;
    let process = site.host.spawn(slot, launch)?;
    Ok(Acquired {
        process,
        console: Some(console),
    })
}

pub(super) fn no_user() -> VmmError {
    VmmError::Unusable {
        program: "the jailer".to_owned(),
        why:
            "only root can start it: run the engine as root, or set isolation = \"direct\" in the \
              configuration's [machine]"
                .to_owned(),
    }
}

/// What it sees in direct mode: the host, and under the constant path its own.
fn open_view(paths: &Paths, disk: Option<&Path>) -> Result<View, VmmError> {
    let directory = &paths.directory;
    let made = DirBuilder::new().mode(0o700).create(directory);
    made.map_err(failed("make", directory))?;
    let own = Binding {
        source: directory.clone(),
        target: SELF.into(),
    };
    let disk = disk.map(|disk| Binding {
        source: disk.to_owned(),
        target: seen::disk(),
    });
    Ok(View {
        blank: BLANK.into(),
        jail: None,
        bindings: [own].into_iter().chain(disk).collect(),
        nodes: Vec::new(),
    })
}

/// Firecracker's own, but for its id.
fn own_arguments() -> [String; 7] {
    let text = |path: PathBuf| path.display().to_string();
    // `Info` is what `Api::wait` needs: a line is written when the socket is listened on.
    [
        "--api-sock".to_owned(),
        text(seen::api()),
        "--log-path".to_owned(),
        text(seen::log()),
        "--level".to_owned(),
        "Info".to_owned(),
        "--show-level".to_owned(),
    ]
}

/// The file or block device that is the whole disk. Firecracker reads no format of layers.
fn device(chain: &DiskChain) -> Result<&Path, VmmError> {
    let is_whole = chain.frozen.is_empty() && chain.top.format != DiskFormat::Qcow2;
    if is_whole {
        return Ok(&chain.top.path);
    }
    Err(VmmError::File {
        operation: "give Firecracker (which reads no qcow2: choose the backend \"dm\" or \"copy\") the disk",
        path: chain.top.path.clone(),
        source: io::ErrorKind::Unsupported.into(),
    })
}

/// A pipe for the console, open at both ends for Firecracker: while no engine reads it fills, and what
/// does not fit is lost; the guest never waits.
fn make_console(path: &Path) -> Result<File, VmmError> {
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, path, FileType::Fifo, mode, 0)
        .map_err(|error| failed("make the pipe", path)(error.into()))?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(failed("open", path))
}

pub(super) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VmmError {
    let path = path.to_owned();
    move |source| VmmError::File {
        operation,
        path,
        source,
    }
}

/// The handles of the machine's runtime directory and of its disk, where that is a device.
fn needs(site: &Site, sandbox: SandboxId) -> Result<Vec<HandleId>, LedgerError> {
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

#[cfg(test)]
mod tests {
    use cowslip_model::{DiskLayer, Durability};

    use super::*;

    #[test]
    fn a_chain_of_overlays_is_no_disk_for_it() {
        let layer = |format| DiskLayer {
            path: "/l/1".into(),
            format,
        };
        let chain = |frozen, format| DiskChain {
            frozen,
            top: layer(format),
            size: 1 << 20,
            durability: Durability::default(),
        };
        assert!(device(&chain(Vec::new(), DiskFormat::Raw)).is_ok());
        assert!(device(&chain(Vec::new(), DiskFormat::Snapshot)).is_ok());
        let error = device(&chain(Vec::new(), DiskFormat::Qcow2)).unwrap_err();
        assert!(error.to_string().contains("/l/1"), "{error}");
        assert!(device(&chain(vec![layer(DiskFormat::Raw)], DiskFormat::Raw)).is_err());
    }

    #[test]
    fn a_console_without_a_reader_takes_what_fits_and_never_blocks() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let mut console = make_console(&path).unwrap();
        let full = loop {
            if let Err(error) = console.write_all(&[b'x'; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }
}
