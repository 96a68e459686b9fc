//! Waits for the devices without which there is nothing to do: the root disk and the way to the
//! host. The kernel says when a device comes (uevents); nothing here looks twice without reason.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cowslip_proto::limits::PORT_NAME;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use super::BootError;

/// How long a device may take to come. Virtual ones are there at once; this only ends a boot that
/// would hang for ever.
const PATIENCE: Duration = Duration::from_secs(30);
/// Multicast group of the kernel's own uevents.
const KERNEL_GROUP: u32 = 1;

/// Hears of new devices from the moment that it is made.
#[derive(Debug)]
pub(super) struct Devices {
    uevents: OwnedFd,
}

impl Devices {
    pub(super) fn listen() -> Result<Self, BootError> {
        let open = || -> io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let kind = SocketType::DGRAM;
            let socket = socket_with(AddressFamily::NETLINK, kind, flags, Some(KOBJECT_UEVENT))?;
            bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
            Ok(socket)
        };
        let uevents = open().map_err(|e| BootError::path("listen for", "new devices", e))?;
        Ok(Self { uevents })
    }

    /// Waits until the root disk is there.
    pub(super) fn disk(&self, path: &str) -> Result<(), BootError> {
        self.wait(|| Path::new(path).exists().then_some(()))?
            .ok_or_else(|| BootError::Missing {
                what: format!("the root disk \"{path}\""),
            })
    }

    /// Opens the agent's port as soon as it is there; `None` on a machine that has vsock and no
    /// virtio console instead.
    pub(super) fn port(&self) -> Result<Option<OwnedFd>, BootError> {
        let found = self.wait(|| match find_port() {
            Some(path) => Some(Some(path)),
            None if has_virtio_device(VIRTIO_VSOCK) && !has_virtio_device(VIRTIO_CONSOLE) => {
                Some(None)
            }
            None => None,
        })?;
        match found {
            Some(Some(path)) => {
                let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let port = rustix::fs::open(&path, flags, Mode::empty());
                let name = path.display().to_string();
                port.map(Some)
                    .map_err(|e| BootError::path("open port", &name, e.into()))
            }
            Some(None) => Ok(None),
            None => Err(BootError::Missing {
                what: format!("the virtio-serial port \"{PORT_NAME}\""),
            }),
        }
    }

    /// Looks now and after every event; `None` when the patience is at its end.
    fn wait<T>(&self, mut look: impl FnMut() -> Option<T>) -> Result<Option<T>, BootError> {
        let deadline = Instant::now() + PATIENCE;
        let failed = |e: rustix::io::Errno| BootError::path("wait for", "new devices", e.into());
        loop {
            if let Some(found) = look() {
                return Ok(Some(found));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or(Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            });
            let mut fds = [PollFd::new(&self.uevents, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return Ok(look()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(failed(e)),
            }
            self.drain();
        }
    }

    /// What an event says does not matter: everything is looked at again.
    fn drain(&self) {
        let mut buf = [0; 4096];
        while recv(&self.uevents, &mut buf, RecvFlags::DONTWAIT).is_ok() {}
    }
}

/// Device ids of the virtio specification, section 5.
const VIRTIO_CONSOLE: u32 = 3;
const VIRTIO_VSOCK: u32 = 19;

fn has_virtio_device(id: u32) -> bool {
    let devices = fs::read_dir("/sys/bus/virtio/devices")
        .into_iter()
        .flatten()
        .flatten();
    let mut ids = devices.filter_map(|d| {
        let text = fs::read_to_string(d.path().join("device")).ok()?;
        u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
    });
    ids.any(|found| found == id)
}

/// Without udev there is no `/dev/virtio-ports`: sysfs has the names.
fn find_port() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    ports.flatten().find_map(|port| {
        let name = fs::read_to_string(port.path().join("name")).ok()?;
        let path = Path::new("/dev").join(port.file_name());
        (name.trim_end() == PORT_NAME && path.exists()).then_some(path)
    })
}
