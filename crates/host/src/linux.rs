//! The real host: dispatches to the file of each kind.

use std::collections::HashSet;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use cowslip_ledger::plan::{Presence, Stray};
use cowslip_ledger::{HandleRow, HandleState, Held, Owner, Reservation, Resource};
use cowslip_model::{HandleId, InstanceId, Timestamp};

use crate::directory::{self, Directory};
use crate::error::HostError;
use crate::file::{self, Content, File};
use crate::layout::Layout;
use crate::mount::{self, Mount};
use crate::process::{self, Launch, Process, ProcessSpec};
use crate::socket::{self, Socket};
use crate::{Head, Host, head, publish, usage};

/// Linux, through system calls.
#[derive(Debug, Clone)]
pub struct LinuxHost {
    layout: Layout,
    instance: InstanceId,
}

impl LinuxHost {
    /// The host for the engine of `instance`, making the directories of `layout` that are missing.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn new(layout: Layout, instance: InstanceId) -> Result<Self, HostError> {
        for dir in layout.collections().iter().chain([&layout.machines()]) {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(HostError::path("make the directory", dir))?;
        }
        Ok(Self { layout, instance })
    }

    /// A release may remove only what lies in cowslip's own directories, whatever a row says.
    fn own(&self, path: &Path) -> Result<(), HostError> {
        if self.layout.owns(path) {
            Ok(())
        } else {
            Err(HostError::Outside {
                path: path.to_owned(),
            })
        }
    }

    fn stray_files(&self, rows: &[HandleRow], strays: &mut Vec<Stray>) -> Result<(), HostError> {
        let known: HashSet<PathBuf> = rows
            .iter()
            .filter_map(|row| row.spec.get("path").and_then(|path| path.as_str()))
            .map(PathBuf::from)
            .collect();
        for dir in self
            .layout
            .collections()
            .iter()
            .chain([&self.layout.machines()])
        {
            for entry in std::fs::read_dir(dir).map_err(HostError::path("list", dir))? {
                let path = entry.map_err(HostError::path("list", dir))?.path();
                if !known.contains(&path) {
                    strays.push(Stray {
                        kind: "path".to_owned(),
                        what: format!("\"{}\" is in no record", path.display()),
                        row: None,
                    });
                }
            }
        }
        Ok(())
    }

    /// A monitor without a row is still known by its mark, so it can be ended (R43).
    fn stray_processes(
        &self,
        rows: &[HandleRow],
        strays: &mut Vec<Stray>,
    ) -> Result<(), HostError> {
        let known: HashSet<&str> = rows
            .iter()
            .filter(|row| row.kind == Process::KIND)
            .filter_map(|row| row.spec.get("mark").and_then(|mark| mark.as_str()))
            .collect();
        for (pid, sandbox) in process::find_all(self.instance)? {
            let mark = process::mark(self.instance, sandbox);
            if known.contains(mark.as_str()) {
                continue;
            }
            let spec = ProcessSpec { mark };
            strays.push(Stray {
                kind: Process::KIND.to_owned(),
                what: format!(
                    "process {pid} is the machine of sandbox {sandbox}, which has no record"
                ),
                row: serde_json::to_value(spec).ok().map(|spec| HandleRow {
                    id: HandleId::from_bits(0),
                    seq: 0,
                    owner: Owner::Machine(sandbox),
                    kind: Process::KIND.to_owned(),
                    state: HandleState::Reserved,
                    spec,
                    identity: None,
                    depends_on: Vec::new(),
                    boot_id: process::boot_id(),
                    created_at: Timestamp::now(),
                }),
            });
        }
        Ok(())
    }
}

impl Host for LinuxHost {
    fn boot_id(&self) -> String {
        process::boot_id()
    }

    fn make_directory(&self, slot: Reservation<Directory>) -> Result<Held<Directory>, HostError> {
        self.own(&slot.spec().path)?;
        directory::acquire(slot)
    }

    fn make_file(
        &self,
        slot: Reservation<File>,
        content: Content<'_>,
    ) -> Result<Held<File>, HostError> {
        self.own(&slot.spec().path)?;
        file::acquire(slot, content)
    }

    fn bind_socket(
        &self,
        slot: Reservation<Socket>,
    ) -> Result<(Held<Socket>, UnixListener), HostError> {
        self.own(&slot.spec().path)?;
        socket::acquire(slot)
    }

    fn bind_mount(&self, slot: Reservation<Mount>) -> Result<Held<Mount>, HostError> {
        self.own(&slot.spec().target)?;
        mount::acquire(slot)
    }

    fn spawn(
        &self,
        slot: Reservation<Process>,
        launch: Launch,
    ) -> Result<Held<Process>, HostError> {
        process::acquire(slot, launch)
    }

    fn probe(&self, row: &HandleRow) -> Result<Presence, HostError> {
        match row.kind.as_str() {
            Directory::KIND => directory::probe(
                &row.spec::<Directory>()?,
                row.identity::<Directory>()?.as_ref(),
            ),
            File::KIND => file::probe(&row.spec::<File>()?, row.identity::<File>()?.as_ref()),
            Socket::KIND => {
                socket::probe(&row.spec::<Socket>()?, row.identity::<Socket>()?.as_ref())
            }
            Mount::KIND => mount::probe(&row.spec::<Mount>()?, row.identity::<Mount>()?.as_ref()),
            Process::KIND => {
                process::probe(&row.spec::<Process>()?, row.identity::<Process>()?.as_ref())
            }
            other => Err(HostError::UnknownKind(other.to_owned())),
        }
    }

    fn release(&self, row: &HandleRow) -> Result<(), HostError> {
        match row.kind.as_str() {
            Directory::KIND => {
                let spec = row.spec::<Directory>()?;
                self.own(&spec.path)?;
                directory::release(&spec, row.identity::<Directory>()?.as_ref())
            }
            File::KIND => {
                let spec = row.spec::<File>()?;
                self.own(&spec.path)?;
                file::release(&spec, row.identity::<File>()?.as_ref())
            }
            Socket::KIND => {
                let spec = row.spec::<Socket>()?;
                self.own(&spec.path)?;
                socket::release(&spec, row.identity::<Socket>()?.as_ref())
            }
            Mount::KIND => {
                let spec = row.spec::<Mount>()?;
                self.own(&spec.target)?;
                mount::release(&spec, row.identity::<Mount>()?.as_ref())
            }
            Process::KIND => {
                process::release(&row.spec::<Process>()?, row.identity::<Process>()?.as_ref())
            }
            other => Err(HostError::UnknownKind(other.to_owned())),
        }
    }

    fn strays(&self, rows: &[HandleRow]) -> Result<Vec<Stray>, HostError> {
        let mut strays = Vec::new();
        self.stray_files(rows, &mut strays)?;
        self.stray_processes(rows, &mut strays)?;
        strays.sort_by(|a, b| a.what.cmp(&b.what));
        Ok(strays)
    }

    fn publish(&self, path: &Path, bytes: &[u8]) -> Result<(), HostError> {
        publish::publish(path, bytes)
    }

    fn remove_file(&self, path: &Path) -> Result<(), HostError> {
        self.own(path)?;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(HostError::path("remove", path)),
        }
    }

    fn sync(&self, path: &Path) -> Result<(), HostError> {
        publish::sync(path)
    }

    fn head(&self, path: &Path, limit: usize) -> Result<Option<Head>, HostError> {
        head::head(path, limit)
    }

    fn open(&self, path: &Path) -> Result<Option<std::fs::File>, HostError> {
        head::open(path)
    }

    fn usage(&self, path: &Path) -> Result<u64, HostError> {
        usage::usage(path)
    }
}
