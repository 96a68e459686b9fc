//! The ioctl interface of device-mapper: `/dev/mapper/control`, one function a command.
//!
//! Every command takes one buffer: a header, and after it targets, names or nothing. The same buffer
//! comes back. Layouts and numbers are those of the kernel's `linux/dm-ioctl.h`, version 4, which has
//! been stable since Linux 2.6.
//!
//! No cookie is ever given, so no command waits for udev, and where udev runs its rules are told not to
//! scan or link what is ours.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::table::{Segment, parse_table};
use super::{DeviceNumber, DmError};

const CONTROL: &str = "/dev/mapper/control";
const HEADER: usize = 312;
const TARGET: usize = 40;
const NAME_AT: usize = 48;
const NAME_LEN: usize = 128;
const UUID_AT: usize = 176;
const UUID_LEN: usize = 129;
/// Answers are short: a table of ours has two targets, and lists are read again where this is too little.
const BUFFER: usize = 16 << 10;

const SUSPEND: u32 = 1 << 1;
const STATUS_TABLE: u32 = 1 << 4;
const BUFFER_FULL: u32 = 1 << 8;
const READ_ONLY: u32 = 1;
/// Rules of udev that make links, scan for file systems, or run programs: none for our devices.
const UDEV_FLAGS: u32 = (0x2 | 0x4 | 0x8) << 16;

#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Command {
    ListDevices = 2,
    Create = 3,
    Remove = 4,
    Suspend = 6,
    Status = 7,
    Load = 9,
    Clear = 10,
    TableStatus = 12,
    ArmPoll = 16,
    TargetVersion = 17,
}

impl Command {
    const fn words(self) -> &'static str {
        match self {
            Self::ListDevices => "list the devices",
            Self::Create => "create the device",
            Self::Remove => "remove the device",
            Self::Suspend => "suspend or resume the device",
            Self::Status => "look at the device",
            Self::Load => "load a table for the device",
            Self::Clear => "clear the new table of the device",
            Self::TableStatus => "read the table of the device",
            Self::ArmPoll => "wait for events of device-mapper",
            Self::TargetVersion => "look for the target",
        }
    }

    /// The lowest version of the interface that has the command: older kernels say so themselves.
    const fn version(self) -> [u32; 3] {
        match self {
            Self::ArmPoll => [4, 37, 0],
            Self::TargetVersion => [4, 41, 0],
            _ => [4, 0, 0],
        }
    }
}

/// What the kernel tells of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its number.
    pub number: DeviceNumber,
    /// Its uuid; empty where it has none.
    pub uuid: String,
    /// How often it is open.
    pub open_count: u32,
    /// Whether its I/O is held back.
    pub suspended: bool,
}

/// How a device of a message is named.
#[derive(Debug, Clone, Copy)]
struct Named<'a> {
    name: &'a str,
    uuid: &'a str,
}

/// The open control device. Cheap to make; commands are independent of one another.
#[derive(Debug)]
pub struct Control(File);

impl Control {
    /// Opens it.
    ///
    /// # Errors
    /// When this kernel has no device-mapper, or this user may not use it.
    pub fn open() -> Result<Self, DmError> {
        let file = OpenOptions::new().read(true).write(true).open(CONTROL);
        file.map(Self).map_err(|source| DmError::Control {
            path: Path::new(CONTROL).to_owned(),
            source,
        })
    }

