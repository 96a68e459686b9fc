//! The simulated host: the same refusals as Linux, in memory.

mod files;
mod networks;

use std::collections::HashSet;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use cowslip_host::file::Inode;
use cowslip_host::mount::MountIdentity;
use cowslip_host::process::mark;
use cowslip_host::{
    Cgroup, Content, Device, DeviceSpec, Directory, File, Host, HostError, Launch, Layout, Loop,
    LoopHold, Mount, Netns, Process, ProcessSpec, Segment, Socket,
};
use cowslip_ledger::fault::Injector;
use cowslip_ledger::plan::{Presence, Stray};
use cowslip_ledger::{HandleRow, HandleState, Held, LedgerError, Owner, Reservation, Resource};
use cowslip_model::{HandleId, InstanceId, SandboxId, Timestamp};

use crate::world::{FileNode, Inner, Node, World};

/// One engine's view of a [`World`]. A new engine gets a new one, with its own injector.
#[derive(Clone)]
pub struct SimHost {
    world: World,
    layout: Layout,
    instance: InstanceId,
    faults: Injector,
}

impl SimHost {
    /// The host for the engine of `instance`, with the directories of `layout`.
    #[must_use]
    pub fn new(world: World, layout: Layout, instance: InstanceId, faults: Injector) -> Self {
        let places = [layout.machines(), layout.networks()];
        for dir in layout.collections().iter().chain(&places) {
            world.add_directory(dir);
        }
        Self {
            world,
            layout,
            instance,
            faults,
        }
    }

    /// Acts on the world as one step.
    fn step<T>(
        &self,
        step: &str,
        act: impl FnOnce(&mut Inner) -> Result<T, HostError>,
    ) -> Result<T, HostError> {
        let outcome = self.faults.around(step, || act(&mut self.world.lock()));
        outcome.map_err(|fault| HostError::from(LedgerError::from(fault)))?
    }

    /// The sandbox that a mark of this instance names.
    fn sandbox_of(&self, mark: &str) -> Option<SandboxId> {
        mark.strip_prefix(&format!("cowslip-{}-", self.instance))?
            .parse()
            .ok()
    }

    fn stray_process(&self, pid: u32, sandbox: SandboxId) -> Stray {
        let spec = ProcessSpec::unjailed(mark(self.instance, sandbox));
        Stray {
            kind: Process::KIND.to_owned(),
            what: format!("process {pid} is the machine of sandbox {sandbox}, which has no record"),
            row: serde_json::to_value(spec).ok().map(|spec| HandleRow {
                id: HandleId::from_bits(0),
                seq: 0,
                owner: Owner::Machine(sandbox),
                kind: Process::KIND.to_owned(),
                state: HandleState::Reserved,
                spec,
                identity: None,
                depends_on: Vec::new(),
                boot_id: self.world.boot_id(),
                created_at: Timestamp::now(),
            }),
        }
    }
}

/// What a row names: the path and which kind of node stands there, or a process.
enum Named {
    Path {
        path: PathBuf,
        right: fn(&Node) -> bool,
        inode: Option<Inode>,
    },
    Mount {
        target: PathBuf,
        id: Option<u64>,
    },
    Process {
        mark: String,
        identity: Option<cowslip_host::ProcessIdentity>,
    },
}

fn named(row: &HandleRow) -> Result<Named, HostError> {
    Ok(match row.kind.as_str() {
        Directory::KIND => Named::Path {
            path: row.spec::<Directory>()?.path,
            right: |node| matches!(node, Node::Directory),
            inode: row.identity::<Directory>()?,
        },
        File::KIND => Named::Path {
            path: row.spec::<File>()?.path,
            right: |node| matches!(node, Node::File(_)),
            inode: row.identity::<File>()?,
        },
        Socket::KIND => Named::Path {
            path: row.spec::<Socket>()?.path,
            right: |node| matches!(node, Node::Socket),
            inode: row.identity::<Socket>()?,
        },
        Cgroup::KIND => Named::Path {
            path: row.spec::<Cgroup>()?.path,
            right: |node| matches!(node, Node::Directory),
            inode: row.identity::<Cgroup>()?,
        },
        Netns::KIND => Named::Path {
            path: row.spec::<Netns>()?.path,
            right: |node| matches!(node, Node::File(_)),
            inode: row.identity::<Netns>()?,
        },
        Mount::KIND => Named::Mount {
            target: row.spec::<Mount>()?.target,
            id: row.identity::<Mount>()?.map(|identity| identity.id),
        },
        Process::KIND => Named::Process {
            mark: row.spec::<Process>()?.mark,
            identity: row.identity::<Process>()?,
        },
        other => return Err(HostError::UnknownKind(other.to_owned())),
    })
}

