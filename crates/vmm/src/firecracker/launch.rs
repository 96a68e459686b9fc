//! Starting the process: the place of its disk, its console's pipe, its row written before it runs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use cowslip_host::process::{self, Launch, Process, ProcessSpec};
use cowslip_host::{Device, Directory, Site};
use cowslip_ledger::{Held, LedgerError, Owner, Resource};
use cowslip_model::{DiskChain, DiskFormat, HandleId, SandboxId};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use super::paths::{self, Paths};
use crate::{MachineConfig, VmmError};

/// A started process; whoever drops it unsettled leaves it to the reaper.
pub(super) struct Acquired {
    pub(super) process: Held<Process>,
}

impl Acquired {
    /// Hands it over to the machine's owner.
    pub(super) fn settle(self) {
        self.process.settle();
    }
}

/// Starts Firecracker, without a machine. Blocking.
pub(super) fn acquire(
    program: &Path,
    site: &Site,
    config: &MachineConfig,
) -> Result<Acquired, VmmError> {
    let paths = Paths::new(&site.layout, config.sandbox);
    let disk = config.disk.as_ref().map(device).transpose()?;
    if disk.is_some() {
        make_place(&paths.disk)?;
    }
    let mark = process::mark(site.ledger.instance(), config.sandbox);
    let launch = Launch {
        program: program.to_owned(),
        arguments: arguments(&mark),
        environment: Vec::new(),
        inherit: Vec::new(),
        output: make_console(&paths.console)?.into(),
        // In direct mode it reads images and writes them by path, as the engine does.
        credentials: None,
        view: Some(paths.view(disk)),
    };
    let needs = needs(site, config.sandbox)?;
    let owner = Owner::Machine(config.sandbox);
    let slot = site
        .ledger
        .reserve::<Process>(owner, ProcessSpec { mark }, &needs)?;
    let process = site.host.spawn(slot, launch)?;
    Ok(Acquired { process })
}

fn arguments(mark: &str) -> Vec<String> {
    let text = |path: std::path::PathBuf| path.display().to_string();
    let api = text(paths::api());
    let log = text(paths::log());
    // `Info` is what `Api::wait` needs: a line is written when the socket is listened on.
    let words = [
        "--id",
        mark,
        "--api-sock",
        &api,
        "--log-path",
        &log,
        "--level",
        "Info",
        "--show-level",
    ];
    words.map(str::to_owned).to_vec()
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

/// An empty file that the disk covers in the machine's view.
fn make_place(path: &Path) -> Result<(), VmmError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(failed("make", path))
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

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VmmError {
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
        .filter(|row| [Directory::KIND, Device::KIND].contains(&row.kind.as_str()))
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