    /// The descriptor, which is readable when an event came since [`Control::arm`].
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0
    }

    /// From now on the descriptor becomes readable by the next event of any device.
    ///
    /// # Errors
    /// On kernels before 4.13.
    pub fn arm(&self) -> Result<(), DmError> {
        self.call(Command::ArmPoll, None, 0, 0, &[], 0).map(drop)
    }

    /// Whether there is such a target; the kernel loads its module for the question.
    ///
    /// # Errors
    /// [`DmError::Call`] with `ENXIO`-like causes where there is none.
    pub fn target_version(&self, target: &str) -> Result<(), DmError> {
        let named = Named {
            name: target,
            uuid: "",
        };
        self.call(Command::TargetVersion, Some(named), 0, 0, &[], 0)
            .map(drop)
    }

    /// Creates a device without a table.
    ///
    /// # Errors
    /// When the name or uuid is taken.
    pub fn create(&self, name: &str, uuid: &str) -> Result<Status, DmError> {
        self.call(
            Command::Create,
            Some(Named { name, uuid }),
            0,
            UDEV_FLAGS,
            &[],
            0,
        )
        .map(|answer| status(&answer))
    }

    /// Loads a table; it is used from the next [`Control::resume`].
    ///
    /// # Errors
    /// When a target refuses its words, or a device of it is not there.
    pub fn load(&self, name: &str, table: &[Segment], read_only: bool) -> Result<(), DmError> {
        let mut body = Vec::new();
        for segment in table {
            let words = segment.target.words();
            // Each target begins at a multiple of eight, and its words end with a NUL.
            let length = (TARGET + words.len() + 1).next_multiple_of(8);
            let start = body.len();
            body.resize(start + length, 0);
            let mut put = |at: usize, bytes: &[u8]| {
                body[start + at..start + at + bytes.len()].copy_from_slice(bytes);
            };
            put(0, &segment.start.to_ne_bytes());
            put(8, &segment.sectors.to_ne_bytes());
            put(20, &u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
            put(24, segment.target.kind().as_bytes());
            put(TARGET, words.as_bytes());
        }
        let flags = if read_only { READ_ONLY } else { 0 };
        let count = u32::try_from(table.len()).unwrap_or(u32::MAX);
        self.call(
            Command::Load,
            Some(Named { name, uuid: "" }),
            flags,
            0,
            &body,
            count,
        )
        .map(drop)
    }

    /// Lets the device work with the table that was loaded last. Where it worked already, what was on
    /// its way under the old table arrives first.
    ///
    /// # Errors
    /// When the new table cannot be used; the device goes on with the old one or stands still.
    pub fn resume(&self, name: &str) -> Result<(), DmError> {
        self.call(
            Command::Suspend,
            Some(Named { name, uuid: "" }),
            0,
            UDEV_FLAGS,
            &[],
            0,
        )
        .map(drop)
    }

    /// Lets what is on its way arrive, and holds back what comes after.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn suspend(&self, name: &str) -> Result<(), DmError> {
        self.call(
            Command::Suspend,
            Some(Named { name, uuid: "" }),
            SUSPEND,
            0,
            &[],
            0,
        )
        .map(drop)
    }

    /// Forgets a table that was loaded and is not used yet.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn clear(&self, name: &str) -> Result<(), DmError> {
        self.call(Command::Clear, Some(Named { name, uuid: "" }), 0, 0, &[], 0)
            .map(drop)
    }

    /// Removes a device.
    ///
    /// # Errors
    /// `EBUSY` while it is open or used by another.
    pub fn remove(&self, name: &str) -> Result<(), DmError> {
        self.call(
            Command::Remove,
            Some(Named { name, uuid: "" }),
            0,
            UDEV_FLAGS,
            &[],
            0,
        )
        .map(drop)
    }

    /// What there is under a name; none where there is nothing.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn status(&self, name: &str) -> Result<Option<Status>, DmError> {
        let named = Named { name, uuid: "" };
        match self.call(Command::Status, Some(named), 0, 0, &[], 0) {
            Ok(answer) => Ok(Some(status(&answer))),
            Err(error) if error.is(libc::ENXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The table that the device works with.
    ///
    /// # Errors
    /// When the device is gone, or has a target that is none of ours.
    pub fn table(&self, name: &str) -> Result<Vec<Segment>, DmError> {
        let lines = self.target_lines(name, STATUS_TABLE)?;
        parse_table(&lines).ok_or_else(|| DmError::Table {
            name: name.to_owned(),
            table: format!("{lines:?}"),
        })
    }

    /// Start, length, kind and state of each target of a device, in the target's own words.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn target_status(&self, name: &str) -> Result<Vec<(u64, u64, String, String)>, DmError> {
        self.target_lines(name, 0)
    }

    fn target_lines(
        &self,
        name: &str,
        flags: u32,
    ) -> Result<Vec<(u64, u64, String, String)>, DmError> {
        let named = Named { name, uuid: "" };
        let answer = self.call(Command::TableStatus, Some(named), flags, 0, &[], 0)?;
        let body = data(&answer);
        let mut lines = Vec::new();
        let mut at = 0;
        for _ in 0..u32_at(&answer, 20) {
            let Some(target) = body.get(at..at + TARGET) else {
                break;
            };
            let words = body.get(at + TARGET..).unwrap_or_default();
            lines.push((
                u64_at(target, 0),
                u64_at(target, 8),
                text(&target[24..40]),
                text(words),
            ));
            // In answers the distance is counted from the first target.
            at = u32_at(target, 20) as usize;
        }
        Ok(lines)
    }

    /// Names of all devices.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn names(&self) -> Result<Vec<String>, DmError> {
        let devices = self.events()?;
        Ok(devices.into_iter().map(|(name, _)| name).collect())
    }

    /// Names of all devices, and how many events each has had.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn events(&self) -> Result<Vec<(String, u32)>, DmError> {
        let answer = self.call(Command::ListDevices, None, 0, 0, &[], 0)?;
        let body = data(&answer);
        let mut names = Vec::new();
        let mut at = 0;
        // An entry: device number (u64, zero where there is no device), distance to the next, name,
        // and at the next multiple of eight the number of events (u32).
        while let Some(entry) = body.get(at..at + 12) {
            if u64_at(entry, 0) == 0 {
                break;
            }
            let name = text(body.get(at + 12..).unwrap_or_default());
            let counter = (at + 12 + name.len() + 1).next_multiple_of(8);
            let events = body
                .get(counter..counter + 4)
                .map_or(0, |bytes| u32_at(bytes, 0));
            names.push((name, events));
            match u32_at(entry, 8) {
                0 => break,
                next => at += next as usize,
            }
        }
        Ok(names)
    }

    fn call(
        &self,
        command: Command,
        named: Option<Named<'_>>,
        flags: u32,
        event: u32,
        body: &[u8],
        targets: u32,
    ) -> Result<Vec<u8>, DmError> {
        let named = named.unwrap_or(Named { name: "", uuid: "" });
        let failed = |source: io::Error| DmError::Call {
            operation: command.words(),
            name: named.name.to_owned(),
            source,
        };
        if named.name.len() >= NAME_LEN || named.uuid.len() >= UUID_LEN {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        let mut size = BUFFER.max(HEADER + body.len());
        loop {
            let mut buffer = vec![0_u8; size];
            let mut put = |at: usize, bytes: &[u8]| {
                buffer[at..at + bytes.len()].copy_from_slice(bytes);
            };
            for (index, part) in command.version().into_iter().enumerate() {
                put(index * 4, &part.to_ne_bytes());
            }
            put(12, &u32::try_from(size).unwrap_or(u32::MAX).to_ne_bytes());
            put(16, &u32::try_from(HEADER).unwrap_or(u32::MAX).to_ne_bytes());
            put(20, &targets.to_ne_bytes());
            put(28, &flags.to_ne_bytes());
            put(32, &event.to_ne_bytes());
            put(NAME_AT, named.name.as_bytes());
            put(UUID_AT, named.uuid.as_bytes());
            put(HEADER, body);
            ioctl(&self.0, command as u8, &mut buffer).map_err(failed)?;
            if u32_at(&buffer, 28) & BUFFER_FULL == 0 {
                return Ok(buffer);
            }
            size *= 2;
        }
    }
}

fn ioctl(file: &File, command: u8, buffer: &mut [u8]) -> io::Result<()> {
    // _IOWR(0xfd, command, struct dm_ioctl)
    const HEADER_BITS: libc::c_ulong = (HEADER as libc::c_ulong) << 16;
    let request = (3 << 30) | HEADER_BITS | (0xfd << 8) | libc::c_ulong::from(command);
    // SAFETY: the kernel reads and writes at most as many bytes as the buffer's header says, which is
    // the buffer's length.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, buffer.as_mut_ptr()) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn status(answer: &[u8]) -> Status {
    Status {
        number: DeviceNumber::from_kernel(u64_at(answer, 40)),
        uuid: text(&answer[UUID_AT..UUID_AT + UUID_LEN]),
        open_count: u32_at(answer, 24),
        suspended: u32_at(answer, 28) & SUSPEND != 0,
    }
}

fn data(answer: &[u8]) -> &[u8] {
    answer
        .get(u32_at(answer, 16) as usize..)
        .unwrap_or_default()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

fn text(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes)
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_default()
}
