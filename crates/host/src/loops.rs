//! Loop devices: a file as a block device. Acquire by `LOOP_CONFIGURE` in one call, with autoclear:
//! the kernel itself detaches the file when the last user (us, then device-mapper) has closed the
//! device. Release makes sure that it did.
//!
//! A loop device is known by its backing file's device and inode numbers, never by its own name:
//! the kernel gives `loop3` to whoever comes next.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cowslip_ledger::plan::Presence;
use cowslip_ledger::{Held, Reservation, Resource};
use serde::{Deserialize, Serialize};

use crate::dm::DeviceNumber;
use crate::error::HostError;
use crate::file::Inode;

const CONTROL: &str = "/dev/loop-control";
/// Others may take the free device that the kernel named before we do.
const ATTACH_TRIES: u32 = 64;
/// Tries until a device that is being closed elsewhere is seen detached; each pause is twice the one
/// before.
const DETACH_TRIES: u32 = 8;
const DETACH_PAUSE: Duration = Duration::from_millis(4);

/// The kind.
#[derive(Debug)]
pub struct Loop;

/// A loop device to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopSpec {
    /// The backing file; one of cowslip's.
    pub path: PathBuf,
    /// Whether it can only be read.
    pub read_only: bool,
    /// Whether a flush of the device syncs the file. Otherwise the device says that it has no cache,
    /// so that device-mapper commits changes without an fsync for each; whoever promises durability
    /// syncs the file.
    #[serde(default)]
    pub flushes: bool,
}

/// Which loop device, and over which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopIdentity {
    /// `/dev/loop<index>`.
    pub index: u32,
    /// The loop device's number.
    #[serde(flatten)]
    pub number: DeviceNumber,
    /// The backing file.
    pub file: Inode,
}

impl Resource for Loop {
    const KIND: &'static str = "loop";
    type Spec = LoopSpec;
    type Identity = LoopIdentity;
}

