//! The real host: dispatches to the file of each kind.

mod files;
mod networks;

use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use cowslip_ledger::plan::{Presence, Stray};
use cowslip_ledger::{HandleRow, Held, Reservation, Resource};
use cowslip_model::InstanceId;

use crate::cgroup::{self, Cgroup, CgroupSpec};
use crate::directory::{self, Directory};
use crate::dm::{self, Device, DeviceSpec, Segment};
use crate::error::HostError;
use crate::file::{self, Content, File, Inode};
use crate::layout::Layout;
use crate::loops::{self, Loop, LoopHold};
use crate::mount::{self, Mount};
use crate::netns::{self, Netns, NetnsSpec};
use crate::process::{self, Launch, Process};
use crate::socket::{self, Socket};
use crate::{Host, strays};

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
        for dir in layout
            .collections()
            .iter()
            .chain([&layout.machines(), &layout.networks()])
        {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(HostError::path("make the directory", dir))?;
        }
        Ok(Self { layout, instance })
    }

    /// A release may remove only what is this instance's, whatever a row says: names and uuids of devices
    /// carry the instance, as [`Layout::own`] tells of paths.
    fn own_device(&self, spec: &DeviceSpec) -> Result<(), HostError> {
        if dm::is_of(self.instance, spec) {
            Ok(())
        } else {
            Err(HostError::Outside {
                path: Path::new("/dev/mapper").join(&spec.name),
            })
        }
    }

    /// The same of networks: links bear the instance's mark.
    fn own_netns(&self, spec: &NetnsSpec) -> Result<(), HostError> {
        self.layout.own(&spec.path)?;
        match spec.mark.starts_with(&process::mark_prefix(self.instance)) {
            true => Ok(()),
            false => Err(HostError::Outside {
                path: spec.path.clone(),
            }),
        }
    }

    /// Nothing is done to a group that does not bear this instance's mark.
    fn own_cgroup(&self, spec: &CgroupSpec) -> Result<(), HostError> {
        let name = spec.path.file_name().and_then(|name| name.to_str());
        let prefix = process::mark_prefix(self.instance);
        if name.is_some_and(|name| name.starts_with(&prefix)) {
            return Ok(());
        }
        Err(HostError::Outside {
            path: spec.path.clone(),
        })
    }
}

/// The inode that a row recorded. A file system's device has its number for one boot: after another
/// (a disk that is found later, a volume that is activated in another order) only the inode's own number
/// still tells.
fn inode<R: Resource<Identity = Inode>>(row: &HandleRow) -> Result<Option<Inode>, HostError> {
    let recorded = row.identity::<R>()?;
    let path = row.spec.get("path").and_then(serde_json::Value::as_str);
    let (Some(inode), Some(path)) = (recorded, path) else {
        return Ok(recorded);
    };
    if row.boot_id == process::boot_id() {
        return Ok(recorded);
    }
    // What cannot be looked at is told by the probe.
    let dev = Inode::of(Path::new(path)).map_or(inode.dev, |now| now.dev);
    Ok(Some(Inode { dev, ..inode }))
}

impl Host for LinuxHost {
    fn boot_id(&self) -> String {
        process::boot_id()
    }

    fn make_directory(&self, slot: Reservation<Directory>) -> Result<Held<Directory>, HostError> {
        self.layout.own(&slot.spec().path)?;
        directory::acquire(slot)
    }

    fn make_file(
        &self,
        slot: Reservation<File>,
        content: Content<'_>,
    ) -> Result<Held<File>, HostError> {
        self.layout.own(&slot.spec().path)?;
        file::acquire(slot, content)
    }

    fn bind_socket(
        &self,
        slot: Reservation<Socket>,
    ) -> Result<(Held<Socket>, UnixListener), HostError> {
        self.layout.own(&slot.spec().path)?;
        socket::acquire(slot)
    }

    fn bind_mount(&self, slot: Reservation<Mount>) -> Result<Held<Mount>, HostError> {
        self.layout.own(&slot.spec().target)?;
        mount::acquire(slot)
    }