fn presence(inner: &Inner, named: &Named) -> Presence {
    match named {
        Named::Path { path, right, inode } => match inner.entries.get(path) {
            None => Presence::Absent,
            Some(entry) if !right(&entry.node) => Presence::Foreign,
            Some(entry) if inode.is_some_and(|inode| inode != inner.inode(entry.inode)) => {
                Presence::Foreign
            }
            Some(_) => Presence::Present,
        },
        Named::Mount { target, id } => match (inner.mounts.get(target), id) {
            (None, _) => Presence::Absent,
            (Some(found), Some(known)) if found != known => Presence::Foreign,
            (Some(_), _) => Presence::Present,
        },
        Named::Process { mark, identity } => {
            let runs = match identity {
                Some(identity) => inner.is_alive(mark, identity),
                None => inner
                    .processes
                    .values()
                    .any(|process| process.mark == *mark),
            };
            if runs {
                Presence::Present
            } else {
                Presence::Absent
            }
        }
    }
}

fn release(inner: &mut Inner, named: &Named) -> Result<(), HostError> {
    match (presence(inner, named), named) {
        (Presence::Absent, _) => {}
        (Presence::Foreign, Named::Path { path, .. } | Named::Mount { target: path, .. }) => {
            let why = "something else has its place".to_owned();
            return Err(HostError::Foreign {
                path: path.clone(),
                why,
            });
        }
        (_, Named::Path { path, .. }) => inner.remove(path),
        (_, Named::Mount { target, .. }) => drop(inner.mounts.remove(target)),
        (_, Named::Process { mark, .. }) => {
            let of = |process: &crate::world::Process| process.mark == *mark;
            let pids: Vec<u32> = inner
                .processes
                .iter()
                .filter(|(_, p)| of(p))
                .map(|(pid, _)| *pid)
                .collect();
            for pid in pids {
                inner.end_process(pid, None);
            }
        }
    }
    Ok(())
}

/// Device-mapper is proven on a real kernel, in the test VM; this host has none.
fn no_devices(what: &Path) -> HostError {
    HostError::path("use block devices for", what)(std::io::Error::from(
        std::io::ErrorKind::Unsupported,
    ))
}

impl Host for SimHost {
    fn boot_id(&self) -> String {
        self.world.boot_id()
    }

    fn make_directory(&self, slot: Reservation<Directory>) -> Result<Held<Directory>, HostError> {
        let path = slot.spec().path.clone();
        self.layout.own(&path)?;
        let inode = self.step("host: make directory", |inner| {
            inner
                .create(&path, Node::Directory)
                .map_err(HostError::path("make the directory", &path))
        })?;
        Ok(slot.acquired(inode)?)
    }

    /// Beside the runtime directories, so that what is left there is a stray.
    fn cgroup_roots(&self) -> Vec<PathBuf> {
        vec![self.layout.machines()]
    }

    fn make_cgroup(&self, slot: Reservation<Cgroup>) -> Result<Held<Cgroup>, HostError> {
        let path = slot.spec().path.clone();
        self.layout.own(&path)?;
        let inode = self.step("host: make control group", |inner| {
            inner
                .create(&path, Node::Directory)
                .map_err(HostError::path("make the control group", &path))
        })?;
        Ok(slot.acquired(inode)?)
    }

    fn make_file(
        &self,
        slot: Reservation<File>,
        content: Content<'_>,
    ) -> Result<Held<File>, HostError> {
        let path = slot.spec().path.clone();
        self.layout.own(&path)?;
        let inode = self.step("host: make file", |inner| match content {
            Content::Bytes(bytes) => inner
                .create(&path, Node::File(FileNode::with_bytes(bytes)))
                .map_err(HostError::path("create", &path)),
            Content::Beginning { bytes, .. } => inner
                .create(&path, Node::File(FileNode::with_bytes(bytes)))
                .map_err(HostError::path("create", &path)),
            Content::CloneOf { source, size } => inner
                .clone_file(source, &path, size)
                .map_err(HostError::path("copy to", &path)),
            Content::Merged { sources, size, .. } => inner
                .merge_files(sources, &path, size)
                .map_err(HostError::path("write", &path)),
        })?;
        Ok(slot.acquired(inode)?)
    }

