//! What can be done to the host, for everything above to run on a real one and on a simulated one.
//!
//! Three traits, since few callers need more than one; whoever has a [`Host`] has all. Everything is blocking: call it
//! from a thread that may block.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use cowslip_ledger::plan::{Presence, Stray};
use cowslip_ledger::{HandleRow, Held, Reservation};
use cowslip_model::PublishedPort;

use crate::netns::{Count, DeniedLog, DroppingChain, Element, Netns, NetnsSpec, TableSocket};
use crate::{
    Cgroup, Content, Device, DeviceSpec, Directory, File, Head, HostError, Launch, Loop, LoopHold,
    Mount, Process, Segment, Socket, usage,
};

/// Handles: making them, finding them again and making them gone.
pub trait Host: Files + Networks + Send + Sync + 'static {
    /// The kernel's id of the present boot.
    fn boot_id(&self) -> String;

    /// Makes a directory.
    ///
    /// # Errors
    /// When it exists already, or cannot be made.
    fn make_directory(&self, slot: Reservation<Directory>) -> Result<Held<Directory>, HostError>;

    /// Makes a file with this content.
    ///
    /// # Errors
    /// When it exists already or cannot be written; what was written is removed.
    fn make_file(
        &self,
        slot: Reservation<File>,
        content: Content<'_>,
    ) -> Result<Held<File>, HostError>;

    /// Binds a listening unix socket.
    ///
    /// # Errors
    /// When the path is taken or too long.
    fn bind_socket(
        &self,
        slot: Reservation<Socket>,
    ) -> Result<(Held<Socket>, UnixListener), HostError>;

    /// Binds one directory over another.
    ///
    /// # Errors
    /// When the mount is refused.
    fn bind_mount(&self, slot: Reservation<Mount>) -> Result<Held<Mount>, HostError>;

    /// Starts a process in a session of its own.
    ///
    /// # Errors
    /// When it cannot be started; nothing runs then.
    fn spawn(&self, slot: Reservation<Process>, launch: Launch)
    -> Result<Held<Process>, HostError>;

    /// Attaches a loop device. It stays while the hold or a device over it does.
    ///
    /// # Errors
    /// When the file does not open, or no loop device is free; nothing is attached then.
    fn attach_loop(&self, slot: Reservation<Loop>) -> Result<(Held<Loop>, LoopHold), HostError>;

    /// The roots below which a machine gets a control group each; none where this host has none for us.
    fn cgroup_roots(&self) -> Vec<PathBuf>;

    /// Makes a control group, with its limits.
    ///
    /// # Errors
    /// When it is there, or a limit is refused.
    fn make_cgroup(&self, slot: Reservation<Cgroup>) -> Result<Held<Cgroup>, HostError>;

    /// Makes a device of device-mapper, ready for use.
    ///
    /// # Errors
    /// When its table is refused; there is no device then.
    fn make_device(&self, slot: Reservation<Device>) -> Result<Held<Device>, HostError>;

    /// Gives a device in use another table: what was on its way arrives under the old one.
    ///
    /// # Errors
    /// When the table is refused; the device has the old one then.
    fn switch_device(&self, device: &DeviceSpec, table: &[Segment]) -> Result<(), HostError>;

    /// The table that a device has now.
    ///
    /// # Errors
    /// When there is no such device.
    fn device_table(&self, device: &DeviceSpec) -> Result<Vec<Segment>, HostError>;

    /// Whether what `row` names is there, and is ours.
    ///
    /// # Errors
    /// When the host does not tell.
    fn probe(&self, row: &HandleRow) -> Result<Presence, HostError>;

    /// Makes what `row` names gone. `Ok` means gone: released now, or gone before.
    ///
    /// # Errors
    /// When it is still there, and why.
    fn release(&self, row: &HandleRow) -> Result<(), HostError>;

    /// What bears this instance's mark, or lies in its directories, and is in none of `rows`.
    ///
    /// # Errors
    /// When the host cannot be searched.
    fn strays(&self, rows: &[HandleRow]) -> Result<Vec<Stray>, HostError>;
}

/// Networks of sandboxes, and what they need of the host's own.
pub trait Networks {
    /// Makes a network namespace with a tap, and its link to the host. All packets in it pass under `rules`, a script
    /// of nft(8).
    ///
    /// # Errors
    /// When a part of it cannot be made, or the rules are refused.
    fn make_netns(&self, slot: Reservation<Netns>, rules: &str) -> Result<Held<Netns>, HostError>;

    /// Why no networks can be made on this host; none: they can.
    fn lacks_networks(&self) -> Option<String>;

    /// Whether the host does not pass packets on between its interfaces; then it does from now on, if `really`.
    ///
    /// # Errors
    /// When the setting cannot be read or written.
    fn set_forwarding(&self, really: bool) -> Result<bool, HostError>;

    /// Chains of other firewalls that drop what is passed on from one interface to another, and let no links pass whose
    /// names begin with `links`.
    ///
    /// # Errors
    /// When the host does not tell.
    fn forwarding_is_dropped(&self, links: &str) -> Result<Vec<DroppingChain>, HostError>;

    /// The text of this host's resolv.conf(5); empty where it has none.
    ///
    /// # Errors
    /// When it cannot be read.
    fn resolv_conf(&self) -> Result<String, HostError>;

    /// This host's own addresses, in no order.
    ///
    /// # Errors
    /// When the kernel does not tell.
    fn addresses(&self) -> Result<Vec<Ipv4Addr>, HostError>;