/// Keeps a loop device attached until something else (a device-mapper table) holds it.
#[derive(Debug)]
pub struct LoopHold(#[expect(dead_code, reason = "held, not used")] Option<File>);

impl LoopHold {
    /// One that holds nothing: for hosts that only pretend.
    #[must_use]
    pub const fn nothing() -> Self {
        Self(None)
    }
}

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const EMPTY: Info = Info {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;

/// Whether this user can attach loop devices.
///
/// # Errors
/// When there is no control device, or it does not open.
pub(crate) fn usable() -> Result<(), HostError> {
    control().map(drop)
}

fn control() -> Result<File, HostError> {
    let path = Path::new(CONTROL);
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(HostError::path("open", path))
}

fn node(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{index}"))
}

pub(crate) fn acquire(slot: Reservation<Loop>) -> Result<(Held<Loop>, LoopHold), HostError> {
    let LoopSpec {
        path,
        read_only,
        flushes,
    } = slot.spec().clone();
    let backing = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .open(&path)
        .map_err(HostError::path("open", &path))?;
    let found = backing
        .metadata()
        .map_err(HostError::path("look at", &path))?;
    let (index, device) =
        attach(&backing, read_only).map_err(HostError::path("attach a loop device to", &path))?;
    let number = device
        .metadata()
        .map_err(HostError::path("look at", &node(index)))?
        .rdev();
    if !read_only && !flushes {
        declare_write_through(index)?;
    }
    let held = slot.acquired(LoopIdentity {
        index,
        number: DeviceNumber {
            major: rustix::fs::major(number),
            minor: rustix::fs::minor(number),
        },
        file: Inode {
            dev: found.dev(),
            ino: found.ino(),
        },
    })?;
    Ok((held, LoopHold(Some(device))))
}

/// Attaches a loop device without a row, for as long as the file or a table holds it.
///
/// # Errors
/// When there is no free device, or it takes no file.
#[cfg(feature = "bare")]
pub fn attach_bare(backing: &File) -> io::Result<(DeviceNumber, File)> {
    let (_, device) = attach(backing, false)?;
    let number = device.metadata()?.rdev();
    let number = DeviceNumber {
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
    };
    Ok((number, device))
}

/// Takes a free device, again where somebody else was faster (R10).
fn attach(backing: &File, read_only: bool) -> io::Result<(u32, File)> {
    let control = OpenOptions::new().read(true).write(true).open(CONTROL)?;
    let flags = LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
    let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
    for _ in 0..ATTACH_TRIES {
        let index = ioctl(&control, LOOP_CTL_GET_FREE, std::ptr::null_mut())?;
        let index = u32::try_from(index).map_err(io::Error::other)?;
        let opened = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(node(index));
        let device = match opened {
            Ok(device) => device,
            // Removed again by whoever made it.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(libc::ENXIO) =>
            {
                last = error;
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut config = Config {
            fd: u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?,
            block_size: 512,
            info: Info { flags, ..EMPTY },
            reserved: [0; 8],
        };
        match ioctl(&device, LOOP_CONFIGURE, (&raw mut config).cast()) {
            Ok(_) => return Ok((index, device)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Says that the device has no cache that a flush would empty.
fn declare_write_through(index: u32) -> Result<(), HostError> {
    let path = PathBuf::from(format!("/sys/block/loop{index}/queue/write_cache"));
    std::fs::write(&path, "write through").map_err(HostError::path("write to", &path))
}

fn ioctl(file: &File, request: libc::c_ulong, argument: *mut libc::c_void) -> io::Result<i32> {
    // SAFETY: each request here takes no argument, or a pointer to the structure that the kernel
    // defines for it, which the caller owns.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The file behind a loop device; none where nothing is attached.
fn backing_of(device: &File) -> io::Result<Option<Inode>> {
    let mut info = EMPTY;
    match ioctl(device, LOOP_GET_STATUS64, (&raw mut info).cast()) {
        Ok(_) => Ok(Some(Inode {
            dev: info.device,
            ino: info.inode,
        })),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens the device `index` where it is attached to `file`.
fn open_attached(index: u32, file: Inode) -> Result<Option<File>, HostError> {
    let path = node(index);
    let device = match OpenOptions::new().read(true).open(&path) {
        Ok(device) => device,
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ENXIO) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(HostError::path("open", &path)(error)),
    };
    let found = backing_of(&device).map_err(HostError::path("look at", &path))?;
    Ok((found == Some(file)).then_some(device))
}

/// Every loop device over `file`.
fn attached_to(file: Inode) -> Result<Vec<(u32, File)>, HostError> {
    let mut found = Vec::new();
    for index in attached()? {
        if let Some(device) = open_attached(index, file)? {
            found.push((index, device));
        }
    }
    Ok(found)
}

/// Indices of the devices that are attached to something.
fn attached() -> Result<Vec<u32>, HostError> {
    let place = Path::new("/sys/block");
    let entries = match std::fs::read_dir(place) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(HostError::path("list", place)(error)),
    };
    let mut indices: Vec<u32> = entries
        .flatten()
        .filter(|entry| entry.path().join("loop").exists())
        .filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_prefix("loop")?.parse().ok()
        })
        .collect();
    indices.sort_unstable();
    Ok(indices)
}

/// The devices that a row speaks of: recorded, or found by the file it names.
fn find(spec: &LoopSpec, identity: Option<&LoopIdentity>) -> Result<Vec<(u32, File)>, HostError> {
    if let Some(identity) = identity {
        let device = open_attached(identity.index, identity.file)?;
        return Ok(device
            .map(|device| (identity.index, device))
            .into_iter()
            .collect());
    }
    match Inode::of(&spec.path) {
        Ok(file) => attached_to(file),
        // A file that is not there was never attached, since it goes last.
        Err(HostError::Path { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

pub(crate) fn probe(
    spec: &LoopSpec,
    identity: Option<&LoopIdentity>,
) -> Result<Presence, HostError> {
    Ok(if find(spec, identity)?.is_empty() {
        Presence::Absent
    } else {
        Presence::Present
    })
}

/// Detaches, and waits until that is seen (R12): the store's file may only go after it.
pub(crate) fn release(spec: &LoopSpec, identity: Option<&LoopIdentity>) -> Result<(), HostError> {
    let mut pause = DETACH_PAUSE;
    for attempt in 1.. {
        let found = find(spec, identity)?;
        let Some((index, _)) = found.first() else {
            return Ok(());
        };
        let index = *index;
        for (_, device) in found {
            match ioctl(&device, LOOP_CLR_FD, std::ptr::null_mut()) {
                Ok(_) => {}
                // Detached meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {}
                Err(error) => {
                    return Err(HostError::path("detach the loop device over", &spec.path)(
                        error,
                    ));
                }
            }
            // With other users the kernel only remembers the wish: the last close detaches.
            drop(device);
        }
        if attempt == DETACH_TRIES {
            if probe(spec, identity)? == Presence::Absent {
                return Ok(());
            }
            let number = std::fs::metadata(node(index)).map(|found| DeviceNumber {
                major: rustix::fs::major(found.rdev()),
                minor: rustix::fs::minor(found.rdev()),
            });
            return Err(HostError::LoopBusy {
                path: spec.path.clone(),
                index,
                holders: number.map(crate::holders::of).unwrap_or_default(),
            });
        }
        if attempt > 1 {
            std::thread::sleep(pause);
            pause *= 2;
        }
    }
    Ok(())
}

/// Loop devices over files in `places` that no path in `known` accounts for.
pub(crate) fn strays(
    places: &[PathBuf],
    known: &std::collections::HashSet<PathBuf>,
) -> Result<Vec<LoopSpec>, HostError> {
    let mut found = Vec::new();
    for index in attached()? {
        let path = format!("/sys/block/loop{index}/loop/backing_file");
        // Gone between the two looks.
        let Ok(text) = std::fs::read_to_string(path) else {
            continue;
        };
        let path = PathBuf::from(text.trim_end_matches('\n'));
        let ours = places.iter().any(|place| path.starts_with(place));
        if ours && !known.contains(&path) {
            found.push(LoopSpec {
                path,
                read_only: false,
                flushes: false,
            });
        }
    }
    Ok(found)
}