    fn bind_socket(
        &self,
        slot: Reservation<Socket>,
    ) -> Result<(Held<Socket>, UnixListener), HostError> {
        let path = slot.spec().path.clone();
        self.layout.own(&path)?;
        let inode = self.step("host: bind socket", |inner| {
            inner
                .create(&path, Node::Socket)
                .map_err(HostError::path("bind", &path))
        })?;
        // A real one, which nobody can find: only its descriptor is of use.
        let real = self.world.socket_path();
        let listener = UnixListener::bind(&real).map_err(HostError::path("bind", &real))?;
        std::fs::remove_file(&real).map_err(HostError::path("unlink", &real))?;
        Ok((slot.acquired(inode)?, listener))
    }

    fn bind_mount(&self, slot: Reservation<Mount>) -> Result<Held<Mount>, HostError> {
        let target = slot.spec().target.clone();
        self.layout.own(&target)?;
        let id = self.step("host: bind mount", |inner| {
            for path in [&slot.spec().source, &target] {
                if !inner.entries.contains_key(path) {
                    let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
                    return Err(HostError::path("bind a mount on", path)(missing));
                }
            }
            let id = inner.number();
            inner.mounts.insert(target.clone(), id);
            Ok(id)
        })?;
        Ok(slot.acquired(MountIdentity { id })?)
    }

    fn spawn(
        &self,
        slot: Reservation<Process>,
        launch: Launch,
    ) -> Result<Held<Process>, HostError> {
        let mark = slot.spec().mark.clone();
        let sandbox = self.sandbox_of(&mark);
        let identity = self.step("host: spawn", |inner| {
            if !launch.arguments.iter().any(|word| word.contains(&mark)) {
                inner.violation(format!("{mark} was started without its mark (R45)"));
            }
            let directories = sandbox
                .iter()
                .flat_map(|&sandbox| [self.layout.machine(sandbox), self.layout.sandbox(sandbox)]);
            Ok(inner.spawn(&mark, sandbox, directories.collect()))
        })?;
        Ok(slot.acquired(identity)?)
    }

    fn attach_loop(&self, slot: Reservation<Loop>) -> Result<(Held<Loop>, LoopHold), HostError> {
        Err(no_devices(&slot.spec().path))
    }

    fn make_device(&self, slot: Reservation<Device>) -> Result<Held<Device>, HostError> {
        Err(no_devices(Path::new(&slot.spec().name)))
    }

    fn switch_device(&self, device: &DeviceSpec, _table: &[Segment]) -> Result<(), HostError> {
        Err(no_devices(Path::new(&device.name)))
    }

    fn device_table(&self, device: &DeviceSpec) -> Result<Vec<Segment>, HostError> {
        Err(no_devices(Path::new(&device.name)))
    }

    fn probe(&self, row: &HandleRow) -> Result<Presence, HostError> {
        let named = named(row)?;
        self.step("host: probe", |inner| Ok(presence(inner, &named)))
    }

    fn release(&self, row: &HandleRow) -> Result<(), HostError> {
        let named = named(row)?;
        if let Named::Path { path, .. } | Named::Mount { target: path, .. } = &named {
            self.layout.own(path)?;
        }
        self.step(&format!("host: release {}", row.kind), |inner| {
            release(inner, &named)
        })
    }

    fn strays(&self, rows: &[HandleRow]) -> Result<Vec<Stray>, HostError> {
        let word = |row: &HandleRow, field: &str| {
            row.spec
                .get(field)
                .and_then(|value| value.as_str())
                .map(str::to_owned)
        };
        let paths: HashSet<PathBuf> = rows
            .iter()
            .filter_map(|row| word(row, "path"))
            .map(PathBuf::from)
            .collect();
        let marks: HashSet<String> = rows.iter().filter_map(|row| word(row, "mark")).collect();
        let places: Vec<PathBuf> = self
            .layout
            .collections()
            .into_iter()
            .chain([self.layout.machines(), self.layout.networks()])
            .collect();
        self.step("host: look for strays", |inner| {
            let lost = inner.entries.keys().filter(|path| {
                path.parent()
                    .is_some_and(|parent| places.iter().any(|place| place == parent))
                    && !paths.contains(*path)
            });
            let paths: Vec<Stray> = lost
                .map(|path| Stray {
                    kind: "path".to_owned(),
                    what: format!("\"{}\" is in no record", path.display()),
                    row: None,
                })
                .collect();
            let processes: Vec<(u32, SandboxId)> = inner
                .processes
                .iter()
                .filter(|(_, process)| !marks.contains(&process.mark))
                .filter_map(|(pid, process)| Some((*pid, self.sandbox_of(&process.mark)?)))
                .collect();
            Ok((paths, processes))
        })
        .map(|(mut strays, processes)| {
            strays.extend(
                processes
                    .into_iter()
                    .map(|(pid, sandbox)| self.stray_process(pid, sandbox)),
            );
            strays
        })
    }
}