    /// Whether an address is one of this host's own.
    fn has_address(&self, address: Ipv4Addr) -> bool;

    /// Who listens on a port that is to be published, in words; none: nobody.
    ///
    /// # Errors
    /// When the host does not tell.
    fn port_holder(&self, port: &PublishedPort) -> Result<Option<String>, HostError>;

    /// Opens the tap of a network namespace, for a monitor that gets it as a descriptor.
    ///
    /// # Errors
    /// When it is gone, or open already.
    fn open_tap(&self, netns: &NetnsSpec) -> Result<OwnedFd, HostError>;

    /// Sockets that do not block, at an address in a network namespace: for datagrams and for connections. The namespace
    /// lasts for as long as they do.
    ///
    /// # Errors
    /// When it is gone, or the port is taken.
    fn listen_in(
        &self,
        netns: &NetnsSpec,
        address: SocketAddrV4,
    ) -> Result<(UdpSocket, TcpListener), HostError>;

    /// Gives a network namespace other rules, all at once.
    ///
    /// # Errors
    /// When they are refused; it has the old ones then.
    fn reload_netns(&self, netns: &NetnsSpec, rules: &str) -> Result<(), HostError>;

    /// Gives the host rules for the links of its networks, all at once.
    ///
    /// # Errors
    /// When they are refused; it has the old ones then.
    fn load_host_rules(&self, rules: &str) -> Result<(), HostError>;

    /// Puts addresses into sets of a table of a network namespace, all at once. Those that are there stay for as long as
    /// is said now. `kept`: of that namespace, from one call to the next.
    ///
    /// # Errors
    /// When the table or a set is not there; nothing is in the sets then that was not there before.
    fn open_addresses(
        &self,
        netns: &NetnsSpec,
        table: &str,
        elements: &[Element],
        kept: &mut TableSocket,
    ) -> Result<(), HostError>;

    /// What a counter of a table of a network namespace has counted since its rules were loaded.
    ///
    /// # Errors
    /// When there is none of that name.
    fn count(&self, netns: &NetnsSpec, table: &str, counter: &str) -> Result<Count, HostError>;

    /// Packets that the rules of a network namespace log to a group: from now on, and to nobody else. To be called in a
    /// runtime of tokio. The namespace lasts for as long as this is listened to.
    ///
    /// # Errors
    /// When the namespace is not there, the kernel has no log, or somebody listens to the group.
    fn denied_log(&self, netns: &NetnsSpec, group: u16) -> Result<DeniedLog, HostError>;

    /// Whether rules may log packets. A kernel that cannot refuses rules that do.
    ///
    /// # Errors
    /// When the kernel does not tell.
    fn has_packet_log(&self) -> Result<bool, HostError>;

    /// Lets so many bytes pass through a network namespace in a second, in each direction; none: as many as it goes.
    ///
    /// # Errors
    /// When the namespace is not there, or the kernel has no token buckets.
    fn shape_netns(&self, netns: &NetnsSpec, bandwidth: Option<u64>) -> Result<(), HostError>;
}

/// Files in the engine's own directories that are no handles themselves.
pub trait Files {
    /// Writes `bytes` to `path` so that it is either whole or absent, whatever happens.
    ///
    /// # Errors
    /// When it cannot be written.
    fn publish(&self, path: &Path, bytes: &[u8]) -> Result<(), HostError>;

    /// Removes a file inside a directory that a handle holds; absent is fine.
    ///
    /// # Errors
    /// When it is still there, and why.
    fn remove_file(&self, path: &Path) -> Result<(), HostError>;

    /// Removes the files `gone` (absent is fine), then gives each of the first plain files a second name: one
    /// inside a directory that a handle holds, which replaces what stood there.
    ///
    /// # Errors
    /// At the first that does not come about; what was done before stays.
    fn relink(&self, gone: &[PathBuf], links: &[(PathBuf, PathBuf)]) -> Result<(), HostError>;

    /// Presses a file, or a directory's entries, onto the disk.
    ///
    /// # Errors
    /// When the disk refuses.
    fn sync(&self, path: &Path) -> Result<(), HostError>;

    /// Writes bytes over those of a plain file, in place, and presses them onto the disk.
    ///
    /// # Errors
    /// When there is no such file, or the disk refuses.
    fn rewrite(&self, path: &Path, at: u64, bytes: &[u8]) -> Result<(), HostError>;

    /// The first `limit` bytes of a plain file, and its length; none where there is nothing.
    ///
    /// # Errors
    /// [`HostError::Foreign`] when something else than a plain file stands there, or when it cannot
    /// be read.
    fn head(&self, path: &Path, limit: usize) -> Result<Option<Head>, HostError>;

    /// Opens a plain file to be read; none where there is nothing.
    ///
    /// # Errors
    /// [`HostError::Foreign`] when something else than a plain file stands there, or when it cannot
    /// be opened.
    fn open(&self, path: &Path) -> Result<Option<std::fs::File>, HostError>;

    /// Bytes that a file or a tree occupies on the disk; zero where there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    fn usage(&self, path: &Path) -> Result<u64, HostError>;

    /// Space of the file system of `path`. What machines have written and the page cache still holds counts as taken,
    /// whatever file system it goes to: a monitor that writes through the page cache cannot be held up any more.
    ///
    /// # Errors
    /// When the file system does not tell.
    fn space(&self, path: &Path) -> Result<usage::Space, HostError>;
}