    fn spawn(
        &self,
        slot: Reservation<Process>,
        launch: Launch,
    ) -> Result<Held<Process>, HostError> {
        process::acquire(slot, launch)
    }

    fn attach_loop(&self, slot: Reservation<Loop>) -> Result<(Held<Loop>, LoopHold), HostError> {
        self.layout.own(&slot.spec().path)?;
        loops::acquire(slot)
    }

    fn cgroup_roots(&self) -> Vec<PathBuf> {
        cgroup::roots()
    }

    fn make_cgroup(&self, slot: Reservation<Cgroup>) -> Result<Held<Cgroup>, HostError> {
        self.own_cgroup(slot.spec())?;
        cgroup::acquire(slot)
    }

    fn make_device(&self, slot: Reservation<Device>) -> Result<Held<Device>, HostError> {
        self.own_device(slot.spec())?;
        dm::acquire(slot)
    }

    fn switch_device(&self, device: &DeviceSpec, table: &[Segment]) -> Result<(), HostError> {
        self.own_device(device)?;
        dm::switch(device, table)
    }

    fn device_table(&self, device: &DeviceSpec) -> Result<Vec<Segment>, HostError> {
        dm::table_of(device)
    }

    fn probe(&self, row: &HandleRow) -> Result<Presence, HostError> {
        match row.kind.as_str() {
            Directory::KIND => {
                directory::probe(&row.spec::<Directory>()?, inode::<Directory>(row)?.as_ref())
            }
            File::KIND => file::probe(&row.spec::<File>()?, inode::<File>(row)?.as_ref()),
            Socket::KIND => socket::probe(&row.spec::<Socket>()?, inode::<Socket>(row)?.as_ref()),
            Loop::KIND => loops::probe(&row.spec::<Loop>()?, row.identity::<Loop>()?.as_ref()),
            Device::KIND => dm::probe(&row.spec::<Device>()?),
            Cgroup::KIND => {
                cgroup::probe(&row.spec::<Cgroup>()?, row.identity::<Cgroup>()?.as_ref())
            }
            Netns::KIND => netns::probe(&row.spec::<Netns>()?, row.identity::<Netns>()?.as_ref()),
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
                self.layout.own(&spec.path)?;
                directory::release(&spec, inode::<Directory>(row)?.as_ref())
            }
            File::KIND => {
                let spec = row.spec::<File>()?;
                self.layout.own(&spec.path)?;
                file::release(&spec, inode::<File>(row)?.as_ref())
            }
            Socket::KIND => {
                let spec = row.spec::<Socket>()?;
                self.layout.own(&spec.path)?;
                socket::release(&spec, inode::<Socket>(row)?.as_ref())
            }
            Loop::KIND => {
                let spec = row.spec::<Loop>()?;
                self.layout.own(&spec.path)?;
                loops::release(&spec, row.identity::<Loop>()?.as_ref())
            }
            Device::KIND => {
                let spec = row.spec::<Device>()?;
                self.own_device(&spec)?;
                dm::release(&spec, row.identity.is_some())
            }
            Cgroup::KIND => {
                let spec = row.spec::<Cgroup>()?;
                self.own_cgroup(&spec)?;
                cgroup::release(&spec, row.identity::<Cgroup>()?.as_ref())
            }
            Netns::KIND => {
                let spec = row.spec::<Netns>()?;
                self.own_netns(&spec)?;
                netns::release(&spec, row.identity::<Netns>()?.as_ref())
            }
            Mount::KIND => {
                let spec = row.spec::<Mount>()?;
                self.layout.own(&spec.target)?;
                mount::release(&spec, row.identity::<Mount>()?.as_ref())
            }
            Process::KIND => {
                process::release(&row.spec::<Process>()?, row.identity::<Process>()?.as_ref())
            }
            other => Err(HostError::UnknownKind(other.to_owned())),
        }
    }

    fn strays(&self, rows: &[HandleRow]) -> Result<Vec<Stray>, HostError> {
        strays::find(&self.layout, self.instance, rows)
    }
}
