//! The simulated host: the same refusals as Linux, in memory.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use cowslip_host::file::Inode;
use cowslip_host::mount::MountIdentity;
use cowslip_host::process::mark;
use cowslip_host::usage::Space;
use cowslip_host::{
    Cgroup, Content, Count, DeniedLog, Device, DeviceSpec, Directory, DroppingChain, Element, File,
    Head, Host, HostError, Launch, Layout, Loop, LoopHold, Mount, Netns, NetnsSpec, Process,
    ProcessSpec, Segment, Socket, TableSocket,
};
use cowslip_ledger::fault::Injector;
use cowslip_ledger::plan::{Presence, Stray};
use cowslip_ledger::{
    FileStamp, HandleRow, HandleState, Held, LedgerError, Owner, Reservation, Resource,
};
use cowslip_model::{HandleId, InstanceId, PublishedPort, SandboxId, Timestamp};

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

    fn own(&self, path: &Path) -> Result<(), HostError> {
        if self.layout.owns(path) {
            Ok(())
        } else {
            Err(HostError::Outside {
                path: path.to_owned(),
            })
        }
    }

    /// Does something to a network, by its rules. None: it lacks what that needs.
    fn network<T>(
        &self,
        netns: &NetnsSpec,
        operation: &'static str,
        act: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, HostError> {
        let path = &netns.path;
        self.own(path)?;
        self.step(&format!("host: {operation}"), |inner| {
            let file = inner.file(path).map_err(HostError::path("open", path))?;
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            act(&String::from_utf8_lossy(&file.head))
                .ok_or_else(|| HostError::path(operation, path)(missing))
        })
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

/// Whether rules have a table with something of that name.
fn has(rules: &str, table: &str, kind: &str, name: &str) -> bool {
    rules.contains(&format!("table inet {table} {{"))
        && rules.contains(&format!("\t{kind} {name} {{"))
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
        self.own(&path)?;
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
        self.own(&path)?;
        let inode = self.step("host: make control group", |inner| {
            inner
                .create(&path, Node::Directory)
                .map_err(HostError::path("make the control group", &path))
        })?;
        Ok(slot.acquired(inode)?)
    }

    fn make_netns(&self, slot: Reservation<Netns>, rules: &str) -> Result<Held<Netns>, HostError> {
        let path = slot.spec().path.clone();
        self.own(&path)?;
        let inode = self.step("host: make network namespace", |inner| {
            inner.note_network(&path);
            inner
                .create(&path, Node::File(FileNode::whole(rules.as_bytes())))
                .map_err(HostError::path("make", &path))
        })?;
        Ok(slot.acquired(inode)?)
    }

    fn lacks_networks(&self) -> Option<String> {
        None
    }

    fn set_forwarding(&self, _really: bool) -> Result<bool, HostError> {
        Ok(false)
    }

    fn forwarding_is_dropped(&self, _links: &str) -> Result<Vec<DroppingChain>, HostError> {
        Ok(Vec::new())
    }

    fn resolv_conf(&self) -> Result<String, HostError> {
        Ok(String::new())
    }

    fn addresses(&self) -> Result<Vec<Ipv4Addr>, HostError> {
        Ok(vec![Ipv4Addr::LOCALHOST])
    }

    fn has_address(&self, address: Ipv4Addr) -> bool {
        address.is_loopback()
    }

    fn port_holder(&self, _port: &PublishedPort) -> Result<Option<String>, HostError> {
        Ok(None)
    }

    fn open_tap(&self, netns: &NetnsSpec) -> Result<OwnedFd, HostError> {
        let null = Path::new("/dev/null");
        self.own(&netns.path)?;
        let opened = std::fs::File::open(null).map_err(HostError::path("open", null))?;
        Ok(opened.into())
    }

    /// Sockets of this machine's loopback, which nobody speaks to.
    fn listen_in(
        &self,
        netns: &NetnsSpec,
        _address: SocketAddrV4,
    ) -> Result<(UdpSocket, TcpListener), HostError> {
        self.own(&netns.path)?;
        self.step("host: listen in network", |_| {
            let bind = || {
                let loopback = (Ipv4Addr::LOCALHOST, 0);
                let (udp, tcp) = (UdpSocket::bind(loopback)?, TcpListener::bind(loopback)?);
                udp.set_nonblocking(true)?;
                tcp.set_nonblocking(true)?;
                Ok((udp, tcp))
            };
            let bound: std::io::Result<_> = bind();
            bound.map_err(HostError::path("listen in the network", &netns.path))
        })
    }

    fn reload_netns(&self, netns: &NetnsSpec, rules: &str) -> Result<(), HostError> {
        let path = &netns.path;
        self.own(path)?;
        self.step("host: reload rules", |inner| {
            let file = inner
                .file_mut(path)
                .map_err(HostError::path("open", path))?;
            *file = FileNode::whole(rules.as_bytes());
            Ok(())
        })
    }

    fn open_addresses(
        &self,
        netns: &NetnsSpec,
        table: &str,
        elements: &[Element],
        _kept: &mut TableSocket,
    ) -> Result<(), HostError> {
        self.network(netns, "open addresses in the network", |rules| {
            let known = |element: &Element| has(rules, table, "set", &element.set);
            elements.iter().all(known).then_some(())
        })
    }

    /// Nothing passes here.
    fn count(&self, netns: &NetnsSpec, table: &str, counter: &str) -> Result<Count, HostError> {
        self.network(netns, "read a counter of the network", |rules| {
            has(rules, table, "counter", counter).then(Count::default)
        })
    }

    /// One that [`World::deny`] writes to.
    fn denied_log(&self, netns: &NetnsSpec, _group: u16) -> Result<DeniedLog, HostError> {
        const OPERATION: &str = "listen to the log of the network";
        let path = &netns.path;
        self.network(netns, OPERATION, |_| Some(()))?;
        let socket = self
            .world
            .listen(path)
            .map_err(HostError::path(OPERATION, path))?;
        DeniedLog::new(socket).map_err(HostError::path(OPERATION, path))
    }

    fn has_packet_log(&self) -> Result<bool, HostError> {
        self.step("host: look for the log of packets", |_| Ok(true))
    }

    fn shape_netns(&self, netns: &NetnsSpec, _bandwidth: Option<u64>) -> Result<(), HostError> {
        self.network(netns, "limit the bandwidth of", |_| Some(()))
    }

    fn load_host_rules(&self, rules: &str) -> Result<(), HostError> {
        self.step("host: load rules", |inner| {
            inner.load_host_rules(rules, &self.layout.networks());
            Ok(())
        })
    }

    fn make_file(
        &self,
        slot: Reservation<File>,
        content: Content<'_>,
    ) -> Result<Held<File>, HostError> {
        let path = slot.spec().path.clone();
        self.own(&path)?;
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
        self.own(&path)?;
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
        self.own(&target)?;
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
            self.own(path)?;
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

    fn publish(&self, path: &Path, bytes: &[u8]) -> Result<(), HostError> {
        self.own(path)?;
        self.step("host: publish file", |inner| {
            inner
                .replace(path, bytes)
                .map_err(HostError::path("publish", path))
        })
    }

    fn sync(&self, path: &Path) -> Result<(), HostError> {
        self.step("host: sync", |inner| {
            if inner.entries.contains_key(path) {
                return Ok(());
            }
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            Err(HostError::path("sync", path)(missing))
        })
    }

    fn rewrite(&self, path: &Path, at: u64, bytes: &[u8]) -> Result<(), HostError> {
        self.own(path)?;
        self.step("host: rewrite", |inner| {
            let file = inner
                .file_mut(path)
                .map_err(HostError::path("write to", path))?;
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            // Beyond the head nothing is simulated.
            for (index, byte) in bytes.iter().enumerate() {
                if let Some(place) = at
                    .checked_add(index)
                    .and_then(|place| file.head.get_mut(place))
                {
                    *place = *byte;
                }
            }
            Ok(())
        })
    }

    fn remove_file(&self, path: &Path) -> Result<(), HostError> {
        self.own(path)?;
        self.step("host: remove file", |inner| {
            if inner.entries.contains_key(path) {
                inner.file(path).map_err(HostError::path("remove", path))?;
                inner.remove(path);
            }
            Ok(())
        })
    }

    fn relink(&self, gone: &[PathBuf], links: &[(PathBuf, PathBuf)]) -> Result<(), HostError> {
        for path in gone.iter().chain(links.iter().map(|(_, to)| to)) {
            self.own(path)?;
        }
        self.step("host: relink", |inner| {
            for path in gone.iter().chain(links.iter().map(|(_, to)| to)) {
                if inner.entries.contains_key(path) {
                    inner.file(path).map_err(HostError::path("remove", path))?;
                    inner.remove(path);
                }
            }
            for (from, to) in links {
                let failed = HostError::path("give another name to", from);
                let file = inner.file(from).cloned();
                // Images are never written again: a copy is as good as another name.
                file.and_then(|file| inner.create(to, Node::File(file)))
                    .map_err(failed)?;
            }
            Ok(())
        })
    }

    fn head(&self, path: &Path, limit: usize) -> Result<Option<Head>, HostError> {
        self.step("host: read head", |inner| {
            let Some(entry) = inner.entries.get(path) else {
                return Ok(None);
            };
            let Node::File(file) = &entry.node else {
                let why = "it is not a plain file".to_owned();
                return Err(HostError::Foreign {
                    path: path.to_owned(),
                    why,
                });
            };
            let bytes = file.head[..file.head.len().min(limit)].to_vec();
            Ok(Some(Head {
                bytes,
                length: file.length,
                stamp: FileStamp {
                    inode: entry.inode,
                    modified: i64::try_from(file.writes.len()).unwrap_or(i64::MAX),
                },
            }))
        })
    }

    /// A real file with the head that the simulated one has: its content is in the world.
    fn open(&self, path: &Path) -> Result<Option<std::fs::File>, HostError> {
        let Some(head) = self.head(path, usize::MAX)? else {
            return Ok(None);
        };
        let make = || {
            let file = tempfile::tempfile()?;
            file.write_all_at(&head.bytes, 0)?;
            file.set_len(head.length)?;
            Ok::<_, std::io::Error>(file)
        };
        make().map(Some).map_err(HostError::path("open", path))
    }

    /// Not a step: it is looked at by the clock, so a harness that counts steps must not meet it.
    fn space(&self, _path: &Path) -> Result<Space, HostError> {
        Ok(self.world.lock().space)
    }

    fn usage(&self, path: &Path) -> Result<u64, HostError> {
        Ok(self.world.lock().usage(path))
    }
}
